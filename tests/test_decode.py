"""decode.py: Algorithm 1 (Sec. 3.2), App. B.3."""
from dataclasses import replace
from types import SimpleNamespace

import oracle
import pytest
import torch

import decode
from commit import MT8, MT10, TASKS, commit_mask, mask_ratio, num_masked
from decode import chosen_tasks, class_number, commit_decode, generate, guided_logits, seeded_noise
from tokenizer import TOKENIZERS
from transformer import TRANSFORMERS, MaskedTransformer, TransformerConfig

N, K = 24, 10


class Table:
    """A stand-in for the transformer: fixed random logits that depend on the input tokens."""

    mask_id, no_class, sample = K, 3, MaskedTransformer.sample

    def __init__(self, generator):
        self.weights = torch.randn(N, K + 1, N, K, generator=generator) / 3

    def __call__(self, tokens, task, label):
        position = torch.arange(N)
        logits = torch.stack([self.weights[position, row].sum(0) for row in tokens])
        return logits + label[:, None, None] * 0.1


class Undecided(Table):
    """Any number of tokens, two codes, equally likely."""

    mask_id = 2

    def __init__(self):
        pass

    def __call__(self, tokens, task, label):
        return torch.zeros(*tokens.shape, 2)


@pytest.fixture
def model(generator):
    return Table(generator)


@pytest.fixture
def inputs(generator):
    """task, label, condition tokens (2, N), is_pad (N,)."""
    return (torch.zeros(2, dtype=torch.long), torch.tensor([0, 2]),
            torch.randint(K, (2, N), generator=generator),
            torch.rand(N, generator=generator) < 0.6)


# ---------------------------------------------------------------------------------------------
# Algorithm 1

@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_algorithm_1_equals_the_plain_python_oracle(model, inputs, steps):
    """At temperature 0, line by line: inputs, tokens, scores and cut-off of every step."""
    task, label, condition, is_pad = inputs
    torch.manual_seed(0)
    token_noise = torch.distributions.Gumbel(0.0, 1.0).sample((steps, 2, N, K))
    draws = iter([noise for t in range(steps) for noise in (token_noise[t], torch.zeros(2, N))])
    states = list(commit_decode(model, *inputs, steps=steps, temperature=0.0,
                                noise=lambda shape: next(draws)))
    for b in range(2):
        def predict(z_bar):
            return model(torch.tensor([z_bar]), task[:1], label[b:b + 1])[0].softmax(-1).tolist()

        def sample(p, t, i):
            return int((torch.tensor(p).log() + token_noise[t, b, i]).argmax())

        for state, (z_bar, z_hat, s, cutoff) in zip(states, oracle.algorithm_1(
                predict, condition[b].tolist(), is_pad.tolist(), steps, K, sample), strict=True):
            assert state.inputs[b].tolist() == z_bar
            assert state.tokens[b].tolist() == z_hat
            if state.step < steps - 1:
                assert state.unknown[b].tolist() == [score <= cutoff for score in s]
                torch.testing.assert_close(
                    state.confidence[b].exp().nan_to_num(posinf=1.0), torch.tensor(s))


@pytest.mark.parametrize("schedule", ["cosine", "uniform", "exp"])
@pytest.mark.parametrize("temperature, steps", [(0.0, 9), (4.5, 9), (400.0, 9), (4.5, 2 * N)])
def test_each_state_tells_what_the_next_step_predicts_and_what_is_decided(
        model, inputs, schedule, temperature, steps):
    """Line 6's counts, line 7's inf. What is decided stays; in the last state all is."""
    _, _, condition, is_pad = inputs
    unknown = torch.ones(2, N, dtype=torch.bool)                                    # line 1
    tokens = None
    for state in commit_decode(model, *inputs, steps=steps, schedule=schedule,
                               temperature=temperature, noise=seeded_noise(0)):
        given = torch.where(is_pad, K, condition)
        assert torch.equal(state.inputs, given if tokens is None else
                           torch.where(unknown, given, tokens))
        assert tokens is None or torch.equal(state.tokens[~unknown], tokens[~unknown])
        assert not (state.unknown & ~unknown).any()
        unknown, tokens = state.unknown, state.tokens
        assert torch.equal(state.confidence.isinf(), ~unknown) and (tokens < K).all()
        progress = torch.tensor((state.step + 1) / steps, dtype=torch.float64)
        count = num_masked(mask_ratio(progress, schedule, N), N) * (state.step + 1 < steps)
        assert (unknown.sum(1) == count).all()
    assert state.step == steps - 1 and not unknown.any() and (state.confidence == torch.inf).all()


def test_the_counts_of_line_6_are_exact_for_any_number_of_tokens():
    """18,000 is no power of two: a count that went through float32 was one too many or few."""
    one = torch.zeros(1, dtype=torch.long)
    states = commit_decode(Undecided(), one, one, torch.zeros(1, 18_000, dtype=torch.long),
                           torch.ones(18_000, dtype=torch.bool), steps=100,
                           noise=seeded_noise(0), temperature=1e3)
    counts = [int(state.unknown.sum()) for state in states]
    assert counts == [*(oracle.ceil_count(oracle.gamma(t / 100), 18_000) for t in range(1, 100)), 0]


def test_sec_3_2_condition_tokens_are_refined_too(model, inputs):
    """Unlike a prefix or an unmasked region, the condition is predicted anew."""
    _, _, condition, is_pad = inputs
    *_, last = commit_decode(model, *inputs, noise=seeded_noise(0))
    assert (last.tokens != condition)[:, ~is_pad].any()


def test_chance_is_the_noise_alone_and_is_asked_for_twice_a_step(model, inputs):
    asked = []

    def once(seed):
        noise = seeded_noise(seed)
        *_, last = commit_decode(model, *inputs, steps=3,
                                 noise=lambda shape: asked.append(tuple(shape)) or noise(shape))
        return last.tokens

    first, again, other = once(1), once(1), once(2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert asked == [(2, N, K), (2, N)] * 9


@pytest.mark.parametrize("count", [5, torch.tensor(5), torch.tensor([5, 9])])
def test_a_recording_puts_its_counts_in_the_place_of_num_masked(model, inputs, count, monkeypatch):
    monkeypatch.setattr(decode, "num_masked", lambda ratio, tokens: count)
    first = next(commit_decode(model, *inputs, steps=4, noise=seeded_noise(0)))
    assert torch.equal(first.unknown.sum(1), torch.as_tensor(count).expand(2))


def test_zero_steps_are_refused(model, inputs):
    with pytest.raises(ValueError, match="0 decoding steps"):
        next(commit_decode(model, *inputs, steps=0))


# ---------------------------------------------------------------------------------------------
# Guidance

@pytest.mark.parametrize("tasks, trained, baseline", [
    (MT10, (), "CG"), (MT10, MT10, "CG"), (MT10, ("OPC", "CG"), "CG"),
    (("OPC", "FP", "CG"), (), "CG"), (MT10, ("OPC",), "OPC"), (MT10, MT8, "OPC"),
    (MT8, (), "OPC"), (("FP", "FI", "OPC"), (), "OPC"), ((), (), None)])
def test_guidance_leaves_out_condition_and_class_under_the_prompt_of_cg_where_it_is_trained(
        tasks, trained, baseline, inputs, generator):
    """In one forward pass. Where CG is not trained, nothing has touched its prompt's embedding."""
    torch.manual_seed(0)
    model = TransformerConfig(num_layers=1, hidden_size=16, num_heads=2, mlp_size=16,
                              codebook_size=K, num_tokens=N, num_classes=3, tasks=tasks,
                              trained_tasks=trained).build().eval()
    _, label, condition, is_pad = inputs
    tokens = torch.randint(K, (2, N), generator=generator)
    scores, cutoff = torch.rand(2, N, generator=generator), torch.tensor([0.5, 0.8])
    masked = scores <= cutoff[:, None]
    given = commit_mask(tokens, condition, is_pad, scores, cutoff, model.mask_id)
    own, of_baseline = (torch.full_like(label, tasks.index(task) if tasks else 0)
                        for task in ("OPC", baseline))
    plain = model(given, own, label)
    blank = model(torch.where(masked, model.mask_id, tokens), of_baseline,
                  torch.full_like(label, model.no_class))
    passes = []
    model.register_forward_pre_hook(lambda _, arguments: passes.append(len(arguments[0])))
    for scale, batch in ((0.0, 2), (1.5, 4)):
        guided = guided_logits(model, given, tokens, masked, own, label, scale)
        torch.testing.assert_close(guided, plain + scale * (plain - blank))
        assert passes.pop() == batch and not passes


def test_the_guidance_scale_may_be_a_function_of_t_over_k(model, inputs, monkeypatch):
    scales = []
    monkeypatch.setattr(decode, "guided_logits", lambda model, inputs, tokens, masked, task, label,
                        scale: scales.append(scale) or model(inputs, task, label))
    list(commit_decode(model, *inputs, steps=4, guidance_scale=lambda progress: 8 * progress))
    assert scales == [0, 2, 4, 6]


# ---------------------------------------------------------------------------------------------
# Pixels to pixels

@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    config = replace(TRANSFORMERS["toy"], num_layers=1, num_classes=3, grid=(4, 4, 4))
    return TOKENIZERS["toy"].build().eval(), config.build().eval()


CLIP = torch.rand(1, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_makes_a_video_in_0_to_1_whatever_its_hidden_pixels_are(tiny, task):
    label = torch.tensor([2]) if TASKS[task].class_conditional else None
    region = TASKS[task].region(16, 32, 32, *[1] * TASKS[task].counts_frames)
    one, other = (generate(*tiny, video, task, label, steps=2, noise=seeded_noise(0))
                  for video in (CLIP, torch.where(region, CLIP, 1 - CLIP)))
    assert one.shape == (1, 3, 16, 32, 32) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, other)


@pytest.mark.parametrize("task, label, classes, complaint", [
    ("CG", None, 3, r"CG needs a class label in 0..2 \(3: no class\), got none"),
    ("CFP", [4], 3, r"label in 0..2 \(3: no class\), got \[4\]"),
    ("CG", [-1], 3, r"label in 0..2 \(3: no class\), got \[-1\]"),
    ("FP", [1], 3, "FP takes no class label"), ("CG", [0], 0, "CG takes no class label"),
    ("CFP", [0], 0, "CFP needs classes, and this model was trained without any"),
    ("XX", None, 3, "task 'XX' is unknown")])
def test_a_task_or_label_that_makes_no_sense_is_refused(tiny, task, label, classes, complaint):
    model = replace(tiny[1].config, num_classes=classes).build()
    with pytest.raises(ValueError, match=complaint):
        generate(tiny[0], model, CLIP, task, label and torch.tensor(label))


@pytest.mark.parametrize("video, complaint", [
    (CLIP * 255, "float32 from .* to 25[45]"), (CLIP * 2 - 1, "from -1"),
    ((CLIP * 255).byte(), "uint8 from 0 to 25[45]; wanted floats in")])
def test_pixels_that_are_not_floats_in_0_to_1_are_refused(tiny, video, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate(*tiny, video, "FI", steps=1)


@pytest.mark.parametrize("shape, complaint", [
    ((15, 32, 32), "T=15 frames or pixels; this tokenizer needs"),
    ((32, 32, 32), "has 8x4x4 tokens; this transformer was trained on 4x4x4"),
    ((16, 16, 64), "has 4x2x8 tokens; this transformer was trained on 4x4x4"),
    ((16, 64, 16), "4x8x2"), ((32, 16, 32), "8x2x4")])
def test_a_video_of_another_grid_is_refused_also_with_as_many_tokens(tiny, shape, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate(*tiny, torch.rand(1, 3, *shape), "FP")


def test_where_the_grid_is_not_known_the_number_of_tokens_must_fit(tiny):
    model = replace(tiny[1].config, grid=()).build().eval()
    with pytest.raises(ValueError, match="has 8x4x4 tokens; this transformer was trained on 64"):
        generate(tiny[0], model, torch.rand(1, 3, 32, 32, 32), "FP")
    assert generate(tiny[0], model, torch.rand(1, 3, 16, 16, 64), "FP", steps=1).shape[4] == 64


@pytest.mark.parametrize("tasks, classes, task, prompt, asked", [
    (MT10, 3, "OPH", None, MT10.index("OPH")), (("CG", "OPC"), 3, "OPH", "OPC", 1),
    (MT10, 0, "CG", None, MT10.index("CG")), ((), 0, "FP", None, 0)])
def test_a_task_has_its_own_prompt_or_that_which_stands_for_it(tiny, tasks, classes, task, prompt,
                                                               asked):
    """Official models of one task have no prompt at all; CG without classes is unconditional."""
    model = replace(tiny[1].config, tasks=tasks, num_classes=classes).build().eval()
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(
        [ids.tolist() for ids in inputs[1:]]))
    generate(tiny[0], model, CLIP, task, prompt=prompt, steps=1)
    assert seen == [[[asked], [classes]]]


# ---------------------------------------------------------------------------------------------
# The command

class HeldOut(list):
    """Forty clips, of which the numbers that are asked for are kept in the list."""

    def __len__(self):
        return 40

    def clip(self, number, random):
        self.append(number)
        return torch.zeros(16, 32, 32, 3, dtype=torch.uint8), -1


@pytest.fixture
def command(tiny, monkeypatch):
    """command(dataset, flags) -> the clip that was looked at, the rows that were written."""
    def run(dataset, *flags):
        looked, rows = HeldOut(), []
        stub = SimpleNamespace(
            tokenizer=tiny[0], transformer=tiny[1], tasks=MT10, class_names=["run", "walk", "sit"],
            data=SimpleNamespace(dataset=dataset), held_out=lambda: looked,
            config=SimpleNamespace(stride=3, clip_shape=(16, 32, 32), tasks=MT8, condition_frames=1,
                                   precision="float32", decoding=dict(steps=1)),
            how=lambda task, labels: dict(label=labels if TASKS[task].class_conditional else None))
        monkeypatch.setattr("training.checkpoint.load_run", lambda *_: stub)
        monkeypatch.setattr("measure.pictures.write_grid", lambda _, table, titles: rows.extend(
            name.split("\n")[0] for name, _ in table))
        monkeypatch.setattr("data.clips.load_clip", lambda path, _, *rest: looked.append(
            (path, *rest)) or torch.zeros(1, 3, 16, 32, 32))
        monkeypatch.setattr("sys.argv", ["decode.py", "RUN", "--samples", "1", *flags])
        decode.main()
        return [*looked], rows
    return run


@pytest.mark.parametrize("dataset, flags, looked", [
    ("videos", ["--video", "in.mp4"], ("in.mp4", 0, 3)),
    ("videos", ["--video", "in.mp4", "--stride", "1", "--start", "7"], ("in.mp4", 7, 1)),
    ("videos", [], 0), ("shapes", [], 36), ("shapes", ["--clip", "4"], 4)])
def test_the_command_takes_the_video_at_the_runs_stride_or_a_held_out_clip(command, dataset, flags,
                                                                           looked):
    assert command(dataset, "--task", "OPH", *flags) == ([looked], ["OPH"])


def test_the_command_does_all_tasks_in_order_those_with_a_class_where_one_is_given(command, capsys):
    assert command("videos")[1] == [*MT8]
    assert command("videos", "--label", "walk")[1] == [*MT10]
    assert "was not trained on CG CFP" in capsys.readouterr().err


@pytest.mark.parametrize("flags, complaint", [
    (["--steps", "0"], "--steps 0; wanted at least 1"), (["--samples", "0"], "--samples 0"),
    (["--temperature", "nan"], "--temperature nan"), (["--out", "out.mp3"], "out.mp3"),
    (["--clip", "40"], "--clip 40; the run has held-out clips 0 to 39")])
def test_a_senseless_flag_is_refused_in_a_line_that_names_it(command, flags, complaint):
    with pytest.raises(SystemExit, match=f"^decode.py: .*{complaint}"):
        command("videos", *flags)


@pytest.mark.parametrize("tasks, options, complaint", [
    (["CG"], {}, "CG needs --label; the classes of this run are run, walk"),
    (["FP", "OPC"], dict(label="run"), "FP OPC takes no --label"),
    (["OPC"], dict(condition_frames=5), "--condition-frames .* not in OPC")])
def test_options_that_do_not_fit_the_tasks_are_refused(tiny, tasks, options, complaint):
    options = SimpleNamespace(**dict(task=tasks, label=None, condition_frames=None) | options)
    run = SimpleNamespace(transformer=tiny[1], tasks=MT10, class_names=["run", "walk"])
    with pytest.raises(ValueError, match=complaint):
        chosen_tasks(options, run, 0 if options.label else None)


def test_classes_have_names_and_numbers():
    assert class_number("walk", ["run", "walk"]) == class_number("1", ["run", "walk"]) == 1
    for bad in ("2", "-1", "fly"):
        with pytest.raises(ValueError, match="is unknown; this run has 2 classes: run, walk"):
            class_number(bad, ["run", "walk"])

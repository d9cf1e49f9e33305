"""train.py, steps.py and training/: what a step does, how a stage starts, what can be set."""
import dataclasses
import json
import re
import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from commit import MT8, MT10, TASKS, tokenize_condition
from data.clips import DataConfig, open_source, write_video
from data.moving_shapes import MovingShapes
from data.source import load_batch
from decode import generate
from steps import TokenBatch, tokenizer_step, transformer_step
from tokenizer import TOKENIZERS, VideoTokenizer
from training.checkpoint import load_run, read_checkpoint, save_checkpoint
from training.plan import CountFlop, flop_of_step, made_up_step, plan
from training.presets import PRESETS, TrainConfig
from training.processes import Processes
from training.start import build, decay_groups, transformer_config
from training.tokens import (TokenSource, condition_of, encode, facts_of, make_rows, open_table,
                             write_table)
from transformer import TRANSFORMERS, Attention, MaskedTransformer

SMALL = ("--resolution 16 --frames 8 --tokenizer-batch 2 --transformer-batch 4 --token-pool 8 "
         "--tokenizer-steps 6 --transformer-steps 6 --save-every 2 --precision float32 "
         "--tokenizer-warmup 2 --transformer-warmup 2").split() + ["--inflate", ""]
GAN = "--adversarial-weight 0.1".split()
SHAPES = DataConfig(dataset="shapes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six videos of noise, in two classes."""
    root = tmp_path_factory.mktemp("videos")
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 256, (12, 4, 4, 3), np.uint8)
        write_video(root / ("ab"[index % 2]) / f"{index}.npy",
                    noise.repeat(5, axis=1).repeat(5, axis=2))
    return root


@pytest.fixture(scope="module")
def first_stage(folder, tmp_path_factory):
    """A run whose tokenizer is finished; copy it."""
    run = tmp_path_factory.mktemp("first") / "run"
    train_small(folder, run, ["--tokenizer-steps", "2"], "tokenizer")
    return run


def settings(folder, *arguments):
    """The configuration of a small run, and its data; the arguments are train.py's."""
    return train.parse(arguments=["toy", "--data", str(folder), *SMALL, *map(str, arguments)])[:2]


def train_small(folder, run, arguments=(), stage="all", **options):
    """Train in this process; the options are train.train's."""
    config, data = settings(folder, *arguments)
    return train.train(config, data, run, stage=stage, draw=False, **options)


def weights(run, stage):
    state = read_checkpoint(run / f"{stage}.pt")
    return {f"{part} {name}": tensor
            for part in ("tokenizer", "ema", "discriminator", "transformer") if part in state
            for name, tensor in state[part].items()}


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        if tolerance:
            torch.testing.assert_close(first[name], second[name], msg=name, **tolerance)
        else:
            assert torch.equal(first[name], second[name]), name


# ---------------------------------------------------------------------------------------------
# One step of stage 1: where each gradient goes

TRAINED = ("tokenizer", "discriminator")


class Kept(torch.optim.SGD):
    """Does not clear gradients, so that they can be looked at; moves nothing at rate 0."""

    def zero_grad(self, set_to_none=True):
        pass


@pytest.fixture
def trainee():
    return tokenizer_trainee()


def tokenizer_trainee():
    torch.manual_seed(0)
    config = replace(PRESETS["toy"], precision="float32", adversarial_weight=0.1,
                     tokenizer=replace(TOKENIZERS["toy"], codebook_size=128), discriminator="toy")
    return kept(build(config, "tokenizer")), config


def kept(trainee):
    """The same with optimizers that keep gradients."""
    trainee.optimizers = {name: Kept(trainee.networks[name].parameters(), lr=0.0)
                          for name in trainee.optimizers}
    return trainee


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def fresh_gradients(trainee, video, config):
    """Each trained network's gradients after one step."""
    for network in trainee.networks.values():
        network.zero_grad()
    for average in trainee.networks["lecam"].buffers():
        average.zero_()
    tokenizer_step(trainee, video.clone(), config)
    return [gradients(trainee.networks[name]) for name in TRAINED]


def test_each_network_gets_its_own_terms_only(trainee, generator):
    """Not a trace of the other's, whatever the weights of those are."""
    trainee, config = trainee
    video = torch.rand(2, 3, 16, 32, 32, generator=generator)
    plain, adversary, generators = (fresh_gradients(trainee, video, replace(config, **weights))
                                    for weights in (
        {}, dict(r1_weight=1e4, lecam_weight=1e3),
        dict(adversarial_weight=1e3, reconstruction_weight=1e3)))
    same(plain[0], adversary[0], rtol=1e-4, atol=1e-8)
    same(plain[1], generators[1], rtol=1e-4, atol=1e-8)
    assert not torch.equal(plain[1]["conv_in.weight"], adversary[1]["conv_in.weight"])
    assert not torch.equal(plain[0]["decoder.0.weight"], generators[0]["decoder.0.weight"])


def test_the_total_is_the_weighted_sum_of_app_b2(trainee, generator):
    """And commitment weighs a quarter in the encoder's gradient, too."""
    trainee, config = trainee
    video = torch.rand(2, 3, 16, 32, 32, generator=generator)
    terms = tokenizer_step(trainee, video.clone(), config)
    assert terms["loss"].item() == pytest.approx(
        (terms["reconstruction"] + terms["codebook"] + 0.25 * terms["commitment"]
         + config.entropy_weight * terms["entropy"] + 0.1 * terms["generator"]).item(), rel=1e-5)
    ours, _ = fresh_gradients(trainee, video, replace(
        config, reconstruction_weight=0.0, codebook_weight=0.0, entropy_weight=0.0,
        adversarial_weight=0.0))
    model = trainee.networks["tokenizer"]
    model.zero_grad()
    model(video).commitment_loss.backward()
    encoder = {f"encoder.{name}": 0.25 * g for name, g in gradients(model.encoder).items()}
    same({name: ours[name] for name in encoder}, encoder, rtol=1e-4, atol=1e-9)


def test_accumulated_passes_give_the_gradient_of_the_whole_batch(trainee, generator):
    """But for the entropy and LeCam, which are of means over clips; LeCam's averages are right."""
    trainee, config = trainee
    config = replace(config, entropy_weight=0.0, lecam_weight=0.0)
    video, results = torch.rand(4, 3, 16, 32, 32, generator=generator), []
    for accumulate in (1, 2):
        found = fresh_gradients(trainee, video, replace(config, accumulate=accumulate))
        lecam = {name: tensor.clone() for name, tensor in trainee.networks["lecam"].named_buffers()}
        results.append(found + [lecam])
    for whole, parts in zip(*results):
        same(whole, parts, rtol=1e-3, atol=1e-5)


def test_the_ema_follows_the_weights_by_its_decay(trainee, generator):
    trainee, config = trainee
    model, ema = trainee.networks["tokenizer"], trainee.networks["ema"]
    trainee.optimizers["tokenizer"].param_groups[0]["lr"] = 0.1
    before = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    tokenizer_step(trainee, torch.rand(2, 3, 16, 32, 32, generator=generator), config)
    assert config.tokenizer_ema == 0.99 and TrainConfig().tokenizer_ema == 0.999
    same(ema.state_dict(), {name: 0.99 * before[name] + 0.01 * tensor
                            for name, tensor in model.state_dict().items()}, rtol=1e-5, atol=1e-7)
    assert not torch.equal(before["decoder.0.weight"], ema.state_dict()["decoder.0.weight"])


# ---------------------------------------------------------------------------------------------
# Stage 2

def test_weight_decay_acts_on_matrices_only():
    """Official: kernels, not biases, norms, embeddings or positions."""
    model = MaskedTransformer(replace(TRANSFORMERS["toy"], num_layers=1))
    decayed, free = decay_groups(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed} == {
        "blocks.0.attention.query_key_value.weight", "blocks.0.attention.out.weight",
        "blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight", "head.0.weight"}
    assert len(decayed) + len(free) == len(names)


def test_one_batch_is_learned_by_heart(generator):
    """Eq. (3) at work: the transformer overfits four sequences."""
    torch.manual_seed(0)
    config = TrainConfig(precision="float32", transformer_rate=3e-3, transformer=replace(
        TRANSFORMERS["toy"], num_layers=2, hidden_size=64, mlp_size=128))
    sixteen = SimpleNamespace(codebook_size=16, latent_shape=lambda *shape: (1, 4, 4))
    trainee = build(config, "transformer", tokenizer=sixteen)
    model = trainee.networks["transformer"]
    tokens, zeros = torch.randint(16, (4, 16), generator=generator), torch.zeros(4).long()
    for _ in range(250):
        batch = TokenBatch("FP", tokens, tokens.flip(0), torch.arange(16) > 3, zeros,
                           torch.rand(4, 16, generator=generator),
                           torch.rand(4, generator=generator))
        transformer_step(trainee, batch, config)
    assert (model(tokens, zeros, zeros).argmax(-1) == tokens).float().mean() > 0.99


def test_nothing_reaches_the_frozen_tokenizer_in_stage_2(folder, first_stage, tmp_path,
                                                         monkeypatch):
    run, frozen, load = shutil.copytree(first_stage, tmp_path / "run"), [], train.load_network
    monkeypatch.setattr(train, "load_network", lambda *a: frozen.append(load(*a)) or frozen[0])
    train_small(folder, run, ["--token-pool", "0"], "transformer")
    assert all(p.grad is None and not p.requires_grad for p in frozen[0].parameters())
    same(frozen[0].state_dict(), read_checkpoint(run / "tokenizer.pt")["ema"])


class Noise:
    """Four clips of two classes. It inherits from nothing."""

    class_names = ["dark", "bright"]

    def __len__(self):
        return 4

    def clip(self, index, random=None):
        noise = np.random.default_rng(index).integers(0, 128, (8, 4, 4, 3), np.uint8)
        return noise.repeat(4, axis=1).repeat(4, axis=2) + np.uint8(127 * (index % 2)), index % 2


class Unlabelled(Noise):
    """The last clip has no label, the others have."""

    def clip(self, index, random=None):
        clip, label = super().clip(index)
        return clip, -1 if index == 3 else label


@pytest.mark.parametrize("pool", [0, 4])
def test_a_label_of_minus_1_is_no_class_and_one_too_large_is_refused(tmp_path, pool):
    """-1 was taken for the last code of the codebook, C + 1 for a prompt."""
    config, source = settings("", "--token-pool", pool, "--tasks", "CG")[0], Unlabelled()
    tokenizer = build(config, "tokenizer").networks["tokenizer"]
    tokens = TokenSource(tokenizer, source, config, Processes(), 2, pool=tmp_path)
    labels = torch.cat([tokens(step).label for step in range(6)])
    tokens.close()
    assert labels.unique().tolist() == [0, 1, 2]
    source.class_names = ["dark"]
    with pytest.raises(ValueError, match="has the label 1; wanted -1 .* 1 class_names"):
        train.train(config, source, tmp_path / "run", draw=False)


def test_tokens_made_a_few_clips_at_a_time_are_those_made_at_once(generator, monkeypatch):
    """Which bounds the memory of stage 2. (Two codes may be equally near.)"""
    config, video = settings("")[0], torch.rand(5, 3, 8, 16, 16, generator=generator)
    tokenizer, sizes, found = VideoTokenizer(TOKENIZERS["toy"]).eval(), [], []
    tokenizer.encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    for clips in (16, 3):
        monkeypatch.setattr("training.tokens.AT_ONCE", clips)
        found.append((encode(tokenizer, video, config),
                      condition_of(tokenizer, video, "FP", config)[0]))
    assert sizes == [5, 5, 3, 2, 3, 2]
    for whole, parts in zip(*found):
        assert whole.shape == parts.shape and (whole == parts).float().mean() > 0.9


def test_the_pool_holds_as_many_clips_as_it_is_asked_for_and_is_made_once(
        folder, first_stage, tmp_path, monkeypatch):
    made, run = [], shutil.copytree(first_stage, tmp_path / "run")
    monkeypatch.setattr("training.tokens.make_rows", lambda *given: made.append(given[-1]) or
                        make_rows(*given))
    ends = []
    for _ in range(2):
        train_small(folder, run, ["--token-pool", "5", "--tasks", "FP", "CG"], "transformer")
        ends.append(weights(run, "transformer"))
        for path in run.glob("transformer.pt*"):
            path.unlink()
    same(*ends)
    table = open_table(run / "pool")
    assert len(table) == 5 and table.shards[0].shape == (5, 1 + 3 * 8)    # label, z, FP, CG
    state = read_checkpoint(run / "tokenizer.pt")
    state["ema"]["quantizer.codebook"][0] += 1                  # another tokenizer, the old pool
    save_checkpoint(run / "tokenizer.pt", state)
    train_small(folder, run, ["--token-pool", "4"], "transformer")
    assert made == [range(5), range(4)] and len(open_table(run / "pool")) == 4


def test_tokens_on_disk_are_those_of_the_clips_and_their_conditions(folder, tmp_path, monkeypatch):
    """Two augmentations of each clip here, in shards of 32 entries."""
    monkeypatch.setattr("training.tokens.SHARD", 32)
    config, data = settings(folder, "--tasks", "FP", "CFP", "OPC")
    source = open_source(data, config.clip_shape, flip=True)
    tokenizer = VideoTokenizer(TOKENIZERS["toy"]).eval()
    facts = facts_of(tokenizer, source, config, ["FP", "CFP", "OPC"], 36)
    write_table(tokenizer, source, config, tmp_path, facts)
    table, entries = open_table(tmp_path), np.array([3, 0, 5, 35])
    assert [len(shard) for shard in table.shards] == [32, 4]
    video, label = (torch.cat(each)[entries] for each in zip(
        *(load_batch(source, step, 32, config.seed) for step in range(2))))
    for task in ("FP", "CFP", "OPC"):
        tokens, condition, is_pad, labels = table.take(entries, task, torch.device("cpu"))
        there, pad = tokenize_condition(tokenizer, video, task, 1)
        for ours, anew in ((tokens, tokenizer.encode(video).flatten(1)), (condition, there)):
            assert (ours == anew).float().mean() > 0.9              # two codes may be equally near
        assert torch.equal(is_pad, pad) and torch.equal(labels, label)
    with pytest.raises(ValueError, match="the tokens are of another run: tokenizer .* no FI"):
        TokenSource(VideoTokenizer(TOKENIZERS["toy"]), source, replace(config, tasks=("FI",)),
                    Processes(), 2, table=table)
    (tmp_path / "0000032.npy").unlink()
    with pytest.raises(FileNotFoundError, match="0000032.npy is missing, 1 of 2 files"):
        open_table(tmp_path)


@pytest.mark.parametrize("backend", [
    "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])        # what --compile takes
def test_compiled_networks_train_with_the_adversary_too(folder, tmp_path, monkeypatch, backend):
    """R1 differentiates twice, which compiled networks cannot: the discriminator stays as it is."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda module: compile_module(module, backend=backend))
    steps = [*GAN, "--tokenizer-steps", "2", "--transformer-steps", "2", "--tasks", "FP"]
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        train_small(folder, tmp_path / name, [*flags, *steps], "tokenizer")
        if name == "compiled":
            shutil.copy(tmp_path / "plain/tokenizer.pt", tmp_path / name)       # the same tokens
        train_small(folder, tmp_path / name, [*flags, *steps], "transformer")
    logs = [log_of(tmp_path / name) for name in ("plain", "compiled")]
    assert len(logs[0]) == len(logs[1]) == 4
    for plain, compiled in zip(*logs):
        for term in plain.keys() - {"stage", "seconds", "waiting", "clips_per_second"}:
            assert compiled[term] == pytest.approx(plain[term], rel=1e-3, abs=1e-5), term


# ---------------------------------------------------------------------------------------------
# Where a stage starts

def test_frames_come_first_where_the_tokenizer_is_inflated(folder, tmp_path):
    """Stopped on the way, they are finished first; with a tokenizer there, nobody asks for them."""
    flags = [*GAN, "--inflate", "central", "--tokenizer-steps"]

    def stop(stage, step, terms):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small(folder, tmp_path, [*flags, "6"], "image", on_step=stop)
    heard = []
    train_small(folder, tmp_path, [*flags, "6"], "image")
    train_small(folder, tmp_path, [*flags, "1"], "tokenizer",
                on_step=lambda stage, *_: heard.append(stage.name))
    assert heard == ["tokenizer"]
    image, video = weights(tmp_path, "image"), weights(tmp_path, "tokenizer")
    name = "ema encoder.0.weight"                      # one step at rate 0: as inflated
    torch.testing.assert_close(video[name][:, :, 1], image[name][:, :, 0])
    assert video[name][:, :, 0].abs().max() == 0
    torch.testing.assert_close(video["ema quantizer.codebook"], image["ema quantizer.codebook"])
    train_small(folder, tmp_path / "new", [*flags, "2"], "tokenizer",
                on_step=lambda stage, *_: heard.append(stage.name))
    assert heard[1:] == ["image"] * 2 + ["tokenizer"] * 2


class Renamed:
    """The drawn clips under more class names, in another order."""

    def __init__(self):
        self.clips = MovingShapes()
        self.class_names = ["star up", *reversed(self.clips.class_names), "star down"]

    def __len__(self):
        return len(self.clips)

    def clip(self, index, random=None):
        clip, label = self.clips.clip(index, random)
        return clip, self.class_names.index(self.clips.class_names[label])


SHORT = replace(PRESETS["toy"], inflate="", tokenizer_steps=3, tokenizer_warmup=1,
                transformer_steps=3, transformer_warmup=1, tokenizer_batch=2, transformer_batch=4,
                token_pool=8, precision="float32")
ONE_STEP = replace(SHORT, tokenizer_steps=1, transformer_steps=1)        # at rate 0: as it starts


@pytest.fixture(scope="module")
def shapes_run(tmp_path_factory):
    """A short run on the 16 classes of the drawn clips, with the adversary."""
    run = tmp_path_factory.mktemp("shapes")
    train.train(replace(SHORT, adversarial_weight=0.1), SHAPES, run, draw=False)
    return run


def test_a_tokenizer_starts_from_another_runs_averaged_weights(shapes_run, tmp_path):
    for weight in (0.0, 0.1):
        run = tmp_path / str(weight)
        train.train(replace(ONE_STEP, init=str(shapes_run), adversarial_weight=weight), Renamed(),
                    run, stage="tokenizer", draw=False)
        before, after = (read_checkpoint(each / "tokenizer.pt") for each in (shapes_run, run))
        same(before["ema"], after["tokenizer"])
        same(before["ema"], after["ema"])
        assert not torch.equal(before["ema"]["quantizer.codebook"],
                               before["tokenizer"]["quantizer.codebook"])
        assert after["origin"] == dict(run=str(shapes_run.resolve()), step=3)
        assert ("discriminator" in after) == bool(weight)
    same(before["discriminator"], after["discriminator"])


def test_a_transformer_starts_from_another_run_with_its_classes_and_tasks_by_name(
        shapes_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "NEW", TASKS["OPC"])
    config = replace(ONE_STEP, init=str(shapes_run), tasks=("NEW", "FP", "CG"))
    train.train(config, Renamed(), tmp_path, draw=False)
    assert "class star up, class star down, task NEW" in capsys.readouterr().err
    old, new = (load_run(run).transformer for run in (shapes_run, tmp_path))
    assert read_checkpoint(tmp_path / "transformer.pt")["origin"] == dict(
        run=str(shapes_run.resolve()), step=3)
    assert new.config.tasks == (*old.config.tasks, "NEW")
    assert (old.no_class, new.no_class) == (16, 18)
    torch.manual_seed(config.seed)
    fresh = build(config, "transformer", num_classes=18).networks["transformer"]
    theirs = {name: 512 + row for row, name in enumerate(MovingShapes().class_names)}
    ours = {name: 512 + row for row, name in enumerate(Renamed().class_names)}
    for model, rows in ((old, theirs), (new, ours)):
        rows |= {code: code for code in range(512)} | {"no class": 512 + model.no_class}
        rows |= {task: 513 + model.no_class + row for row, task in enumerate(model.config.tasks)}
        rows["[MASK]"] = model.mask_id
    assert len(ours) == new.config.vocabulary_size and len(theirs) == old.config.vocabulary_size
    tables = "token_embedding.weight", "head_bias"
    for table in tables:
        before, after, drawn = (each.state_dict()[table] for each in (old, new, fresh))
        for name, row in ours.items():
            start = before[theirs[name]] if name in theirs else drawn[row]
            assert torch.equal(after[row], start), name
    same(*({name: tensor for name, tensor in network.state_dict().items() if name not in tables}
           for network in (old, new)))


@pytest.mark.parametrize("network, change", [
    ("tokenizer", dict(tokenizer=replace(TOKENIZERS["toy"], base_channels=8))),
    ("tokenizer", dict(padding="zeros")),
    ("tokenizer", dict(tokenizer=replace(TOKENIZERS["toy"], codebook_size=64))),
    ("transformer", dict(transformer=replace(TRANSFORMERS["toy"], num_layers=2)))])
def test_weights_of_another_size_are_refused(shapes_run, tmp_path, network, change):
    with pytest.raises(ValueError, match=rf"shapes.*/{network}.pt has a \w+, this run a .* there"):
        train.train(replace(ONE_STEP, init=str(shapes_run), **change), Renamed(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments, classes", [
    (["FP"], 0), (["CG"], 2), (["FP", "--num-classes", "2"], 2)])
def test_frame_prediction_has_rows_for_classes_where_the_preset_has_some(
        folder, first_stage, tmp_path, arguments, classes):
    """Kinetics lies in folders with names, which nothing asks for. Something-Something's run of FP
    alone does CFP as FP (Table 5 of the appendix), which takes a label and could not be done."""
    shutil.copytree(first_stage, tmp_path / "run")
    train_small(folder, tmp_path / "run", ["--tasks", *arguments], "transformer")
    run = load_run(tmp_path / "run")
    assert run.transformer.no_class == classes
    assert PRESETS["ssv2-fp-B"].num_classes == 174 and PRESETS["k600-B"].num_classes == 0
    if arguments[0] == "FP" and classes:
        video, label = torch.rand(1, 3, 8, 16, 16), torch.tensor([1])
        asked, plain = (generate(run.tokenizer, run.transformer, video, task, steps=2,
                                 noise=torch.zeros, **run.how(task, label))
                        for task in ("CFP", "FP"))
        assert torch.equal(asked, plain)


# ---------------------------------------------------------------------------------------------
# What is refused, before anything is trained; what is never asked for

def sized(kind, **sizes):
    return {kind: replace((TOKENIZERS if kind == "tokenizer" else TRANSFORMERS)["toy"], **sizes)}


@pytest.mark.parametrize("change, words", [
    (dict(transformer_batch=5), "batch of stage transformer is 5; wanted a multiple of the 2 pro"),
    (dict(tokenizer_batch=5), "batch of stage tokenizer is 5; wanted a multiple of the 2 pro"),
    (sized("transformer", hidden_size=136), "start_local needs a hidden size .*got 136"),
    (sized("transformer", num_heads=3), "does not make 3 heads"),
    (dict(transformer="XXL"), "transformer 'XXL' is unknown; choose from B, L, H, toy"),
    (dict(tasks=("FP", "XY")), "task 'XY' is unknown"), (dict(tasks=()), "no tasks; name some"),
    (sized("tokenizer", base_channels=8) | dict(adversarial_weight=0.1), "give --adversarial-weig"),
    (dict(mask_schedule="sine"), "mask schedule 'sine' is unknown"),
    (dict(frames=15), "T=15"), (dict(resolution=30), "H=30"),
    (dict(condition_frames=16), "16 condition frames for FP"),
    (dict(precision="fp8"), "choose auto or bf16 or tf32 or float32"),
    (dict(accumulate=0), "accumulate is 0; wanted at least 1"), (dict(crop=2.0), "crop is 2.0"),
    (dict(save_every=-1), "count from 0"), (dict(inflate="last"), "choose central or average"),
    (dict(init="nowhere"), "no checkpoint nowhere/tokenizer.pt")])
def test_what_some_stage_could_not_do_is_refused_before_the_first(tmp_path, change, words):
    processes = Processes(0, 2 if "multiple" in words else 1)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        train.train(replace(SHORT, **change), SHAPES, tmp_path / "run", processes=processes)
    assert not list(tmp_path.iterdir())


class Loose(Noise):
    """Without classes."""

    class_names: list[str] = []

    def clip(self, index, random=None):
        return super().clip(index)[0], -1


@pytest.mark.parametrize("source, change, stage, words", [
    (Noise(), dict(resolution=32), "all", "the data are 8x16x16 .*the run is for 8x32x32"),
    (Loose(), dict(tasks=("CFP",)), "all", "the data have no classes, and CFP need some"),
    (Noise(), dict(tokenizer_steps=0), "all", "0 steps of the tokenizer"),
    (Noise(), {}, "tokeniser", "stage 'tokeniser' is unknown")])
def test_what_the_clips_do_not_allow_is_refused_before_anything_is_trained(tmp_path, source,
                                                                           change, stage, words):
    with pytest.raises(ValueError, match=words):
        train.train(replace(settings("")[0], **change), source, tmp_path, stage=stage)
    assert not list(tmp_path.iterdir())


def test_an_object_that_gives_clips_trains_both_stages(tmp_path):
    """Three methods are enough, and no classes; the report then looks at the object itself."""
    config, source = settings("", "--decode-steps", "2")[0], Loose()
    assert train.train(config, source, tmp_path)
    run = load_run(tmp_path)
    assert run.data.dataset == "object Loose" and run.class_names == []
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert measured["tasks"].keys() == {*MT10} - {"CFP"} == {*run.tasks}     # CG: unconditional
    assert (tmp_path / "samples.gif").exists()
    with pytest.raises(ValueError, match="trained on 'object Loose', which is not on disk"):
        run.held_out()
    assert open_source(source, config.clip_shape, held_out=True) is source


# ---------------------------------------------------------------------------------------------
# Presets

def test_epochs_are_those_of_table_2():
    table = {"ucf101": (500, 2000, 2000, 2000), "bair": (400, 800, 400, 800),
             "bair-mt": (400, 800, 1200, 1600), "k600": (45, 180, 180, 360),
             "ssv2": (135, 400, 720, 1440), "nuscenes": (1280, 5120, 2560, 10240),
             "objectron": (1000, 2000, 1000, 2000), "web": (5, 20, 10, 20)}
    for name, row in table.items():
        base, large = PRESETS[f"{name}-B"], PRESETS[f"{name}-L"]
        assert (base.tokenizer_epochs, large.tokenizer_epochs, base.transformer_epochs,
                large.transformer_epochs) == row


def test_the_recipe_is_that_of_app_b2():
    for name in PRESETS.keys() - {"toy", "clips"}:
        config, large = PRESETS[name], not name.endswith("B")
        assert config.frames == 16 and config.stride == 1
        assert config.resolution == (64 if name.startswith("bair") else 128)
        assert config.tokenizer_config().base_channels == (128 if large else 64)
        assert config.tokenizer_batch == (256 if large else 128)
        assert (config.tokenizer_rate, config.tokenizer_beta1, config.tokenizer_beta2) == (
            1e-4, 0.0, 0.99)
        assert (config.adversarial_weight, config.perceptual_weight, config.r1_weight,
                config.tokenizer_ema) == (0.1, 0.1, 10.0, 0.999)
        assert (config.transformer_batch, config.transformer_rate, config.transformer_beta1,
                config.transformer_beta2, config.weight_decay, config.label_smoothing,
                config.gradient_clip, config.mask_schedule) == (
            256, 1e-4, 0.9, 0.96, 0.045, 1e-4, 1.0, "cosine")
        transformer = transformer_config(config, config.num_classes)
        assert transformer.sequence_length == 1026 and transformer.codebook_size == 1024
        assert transformer.hidden_dropout == transformer.attention_dropout == 0.1
        assert config.flip == (not name.startswith("ssv2"))       # "from left to right" is a class


def test_tasks_and_decoding_are_those_of_the_data_sets():
    assert PRESETS["ucf101-B"].tasks == ("CG",) and PRESETS["bair-L"].tasks == ("FP",)
    assert PRESETS["bair-mt-B"].tasks == MT8 and PRESETS["ssv2-B"].tasks == MT10
    assert PRESETS["k600-B"].condition_frames == 5
    decoding = {name: (c.decode_schedule, c.decode_steps, c.decode_temperature)
                for name, c in PRESETS.items()}
    assert decoding["bair-B"] == ("exp", 12, 400.0) and decoding["k600-L"] == ("uniform", 12, 7.5)
    assert decoding["ucf101-B"] == decoding["bair-mt-B"] == ("cosine", 12, 4.5)


def test_settings_are_kept_as_plain_data_whatever_they_are_given_as(tmp_path):
    config = TrainConfig(init=tmp_path, lpips_weights=tmp_path, tasks=["FP", "CG"])
    assert config == TrainConfig(init=str(tmp_path), lpips_weights=str(tmp_path),
                                 tasks=("FP", "CG"))


# ---------------------------------------------------------------------------------------------
# Flags

@dataclass(frozen=True)
class OwnConfig(TrainConfig):
    """A fork's settings: one that is new, one with another default."""

    # of my own
    sharpness: float = 0.5          # of nothing at all, in 100 % of
    #                                 all cases
    tokenizer_rate: float = 3e-4    # peak learning rate, mine


@pytest.mark.parametrize("config", [TrainConfig(), OwnConfig()])
def test_every_field_is_a_flag_with_its_comment_as_help_below_its_heading(config, capsys):
    with pytest.raises(SystemExit):
        train.parse(dict(mine=config), ["--help"])
    helped = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(config):
        flag = f"--{field.name.replace('_', '-')}"
        assert re.search(rf" {flag}(, --no-{flag[2:]})? ", helped), flag
        example = {bool: [flag], tuple: [flag, *"123"]}.get(type(field.default), [flag, "2"])
        example = [flag, "FP"] if field.name == "tasks" else example
        read = getattr(train.parse(dict(mine=config), ["--data", "x", *example])[0], field.name)
        assert type(read) is type(field.default), flag
        if type(read) is bool:
            assert read and not getattr(train.parse(dict(mine=config), [
                "--data", "x", f"--no-{flag[2:]}"])[0], field.name)
    for words in ("of the discriminator's R1, App. B.2", "anew in each step",
                  "stage 1, tokenizer: ", "machine: ", "clips: "):
        assert words in helped
    if type(config) is OwnConfig:
        assert "of my own: --sharpness VALUE of nothing at all, in 100 % of all cases" in helped
        assert "peak learning rate, mine" in helped
        assert train.parse(dict(mine=config), ["--data", "x"])[0] == config


@pytest.mark.parametrize("arguments, complaint", [
    (["tyo"], "invalid choice: 'tyo'"), (["toy", "--stpes", "5"], "unrecognized arguments"),
    (["toy", "--tokenizer-steps", "many"], "invalid int value"),
    (["toy", "--tasks", "XY"], "invalid choice: 'XY'"), (["ucf101-B"], "needs --data"),
    (["toy", "--loss-weights", "1", "2"], "expected 3 arguments"),
    (["clips", "--data", "x", "--layout", "images"], "--stage image, or --frames 1")])
def test_a_flag_that_cannot_be_read_is_refused_with_usage(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as exit:
        train.parse(arguments=arguments)
    message = capsys.readouterr().err
    assert exit.value.code == 2 and complaint in message and "usage: " in message


@pytest.mark.parametrize("arguments, complaint", [
    (["--frames", "15"], "train.py: .*T=15"), (["--data", "nowhere"], "train.py: .*nowhere"),
    (["--frames", "15", "--dry-run"], "train.py: .*T=15"),
    (["--tokens", "nowhere", "--tokenizer-steps", "1"], "train.py: no nowhere/tokens.json")])
def test_what_a_command_cannot_do_ends_in_one_line(tmp_path, arguments, complaint):
    with pytest.raises(SystemExit, match=complaint) as exit:
        train.run_command(*train.parse(arguments=["toy", "--out", str(tmp_path), *arguments]))
    assert "\n" not in exit.value.code


def test_task_sets_are_spelled_out_and_videos_of_ones_own_have_their_own_classes():
    def parse(*arguments):
        return train.parse(arguments=["toy", *arguments])

    assert parse("--tasks", "MT8")[0].tasks == MT8
    assert parse("--tasks", "CG", "CG", "FP")[0].tasks == ("CG", "CG", "FP")
    assert parse()[:2] == (PRESETS["toy"], SHAPES)
    assert parse("--data", "x")[:2] == (replace(PRESETS["toy"], num_classes=0), DataConfig("x"))


# ---------------------------------------------------------------------------------------------
# The plan: what a run costs, before it runs

PLANNED = replace(PRESETS["toy"], precision="float32", token_pool=0, adversarial_weight=0.1,
                  transformer=replace(TRANSFORMERS["toy"], num_layers=2))


def test_the_plan_prints_sizes_steps_and_every_setting():
    text = plan("ucf101-B", PRESETS["ucf101-B"])
    for words in ("40,579,843", "15,339,457", "74 steps per epoch, 37,000 steps", "74,000 steps",
                  "sequence 1026", "4x16x16 tokens of 1024", "TFLOP"):
        assert words in text
    assert all(field.name in text for field in dataclasses.fields(TrainConfig))
    assert "stage image comes first" in plan("clips", replace(PLANNED, inflate="central"))


def test_the_plan_knows_how_large_a_checkpoint_is(shapes_run):
    planned = re.findall(r"\(a checkpoint\): ([\d.]+) MiB", plan(
        "toy", replace(SHORT, adversarial_weight=0.1)))
    for stage, size in zip(("tokenizer", "transformer"), planned, strict=True):
        assert (shapes_run / f"{stage}.pt").stat().st_size / 2**20 == pytest.approx(
            float(size), rel=0.05)


def test_attention_costs_four_n_squared_d_besides_its_matrices():
    B, N, D = 2, 66, 128
    with torch.no_grad(), CountFlop() as count:
        Attention(TRANSFORMERS["toy"])(torch.zeros(B, N, D))
    assert count.flop == B * (2 * N * D * 3 * D + 4 * N * N * D + 2 * N * D * D)


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_a_step_without_contents_costs_what_a_real_step_costs(stage):
    config = replace(PLANNED, token_pool=1)
    step = made_up_step(build(config, stage, num_classes=config.num_classes), config, stage, 3)
    with CountFlop() as count:
        step()
    planned = flop_of_step(config, stage)
    assert count.flop == pytest.approx(3 * planned, rel=1e-3)
    assert 1.05 < flop_of_step(replace(config, recompute=True), stage) / planned < 1.5


@pytest.mark.parametrize("tasks, videos", [(("FP",), 2), (("CG",), 1), (("CG", "OPC"), 1.5)])
def test_stage_2_counts_the_tokens_of_its_batch(tasks, videos):
    """Those of each clip and of its condition, but CG's, which is the same for all clips."""
    with torch.no_grad(), CountFlop() as count:
        VideoTokenizer(TOKENIZERS["toy"]).latents(torch.zeros(1, 3, 16, 32, 32))
    anew, pooled = (flop_of_step(replace(PLANNED, tasks=tasks, token_pool=pool), "transformer")
                    for pool in (0, 1))
    assert anew - pooled == pytest.approx(videos * count.flop, rel=1e-3)

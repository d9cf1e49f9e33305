"""train.py, steps.py and training/: what a step does, how a stage starts, what can be set."""
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from commit import MT8, MT10, TASKS
from data.clips import DataConfig, VideoFolder, open_source, write_video
from data.moving_shapes import MovingShapes
from data.source import ClipSource
from steps import TokenBatch, autocast, tokenizer_step, transformer_step
from tokenizer import TOKENIZERS
from training.build import build, decay_groups, transformer_config
from training.checkpoint import load_checkpoint, load_network, load_run, read_checkpoint
from training.command import parse
from training.processes import Processes
from training.presets import PRESETS, TrainConfig
from training.start import transformer_from_run
from training.tokens import TokenSource
from transformer import TRANSFORMERS, MaskedTransformer

SMALL = ("--resolution 16 --frames 8 --tokenizer-batch 2 --transformer-batch 4 --token-pool 8 "
         "--tokenizer-steps 6 --transformer-steps 6 --save-every 2 --precision float32 "
         "--tokenizer-warmup 2 --transformer-warmup 2").split()
GAN = "--adversarial-weight 0.1".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 256, (12, 4, 4, 3), np.uint8)
        write_video(root / ("ab"[index % 2]) / f"{index}.npy",
                    noise.repeat(5, axis=1).repeat(5, axis=2))
    return root


def train_small(folder, run, arguments=(), stage="all", **options):
    """Train in this process; the arguments are train.py's, the options train.train's."""
    config, data, _ = parse(["toy", "--data", str(folder), *SMALL, *arguments])
    return train.train(config, data, run, stage=stage, draw=False, **options)


def weights(run, stage):
    state = read_checkpoint(run / f"{stage}.pt")
    return {f"{part} {name}": tensor
            for part in ("tokenizer", "ema", "discriminator", "transformer") if part in state
            for name, tensor in state[part].items()}


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
    config = replace(PRESETS["toy"], precision="float32", adversarial_weight=0.1)
    return kept(build(config, "tokenizer")), config


def kept(trainee):
    """The same with optimizers that keep gradients."""
    trainee.optimizers = {name: Kept(trainee.networks[name].parameters(), lr=0.0)
                          for name in trainee.optimizers}
    return trainee


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_the_generator_gets_its_own_terms_only(trainee, generator):
    """Not a trace of R1, LeCam or the discriminator's loss, whatever their weights."""
    trainee, config = trainee
    video = torch.rand(2, 3, 16, 32, 32, generator=generator)
    results = []
    for r1, lecam in ((10.0, 0.001), (1e4, 1e3)):
        for network in trainee.networks.values():
            network.zero_grad()
        tokenizer_step(trainee, video.clone(),
                       replace(config, r1_weight=r1, lecam_weight=lecam))
        results.append([gradients(trainee.networks[name]) for name in TRAINED])
    same(results[0][0], results[1][0], rtol=1e-4, atol=1e-8)
    assert not torch.equal(results[0][1]["conv_in.weight"], results[1][1]["conv_in.weight"])


def test_the_discriminator_gets_its_own_terms_only(trainee, generator):
    trainee, config = trainee
    video = torch.rand(2, 3, 16, 32, 32, generator=generator)
    results = []
    for weight in (0.1, 1e3):
        for network in trainee.networks.values():
            network.zero_grad()
        trainee.networks["lecam"].average_real.zero_()
        trainee.networks["lecam"].average_fake.zero_()
        tokenizer_step(trainee, video.clone(), replace(
            config, adversarial_weight=weight, reconstruction_weight=weight))
        results.append([gradients(trainee.networks[name]) for name in TRAINED])
    same(results[0][1], results[1][1], rtol=1e-4, atol=1e-8)
    assert not torch.equal(results[0][0]["decoder.0.weight"], results[1][0]["decoder.0.weight"])


def test_the_total_is_the_weighted_sum_of_app_b2(trainee, generator):
    trainee, config = trainee
    terms = tokenizer_step(trainee, torch.rand(2, 3, 16, 32, 32, generator=generator), config)
    assert terms["loss"].item() == pytest.approx(
        (terms["reconstruction"] + terms["codebook"] + 0.25 * terms["commitment"]
         + config.entropy_weight * terms["entropy"] + 0.1 * terms["generator"]).item(), rel=1e-5)


def test_commitment_weighs_a_quarter_in_the_encoders_gradient(trainee, generator):
    trainee, config = trainee
    only = replace(config, reconstruction_weight=0.0, codebook_weight=0.0, entropy_weight=0.0,
                   adversarial_weight=0.0)
    video = torch.rand(2, 3, 16, 32, 32, generator=generator)
    model = trainee.networks["tokenizer"]
    tokenizer_step(trainee, video.clone(), only)
    ours = gradients(model.encoder)
    model.zero_grad()
    model(video).commitment_loss.backward()
    same(ours, {name: 0.25 * g for name, g in gradients(model.encoder).items()}, rtol=1e-4,
         atol=1e-9)


def test_accumulated_passes_give_the_gradient_of_the_whole_batch(trainee, generator):
    trainee, config = trainee
    config = replace(config, entropy_weight=0.0, lecam_weight=0.0)  # not means of clips
    video, results = torch.rand(4, 3, 16, 32, 32, generator=generator), []
    lecam = trainee.networks["lecam"]
    for accumulate in (1, 2):
        for network in trainee.networks.values():
            network.zero_grad()
        lecam.average_real.zero_()
        lecam.average_fake.zero_()
        tokenizer_step(trainee, video.clone(), replace(config, accumulate=accumulate))
        results.append({f"{name} {key}": g for name in TRAINED
                        for key, g in gradients(trainee.networks[name]).items()}
                       | {name: tensor.clone() for name, tensor in lecam.state_dict().items()})
    same(*results, rtol=1e-3, atol=1e-6)


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


def test_nothing_reaches_the_frozen_tokenizer_in_stage_2(folder, tmp_path, monkeypatch):
    train_small(folder, tmp_path, stage="tokenizer")
    frozen = []
    load = train.load_network
    monkeypatch.setattr(train, "load_network", lambda *a: frozen.append(load(*a)) or frozen[0])
    train_small(folder, tmp_path, ["--token-pool", "0"], "transformer")
    assert all(p.grad is None and not p.requires_grad for p in frozen[0].parameters())
    same(frozen[0].state_dict(), read_checkpoint(tmp_path / "tokenizer.pt")["ema"])


@pytest.mark.parametrize("pool", ["0", "8"])
def test_tokens_made_a_few_clips_at_a_time_are_those_made_at_once(folder, tmp_path, pool):
    """--tokenize-at-once bounds the memory of stage 2; it may change while a run goes on."""
    train_small(folder, tmp_path / "whole", ["--token-pool", pool])
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts/transformer.pt").unlink()
    train_small(folder, tmp_path / "parts", ["--token-pool", pool, "--tokenize-at-once", "3"])
    same(*(weights(tmp_path / name, "transformer") for name in ("whole", "parts")))


def test_the_pool_holds_as_many_clips_as_it_is_asked_for(folder, tmp_path):
    train_small(folder, tmp_path, stage="tokenizer")
    config, _, _ = parse(["toy", "--data", str(folder), *SMALL, "--token-pool", "5",
                          "--tasks", "FP", "CG"])
    source = VideoFolder(folder, config.clip_shape, index=tmp_path / "videos.json")
    tokenizer = load_network(load_checkpoint(tmp_path / "tokenizer.pt"))
    clips = TokenSource(tokenizer, source, config, Processes(), 2)
    clips(0)
    assert len(clips.table) == 5 and clips.table.shards[0].shape == (5, 1 + 3 * 8)    # z, FP, CG


@pytest.mark.parametrize("backend", [
    "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])        # what --compile takes
def test_compiled_networks_train_with_the_adversary_too(folder, tmp_path, monkeypatch, backend):
    """R1 differentiates twice, which compiled networks cannot: the discriminator stays as it is."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda module: compile_module(module, backend=backend))
    steps = ["--tokenizer-steps", "2", "--transformer-steps", "2", "--tasks", "FP"]
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        train_small(folder, tmp_path / name, [*GAN, *flags, *steps], "tokenizer")
    train_small(folder, tmp_path / "plain", [*GAN, *steps], "transformer")
    shutil.copy(tmp_path / "plain/tokenizer.pt", tmp_path / "compiled")      # the same tokens
    train_small(folder, tmp_path / "compiled", [*GAN, *steps, "--compile"], "transformer")
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines()
            for name in ("plain", "compiled")]
    assert len(logs[0]) == len(logs[1]) == 4
    for plain, compiled in zip(*([json.loads(line) for line in lines] for lines in logs)):
        for term in plain.keys() - {"stage", "seconds", "pace"}:
            assert compiled[term] == pytest.approx(plain[term], rel=1e-3, abs=1e-5), term


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
    tokens = torch.randint(16, (4, 16), generator=generator)
    for _ in range(250):
        batch = TokenBatch("FP", tokens, tokens.flip(0), torch.arange(16) > 3,
                           torch.zeros(4, dtype=torch.long),
                           torch.rand(4, 16, generator=generator),
                           torch.rand(4, generator=generator))
        transformer_step(trainee, batch, config)
    logits = model(tokens, torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long))
    assert (logits.argmax(-1) == tokens).float().mean() > 0.99


# ---------------------------------------------------------------------------------------------
# Where a stage starts

def test_a_2d_tokenizer_trains_on_frames_and_is_inflated(folder, tmp_path):
    train_small(folder, tmp_path, GAN, "image")
    image = weights(tmp_path, "image")
    train_small(folder, tmp_path, [*GAN, "--inflate", "central", "--tokenizer-steps", "1"],
                "tokenizer")
    video = weights(tmp_path, "tokenizer")              # one step at rate 0: as inflated
    name = "ema encoder.0.weight"
    torch.testing.assert_close(video[name][:, :, 1], image[name][:, :, 0])
    assert video[name][:, :, 0].abs().max() == 0
    torch.testing.assert_close(video["ema quantizer.codebook"], image["ema quantizer.codebook"])


class Renamed(ClipSource):
    """The drawn clips under more class names, in another order."""

    def __init__(self):
        self.clips = MovingShapes()
        self.class_names = ["star up", *reversed(self.clips.class_names), "star down"]

    def __len__(self):
        return len(self.clips)

    def clip(self, index, random=None):
        clip, label = self.clips.clip(index, random)
        return clip, self.class_names.index(self.clips.class_names[label])


SHORT = replace(PRESETS["toy"], tokenizer_steps=3, tokenizer_warmup=1, transformer_steps=3,
                transformer_warmup=1, tokenizer_batch=2, transformer_batch=4, token_pool=8,
                precision="float32")
ONE_STEP = replace(SHORT, tokenizer_steps=1, transformer_steps=1)        # at rate 0: as it starts


@pytest.fixture(scope="module")
def shapes_run(tmp_path_factory):
    """A short run on the 16 classes of the drawn clips, with the adversary."""
    run = tmp_path_factory.mktemp("shapes")
    train.train(replace(SHORT, adversarial_weight=0.1), DataConfig(dataset="shapes"), run,
                draw=False)
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
    source = Renamed()
    train.train(config, source, tmp_path, draw=False)
    assert "2 of 18 classes are new" in capsys.readouterr().err
    old, new = (load_run(run).transformer for run in (shapes_run, tmp_path))
    assert read_checkpoint(tmp_path / "transformer.pt")["origin"] == dict(
        run=str(shapes_run.resolve()), step=3)
    assert new.prompts == (*old.prompts, "NEW") and old.no_class == 16 and new.no_class == 18
    torch.manual_seed(config.seed)
    fresh = build(config, "transformer", num_classes=18).networks["transformer"]
    label = torch.arange(18)
    for row, name in enumerate(source.class_names):
        known = name in MovingShapes().class_names
        twin = old if known else fresh
        place = MovingShapes().class_names.index(name) if known else row
        assert same_row(new, new.prefix(label * 0, label)[row, 1],
                        twin, twin.prefix(label * 0, label)[place, 1]), name
    for number, task in enumerate(new.prompts):
        twin = old if task in old.prompts else fresh
        place = torch.tensor([number])
        assert same_row(new, new.prefix(place, place)[0, 0], twin, twin.prefix(place, place)[0, 0])
    assert same_row(new, 128 + 18, old, 128 + 16) and same_row(new, new.mask_id, old, old.mask_id)
    assert all(same_row(new, code, old, code) for code in range(128))
    rows = ("token_embedding.weight", "head_bias")
    same(*({name: tensor for name, tensor in network.state_dict().items() if name not in rows}
           for network in (old, new)))


def same_row(network, row, other, other_row):
    return all(torch.equal(*(each.state_dict()[name][place] for each, place in
                             ((network, row), (other, other_row))))
               for name in ("token_embedding.weight", "head_bias"))


@pytest.mark.parametrize("change", [
    dict(tokenizer=replace(TOKENIZERS["toy"], base_channels=8)), dict(padding="zeros"),
    dict(tokenizer=replace(TOKENIZERS["toy"], codebook_size=64))])
def test_weights_of_a_tokenizer_of_another_size_are_refused(shapes_run, tmp_path, change):
    with pytest.raises(ValueError, match="the tokenizer of .*shapes.* is .*; this run's is"):
        train.train(replace(ONE_STEP, init=str(shapes_run), **change), Renamed(), tmp_path)
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("change", [
    dict(transformer=replace(TRANSFORMERS["toy"], num_layers=2)), dict(resolution=64)])
def test_weights_of_a_transformer_of_another_size_are_refused(shapes_run, change):
    config = replace(ONE_STEP, **change)
    model = build(config, "transformer", num_classes=16).networks["transformer"]
    with pytest.raises(ValueError, match="the transformer of .* only classes, tasks and dropout"):
        transformer_from_run(model, shapes_run, MovingShapes().class_names)


def test_the_command_line_names_the_run_to_start_from(shapes_run):
    assert parse(["toy", "--init", str(shapes_run)])[0].init == str(shapes_run)


# ---------------------------------------------------------------------------------------------
# What is refused, before anything is trained; what is never asked for

@pytest.mark.parametrize("change, world, words", [
    (dict(transformer_batch=5), 2, "transformer_batch is 5; wanted a multiple of the 2 processes"),
    (dict(tokenizer_batch=5), 2, "tokenizer_batch is 5; wanted a multiple of the 2 processes"),
    (dict(transformer=replace(TRANSFORMERS["toy"], hidden_size=100)), 1,
     "start_local needs a hidden size .*got 100"),
    (dict(transformer="XXL"), 1, "transformer 'XXL' is unknown; choose from B, L, H, toy"),
    (dict(tasks=("FP", "XY")), 1, "task 'XY' is unknown"),
    (dict(tokenizer=replace(TOKENIZERS["toy"], base_channels=8), adversarial_weight=0.1), 1,
     "discriminator .* is unknown")])
def test_what_stage_2_could_not_do_is_refused_before_stage_1(tmp_path, change, world, words):
    with pytest.raises(ValueError, match=words):
        train.train(replace(SHORT, **change), DataConfig(dataset="shapes"), tmp_path / "run",
                    processes=Processes(0, world))
    assert list(tmp_path.iterdir()) == [tmp_path / "run"] and not list((tmp_path / "run").iterdir())


def test_without_an_adversary_nobody_asks_for_its_sizes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainConfig, "discriminator_config", None)
    config, data, _ = parse(["toy", "--data", str(folder), *SMALL])
    small = replace(TOKENIZERS["toy"], base_channels=8)             # in no table of sizes
    assert train.train(replace(config, tokenizer=small), data, tmp_path, draw=False)
    run = load_run(tmp_path)
    assert run.config.tokenizer == run.tokenizer.config == small


# ---------------------------------------------------------------------------------------------
# Data sets of one's own

class Noise(ClipSource):
    """Four clips of two classes."""

    class_names = ["dark", "bright"]

    def __len__(self):
        return 4

    def clip(self, index, random=None):
        noise = np.random.default_rng(index).integers(0, 128, (8, 4, 4, 3), np.uint8)
        return noise.repeat(4, axis=1).repeat(4, axis=2) + np.uint8(127 * (index % 2)), index % 2


class Duck:
    """Not a ClipSource: it has what training needs, and no more."""

    class_names: list[str] = []

    def __len__(self):
        return 4

    def clip(self, index, random):
        return Noise().clip(index)[0], -1


def test_clips_of_another_size_than_the_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="clips of the data are 8x16x16 .*the run is for 16x32x32"):
        train.train(SHORT, Noise(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [Noise(), Duck()], ids=["subclass", "duck"])
def test_an_object_that_gives_clips_trains_both_stages(tmp_path, capsys, source):
    name = f"object {type(source).__name__}"
    config, _, _ = parse(["toy", *SMALL, "--decode-steps", "2"])
    assert train.train(config, source, tmp_path)
    run = load_run(tmp_path)
    assert run.data.dataset == name and run.class_names == source.class_names
    assert run.transformer.no_class == len(source.class_names)
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert "CG" in measured["tasks"]                          # without classes: unconditional
    assert ("CFP" in measured["tasks"]) == bool(source.class_names)
    assert (tmp_path / "samples.gif").exists()
    with pytest.raises(ValueError, match=f"trained on '{name}', which is not on disk"):
        run.held_out()
    assert isinstance(open_source(source, config.clip_shape, held_out=True), ClipSource)


# ---------------------------------------------------------------------------------------------
# Presets and the command line

def test_epochs_are_those_of_table_2():
    table = {"ucf101": (500, 2000, 2000, 2000), "bair": (400, 800, 400, 800),
             "bair-mt": (400, 800, 1200, 1600), "k600": (45, 180, 180, 360),
             "ssv2": (135, 400, 720, 1440), "nuscenes": (1280, 5120, 2560, 10240),
             "objectron": (1000, 2000, 1000, 2000), "web": (5, 20, 10, 20)}
    for name, (vq_b, vq_l, b, large) in table.items():
        assert (PRESETS[f"{name}-B"].tokenizer_epochs, PRESETS[f"{name}-L"].tokenizer_epochs,
                PRESETS[f"{name}-B"].transformer_epochs,
                PRESETS[f"{name}-L"].transformer_epochs) == (vq_b, vq_l, b, large)


def test_the_recipe_is_that_of_app_b2():
    for name, config in PRESETS.items():
        if name.startswith(("toy", "clips")) or name.endswith("v2"):   # the sequel: test_magvit2
            continue
        large = not name.endswith("B")
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


def test_tasks_and_decoding_are_those_of_the_data_sets():
    assert PRESETS["ucf101-B"].tasks == ("CG",) and PRESETS["bair-L"].tasks == ("FP",)
    assert PRESETS["bair-mt-B"].tasks == MT8 and PRESETS["ssv2-B"].tasks == MT10
    assert PRESETS["k600-B"].condition_frames == 5
    decoding = {name: (c.decode_schedule, c.decode_steps, c.decode_temperature)
                for name, c in PRESETS.items()}
    assert decoding["bair-B"] == ("exp", 12, 400.0) and decoding["k600-L"] == ("uniform", 12, 7.5)
    assert decoding["ucf101-B"] == decoding["bair-mt-B"] == ("cosine", 12, 4.5)


@pytest.mark.parametrize("arguments, complaint", [
    (["tyo"], "invalid choice: 'tyo'"), (["toy", "--stpes", "5"], "unrecognized arguments"),
    (["toy", "--tokenizer-steps", "many"], "invalid int value"),
    (["toy", "--tasks", "XY"], "invalid choice: 'XY'"),
    (["toy", "--mask-schedule", "sine"], "mask schedule 'sine' is unknown"),
    (["toy", "--frames", "15"], "T=15 frames or pixels"),
    (["toy", "--resolution", "30"], "H=30"), (["ucf101-B"], "needs --data"),
    (["toy", "--condition-frames", "16"], "condition frames"),
    (["toy", "--precision", "fp8"], "choose auto, bf16, tf32 or float32"),
    (["toy", "--accumulate", "0"], "wanted at least 1")])
def test_a_flag_that_makes_no_sense_is_refused_with_usage(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as exit:
        parse(arguments)
    message = capsys.readouterr().err
    assert exit.value.code == 2 and complaint in message and "usage: train.py" in message


def test_task_sets_are_spelled_out():
    assert parse(["toy", "--tasks", "MT8"])[0].tasks == MT8
    assert parse(["toy", "--tasks", "CG", "CG", "FP"])[0].tasks == ("CG", "CG", "FP")


@pytest.mark.parametrize("precision, cpu, enabled", [
    ("bf16", {}, True), ("float32", dict(amx_bf16=True), False), ("auto", {}, False),
    ("auto", dict(avx512_bf16=True, cpu_name="AMD EPYC"), True),
    ("auto", dict(avx512_bf16=True, cpu_name="Intel Xeon"), False),
    ("auto", dict(avx512_bf16=True, amx_bf16=True, cpu_name="Intel Xeon"), True)])
def test_the_precision_follows_the_machine(monkeypatch, precision, cpu, enabled):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    with autocast(precision, torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) == enabled


def test_tasks_that_all_need_classes_are_refused_before_anything_is_trained(tmp_path):
    for i in range(3):
        write_video(tmp_path / "videos" / f"{i}.npy", np.zeros((20, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="no classes"):
        train.train(replace(PRESETS["toy"], tasks=("CFP",), tokenizer_steps=1),
                    DataConfig(str(tmp_path / "videos")), tmp_path / "run", draw=False)
    assert not (tmp_path / "run" / "tokenizer.pt").exists()


@pytest.mark.parametrize("change, stage, complaint", [
    (dict(), "tokeniser", "stage 'tokeniser' is unknown"),
    (dict(tokenizer_steps=0), "tokenizer", "0 steps of the tokenizer"),
    (dict(init="x", inflate="central"), "tokenizer", "give one of them"),
    (dict(transformer=replace(TRANSFORMERS["toy"], num_heads=3)), "all", "does not make 3 heads"),
    (dict(transformer=replace(TRANSFORMERS["toy"], hidden_size=136)), "all", "16 divides, got 136"),
    (dict(init="nowhere"), "all", "no checkpoint nowhere/tokenizer.pt")])
def test_what_would_fail_later_is_refused_before_anything_is_trained(tmp_path, change, stage,
                                                                     complaint):
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        train.train(replace(PRESETS["toy"], **change), DataConfig(dataset="shapes"), tmp_path,
                    stage=stage, draw=False)
    assert not list(tmp_path.glob("*.pt"))


def test_settings_are_kept_as_plain_data_whatever_they_are_given_as(tmp_path):
    config = TrainConfig(init=tmp_path, lpips_weights=tmp_path, tasks=["FP", "CG"])
    assert config == TrainConfig(init=str(tmp_path), lpips_weights=str(tmp_path),
                                 tasks=("FP", "CG"))

"""train.py, loop.py, presets.py: App. B.2, exact resume, many processes."""
import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from conftest import ROOT

import loop
import train
from checkpoint import read_checkpoint
from commit import TASKS
from data import VideoFolder, write_video
from loop import Processes, TokenizerWatch, Trainee, learning_rate, refuse_other_configuration
from presets import MT8, PRESETS, TrainConfig, parse
from tokenizer import TOKENIZERS, VideoTokenizer

ONE = Processes(0, 1, torch.device("cpu"))
SMALL = ("--resolution 16 --frames 8 --tokenizer-batch 4 --transformer-batch 4 --token-pool 8 "
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


def stages(folder, run, arguments=(), names=("tokenizer", "transformer")):
    """Train in this process; the arguments are train.py's."""
    config, options = parse(["toy", "--data", str(folder), *SMALL, *arguments])
    run.mkdir(exist_ok=True)
    shape = (config.frames, config.resolution, config.resolution)
    source = VideoFolder(folder, shape, index=run / "videos.json")
    return all(train.train_transformer(config, options, source, run, ONE) if name == "transformer"
               else train.train_tokenizer(config, options, source, run, ONE, name)
               for name in names)


def weights(run, stage):
    state = read_checkpoint(run / f"{stage}.pt")
    return {f"{part} {name}": tensor for part in ("model", "ema", "discriminator") if part in state
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

class Kept(torch.optim.SGD):
    """Does not clear gradients, so that they can be looked at; moves nothing at rate 0."""

    def zero_grad(self, set_to_none=True):
        pass


@pytest.fixture
def trainee():
    return tokenizer_trainee()


def tokenizer_trainee():
    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS["toy"], precision="float32", adversarial_weight=0.1)
    from discriminator import Discriminator3d, LeCam
    model = VideoTokenizer(TOKENIZERS["toy"])
    networks = dict(model=model, ema=VideoTokenizer(TOKENIZERS["toy"]).requires_grad_(False),
                    discriminator=Discriminator3d(config.discriminator_config()), lecam=LeCam())
    return Trainee(networks, {name: Kept(networks[name].parameters(), lr=0.0)
                              for name in ("model", "discriminator")}), config


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
        train.tokenizer_step(trainee, video.clone(), dataclasses.replace(
            config, r1_weight=r1, lecam_weight=lecam))
        results.append([gradients(trainee.networks[name]) for name in ("model", "discriminator")])
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
        train.tokenizer_step(trainee, video.clone(), dataclasses.replace(
            config, adversarial_weight=weight, reconstruction_weight=weight))
        results.append([gradients(trainee.networks[name]) for name in ("model", "discriminator")])
    same(results[0][1], results[1][1], rtol=1e-4, atol=1e-8)
    assert not torch.equal(results[0][0]["decoder.0.weight"], results[1][0]["decoder.0.weight"])


def test_the_total_is_the_weighted_sum_of_app_b2(trainee, generator):
    trainee, config = trainee
    terms = train.tokenizer_step(trainee, torch.rand(2, 3, 16, 32, 32, generator=generator), config)
    assert terms["loss"].item() == pytest.approx(
        (terms["reconstruction"] + terms["codebook"] + 0.25 * terms["commitment"]
         + config.entropy_weight * terms["entropy"] + 0.1 * terms["generator"]).item(), rel=1e-5)


def test_commitment_weighs_a_quarter_in_the_encoders_gradient(trainee, generator):
    trainee, config = trainee
    only = dataclasses.replace(config, reconstruction_weight=0.0, codebook_weight=0.0,
                               entropy_weight=0.0, adversarial_weight=0.0)
    video = torch.rand(2, 3, 16, 32, 32, generator=generator)
    model = trainee.networks["model"]
    train.tokenizer_step(trainee, video.clone(), only)
    ours = gradients(model.encoder)
    model.zero_grad()
    model(video).commitment_loss.backward()
    same(ours, {name: 0.25 * g for name, g in gradients(model.encoder).items()}, rtol=1e-4,
         atol=1e-9)


def test_accumulated_passes_give_the_gradient_of_the_whole_batch(trainee, generator):
    trainee, config = trainee
    config = dataclasses.replace(config, entropy_weight=0.0, lecam_weight=0.0)  # not means of clips
    video, results = torch.rand(4, 3, 16, 32, 32, generator=generator), []
    lecam = trainee.networks["lecam"]
    for accumulate in (1, 2):
        for network in trainee.networks.values():
            network.zero_grad()
        lecam.average_real.zero_()
        lecam.average_fake.zero_()
        train.tokenizer_step(trainee, video.clone(), dataclasses.replace(config,
                                                                         accumulate=accumulate))
        results.append({f"{name} {key}": g for name in ("model", "discriminator")
                        for key, g in gradients(trainee.networks[name]).items()}
                       | {name: tensor.clone() for name, tensor in lecam.state_dict().items()})
    same(*results, rtol=1e-3, atol=1e-6)


def test_the_ema_follows_the_weights_by_its_decay(trainee, generator):
    trainee, config = trainee
    model, ema = trainee.networks["model"], trainee.networks["ema"]
    trainee.optimizers["model"].param_groups[0]["lr"] = 0.1
    before = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    train.tokenizer_step(trainee, torch.rand(2, 3, 16, 32, 32, generator=generator), config)
    assert config.tokenizer_ema == 0.99 and TrainConfig().tokenizer_ema == 0.999
    same(ema.state_dict(), {name: 0.99 * before[name] + 0.01 * tensor
                            for name, tensor in model.state_dict().items()}, rtol=1e-5, atol=1e-7)
    assert not torch.equal(before["decoder.0.weight"], ema.state_dict()["decoder.0.weight"])


def test_nothing_reaches_the_frozen_tokenizer_in_stage_2(folder, tmp_path, monkeypatch):
    stages(folder, tmp_path, names=["tokenizer"])
    frozen = []
    load = train.load_network
    monkeypatch.setattr(train, "load_network", lambda *a: frozen.append(load(*a)) or frozen[0])
    stages(folder, tmp_path, ["--token-pool", "0"], names=["transformer"])
    assert all(p.grad is None and not p.requires_grad for p in frozen[0].parameters())
    same(frozen[0].state_dict(), read_checkpoint(tmp_path / "tokenizer.pt")["ema"])


@pytest.mark.parametrize("pool", ["0", "8"])
def test_tokens_made_a_few_clips_at_a_time_are_those_made_at_once(folder, tmp_path, pool):
    """--tokenize-at-once bounds the memory of stage 2; it may change while a run goes on."""
    stages(folder, tmp_path / "whole", ["--token-pool", pool])
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts/transformer.pt").unlink()
    stages(folder, tmp_path / "parts", ["--token-pool", pool, "--tokenize-at-once", "3"])
    same(*(weights(tmp_path / name, "transformer") for name in ("whole", "parts")))


def test_the_pool_holds_as_many_clips_as_it_is_asked_for(folder, tmp_path):
    stages(folder, tmp_path, names=["tokenizer"])
    config, options = parse(["toy", "--data", str(folder), *SMALL, "--token-pool", "5"])
    source = VideoFolder(folder, (8, 16, 16), index=tmp_path / "videos.json")
    tokenizer = train.load_network(train.load_checkpoint(tmp_path / "tokenizer.pt"))
    clips = train.TokenSource(tokenizer, source, ["FP", "CG"], config, ONE)
    assert [len(clips.tokens), len(clips.labels), len(clips.pool["FP"][0])] == [5, 5, 5]


def test_compiled_networks_train_with_the_adversary_too(folder, tmp_path, monkeypatch):
    """R1 differentiates twice, which compiled networks cannot: the discriminator stays as it is."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda module: compile_module(module, backend="aot_eager"))
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        stages(folder, tmp_path / name, [*GAN, *flags, "--tokenizer-steps", "2"], ["tokenizer"])
    plain, compiled = (json.loads((tmp_path / name / "log.jsonl").read_text())
                       for name in ("plain", "compiled"))
    for term in plain.keys() - {"stage", "seconds"}:
        assert compiled[term] == pytest.approx(plain[term], rel=1e-3, abs=1e-5), term


def test_weight_decay_acts_on_matrices_only():
    """Official: kernels, not biases, norms, embeddings or positions."""
    from transformer import TRANSFORMERS, MaskedTransformer
    model = MaskedTransformer(dataclasses.replace(TRANSFORMERS["toy"], num_layers=1))
    decayed, free = train.decay_groups(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed} == {
        "blocks.0.attention.query_key_value.weight", "blocks.0.attention.out.weight",
        "blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight", "head.0.weight"}
    assert len(decayed) + len(free) == len(names)


def test_one_batch_is_learned_by_heart(generator):
    """Eq. (3) at work: the transformer overfits four sequences."""
    from transformer import TRANSFORMERS, MaskedTransformer
    torch.manual_seed(0)
    model = MaskedTransformer(dataclasses.replace(
        TRANSFORMERS["toy"], num_layers=2, hidden_size=64, mlp_size=128, codebook_size=16,
        num_tokens=16))
    trainee = Trainee(dict(model=model), dict(model=torch.optim.AdamW(model.parameters(), lr=3e-3)))
    config = TrainConfig(precision="float32")
    tokens = torch.randint(16, (4, 16), generator=generator)
    for _ in range(250):
        batch = train.TokenBatch("FP", tokens, tokens.flip(0), torch.arange(16) > 3,
                                 torch.zeros(4, dtype=torch.long),
                                 torch.rand(4, 16, generator=generator),
                                 torch.rand(4, generator=generator))
        train.transformer_step(trainee, batch, config)
    logits = model(tokens, torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long))
    assert (logits.argmax(-1) == tokens).float().mean() > 0.99


# ---------------------------------------------------------------------------------------------
# Exact resume

class Killed(Exception):
    pass


@pytest.mark.parametrize("extra", [[], GAN], ids=["plain", "gan"])
def test_a_run_that_was_killed_ends_bitwise_as_one_that_was_not(folder, tmp_path, monkeypatch,
                                                                extra):
    stages(folder, tmp_path / "whole", extra)
    for stage, step_name in (("tokenizer", "tokenizer_step"), ("transformer", "transformer_step")):
        step, calls = getattr(train, step_name), iter(range(100))

        def dies(*arguments, step=step, calls=calls):
            if next(calls) == 3:                      # step 3: the checkpoint is of step 2
                raise Killed
            return step(*arguments)

        monkeypatch.setattr(train, step_name, dies)
        with pytest.raises(Killed):
            stages(folder, tmp_path / "killed", extra, [stage])
        assert read_checkpoint(tmp_path / "killed" / f"{stage}.pt")["step"] == 2
        monkeypatch.setattr(train, step_name, step)
        stages(folder, tmp_path / "killed", extra, [stage])
        same(weights(tmp_path / "whole", stage), weights(tmp_path / "killed", stage))


def test_a_signal_finishes_the_step_saves_and_leaves(folder, tmp_path, monkeypatch, capsys):
    step, calls = train.tokenizer_step, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(train, "tokenizer_step", interrupted)
    assert stages(folder, tmp_path, ["--save-every", "100"], ["tokenizer"]) is False
    assert read_checkpoint(tmp_path / "tokenizer.pt")["step"] == 3
    assert "the same command goes on from here" in capsys.readouterr().err


def test_a_checkpoint_of_another_configuration_is_refused(folder, tmp_path):
    stages(folder, tmp_path, names=["tokenizer"])
    with pytest.raises(ValueError, match=r"tokenizer_rate 0.0004 there, 0.5 here.*--out another"):
        stages(folder, tmp_path, ["--tokenizer-rate", "0.5"], ["tokenizer"])
    refuse_other_configuration(tmp_path, dict(train=dict(compile=True)),
                               dict(train=dict(compile=False)))


def test_settings_of_stage_2_may_change_while_stage_1_goes_on(folder, tmp_path):
    """And a finished stage takes over what may change: the held-out videos, the decoding."""
    stages(folder, tmp_path, names=["tokenizer"])
    stages(folder, tmp_path, ["--transformer-rate", "0.5", "--tasks", "FP"])
    before = weights(tmp_path, "transformer")
    stages(folder, tmp_path, ["--transformer-rate", "0.5", "--tasks", "FP", "--decode-steps", "3",
                              "--test-data", str(folder)], ["transformer"])
    config = read_checkpoint(tmp_path / "transformer.pt")["config"]
    assert config["train"]["decode_steps"] == 3 and config["data"]["test_root"] == str(folder)
    same(before, weights(tmp_path, "transformer"))
    with pytest.raises(ValueError, match="transformer_rate 0.5 there, 0.002 here"):
        stages(folder, tmp_path, ["--tasks", "FP"], ["transformer"])


def test_seeds_differ_by_seed_rank_and_step():
    seeds = {loop.seed_of(seed, rank, step) for seed in range(3) for rank in range(3)
             for step in range(20)}
    assert len(seeds) == 180


# ---------------------------------------------------------------------------------------------
# Many processes

def command(folder, run, arguments=(), processes=1, launcher=()):
    start = ([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
              "--master_port", str(free_port()), *launcher]
             if processes > 1 else [sys.executable])
    return [*start, str(ROOT / "train.py"), "toy", "--data", str(folder), "--out", str(run), *SMALL,
            *arguments]


def execute(*arguments, **options):
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    return subprocess.run(command(*arguments, **options), env=environment, cwd=ROOT, text=True,
                          capture_output=True, timeout=300)


def one_step_of_each_stage(rank, world, port, result):
    """Gradients of both stages, GAN included, on this process's share of a fixed batch of four."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                           WORLD_SIZE=str(world))
        loop.join_processes("gloo")
        group = weakref.ref(torch.distributed.group.WORLD)
    generator = torch.Generator().manual_seed(0)
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    trainee, config = tokenizer_trainee()
    config = dataclasses.replace(config, lecam_weight=1.0)
    video = torch.rand(4, 3, 16, 32, 32, generator=generator)
    terms = loop.average_terms(train.tokenizer_step(trainee, video[share], config))
    found = {f"{name} {key}": g for name in ("model", "discriminator")
             for key, g in gradients(trainee.networks[name]).items()}
    found |= {f"lecam {k}": v for k, v in trainee.networks["lecam"].state_dict().items()}

    from transformer import MaskedTransformer
    model = MaskedTransformer(config.transformer_config(16))
    trainee = Trainee(dict(model=model), dict(model=Kept(model.parameters(), lr=0.0)))
    tokens = torch.randint(128, (2, 4, 64), generator=generator)[:, share]
    draws = (torch.rand(4, 64, generator=generator)[share],
             torch.rand(4, generator=generator)[share])
    terms |= {f"transformer {k}": v for k, v in loop.average_terms(train.transformer_step(
        trainee, train.TokenBatch("OPC", *tokens, torch.arange(64) % 3 > 0,
                                  torch.zeros(len(tokens[0]), dtype=torch.long), *draws),
        config)).items()}
    found |= {f"transformer {key}": g for key, g in gradients(model).items()}
    found |= {f"term {k}": v for k, v in terms.items() if v.ndim == 0 and k != "contrast"}
    if rank == 0:
        torch.save(found, result)
    if world > 1:
        torch.distributed.destroy_process_group()
        assert group() is None               # or its threads would outlive it, and abort the exit


def test_two_processes_with_half_the_batch_equal_one(tmp_path):
    """To 1e-5 of the largest, in both stages, GAN included: the entropy's mean code and LeCam's
    means are taken over all processes, not over each one's share."""
    one_step_of_each_stage(0, 1, 0, tmp_path / "one")
    torch.multiprocessing.spawn(one_step_of_each_stage, (2, free_port(), tmp_path / "two"),
                                nprocs=2)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    largest = {kind: max(one[name].abs().max() for name in one if name.startswith(kind))
               for kind in ("model", "discriminator", "transformer", "lecam", "term")}
    for name in one:
        scale = largest[name.split()[0]]
        assert (one[name] - two[name]).abs().max() <= 1e-5 * scale, name


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_torchrun_trains_both_stages_on_two_processes(folder, tmp_path):
    """And logs what one process logs, as long as rounding allows: the first step."""
    for name, processes in (("one", 1), ("two", 2)):
        done = execute(folder, tmp_path / name, [*GAN, "--no-report"], processes=processes)
        assert done.returncode == 0, done.stderr
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
            for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 2                    # a line for step 0 of each stage
    for first, second in zip(*logs):
        for key in first.keys() - {"stage", "seconds", "contrast", "codes"}:
            assert first[key] == pytest.approx(second[key], rel=2e-3, abs=2e-5), key
    assert (tmp_path / "two/transformer.pt").exists()


@pytest.mark.slow
def test_torchrun_restarts_a_killed_worker_and_ends_right(folder, tmp_path):
    steps = ["--tokenizer-steps", "60", "--save-every", "5", "--stage", "tokenizer", "--no-report"]
    assert execute(folder, tmp_path / "whole", steps, processes=2).returncode == 0
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    running = subprocess.Popen(command(folder, tmp_path / "killed", steps, processes=2,
                                       launcher=["--max-restarts", "3"]), env=environment, cwd=ROOT)
    deadline = time.time() + 60
    while not (tmp_path / "killed/tokenizer.pt").exists() and time.time() < deadline:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True)
    os.kill(int(workers.stdout.split()[0]), signal.SIGKILL)
    assert running.wait(120) == 0
    same(weights(tmp_path / "whole", "tokenizer"), weights(tmp_path / "killed", "tokenizer"))


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_changes_nothing(folder, tmp_path):
    arguments = ["--tokenizer-steps", "500", "--transformer-steps", "500", "--save-every", "5",
                 "--no-report"]
    assert execute(folder, tmp_path / "whole", arguments).returncode == 0
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    random, kills = np.random.default_rng(0), 0
    while kills < 20:
        running = subprocess.Popen(command(folder, tmp_path / "killed", arguments), cwd=ROOT,
                                   env=environment, stderr=subprocess.DEVNULL)
        try:
            running.wait(3 + 1.5 * random.random())
            break
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
    assert kills == 20, f"killed {kills} times only: give the run more steps"
    assert execute(folder, tmp_path / "killed", arguments).returncode == 0
    for stage in ("tokenizer", "transformer"):
        same(weights(tmp_path / "whole", stage), weights(tmp_path / "killed", stage))


# ---------------------------------------------------------------------------------------------
# Guards

def terms(**more):
    return dict(loss=torch.tensor(1.0), reconstruction=torch.tensor(0.01),
                tokens=torch.arange(64), contrast=torch.tensor(0.2)) | more


def test_a_loss_that_is_not_finite_stops_the_run_and_names_it(folder, tmp_path, monkeypatch):
    step, calls = train.tokenizer_step, iter(range(100))

    def diverges(*arguments):
        result = step(*arguments)
        return result | dict(entropy=torch.tensor(math.nan)) if next(calls) == 3 else result

    monkeypatch.setattr(train, "tokenizer_step", diverges)
    with pytest.raises(FloatingPointError, match="step 3 of the tokenizer: entropy not finite.*"
                                                 "last good checkpoint is .* of step 2"):
        stages(folder, tmp_path, names=["tokenizer"])


@pytest.mark.parametrize("more, words", [
    (dict(tokens=torch.zeros(4, dtype=torch.long)), "only 1 of 64 codes"),
    (dict(contrast=torch.tensor(0.001)), "of one colour"),
    (dict(discriminator=torch.tensor(0.001)), "discriminator wins outright")])
def test_what_goes_wrong_is_named_once_with_what_to_try(capsys, more, words):
    watch = TokenizerWatch(64)
    for step in range(500):
        watch(step, terms(**more))
    message = capsys.readouterr().err
    assert message.count("warning") == 1 and words in message and ("--" in message)


def test_a_healthy_run_is_left_in_peace(capsys):
    watch = TokenizerWatch(64)
    for step in range(500):
        shown = watch(step, terms(discriminator=torch.tensor(1.3)))
    assert shown == dict(psnr=20.0, codes=64) and capsys.readouterr().err == ""


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
        if name == "toy":
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
        transformer = config.transformer_config(config.num_classes)
        assert transformer.sequence_length == 1026 and transformer.codebook_size == 1024
        assert transformer.hidden_dropout == transformer.attention_dropout == 0.1


def test_tasks_and_decoding_are_those_of_the_data_sets():
    assert PRESETS["ucf101-B"].tasks == ("CG",) and PRESETS["bair-L"].tasks == ("FP",)
    assert PRESETS["bair-mt-B"].tasks == MT8 and PRESETS["ssv2-B"].tasks == tuple(TASKS)
    assert PRESETS["k600-B"].condition_frames == 5
    decoding = {name: (c.decode_schedule, c.decode_steps, c.decode_temperature)
                for name, c in PRESETS.items()}
    assert decoding["bair-B"] == ("exp", 12, 400.0) and decoding["k600-L"] == ("uniform", 12, 7.5)
    assert decoding["ucf101-B"] == decoding["bair-mt-B"] == ("cosine", 12, 4.5)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 2.0, 10, 100) for step in range(101)]
    assert rates[0] == 0 and rates[10] == 2.0 and rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0) and max(rates) == 2.0


@pytest.mark.parametrize("arguments, complaint", [
    (["tyo"], "invalid choice: 'tyo'"), (["toy", "--stpes", "5"], "unrecognized arguments"),
    (["toy", "--tokenizer-steps", "many"], "invalid int value"),
    (["toy", "--tasks", "XY"], "invalid choice: 'XY'"),
    (["toy", "--mask-schedule", "sine"], "mask schedule 'sine' is unknown"),
    (["toy", "--frames", "15"], "T=15 frames or pixels"),
    (["toy", "--resolution", "30"], "H=30"), (["ucf101-B"], "needs --data"),
    (["toy", "--condition-frames", "16"], "condition frames"),
    (["toy", "--precision", "fp8"], "choose auto, bf16 or float32"),
    (["toy", "--accumulate", "0"], "wanted at least 1")])
def test_a_flag_that_makes_no_sense_is_refused_with_usage(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as exit:
        parse(arguments)
    message = capsys.readouterr().err
    assert exit.value.code == 2 and complaint in message and "usage: train.py" in message


def test_task_sets_are_spelled_out():
    assert parse(["toy", "--tasks", "MT8"])[0].tasks == MT8
    assert parse(["toy", "--tasks", "CG", "CG", "FP"])[0].tasks == ("CG", "CG", "FP")


def test_the_log_has_every_term_of_both_stages(folder, tmp_path):
    stages(folder, tmp_path, GAN)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"reconstruction", "codebook", "commitment", "entropy", "generator", "discriminator",
            "r1", "lecam", "psnr", "codes"} <= set(lines[0])
    assert {"loss", "refine", "mask", "reconstruct", "model gradient"} <= set(lines[-1])


def test_a_2d_tokenizer_trains_on_frames_and_is_inflated(folder, tmp_path):
    stages(folder, tmp_path, GAN, ["image"])
    image = weights(tmp_path, "image")
    stages(folder, tmp_path, [*GAN, "--inflate", "central", "--tokenizer-steps", "1"],
           ["tokenizer"])
    video = weights(tmp_path, "tokenizer")              # one step at rate 0: as inflated
    name = "ema encoder.0.weight"
    torch.testing.assert_close(video[name][:, :, 1], image[name][:, :, 0])
    assert video[name][:, :, 0].abs().max() == 0
    torch.testing.assert_close(video["ema quantizer.codebook"], image["ema quantizer.codebook"])


def test_the_precision_follows_the_machine():
    fast = torch.cpu.get_capabilities().get("avx512_bf16", False)
    for precision, enabled in (("bf16", True), ("float32", False), ("auto", fast)):
        context = train.autocast(precision, torch.device("cpu"))
        with context:
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert (product.dtype == torch.bfloat16) == enabled

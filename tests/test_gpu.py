"""What only a GPU can show: python -m pytest -m gpu, under ten minutes on one card.

Each test compares the card with the CPU, or with itself. GPU_TESTS_ON=cpu python -m pytest -m gpu
runs them without a card, which shows that the tests themselves work, and nothing more.
"""
import copy
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from test_kernels import LargestKernel

from data.clips import DataConfig
from decode import generate, seeded_noise
from discriminator import DISCRIMINATORS, r1_penalty
from steps import TokenBatch, autocast, tokenizer_step, transformer_step
from tokenizer import TOKENIZERS, Upsample
from train import train
from training.checkpoint import read_checkpoint
from training.kernels import SafeConv3d, resolve_precision, use
from training.plan import made_up, try_step
from training.presets import PRESETS
from training.processes import Processes, float32_as
from training.start import build
from transformer import MaskedTransformer

DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cuda"))
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA card")]
TOY = replace(PRESETS["toy"], adversarial_weight=0.1, precision="float32")
SHORT = replace(TOY, tokenizer_steps=4, transformer_steps=4, tokenizer_batch=4, token_pool=8,
                transformer_batch=4, save_every=2, tasks=("FP", "CG"))


def seconds_of(function, repeats=5):
    """The fastest of some calls."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def after_a_step(stage, device, precision="float32"):
    """The numbers of one step, gradients' norms among them: same weights, same clips."""
    config = replace(TOY, precision=precision)
    torch.manual_seed(0)
    trainee = build(config, stage, num_classes=16)
    for network in trainee.networks.values():
        network.to(device)
    generator = torch.Generator().manual_seed(1)
    if stage == "tokenizer":
        video = torch.rand(4, 3, *config.clip_shape, generator=generator).to(device)
        terms = tokenizer_step(trainee, video, config)
    else:
        network = trainee.networks["transformer"].eval()                    # without dropout
        size = network.config
        tokens = torch.randint(size.codebook_size, (2, 4, size.num_tokens), generator=generator)
        scores, r = torch.rand(4, size.num_tokens, generator=generator), torch.rand(
            4, generator=generator)
        batch = TokenBatch("OPC", *tokens.to(device), (torch.arange(size.num_tokens) % 3 > 0
                                                       ).to(device),
                           torch.zeros(4, dtype=torch.long, device=device), scores.to(device),
                           r.to(device))
        terms = transformer_step(trainee, batch, config)
    return {name: term.float().cpu() for name, term in terms.items() if term.ndim == 0}


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_a_step_is_the_cpus_in_float32(stage):
    """Every term and the norm of every gradient, R1's included: TF32 would be off by 1e-3."""
    with float32_as("float32"):
        ours, cpus = after_a_step(stage, DEVICE), after_a_step(stage, torch.device("cpu"))
    for name, value in cpus.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=2e-4, abs=2e-5), name


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_a_step_in_bfloat16_is_near_the_one_in_float32(stage):
    exact, rough = (after_a_step(stage, DEVICE, precision) for precision in ("float32", "bf16"))
    assert rough["loss"] == pytest.approx(exact["loss"].item(), rel=0.03)


@pytest.mark.parametrize("name", ["toy", "B-64px"])
def test_the_tokenizer_gives_the_cpus_tokens(name):
    torch.manual_seed(0)
    tokenizer = use(TOKENIZERS[name].build()).eval()
    video = torch.rand(2, 3, 16, 64, 64)
    with torch.no_grad(), float32_as("float32"):
        expected, latents = tokenizer.encode(video), tokenizer.latents(video)
        tokenizer.to(DEVICE)
        tokens, ours = tokenizer.encode(video.to(DEVICE)).cpu(), tokenizer.latents(video.to(DEVICE))
    torch.testing.assert_close(ours.cpu(), latents, rtol=1e-3, atol=1e-4)
    assert (tokens == expected).float().mean() > 0.999             # two codes may be equally near


@pytest.mark.skipif(DEVICE.type != "cuda", reason="2^31 elements")
def test_many_clips_take_turns_where_kernels_count_with_32_bits():
    """L's last up-sampling of 32 clips makes 2^31 elements."""
    plain = Upsample(256, (2, 2, 2), TOKENIZERS["L"]).to(DEVICE, torch.bfloat16)
    layer = use(copy.deepcopy(plain))
    x = torch.randn(34, 256, 8, 64, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    y[-1].sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(y[-1:], plain(x[-1:]), rtol=2e-2, atol=2e-2)
    assert x.grad[-1].abs().sum() > 0 and not x.grad[0].any()


def test_r1_costs_little_more_than_the_passes_it_is_made_of():
    """Against nn.Conv3d's own second derivative: the same gradients; the times are printed."""
    torch.manual_seed(0)
    size = DISCRIMINATORS["B" if DEVICE.type == "cuda" else "toy"]
    network = use(size.build()).to(DEVICE)
    clips = torch.rand(4, 3, *network.config.resolution, device=DEVICE, requires_grad=True)

    def r1():
        return torch.autograd.grad(r1_penalty(network(clips), clips), list(network.parameters()),
                                   allow_unused=True)

    with float32_as("float32"):
        forward, ours, fast = seconds_of(lambda: network(clips)), r1(), seconds_of(r1)
        for layer in network.modules():
            if type(layer) is SafeConv3d:
                layer.__class__ = torch.nn.Conv3d
        theirs, slow = r1(), seconds_of(r1)
    print(f"\nforward {forward * 1e3:.1f} ms, R1 {fast * 1e3:.1f} ms, "
          f"PyTorch's {slow * 1e3:.1f} ms")
    scale = max(g.abs().max() for g in theirs if g is not None)
    for a, b in zip(ours, theirs):
        assert (a is None) == (b is None) and (a is None or (a - b).abs().max() <= 1e-5 * scale)


def test_a_step_of_stage_1_convolves_with_small_kernels_only():
    """Without training.kernels, R1's second derivative has kernels as large as the video."""
    trainee = build(TOY, "tokenizer", device=DEVICE)
    with float32_as("float32"), LargestKernel() as mode:
        tokenizer_step(trainee, made_up(TOY, 2, DEVICE), TOY)
    assert mode.seen == 3 if DEVICE.type == "cuda" else mode.seen == 32


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the plan tries steps on a card alone")
@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_the_plan_tries_two_real_steps(stage):
    assert "GiB at the peak" in try_step(PRESETS["ucf101-B"], stage)


def test_a_run_that_was_stopped_goes_on_and_learns_the_same(tmp_path):
    """Not to the bit, as kernels add up in any order: to 1 % of the loss."""
    processes = Processes(device=DEVICE)

    def leave(stage, step, terms):
        if step == 2 and stage.name == "tokenizer":
            raise KeyboardInterrupt

    shapes = DataConfig(dataset="shapes")
    train(SHORT, shapes, tmp_path / "whole", processes=processes, draw=False)
    with pytest.raises(KeyboardInterrupt):
        train(SHORT, shapes, tmp_path / "parts", processes=processes, draw=False, on_step=leave)
    assert read_checkpoint(tmp_path / "parts/tokenizer.pt")["step"] == 2
    assert train(SHORT, shapes, tmp_path / "parts", processes=processes, draw=False)
    for stage in ("tokenizer", "transformer"):
        one, two = (read_checkpoint(tmp_path / name / f"{stage}.pt")[stage]
                    for name in ("whole", "parts"))
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0.02, atol=5e-3)


def test_both_stages_train_compiled(tmp_path):
    assert train(replace(SHORT, compile=True, precision="auto"), DataConfig(dataset="shapes"),
                 tmp_path, processes=Processes(device=DEVICE), draw=False)


def test_two_processes_on_one_card_log_what_one_does(tmp_path):
    """Over gloo, which NCCL does not allow on one card."""
    code = ("import os, sys, torch; sys.path[:0] = [{root!r}, {tests!r}]; "
            "os.environ['LOCAL_RANK'] = '0'; from test_gpu import SHORT, DEVICE; "
            "from training.processes import start_processes; import train; "
            "from data.clips import DataConfig; "
            "processes = start_processes('gloo')._replace(device=DEVICE); "
            "train.train(SHORT, DataConfig(dataset='shapes'), sys.argv[1], stage='tokenizer', "
            "processes=processes, draw=False); torch.distributed.is_initialized() and "
            "torch.distributed.destroy_process_group()")
    script = tmp_path / "worker.py"
    script.write_text(code.format(root=str(ROOT), tests=str(ROOT / "tests")))
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run",
                                                 "--nproc_per_node", "2"])):
        done = subprocess.run([sys.executable, *launcher, str(script), str(tmp_path / name)],
                              text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = (read_checkpoint(tmp_path / name / "tokenizer.pt")["tokenizer"]
                for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0.02, atol=5e-3)


def test_algorithm_1_runs_on_the_card_in_bfloat16():
    config = replace(TOY, precision=resolve_precision("auto", DEVICE))
    torch.manual_seed(0)
    tokenizer = use(TOKENIZERS["toy"].build()).to(DEVICE).eval()
    model = build(config, "transformer", num_classes=16, device=DEVICE).networks["transformer"]
    model.eval()
    assert isinstance(model, MaskedTransformer)
    video = made_up(config, 2, DEVICE)
    with torch.no_grad(), autocast(config.precision, DEVICE):
        made = generate(tokenizer, model, video, "OPC", steps=4, noise=seeded_noise(0, DEVICE))
    assert made.shape == video.shape and torch.isfinite(made).all()

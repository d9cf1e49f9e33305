"""training/kernels.py: layers exchanged for this machine compute what the plain ones do."""
import copy
import platform
import resource
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from discriminator import Discriminator2d, Discriminator3d, DiscriminatorConfig, r1_penalty
from tokenizer import TokenizerConfig, Upsample
from training import kernels
from transformer import Attention, TransformerConfig

TOKENIZER = TokenizerConfig(base_channels=16, channel_multipliers=(1, 2), norm_groups=4,
                            temporal_downsample=(True,), num_res_blocks=1, codebook_size=12,
                            embedding_dim=6)
ADVERSARY = DiscriminatorConfig(4, (2, 2), (4, 8, 8))
TRANSFORMER = TransformerConfig(num_layers=1, hidden_size=16, num_heads=2, mlp_size=16,
                                codebook_size=9, num_tokens=12, hidden_dropout=0.0)
CLIPS = torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = (torch.arange(24).view(2, 12) % 9, torch.tensor([0, 1]), torch.tensor([0, 0]))


@pytest.mark.parametrize("config", [
    TOKENIZER, replace(TOKENIZER, padding="zeros"), TOKENIZER.image_twin(), ADVERSARY,
    ADVERSARY.image_twin(), TRANSFORMER], ids=lambda config: type(config).__name__)
def test_the_exchanged_layers_give_the_values_and_gradients_of_the_plain_ones(config):
    torch.manual_seed(0)
    plain = config.build().eval()
    exchanged = kernels.use(copy.deepcopy(plain))
    assert any(type(layer) in kernels.LAYERS.values() for layer in exchanged.modules())
    assert [*exchanged.state_dict()] == [*plain.state_dict()]
    found = []
    for network in (plain, exchanged):
        output = network(*TOKENS) if config is TRANSFORMER else network(CLIPS)
        output = output if isinstance(output, torch.Tensor) else output.reconstruction
        output.square().mean().backward()
        found.append([output, *(p.grad for p in network.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


class OwnAttention(Attention):
    """A fork's, which may compute anything."""


class OwnConv(nn.Conv3d):
    pass


class OwnUpsample(Upsample):
    pass


@pytest.mark.parametrize("own", [OwnAttention(TRANSFORMER), OwnConv(1, 1, 1),
                                 OwnUpsample(8, (1, 2, 2), TOKENIZER)])
def test_a_layer_of_a_subclass_is_never_exchanged(own):
    kernels.use(nn.Sequential(own))
    assert type(own).__name__.startswith("Own")


# ---------------------------------------------------------------------------------------------
# R1: a gradient of a gradient

@pytest.mark.parametrize("padding", [(1, 1, 1), (0, 1, 1)])
def test_a_convolution_can_be_differentiated_twice_in_all_its_arguments(padding, generator):
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
                       for shape in ((2, 2, 3, 3, 4), (3, 2, 1 + 2 * padding[0], 3, 3), (3,)))

    def convolve(*arguments):
        return kernels.TwiceDifferentiable.apply(*arguments, padding)

    torch.testing.assert_close(convolve(x, weight, bias), F.conv3d(x, weight, bias, 1, padding))
    assert torch.autograd.gradcheck(convolve, (x, weight, bias))
    assert torch.autograd.gradgradcheck(convolve, (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *two: convolve(*two, None), (x, weight))


class OnCuda(nn.Conv3d):
    """What SafeConv3d does on a GPU where zeros are padded, done here."""

    def forward(self, x):
        return kernels.TwiceDifferentiable.apply(x, self.weight, self.bias, self.padding)


class LargestKernel(TorchDispatchMode):
    """The longest side of any convolution's kernel, in whatever direction it is computed."""

    seen = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        places = {"aten::convolution": 1, "aten::convolution_backward": 2}
        kernel = places.get(function._schema.name)
        if kernel:
            self.seen = max(self.seen, *arguments[kernel].shape[2:])
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("kind", [Discriminator3d, Discriminator2d])
def test_r1_convolves_with_small_kernels_only_and_changes_no_gradient(kind, generator):
    """nn.Conv3d's second derivative is a convolution by a kernel as large as the video."""
    torch.manual_seed(0)
    discriminator, found, largest = kind(ADVERSARY), [], []
    for layer_type in (nn.Conv3d, OnCuda):
        for layer in discriminator.modules():
            layer.__class__ = layer_type if isinstance(layer, nn.Conv3d) else type(layer)
        real = torch.rand(2, 3, 4, 8, 8, generator=generator.manual_seed(0)).requires_grad_()
        with LargestKernel() as mode:
            penalty = r1_penalty(discriminator(real), real)
            found.append(torch.autograd.grad(penalty, [*discriminator.parameters()],
                                             allow_unused=True))
        largest.append(mode.seen)
    assert largest[0] >= 8 and largest[1] == 3
    scale = max(gradient.abs().max() for gradient in found[0] if gradient is not None)
    for plain, ours in zip(*found):
        assert ours is plain is None or (ours - plain).abs().max() <= 1e-6 * scale


# ---------------------------------------------------------------------------------------------
# bfloat16 on CPUs

@pytest.mark.parametrize("padding, dtype", [("zeros", torch.float32), ("reflect", torch.bfloat16)])
def test_a_convolution_that_pads_zeros_is_computed_in_float32_on_cpus(padding, dtype):
    """oneDNN's gradient of its kernel is wrong in bfloat16 on some CPUs; this shows on all."""
    layer = kernels.use(nn.Conv3d(3, 4, 3, padding=1, padding_mode=padding))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(CLIPS).dtype == layer(CLIPS.bfloat16()).dtype == dtype


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_gradients_under_bfloat16_repeat_to_the_bit_and_are_right(padding, generator):
    """Where zeros are put around two latent frames, oneDNN's may be whatever was in memory."""
    torch.manual_seed(0)
    tokenizer = kernels.use(replace(TOKENIZER, padding=padding).build())
    video, gradients = torch.rand(2, 3, 4, 12, 16, generator=generator), []
    for half in [False, *[True] * 6]:
        torch.full((100_000,), torch.nan)                   # what the next one finds in memory
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = F.mse_loss(tokenizer(video).reconstruction, video)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(
            loss, [*tokenizer.decoder.parameters()])]))
    exact, first, *others = gradients
    assert all(torch.equal(gradient, first) for gradient in others)
    assert (first - exact).abs().max() <= 0.1 * exact.abs().max()


@pytest.mark.parametrize("tokens, training, written_out", [
    (258, False, True), (258, True, False), (66, False, False)])
def test_attention_in_bfloat16_is_written_out_for_long_sequences_outside_of_training(
        tokens, training, written_out, generator):
    """In bfloat16 there, in float32 elsewhere, and either way it is the same attention."""
    layer = kernels.use(Attention(replace(TRANSFORMER, attention_dropout=0.0))).train(training)
    heads = torch.randn(3, 2, 4, tokens, 64, generator=generator)
    exact = F.scaled_dot_product_attention(*heads)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = layer.attend(*heads.bfloat16())
    assert found.dtype == (torch.bfloat16 if written_out else torch.float32)
    assert (found - exact).abs().max() < 0.02 and (found - exact).std() < 0.002
    assert torch.equal(layer.attend(*heads), exact)


@pytest.mark.parametrize("device, cpu, precision", [
    ("cuda", {}, "bf16"), ("cpu", {}, "float32"), ("cpu", dict(amx_bf16=True), "bf16"),
    ("cpu", dict(avx512_bf16=True, cpu_name="AMD EPYC"), "bf16"),
    ("cpu", dict(avx512_bf16=True, cpu_name="Intel Xeon"), "float32")])
def test_auto_is_bfloat16_where_it_is_fast_and_every_other_name_itself(monkeypatch, device, cpu,
                                                                       precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert kernels.resolve_precision("auto", torch.device(device)) == precision
    for name in ("bf16", "tf32", "float32"):
        assert kernels.resolve_precision(name, torch.device(device)) == name


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or torch.cuda.is_available(),
                    reason="it is the C library of Linux that is told, where CPUs compute")
def test_memory_that_a_tensor_left_is_there_for_the_next_one():
    """64 MB are 16,384 pages; a new block from the system would cost a fault for each."""
    kernels.keep_memory()
    faults = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**26, dtype=torch.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(faults[2:]) < 1000            # the heap is in one piece by then

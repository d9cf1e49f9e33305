"""magvit2/: the sequel's tokenizer, against google/praxis' arrays, oracles and by perturbation."""
import json
import math
import os
import pickle
from dataclasses import replace
from functools import partial

import imageio.v3 as imageio
import numpy as np
import official2
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from official import arrays_of, below, kernel, video
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import magvit2.train
from commit import TASKS, make_condition, tokenize_condition
from data.clips import DataConfig, write_video
from decode import generate
from discriminator import LeCam, discriminator_loss, generator_loss, r1_penalty
from magvit2 import published
from magvit2.blur_discriminator import (BlurConfig, BlurDiscriminator2d, BlurDiscriminator3d,
                                        blur_pool)
from magvit2.causal_tokenizer import (CAUSAL_TOKENIZERS, AdaptiveNorm, CausalConfig, CausalConv,
                                      CausalTokenizer, FrameNorm, ResidualBlock, Upsample)
from magvit2.factorized import power_cosine
from magvit2.lookup_free import (OFFICIAL_EPSILON, LookupFreeConfig, LookupFreeQuantizer,
                                 entropies)
from magvit2.presets import PRESETS
from magvit2.streaming import decode_stream, encode_stream
from measure.report import report
from training.checkpoint import as_plain, from_plain, load_checkpoint, load_network, load_run
from training.plan import made_up_step
from training.presets import PRESETS as FIRST_PAPER
from training.start import build, build_networks, without_weights
from transformer import TRANSFORMERS

PRAXIS = ROOT.parent / "shared" / "golden2" / "praxis"
ACTIVATIONS, GRADIENTS, LOSSES = 1e-5, 1e-4, 2e-6
TINY = CausalConfig(base_channels=4, channel_multipliers=(1, 1, 2, 2), num_res_blocks=1, bits=6,
                    norm_groups=4)


@pytest.fixture
def praxis():
    """praxis(name) -> the arrays of a file; skips where they are not on this machine."""
    def load(name: str) -> dict:
        if not (PRAXIS / f"{name}.npz").exists():
            pytest.skip("google/praxis' arrays are not shipped; checked where ../shared/golden2 is")
        return arrays_of(PRAXIS / f"{name}.npz")
    return load


# ---------------------------------------------------------------------------------------------
# Lookup-free quantization

def latents_of(array) -> torch.Tensor:
    return video(array).clone().requires_grad_()


@pytest.mark.parametrize("bits", [4, 10, 18])
def test_signs_ids_and_their_straight_gradient_are_googles(praxis, bits, deviation):
    arrays = below(praxis("lfq"), f"bits{bits}")
    quantizer, latents = LookupFreeQuantizer(bits), latents_of(arrays["x"])
    result = quantizer(latents)
    assert np.array_equal(result.tokens.numpy(), arrays["ids_groups1"])
    assert torch.equal(quantizer.tokens(latents), result.tokens)
    assert torch.equal(quantizer.lookup(result.tokens), video(arrays["quantized"]))
    deviation(result.embeddings, video(arrays["train_quantized"]), ACTIVATIONS)
    (result.embeddings * video(arrays["cotangent"])).sum().backward()
    deviation(latents.grad, video(arrays["grad_straight_through"]), ACTIVATIONS)
    halves = arrays["ids_groups2"].astype(np.int64)                     # the low half first
    assert np.array_equal(halves[..., 0] + (halves[..., 1] << math.ceil(bits / 2)),
                          arrays["ids_groups1"])


def entropies_of_a_share(rank, world, folder):
    """Entropies of this process's share of four clips; their gradient, averaged as in a step."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group",
                                             rank=rank, world_size=world)
    latents = 0.02 * torch.randn(4, 10, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    share = latents.chunk(world)[rank].requires_grad_()
    position, mean = entropies(share, 0.05)
    (position - mean).backward()
    torch.save((position.detach(), mean.detach(), share.grad / world), folder / f"{rank}{world}")
    if world > 1:
        torch.distributed.destroy_process_group()


def test_the_mean_code_is_of_the_positions_of_all_processes(tmp_path):
    entropies_of_a_share(0, 1, tmp_path)
    torch.multiprocessing.start_processes(entropies_of_a_share, (2, tmp_path), nprocs=2,
                                          start_method="forkserver")          # see fresh.py
    whole, *halves = (torch.load(tmp_path / name) for name in ("01", "02", "12"))
    positions, means, gradients = zip(*halves)
    torch.testing.assert_close(sum(positions) / 2, whole[0])
    torch.testing.assert_close(torch.stack(means), whole[1].expand(2))
    torch.testing.assert_close(torch.cat(gradients), whole[2])


@pytest.mark.parametrize("bits", [4, 10, 18])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_commitment_and_entropy_are_googles_with_their_gradients(praxis, bits, temperature,
                                                                 deviation):
    arrays = below(praxis("lfq"), f"bits{bits}")
    found = below(arrays, f"tau{temperature}")
    for name, weigh in (("entropy", lambda r: 0.1 * r.entropy_loss),
                        ("quantizer", lambda r: 0.25 * r.commitment_loss + 0.1 * r.entropy_loss)):
        latents = latents_of(arrays["x"])
        result = LookupFreeQuantizer(bits, temperature, OFFICIAL_EPSILON)(latents)
        loss = weigh(result)
        loss.backward()
        deviation(loss, found[f"{name}_loss"], LOSSES, name)
        theirs = found[f"grad_{name}_loss"]
        deviation(latents.grad, video(theirs), GRADIENTS, name, scale=np.abs(theirs).max())
    deviation(0.25 * result.commitment_loss, found["e_latent_loss"], LOSSES)
    assert result.codebook_loss == 0


@pytest.mark.parametrize("bits", [1, 5, 10])
@pytest.mark.parametrize("epsilon", [0.0, OFFICIAL_EPSILON])
def test_the_entropies_by_halves_are_those_over_all_codes(bits, epsilon, generator):
    """The oracle: a softmax of 2 z.c / temperature over all corners of the cube, in float64."""
    latents = (0.02 * torch.randn(2, bits, 2, 3, 3, generator=generator)).requires_grad_()
    position, mean = entropies(latents, 0.05, epsilon)
    slow = latents.detach().double().requires_grad_()
    cube = 2.0 * (torch.arange(2 ** bits)[:, None] >> torch.arange(bits) & 1).double() - 1
    probability = (2 * slow.movedim(1, -1).reshape(-1, bits) @ cube.T / 0.05).softmax(1)
    each = torch.special.entr(probability).sum(1).mean()
    average = probability.mean(0)
    together = -(average * (average + epsilon).log()).sum()
    torch.testing.assert_close(torch.stack([position, mean]).double(),
                               torch.stack([each, together]), rtol=1e-5, atol=1e-6)
    (position - 0.7 * mean).backward()
    (each - 0.7 * together).backward()
    torch.testing.assert_close(latents.grad.double(), slow.grad, rtol=1e-4, atol=1e-5)


def test_the_entropy_is_exact_where_codes_are_uniform_and_finite_where_they_are_sure(generator):
    """2^18 codes, all alike: 18 ln 2 = 12.48 nats; with 1e-5 in the logarithm 11.19."""
    uniform = torch.zeros(1, 18, 1, 1, 1)
    assert entropies(uniform)[1].item() == pytest.approx(18 * math.log(2), abs=1e-4)
    assert entropies(uniform, epsilon=OFFICIAL_EPSILON)[1].item() == pytest.approx(11.19, abs=5e-3)
    latents = (5 + torch.randn(1, 18, 2, 4, 4, generator=generator)).requires_grad_()
    position, mean = entropies(latents)
    (position - mean).backward()
    assert position == 0 and abs(mean) < 1e-4 and latents.grad.isfinite().all()


class Operations(TorchDispatchMode):
    """Remembers the most numbers in any tensor that is computed, and the products of matrices of
    whole numbers, which CUDA does not have."""

    largest, of_integers = 0, ()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result, name = function(*arguments, **keywords or {}), function._overloadpacket.__name__
        tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
        if name in ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot") and not all(
                each.is_floating_point() for each in tensors):
            self.of_integers += name,
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.numel())
        return result


def test_2_to_the_18_codes_need_no_table_of_positions_and_codes():
    """Forward and backward: at most 1,280 positions x 2^9 numbers, not x 2^18."""
    latents = (0.02 * torch.randn(1, 18, 5, 16, 16)).requires_grad_()
    with Operations() as operations:
        position, mean = entropies(latents)
        (position - mean).backward()
    assert latents.grad.abs().sum() > 0 and operations.largest == 1280 * 2 ** 9


def test_the_first_papers_network_takes_signs_for_codes():
    config = LookupFreeConfig(base_channels=8, channel_multipliers=(1, 1, 2, 2), num_res_blocks=1,
                              norm_groups=4, bits=7)
    tokenizer, clip = config.build(), torch.rand(1, 3, 16, 32, 32)
    output = tokenizer(clip)
    assert output.tokens.max() < 128 and torch.equal(output.tokens, tokenizer.encode(clip))
    (output.reconstruction.square().mean() + output.entropy_loss).backward()
    assert all(p.grad is not None for p in tokenizer.parameters())


# ---------------------------------------------------------------------------------------------
# The causal network

def test_a_causal_convolution_is_googles_at_every_length(praxis, deviation):
    arrays = praxis("causal_conv")
    for name, case in json.loads(str(arrays["config_json"]))["cases"].items():
        layer = CausalConv(case["cin"], case["cout"], CausalConfig(), bias=case["bias"],
                           kernel=tuple(case["kernel"]), stride=tuple(case["stride"]))
        official2.convolution(layer, below(arrays, f"{name}/params"))
        for T in (1, 5, 9, 17):
            found = below(arrays, f"{name}/T{T}")
            deviation(layer(video(found["x"])), video(found["y"]), ACTIVATIONS, f"{name} {T}")


def layer_of(name: str, params: dict, told: dict) -> nn.Module:
    """A block of blocks.npz, with its parameters."""
    config = CausalConfig(norm_groups=told.get("num_groups", 32), bits=told.get("emb_dim", 18))
    if name.startswith("group_norm"):
        layer = FrameNorm(told["dim"], config)
        official2.group_norm(layer, params)
        return layer
    layer, kind = ((AdaptiveNorm(told["dim"], config), "cond_norm_layers_0") if name == "cond_norm"
                   else (ResidualBlock(told["input_dim"], told["output_dim"], config),
                         "res_blocks_0"))
    return official2.fill(layer, {f"{kind}/{key}": each for key, each in params.items()}, "none")


@pytest.mark.parametrize("name", [
    "group_norm_spatial", "group_norm_spatial_width_below_groups", "group_norm_spatial_32",
    "group_norm_spatial_small_variance", "cond_norm", "res_block_same", "res_block_skip"])
def test_a_block_is_googles_with_its_gradients(praxis, name, deviation):
    arrays = praxis("blocks")
    found = below(arrays, name)
    layer = layer_of(name, below(found, "params"), json.loads(str(arrays["config_json"]))[name])
    inputs = [latents_of(found[key]) for key in ("in0", "in1") if key in found]
    out = layer(*inputs)
    deviation(out, video(found["out"]), ACTIVATIONS)
    (out * video(found["cotangent"])).sum().backward()
    for number, x in enumerate(inputs):
        theirs = found[f"grad_in{number}"]
        deviation(x.grad, video(theirs), GRADIENTS, scale=np.abs(theirs).max())


@pytest.mark.parametrize("factor", [1, 2])
def test_channels_become_places_in_googles_order(praxis, factor):
    found = below(praxis("blocks"), f"depth_to_space_t{factor}")
    up = Upsample(5, (factor, 2, 2), CausalConfig())
    up.conv.forward = lambda x: x
    codes = torch.arange(3.0)[None, None, :, None, None].expand(1, 1, 3, 2, 3)
    x, codes = up(video(found["in0"]), codes)
    assert torch.equal(x, video(found["out"])[:, :, factor - 1:])
    assert codes[0, 0, :, 0, 0].tolist() == ([0, 1, 2] if factor == 1 else [0, 1, 1, 2, 2])


@pytest.mark.parametrize("size", ["tiny", "g32"])
@pytest.mark.parametrize("what", ["clip", "image"])
@torch.no_grad()
def test_encoder_and_decoder_are_googles_and_so_is_every_token(praxis, size, what, deviation):
    arrays = praxis(f"encoder_{size}")
    encoder, found = official2.load_praxis_encoder(arrays), below(arrays, what)
    latents = encoder(video(found["x"]))
    deviation(latents, video(found["z"]), ACTIVATIONS)
    quantizer = LookupFreeQuantizer(latents.shape[1])
    assert np.array_equal(quantizer.tokens(latents).numpy(), found["ids"])
    arrays = praxis(f"decoder_{size}")
    decoder, found = official2.load_praxis_decoder(arrays), below(arrays, what)
    quantizer = LookupFreeQuantizer(found["quantized"].shape[-1])
    codes = quantizer.lookup(torch.from_numpy(found["ids"].astype(np.int64)))
    deviation(decoder(codes), video(found["recon"]), ACTIVATIONS)


K600, IMAGENET256, IMAGENET512 = (PRESETS[f"{name}-v2"] for name in
                                  ("k600", "imagenet256", "imagenet512"))


@pytest.mark.parametrize("config, count", [
    (CAUSAL_TOKENIZERS["base"], 57_813_333), (CAUSAL_TOKENIZERS["appendix"], 376_003_221),
    (CAUSAL_TOKENIZERS["appendix"].image_twin(), 113_053_845),
    (K600.discriminator_config(), 61_341_569),
    (IMAGENET256.tokenizer_config(), 116_274_709), (IMAGENET512.tokenizer_config(), 119_495_573)])
def test_sizes_have_as_many_parameters_as_googles(config, count):
    assert sum(p.numel() for p in without_weights(config.build).parameters()) == count


@pytest.mark.parametrize("config, latent, epochs, batches, decoding", [
    (K600, (5, 16, 16), (190, 360), (256, 256), (12, 32)),
    (IMAGENET256, (1, 16, 16), (270, 1080), (256, 1024), (64, 15)),
    (IMAGENET512, (1, 16, 16), (270, 1080), (256, 1024), (64, 30))])
def test_the_presets_are_the_appendixs(config, latent, epochs, batches, decoding):
    tokenizer = without_weights(config.tokenizer_config().build)
    assert tokenizer.latent_shape(*config.clip_shape) == latent
    assert (config.tokenizer_epochs, config.transformer_epochs) == epochs
    assert (config.tokenizer_batch, config.transformer_batch) == batches
    assert (config.decode_steps, config.decode_temperature) == decoding
    assert config.decode_schedule == "cosine" and from_plain(as_plain(config)) == config
    if config.frames == 1:
        assert (config.crop, config.flip, config.class_dropout) == (0.8, True, 0.1)


@pytest.fixture(scope="module")
def causal():
    torch.manual_seed(0)
    return CAUSAL_TOKENIZERS["toy"].build().eval()


@torch.no_grad()
def test_a_frame_moves_only_latents_at_and_after_its_own(causal, generator):
    clip = torch.rand(1, 3, 17, 16, 16, generator=generator)
    latents = causal.latents(clip)
    assert latents.shape == (1, 10, 5, 2, 2) == (1, 10, *causal.latent_shape(17, 16, 16))
    for frame in range(17):
        other = clip.clone()
        other[:, :, frame] = torch.rand(3, 16, 16, generator=generator)
        moved = (causal.latents(other) - latents).abs().amax((0, 1, 3, 4)) > 0
        assert moved.tolist() == [n >= math.ceil(frame / 4) for n in range(5)]


@torch.no_grad()
def test_a_token_moves_only_frames_at_and_after_its_own(causal, generator):
    tokens = torch.randint(1024, (1, 5, 2, 2), generator=generator)
    decoded = causal.decode(tokens)
    assert decoded.shape == (1, 3, 17, 16, 16)
    for place in range(5):
        other = tokens.clone()
        other[:, place] ^= 1
        moved = (causal.decode(other) - decoded).abs().amax((0, 1, 3, 4)) > 0
        assert moved.tolist() == [frame > 4 * (place - 1) for frame in range(17)]


@torch.no_grad()
def test_a_clips_first_latent_and_frame_are_its_pictures(causal, generator):
    clip = torch.rand(1, 3, 9, 16, 16, generator=generator)
    tokens = causal.encode(clip)
    for picture, first in ((causal.latents(clip[:, :, :1]), causal.latents(clip)[:, :, :1]),
                           (causal.decode(tokens[:, :1]), causal.decode(tokens)[:, :, :1])):
        torch.testing.assert_close(picture, first, atol=1e-5, rtol=1e-4)


MULTIPLE = "needs 1 more than a multiple of 4"


@pytest.mark.parametrize("wrong, words", [
    (lambda causal: causal.latents(torch.rand(1, 3, 16, 16, 16)), f"T=16 .*{MULTIPLE}"),
    (lambda causal: causal.latents(torch.rand(1, 3, 17, 12, 16)), "H=12 .*needs a multiple of 8"),
    (lambda causal: list(encode_stream(causal, [torch.rand(1, 3, 4, 16, 16)])), MULTIPLE),
    (lambda causal: list(encode_stream(causal, torch.rand(1, 3, 8, 16, 16).split((5, 3), dim=2))),
     MULTIPLE),
    (lambda _: LookupFreeConfig().image_twin(), "no 2D twin"),
    (lambda causal: causal.config.inflate(TINY.image_twin().build().state_dict(), causal),
     "both networks the same sizes"),
    (lambda causal: causal.config.inflate({}, causal), "missing in 2D"),
    (lambda causal: causal.config.inflate({}, causal, "central"), "knows 'last' alone"),
    (lambda _: replace(PRESETS["toy-v2"], tokenizer="huge"), "choose from appendix, base, toy"),
    (lambda _: replace(PRESETS["toy-v2"], inflate="central").check(), "choose last"),
])
def test_what_cannot_work_is_refused_in_a_line(causal, wrong, words):
    with pytest.raises(ValueError, match=words) as error:
        wrong(causal)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------
# Inflation into the last slice, and streams

@torch.no_grad()
def test_a_picture_kernel_becomes_the_last_slice(praxis, deviation):
    """Against the rule applied to google/praxis' network, layer by layer and in what comes out.

    Right after it, frames 0, 4, 8, ... are the pictures, and are held.
    """
    arrays = praxis("inflation_rule")
    config, clip = official2.causal_config(arrays), video(arrays["x"])
    image, inflated, theirs = config.image_twin().build().eval(), config.build(), config.build()
    for network, params in ((image, "p2d"), (theirs, "p3d")):
        official2.fill(network.encoder, below(arrays, f"{params}/encoder"),
                       "conv_downsample_layers")
        official2.fill(network.decoder, below(arrays, f"{params}/decoder"), "conv_upsample_layers")
    config.inflate(image.state_dict(), inflated.eval(), "last")
    for name, parameter in theirs.state_dict().items():
        assert torch.equal(parameter, inflated.state_dict()[name]), name
    latents, tokens = inflated.latents(clip), inflated.encode(clip)
    deviation(latents, video(arrays["z3d"]), ACTIVATIONS)
    decoded, pictures = inflated.decode(tokens), image.decode(tokens)
    deviation(decoded, video(arrays["recon3d"]), ACTIVATIONS)
    assert torch.equal(tokens, image.encode(clip[:, :, ::4]))
    held = torch.cat([pictures[:, :, :1], pictures[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)
    torch.testing.assert_close(decoded, held, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(17,), (1, 16), (5, 8, 4), (1, 4, 4, 4, 4), (13, 4)])
@torch.no_grad()
def test_a_stream_gives_the_whole_videos_tokens_and_pixels_however_it_is_cut(causal, sizes,
                                                                             generator):
    clip = torch.rand(2, 3, 17, 16, 24, generator=generator)
    whole = causal.encode(clip)
    pieces = list(encode_stream(causal, clip.split(sizes, dim=2)))
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    for cut in (pieces, whole.split(1, dim=1), whole.split((2, 3), dim=1)):
        decoded = torch.cat(list(decode_stream(causal, cut)), dim=2)
        torch.testing.assert_close(decoded, causal.decode(whole), atol=1e-5, rtol=1e-4)
    assert torch.equal(causal.encode(clip), whole)                   # nothing is left of the stream


def test_a_stream_remembers_as_much_after_a_long_video_as_after_a_short_one(causal, generator):
    layers = [layer for layer in causal.encoder.modules() if isinstance(layer, CausalConv)]
    pieces = torch.rand(1, 3, 33, 16, 16, generator=generator).tensor_split(8, dim=2)
    held = {sum(layer.past.numel() for layer in layers) for _ in encode_stream(causal, pieces)}
    assert len(held) == 1 and all(layer.past is None for layer in layers)


# ---------------------------------------------------------------------------------------------
# COMMIT on causal tokens

@pytest.mark.parametrize("T", [5, 17])
@pytest.mark.parametrize("task", TASKS)
def test_the_first_supervoxel_is_one_frame_and_the_others_four(causal, task, T, generator):
    """ispad of 1 + 4k frames, by the slow rule: a supervoxel is padding where no pixel is given."""
    clip = torch.rand(2, 3, T, 32, 32, generator=generator)
    valid = make_condition(clip, task)[1]
    tokens, is_pad = tokenize_condition(causal, clip, task)
    assert causal.lead == 3 and tokens.shape == (2, len(is_pad)) == (2, 16 * (1 + T // 4))
    for place, ours in enumerate(is_pad.view(-1, 4, 4)):
        frames = valid[max(0, 4 * place - 3):4 * place + 1]
        given = frames.reshape(-1, 4, 8, 4, 8).any(4).any(2).any(0)
        assert torch.equal(ours, ~given)


@pytest.mark.parametrize("given", [1, 5])
def test_the_given_frames_of_a_prediction_have_the_real_tokens(causal, given, generator):
    """What causality buys: COMMIT's condition is exact there, so nothing is left to refine."""
    clip = torch.rand(2, 3, 17, 32, 32, generator=generator)
    tokens = causal.encode(clip).flatten(1)
    condition, is_pad = tokenize_condition(causal, clip, "FP", given)
    assert (~is_pad).sum() == 16 * (1 + (given - 1) // 4)
    assert torch.equal(condition[:, ~is_pad], tokens[:, ~is_pad])
    assert not torch.equal(condition[:, is_pad], tokens[:, is_pad])


# ---------------------------------------------------------------------------------------------
# The discriminator

def test_blur_pooling_is_googles_at_odd_and_even_lengths(praxis, deviation):
    arrays = praxis("blocks")
    for size in ("5x8x7", "1x2x1", "4x6x1"):
        found = below(arrays, f"blur_pool_f3_{size}")
        deviation(blur_pool(video(found["in0"])), video(found["out"]), ACTIVATIONS, size)


@pytest.mark.parametrize("file", ["disc_tiny", "disc_odd"])
def test_the_discriminator_is_googles_and_so_is_r1(praxis, file, deviation):
    arrays = praxis(file)
    network = official2.load_praxis_discriminator(arrays)
    real = latents_of(arrays["real"])
    logits = network(real)
    deviation(logits, arrays["logits_real"][:, 0], 1e-4)
    deviation(network(video(arrays["fake"])), arrays["logits_fake"][:, 0], 1e-4)
    penalty = 10 * r1_penalty(logits, real)
    deviation(penalty, arrays["r1_penalty_cost10"], 1e-4)
    penalty.backward()
    gradient = network.conv_in.weight.grad
    theirs = kernel(arrays["r1_grad/conv_first/w"])
    deviation(gradient, theirs, 1e-3, scale=theirs.abs().max().item())
    # The others are recorded as norms; which parameter is which is told by the values.
    expected = {float(np.linalg.norm(arrays[f"params/{name}"])): norm for name, norm in
                zip(arrays["r1_grad_names"].tolist(), arrays["r1_grad_norms"].tolist())}
    assert len(expected) == len(arrays["r1_grad_names"]) == len(list(network.parameters()))
    scale = max(expected.values())
    for name, parameter in network.named_parameters():
        nearest = min(expected, key=lambda norm: abs(norm - parameter.norm().item()))
        found = 0.0 if parameter.grad is None else parameter.grad.norm().item()
        assert found == pytest.approx(expected.pop(nearest), rel=1e-3, abs=1e-5 * scale), name


@pytest.mark.parametrize("step", range(3))
def test_the_losses_and_their_weights_are_googles(praxis, step, deviation):
    """App. A.2: 5.0 reconstruction, 0.1 adversarial, 0.001 LeCam. LeCam differs: see below."""
    arrays, weights = below(praxis("vqgan_losses"), f"train/step{step}"), K600
    grad = below(arrays, "grad_g_loss")
    loss = {name: float(value) for name, value in below(arrays, "loss").items()}
    made = video(arrays["reconstructed"]).clone().requires_grad_()
    real, fake = (torch.from_numpy(arrays[f"logits_{name}"][:, 0]).requires_grad_()
                  for name in ("real", "fake"))
    reconstruction = weights.reconstruction_weight * F.mse_loss(made, video(arrays["video"]))
    adversarial = weights.adversarial_weight * generator_loss(fake)
    deviation(reconstruction, loss["reconstruction_loss"], LOSSES)
    deviation(adversarial, loss["g_adversarial_loss"], LOSSES)
    deviation(reconstruction + adversarial + loss["quantizer_loss"], loss["g_loss"], LOSSES)
    (reconstruction + adversarial).backward()
    deviation(made.grad, video(grad["reconstructed"]), GRADIENTS)
    deviation(fake.grad, grad["logits_fake"][:, 0], GRADIENTS)
    deviation(discriminator_loss(real, fake), loss["d_adversarial_loss"], LOSSES)
    # Theirs: the averages move first, and each logit is compared with them; the mean comes last.
    # The first paper's: the batch's mean is compared, and the averages move afterwards.
    lecam = LeCam()
    lecam.average_real, lecam.average_fake = torch.from_numpy(arrays["ema_before"].copy())
    lecam.update(real.mean(), fake.mean())
    deviation(torch.stack([lecam.average_real, lecam.average_fake]), arrays["ema_after"], LOSSES)
    theirs = weights.lecam_weight * lecam(real, fake).mean()
    deviation(theirs, loss["lecam_loss"], LOSSES)


def test_at_one_frame_the_discriminator_is_the_2d_twin():
    """In 3D each blur of a single frame sees a frame of zeros beside it, and halves the signal."""
    picture = torch.ones(1, 1, 1, 64, 64)
    for blurs in range(1, 5):
        picture = blur_pool(picture)
        assert picture[..., 1, 1].item() == 0.5 ** blurs
    size = BlurConfig(base_channels=4, channel_multipliers=(1, 1), resolution=(1, 16, 16))
    network, video = size.build(), torch.rand(2, 3, 1, 16, 16)
    assert isinstance(network, BlurDiscriminator2d) and network(video).shape == (2, 1)
    assert isinstance(replace(size, resolution=(5, 16, 16)).build(), BlurDiscriminator3d)
    for stage in ("image", "tokenizer"):
        networks = without_weights(lambda: build_networks(IMAGENET256, stage))
        assert isinstance(networks["discriminator"], BlurDiscriminator2d)


# ---------------------------------------------------------------------------------------------
# Training

SHAPES = DataConfig(dataset="shapes")
SHORT = replace(
    PRESETS["toy-v2"], tokenizer=TINY, tasks=("CG", "FP"), adversarial_weight=0.1,
    discriminator=BlurConfig(base_channels=4, channel_multipliers=(1, 1)), precision="float32",
    tokenizer_steps=2, tokenizer_warmup=1, transformer_steps=2, transformer_warmup=1, token_pool=8,
    decode_steps=2, transformer=replace(TRANSFORMERS["toy"], hidden_size=16, num_layers=1,
                                        mlp_size=16))


def test_the_entropy_weight_is_four_times_its_own_at_first_and_once_after_2000_steps(tmp_path):
    """App. A.2: annealing factor 3, 2,000 steps, as the first paper's code reads it: added."""
    weights = {}
    for step, times in ((0, 4.0), (1000, 2.5), (2000, 1.0), (90_000, 1.0)):
        assert K600.entropy_weight_at(step) == pytest.approx(0.1 * times)

    def heard(stage, step, terms):
        rest = 5 * terms["reconstruction"] + 0.25 * terms["commitment"] + terms["codebook"]
        weights[step] = ((terms["loss"] - rest) / terms["entropy"]).item()

    config = replace(SHORT, tokenizer_steps=4, inflate="", adversarial_weight=0.0,
                     entropy_weight=0.1, entropy_boost_steps=2)
    magvit2.train.train(config, SHAPES, tmp_path, stage="tokenizer", on_step=heard)
    assert weights == pytest.approx({0: 0.4, 1: 0.25, 2: 0.1, 3: 0.1}, rel=1e-3)


def test_a_masked_model_of_pictures_learns_from_a_folder_of_them(tmp_path, monkeypatch):
    """By the command, with guidance that rises."""
    for name in ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(int(name[4])).integers(255, size=(40, 50, 3))
        imageio.imwrite(tmp_path / "in" / name, picture.astype(np.uint8))
    monkeypatch.setattr("sys.argv", [
        "train", "toy-v2", "--data", str(tmp_path / "in"), "--out", str(tmp_path), "--inflate", "",
        *("--layout images --frames 1 --crop 0.8 --tasks CG --class-dropout 0.1 --transformer toy "
          "--tokenizer-steps 2 --transformer-steps 2 --tokenizer-warmup 1 --transformer-warmup 1 "
          "--token-pool 4 --adversarial-weight 0.1 --no-report").split()])
    magvit2.train.main()
    run = load_run(tmp_path)
    assert run.class_names == ["cat", "dog"] and run.transformer.config.num_tokens == 16
    state = load_checkpoint(tmp_path / "transformer.pt")
    assert state["config"]["network"]["type"] == "magvit2.factorized.FactorizedConfig"
    assert state["config"]["train"]["type"] == "magvit2.presets.SequelConfig"
    made = generate(run.tokenizer, run.transformer, torch.zeros(2, 3, 1, 32, 32), "CG",
                    torch.tensor([0, 1]), steps=2, guidance_scale=power_cosine(24.0, 3.0))
    assert made.shape == (2, 3, 1, 32, 32)


def test_pictures_then_video_then_ten_tasks(tmp_path, monkeypatch):
    """2D first, inflated, and a finished run is only drawn."""
    seen = []
    magvit2.train.train(SHORT, SHAPES, tmp_path, draw=False,
                        on_step=lambda stage, step, terms: seen.append((stage.name, step)))
    assert seen == [(stage, step) for stage in ("image", "tokenizer", "transformer")
                    for step in (0, 1)]
    image, tokenizer = (load_network(load_checkpoint(tmp_path / f"{name}.pt"))
                        for name in ("image", "tokenizer"))
    assert image.config == TINY.image_twin() and tokenizer.config == TINY
    monkeypatch.setattr(magvit2.train, "report", partial(report, clips=2, samples=4))
    assert magvit2.train.train(SHORT, SHAPES, tmp_path)
    assert (tmp_path / "samples.gif").stat().st_size                    # all ten tasks


@pytest.mark.parametrize("config", [
    replace(FIRST_PAPER["toy"], adversarial_weight=0.1), replace(SHORT, transformer="toy")])
def test_no_step_multiplies_matrices_of_whole_numbers(config):
    """Of either paper: a step of both stages, tokenizing, Algorithm 1."""
    config = replace(config, precision="float32")
    one, two = (build(config, stage, num_classes=16) for stage in ("tokenizer", "transformer"))
    tokenizer, model = one.networks["tokenizer"], two.networks["transformer"]
    clip = torch.rand(2, 3, *config.clip_shape)
    with Operations() as operations:
        made_up_step(one, config, "tokenizer", 2)()
        made_up_step(two, config, "transformer", 2)()
        generate(tokenizer.eval(), model.eval(), clip, "FP", steps=2, guidance_scale=1.0)
        assert not operations.of_integers
        torch.ones(3, 3).long() @ torch.ones(3).long()
    assert operations.of_integers == ("mv",)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() and "GPU_TESTS_ON" not in os.environ,
                    reason="needs a CUDA card")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_both_stages_of_the_sequel_take_a_step_on_the_card(precision):
    """Factors, adversary and blur included; then Algorithm 1, guided."""
    device = torch.device(os.environ.get("GPU_TESTS_ON", "cuda"))
    config = replace(PRESETS["toy-v2"], transformer="toy", adversarial_weight=0.1,
                     precision=precision)
    one, two = (build(config, stage, num_classes=16, device=device)
                for stage in ("tokenizer", "transformer"))
    for stage, trainee in (("tokenizer", one), ("transformer", two)):
        terms = made_up_step(trainee, config, stage, 2)()
        assert all(term.isfinite().all() for term in terms.values()), stage
    made = generate(one.networks["tokenizer"].eval(), two.networks["transformer"].eval(),
                    torch.rand(2, 3, *config.clip_shape, device=device), "FP", steps=4,
                    guidance_scale=power_cosine(3.0, 3.0))
    assert made.isfinite().all()


# ---------------------------------------------------------------------------------------------
# Published weights

OPEN = PRAXIS.parent
PUBLISHED = {"video_128_L": 370_547_349, "image_128_L": 112_021_653, "image_256_L": 115_127_829,
             "pretrain_256_16384": 115_094_033, "pretrain_256_262144": 115_127_829}


def open_arrays(name):
    if not (OPEN / name).exists():
        pytest.skip("Open-MAGVIT2's arrays are not shipped; checked where ../shared/golden2 is")
    return json.loads((OPEN / name).read_text()) if name.endswith("json") else np.load(OPEN / name)


def open_state(arrays, prefix=""):
    """The state dict of a file: whole numbers times a scale, or as they are."""
    state = {}
    for key in (key for key in arrays.files if key.startswith((f"{prefix}q/", f"{prefix}p/"))):
        name, values = key.removeprefix(prefix)[2:], arrays[key]
        scale = arrays[f"{prefix}s/{name}"] if key.startswith(f"{prefix}q/") else np.float32(1)
        state[name] = torch.from_numpy(values.astype(np.float32) * scale)
    return state


@torch.no_grad()
def test_a_published_picture_network_is_inflated_as_theirs(deviation):
    """Against Open-MAGVIT2's own inflate_from_image: every parameter's sums, latents, pixels."""
    image = published.load(open_state(open_arrays("omagvit2_image_tiny.npz"), "r128/"), "image")
    arrays = open_arrays("omagvit2_inflation_tiny.npz")
    config = replace(image.config, image=False)
    twin = config.build().eval()
    ours = config.inflate(image.state_dict(), twin, "last").state_dict()
    sums = dict(zip(json.loads(str(arrays["keys"])), zip(arrays["sum_f64"], arrays["sumsq_f64"])))
    assert len(ours) == len(sums)
    for name, parameter in ours.items():
        values = parameter.double()
        assert (values.sum().item(), values.square().sum().item()) == pytest.approx(
            sums[published.their_name(name, video=True)], rel=1e-6, abs=1e-6), name
    clip = (torch.from_numpy(arrays["x"]) + 1) / 2
    deviation(twin.latents(clip), arrays["z17"], 2e-5)
    deviation(2 * twin.decode(twin.encode(clip)) - 1, arrays["recon17"], 2e-5)


@pytest.mark.parametrize("bits", [4, 9, 10, 18])
@pytest.mark.parametrize("scale", ["unit", "mixed", "soft"])
def test_the_rebuilt_quantizer_computes_open_magvit2s(bits, scale, deviation):
    """Their zero is negative; the entropies have 1e-5 in the logarithm; lucidrains clamps there."""
    found = below(arrays_of(open_arrays("lfq.npz")), f"b{bits}/{scale}")
    latents = torch.from_numpy(found["x"]).clone().requires_grad_()
    quantizer = published.PublishedQuantizer(bits, epsilon=OFFICIAL_EPSILON)
    result = quantizer(latents)
    assert np.array_equal(result.tokens.numpy(), found["indices"])
    assert torch.equal(quantizer.lookup(result.tokens).sign(),
                       torch.from_numpy(found["quantized"]).sign())
    deviation(result.commitment_loss, found["commit"], LOSSES)
    position, mean = entropies(latents, epsilon=OFFICIAL_EPSILON)
    for value, name in ((position, "per_sample"), (mean, "codebook")):
        deviation(value, found[name], 2e-5)
        gradient, = torch.autograd.grad(value, latents, retain_graph=True)
        theirs = found[f"g_{name}"]
        deviation(gradient, theirs, 2e-4, scale=max(np.abs(theirs).max(), 1e-12))


@pytest.mark.parametrize("file, case", [
    *(("video", case) for case in ("S5", "T1", "T9", "T17", "T33", "odd")),
    *(("image", case) for case in ("r128/S16", "r128/I32", "r128/I64x48", "r256/I64"))])
@torch.no_grad()
def test_a_published_tokenizer_computes_open_magvit2s(file, case, deviation):
    """In their pixels, [-1, 1], layer by layer, and in ours, [0, 1]."""
    arrays = open_arrays(f"omagvit2_{file}_tiny.npz")
    tokenizer = published.load(open_state(arrays, case[:5] if file == "image" else ""), file)
    x, z, ids, theirs = (torch.from_numpy(arrays[f"{case}/{name}"])
                         for name in ("x", "z", "idx", "recon"))
    if file == "image":                                                 # theirs have no time
        x, z, ids, theirs = x[:, :, None], z[:, :, None], ids[:, None], theirs[:, :, None]
    latents = tokenizer.encoder(x)
    tokens = tokenizer.quantizer.tokens(latents)
    deviation(latents, z, 2e-5)
    assert torch.equal(tokens, ids)
    deviation(tokenizer.decoder(tokenizer.quantizer.lookup(tokens)), theirs, 2e-5)
    if case == "odd":                                                   # no size of ours
        return
    clip = (x + 1) / 2
    assert torch.equal(tokenizer.encode(clip), tokens)
    deviation(2 * tokenizer.decode(tokens) - 1, theirs, 2e-5)
    if file == "image":                                                 # each frame alone
        twice = tokenizer.encode(clip.repeat(1, 1, 2, 1, 1))
        assert torch.equal(twice, tokens.repeat(1, 2, 1, 1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_names_and_shapes_are_ours_to_the_unit(name):
    model = open_arrays("omagvit2_full_shapes.json")["models"][name]
    state = {key: torch.empty(shape, device="meta") for key, shape in model["shapes"].items()}
    kind = "video" if "video" in name else "image"
    tokenizer = published.load(dict(state_dict=state), kind)
    assert sum(p.numel() for p in tokenizer.parameters()) == PUBLISHED[name]
    assert tokenizer.config.bits == model["ddconfig"]["z_channels"]
    read = {key for key in state if key.startswith(("encoder.", "decoder."))}
    assert len(read) == len(tokenizer.state_dict())                     # none is left unread
    averaged = {theirs: torch.empty(model["shapes"][key], device="meta")
                for key, theirs in model["ema_keys"].items()}
    by_name = {key: value for key, value in state.items() if key.startswith("encoder.") and any(
        word in key for word in ("conv_in", "conv_out", "block.0.conv1", "norm1"))}
    published.load(by_name | averaged, kind)          # all others are found by their EMA names
    assert len(by_name) < len(read) / 3


def test_averaged_weights_are_preferred(tmp_path):
    state, name = open_state(open_arrays("omagvit2_video_tiny.npz")), "encoder.conv_out.conv_1.bias"
    averaged = state | {"model_ema." + name.replace(".", ""): state[name] + 1}
    torch.save(dict(state_dict=averaged), tmp_path / "video.ckpt")
    tokenizer = published.load(tmp_path / "video.ckpt", "video")
    assert torch.equal(tokenizer.encoder.last[-1].bias, state[name] + 1)


def test_files_that_hold_other_weights_are_refused(tmp_path):
    state = open_state(open_arrays("omagvit2_video_tiny.npz"))
    bias, norm = "encoder.conv_out.conv_1.bias", "decoder.up.0.block.0.norm1.weight"
    fewer = {key: value for key, value in state.items() if key != norm}
    for wrong, kind, words in (
            (state, "audio", "choose video or image"),
            (state, "image", "these are no weights of an Open-MAGVIT2 image tokenizer"),
            (fewer, "video", f"{norm} is missing"),
            (state | {bias: state[bias][:, None]}, "video", r"is \(10, 1\); wanted \(10,\)")):
        with pytest.raises(ValueError, match=words):
            published.load(wrong, kind)
    torch.save(dict(state_dict=state, code=CausalTokenizer), tmp_path / "code.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only|Weights only"):
        published.load(tmp_path / "code.ckpt", "video")


def test_the_command_takes_a_video_through_a_published_tokenizer(tmp_path, monkeypatch, capsys):
    torch.save(open_state(open_arrays("omagvit2_video_tiny.npz")), tmp_path / "video.ckpt")
    frames = np.random.default_rng(0).integers(255, size=(20, 32, 40, 3)).astype(np.uint8)
    write_video(tmp_path / "in.mp4", frames)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", "published video.ckpt video in.mp4 out.mp4".split())
    published.main()
    assert capsys.readouterr().out.count(" dB") == 2 and (tmp_path / "out.mp4").stat().st_size

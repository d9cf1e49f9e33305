"""magvit2/: the sequel's tokenizer, against google/praxis' arrays, oracles and by perturbation."""
import json
import math
import pickle
from dataclasses import replace

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

from commit import TASKS, is_padding, tokenize_condition
from data.clips import DataConfig
from data.moving_shapes import MovingShapes
from data.source import load_batch, to_float
from decode import generate
from discriminator import (DiscriminatorConfig, LeCam, discriminator_loss, generator_loss,
                           r1_penalty)
from long_video import decode_long, encode_file, read_tokens
from magvit2 import published
from magvit2.blur_discriminator import BlurConfig, BlurDiscriminator3d, blur_pool
from magvit2.causal_tokenizer import (CAUSAL_TOKENIZERS, AdaptiveNorm, CausalConfig, CausalConv,
                                      CausalTokenizer, Decoder, Encoder, FrameNorm, ResidualBlock,
                                      Upsample)
from magvit2.factorized import power_cosine
from magvit2.lookup_free import (OFFICIAL_EPSILON, LookupFreeConfig, LookupFreeQuantizer,
                                 LookupFreeTokenizer, corners, entropies)
from magvit2.streaming import decode_stream, encode_stream
from measure.report import report
from steps import tokenizer_pass
from tokenizer import inflate
from train import main, train
from training.build import build, build_networks, build_tokenizer, without_weights
from training.checkpoint import load_checkpoint, load_network, load_run
from training.presets import PRESETS
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
    """Entropies of this process's share of four clips, and their gradient, averaged as in a step."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group",
                                             rank=rank, world_size=world)
    latents = 0.02 * torch.randn(4, 10, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    share = latents[rank * 4 // world:(rank + 1) * 4 // world].requires_grad_()
    position, mean = entropies(share, 0.05)
    (position - mean).backward()
    torch.save((position.detach(), mean.detach(), share.grad / world),
               folder / f"{rank} of {world}")
    if world > 1:
        torch.distributed.destroy_process_group()


def test_the_mean_code_is_of_the_positions_of_all_processes(tmp_path):
    entropies_of_a_share(0, 1, tmp_path)
    torch.multiprocessing.start_processes(entropies_of_a_share, (2, tmp_path), nprocs=2,
                                          start_method="forkserver")          # see fresh.py
    whole, *halves = (torch.load(tmp_path / name) for name in ("0 of 1", "0 of 2", "1 of 2"))
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, whole[0])
    for _, mean, _ in halves:
        torch.testing.assert_close(mean, whole[1])
    torch.testing.assert_close(torch.cat([gradient for *_, gradient in halves]), whole[2])


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


def test_the_official_epsilon_hides_a_nat_of_uniform_codes():
    """2^18 codes, all alike: 18 ln 2 = 12.48 nats; with 1e-5 in the logarithm 11.19."""
    uniform = torch.zeros(1, 18, 1, 1, 1)
    assert entropies(uniform)[1].item() == pytest.approx(18 * math.log(2), abs=1e-4)
    assert entropies(uniform, epsilon=OFFICIAL_EPSILON)[1].item() == pytest.approx(11.19, abs=5e-3)


def test_the_entropy_is_finite_where_every_bit_is_sure(generator):
    latents = (5 + torch.randn(1, 18, 2, 4, 4, generator=generator)).requires_grad_()
    position, mean = entropies(latents)
    (position - mean).backward()
    assert position == 0 and abs(mean) < 1e-4 and latents.grad.isfinite().all()


def test_independent_bits_make_the_probabilities_of_all_codes(generator):
    one = torch.rand(3, 4, generator=generator)
    together = corners(one)
    assert together.shape == (3, 16)
    for code in range(16):
        bits = torch.tensor([code >> i & 1 for i in range(4)])
        torch.testing.assert_close(together[:, code], torch.where(bits == 1, one, 1 - one).prod(1))


class Largest(TorchDispatchMode):
    """Remembers the most numbers in any tensor that is computed."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **keywords or {})
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return result


def test_2_to_the_18_codes_need_no_table_of_positions_and_codes():
    """Forward and backward: at most 1,280 positions x 2^9 numbers, not x 2^18."""
    latents = (0.02 * torch.randn(1, 18, 5, 16, 16)).requires_grad_()
    with Largest() as largest:
        position, mean = entropies(latents)
        (position - mean).backward()
    assert latents.grad.abs().sum() > 0
    assert largest.numbers == 1280 * 2 ** 9


@pytest.mark.parametrize("bits", [0, 63])
def test_bits_that_no_token_holds_are_refused(bits):
    with pytest.raises(ValueError, match=f"{bits} bits; a token has 1 to 62"):
        LookupFreeQuantizer(bits)


def test_the_first_papers_network_takes_signs_for_codes():
    torch.manual_seed(0)
    config = LookupFreeConfig(base_channels=8, channel_multipliers=(1, 1, 2, 2), num_res_blocks=1,
                              norm_groups=4, bits=7)
    tokenizer = LookupFreeTokenizer(config)
    assert tokenizer.codebook_size == 128 and config.embedding_dim == 7
    clip = torch.rand(1, 3, 16, 32, 32)
    output = tokenizer(clip)
    assert output.tokens.max() < 128 and torch.equal(output.tokens, tokenizer.encode(clip))
    (output.reconstruction.square().mean() + output.entropy_loss).backward()
    assert all(p.grad is not None for p in tokenizer.parameters())
    decoded = tokenizer.decode(output.tokens)
    torch.testing.assert_close(decoded, output.reconstruction, atol=1e-4, rtol=1e-3)


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


def layer_of(name: str, found: dict, told: dict) -> nn.Module:
    """The block of blocks.npz, with its parameters."""
    config = CausalConfig(norm_groups=told.get("num_groups", 32), bits=told.get("emb_dim", 18))
    params = below(found, "params")
    if name.startswith("group_norm"):
        layer = FrameNorm(told["dim"], config)
        official2.group_norm(layer, params)
        return layer
    if name == "cond_norm":
        return official2.fill(AdaptiveNorm(told["dim"], config), {
            f"cond_norm_layers_0/{key}": value for key, value in params.items()}, "none")
    return official2.fill(ResidualBlock(told["input_dim"], told["output_dim"], config), {
        f"res_blocks_0/{key}": value for key, value in params.items()}, "none")


@pytest.mark.parametrize("name", [
    "group_norm_spatial", "group_norm_spatial_width_below_groups", "group_norm_spatial_32",
    "group_norm_spatial_small_variance", "cond_norm", "res_block_same", "res_block_skip"])
def test_a_block_is_googles_with_its_gradients(praxis, name, deviation):
    arrays = praxis("blocks")
    found = below(arrays, name)
    layer = layer_of(name, found, json.loads(str(arrays["config_json"]))[name])
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


@pytest.mark.parametrize("file", ["encoder_tiny", "encoder_g32"])
@pytest.mark.parametrize("what", ["clip", "image"])
def test_the_encoder_is_googles_and_so_is_every_token(praxis, file, what, deviation):
    arrays = praxis(file)
    encoder, found = official2.load_praxis_encoder(arrays), below(arrays, what)
    with torch.no_grad():
        latents = encoder(video(found["x"]))
    deviation(latents, video(found["z"]), ACTIVATIONS)
    tokens = LookupFreeQuantizer(latents.shape[1]).tokens(latents)
    assert np.array_equal(tokens.numpy(), found["ids"])


@pytest.mark.parametrize("file", ["decoder_tiny", "decoder_g32"])
@pytest.mark.parametrize("what", ["clip", "image"])
def test_the_decoder_is_googles(praxis, file, what, deviation):
    arrays = praxis(file)
    decoder, found = official2.load_praxis_decoder(arrays), below(arrays, what)
    codes = LookupFreeQuantizer(found["quantized"].shape[-1]).lookup(
        torch.from_numpy(found["ids"].astype(np.int64)))
    with torch.no_grad():
        deviation(decoder(codes), video(found["recon"]), ACTIVATIONS)


def test_the_sizes_have_as_many_parameters_as_googles():
    with torch.device("meta"):
        for config, count in ((CAUSAL_TOKENIZERS["appendix"], 376_003_221),
                              (CAUSAL_TOKENIZERS["base"], 57_813_333)):
            tokenizer = CausalTokenizer(config)
            assert sum(p.numel() for p in tokenizer.parameters()) == count
        assert sum(p.numel() for p in CausalTokenizer(replace(
            CAUSAL_TOKENIZERS["appendix"], image=True)).parameters()) == 113_053_845
        assert sum(p.numel() for p in BlurDiscriminator3d(DiscriminatorConfig(
            base_channels=128, resolution=(17, 128, 128))).parameters()) == 61_341_569


@pytest.fixture(scope="module")
def causal():
    torch.manual_seed(0)
    return CausalTokenizer(CAUSAL_TOKENIZERS["toy"]).eval()


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
    picture = causal.latents(clip[:, :, :1])
    torch.testing.assert_close(picture, causal.latents(clip)[:, :, :1], atol=1e-5, rtol=1e-4)
    tokens = causal.encode(clip)
    torch.testing.assert_close(causal.decode(tokens[:, :1]), causal.decode(tokens)[:, :, :1],
                               atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape, words", [
    ((16, 16, 16), "T=16 frames or pixels; this tokenizer needs 1 more than a multiple of 4"),
    ((17, 12, 16), "H=12 frames or pixels; this tokenizer needs a multiple of 8")])
def test_sizes_that_do_not_fit_are_refused(causal, shape, words):
    with pytest.raises(ValueError, match=words):
        causal.latents(torch.rand(1, 3, *shape))


# ---------------------------------------------------------------------------------------------
# Inflation into the last slice, and streams

@pytest.fixture
def twins(praxis):
    """The arrays, a 2D network with theirs, and its causal twin inflated into the last slice."""
    arrays = praxis("inflation_rule")
    config = official2.causal_config(arrays)
    image = CausalTokenizer(replace(config, image=True)).eval()
    official2.fill(image.encoder, below(arrays, "p2d/encoder"), "conv_downsample_layers")
    official2.fill(image.decoder, below(arrays, "p2d/decoder"), "conv_upsample_layers")
    return arrays, image, inflate(image.state_dict(), CausalTokenizer(config), "last").eval()


@torch.no_grad()
def test_a_picture_kernel_becomes_the_last_slice(twins, deviation):
    """Against the rule applied to google/praxis' network, layer by layer and in what comes out."""
    arrays, image, inflated = twins
    theirs = CausalTokenizer(inflated.config)
    official2.fill(theirs.encoder, below(arrays, "p3d/encoder"), "conv_downsample_layers")
    official2.fill(theirs.decoder, below(arrays, "p3d/decoder"), "conv_upsample_layers")
    for name, parameter in theirs.state_dict().items():
        assert torch.equal(parameter, inflated.state_dict()[name]), name
    clip = video(arrays["x"])
    latents = inflated.latents(clip)
    deviation(latents, video(arrays["z3d"]), ACTIVATIONS)
    codes = torch.where(latents >= 0, 1.0, -1.0)
    deviation(inflated.decoder(codes), video(arrays["recon3d"]), ACTIVATIONS)


@torch.no_grad()
def test_right_after_inflation_frames_0_4_8_are_the_pictures_and_held(twins):
    arrays, image, inflated = twins
    clip = video(arrays["x"])
    frames = clip[:, :, ::4]
    tokens = inflated.encode(clip)
    assert torch.equal(tokens, image.encode(frames))
    decoded, pictures = inflated.decode(tokens), image.decode(tokens)
    held = torch.cat([pictures[:, :, :1], pictures[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)
    torch.testing.assert_close(decoded, held, atol=1e-5, rtol=1e-4)


def test_networks_that_are_no_twins_are_not_inflated(causal):
    other = CausalTokenizer(replace(causal.config, image=True, base_channels=8))
    with pytest.raises(ValueError, match="give both networks the same sizes"):
        inflate(other.state_dict(), CausalTokenizer(causal.config), "last")
    with pytest.raises(ValueError, match="missing in 2D"):
        inflate({}, CausalTokenizer(causal.config), "last")


@pytest.mark.parametrize("sizes", [(17,), (1, 16), (5, 8, 4), (1, 4, 4, 4, 4), (13, 4)])
@torch.no_grad()
def test_a_stream_gives_the_whole_videos_tokens_and_pixels_however_it_is_cut(causal, sizes,
                                                                             generator):
    clip = torch.rand(2, 3, 17, 16, 24, generator=generator)
    whole = causal.encode(clip)
    pieces = list(encode_stream(causal, clip.split(sizes, dim=2)))
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    for cut in (pieces, whole.split(1, dim=1), whole.split((2, 3), dim=1)):
        decoded = list(decode_stream(causal, cut))
        assert len(decoded) == len(cut)
        torch.testing.assert_close(torch.cat(decoded, dim=2), causal.decode(whole), atol=1e-5,
                                   rtol=1e-4)
    assert torch.equal(causal.encode(clip), whole)                   # nothing is left of the stream


@torch.no_grad()
def test_a_file_of_tokens_takes_windows_of_17_frames(causal, tmp_path):
    """long_video.py, unchanged: each window by itself, the last frame repeated to fill it."""
    frames = (255 * np.random.default_rng(0).random((20, 16, 24, 3))).astype(np.uint8)
    header = encode_file(causal, frames, tmp_path / "out.tokens", window=17)
    assert (header["windows"], header["latent"], header["bits"]) == (2, [5, 2, 3], 10)
    _, tokens = read_tokens(tmp_path / "out.tokens", causal)
    first, second = tokens
    assert torch.equal(first, causal.encode(to_float(frames[None, :17]))[0])
    back = list(decode_long(causal, [first, second], count=20))
    assert len(back) == 20 and back[0].shape == (16, 24, 3)


def test_a_stream_remembers_only_what_a_window_covers(causal, generator):
    """However long it is: kernel less stride frames before each convolution."""
    held = []
    pieces = (torch.rand(1, 3, 1 if n == 0 else 4, 16, 16, generator=generator) for n in range(9))
    for _ in encode_stream(causal, pieces):
        held.append(sum(layer.past.numel() for layer in causal.encoder.modules()
                        if isinstance(layer, CausalConv)))
    assert len(held) == 9 and len(set(held)) == 1
    assert not any(layer.past is not None for layer in causal.modules()
                   if isinstance(layer, CausalConv))


def test_pieces_that_do_not_fit_are_refused(causal):
    with pytest.raises(ValueError, match="needs 1 more than a multiple of 4"):
        list(encode_stream(causal, [torch.rand(1, 3, 4, 16, 16)]))
    with pytest.raises(ValueError, match="needs 1 more than a multiple of 4"):
        list(encode_stream(causal, [torch.rand(1, 3, 5, 16, 16), torch.rand(1, 3, 3, 16, 16)]))


# ---------------------------------------------------------------------------------------------
# COMMIT on causal tokens

@pytest.mark.parametrize("T, t", [(1, 1), (5, 2), (9, 3), (17, 5)])
def test_the_first_supervoxel_is_one_frame_and_the_others_four(causal, T, t, generator):
    """ispad of 1 + 4k frames, by the slow rule: a supervoxel is padding where no pixel is given."""
    assert causal.lead == 3 and causal.latent_shape(T, 16, 16) == (t, 2, 2)
    valid = torch.rand(T, 16, 16, generator=generator) < 0.01
    is_pad = is_padding(valid, (t, 2, 2), causal.lead)
    for j in range(t):
        frames = valid[max(0, 4 * j - 3):4 * j + 1]
        for y in range(2):
            for x in range(2):
                given = frames[:, 8 * y:8 * y + 8, 8 * x:8 * x + 8].any()
                assert is_pad[j, y, x] == (not given)


@pytest.mark.parametrize("task", TASKS)
def test_the_ten_tasks_have_conditions_of_17_frames(causal, task, generator):
    clip = torch.rand(2, 3, 17, 32, 32, generator=generator)
    tokens, is_pad = tokenize_condition(causal, clip, task)
    assert tokens.shape == (2, 80) and is_pad.shape == (80,)
    assert is_pad.all() == (task == "CG") and (task == "CG" or is_pad.any())


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
    arrays, weights = below(praxis("vqgan_losses"), f"train/step{step}"), PRESETS["k600-v2"]
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


def test_the_entropy_weight_is_four_times_its_own_at_first_and_once_after_2000_steps():
    """App. A.2: annealing factor 3, 2,000 steps, as the first paper's code reads it: added."""
    config = replace(PRESETS["k600-v2"], tokenizer=TINY, frames=5, resolution=16,
                     adversarial_weight=0.0, precision="float32")
    trainee, clip = build(config, "tokenizer"), torch.rand(2, 3, 5, 16, 16)
    for step, times in ((0, 4.0), (1000, 2.5), (2000, 1.0), (90_000, 1.0)):
        trainee.step = step
        terms = tokenizer_pass(trainee, clip, 1.0, config)
        rest = (5 * terms["reconstruction"] + 0.25 * terms["commitment"] + terms["codebook"])
        torch.testing.assert_close(terms["loss"] - rest, 0.1 * times * terms["entropy"],
                                   rtol=1e-4, atol=1e-5)


def test_the_presets_of_the_sequel_are_the_appendixs():
    config = PRESETS["k600-v2"]
    networks = without_weights(lambda: build_networks(config, "tokenizer"))
    counts = {name: sum(p.numel() for p in networks[name].parameters())
              for name in ("tokenizer", "discriminator")}
    assert counts == dict(tokenizer=376_003_221, discriminator=61_341_569)
    assert type(networks["discriminator"]) is BlurDiscriminator3d
    image = without_weights(lambda: build_networks(config, "image"))
    assert all(p.is_meta for p in image["tokenizer"].parameters())
    assert sum(p.numel() for p in image["tokenizer"].parameters()) == 113_053_845
    assert (config.tokenizer_batch, config.tokenizer_epochs, config.transformer_epochs) == (
        256, 190, 360)
    assert (config.decode_schedule, config.decode_temperature) == ("cosine", 32)
    assert networks["tokenizer"].latent_shape(*config.clip_shape) == (5, 16, 16)


@pytest.mark.parametrize("size, temperature, count", [(256, 15, 116_274_709),
                                                      (512, 30, 119_495_573)])
def test_the_presets_of_pictures_are_the_appendixs(size, temperature, count):
    config = PRESETS[f"imagenet{size}-v2"]
    tokenizer = without_weights(lambda: build_tokenizer(config.tokenizer_config()))
    assert sum(p.numel() for p in tokenizer.parameters()) == count
    assert tokenizer.latent_shape(*config.clip_shape) == (1, 16, 16) and tokenizer.lead == 0
    assert (config.tokenizer_epochs, config.tokenizer_batch) == (270, 256)
    assert (config.transformer_epochs, config.transformer_batch) == (1080, 1024)
    assert (config.crop, config.flip, config.class_dropout) == (0.8, True, 0.1)
    assert (config.decode_steps, config.decode_temperature) == (64, temperature)


def test_a_masked_model_of_pictures_learns_from_a_folder_of_them(tmp_path, monkeypatch):
    for name in ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(int(name[4])).integers(255, size=(40, 50, 3))
        imageio.imwrite(tmp_path / "in" / name, picture.astype(np.uint8))
    flags = (f"toy-v2 --data {tmp_path / 'in'} --layout images --frames 1 --crop 0.8 --tasks CG "
             "--class-dropout 0.1 --tokenizer-steps 2 --transformer-steps 2 --tokenizer-warmup 1 "
             f"--transformer-warmup 1 --token-pool 4 --out {tmp_path / 'out'}").split()
    monkeypatch.setattr("sys.argv", ["train.py", *flags, "--inflate", "", "--transformer",
                                     "v2 toy"])
    main()
    run = load_run(tmp_path / "out")
    assert run.class_names == ["cat", "dog"] and run.transformer.config.num_tokens == 16
    made = generate(run.tokenizer, run.transformer, torch.zeros(2, 3, 1, 32, 32), "CG",
                    torch.tensor([0, 1]), steps=2, guidance_scale=power_cosine(24.0, 3.0))
    assert made.shape == (2, 3, 1, 32, 32)
    monkeypatch.setattr("sys.argv", ["train.py", "toy-v2", "--data", "in", "--layout", "images"])
    with pytest.raises(SystemExit):
        main()


@pytest.mark.parametrize("name", ["v2 huge", "v3 toy"])
def test_an_unknown_size_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match="choose from B, L, .*v2 appendix, v2 base, v2 toy"):
        replace(PRESETS["toy-v2"], tokenizer=name).tokenizer_config()


def test_pictures_then_video_then_ten_tasks_in_one_command(tmp_path):
    """train.py toy-v2, a few steps of each: 2D first, inflated, stopped and resumed on the way."""
    config = replace(PRESETS["toy-v2"], tokenizer=TINY, adversarial_weight=0.1,
                     discriminator=BlurConfig(base_channels=4, channel_multipliers=(1, 1)),
                     tokenizer_steps=2, transformer_steps=2, token_pool=8, tokenizer_warmup=1,
                     transformer_warmup=1, decode_steps=2, transformer=replace(
                         TRANSFORMERS["toy"], hidden_size=16, num_layers=1, mlp_size=16))
    seen = []
    train(config, DataConfig(dataset="shapes"), tmp_path, draw=False,
          on_step=lambda stage, step, terms: seen.append((str(stage), step)))
    assert seen == [(stage, step) for stage in ("image", "tokenizer", "transformer")
                    for step in (0, 1)]
    image, tokenizer = (load_network(load_checkpoint(tmp_path / f"{name}.pt"))
                        for name in ("image", "tokenizer"))
    assert image.config == replace(TINY, image=True) and tokenizer.config == TINY
    report(tmp_path, clips=2, samples=4)
    assert (tmp_path / "samples.gif").stat().st_size
    assert train(config, DataConfig(dataset="shapes"), tmp_path, draw=False)     # all is finished
    clip, _ = load_batch(MovingShapes("test", 17), 0, 2, seed=0)
    run = load_run(tmp_path)
    for task in TASKS:
        made = generate(run.tokenizer, run.transformer, clip, task,
                        **run.how(task, torch.zeros(2).long()), **run.config.decoding)
        assert made.shape == clip.shape


def test_a_network_that_has_no_picture_twin_says_so():
    with pytest.raises(ValueError, match="no 2D tokenizer for a LookupFreeConfig"):
        build_tokenizer(LookupFreeConfig(), image=True)


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
    twin = published.PublishedTokenizer(replace(image.config, image=False)).eval()
    ours = inflate(image.state_dict(), twin, "last").state_dict()
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


@pytest.mark.parametrize("case", ["S5", "T1", "T9", "T17", "T33", "odd"])
@torch.no_grad()
def test_a_published_video_tokenizer_computes_open_magvit2s(case, deviation):
    arrays = open_arrays("omagvit2_video_tiny.npz")
    tokenizer, found = published.load(open_state(arrays), "video"), below(arrays_of(arrays), case)
    latents = tokenizer.encoder(torch.from_numpy(found["x"]))           # pixels in [-1, 1]
    deviation(latents, found["z"], 2e-5)
    tokens = tokenizer.quantizer.tokens(latents)
    assert np.array_equal(tokens.numpy(), found["idx"])
    deviation(tokenizer.decoder(tokenizer.quantizer.lookup(tokens)), found["recon"], 2e-5)
    clip = (torch.from_numpy(found["x"]) + 1) / 2                       # pixels in [0, 1]
    if case != "odd":
        assert torch.equal(tokenizer.encode(clip), tokens)
        deviation(2 * tokenizer.decode(tokens) - 1, found["recon"], 2e-5)


@pytest.mark.parametrize("case", ["r128/S16", "r128/I32", "r128/I64x48", "r256/I64"])
@torch.no_grad()
def test_a_published_image_tokenizer_computes_open_magvit2s(case, deviation):
    arrays = open_arrays("omagvit2_image_tiny.npz")
    tokenizer = published.load(open_state(arrays, case[:5]), "image")
    found = {key: torch.from_numpy(value)[:, :, None] if value.ndim == 4 else value
             for key, value in below(arrays_of(arrays), case).items() if "/" not in key}
    frame = (found["x"] + 1) / 2
    deviation(tokenizer.latents(frame), found["z"], 2e-5)
    tokens = tokenizer.encode(frame)
    assert np.array_equal(tokens[:, 0].numpy(), found["idx"])
    deviation(2 * tokenizer.decode(tokens) - 1, found["recon"], 2e-5)
    twice = tokenizer.encode(frame.repeat(1, 1, 2, 1, 1))               # each frame alone
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


def test_averaged_weights_are_preferred_and_other_files_are_refused(tmp_path):
    state = open_state(open_arrays("omagvit2_video_tiny.npz"))
    name = "encoder.conv_out.conv_1.bias"
    averaged = state | {"model_ema." + name.replace(".", ""): state[name] + 1}
    torch.save(dict(state_dict=averaged), tmp_path / "video.ckpt")
    tokenizer = published.load(tmp_path / "video.ckpt", "video")
    assert torch.equal(tokenizer.encoder.last[-1].bias, state[name] + 1)
    with pytest.raises(ValueError, match="kind .audio. is unknown; choose video or image"):
        published.load(state, "audio")
    with pytest.raises(ValueError, match="these are no weights of an Open-MAGVIT2 image tokenizer"):
        published.load(state, "image")
    with pytest.raises(ValueError, match="decoder.up.0.block.0.norm1.weight is missing"):
        published.load({key: value for key, value in state.items()
                        if key != "decoder.up.0.block.0.norm1.weight"}, "video")
    with pytest.raises(ValueError, match=r"is \(10, 1\); wanted \(10,\)"):
        published.load(state | {name: state[name][:, None]}, "video")
    torch.save(dict(state_dict=state, code=CausalTokenizer), tmp_path / "code.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only|Weights only"):
        published.load(tmp_path / "code.ckpt", "video")


def test_encoder_and_decoder_together_are_the_tokenizer(causal, generator):
    clip = torch.rand(1, 3, 5, 16, 16, generator=generator)
    assert isinstance(causal.encoder, Encoder) and isinstance(causal.decoder, Decoder)
    output = causal(clip)
    assert torch.equal(output.tokens, causal.encode(clip))
    torch.testing.assert_close(output.reconstruction, causal.decode(output.tokens), atol=1e-5,
                               rtol=1e-4)

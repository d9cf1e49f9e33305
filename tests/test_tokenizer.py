"""tokenizer.py: Sec. 3.1 (3D-VQ, inflation, padding), App. A.1 (architecture), App. B.2 (sizes)."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokenizer import (TOKENIZERS, ImageTokenizer, TokenizerConfig, Upsample, VectorQuantizer,
                       VideoTokenizer, entropy_loss, inflate)

TINY = TokenizerConfig(base_channels=8, channel_multipliers=(1, 2), temporal_downsample=(True,),
                       num_res_blocks=1, codebook_size=12, embedding_dim=6, norm_groups=4)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return TINY.build()


@pytest.fixture
def video(generator):
    return torch.rand(2, 3, 8, 12, 16, generator=generator)


@pytest.fixture
def latents(generator):
    return torch.randn(2, 6, 2, 3, 4, generator=generator, requires_grad=True)


# ---------------------------------------------------------------------------------------------
# Architecture (App. A.1) and sizes (App. B.2)

@pytest.mark.parametrize("size, three_d, two_d", [
    ("B", 40_579_843, 13_809_667), ("L", 157_811_971, 53_104_387),
    ("B-64px", 36_596_355, None), ("L-64px", 141_882_371, None)])
def test_app_b2_the_sizes_have_the_official_number_of_parameters(size, three_d, two_d):
    config = TOKENIZERS[size]
    for network, expected in ((config, three_d), (config.image_twin(), two_d)):
        with torch.device("meta"):
            count = sum(p.numel() for p in network.build().parameters())
        assert expected is None or count == expected


def test_a_configuration_builds_its_network_and_has_a_2d_twin():
    twin = TINY.image_twin()
    assert type(TINY.build()) is VideoTokenizer and type(twin.build()) is ImageTokenizer
    assert twin == twin.image_twin() == ImageTokenizer(TINY).config
    assert twin.kernel == (1, 3, 3) and twin.strides == [(1, 2, 2)]


@pytest.mark.parametrize("size, side", [("B", 128), ("B-64px", 64)])
def test_sec_4_1_a_clip_of_16_frames_becomes_4x16x16_tokens(size, side):
    narrow = replace(TOKENIZERS[size], base_channels=4, num_res_blocks=1, norm_groups=4,
                     embedding_dim=8).build()
    with torch.no_grad():
        latents = narrow.latents(torch.rand(1, 3, 16, side, side))
        assert latents.shape == (1, 8, *narrow.latent_shape(16, side, side)) == (1, 8, 4, 16, 16)
        assert narrow.decoder(latents).shape == (1, 3, 16, side, side)


def test_app_a1_3d_sampling_is_in_the_shallow_stages_2d_in_the_deep_ones():
    with torch.device("meta"):
        tokenizer = TOKENIZERS["B"].build()
    down, up = ([layer.stride for layer in part if isinstance(layer, (nn.AvgPool3d, Upsample))]
                for part in (tokenizer.encoder, tokenizer.decoder))
    assert down == up[::-1] == [(2, 2, 2), (2, 2, 2), (1, 2, 2)]


@pytest.mark.parametrize("kind", [VideoTokenizer, ImageTokenizer])
def test_encode_and_decode_compute_what_the_training_pass_does(kind, video):
    torch.manual_seed(0)
    tokenizer, formats = kind(TINY), []
    for network in (tokenizer.encoder, tokenizer.decoder):
        network.register_forward_pre_hook(lambda _, given: formats.append(
            given[0].is_contiguous(memory_format=torch.channels_last_3d)))
    output, latents = tokenizer(video), tokenizer.latents(video.requires_grad_())
    assert torch.equal(tokenizer.encode(video), output.tokens)
    assert torch.equal(tokenizer.quantizer.tokens(latents), output.tokens)
    assert output.tokens.shape == (2, *tokenizer.latent_shape(8, 12, 16))
    torch.testing.assert_close(tokenizer.decode(output.tokens), output.reconstruction)
    latents.square().sum().backward()
    assert video.grad.any() and tokenizer.quantizer.codebook.grad is None
    assert all(formats)                                     # the layout that is twice as fast


def test_recomputing_activations_changes_no_gradient(tokenizer, video):
    gradients = []
    for recompute in (False, True):
        tokenizer.zero_grad()
        tokenizer.encoder.recompute = tokenizer.decoder.recompute = recompute
        F.mse_loss(tokenizer(video).reconstruction, video).backward()
        gradients.append(tokenizer.encoder[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------------------------------------
# Quantization (Sec. 3.1; van den Oord et al. 2017), and where each gradient goes

def test_a_token_is_the_nearest_code_and_its_embedding_that_code(latents):
    quantizer = VectorQuantizer(TINY)
    quantized, codes = quantizer(latents), quantizer.codebook
    for b, t, h, w in [(0, 0, 0, 0), (1, 1, 2, 3), (0, 1, 1, 2)]:
        distances = (latents[b, :, t, h, w] - codes).square().sum(1)
        assert quantized.tokens[b, t, h, w] == distances.argmin()
        torch.testing.assert_close(quantized.embeddings[b, :, t, h, w], codes[distances.argmin()])


def test_the_gradient_of_the_embeddings_goes_straight_through_to_the_latents(latents, generator):
    weight = torch.randn(latents.shape, generator=generator)
    (VectorQuantizer(TINY)(latents).embeddings * weight).sum().backward()
    torch.testing.assert_close(latents.grad, weight)


def test_commitment_and_codebook_losses_are_means_over_every_element(latents):
    quantizer = VectorQuantizer(TINY)
    quantized = quantizer(latents)
    codes = quantizer.lookup(quantized.tokens)
    (quantized.commitment_loss + quantized.codebook_loss).backward()
    pull = (2 * (latents - codes) / latents.numel()).detach()
    torch.testing.assert_close(latents.grad, pull)
    torch.testing.assert_close(quantizer.codebook.grad.sum(0), -pull.sum((0, 2, 3, 4)))


@pytest.mark.parametrize("loss, parts", [
    ("commitment_loss", {"encoder"}), ("codebook_loss", {"quantizer"}),
    ("entropy_loss", {"encoder", "quantizer"}), ("reconstruction", {"encoder", "decoder"})])
def test_each_loss_reaches_its_parts_of_the_network_and_no_others(tokenizer, video, loss, parts):
    getattr(tokenizer(video), loss).square().mean().backward()
    assert parts == {name.partition(".")[0] for name, parameter in tokenizer.named_parameters()
                     if parameter.grad is not None and parameter.grad.any()}


@pytest.mark.parametrize("distances, expected", [
    (100 * (1 - torch.eye(4)), -torch.tensor(4.0).log().item()),       # sure, all codes in use
    (100 * (1 - torch.eye(4)[[0, 0, 0, 0]]), 0),                       # collapsed to one code
    (torch.zeros(4, 4), 0)])                                           # undecided
def test_the_entropy_loss_is_lowest_where_tokens_are_sure_and_all_codes_in_use(distances, expected):
    assert entropy_loss(distances, 1.0).item() == pytest.approx(expected, abs=1e-3)


# ---------------------------------------------------------------------------------------------
# Padding, 2D, inflation (Sec. 3.1)

@pytest.mark.parametrize("padding, mode", [("reflect", "reflect"), ("zeros", "constant")])
def test_convolutions_pad_as_the_configuration_says(padding, mode, generator):
    x = torch.randn(1, 3, 4, 6, 6, generator=generator)
    layer = replace(TINY, padding=padding).build().encoder[0]
    torch.testing.assert_close(layer(x), F.conv3d(F.pad(x, (1,) * 6, mode=mode), layer.weight))


@pytest.mark.parametrize("padding, one_token", [("reflect", True), ("zeros", False)])
def test_sec_3_1_reflect_padding_gives_the_same_content_the_same_token_anywhere(padding, one_token):
    torch.manual_seed(1)
    tokenizer = replace(TINY, padding=padding, codebook_size=512).build()
    assert (len(tokenizer.encode(torch.full((1, 3, 8, 16, 16), 0.7)).unique()) == 1) == one_token


def test_the_2d_tokenizer_sees_each_frame_alone(video):
    torch.manual_seed(0)
    tokenizer, changed = ImageTokenizer(TINY), video.clone()
    changed[:, :, 3] = 0
    same = (tokenizer.encode(video) == tokenizer.encode(changed)).all(dim=(2, 3))[0]
    assert same.tolist() == [t != 3 for t in range(8)]
    torch.testing.assert_close(tokenizer(video).reconstruction[:, :, 5:6],
                               tokenizer(video[:, :, 5:6]).reconstruction)


@pytest.mark.parametrize("mode", ["central", "average"])
def test_sec_3_1_inflation_starts_3d_from_2d(mode, video):
    """Central: at first each frame is alone. Average: that is so of still videos only."""
    torch.manual_seed(0)
    two_d, three_d = ImageTokenizer(TINY), VideoTokenizer(TINY)
    assert inflate(two_d.state_dict(), three_d, mode) is three_d
    still = video[:, :, :1].expand(-1, -1, 8, -1, -1)
    frames, stills = (three_d.encoder[0](x) - two_d.encoder[0](x) for x in (video, still))
    assert (frames.abs().max() < 1e-5) == (mode == "central")
    assert stills.abs().max() < 1e-5 or mode == "central"
    for name, tensor in three_d.state_dict().items():           # a kernel's sum over time is kept
        kept = tensor.sum(2, keepdim=True) if tensor.ndim == 5 else tensor
        torch.testing.assert_close(kept, two_d.state_dict()[name])


# ---------------------------------------------------------------------------------------------
# What is refused, each in one line

@pytest.mark.parametrize("shape, complaint", [
    ((1, 3, 7, 12, 16), "T=7 .* multiple of 2"), ((1, 3, 8, 13, 16), "H=13 .* multiple of 2"),
    ((1, 3, 8, 12, 15), "W=15"), ((1, 3, 2, 12, 16), "latent t=1; reflect padding needs"),
    ((1, 1, 8, 12, 16), r"wanted floats \(B, 3, T, H, W\)"), ((3, 8, 12, 16), "wanted")])
def test_a_video_that_does_not_fit_is_refused(tokenizer, shape, complaint):
    for use in (tokenizer.encode, tokenizer.latents, tokenizer):
        with pytest.raises(ValueError, match=complaint):
            use(torch.zeros(shape))


@pytest.mark.parametrize("change, found", [
    (lambda x: x * 255, "float32 from 0 to 255"), (lambda x: x * 2 - 1, "float32 from -1 to 1"),
    (lambda x: (x * 255).byte(), "uint8 from 0 to 255"), (lambda x: x - 0.07, "from -0.07 to 0.93"),
    (lambda x: x + 0.07, "to 1.07"), (lambda x: x / 0, "from nan to nan")])
def test_encode_refuses_pixels_that_are_not_in_0_to_1_and_names_their_range(tokenizer, change,
                                                                            found):
    video = torch.linspace(0, 1, 3 * 8 * 12 * 16).view(1, 3, 8, 12, 16)
    with pytest.raises(ValueError, match=f"{found}; wanted floats in"):
        tokenizer.encode(change(video))


def test_resampled_pixels_may_overshoot_by_a_sixteenth_and_training_does_not_look(tokenizer, video):
    tokenizer.encode(video * 1.125 - 0.0625)
    tokenizer(video * 255)
    for use in (tokenizer.latents, tokenizer):
        with pytest.raises(ValueError, match="video is torch.uint8"):
            use((video * 255).byte())


@pytest.mark.parametrize("bad", [-1, 12])
def test_a_token_out_of_range_is_refused(tokenizer, bad):
    tokens = torch.zeros(1, 4, 6, 8, dtype=torch.long)
    tokens[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="the codebook has 0 to 11"):
        tokenizer.decode(tokens)


def test_a_wrong_configuration_is_refused():
    with pytest.raises(ValueError, match="give 1"):
        replace(TINY, temporal_downsample=(True, True))
    with pytest.raises(ValueError, match="choose 'reflect' or 'zeros'"):
        replace(TINY, padding="same")


@pytest.mark.parametrize("of, changes, mode, complaint", [
    (TINY, dict(base_channels=16), "central", "same sizes"),
    (None, {}, "central", "missing in 2D"),
    (TINY, {}, "mean", "'mean'; choose 'central' or 'average'"),
    (TINY, {}, "last", "choose 'central' or 'average'")])
def test_an_inflation_that_cannot_be_is_refused(of, changes, mode, complaint):
    state = ImageTokenizer(of).state_dict() if of else {}
    with pytest.raises(ValueError, match=complaint):
        inflate(state, replace(TINY, **changes).build(), mode)

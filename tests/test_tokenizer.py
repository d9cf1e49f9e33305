"""tokenizer.py: Sec. 3.1, App. A.1."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from magvit2.causal_tokenizer import CAUSAL_TOKENIZERS, CausalTokenizer
from tokenizer import (TOKENIZERS, ImageTokenizer, TokenizerConfig, Upsample, VectorQuantizer,
                       VideoTokenizer, entropy_loss, inflate)

TINY = TokenizerConfig(base_channels=8, channel_multipliers=(1, 2), temporal_downsample=(True,),
                       num_res_blocks=1, codebook_size=12, embedding_dim=6, norm_groups=4)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VideoTokenizer(TINY)


@pytest.fixture
def video(generator):
    return torch.rand(2, 3, 8, 12, 16, generator=generator)


def count(network, config):
    with torch.device("meta"):
        return sum(p.numel() for p in network(config).parameters())


@pytest.mark.parametrize("size, video, image", [
    ("B", 40_579_843, 13_809_667), ("L", 157_811_971, 53_104_387),
    ("B-64px", 36_596_355, None), ("L-64px", 141_882_371, None)])
def test_parameter_counts_are_the_official_ones_to_the_unit(size, video, image):
    assert count(VideoTokenizer, TOKENIZERS[size]) == video
    assert image is None or count(ImageTokenizer, TOKENIZERS[size]) == image


def test_a_16x128x128_clip_becomes_4x16x16_tokens_and_64px_too():
    for size, side in (("B", 128), ("B-64px", 64)):
        with torch.device("meta"):
            tokenizer = VideoTokenizer(TOKENIZERS[size])
            latents = tokenizer.encoder(torch.empty(1, 3, 16, side, side))
            assert latents.shape == (1, 256, 4, 16, 16)
            assert tokenizer.decoder(latents).shape == (1, 3, 16, side, side)
        assert tokenizer.latent_shape(16, side, side) == (4, 16, 16)


def test_3d_down_sampling_comes_first_in_the_encoder_and_last_in_the_decoder():
    with torch.device("meta"):
        tokenizer = VideoTokenizer(TOKENIZERS["B"])
    strides = {part: [layer.stride for layer in getattr(tokenizer, part)
                      if isinstance(layer, (nn.AvgPool3d, Upsample))]
               for part in ("encoder", "decoder")}
    assert strides["encoder"] == [(2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert strides["decoder"] == strides["encoder"][::-1]


@pytest.mark.parametrize("make, config, frames", [
    (VideoTokenizer, TOKENIZERS["toy"], 16), (ImageTokenizer, TOKENIZERS["toy"], 16),
    (CausalTokenizer, CAUSAL_TOKENIZERS["toy"], 17)])
def test_every_network_is_entered_in_the_one_memory_format(make, config, frames, generator):
    tokenizer, formats = make(config), []
    for network in (tokenizer.encoder, tokenizer.decoder):
        network.register_forward_pre_hook(lambda _, given: formats.append(
            given[0].is_contiguous(memory_format=torch.channels_last_3d)))
    tokenizer.decode(tokenizer.encode(torch.rand(2, 3, frames, 32, 32, generator=generator)))
    assert formats == [True, True]


def test_encode_and_decode_agree_with_the_training_pass(tokenizer, video):
    output = tokenizer(video)
    assert torch.equal(tokenizer.encode(video), output.tokens)
    torch.testing.assert_close(tokenizer.decode(output.tokens), output.reconstruction)
    assert output.tokens.shape == (2, *tokenizer.latent_shape(8, 12, 16)) == (2, 4, 6, 8)


@pytest.mark.parametrize("kind", [VideoTokenizer, ImageTokenizer])
@pytest.mark.parametrize("half", [False, True])
def test_pooling_without_gradient_gives_the_bits_of_pooling_with_it(kind, half, video):
    encoder = kind(TINY).encoder
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        pooled, again = encoder(video), torch.no_grad()(encoder)(video)
    assert torch.equal(pooled, again) and pooled.stride() == again.stride()


@pytest.mark.parametrize("kind", [VideoTokenizer, ImageTokenizer])
def test_latents_are_what_encode_quantizes_and_have_gradients(kind, video):
    torch.manual_seed(0)
    tokenizer = kind(TINY)
    latents = tokenizer.latents(video.requires_grad_())
    assert latents.shape == (2, 6, *tokenizer.latent_shape(8, 12, 16))
    assert torch.equal(tokenizer.quantizer.tokens(latents), tokenizer.encode(video))
    latents.square().sum().backward()
    assert video.grad.abs().sum() > 0 and tokenizer.encoder[0].weight.grad.abs().sum() > 0
    assert tokenizer.quantizer.codebook.grad is None


def test_tokens_are_the_nearest_codes(generator):
    quantizer = VectorQuantizer(TINY)
    latents = torch.randn(2, 6, 2, 3, 4, generator=generator)
    tokens = quantizer.tokens(latents)
    for b, t, h, w in [(0, 0, 0, 0), (1, 1, 2, 3), (0, 1, 1, 2)]:
        distances = [(latents[b, :, t, h, w] - code).square().sum() for code in quantizer.codebook]
        assert tokens[b, t, h, w] == torch.stack(distances).argmin()


def test_the_entropy_loss_is_lowest_when_sure_and_balanced():
    far = 100.0
    balanced = far * (1 - torch.eye(4))                       # each position has its own code
    collapsed = far * torch.ones(4, 4)
    collapsed[:, 0] = 0                                       # all positions have the first one
    undecided = torch.zeros(4, 4)
    losses = [entropy_loss(d, 1.0).item() for d in (balanced, collapsed, undecided)]
    assert losses[0] == pytest.approx(-torch.tensor(4.0).log().item(), abs=1e-3)
    assert losses[1] == pytest.approx(0, abs=1e-3) and losses[2] == pytest.approx(0, abs=1e-3)


# ---------------------------------------------------------------------------------------------
# Where each gradient goes

def reaches(loss, tokenizer):
    """The parts of the tokenizer that get gradient from a loss."""
    tokenizer.zero_grad()
    loss.backward(retain_graph=True)
    return {part for part in ("encoder", "quantizer", "decoder")
            if any(p.grad is not None and p.grad.abs().sum() > 0
                   for p in getattr(tokenizer, part).parameters())}


def test_commitment_reaches_the_encoder_only(tokenizer, video):
    assert reaches(tokenizer(video).commitment_loss, tokenizer) == {"encoder"}


def test_the_codebook_term_reaches_the_codebook_only(tokenizer, video):
    assert reaches(tokenizer(video).codebook_loss, tokenizer) == {"quantizer"}


def test_the_entropy_term_reaches_encoder_and_codebook(tokenizer, video):
    assert reaches(tokenizer(video).entropy_loss, tokenizer) == {"encoder", "quantizer"}


def test_reconstruction_passes_straight_through_to_the_encoder_not_the_codebook(tokenizer, video):
    loss = F.mse_loss(tokenizer(video).reconstruction, video)
    assert reaches(loss, tokenizer) == {"encoder", "decoder"}


def test_the_straight_through_gradient_is_that_of_the_embeddings(generator):
    quantizer = VectorQuantizer(TINY)
    latents = torch.randn(1, 6, 2, 2, 2, generator=generator, requires_grad=True)
    weight = torch.randn(1, 6, 2, 2, 2, generator=generator)
    embeddings = quantizer(latents).embeddings
    (embeddings * weight).sum().backward()
    torch.testing.assert_close(latents.grad, weight)
    torch.testing.assert_close(embeddings, quantizer.lookup(quantizer.tokens(latents)))


def test_commitment_and_codebook_losses_are_means_over_every_element(generator):
    quantizer = VectorQuantizer(TINY)
    latents = torch.randn(1, 6, 2, 2, 2, generator=generator, requires_grad=True)
    quantized = quantizer(latents)
    codes = quantizer.lookup(quantized.tokens)
    (quantized.commitment_loss + quantized.codebook_loss).backward()
    torch.testing.assert_close(latents.grad, 2 * (latents - codes).detach() / latents.numel())
    torch.testing.assert_close(quantizer.codebook.grad.sum(0),
                               (2 * (codes - latents) / latents.numel()).sum((0, 2, 3, 4)).detach())


# ---------------------------------------------------------------------------------------------
# Padding, 2D, inflation

def test_reflect_padding_reflects_and_zero_padding_does_not(generator):
    x = torch.randn(1, 3, 4, 6, 6, generator=generator)
    for padding in ("reflect", "zeros"):
        torch.manual_seed(0)
        layer = VideoTokenizer(replace(TINY, padding=padding)).encoder[0]
        mode = "constant" if padding == "zeros" else "reflect"
        expected = F.conv3d(F.pad(x, (1,) * 6, mode=mode), layer.weight)
        torch.testing.assert_close(layer(x), expected)


def test_a_constant_video_has_one_token_everywhere_with_reflect_padding_only():
    """Sec. 3.1: reflect padding gives the same content the same token at any location."""
    video = torch.full((1, 3, 8, 16, 16), 0.7)
    for padding, distinct in (("reflect", True), ("zeros", False)):
        torch.manual_seed(1)
        tokenizer = VideoTokenizer(replace(TINY, padding=padding, codebook_size=512))
        assert (len(tokenizer.encode(video).unique()) == 1) == distinct


def test_the_2d_tokenizer_sees_each_frame_alone(video):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(TINY)
    changed = video.clone()
    changed[:, :, 3] = 0
    same = (tokenizer.encode(video) == tokenizer.encode(changed)).all(dim=(2, 3))[0]
    assert tokenizer.latent_shape(8, 12, 16) == (8, 6, 8)
    assert same.tolist() == [t != 3 for t in range(8)]
    torch.testing.assert_close(tokenizer(video).reconstruction[:, :, 5:6],
                               tokenizer(video[:, :, 5:6]).reconstruction)


def networks(padding="reflect"):
    torch.manual_seed(0)
    config = replace(TINY, padding=padding)
    return ImageTokenizer(config), VideoTokenizer(config)


def test_central_inflation_acts_on_each_frame_alone(video):
    """The first layer of the inflated network gives the 2D network's output, frame by frame."""
    two_d, three_d = networks()
    inflate(two_d.state_dict(), three_d, "central")
    torch.testing.assert_close(three_d.encoder[0](video), two_d.encoder[0](video))


def test_average_inflation_agrees_with_2d_on_a_still_video(video):
    two_d, three_d = networks()
    inflate(two_d.state_dict(), three_d, "average")
    still = video[:, :, :1].expand(-1, -1, 8, -1, -1)
    torch.testing.assert_close(three_d.encoder[0](still), two_d.encoder[0](still))
    assert not torch.allclose(three_d.encoder[0](video), two_d.encoder[0](video))


@pytest.mark.parametrize("mode", ["central", "average"])
def test_inflation_keeps_the_sum_over_time_and_copies_the_rest(mode):
    two_d, three_d = networks()
    inflate(two_d.state_dict(), three_d, mode)
    for name, tensor in two_d.state_dict().items():
        inflated = three_d.state_dict()[name]
        if inflated.ndim == 5:
            inflated = inflated.sum(2, keepdim=True)
        torch.testing.assert_close(inflated, tensor)


def test_inflation_refuses_a_network_that_is_no_twin():
    two_d, _ = networks()
    with pytest.raises(ValueError, match="same sizes"):
        inflate(two_d.state_dict(), VideoTokenizer(replace(TINY, base_channels=16)))
    with pytest.raises(ValueError, match="missing in 2D: that network is not its twin"):
        inflate({}, VideoTokenizer(TINY))
    with pytest.raises(ValueError, match="'mean'; choose 'central', 'average', or 'last'"):
        inflate(two_d.state_dict(), VideoTokenizer(TINY), "mean")


# ---------------------------------------------------------------------------------------------
# Refusals, in one line each

@pytest.mark.parametrize("shape, complaint", [
    ((1, 3, 7, 12, 16), "T=7 .* multiple of 2"), ((1, 3, 8, 13, 16), "H=13 .* multiple of 2"),
    ((1, 3, 8, 12, 15), "W=15"), ((1, 3, 2, 12, 16), "latent t=1; reflect padding needs"),
    ((1, 1, 8, 12, 16), r"wanted \(B, 3, T, H, W\)"), ((3, 8, 12, 16), "wanted")])
def test_a_video_that_does_not_fit_is_refused(tokenizer, shape, complaint):
    with pytest.raises(ValueError, match=complaint):
        tokenizer.encode(torch.zeros(shape))


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


def test_recomputing_activations_changes_no_gradient(tokenizer, video):
    gradients = []
    for recompute in (False, True):
        tokenizer.zero_grad()
        tokenizer.encoder.recompute = tokenizer.decoder.recompute = recompute
        F.mse_loss(tokenizer(video).reconstruction, video).backward()
        gradients.append(tokenizer.encoder[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_gradients_repeat_to_the_bit_under_bfloat16(padding, generator):
    """Also with two latent frames and zeros around them, where oneDNN's do not."""
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(replace(TINY, base_channels=16, padding=padding))
    video, gradients = torch.rand(2, 3, 4, 12, 16, generator=generator), []
    for _ in range(10):
        torch.full((100_000,), torch.nan)                   # what the next one finds in memory
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.mse_loss(tokenizer(video).reconstruction, video)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(
            loss, list(tokenizer.decoder.parameters()))]))
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)

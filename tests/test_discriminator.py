"""discriminator.py: Sec. 3.1 Training, App. B.2."""
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from discriminator import (DISCRIMINATORS, Discriminator2d, Discriminator3d, DiscriminatorConfig,
                           LeCam, discriminator_loss, generator_loss, pool_by_two,
                           r1_penalty)
from magvit2.blur_discriminator import BlurConfig, BlurDiscriminator3d
from tokenizer import inflate
from training.small_kernels import Conv3d, small_kernels

TINY = DiscriminatorConfig(base_channels=4, channel_multipliers=(2, 2), resolution=(4, 8, 8))


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return Discriminator3d(TINY)


@pytest.fixture
def clips(generator):
    return torch.rand(2, 3, 3, 4, 8, 8, generator=generator)          # real, fake: B = 3


@pytest.mark.parametrize("size, three_d, two_d", [
    ("B", 15_339_457, 5_972_545), ("L", 61_341_569, 23_880_833), ("B-64px", 11_734_465, None),
    ("L-64px", 46_922_625, None)])
def test_parameter_counts_are_the_official_ones_to_the_unit(size, three_d, two_d):
    for network, expected in ((Discriminator3d, three_d), (Discriminator2d, two_d)):
        with torch.device("meta"):
            count = sum(p.numel() for p in network(DISCRIMINATORS[size]).parameters())
        assert expected is None or count == expected


def test_time_is_halved_until_one_frame_is_left():
    x = torch.arange(5.0).view(1, 1, 5, 1, 1)
    assert pool_by_two(x, (True, True, True)).flatten().tolist() == [0.5, 2.5, 4.0]
    assert pool_by_two(x[:, :, :1], (True, True, True)).flatten().tolist() == [0.0]
    assert pool_by_two(x, (False, True, True)).shape == x.shape


def test_one_logit_per_clip_in_3d_and_per_frame_in_2d(discriminator, clips):
    assert discriminator(clips[0]).shape == (3,)
    assert Discriminator2d(TINY)(clips[0]).shape == (3, 4)


def test_a_clip_of_another_size_is_refused(discriminator):
    with pytest.raises(ValueError, match=r"clip of \(4, 8, 16\)"):
        discriminator(torch.zeros(1, 3, 4, 8, 16))


def test_a_2d_discriminator_inflates_to_3d():
    """The dense layer fits because time has shrunk to one frame."""
    config = DiscriminatorConfig(base_channels=4, channel_multipliers=(2, 2), resolution=(4, 8, 8))
    two_d, three_d = Discriminator2d(config), Discriminator3d(config)
    inflate(two_d.state_dict(), three_d)
    still = torch.rand(2, 3, 1, 8, 8)
    torch.testing.assert_close(three_d.conv_in.weight[:, :, 1], two_d.conv_in.weight[:, :, 0])
    assert torch.isfinite(three_d(still.expand(-1, -1, 4, -1, -1))).all()


def test_the_losses_are_the_non_saturating_ones():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    p = torch.sigmoid
    assert torch.isclose(generator_loss(fake), -p(fake).log().mean())
    assert torch.isclose(discriminator_loss(real, fake),
                         -p(real).log().mean() - (1 - p(fake)).log().mean())


def test_r1_is_the_squared_gradient_at_real_clips_without_the_half():
    weight = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)
    real = torch.rand(4, 3, 2, 2, 2, requires_grad=True)
    logits = (weight * real).sum((1, 2, 3, 4))
    assert r1_penalty(logits, real).item() == pytest.approx(8 * (1 + 4 + 9))


def test_r1_reaches_the_discriminator_and_is_zero_for_fakes(discriminator, clips):
    real, fake = clips[0].requires_grad_(), clips[1].requires_grad_()
    logits = discriminator(real)
    discriminator(fake)
    r1_penalty(logits, real).backward()
    assert discriminator.conv_in.weight.grad.abs().sum() > 0 and fake.grad is None


def of_a_step(discriminator, clips):
    """Gradients of the discriminator's whole loss, R1 included."""
    real = clips[0].detach().requires_grad_()
    real_logits = discriminator(real)
    loss = discriminator_loss(real_logits, discriminator(clips[1]))
    return torch.autograd.grad(loss + 10 * r1_penalty(real_logits, real),
                               list(discriminator.parameters()))


class LargestKernel(TorchDispatchMode):
    """The longest side of any convolution's kernel, in whatever direction it is computed."""

    seen = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        kernel = {"aten::convolution": 1, "aten::convolution_backward": 2}.get(function._schema.name)
        if kernel:
            self.seen = max(self.seen, *arguments[kernel].shape[2:])
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("make, config", [
    (Discriminator3d, TINY), (Discriminator2d, TINY),
    (BlurDiscriminator3d, BlurConfig(4, (2, 2), (4, 8, 8)))], ids=["3D", "2D", "blur"])
def test_r1_convolves_with_small_kernels_only_and_changes_no_gradient(make, config, clips):
    """nn.Conv3d's second derivative is a convolution by a kernel as large as the video."""
    torch.manual_seed(0)
    discriminator = small_kernels(make(config))              # as training/build.py does
    with LargestKernel() as largest:
        ours = of_a_step(discriminator, clips)
    assert largest.seen == 3
    for layer in discriminator.modules():
        if isinstance(layer, Conv3d):
            layer.__class__ = torch.nn.Conv3d
    with LargestKernel() as largest:
        reference = of_a_step(discriminator, clips)
    assert largest.seen >= 8
    scale = max(gradient.abs().max() for gradient in reference)
    assert max((a - b).abs().max() for a, b in zip(ours, reference)) <= 1e-6 * scale


def test_gradients_of_two_frames_are_right_under_bfloat16_too(clips):
    """Left to oneDNN, the kernels' gradients are garbage where two frames are padded."""
    torch.manual_seed(0)
    discriminator = Discriminator3d(replace(TINY, base_channels=16))

    def gradients(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = discriminator_loss(*discriminator(clips.flatten(0, 1)).chunk(2))
        return torch.cat([g.flatten() for g in torch.autograd.grad(
            loss, list(discriminator.parameters()))])

    expected = gradients(False)
    for _ in range(10):
        torch.full((100_000,), torch.nan)                   # what the next one finds in memory
        torch.testing.assert_close(gradients(True), expected, rtol=0.05,
                                   atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("make", [Discriminator3d, Discriminator2d])
def test_the_adversary_is_entered_in_the_memory_format_of_the_tokenizer(make, clips):
    discriminator, formats = make(TINY), []
    discriminator.conv_in.register_forward_pre_hook(lambda _, given: formats.append(
        given[0].is_contiguous(memory_format=torch.channels_last_3d)))
    for video in (clips[0], clips[1].contiguous(memory_format=torch.channels_last_3d)):
        discriminator(video)
    assert formats == [True, True]


def test_lecam_averages_decay_by_0999_from_zero_and_carry_no_graph():
    lecam = LeCam()
    real, fake = torch.tensor(2.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    loss = lecam(real, fake)
    assert loss.item() == pytest.approx(2.0 ** 2 + 1.0 ** 2)       # averages are still zero
    lecam.update(real, fake)
    assert lecam.average_real.item() == pytest.approx(0.002)
    assert not lecam.average_real.requires_grad
    loss.backward()
    assert real.grad.item() == pytest.approx(4.0) and fake.grad.item() == pytest.approx(-2.0)


def test_lecam_pulls_only_beyond_the_averages():
    lecam = LeCam()
    lecam.average_real += 1.0
    lecam.average_fake -= 1.0
    zero = lecam(torch.tensor(-1.5), torch.tensor(1.5))             # real low, fake high: no pull
    assert zero.item() == 0.0
    assert math.isclose(lecam(torch.tensor(0.0), torch.tensor(0.0)).item(), 2.0)


@pytest.mark.parametrize("size", ["toy", "B-64px"])
def test_each_size_can_be_inflated_from_its_2d_twin(size):
    """Time must be halved away, or the dense layer of the 3D network has more inputs."""
    config = DISCRIMINATORS[size]
    inflate(Discriminator2d(config).state_dict(), Discriminator3d(config))

"""discriminator.py: Sec. 3.1 (Training), App. A.1, App. B.2."""
import pytest
import torch

from discriminator import (DISCRIMINATORS, Discriminator2d, Discriminator3d, DiscriminatorConfig,
                           LeCam, discriminator_loss, generator_loss, pool_by_two, r1_penalty)
from tokenizer import inflate

TINY = DiscriminatorConfig(base_channels=4, channel_multipliers=(2, 2), resolution=(4, 8, 8))


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return TINY.build()


@pytest.fixture
def clips(generator):
    return torch.rand(2, 3, 3, 4, 8, 8, generator=generator)          # real, fake: B = 3


@pytest.mark.parametrize("size, three_d, two_d", [
    ("B", 15_339_457, 5_972_545), ("L", 61_341_569, 23_880_833), ("B-64px", 11_734_465, None),
    ("L-64px", 46_922_625, None)])
def test_app_b2_the_sizes_have_the_official_number_of_parameters(size, three_d, two_d):
    config = DISCRIMINATORS[size]
    for network, expected in ((config, three_d), (config.image_twin(), two_d)):
        with torch.device("meta"):
            count = sum(p.numel() for p in network.build().parameters())
        assert expected is None or count == expected


@pytest.mark.parametrize("frames, axes, pooled", [
    ([0, 1, 2, 3, 4], (True, True, True), [0.5, 2.5, 4.0]), ([7], (True, True, True), [7]),
    ([0, 1, 2, 3, 4], (False, True, True), [0, 1, 2, 3, 4])])
def test_time_is_halved_until_one_frame_is_left_and_an_odd_one_is_kept(frames, axes, pooled):
    x = torch.tensor(frames, dtype=torch.float32).view(1, 1, -1, 1, 1)
    assert pool_by_two(x, axes).flatten().tolist() == pooled


@pytest.mark.parametrize("config, kind, shape", [
    (TINY, Discriminator3d, (3,)), (TINY.image_twin(), Discriminator2d, (3, 4))])
def test_one_logit_per_clip_in_3d_and_per_frame_in_2d(config, kind, shape, clips):
    discriminator, seen = config.build(), []
    discriminator.conv_in.register_forward_hook(lambda _, given, output: seen.append(
        (given[0].is_contiguous(memory_format=torch.channels_last_3d), output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):                 # R1 needs float32 all the same
        logits = discriminator(clips[0])
    assert type(discriminator) is kind and logits.shape == shape
    assert seen == [(True, torch.float32)]


def test_a_clip_of_another_size_is_refused(discriminator):
    with pytest.raises(ValueError, match=r"clip of \(4, 8, 16\)"):
        discriminator(torch.zeros(1, 3, 4, 8, 16))


@pytest.mark.parametrize("size", ["toy", "B-64px"])
def test_sec_3_1_each_size_can_be_inflated_from_its_2d_twin(size):
    """Time must be halved away, or the dense layer of the 3D network has more inputs."""
    two_d, three_d = DISCRIMINATORS[size].image_twin().build(), DISCRIMINATORS[size].build()
    inflate(two_d.state_dict(), three_d)
    assert torch.equal(three_d.conv_in.weight[:, :, 1], two_d.conv_in.weight[:, :, 0])


# ---------------------------------------------------------------------------------------------
# Losses (App. B.2)

def test_app_b2_the_adversarial_losses_are_the_non_saturating_ones():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    p = torch.sigmoid
    assert torch.isclose(generator_loss(fake), -p(fake).log().mean())
    assert torch.isclose(discriminator_loss(real, fake),
                         -p(real).log().mean() - (1 - p(fake)).log().mean())


def test_app_b2_r1_is_the_squared_gradient_at_real_clips_without_the_half():
    weight = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)
    real = torch.rand(4, 3, 2, 2, 2, requires_grad=True)
    logits = (weight * real).sum((1, 2, 3, 4))
    assert r1_penalty(logits, real).item() == pytest.approx(8 * (1 + 4 + 9))


def test_r1_reaches_the_discriminator_and_no_fakes(discriminator, clips):
    real, fake = clips[0].requires_grad_(), clips[1].requires_grad_()
    logits = discriminator(real)
    discriminator(fake)
    r1_penalty(logits, real).backward()
    assert discriminator.conv_in.weight.grad.any() and fake.grad is None


def test_lecam_averages_decay_by_0999_from_zero_and_carry_no_graph():
    lecam = LeCam()
    real, fake = torch.tensor(2.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    loss = lecam(real, fake)
    assert loss.item() == pytest.approx(2.0 ** 2 + 1.0 ** 2)       # averages are still zero
    lecam.update(real, fake)
    assert lecam.average_real.item() == pytest.approx(0.002)
    assert lecam.average_fake.item() == pytest.approx(-0.001)
    assert not lecam.average_real.requires_grad
    loss.backward()
    assert real.grad.item() == pytest.approx(4.0) and fake.grad.item() == pytest.approx(-2.0)


@pytest.mark.parametrize("real, fake, loss", [(-1.5, 1.5, 0.0), (0.0, 0.0, 2.0), (1.0, 0.0, 5.0),
                                              (0.0, -1.0, 5.0)])
def test_sec_3_1_lecam_pulls_only_beyond_the_averages(real, fake, loss):
    lecam = LeCam()
    lecam.average_real += 1.0
    lecam.average_fake -= 1.0
    assert lecam(torch.tensor(real), torch.tensor(fake)).item() == pytest.approx(loss)

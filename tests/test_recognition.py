"""MAGVIT-v2's recognition (App. A.4): what is masked, what is guessed, what a control must fail."""
import torch
from torch import nn

from magvit2 import recognition
from magvit2.recognition import (PATCH, Encoder, accuracy, finetune, pretrain, targets, tube_mask)

GRID = 4, 4, 4


class Brightness(nn.Module):
    """A tokenizer whose code is how bright a patch is, of 8 levels."""

    codebook_size = 8

    def latent_shape(self, *size):
        return tuple(axis // patch for axis, patch in zip(size, PATCH))

    def encode(self, video):
        return (nn.functional.avg_pool3d(video, PATCH).mean(1) * 8).long().clamp(max=7)

    def decode(self, tokens):
        return nn.functional.interpolate(tokens[:, None] / 8, scale_factor=PATCH).expand(
            -1, 3, -1, -1, -1)


def clips(count=16, seed=0):
    """Grey clips of two classes: the left half is bright, or the right."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 2
    video = torch.rand(count, 3, 16, 32, 32, generator=generator) * 0.2
    video[label == 0, ..., :16] += 0.7
    video[label == 1, ..., 16:] += 0.7
    return video, label


def test_a_tube_mask_hides_three_of_four_places_in_all_frames_and_leaves_one_block():
    mask = tube_mask(200, GRID, torch.Generator().manual_seed(0)).view(200, 4, 4, 4)
    assert (mask.flatten(1).sum(1) == 48).all()                  # of 64
    assert (mask == mask[:, :1]).all()                           # tubes
    seen = ~mask[:, 0]
    for axis in (1, 2):
        assert (seen.any(axis).sum(1) == 2).all()                # 2x2 places
        first = seen.any(axis).float().argmax(1)
        assert seen.any(axis)[torch.arange(200), first + 1].all()        # side by side
        assert set(first.tolist()) == {0, 1, 2}


def test_what_is_masked_has_no_influence_on_the_features():
    torch.manual_seed(0)
    encoder, video = Encoder(GRID, 8).eval(), clips(2)[0]
    nn.init.normal_(encoder.mask)
    mask = tube_mask(2, GRID, torch.Generator().manual_seed(0))
    hidden = nn.functional.interpolate(mask.view(2, 1, *GRID).float(), scale_factor=PATCH).bool()
    other = torch.where(hidden, torch.rand_like(video), video)
    assert torch.equal(encoder(video, mask), encoder(other, mask))
    assert not torch.equal(encoder(video), encoder(other))


def test_targets_are_each_patchs_own_and_shuffled_codes_are_in_other_places():
    video, _ = clips()
    pixels, codes, shuffled = (targets(name, Brightness(), video)
                               for name in ("pixels", "codes", "shuffled"))
    assert pixels.shape == (16, 64, 4 * 8 * 8 * 3)
    place = (2 * 4 + 1) * 4 + 3                                  # t = 2, h = 1, w = 3
    assert torch.equal(pixels[0, place], video[0, :, 8:12, 8:16, 24:32].movedim(0, -1).flatten())
    assert torch.equal(codes.flatten().sort().values, shuffled.flatten().sort().values)
    assert (codes != shuffled).float().mean() > 0.3


def test_codes_can_be_guessed_from_what_is_seen_and_shuffled_ones_cannot():
    losses, video = {}, clips()[0]
    video[:] = video[..., :1]                                    # a clip is bright, or dark
    for name in ("codes", "shuffled"):
        torch.manual_seed(0)
        wanted = targets(name, Brightness(), video)
        losses[name] = pretrain(Encoder(GRID, 8), video, wanted, steps=30)
    assert losses["codes"] < 0.5 * losses["shuffled"]


def test_finetuning_learns_the_classes_and_accuracy_counts_them():
    torch.manual_seed(0)
    classify, (video, label) = finetune(Encoder(GRID, 1), *clips(), 2, steps=40), clips(32, seed=1)
    assert accuracy(classify, video, label) == 1.0
    assert accuracy(classify, video, 1 - label) == 0.0


def test_the_tables_have_a_few_labels_of_each_class_and_what_the_tokenizer_leaves(monkeypatch):
    shown = []
    monkeypatch.setattr(recognition, "learn", lambda *given: shown.append(given[2]))
    train, test = clips(), clips(seed=1)
    for name in ("codes", "pixels", "shuffled", "nothing"):
        assert 0 <= recognition.accuracy_after(name, Brightness(), train, test, seed=0) <= 1
    assert shown == [16, 4] * 3 + [4]           # clips to guess in, then two labelled of each class
    rates = recognition.as_inputs(Brightness(), lambda video: video.mean((1, 2, 3)).unflatten(
        1, (2, 16)).mean(2), *test)
    assert rates["the same from their tokens"] == 1.0

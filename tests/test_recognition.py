"""MAGVIT-v2's recognition (App. A.4): what is masked, what is guessed, what a control must fail."""
import pytest
import torch
from torch import nn

from magvit2 import recognition
from magvit2.recognition import (PATCH, Clips, Encoder, accuracy, few, finetune, pretrain, targets,
                                 tube_mask)

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
    return Clips(video, label)


def test_a_tube_mask_hides_three_of_four_places_in_all_frames_and_leaves_one_block():
    mask = tube_mask(200, GRID, 0.75, torch.Generator().manual_seed(0)).view(200, 4, 4, 4)
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
    encoder, video = Encoder(GRID, 8).eval(), clips(2).video
    nn.init.normal_(encoder.mask)
    mask = tube_mask(2, GRID, 0.75, torch.Generator().manual_seed(0))
    hidden = nn.functional.interpolate(mask.view(2, 1, *GRID).float(), scale_factor=PATCH).bool()
    other = torch.where(hidden, torch.rand_like(video), video)
    assert torch.equal(encoder(video, mask), encoder(other, mask))
    assert not torch.equal(encoder(video), encoder(other))


def test_targets_are_each_patchs_own_and_shuffled_codes_are_in_other_places():
    video = clips().video
    pixels, codes, shuffled = (targets(name, Brightness(), video)
                               for name in ("pixels", "codes", "shuffled"))
    assert pixels.shape == (16, 64, 4 * 8 * 8 * 3)
    place = (2 * 4 + 1) * 4 + 3                                  # t = 2, h = 1, w = 3
    assert torch.equal(pixels[0, place], video[0, :, 8:12, 8:16, 24:32].movedim(0, -1).flatten())
    assert torch.equal(codes.flatten().sort().values, shuffled.flatten().sort().values)
    assert (codes != shuffled).float().mean() > 0.3


def test_codes_can_be_guessed_from_what_is_seen_and_shuffled_ones_cannot():
    losses, whole = {}, clips()
    whole.video[:] = whole.video[..., :1]                        # a clip is bright, or dark
    for name in ("codes", "shuffled"):
        torch.manual_seed(0)
        wanted = targets(name, Brightness(), whole.video)
        losses[name] = pretrain(Encoder(GRID, 8), whole, wanted, steps=30)
    assert losses["codes"] < 0.5 * losses["shuffled"]


def test_finetuning_learns_the_classes_and_accuracy_counts_them():
    torch.manual_seed(0)
    classify, seen = finetune(Encoder(GRID, 1), clips(), 2, steps=40), clips(32, seed=1)
    assert accuracy(classify, seen) == 1.0
    assert accuracy(classify, seen._replace(label=1 - seen.label)) == 0.0
    chosen = few(clips(16), 3)
    assert chosen.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(chosen.video[0], clips(16).video[0])


def test_both_tables_are_made(monkeypatch):
    monkeypatch.setattr(recognition, "learn", lambda *given: 0.0)
    train, test = clips(), clips(seed=1)
    table = recognition.as_targets(Brightness(), train, test, seeds=2)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "codes", "pixels", "shuffled", "nothing"]
    table = recognition.as_inputs(Brightness(), lambda video: video.mean((1, 2, 3)).unflatten(
        1, (2, 16)).mean(2), test)
    assert "100.0%" in table and "the toy's rule" in table

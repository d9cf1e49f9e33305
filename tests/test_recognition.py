"""MAGVIT-v2's recognition (App. A.4): what is masked, what is guessed, what a control must fail."""
import pytest
import torch
from torch import nn

from magvit2 import recognition
from magvit2.recognition import (PRESETS, Clips, Encoder, accuracy, few, finetune, pretrain,
                                 targets, tube_mask)

GRID, PATCH = (4, 4, 4), (4, 8, 8)
QUICK = PRESETS["toy"] | dict(pretrain_steps=30, pretrain_batch=8, finetune_steps=40,
                              finetune_batch=8)


class Brightness(nn.Module):
    """A tokenizer whose code is how bright a patch is, of 8 levels."""

    codebook_size = 8

    def encode(self, video):
        means = nn.functional.avg_pool3d(video, PATCH).mean(1)
        return (means * 8).long().clamp(max=7)


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
    encoder, video = Encoder(GRID, PATCH, 8).eval(), clips(2).video
    nn.init.normal_(encoder.mask)
    mask = tube_mask(2, GRID, 0.75, torch.Generator().manual_seed(0))
    other = video.clone()
    hidden = mask.view(2, 1, *GRID).float()
    hidden = nn.functional.interpolate(hidden, scale_factor=PATCH).bool().expand_as(video)
    other[hidden] = torch.rand(int(hidden.sum()))
    assert torch.equal(encoder(video, mask), encoder(other, mask))
    assert not torch.equal(encoder(video), encoder(other))


def test_pixels_as_targets_are_each_patchs_own():
    video = clips(2).video
    wanted = targets("pixels", Brightness(), video, PATCH)
    assert wanted.shape == (2, 64, 4 * 8 * 8 * 3)
    place = (2 * 4 + 1) * 4 + 3                                  # t = 2, h = 1, w = 3
    patch = video[0, :, 8:12, 8:16, 24:32].movedim(0, -1)
    assert torch.equal(wanted[0, place], patch.flatten())


def test_shuffled_codes_are_the_same_codes_in_other_places():
    video = clips().video
    codes, shuffled = (targets(name, Brightness(), video, PATCH) for name in ("codes", "shuffled"))
    assert torch.equal(codes.flatten().sort().values, shuffled.flatten().sort().values)
    assert (codes != shuffled).float().mean() > 0.3


def test_codes_can_be_guessed_from_what_is_seen_and_shuffled_ones_cannot():
    losses, whole = {}, clips()
    whole.video[:] = whole.video[..., :1]                        # a clip is bright, or dark
    for name in ("codes", "shuffled"):
        torch.manual_seed(0)
        wanted = targets(name, Brightness(), whole.video, PATCH)
        losses[name] = pretrain(Encoder(GRID, PATCH, 8), whole, wanted, GRID, QUICK)
    assert losses["codes"] < 0.5 * losses["shuffled"]


def test_finetuning_learns_the_classes_and_accuracy_counts_them():
    torch.manual_seed(0)
    classify = finetune(Encoder(GRID, PATCH, 1), clips(), 2, QUICK)
    assert accuracy(classify, clips(32, seed=1)) == 1.0
    swapped = clips(32, seed=1)
    assert accuracy(classify, swapped._replace(label=1 - swapped.label)) == 0.0


def test_few_takes_as_many_of_each_class():
    chosen = few(clips(16), 3)
    assert chosen.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(chosen.video[0], clips(16).video[0])


def test_the_appendixs_table_is_there_to_the_number():
    row = PRESETS["appendix"]
    assert (row["pretrain_epochs"], row["pretrain_batch"], row["pretrain_warmup"]) == (800, 1024, 40)
    assert (row["finetune_epochs"], row["finetune_batch"], row["finetune_warmup"]) == (50, 512, 5)
    assert (row["mask_ratio"], row["beta1"], row["layer_decay"]) == (0.75, 0.9, 0.75)
    assert (row["weight_decay"], row["label_smoothing"], row["pretrain_dropout"]) == (0.05, 0.1, 0.1)
    assert (row["finetune_mixup"], row["finetune_cutmix"], row["finetune_droppath"]) == (0.8, 1, 0.1)
    assert row["patch"] == (2, 14, 14) and row["frames"] // 2 == 8 and row["pixels"] // 14 == 16


def test_the_room_shows_its_idea(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["recognition.py"])
    recognition.main()
    assert capsys.readouterr().out.count("#") > 20


@pytest.mark.slow
def test_both_tables_are_made_on_the_toy(capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "toy", PRESETS["toy"] | dict(pretrain_steps=5, finetune_steps=5))
    recognition.both_tables("assets/toy", seeds=1)
    assert "the toy's rule" in capsys.readouterr().out

"""docs/figures.py: each picture is drawn, and shows what it says."""
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from discriminator import DISCRIMINATORS
from docs import figures
from measure.pictures import COLOURS, cells, strip, to_frames, write_grid
from tokenizer import TOKENIZERS

TOY = ROOT / "assets/toy"


@pytest.fixture(scope="module")
def noise():
    return torch.rand(2, 1, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0))


def test_unmasked_tokens_of_a_region_give_the_rest_away_and_commits_do_not(noise):
    torch.manual_seed(1)
    tokenizer = TOKENIZERS["toy"].build()
    influence, (unmasked, committed) = figures.leaking_shares(tokenizer, *noise)
    assert sum(influence) == pytest.approx(1, abs=1e-5) and 0.5 < 1 - influence[0] < 1
    assert unmasked > 0 and committed == 0


def test_every_loss_reaches_the_networks_it_is_about_and_no_other(noise):
    torch.manual_seed(0)
    tokenizer = TOKENIZERS["toy"].build()
    norms = figures.gradient_norms(tokenizer, DISCRIMINATORS["toy"].build(), noise[:, 0])
    reached = {name: {part for part, norm in row.items() if norm} for name, row in norms.items()}
    autoencoder = {"encoder", "decoder"}
    assert reached["reconstruction"] == autoencoder
    assert reached["codebook"] == {"quantizer"} and reached["commitment"] == {"encoder"}
    assert reached["entropy"] == {"encoder", "quantizer"}
    assert reached["generator"] == reached["discriminator"] == autoencoder | {"discriminator"}
    assert reached["R1"] == {"discriminator"}


@pytest.mark.parametrize("name", ["tasks", "schedules", "tokens", "steps", "gradients"])
def test_a_figure_is_drawn_from_the_shipped_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    if name == "steps":                                   # decodes all of them, in 32 steps
        few = [each[:12] for each in figures.all_clips(figures.MovingShapes("test"))]
        monkeypatch.setattr(figures, "all_clips", lambda source: few)
    figures.FIGURES[name](TOY, tmp_path)
    drawn = list(tmp_path.iterdir())
    assert drawn and all(path.stat().st_size > 5000 for path in drawn)


def test_real_clips_need_a_run_and_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        figures.real(tmp_path / "nowhere", tmp_path)


def test_pictures_are_frames_strips_and_cells(tmp_path):
    video = torch.linspace(-0.5, 1.5, 3 * 4 * 8 * 8).view(3, 4, 8, 8)
    frames = to_frames(video)
    assert frames.shape == (4, 8, 8, 3) and frames.min() == 0 and frames.max() == 255
    assert strip(video).shape == (10, 40, 3)
    assert torch.equal(cells(torch.tensor([[[1]]]))[:, 0, 0, 0], COLOURS[1])
    for name in ("grid.png", "grid.gif"):
        write_grid(tmp_path / name, [("a row", [video, video])], ["one", "two"])
        assert Path(tmp_path, name).stat().st_size > 500


def test_a_token_depends_on_all_frames_that_pass_and_seams_are_worse_than_steps():
    """App. Figs. 4-5: why windows, and what an overlap is for."""
    tokenizer = figures.load_run(TOY).tokenizer
    video, _ = figures.all_clips(figures.MovingShapes("test"))
    film = torch.cat([video[:1], video[1:2]], dim=2)
    shares = figures.context_shares(tokenizer, film, (16, 32))
    assert [length for length, _, _ in shares] == [16, 32]
    assert shares[0][1] == 0 and shares[1][1] > 0.1 and shares[1][2] < shares[0][2]
    loop = video[figures.CLIP:figures.CLIP + 1].repeat(1, 1, 3, 1, 1)
    apart, faded = (figures.seam_errors(tokenizer, loop, overlap) for overlap in (0, 4))
    assert apart.shape == faded.shape == (47,)
    assert apart[[15, 31]].mean() > apart.mean() and apart[15] > faded[11]

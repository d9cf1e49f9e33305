"""Two folders of videos, whoever made them: numbers of any two sets.

Paper   none: for people who have two folders and no run

Shapes  a folder of videos of any kind, a .npy of uint8 (N, T, H, W, 3), or an .npz of features
          -> inspect_set: the length and size of each video
          -> open_set: a clip of each, uint8 (T, H, W, 3), and what is told of the set
          -> rows_of -> numbers

Read    compare; what_is_unlike, every reason for a star.

A video's clip is its first frames, whole or as a central square.

Run:    python evaluate.py fvd REAL FAKE         also fvd,psnr,ssim,lpips; is FAKE
        python evaluate.py fvd REAL FAKE --save-features REAL.npz     then: fvd REAL.npz FAKE
"""
from __future__ import annotations

import json
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from data.clips import VideoFolder, check_output, resize_short_side, written_whole
from data.files import VIDEO_SUFFIXES, count_frames, find_layout, name_below
from data.source import NO_LABEL, ClipSource, digest
from measure.judges import (PAIRED, entry, load_clips, measure_videos, open_judges,
                            print_numbers, refuse_clips, score)
from measure.protocols import CENTRE, Clip
from training.processes import Processes, from_first

BATCH = 16


def compare(metrics: list[str], paths: list[str], *, frames: int | None = None, stride: int = 1,
            size: int | None = None, weights: str | Path | None = "weights",
            processes: Processes = Processes(), save_features: str | None = None) -> dict | None:
    """Numbers of two sets of videos, real and fake; IS of one. They are printed and returned.

    paths: a folder, an array's .npy, or for FVD an .npz of features. frames, stride, size: of each
    video the first `frames` frames, every stride-th, the short side resized to `size`, the central
    square. Frames and size have to be said where videos differ in them. psnr, ssim and lpips
    compare videos of one name; an array's are numbers. weights: the folder of the judges' files;
    None: random ones. save_features: a file (.npz) for the real set's. Returns the entries by
    name; None in processes other than the first. ValueError or FileNotFoundError, before any
    network runs, where the sets do not fit.
    """
    check_request(metrics, paths, save_features, frames=frames, stride=stride, size=size)
    judges = open_judges(metrics, weights, processes.device)
    with tempfile.TemporaryDirectory() as folder:          # for counts of frames, which serve twice
        found = [from_first(lambda: inspect_set(path, folder), processes) for path in paths]
        facts = common_facts(found, paths, frames, stride, size)
        facts["weights"] = judges["fvd"].weights if "fvd" in judges else ""
        sets = [read_features(path, facts) if is_features(path) else
                open_set(Path(path), videos, facts, folder) for path, videos in zip(paths, found)]
    refuse_clips(metrics, facts["frames"], *facts["size"])
    sources, told = zip(*sets)
    paired = [metric for metric in metrics if metric in PAIRED]
    pairs = pairs_of(*told) if paired else []
    counts = [len(of_one["names"]) for of_one in told]
    counted = [len(pairs)] if len(paired) == len(metrics) else counts
    if min(counted) < (least := 2 if "fvd" in metrics else 1):
        raise ValueError(f"{' and '.join(map(str, counted))} videos; wanted at least {least}")

    rows, features = {}, []
    for source in sources if "fvd" in metrics else ():
        features.append(source if isinstance(source, Tensor) else rows_of(
            [source], judges, ["fvd"], [(i,) for i in range(len(source))], processes)["fvd"])
    if features:
        rows["fvd"] = features[-1]
    if "is" in metrics:
        alone = [(i,) for i in range(counts[-1])]
        rows |= rows_of(sources[-1:], judges, ["is"], alone, processes)
    if pairs:
        rows |= rows_of(sources, judges, paired, pairs, processes)
    if processes.rank:
        return None
    if save_features:
        write_features(save_features, features[0], told[0], facts)
    same = len(paths) == 2 and (Path(paths[0]).resolve() == Path(paths[1]).resolve()
                                or bool(features) and torch.equal(*features))
    numbers = score(metrics, 1, features[0] if features else None, rows)
    entries = dict(entry(metric, number, len(pairs) if metric in PAIRED else counts[-1], 1, judges,
                         what_is_unlike(metric, told, facts, same))
                   for metric, number in numbers.items())
    if "identical" in rows and rows["identical"].any():
        entries["identical_frames"] = dict(count=int(rows["identical"].sum()))
    print_numbers(f"no protocol: {' against '.join(paths)}\nthe first {facts['frames']} frames at "
                  f"stride {stride}, {in_words(facts['size'])} pixels"
                  + (f"; {len(pairs)} pairs by name" if pairs else ""), dict(sets=entries))
    return entries


def rows_of(sources: Sequence[ClipSource], judges: dict[str, nn.Module], metrics: list[str],
            items: list[tuple[int, ...]], processes: Processes) -> dict[str, Tensor]:
    """What the metrics must know of each item: a video's number in one set, or a real one's and a
    fake one's in two. Batches are dealt out to processes in turn, and all get all rows."""
    parts = {}
    firsts = range(0, len(items), BATCH)[processes.rank::processes.world]
    for first in tqdm(firsts, " ".join(metrics), disable=processes.rank > 0, mininterval=1.0):
        part = items[first:first + BATCH]
        videos = [load_clips(source, [Clip(item[k], 0, CENTRE, CENTRE) for item in part],
                             processes.device)[0] for k, source in enumerate(sources)]
        rows = measure_videos(judges, metrics, *reversed(videos))
        parts[first] = {name: row.cpu() for name, row in rows.items()}
    if dist.is_initialized():
        everyone: list = [None] * processes.world
        dist.all_gather_object(everyone, parts)
        parts = {first: rows for of_one in everyone for first, rows in of_one.items()}
    return {name: torch.cat([parts[first][name] for first in sorted(parts)]) for name in parts[0]}


# ---------------------------------------------------------------------------------------------
# Whether they fit, before any network runs

def check_request(metrics: list[str], paths: list[str], save_features: str | None,
                  **numbers: int | None) -> None:
    """ValueError unless there are as many sets as these numbers compare, and all are positive."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}; wanted 1 or more")
    two = set(metrics) != {"is"}
    if len(paths) != 1 + two:
        raise ValueError(f"{','.join(metrics)} of {len(paths)} sets; it takes "
                         + ("two, real and fake" if two else "one, the fakes"))
    if any(map(is_features, paths)) and set(metrics) != {"fvd"}:
        raise ValueError(f"{','.join(metrics)} of stored features; fvd alone compares them")
    if save_features:
        check_output(save_features, (".npz",))
        if "fvd" not in metrics:
            raise ValueError(f"{','.join(metrics)} needs no features of real videos; fvd does")


def common_facts(found: list[dict[str, dict]], paths: list[str], frames: int | None, stride: int,
                 size: int | None) -> dict:
    """What all clips have in common: frames, stride and size (H, W).

    found: of inspect_set. ValueError where videos differ and nobody has said what to take.
    """
    whole = [video for videos in found for video in videos.values() if not video["error"]]
    if not any(found) and paths:                                # features against features
        return {name: stored_facts(paths[0])[name] for name in ("frames", "stride", "size")}
    lengths = {video["frames"] for video in whole}
    sizes = {(video["height"], video["width"]) for video in whole}
    if not whole:
        raise ValueError(f"no whole video in {' and '.join(paths)}")
    if frames is None and len(lengths) > 1:
        raise ValueError(f"videos of {min(lengths)} to {max(lengths)} frames; say how many of each "
                         "count: --frames 16")
    if size is None and len(sizes) > 1:
        some = " and ".join(map(in_words, sorted(sizes)[:2]))
        raise ValueError(f"videos of {len(sizes)} sizes, such as {some}; say what they are resized "
                         "to, the centre cropped: --size 128")
    return dict(frames=frames or (min(lengths) - 1) // stride + 1, stride=stride,
                size=[size, size] if size else list(sizes.pop()))


def pairs_of(real: dict, fake: dict) -> list[tuple[int, int]]:
    """Which video is compared with which: those of one name. ValueError where a video has two
    partners or none, unless that is too short or broken."""
    for one, other in ((real, fake), (fake, real)):
        twice = [name for name, count in Counter(one["names"]).items() if count > 1]
        if twice:
            raise ValueError(f"{one['path']} has several videos called {twice[0]!r}; wanted pairs "
                             "of equal names")
        known = {*other["names"], *other["left_out"]}
        lonely = [name for name in one["names"] if name not in known]
        if lonely:
            raise ValueError(f"{len(lonely)} videos of {one['path']} have no partner of their name "
                             f"in {other['path']}, first {lonely[0]!r}; wanted pairs of equal "
                             "names")
    place = {name: i for i, name in enumerate(fake["names"])}
    return [(i, place[name]) for i, name in enumerate(real["names"]) if name in place]


# ---------------------------------------------------------------------------------------------
# What lies there

class FirstFrames(VideoFolder):
    """A folder whose videos are read once: none is kept decoded."""

    cache_bytes = 0


class Array:
    """Videos of a .npy file, uint8 (N, T, H, W, 3), as clips of `shape`, (T, H, W)."""

    parallel, class_names = True, ()

    def __init__(self, path: Path, shape: tuple[int, int, int], stride: int):
        self.array, self.shape, self.stride = np.load(path, mmap_mode="r"), shape, stride

    def __len__(self) -> int:
        return len(self.array)

    def clip(self, index: int, random: np.random.Generator | None = None
             ) -> tuple[np.ndarray, int]:
        """The first frames of a video, and of them the central crop."""
        T, H, W = self.shape
        video = resize_short_side(self.array[index, ::self.stride][:T], H, W)
        y, x = (video.shape[1] - H) // 2, (video.shape[2] - W) // 2
        return video[:, y:y + H, x:x + W], NO_LABEL


def inspect_set(path: str | Path, folder: str) -> dict[str, dict]:
    """Length, size and what is wrong, of each video by name, as data.files.count_frames has it;
    nothing for features. folder: where the counts are kept. FileNotFoundError where there is
    nothing, ValueError where an array is of another kind."""
    path = Path(path)
    if path.suffix == ".npy" and path.is_file():
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or array.ndim != 5 or array.shape[4] != 3:
            raise ValueError(f"{path} holds {array.dtype} {array.shape}; wanted uint8 "
                             "(N, T, H, W, 3)")
        frames, height, width = array.shape[1:4]
        return {str(i): dict(frames=frames, height=height, width=width, error="")
                for i in range(len(array))}
    if is_features(path) and path.is_file():
        return {}
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a folder of videos nor a .npy or .npz file")
    return count_frames(find_layout(path).clips, path, index_of(path, folder))


def index_of(path: Path, folder: str) -> Path:
    return Path(folder, f"{digest(str(path.resolve()))}.json")


def open_set(path: Path, videos: dict[str, dict], facts: dict, folder: str
             ) -> tuple[ClipSource, dict]:
    """A set's clips, and what is told of it as plain data. videos: of inspect_set."""
    shape = facts["frames"], *facts["size"]
    if path.is_file():
        source, names = Array(path, shape, facts["stride"]), list(videos)
    else:
        index, sound = index_of(path, folder), {
            name: video for name, video in videos.items() if not video["error"]}
        index.write_text(json.dumps(sound))              # another process has its own folder
        source = FirstFrames(path, shape, stride=facts["stride"], index=index)
        names = [name_below(path, file) for file, _ in source.videos]
    used = [videos[name] for name in names]
    return source, dict(
        path=str(path), names=[bare(name) for name in names],
        longest=max(video["frames"] for video in used),
        sizes=sorted({in_words((video["height"], video["width"])) for video in used}),
        suffixes=sorted({Path(name).suffix.lower() for name in names if not path.is_file()}
                        & VIDEO_SUFFIXES),
        left_out=[bare(name) for name in videos if name not in {*names}])


def bare(name: str) -> str:
    """A video's name without what differs between copies: its suffix, zeros before a number."""
    path = Path(name)
    name = str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES else name
    return str(int(name)) if name.isdecimal() else name


def in_words(size: Sequence[int]) -> str:
    """(H, W) as people say it."""
    return f"{size[1]}x{size[0]}"


def is_features(path: str | Path) -> bool:
    return Path(path).suffix == ".npz"


def write_features(path: str | Path, features: Tensor, told: dict, facts: dict) -> None:
    """A set's features (n, 400), what they are of, and what is told of the set."""
    with written_whole(Path(path)) as temporary:
        np.savez(temporary, features=features.numpy(), facts=json.dumps(facts | dict(told=told)))


def stored_facts(path: str | Path) -> dict:
    """What write_features has said of features. ValueError where it is another kind of file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return json.loads(str(arrays["facts"]))
    except (ValueError, KeyError, zipfile.BadZipFile):
        raise ValueError(f"{path} holds no features with their facts; wanted what "
                         "--save-features has written") from None


def read_features(path: str | Path, facts: dict) -> tuple[Tensor, dict]:
    """A set's features (n, 400), and what is told of it. ValueError where they are of other
    clips or weights than facts: features of different things make no distance."""
    stored = stored_facts(path)
    for name, value in facts.items():
        if stored.get(name) != value:
            raise ValueError(f"{path} is of {name} {stored.get(name)!r}; wanted {value!r}")
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["features"]), stored["told"]


# ---------------------------------------------------------------------------------------------
# The star

def what_is_unlike(metric: str, told: Sequence[dict], facts: dict, same: bool) -> list[str]:
    """Why a number is not to be put beside published ones. told: of each set; same: they are the
    same videos."""
    reasons, size = [], in_words(facts["size"])
    fewest = min(len(of_one["names"]) for of_one in told)
    if metric in ("fvd", "is") and fewest < 2048:
        reasons.append(f"{fewest:,} videos; below 2,048 it is mostly bias")
    if metric == "fvd" and facts["frames"] != 16:
        reasons.append(f"{facts['frames']} frames; FVDs are published of 16")
    if facts["stride"] != 1:
        reasons.append(f"one frame of every {facts['stride']}")
    taken = (facts["frames"] - 1) * facts["stride"] + 1
    for of_one in told:
        path, other = of_one["path"], [each for each in of_one["sizes"] if each != size]
        if of_one["longest"] >= taken + facts["stride"]:
            reasons.append(f"{path}: the first frames of videos of up to {of_one['longest']}")
        if other:
            reasons.append(f"{path}: resized (antialiased) and cropped from {' '.join(other[:3])}"
                           f"{' ...' if len(other) > 3 else ''}")
        if of_one["left_out"]:
            reasons.append(f"{path}: {len(of_one['left_out'])} videos too short or broken, left "
                           "out")
        if ".gif" in of_one["suffixes"]:
            reasons.append(f"{path}: GIF keeps 256 colours of a picture")
    if same:
        reasons.append("both sets are the same videos")
    if metric != "is" and told[0]["suffixes"] != told[-1]["suffixes"]:
        reasons.append("stored unlike: " + ", ".join(
            f"{of_one['path']} {' '.join(of_one['suffixes']) or 'pictures or arrays'}"
            for of_one in told))
    return reasons

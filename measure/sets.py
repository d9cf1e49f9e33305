"""Two sets of videos, whoever made them: numbers of any two folders.

Paper   none: for people who have two folders and no run

Shapes  folders of videos, GIFs or folders of frames, or .npy uint8 (N, T, H, W, 3)
          -> open_sets: one clip of each video, uint8 (T, H, W, 3) -> rows -> numbers

Read    compare; open_sets; what_is_unlike, every reason for a star.

A video's clip is its first frames, whole or as a central square. Features are kept in this
machine's store under the content of the files: a stopped call goes on, and another number of the
same videos, or another fake set beside the same real one, begins with what is there.

Run:    python -m measure.sets                   numbers of sets that are made here
        python evaluate.py fvd REAL FAKE         also fvd,kvd,psnr,ssim,lpips; is FAKE
"""
from __future__ import annotations

import json
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from data.clips import VideoFolder, resize_short_side
from data.counts import count_frames
from data.decoding import opened
from data.layouts import VIDEO_SUFFIXES, find_layout
from data.source import NO_LABEL, ClipSource, digest
from measure.features import (METRICS, PAIRED, load_clips, measure_videos, open_judges, rows_of,
                              stored_names)
from measure.numbers import entry, print_numbers, print_trials, score
from measure.protocols import CENTRE, Clip
from measure.rows import (Rows, content_of, machine_cache, open_features, rows_on_disk,
                          save_features)
from training.processes import Processes, from_first


class VideoSet(NamedTuple):
    """A set of videos, one clip of each."""

    path: str
    source: ClipSource
    content: str                    # of its files
    names: list[str]                # below its folder, bare; numbers in an array
    lengths: Counter                # frames -> how many videos have so many
    sizes: Counter                  # "WIDTHxHEIGHT" -> likewise
    coded: Counter                  # "h264", "gif", "no loss" -> likewise
    left_out: list[str]             # names of files that are too short or broken


class Work(NamedTuple):
    """What all rows of a comparison share."""

    judges: dict[str, nn.Module]
    facts: dict                     # frames, stride and size, of all clips
    batch: int
    processes: Processes


def compare(metrics: list[str], paths: list[str], *, frames: int | None = None, stride: int = 1,
            size: int | None = None, weights: str | Path | None = "weights",
            infinity: bool = False, folds: int = 1, batch: int = 16,
            pins: tuple[str, ...] = (), processes: Processes = Processes(),
            real_features: str | None = None, save_features: str | None = None,
            json_file: str | None = None) -> dict | None:
    """Numbers of two sets of videos, real and fake; IS, and all with real_features, of one.

    frames, stride, size: of each video the first `frames` frames, every stride-th, the short side
    resized to `size`, the central square. Frames and size have to be said where videos differ in
    them. psnr, ssim and lpips compare videos of one name; an array's are numbers.
    pins: of pretrained.load_weights. real_features: a file in the place of the real set;
    save_features: one to be written; json_file: for the numbers. Returns these; None in
    processes other than the first.
    """
    paired = [name for name in metrics if name in PAIRED]
    of_sets = [name for name in metrics if name not in PAIRED]
    check_request(metrics, paths, real_features, save_features, frames=frames, stride=stride,
                  size=size, batch=batch, folds=folds)
    judges = open_judges(metrics, weights, processes.device, pins)
    sets, facts = open_sets(paths, frames, stride, size, processes)
    pairs = pairs_of(*sets) if paired else []
    check_clips(metrics, facts)
    check_counts(sets, pairs, of_sets, folds)
    work = Work(judges, facts, batch, processes)
    numbers, identical, counts = {}, 0, [len(videos.names) for videos in sets]
    if of_sets:
        real = {}
        if "fvd" in work.judges:
            real["fvd"], described = features_of_real(work, sets[0], real_features, save_features)
            sets = [described, sets[-1]]
            counts = [len(real["fvd"]), counts[-1]]
        fake = video_rows(work, sets[-1:], rows_of(of_sets))
        numbers |= score(of_sets, folds, real, fake, infinity=infinity)
    if paired:
        rows = video_rows(work, sets, rows_of(paired), pairs)
        numbers |= score(paired, folds, {}, rows)
        identical = int(rows["identical"].sum()) if "psnr" in paired else 0
    if processes.rank:
        return None
    entries = dict(entry(name, number, len(pairs) if name in PAIRED else counts[-1], folds,
                         work.judges, what_is_unlike(name, sets, facts, min(counts) // folds))
                   for name, number in numbers.items())
    if identical:
        entries["identical_frames"] = dict(count=identical)
    paths = [*([real_features] if real_features else []), *paths]
    by = f"; {len(pairs)} pairs by name" if pairs else ""
    print_numbers(f"no protocol: {' against '.join(paths)}\nthe first {facts['frames']} frames "
                  f"at stride {stride}, {facts['size']} pixels{by}", {"sets": entries})
    print_trials({"sets": entries})
    if json_file:
        outcome = dict(sets=paths, videos=counts, **facts, numbers=entries)
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
        Path(json_file).write_text(json.dumps(outcome, indent=2, allow_nan=False) + "\n")
    return entries


def check_request(metrics: list[str], paths: list[str], real_features: str | None,
                  save_features: str | None, **numbers: int | None) -> None:
    """ValueError unless there are as many sets as these numbers compare, and all are positive."""
    paired, judged = set(metrics) & set(PAIRED), {"fvd", "kvd"} & set(metrics)
    if unknown := set(metrics) - set(METRICS):
        raise ValueError(f"number {unknown.pop()!r}; choose from {' '.join(METRICS)}")
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}; wanted 1 or more")
    if real_features and paired:
        raise ValueError(f"{' '.join(sorted(paired))} of stored features; they compare videos")
    if (real_features or save_features) and not judged:
        raise ValueError(f"{','.join(metrics)} needs no features of real videos; fvd and kvd do")
    two = set(metrics) != {"is"} and not real_features
    if len(paths) != 1 + two:
        raise ValueError(f"{','.join(metrics)} of {len(paths)} sets; it takes "
                         + ("two, real and fake" if two else "one, the fakes"))


def check_clips(metrics: list[str], facts: dict) -> None:
    """ValueError unless every metric can see clips of so many frames and pixels."""
    frames, side = facts["frames"], min(map(int, facts["size"].split("x")))
    if {"fvd", "kvd"} & set(metrics) and frames < 9:
        raise ValueError(f"clips of {frames} frames; I3D needs at least 9")
    if "is" in metrics and frames != 16:
        raise ValueError(f"clips of {frames} frames; IS takes exactly 16: --frames 16")
    for name, least in dict(ssim=11, lpips=16).items():
        if name in metrics and side < least:
            raise ValueError(f"clips of {facts['size']} pixels; {name} needs {least}x{least}")


def check_counts(sets: list[VideoSet], pairs: list, of_sets: list[str], folds: int) -> None:
    """ValueError unless there are videos for each fold."""
    counts = [len(videos.names) for videos in sets] if of_sets else [len(pairs)]
    least = folds * (2 if {"fvd", "kvd"} & set(of_sets) else 1)
    if min(counts) < least or any(count % folds for count in counts):
        raise ValueError(f"{' and '.join(map(str, counts))} videos; wanted at least {least}"
                         + (f", a multiple of {folds} for the folds" if folds > 1 else ""))


# ---------------------------------------------------------------------------------------------
# What lies there

class Array(ClipSource):
    """Videos of a .npy file, uint8 (N, T, H, W, 3), as clips of `shape`, (T, H, W)."""

    parallel = True

    def __init__(self, path: Path, shape: tuple[int, int, int], stride: int):
        self.array, self.shape, self.stride = np.load(path, mmap_mode="r"), shape, stride
        self.videos = [(path, self.array.shape[1])] * len(self.array)

    def __len__(self) -> int:
        return len(self.array)

    def clip_at(self, index: int, start: int, y: float, x: float) -> tuple[np.ndarray, int]:
        T, H, W = self.shape
        video = self.array[index, start::self.stride][:T]
        video = resize_short_side(video, H, W)
        top, left = (int(place * (length - wanted + 1)) for place, length, wanted in
                     zip((y, x), video.shape[1:3], (H, W)))
        return video[:, top:top + H, left:left + W], NO_LABEL

    def fingerprint(self) -> str:
        return digest(list(self.array.shape))


def open_sets(paths: list[str], frames: int | None, stride: int, size: int | None,
              processes: Processes) -> tuple[list[VideoSet], dict]:
    """The sets, and what all their clips have in common: frames, stride and size.

    Every file's length and size is looked at before anything is computed. ValueError where they
    differ and nobody has said what to take; FileNotFoundError where there is nothing.
    """
    facts = [from_first(lambda: inspect_set(path), processes) for path in paths]
    whole = [fact for of_one in facts for fact in of_one.values() if not fact["error"]]
    lengths = {fact["frames"] for fact in whole}
    sizes = {(fact["height"], fact["width"]) for fact in whole}
    if not whole:
        raise ValueError(f"no whole video in {' and '.join(paths)}")
    if frames is None and len(lengths) > 1:
        raise ValueError(f"videos of {min(lengths)} to {max(lengths)} frames; say how many of each "
                         "count: --frames 16")
    if size is None and len(sizes) > 1:
        some = " and ".join(f"{width}x{height}" for height, width in sorted(sizes)[:2])
        raise ValueError(f"videos of {len(sizes)} sizes, such as {some}; say what they are resized "
                         "to, the centre cropped: --size 128")
    T = frames or (min(lengths) - 1) // stride + 1
    H, W = (size, size) if size else sizes.pop()
    sets = [open_set(Path(path), of_one, (T, H, W), stride, processes)
            for path, of_one in zip(paths, facts)]
    return sets, dict(frames=T, stride=stride, size=f"{W}x{H}")


def inspect_set(path: str) -> dict[str, dict]:
    """Length, size and what is wrong, of each video: as data.counts has it, by name."""
    path = Path(path)
    if path.suffix == ".npy" and path.is_file():
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or array.ndim != 5 or array.shape[4] != 3:
            raise ValueError(f"{path} holds {array.dtype} {array.shape}; wanted uint8 "
                             "(N, T, H, W, 3)")
        frames, height, width = array.shape[1:4]
        return {str(i): dict(frames=frames, height=height, width=width, error="")
                for i in range(len(array))}
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a folder of videos nor a .npy file")
    return count_frames(find_layout(path).clips, path, index_of(path))


def index_of(path: Path) -> Path:
    return machine_cache() / f"videos-{digest(str(path.resolve()))}.json"


def open_set(path: Path, facts: dict[str, dict], shape: tuple[int, int, int], stride: int,
             processes: Processes) -> VideoSet:
    """One set, of clips (T, H, W); facts are those of inspect_set."""
    if path.is_file():
        source, names, coded = Array(path, shape, stride), list(facts), Counter({"no loss": 1})
    else:
        source = VideoFolder(path, shape, stride=stride, cache_bytes=0, layout=find_layout(path),
                             index=index_of(path))
        files = [file for file, _ in source.videos]
        names = [str(file.relative_to(path)) for file in files]
        with ThreadPoolExecutor(8) as pool:
            coded = Counter(pool.map(coding_of, files))
    used = [facts[name] for name in names]
    return VideoSet(str(path), source, from_first(lambda: content_of(source), processes),
                    [bare(name) for name in names], Counter(fact["frames"] for fact in used),
                    Counter(f"{fact['width']}x{fact['height']}" for fact in used),
                    coded, [bare(name) for name in facts if name not in set(names)])


def bare(name: str) -> str:
    """A video's name without what differs between copies: its suffix, zeros before a number."""
    path = Path(name)
    name = str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES else name
    return str(int(name)) if name.isdecimal() else name


def coding_of(path: Path) -> str:
    """By what a video lost something: "h264", "gif", "jpeg"; or "no loss"."""
    if path.is_dir():
        path = next(file for file in sorted(path.iterdir()) if file.is_file())
    suffix = path.suffix.lower()
    if suffix in (".npy", ".png", ".tfrecord", ".tfrecords"):
        return "no loss"
    if suffix in (".jpg", ".jpeg", ".gif"):
        return "gif" if suffix == ".gif" else "jpeg"
    with opened(path) as (_, stream):
        return stream.codec_context.name


def pairs_of(real: VideoSet, fake: VideoSet) -> list[tuple[int, int]]:
    """Which video is compared with which: those of one name. ValueError where a video has two
    partners or none, unless that is too short or broken."""
    for one, other in ((real, fake), (fake, real)):
        twice = [name for name, count in Counter(one.names).items() if count > 1]
        if twice:
            raise ValueError(f"{one.path} has several videos called {twice[0]!r}; wanted pairs of "
                             "equal names")
        known = {*other.names, *other.left_out}
        lonely = [name for name in one.names if name not in known]
        if lonely:
            raise ValueError(f"{len(lonely)} videos of {one.path} have no partner of their name in "
                             f"{other.path}, first {lonely[0]!r}; wanted pairs of equal names")
    place = {name: i for i, name in enumerate(fake.names)}
    return [(i, place[name]) for i, name in enumerate(real.names) if name in place]


# ---------------------------------------------------------------------------------------------
# Rows

def video_rows(work: Work, sets: list[VideoSet], wanted: list[str],
               pairs: list[tuple[int, int]] | None = None) -> Rows:
    """What the metrics must know of each video of one set, or of pairs of real and fake."""
    items = pairs or [(place,) for place in range(len(sets[0].names))]

    def compute(part: list[tuple[int, ...]], first: int, missing: list[str]) -> Rows:
        videos = [load_clips(videos.source, [Clip(item[k], 0, CENTRE, CENTRE) for item in part],
                             work.processes.device)[0] for k, videos in enumerate(sets)]
        return measure_videos(work.judges, missing, *reversed(videos))

    settings = dict(of=[*(videos.content for videos in sets), items], batch=work.batch,
                    device=work.processes.device.type, **work.facts)
    return rows_on_disk(machine_cache() / f"set-{digest(settings)}", items, work.batch, compute,
                        work.processes, "pairs" if pairs else sets[0].path,
                        stored_names(wanted, work.judges))


def features_of_real(work: Work, real: VideoSet, given: str | None, save: str | None
                     ) -> tuple[Tensor, VideoSet]:
    """I3D's logits of the real set (n, 400), and the set; both from a file if one is given."""
    facts = work.facts | dict(source="the first frames of each video",
                              weights=work.judges["fvd"].weights)
    if given:
        features, told = open_features(given, facts)
        return features, VideoSet(**told["set"])
    features = video_rows(work, [real], ["fvd"])["fvd"]
    if save and not work.processes.rank:
        save_features(save, features, facts | dict(set=real._replace(source=None)._asdict()))
    return features, real


# ---------------------------------------------------------------------------------------------
# The star

def what_is_unlike(metric: str, sets: list[VideoSet], facts: dict, clips: int) -> list[str]:
    """Why a number is not to be put beside published ones. clips: of the smaller set, a fold."""
    reasons, codings = [], [set(videos.coded) for videos in sets]
    judged = metric in ("fvd", "fvd_inf", "kvd")
    if metric in ("fvd", "is") and clips < 2048:
        reasons.append(f"{clips:,} videos a fold; below 2,048 it is mostly bias")
    if judged and facts["frames"] != 16:
        reasons.append(f"{facts['frames']} frames; FVDs are published of 16")
    if facts["stride"] != 1:
        reasons.append(f"one frame of every {facts['stride']}")
    taken = (facts["frames"] - 1) * facts["stride"] + 1
    for videos in sets:
        longest = max(map(int, videos.lengths))             # keys are letters in a file
        if longest >= taken + facts["stride"]:
            reasons.append(f"{videos.path}: the first frames of videos of up to {longest}")
        other = [size for size in videos.sizes if size != facts["size"]]
        if other:
            reasons.append(f"{videos.path}: resized (antialiased) and cropped from "
                           f"{' '.join(other[:3])}{' ...' if len(other) > 3 else ''}")
        if videos.left_out:
            reasons.append(f"{videos.path}: {len(videos.left_out)} videos too short or broken, "
                           "left out")
    if len({videos.content for videos in sets}) < len(sets):
        reasons.append("both sets are the same videos")
    if any("gif" in coding for coding in codings):
        reasons.append("GIF keeps 256 colours of a picture")
    if len(sets) == 2 and codings[0] != codings[1] and metric != "is":
        reasons.append("coded unlike: " + ", ".join(f"{videos.path} {' '.join(sorted(coding))}"
                                                    for videos, coding in zip(sets, codings)))
    return reasons


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        real = random.integers(0, 256, (4, 4, 16, 16, 3), dtype=np.uint8)
        for name, noise in (("real", 0), ("a little noise", 8), ("much noise", 64)):
            fake = np.clip(real + random.normal(0, 1, real.shape) * noise, 0, 255)
            np.save(Path(folder, f"{name}.npy"), fake.astype(np.uint8))
            compare(["psnr", "ssim"], [f"{folder}/real.npy", f"{folder}/{name}.npy"])


if __name__ == "__main__":
    main()

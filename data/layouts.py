"""Data sets in the layouts people have: which clips there are, of which class.

Paper   Sec. 4.1 (the data sets), App. B.3 (their splits); App. B.2 (ImageNet for the 2D-VQ)

Files   UCF-101, with a split list          Your own, and Kinetics-600: no list needed
            DATA/ApplyEyeMakeup/v_..avi         DATA/abseiling/one.mp4     a folder per class
            DATA/v_..avi, all in one            DATA/one.mp4               or none: no classes
            LISTS/trainlist01.txt           Kinetics-600, Objectron, with their lists
            LISTS/classInd.txt                  DATA/NAME_000007_000017.mp4    LISTS/val.csv
                                                DATA/book/batch-1/0/video.MOV
        Something-Something-V2              BAIR, camera image_aux1, no TensorFlow needed
            DATA/74225.webm                     DATA/traj_0_to_255.tfrecords
            LISTS/train.json                    or TFDS's *.tfrecord-00000-of-00256
            LISTS/labels.json               Pictures for the 2D-VQ, only if asked for ("images")
        Folders of frames                       DATA/class/one.jpg
            DATA/class/clip/0001.png            DATA/one.jpg
            DATA/clip/0001.png

Read    find_layout, select (what a split list picks), read_pictures.

Not here: what lists say (split_lists.py), nuScenes cut into scenes (nuscenes.py), the inside of
        BAIR's records (bair.py); windows, crops and flips (clips.VideoFolder does
        them alike for all layouts).

Run:    python -m data.layouts DATA [LIST]      what is found there: layout, clips, classes
"""
from __future__ import annotations

import collections
import os
import re
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

import imageio.v3 as imageio
import numpy as np

from data import bair, nuscenes
from data.source import NO_LABEL
from data.split_lists import read_list

VIDEO_SUFFIXES = {".avi", ".mp4", ".mkv", ".webm", ".mpg", ".mpeg", ".mov", ".gif", ".npy"}
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg"}
SUFFIXES = {"videos": VIDEO_SUFFIXES, "frames": PICTURE_SUFFIXES, "images": PICTURE_SUFFIXES,
            "bair": bair.SUFFIXES}
LAYOUTS = ("auto", *SUFFIXES)
# Parts of a data set, as copies call them: train, videos_train, rawframes_val, train_256.
PART = re.compile(r"([a-z]+_)?(train|val|valid|validate|validation|test|replacement)(_\w+)?")


class Layout(NamedTuple):
    """The clips of a data set. A clip is a path: of a video, of a folder of frames, of a picture,
    or FILE.tfrecords/BYTE, the record that begins at that byte."""

    name: str                                # of LAYOUTS, never "auto"
    clips: list[Path]
    labels: list[int]                        # a class per clip, or NO_LABEL
    class_names: list[str]


def find_layout(root: str | Path, layout: str = "auto", split: str | Path | None = None
                ) -> Layout:
    """What there is below root.

    auto: records if there are any, else videos, else folders of frames. Frames and "images" look
    alike on disk, so the latter has to be asked for. split: a data set's own list, see
    split_lists; without one everything is taken, and the class is the first folder below root.
    FileNotFoundError where nothing is found, ValueError on a bad list or a mixed folder.
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; choose from {' '.join(LAYOUTS)}")
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}; give an existing one to --data, or to "
                                "decode.py a video with --video")
    files = list(_files(root))
    tried = ("bair", "videos", "frames") if layout == "auto" else (layout,)
    for chosen in tried:
        clips = [path for path in files if path.suffix.lower() in SUFFIXES[chosen]
                 or chosen == "bair" and bair.holds_records(path)]
        if clips:
            break
    else:
        what = {"frames": "folder of pictures", "images": "picture", "bair": "record"}
        raise FileNotFoundError(f"no {what.get(layout, 'video')} in {root}; looked for "
                                f"{' '.join(sorted(set.union(*map(SUFFIXES.get, tried))))}")
    if chosen == "bair":                     # a robot at a table: there is nothing to tell apart
        clips = bair.find_records(sorted(clips))
        whole = Layout(chosen, clips, [NO_LABEL] * len(clips), [])
    else:
        if chosen == "frames":
            clips = {path.parent for path in clips}
        if layout == "auto" and chosen == "frames":
            print(f"{root}: {len(clips)} folders of pictures, each read as the frames of a "
                  "clip (--layout images: each picture on its own)", file=sys.stderr)
        clips = sorted(clips, key=lambda path: str(path).split(os.sep))     # folder by folder
        if chosen == "frames":
            refuse_mixed(files)
        classes = [class_of(name_below(root, path)) for path in clips]
        class_names = sorted(set(classes)) if all(classes) else []
        if split is None and class_names and all(map(PART.fullmatch, class_names)):
            raise ValueError(f"{root} holds {' and '.join(class_names)}, parts of a data set and "
                             f"no classes; give one of them to --data: {root / class_names[0]}")
        number = {name: label for label, name in enumerate(class_names)}
        labels = [number[name] if number else NO_LABEL for name in classes]
        whole = Layout(chosen, clips, labels, class_names)
    return whole if split is None else select(whole, root, Path(split))


def name_below(root: Path, path: Path) -> str:
    """A clip's name in its data set, class/one.mp4: what relative_to says, in a tenth of the time,
    which millions of clips are grateful for."""
    folder, file = str(root), str(path)
    return file.removeprefix(folder.rstrip(os.sep) + os.sep) if file != folder else "."


def class_of(name: str) -> str:
    """The first folder of a clip's name; of a flat copy of UCF-101, what its file's name says
    (v_YoYo_g01_c01.avi is of YoYo); "" where there is no class."""
    folder, below, _ = name.partition(os.sep)
    named = re.fullmatch(r"v_([A-Za-z]+)_g\d+_c\d+(\.\w+)?", name)
    return folder if below else named[1] if named else ""


def refuse_mixed(files: list[Path]) -> None:
    """ValueError where one folder holds the frames of several cameras or drives: as one clip they
    would be cut from one to the next."""
    sources: dict[Path, str] = {}
    for path in files:
        if path.suffix.lower() in PICTURE_SUFFIXES:
            source = re.sub(r"[0-9]+$", "", path.stem)
            first = sources.setdefault(path.parent, source)
            if source.endswith(f"__{path.parent.name}__") and nuscenes.NAME.fullmatch(path.stem):
                raise ValueError(f"{path.parent} mixes the scenes of nuScenes; "
                                 "python -m data.nuscenes RAW OUT cuts it into scenes")
            if first != source and max(len(first), len(source)) > 1:
                raise ValueError(f"{path.parent} mixes frames of several sources, {first!r} and "
                                 f"{source!r}; give each clip its own folder, or --layout images "
                                 "takes each picture on its own")


def _files(folder: str | Path) -> Iterator[Path]:
    """All files below a folder but hidden ones and links that lead nowhere. The folder's own list
    says what is a file, so that only links are looked at: millions of looks take their time."""
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        print(f"{folder} may not be read: left out", file=sys.stderr)
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        elif not entry.name.startswith(".") and entry.is_file():
            yield Path(entry.path)


# ---------------------------------------------------------------------------------------------
# Split lists

def select(whole: Layout, root: Path, split: Path) -> Layout:
    """The clips that a list names, in its order, with its classes.

    The suffix in the list does not count: UCF-101 turned to .mp4 or to frames is still UCF-101.
    """
    if whole.name not in ("videos", "frames"):
        raise ValueError(f"{split} picks videos; {root} was read as {whole.name!r}, which takes "
                         "no list")
    wanted, class_names = read_list(split, whole.class_names)
    there = {path.relative_to(root) if whole.name == "frames"
             else path.relative_to(root).with_suffix(""): path for path in whole.clips}
    # Flat copies of UCF-101 have no folders, and Kinetics' list does not say whether there are any.
    there = {Path(stem.name): path for stem, path in there.items()
             if len(stem.parts) == 1 or split.suffix == ".csv"} | there
    wanted = [(name if Path(name).with_suffix("") in there else Path(name).name, label)
              for name, label in wanted]
    missing = [name for name, _ in wanted if Path(name).with_suffix("") not in there]
    if len(missing) == len(wanted):
        raise ValueError(f"none of the {len(wanted)} videos of {split.name} is in {root}, not even "
                         f"{(missing or ['one: it is empty'])[0]}; is that the right folder?")
    if missing:
        print(f"{len(missing)} of the {len(wanted)} videos of {split.name} are not in {root}, "
              f"{missing[0]} for one: left out", file=sys.stderr)
    chosen = [(there[stem], label) for name, label in wanted
              if (stem := Path(name).with_suffix("")) in there]
    return Layout(whole.name, *map(list, zip(*chosen)), class_names)


def with_classes(layout: Layout, class_names: list[str]) -> Layout:
    """The same clips with the numbers that a run's class_names give their classes.

    A class that is not among them is NO_LABEL.
    """
    new = {label: class_names.index(name) for label, name in enumerate(layout.class_names)
           if name in class_names}
    return layout._replace(labels=[new.get(label, NO_LABEL) for label in layout.labels],
                           class_names=class_names)


# ---------------------------------------------------------------------------------------------
# Frames of what is not a video file

def holds_pictures(path: Path) -> bool:
    """A folder of frames, a picture or a record: read_pictures reads it, not a video decoder."""
    return (path.is_dir() or path.suffix.lower() in PICTURE_SUFFIXES
            or bair.holds_records(path.parent))


def read_pictures(path: Path, start: int = 0, stop: int | None = None, stride: int = 1
                  ) -> list[np.ndarray]:
    """Frames start, start+stride, ... before stop, each uint8 (H, W, 3). ValueError, with the
    path, where one is broken or of another size."""
    if bair.holds_records(path.parent):
        return bair.record_frames(path, start, stop, stride)
    frames: list[np.ndarray] = []
    for name in _pictures(path)[start:stop:stride]:
        try:
            frames.append(imageio.imread(name, plugin="pillow", mode="RGB", rotate=True))
        except (OSError, SyntaxError) as error:        # Pillow raises both on broken files
            raise ValueError(f"{name} cannot be decoded: {error}") from None
        if frames[-1].shape != frames[0].shape:
            raise ValueError(f"{name} is {frames[-1].shape[1]}x{frames[-1].shape[0]} pixels, but "
                             f"the first frame is {frames[0].shape[1]}x{frames[0].shape[0]}")
    return frames


def inspect_pictures(path: Path) -> tuple[int, int, int]:
    """Frames, height, width: of a record, read whole, or by the header of a first picture."""
    if bair.holds_records(path.parent):
        return np.shape(bair.record_frames(path))[:3]
    pictures = _pictures(path)
    return len(pictures), *imageio.improps(pictures[0], plugin="pillow").shape[:2]


def _pictures(path: Path) -> list[Path]:
    """By name, 2.png before 10.png."""
    if path.is_file():
        return [path]
    names = [name for name in os.listdir(path)
             if Path(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".")]
    return [path / name for name in sorted(names, key=lambda name: [
        int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)])]


def main() -> None:
    if len(sys.argv) not in (2, 3):
        print("python -m data.layouts DATA [LIST, or a layout]")
        for name, suffixes in SUFFIXES.items():
            print(f"{name:8}", *sorted(suffixes))
        return
    root, more = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "auto"
    try:
        found = find_layout(root, more) if more in LAYOUTS else find_layout(root, split=more)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"layouts.py: {error}")
    print(f"{root}: {found.name}, {len(found.clips):,} clips, {len(found.class_names)} classes\n"
          f"first {found.clips[0]}\nlast  {found.clips[-1]}")
    counts = collections.Counter(found.labels)
    for label, name in enumerate(found.class_names):
        print(f"{label:5} {name:50} {counts[label]:8,}")


if __name__ == "__main__":
    main()

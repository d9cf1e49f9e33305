"""Data sets in the layouts people have: which clips there are, of which class.

Paper   Sec. 4.1 (the data sets), App. B.3 (their splits); App. B.2 (ImageNet for the 2D-VQ)

Files   UCF-101, with a split list          Kinetics-600, nuScenes, your own: no list needed
            DATA/ApplyEyeMakeup/v_..avi         DATA/abseiling/one.mp4     a folder per class
            LISTS/trainlist01.txt               DATA/one.mp4               or none: no classes
            LISTS/classInd.txt
        Something-Something-V2              BAIR, camera image_aux1, no TensorFlow needed
            DATA/74225.webm                     DATA/traj_0_to_255.tfrecords
            LISTS/train.json
            LISTS/labels.json               Pictures for the 2D-VQ, only if asked for ("images")
        Folders of frames                       DATA/class/one.jpg
            DATA/class/clip/0001.png            DATA/one.jpg
            DATA/clip/0001.png

Read    find_layout, select (what a split list picks), read_pictures.

Not here: the inside of BAIR's records (bair.py); windows, crops and flips (clips.VideoFolder does
        them alike for all layouts).

Run:    python -m data.layouts DATA [LIST]      what is found there: layout, clips, classes
"""
from __future__ import annotations

import collections
import json
import os
import re
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

import imageio.v3 as imageio
import numpy as np

from data import bair
from data.source import NO_LABEL

VIDEO_SUFFIXES = {".avi", ".mp4", ".mkv", ".webm", ".mpg", ".mpeg", ".mov", ".gif", ".npy"}
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg"}
SUFFIXES = {"videos": VIDEO_SUFFIXES, "frames": PICTURE_SUFFIXES, "images": PICTURE_SUFFIXES,
            "bair": bair.SUFFIXES}
LAYOUTS = ("auto", *SUFFIXES)


class Layout(NamedTuple):
    """The clips of a data set. A clip is a path: of a video, of a folder of frames, of a picture,
    or FILE.tfrecords/BYTE, the record that begins at that byte."""

    name: str                                # of LAYOUTS, never "auto"
    clips: list[Path]
    labels: list[int]                        # a class per clip, or NO_LABEL
    class_names: list[str]


def find_layout(root: str | Path, layout: str = "auto", split: str | Path | None = None) -> Layout:
    """What there is below root.

    auto: records if there are any, else videos, else folders of frames. Frames and "images" look
    alike on disk, so the latter has to be asked for. split: the official list of UCF-101 (.txt)
    or Something-Something (.json); without one everything is taken, and the class is the first
    folder below root. FileNotFoundError where nothing is found, ValueError on a bad list.
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; choose from {' '.join(LAYOUTS)}")
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}; give an existing one to --data")
    files = list(_files(root))
    tried = ("bair", "videos", "frames") if layout == "auto" else (layout,)
    for chosen in tried:
        clips = [path for path in files if path.suffix.lower() in SUFFIXES[chosen]]
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
        clips = sorted(clips)
        folders = [path.relative_to(root).parts[:-1] for path in clips]
        class_names = sorted({parts[0] for parts in folders}) if all(folders) else []
        number = {name: label for label, name in enumerate(class_names)}
        labels = [number[parts[0]] if number else NO_LABEL for parts in folders]
        whole = Layout(chosen, clips, labels, class_names)
    return whole if split is None else select(whole, root, Path(split))


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
    if not split.is_file():
        raise FileNotFoundError(f"no split list {split}")
    if split.suffix == ".json":
        wanted, class_names = something_list(split)
    else:
        wanted, class_names = ucf101_list(split, whole.class_names)
    there = {path.relative_to(root) if whole.name == "frames"
             else path.relative_to(root).with_suffix(""): path for path in whole.clips}
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


def ucf101_list(split: Path, folders: list[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """(file, class) of each line "Class/video.avi" or "Class/video.avi 1", and the class names.

    classInd.txt beside the list has "1 Class" per line; our classes begin at 0. Without it they
    are the sorted names in the list and of `folders`, so that train and test agree.
    """
    rows = [line.split() for line in split.read_text().splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) > 2 or "/" not in row[0] or not all(word.isdigit() for word in row[1:]):
            raise ValueError(f"{split} has {' '.join(row)!r} as entry {number}; wanted "
                             "'Class/video.avi' or 'Class/video.avi 1'")
    classes = [row[0].split("/")[0] for row in rows]
    class_file = split.with_name("classInd.txt")
    if not class_file.exists():
        class_names = sorted({*classes, *folders})
    else:
        lines = [line.split() for line in class_file.read_text().splitlines() if line.strip()]
        if any(len(line) != 2 or not line[0].isdigit() for line in lines):
            raise ValueError(f"{class_file} should have lines like '1 ApplyEyeMakeup'")
        class_names = _in_order({name: int(number) - 1 for number, name in lines}, class_file)
        for name, row in zip(classes, rows):
            number = str(class_names.index(name) + 1) if name in class_names else "no class"
            if name not in class_names or row[1:] not in ([], [number]):
                raise ValueError(f"{split} has {' '.join(row)!r}, but {class_file.name} says that "
                                 f"{name} is {number}")
    return [(row[0], class_names.index(name)) for name, row in zip(classes, rows)], class_names


def something_list(split: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """(id, class) of each entry, and the class names: the templates without their brackets.

    labels.json (or something-something-v2-labels.json) beside the list numbers them, as strings.
    """
    entries = _json(split)
    if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and {"id", "template"} <= set(entry) for entry in entries):
        raise ValueError(f"{split} is no list of {{\"id\", \"label\", \"template\"}}; take the "
                         "train or validation list (the test list has no classes)")
    names = [re.sub(r"[\[\]]", "", entry["template"]) for entry in entries]
    label_files = sorted(split.parent.glob("*labels.json"))
    if not label_files:
        raise FileNotFoundError(f"no labels.json beside {split}; it numbers the classes")
    numbers = _json(label_files[0])
    if not isinstance(numbers, dict) or not all(str(n).isdigit() for n in numbers.values()):
        raise ValueError(f"{label_files[0]} should be like {{\"Holding something\": \"0\"}}")
    label = {name: int(number) for name, number in numbers.items()}
    unknown = sorted(set(names) - set(label))
    if unknown:
        raise ValueError(f"{split} has the class {unknown[0]!r}, {label_files[0].name} has not")
    return ([(str(entry["id"]), label[name]) for entry, name in zip(entries, names)],
            _in_order(label, label_files[0]))


def _json(path: Path) -> list | dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None


def _in_order(label: dict[str, int], path: Path) -> list[str]:
    names = sorted(label, key=label.get)
    if [label[name] for name in names] != list(range(len(names))):
        raise ValueError(f"{path} does not number its {len(names)} classes one after the other")
    return names


# ---------------------------------------------------------------------------------------------
# Frames of what is not a video file

def holds_pictures(path: Path) -> bool:
    """A folder of frames, a picture or a record: read_pictures reads it, not a video decoder."""
    return (path.is_dir() or path.suffix.lower() in PICTURE_SUFFIXES
            or path.parent.suffix in bair.SUFFIXES)


def read_pictures(path: Path, start: int = 0, stop: int | None = None, stride: int = 1
                  ) -> list[np.ndarray]:
    """Frames start, start+stride, ... before stop, each uint8 (H, W, 3). ValueError, with the
    path, where one is broken or of another size."""
    if path.parent.suffix in bair.SUFFIXES:
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
    """Frames, height, width. A record is read whole; a folder's first picture speaks for the
    others, by its header."""
    if path.parent.suffix in bair.SUFFIXES:
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

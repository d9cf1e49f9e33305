"""What lies in a folder: which clips there are, of which class, and how long each of them is.

Paper   Sec. 4.1 (the data sets), App. B.3 (their splits); App. B.2 (ImageNet for the 2D-VQ)

Files   a data set, with classes or without     official lists
            DATA/class/one.mp4, DATA/one.mp4        UCF-101       trainlist01.txt, classInd.txt
            DATA/class/clip/0001.png                Kinetics      val.csv
            DATA/class/one.jpg ("images")           Something-V2  train.json, labels.json
        INDEX.json: {"class/one.mp4": {"stamp": [size, time], "frames": 300, "height": 240,
                     "width": 320, "keys": [[0, 0], [12, 6144]], "error": ""}, ...}

Read    find_layout, which is the definition of a data set (docs/data.md has it in ten lines);
        select and read_list, for lists; count_frames, for the index.

Not here: the inside of a file (decoding.py), the choice of windows (clips.py), raw archives
        (prepare.py turns them into such folders).
"""
from __future__ import annotations

import csv
import json
import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np
from tqdm import tqdm

from data import decoding
from data.decoding import PICTURES, Keys, inspect_file, is_picture, naming, same_size
from data.source import NO_LABEL, cores

VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .apng .asf .avi .dv .f4v .flv .gif .h264 .hevc .ivf .m1v .m2t .m2ts .m2v .m4v .mj2 "
    ".mjpeg .mjpg .mkv .mov .mp4 .mpe .mpeg .mpg .mts .mxf .npy .nut .ogg .ogm .ogv .qt .rm .rmvb "
    ".ts .vob .webm .webp .wmv .y4m".split())
LAYOUTS = ("auto", "images")
KINDS = dict(videos="video{s}", frames="folder{s} of frames", images="picture{s}")
HIDDEN = re.compile(r"[.@$#].*|__.*|Thumbs\.db|desktop\.ini|lost\+found|System Volume Information",
                    re.IGNORECASE)
# Parts of a data set, as copies call them: train, videos_train, rawframes_val, train_256.
PART = re.compile(r"([a-z]+_)?(train|val|valid|validate|validation|test|replacement)(_\w+)?")
UCF101 = re.compile(r"v_([A-Za-z]+)_g\d+_c\d+(\.\w+)?")
NUSCENES = re.compile(r"n\d+-[\d-]+[+-]\d+__[A-Z_]+__\d+")
# A number in a frame's name: 12, 1305031102.175304, or 20240131_120501_123 unless it follows a
# letter (cam0_0001 is frame 1 of cam0).
NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?:[._-]\d+)*|\d+(?:\.\d+)?")


class Layout(NamedTuple):
    """The clips of a data set. A clip is the path of a video, of a folder of frames, or of a
    picture."""

    name: str                                # "videos", "frames" or "images"
    clips: list[Path]
    labels: list[int]                        # a class per clip, or NO_LABEL
    class_names: list[str]
    left_out: tuple[str, ...] = ()           # what else lies there: "3 files of other kinds"


# ---------------------------------------------------------------------------------------------
# The definition of a data set

def find_layout(root: str | Path, layout: str = "auto", split: str | Path | None = None
                ) -> Layout:
    """What there is below root, in the order of the folders.

    auto: each video is a clip, or else each folder of pictures is the frames of one; where there
    are both, what there is more of. "images": each picture is a clip of one frame. The class is
    the first folder below root. A clip beside the class folders is left out, unless there are as
    many of those: then none has a class. split: an official list, whose videos alone are taken.
    FileNotFoundError where nothing is found, ValueError on a bad list or parts of a data set.
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; choose from {' '.join(LAYOUTS)}")
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {root}; give an existing one to --data, or to "
                                "decode.py a video with --video")
    left_out: Counter[str] = Counter()
    name, clips = _clips(root, layout, left_out)
    clips.sort(key=lambda path: str(path).split(os.sep))
    classes = [class_of(name_below(root, path)) for path in clips]
    flat = classes.count("")
    if 2 * flat >= len(clips):
        classes = [""] * len(clips)
    elif split is None and flat:
        left_out[f"{KINDS[name]} beside the class folders"] += flat
        clips = [clip for clip, its in zip(clips, classes) if its]
        classes = [its for its in classes if its]
    class_names = sorted({*classes} - {""})
    if split is None and class_names and all(map(PART.fullmatch, class_names)):
        raise ValueError(f"{root} holds {' and '.join(class_names)}, parts of a data set and "
                         f"no classes; give one of them to --data: {root / class_names[0]}")
    labels = _numbered(classes, class_names)
    notes = tuple(f"{count} {what.format(s='' if count == 1 else 's')}"
                  for what, count in left_out.items() if count)
    whole = Layout(name, clips, labels, class_names, notes)
    return whole if split is None else select(whole, root, Path(split))


def _clips(root: Path, layout: str, left_out: Counter[str]) -> tuple[str, list[Path]]:
    """The kind of a data set and its clips; what else lies there is counted in left_out."""
    videos: list[Path] = []
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in _files(root, left_out):
        suffix = path.suffix.lower()
        if suffix in PICTURES and (suffix != ".webp" or is_picture(path)):
            folders[path.parent].append(path)
        elif suffix in VIDEO_SUFFIXES:
            videos.append(path)
        else:
            left_out["file{s} of other kinds"] += 1
    pictures = [path for of_one in folders.values() for path in of_one]
    if layout == "images":
        if not pictures:
            raise FileNotFoundError(f"no picture in {root}; wanted files like one.png or one.jpg")
        left_out["video{s}"] += len(videos)
        return "images", pictures
    if videos and sum(len(of_one) > 1 for of_one in folders.values()) <= len(videos):
        left_out["picture{s}"] += len(pictures)
        return "videos", videos
    if not folders:
        raise FileNotFoundError(
            f"no video in {root}; wanted files like one.mp4, .avi, .mkv, .webm, .gif or .npy, or "
            "folders of frames. Raw archives (.tfrecords) become such a folder by python -m "
            "data.prepare")
    left_out["video{s}"] += len(videos)
    clips, mixed = [], []
    for folder, of_one in folders.items():
        try:
            left = len(of_one) - len(frames_among(of_one))
            left_out["picture{s} twice or of other names"] += left
            clips.append(folder)
        except ValueError as error:
            mixed.append(str(error))
            left_out["folder{s} of mixed pictures"] += 1
    if not clips:
        raise ValueError(mixed[0])
    if mixed:
        print(mixed[0], file=sys.stderr)
    print(f"{root}: {len(clips)} folders of pictures, each read as the frames of a clip "
          "(--layout images: each picture on its own)", file=sys.stderr)
    return "frames", clips


def _files(root: Path, left_out: Counter[str]) -> Iterator[Path]:
    """All files below root but hidden ones. Links to folders are followed once the real folders
    are through, and each real folder is read once, so that no link leads in a circle."""
    seen: set[str] = set()
    folders, links = [str(root)], []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            left_out["link{s} to a folder that is used already"] += 1
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            left_out["folder{s} that cannot be read"] += 1
            continue
        for entry in entries:
            is_link = entry.is_symlink()
            is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
            if HIDDEN.fullmatch(entry.name):
                left_out["hidden folder{s}" if is_folder else "hidden file{s}"] += 1
            elif is_folder:
                (links if is_link else folders).append(entry.path)
            elif os.path.isfile(entry.path) if is_link else entry.is_file():
                yield Path(entry.path)
            elif is_link:
                left_out["link{s} that leads nowhere"] += 1


def name_below(root: Path, path: Path) -> str:
    """A clip's name in its data set, class/one.mp4: what relative_to says, in a tenth of the time,
    which counts for millions of clips."""
    folder, file = str(root), str(path)
    return file.removeprefix(folder.rstrip(os.sep) + os.sep) if file != folder else "."


def class_of(name: str) -> str:
    """The first folder of a clip's name; of a flat copy of UCF-101, what its file's name says
    (v_YoYo_g01_c01.avi is of YoYo); "" where there is no class."""
    folder, below, _ = name.partition(os.sep)
    named = UCF101.fullmatch(name)
    return folder if below else named[1] if named else ""


def with_classes(layout: Layout, class_names: list[str]) -> Layout:
    """The same clips with the numbers that a run's class_names give their classes.

    A class that is not among them is NO_LABEL.
    """
    own = [layout.class_names[label] if label != NO_LABEL else "" for label in layout.labels]
    return layout._replace(labels=_numbered(own, class_names), class_names=class_names)


def _numbered(classes: list[str], class_names: list[str]) -> list[int]:
    number = {name: label for label, name in enumerate(class_names)}
    return [number.get(its, NO_LABEL) for its in classes]


# ---------------------------------------------------------------------------------------------
# Folders of frames

def frames_among(pictures: list[Path]) -> list[Path]:
    """The frames of a clip among the pictures of its folder, in no order: those of the source
    that most of them are of, each once, a .png before others.

    A source is what a name is without the number that counts: "left_" of left_001.png. A number
    that many frames share (the 0 of cam0_0001.png) is part of it. ValueError where no source has
    more than half of the pictures: as one clip, they would be cut from one to the other.
    """
    once: dict[str, Path] = {}
    for path in sorted(pictures, key=lambda path: (path.suffix.lower() != ".png", path.name)):
        once.setdefault(path.stem, path)
    if any(map(NUSCENES.fullmatch, once)):
        raise ValueError(f"left out {pictures[0].parent}, which mixes the scenes of nuScenes; "
                         "python -m data.prepare nuscenes RAW OUT cuts it into scenes")
    numbers = {stem: NUMBER.findall(stem) for stem in once}
    patterns = {stem: NUMBER.sub("#", stem) for stem in once}
    values: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for stem, found in numbers.items():
        for place, number in enumerate(found):
            values[patterns[stem], place][number] += 1
    sources: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for stem, path in once.items():
        pattern = patterns[stem]
        shared = (number for place, number in enumerate(numbers[stem])
                  if len(values[pattern, place]) * 2 <= values[pattern, place].total())
        pattern = "#" if len(pattern) == 1 else pattern            # a.png, b.png, c.png
        sources[pattern, *shared].append(path)
    frames = max(sources.values(), key=len)
    if 2 * len(frames) <= len(once):
        one, other = sorted(files[0].name for files in sources.values())[:2]
        raise ValueError(f"left out {pictures[0].parent}, which mixes frames of several sources, "
                         f"such as {one} and {other}; give each clip its own folder, or --layout "
                         "images takes each picture on its own")
    return frames


def pictures_of(folder: Path) -> list[Path]:
    """The frames of a folder in the order of their numbers, 2.png before 10.png."""
    names = [Path(name) for name in os.listdir(folder) if not HIDDEN.fullmatch(name)]
    there = [folder / name for name in names if name.suffix.lower() in PICTURES]
    return sorted(frames_among(there), key=lambda path: _order(path.stem)) if there else []


def _order(stem: str) -> list[tuple]:
    """Numbers by their value, seconds since 1970 by their decimals too."""
    parts = re.findall(r"\d{9,}\.\d+|\d+|\D+", stem)
    return [(0, float(part), part) if "." in part and part[0].isdecimal() else
            (0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def read_frames(path: Path, start: int = 0, stop: int | None = None, stride: int = 1,
                keys: Keys | None = None) -> Iterator[np.ndarray]:
    """decoding.read_frames of a file, or likewise of a folder of frames."""
    if not path.is_dir():
        return decoding.read_frames(path, start, stop, stride, keys)
    return _folder_frames(path, start, stop, stride)


def _folder_frames(folder: Path, start: int, stop: int | None, stride: int
                   ) -> Iterator[np.ndarray]:
    with naming(folder):
        pictures = pictures_of(folder)[start:stop:stride]
        yield from same_size(next(decoding.read_frames(picture, stop=1)) for picture in pictures)


# ---------------------------------------------------------------------------------------------
# Official lists: which videos are of a split, and of which class each is

Listed = tuple[list[tuple[str, int]], list[str]]      # (name below the data folder, class), classes


def select(whole: Layout, root: Path, split: Path) -> Layout:
    """The clips that a list names, in its order, each once, with the list's classes.

    Names are compared without suffix, case and form of accents: UCF-101 turned to .mp4 or to
    frames is still UCF-101. Of two paths one has to end with the other, so that flat copies are
    found, and lists that begin a folder higher. ValueError where none of them is there.
    """
    if whole.name == "images":
        raise ValueError(f"{split} picks videos; {root} is read as images, which take no list")
    wanted, class_names = read_list(split, whole.class_names)
    there: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for path in whole.clips:
        folded = "/" + _folded(name_below(root, path))
        there[os.path.basename(folded)].append((folded, path))
    chosen: dict[Path, int] = {}
    missing = []
    for name, label in wanted:
        its = "/" + _folded(name)
        found = [(min(len(its), len(other)), path.suffix == Path(name).suffix, path)
                 for other, path in there[os.path.basename(its)]
                 if its.endswith(other) or other.endswith(its)]
        if not found:
            missing.append(name)
            continue
        path = max(found, key=lambda one: one[:2])[2]
        if chosen.setdefault(path, label) != label:
            raise ValueError(f"{split} has {name!r} in {class_names[label]!r} and in "
                             f"{class_names[chosen[path]]!r}; wanted one class for each video")
    if not chosen:
        tried = f"not even {missing[0]!r}" if missing else "it is empty"
        raise ValueError(f"none of the {len(wanted)} videos of {split.name} is in {root}, {tried}; "
                         "is that the right folder?")
    notes = list(whole.left_out)
    if missing:
        notes.append(f"{len(missing)} of the {len(wanted)} videos of {split.name} are not in "
                     f"{root}, {missing[0]!r} for one")
    if twice := len(wanted) - len(missing) - len(chosen):
        notes.append(f"{twice} entries of {split.name} for videos that it names twice")
    return Layout(whole.name, list(chosen), list(chosen.values()), class_names, tuple(notes))


def _folded(name: str) -> str:
    """A name as it is compared: one form of accents, no case, no suffix of a video."""
    name = unicodedata.normalize("NFC", name).casefold()
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix in VIDEO_SUFFIXES else name


def read_list(split: Path, folders: list[str]) -> Listed:
    """Each video's name and its class, in the order of the list; and the names of the classes.

    folders: those of classes that the data have, for lists that do not number theirs.
    FileNotFoundError where the list or one beside it is missing; ValueError, with file and line,
    where it is not what it should be.
    """
    if not split.is_file():
        raise FileNotFoundError(f"no split list {split}")
    kind = {".json": something_list, ".csv": kinetics_list}.get(split.suffix.lower())
    return kind(split) if kind else ucf101_list(split, folders)


def list_text(path: Path) -> str:
    """A text file as programs of all kinds write it: UTF-8 or UTF-16, with a byte-order mark or
    without, else Latin-1. Accents are composed."""
    data = path.read_bytes()
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    encoding = ("utf-16" if wide else "utf-16-le" if data[1:2] == b"\0" else
                "utf-16-be" if data[:1] == b"\0" else "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return unicodedata.normalize("NFC", text)


def list_rows(path: Path) -> list[tuple[int, str]]:
    """(number, line) of what is said in a text file: no comments, no blank lines, no quotes."""
    lines = re.split(r"\r\n|\r|\n", list_text(path))
    rows = [(number, line.strip().replace('"', "")) for number, line in enumerate(lines, 1)]
    return [(number, line) for number, line in rows if line and not line.startswith("#")]


def ucf101_list(split: Path, folders: list[str]) -> Listed:
    """Lines "Class/video.avi" or "Class/video.avi 1".

    classInd.txt beside the list has "1 Class" per line; our classes begin at 0. Without it they
    are the sorted names in the list and of `folders`, so that train and test agree.
    """
    class_file, class_names, base = _class_file(split)
    known = {_folded(name): name for name in class_names or folders}
    paths, classes = [], []
    for line, row in list_rows(split):
        name, number = re.fullmatch(r"(.+?)(?:[\s,;]+(\d+)(?:\.0+)?)?", row).groups()
        parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
        *above, file = parts or [""]
        ucf = UCF101.fullmatch(file)
        its = next((known[_folded(part)] for part in above if _folded(part) in known),
                   above[-1] if above else ucf[1] if ucf else None)
        if its is None and class_file and number and 0 <= int(number) - base < len(class_names):
            its = class_names[int(number) - base]
        if its is None:
            raise ValueError(f"{split}, line {line}, has {row!r}; wanted 'Class/video.avi' or "
                             "'Class/video.avi 1'")
        if class_file:
            says = str(class_names.index(its) + base) if its in class_names else "no class"
            if says == "no class" or number not in (None, says):
                raise ValueError(f"{split}, line {line}, has {row!r}, but {class_file.name} says "
                                 f"that {its!r} is {says}")
        its = known.setdefault(_folded(its), its)
        paths.append("/".join(parts))
        classes.append(its)
    class_names = class_names or sorted({*folders, *classes})
    return list(zip(paths, _numbered(classes, class_names))), class_names


def _class_file(split: Path) -> tuple[Path | None, list[str], int]:
    """classInd.txt beside a list, its classes in their order, and the number of the first."""
    paths = [path for path in split.parent.iterdir() if path.name.lower() == "classind.txt"]
    if not paths:
        return None, [], 0
    label = {}
    for line, row in list_rows(paths[0]):
        found = re.fullmatch(r"(\d+)(?:\.0+)?[\s,;]+(.+)", row)
        if not found:
            raise ValueError(f"{paths[0]}, line {line}, has {row!r}; wanted a line like "
                             "'1 ApplyEyeMakeup'")
        label[found[2]] = int(found[1])
    base = min(label.values(), default=1)
    if base > 1:
        raise ValueError(f"{paths[0]} begins with class {base}; wanted 1")
    return paths[0], _in_order({name: n - base for name, n in label.items()}, paths[0]), base


def something_list(split: Path) -> Listed:
    """Something-Something's [{"id": "74225", "template": "..."}, ...], without the brackets.

    labels.json (or something-something-v2-labels.json) beside the list numbers the templates.
    """
    entries = _json(split)
    try:
        names = [re.sub(r"[\[\]]", "", entry["template"]) for entry in entries]
        ids = [str(entry["id"]) for entry in entries]
    except (KeyError, TypeError):
        raise ValueError(f"{split} has an entry without \"id\" and \"template\"; take the train or "
                         "validation list (the test list has no classes)") from None
    label_files = sorted(split.parent.glob("*labels.json"))
    if not label_files:
        raise FileNotFoundError(f"no labels.json beside {split}; it numbers the classes")
    try:
        label = {name: int(float(number)) for name, number in _json(label_files[0]).items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{label_files[0]} should be like {{\"Holding something\": \"0\"}}"
                         ) from None
    unknown = sorted({*names} - {*label})
    if unknown:
        raise ValueError(f"{split} has the class {unknown[0]!r}, {label_files[0].name} has not")
    return list(zip(ids, (label[name] for name in names))), _in_order(label, label_files[0])


def _json(path: Path) -> list | dict:
    try:
        return json.loads(list_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None


def _in_order(label: dict[str, int], path: Path) -> list[str]:
    names = sorted(label, key=label.get)
    if [label[name] for name in names] != list(range(len(names))):
        raise ValueError(f"{path} does not number its {len(names)} classes one after the other")
    return names


def kinetics_list(split: Path) -> Listed:
    """Kinetics' csv: a clip is NAME_START_END, its seconds with six digits, whatever its folder."""
    needed = ["label", "youtube_id", "time_start", "time_end"]
    lines = re.split(r"\r\n|\r|\n", list_text(split))
    header = lines[0]
    rows = csv.reader(lines, delimiter=max(",;\t", key=header.count))
    columns = [name.strip().lower() for name in next(rows, [])]
    if not {*needed} <= {*columns}:
        raise ValueError(f"{split} has no columns {','.join(needed)}; take Kinetics' own train.csv "
                         "or val.csv (the test list has no labels)")
    names, classes = [], []
    for row in filter(None, rows):
        said = dict(zip(columns, row))
        try:
            start, end = (int(float(said[name])) for name in needed[2:])
            names.append(f"{said['youtube_id'].strip()}_{start:06}_{end:06}")
            classes.append(said["label"].strip())
        except (KeyError, ValueError, OverflowError):
            raise ValueError(f"{split}, line {rows.line_num}, has {','.join(row)!r}; wanted "
                             f"{','.join(columns)}") from None
    class_names = sorted({*classes})
    return list(zip(names, _numbered(classes, class_names))), class_names


# ---------------------------------------------------------------------------------------------
# How long each clip is: counted once, kept in an index

FACTS = {"stamp", "frames", "height", "width", "keys", "error"}
SHOWN_FROM = 200                         # files that are worth a progress bar


def count_frames(paths: list[Path], root: Path, index: str | Path | None) -> dict[str, dict]:
    """What inspect says of each clip, and its stamp, by its name below root; kept in `index`.

    Each is asked for its size and time, many at once, since a network answers late: a file that
    was replaced must not be read with the counts of another. Only what is new is opened. What is
    broken is not kept, and looked at anew the next time: it may be the disk that failed. The index
    is saved now and then, since a long list takes long to count. It is only a convenience: a broken
    one is put aside, and one that cannot be written is named.
    """
    known = _load_index(index)
    names = {name_below(root, path): path for path in paths}
    with ThreadPoolExecutor(32) as pool:
        stamps = dict(zip(names, pool.map(_stamp, names.values(), chunksize=16)))
    counts = {name: known[name] for name, stamp in stamps.items()
              if name in known and known[name]["stamp"] == stamp}
    new = [name for name in names if name not in counts]
    saved, pool = len(counts), ThreadPoolExecutor(cores())
    try:
        found = zip(new, pool.map(inspect, (names[name] for name in new)))
        for name, facts in tqdm(found, "counting frames", len(new), unit=" files", mininterval=1.0,
                                disable=len(new) <= SHOWN_FROM):
            counts[name] = dict(stamp=stamps[name], **facts)
            if len(counts) > max(1000, 1.25 * saved):
                saved = len(counts)
                _save_index({**known, **counts}, index)
    finally:
        pool.shutdown(cancel_futures=True)
        if new:
            _save_index({**known, **counts}, index)
    return {name: counts[name] for name in names}


def _stamp(path: Path) -> list[int]:
    """Size and time of a file or a folder; none of one that cannot be asked."""
    try:
        there = path.stat()
    except OSError:
        return []
    return [there.st_size, there.st_mtime_ns]


def inspect(path: Path) -> dict:
    """decoding.inspect_file of a file; of a folder, its frames and the size of the first."""
    if not path.is_dir():
        return inspect_file(path)
    try:
        pictures = pictures_of(path)
        if not pictures:
            raise ValueError("holds no frames")
    except (OSError, ValueError) as error:
        return dict(frames=0, height=0, width=0, keys=[], error=str(error))
    facts = inspect_file(pictures[0])
    return facts | dict(frames=0 if facts["error"] else len(pictures))


def _load_index(index: str | Path | None) -> dict[str, dict]:
    """What an index holds; nothing of one that is broken, which is put aside."""
    if index is None or not Path(index).exists():
        return {}
    try:
        known = json.loads(Path(index).read_text())
        if not all(FACTS <= facts.keys() for facts in known.values()):
            raise ValueError("no list of files")
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        print(f"{index} is broken ({error}): put aside as {Path(index).name}.broken and made anew",
              file=sys.stderr)
        with _saving(index):
            os.replace(index, f"{index}.broken")
        return {}
    return known


def _save_index(counts: dict[str, dict], index: str | Path | None) -> None:
    """Write the sound files of an index, all or nothing."""
    if index is None:
        return
    temporary = Path(f"{index}.{os.getpid()}")
    with _saving(index):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({name: facts for name, facts in counts.items()
                                         if not facts["error"]}))
        os.replace(temporary, index)


@contextmanager
def _saving(index: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        print(f"{index} cannot be written ({error.strerror}): frames will be counted again",
              file=sys.stderr)

"""Raw archives into plain folders, once: videos without loss, or links; no pixel is changed.

Paper   Sec. 4.1 and App. B.3 (BAIR Robot Pushing; nuScenes: front camera only, 32 frames per
        video, 5.4K and 0.6K; Objectron)

Files   bair        RAW/train/traj_0_to_255.tfrecords, or TensorFlow Datasets'
                    RAW/NAME-train.tfrecord-00000-of-00256, read without TensorFlow
                      -> OUT/train/traj_0_to_255-000.mp4, 30 frames of 64x64 each
        nuscenes    RAW/samples/CAM_FRONT/LOG__CAM_FRONT__1532402927612460.jpg, RAW/sweeps/...,
                    RAW/v1.0-trainval/{log,scene,sample}.json
                      -> OUT/train/scene-0061-0/00.jpg ... 31.jpg, OUT/test of every tenth scene
        objectron   RAW/videos/book/batch-1/0/video.MOV, RAW/index/book_annotations_train
                      -> OUT/train/book/batch-1_0.mov

Read    prepare_bair, prepare_nuscenes, prepare_objectron; record_frames (a TFRecord).

Run:    python -m data.prepare bair|nuscenes|objectron RAW OUT
        then python train.py PRESET --data OUT/train --test-data OUT/test

Each video is made under another name and renamed when it is whole. So a command that was stopped
resumes: what is there is not made again.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Iterator, NamedTuple

import imageio.v3 as imageio
import numpy as np

from data.clips import write_lossless

Made = dict[str, int]                                  # part -> how many videos are in it


# ---------------------------------------------------------------------------------------------
# BAIR: TFRecords, each a tf.train.Example

# The camera of the paper's numbers and the official configuration. Video Diffusion reports on the
# other one, image_main: its number is on different videos.
CAMERA = "image_aux1"
SIDE = 64                                              # pixels, stored raw as RGB, or as PNG


def prepare_bair(raw: Path, out: Path) -> Made:
    """A lossless video of each trajectory below raw. What is damaged is named on stderr."""
    files = sorted(path for path in raw.rglob("*.tfrecord*") if path.is_file())
    if not files:
        raise FileNotFoundError(f"no *.tfrecords below {raw}; give the folder of "
                                "softmotion30_44k, or of TensorFlow Datasets' "
                                "bair_robot_pushing_small")
    made: Counter[str] = Counter()
    for path in files:
        part = part_of(path, raw)
        stem = path.name.replace(".tfrecords", "").replace(".tfrecord", "")
        with damage_named():                           # where the next record begins is not known
            for number, data in enumerate(records(path)):
                with damage_named():                   # of this record alone
                    video = out / part / f"{stem}-{number:03}.mp4"
                    if not video.exists():
                        write_lossless(video, record_frames(data, f"{path}, record {number}"))
                    made[part or "."] += 1
    return dict(made)


@contextmanager
def damage_named() -> Iterator[None]:
    """A ValueError becomes a line on stderr."""
    try:
        yield
    except ValueError as error:
        print(f"left out: {error}", file=sys.stderr)


def part_of(path: Path, raw: Path) -> str:
    """ "train" or "test", by a file's name or its folder; "" where neither says."""
    named = re.search(r"-(train|test|val\w*)\.tfrecord-", path.name)
    folder = path.parent.name if path.parent != raw else raw.name
    return named[1] if named else folder if re.fullmatch(r"train|test|val\w*", folder) else ""


def records(path: Path) -> Iterator[bytes]:
    """The data of each record of a file: length (8 bytes), its checksum (4), data, its checksum.

    ValueError at the first that is cut short: where the next begins is not known then. No checksum
    is verified: a damaged record is not a trajectory, which record_frames notices.
    """
    with open(path, "rb") as file:
        number = 0
        while header := file.read(12):
            length = int.from_bytes(header[:8], "little")
            left = os.path.getsize(path) - file.tell()
            if len(header) < 12 or left < length + 4:
                raise ValueError(f"{path} from record {number} on: the file ends in the middle of "
                                 "it, or its length is damaged")
            yield file.read(length)
            file.read(4)
            number += 1


def record_frames(data: bytes, name: str) -> np.ndarray:
    """A tf.train.Example -> its camera's frames, uint8 (T, 64, 64, 3). ValueError with its name
    where it is damaged or holds something else.

    The protobuf is features (field 1) -> map entry (1) -> key (1) and Feature (2) -> bytes_list
    (1) -> values (1). A frame is raw RGB under "T/image_aux1/encoded"; in TensorFlow Datasets'
    copy all of them, as PNG, are under "image_aux1".
    """
    try:
        features = {}
        for _, message in fields(memoryview(data)):
            for _, entry in fields(message):
                parts = dict(fields(entry))
                features[bytes(parts[1]).decode()] = parts[2]
        if CAMERA in features:
            frames = [imageio.imread(bytes(value), plugin="pillow", mode="RGB")
                      for value in values_of(features[CAMERA])]
        else:
            frames = []
            while (key := f"{len(frames)}/{CAMERA}/encoded") in features:
                value, = values_of(features[key])
                frames.append(np.frombuffer(value, np.uint8).reshape(SIDE, SIDE, 3))
        if not frames:
            raise ValueError(f"no {CAMERA}; its first keys are "
                             f"{' '.join(sorted(features)[:4]) or 'none'}")
        if {frame.shape for frame in frames} != {(SIDE, SIDE, 3)}:
            raise ValueError(f"frames of {frames[0].shape}; wanted {SIDE}x{SIDE}")
        return np.stack(frames)
    except (ValueError, KeyError, OSError, SyntaxError) as error:    # Pillow raises the last two
        raise ValueError(f"{name} is damaged or no trajectory of BAIR: {error}") from None


def values_of(feature: memoryview) -> list[memoryview]:
    """The bytes that a Feature lists."""
    return [value for kind, items in fields(feature) if kind == 1 for _, value in fields(items)]


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of a protobuf message's fields, all of which have a length: so it is from a
    tf.train.Example down to its bytes. ValueError where it is anything else."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        size, position = _varint(message, position)
        if tag % 8 != 2 or position + size > len(message):
            raise ValueError("a protobuf message has a field of another kind, or ends in one")
        yield tag // 8, message[position:position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits each, low ones first; and where it ends."""
    value = 0
    for place, byte in enumerate(message[position:position + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:                                 # the eighth bit says that another follows
            return value, position + place + 1
    raise ValueError("a protobuf message has a number without an end")


# ---------------------------------------------------------------------------------------------
# nuScenes: the front camera's pictures, cut into scenes and videos of 32 frames

NUSCENES = re.compile(r"(?P<log>n\d+-[\d-]+[+-]\d+)__CAM_FRONT__(?P<time>\d+)")
VIDEO = 32                                              # frames
PAUSE = 500_000                                         # microseconds; frames are 83,000 apart
MARGIN = 100_000                 # the camera's clock against the samples', which are the lidar's
TEST_EVERY = 10


class Frame(NamedTuple):
    """A picture of the camera, ordered by drive and time."""

    log: str
    time: int                                           # microseconds
    path: Path


def prepare_nuscenes(raw: Path, out: Path) -> Made:
    """Folders of links to the frames of each video.

    A camera's folder holds the frames of all drives and scenes, one after the other: read as one
    clip, it would jump from street to street. A scene's frames are cut into videos; what is left
    over is dropped. Which videos the paper tested on is not published; every tenth scene gives as
    many.
    """
    made: Counter[str] = Counter()
    for place, (name, frames) in enumerate(find_scenes(raw, find_frames(raw)).items()):
        part = "test" if place % TEST_EVERY == TEST_EVERY - 1 else "train"
        for number in range(len(frames) // VIDEO):
            chosen = frames[number * VIDEO:(number + 1) * VIDEO]
            link_folder(out / part / f"{name}-{number}", [frame.path for frame in chosen])
            made[part] += 1
    return dict(made)


def link_folder(folder: Path, pictures: list[Path]) -> None:
    """A folder of links 00.jpg, 01.jpg, ...; one that is there is left as it is."""
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)        # left by a command that was stopped
    temporary.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        (temporary / f"{number:02}{picture.suffix}").symlink_to(os.path.abspath(picture))
    temporary.rename(folder)


def find_frames(raw: Path) -> list[Frame]:
    """All pictures of the front camera. FileNotFoundError where there are none."""
    frames = []
    for part in ("samples", "sweeps"):                  # twice a second; the frames between
        for path in (raw / part / "CAM_FRONT").glob("*.jpg"):
            if name := NUSCENES.fullmatch(path.stem):
                frames.append(Frame(name["log"], int(name["time"]), path))
    if not frames:
        raise FileNotFoundError(f"no pictures in {raw}/samples/CAM_FRONT; give nuScenes' own "
                                "folder, in which samples, sweeps and v1.0-trainval lie")
    return sorted(frames)


def find_scenes(raw: Path, frames: list[Frame]) -> dict[str, list[Frame]]:
    """name -> frames in order. By the tables if they are there, else a pause ends a scene."""
    tables = sorted(raw.glob("v1.0-*/scene.json"))
    if tables:
        return scenes_of_tables(tables, frames)
    scenes, number = {f"{frames[0].log}-0": [frames[0]]}, 0
    for before, frame in pairwise(frames):
        if frame.log != before.log or frame.time - before.time > PAUSE:
            number = 0 if frame.log != before.log else number + 1
        scenes.setdefault(f"{frame.log}-{number}", []).append(frame)
    return scenes


def scenes_of_tables(tables: list[Path], frames: list[Frame]) -> dict[str, list[Frame]]:
    """A scene is what lies between its first sample and its last, in the log that it is from."""
    of_log: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        of_log[frame.log].append(frame)
    found = {}
    for table in tables:
        logs, scenes, samples = (json.loads(table.with_name(f"{name}.json").read_text())
                                 for name in ("log", "scene", "sample"))
        log_of = {log["token"]: log["logfile"] for log in logs}
        times: dict[str, list[int]] = defaultdict(list)
        for sample in samples:
            times[sample["scene_token"]].append(sample["timestamp"])
        for scene in scenes:
            first, last = min(times[scene["token"]]), max(times[scene["token"]])
            inside = [frame for frame in of_log[log_of[scene["log_token"]]]
                      if first - MARGIN <= frame.time <= last + MARGIN]
            if inside:
                found[scene["name"]] = inside
    return dict(sorted(found.items()))


# ---------------------------------------------------------------------------------------------
# Objectron: its index says which folders of video.MOV are of which part

def prepare_objectron(raw: Path, out: Path) -> Made:
    """A link to each video that an index names; those that are missing are counted on stderr."""
    indices = sorted(path for path in raw.rglob("*_annotations_*") if path.is_file())
    if not indices:
        raise FileNotFoundError(f"no *_annotations_train below {raw}; give the folder in which "
                                "Objectron's videos and index lie")
    made: Counter[str] = Counter()
    missing = []
    for index in indices:
        part = index.name.rpartition("_annotations_")[2].removesuffix(".txt")
        for name in index.read_text().split():
            if not re.fullmatch(r"[a-z_]+/batch-\d+/\d+", name):
                raise ValueError(f"{index} has {name!r}; wanted lines like 'book/batch-1/0'")
            video = raw / "videos" / name / "video.MOV"
            if not video.exists():
                missing.append(name)
                continue
            kind, batch, number = name.split("/")
            link = out / part / kind / f"{batch}_{number}.mov"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.unlink(missing_ok=True)            # a link that leads nowhere any more
                link.symlink_to(os.path.abspath(video))
            made[part] += 1
    if missing:
        print(f"left out: {len(missing)} videos of the index that are not in {raw}/videos, "
              f"{missing[0]} for one", file=sys.stderr)
    return dict(made)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", allow_abbrev=False,
                                     description="Turn a raw archive into plain folders, once.")
    kinds = dict(bair=prepare_bair, nuscenes=prepare_nuscenes, objectron=prepare_objectron)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("raw", type=Path, metavar="RAW", help="the archive's own folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="where the videos go")
    options = parser.parse_args()
    try:
        made = kinds[options.kind](options.raw, options.out)
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"data.prepare: {error}")
    for part, videos in sorted(made.items()):
        print(f"{videos:,} videos in {options.out / part}")


if __name__ == "__main__":
    main()

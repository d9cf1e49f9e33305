"""nuScenes as it is published, cut into scenes and videos of 32 frames: links, no pixel is copied.

Paper   Sec. 4.1 and App. B.3 (nuScenes: front camera only, 32 frames per video, 5.4K and 0.6K)

Files   RAW/samples/CAM_FRONT/LOG__CAM_FRONT__1532402927612460.jpg    twice a second, microseconds
        RAW/sweeps/CAM_FRONT/...                                      the frames between
        RAW/v1.0-trainval/{log,scene,sample}.json                     where scenes begin and end
          -> OUT/train/scene-0061-0/00.jpg ... 31.jpg, and OUT/test of every tenth scene

Read    find_frames; find_scenes; link_videos.

A camera's folder holds the frames of all drives, of all scenes, one after the other: read as one
clip, it would jump from street to street. Without the tables, a pause of half a second ends a
scene. Which videos the paper tested on is not published; every tenth scene gives as many.

Run:    python -m data.nuscenes RAW OUT      then: python train.py nuscenes-B --data OUT/train
"""
from __future__ import annotations

import json
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

CAMERA = "CAM_FRONT"
NAME = re.compile(r"(?P<log>n\d+-[\d-]+[+-]\d+)__(?P<camera>[A-Z_]+)__(?P<time>\d+)")
VIDEO = 32                                              # frames
PAUSE = 500_000                                         # microseconds; frames are 83,000 apart
MARGIN = 100_000                 # the camera's clock against the samples', which are the lidar's
TEST_EVERY = 10


class Frame(NamedTuple):
    """A picture of the camera, ordered by drive and time."""

    log: str
    time: int                                           # microseconds
    path: Path


def find_frames(raw: Path) -> list[Frame]:
    """All pictures of the front camera. FileNotFoundError where there are none."""
    frames = []
    for part in ("samples", "sweeps"):
        for path in (raw / part / CAMERA).glob("*.jpg"):
            name = NAME.fullmatch(path.stem)
            if name and name["camera"] == CAMERA:
                frames.append(Frame(name["log"], int(name["time"]), path))
    if not frames:
        raise FileNotFoundError(f"no pictures in {raw}/samples/{CAMERA}; give nuScenes' own "
                                "folder, in which samples, sweeps and v1.0-trainval lie")
    return sorted(frames)


def find_scenes(raw: Path, frames: list[Frame]) -> dict[str, list[Frame]]:
    """name -> frames in order. By the tables if they are there, else by the pauses in each log."""
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
    spans: dict[str, tuple[str, int, int]] = {}
    for table in tables:
        logs, scenes, samples = (json.loads(table.with_name(f"{name}.json").read_text())
                                 for name in ("log", "scene", "sample"))
        log_of = {log["token"]: log["logfile"] for log in logs}
        times: dict[str, list[int]] = {}
        for sample in samples:
            times.setdefault(sample["scene_token"], []).append(sample["timestamp"])
        for scene in scenes:
            inside = times[scene["token"]]
            spans[scene["name"]] = (log_of[scene["log_token"]], min(inside) - MARGIN,
                                    max(inside) + MARGIN)
    of_log: dict[str, list[Frame]] = {}
    for frame in frames:
        of_log.setdefault(frame.log, []).append(frame)
    found = {name: [frame for frame in of_log.get(log, []) if first <= frame.time <= last]
             for name, (log, first, last) in sorted(spans.items())}
    return {name: inside for name, inside in found.items() if inside}


def link_videos(raw: Path, out: Path) -> dict[str, int]:
    """Folders of links to the frames of each video; how many there are in each part.

    A scene's frames are cut into videos one after the other; what is left over is dropped. A
    folder that is there already is left as it is.
    """
    made = {"train": 0, "test": 0}
    scenes = find_scenes(raw, find_frames(raw))
    for place, (name, frames) in enumerate(scenes.items()):
        part = "test" if place % TEST_EVERY == TEST_EVERY - 1 else "train"
        for video in range(len(frames) // VIDEO):
            folder = out / part / f"{name}-{video}"
            folder.mkdir(parents=True, exist_ok=True)
            for number, frame in enumerate(frames[video * VIDEO:(video + 1) * VIDEO]):
                link = folder / f"{number:02}.jpg"
                if not link.exists():
                    link.symlink_to(os.path.abspath(frame.path))
            made[part] += 1
    return made


def main() -> None:
    if len(sys.argv) != 3:
        print("python -m data.nuscenes RAW OUT links the front camera's frames, scene by scene,\n"
              f"as videos of {VIDEO} frames: OUT/train/scene-0061-0/00.jpg ...")
        return
    try:
        made = link_videos(Path(sys.argv[1]), Path(sys.argv[2]))
    except (FileNotFoundError, KeyError, ValueError) as error:
        sys.exit(f"nuscenes.py: {error}")
    for part, videos in made.items():
        print(f"{videos:,} videos in {Path(sys.argv[2], part)}")


if __name__ == "__main__":
    main()

"""Frames out of a video file: from any one on, or only how many there are.

Paper   none: App. B.3 takes windows anywhere in a video, and this makes them cheap.

Shapes  a file -> frames, uint8 (H, W, 3), in order, turned upright

Read    read_window and enter; inspect_video (when a container's own count is trusted); Spacing.

Not here: .npy and pictures, and the choice of windows (clips.py); the list of counts (counts.py).

Run:    python -m data.decoding [FILE]    what is known of a file, and what a window of it costs
"""
from __future__ import annotations

import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

MOST_REORDERED = 16                  # frames by which H.264 and HEVC may be out of order, at most
STAMPED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")     # each packet says when it is shown
ENTERED = (*STAMPED, "avi", "m4v")                         # FFmpeg finds the key frames of these
ONE_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1")        # VP8 and MPEG-4 have packets unseen


class Spacing(NamedTuple):
    """Frame i of a file is shown at first + i * distance, in units of its stream's clock."""

    first: int
    distance: float

    @classmethod
    def of(cls, stamps: list[int | None]) -> Spacing | None:
        """None where frames cannot be told by their stamps: each has to be within a quarter of
        a distance of its place. Clocks of milliseconds pass, frames left out do not."""
        if len(stamps) < 2 or None in stamps or stamps[-1] <= stamps[0]:
            return None
        distance = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
        places = stamps[0] + distance * np.arange(len(stamps))
        if np.abs(np.array(stamps) - places).max() >= distance / 4:
            return None
        return cls(stamps[0], distance)

    def place(self, frame: av.VideoFrame) -> float:
        """Which frame it is: a whole number, but for the clock's rounding; -1 without a stamp."""
        return -1 if frame.pts is None else (frame.pts - self.first) / self.distance


# ---------------------------------------------------------------------------------------------
# Frames

@contextmanager
def opened(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A file and its first stream of pictures, which one thread decodes: the caller has others
    for other files, and a file that is cut in slices is rare."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} has no video in it")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield container, stream


def decoded(path: str | Path, start: int = 0) -> Iterator[av.VideoFrame]:
    """Frames from `start` on, one at a time. A file that breaks is a ValueError.

    A file of which nothing is known is entered at the key frame before `start`, where its first
    two stamps and its rate say where that is: not for files of a changing rate.
    """
    count = 0
    try:
        with opened(path) as (container, stream):
            frames = container.decode(stream)
            if start:
                guess = _guess(frames, stream)
                frames = guess and enter(container, stream, start, guess)
            for frame in islice(decoded(path), start, None) if frames is None else frames:
                yield frame
                count += 1
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded after {count} frames: "
                         f"{error.strerror}") from None


def read_window(path: str | Path, start: int = 0, stop: int | None = None, stride: int = 1,
                spacing: Spacing | None = None) -> list[np.ndarray]:
    """Frames start, start+stride, ... before stop, as many of them as there are.

    spacing: what inspect_video found. With it the file is entered at the key frame before the
    window, and each frame's own stamp is looked at. Where that fails, and without spacing, all is
    decoded from frame 0: the frames are the same, later.
    """
    if spacing is not None and start and stop is not None:
        try:
            with opened(path) as (container, stream):
                entered = enter(container, stream, start, spacing)
                frames = _numbered(entered or [], range(start, stop), spacing)
                video = list(pictures(islice(frames, 0, None, stride)))
        except av.FFmpegError as error:
            raise ValueError(f"{path} cannot be decoded about frame {start}: "
                             f"{error.strerror}") from None
        if len(video) == len(range(start, stop, stride)):
            return video
    return list(pictures(islice(decoded(path), start, stop, stride)))


def pictures(frames: Iterable[av.VideoFrame]) -> Iterator[np.ndarray]:
    """Frames as uint8 (H, W, 3), turned upright."""
    converter = VideoReformatter()        # one for all: a new one costs more than to use it
    for frame in frames:
        picture = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        # Phones store a sideways picture and a flag that says how to turn it.
        yield np.rot90(picture, frame.rotation // 90)


def _numbered(frames: Iterable[av.VideoFrame], numbers: range, spacing: Spacing
              ) -> Iterator[av.VideoFrame]:
    """The frames as long as each is the one that is expected, and whole."""
    for number, frame in zip(numbers, frames):
        if abs(spacing.place(frame) - number) > 0.3 or frame.is_corrupt:
            return
        yield frame


def _guess(frames: Iterator[av.VideoFrame], stream: av.VideoStream) -> Spacing | None:
    stamps = [frame.pts for frame in islice(frames, 2)]
    if len(stamps) < 2 or None in stamps or stamps[1] <= stamps[0] or not stream.average_rate:
        return None
    distance = stamps[1] - stamps[0]
    length = 1 / (stream.average_rate * stream.time_base)      # finer than stamps, if it is true
    return Spacing(stamps[0], float(length) if abs(length - distance) < 1 else distance)


def enter(container: av.container.InputContainer, stream: av.VideoStream, start: int,
          spacing: Spacing) -> Iterator[av.VideoFrame] | None:
    """The frames from `start` on: the file is entered at the key frame before it. What is shown
    after a key frame needs nothing from before it: a decoder of H.264 keeps back what does.

    Some containers look for the key frame that is decoded before the moment, not shown before it:
    then the search begins earlier. None where no key frame is found.
    """
    for earlier in (0, MOST_REORDERED):
        moment = spacing.first + (start - earlier + 0.5) * spacing.distance
        container.seek(int(moment), stream=stream)
        frames = container.decode(stream)
        entered = next(frames, None)
        if entered is None or not entered.key_frame or entered.pts is None:
            return None
        if spacing.place(entered) < start + 0.5:
            return dropwhile(lambda frame: spacing.place(frame) < start - 0.5,
                             chain([entered], frames))
    return None


# ---------------------------------------------------------------------------------------------
# How many there are

def inspect_video(path: str | Path, facts: dict) -> None:
    """Enter the frames, height and width of a file into facts, as far as it can be read, and its
    Spacing as first and distance, where it has one and can be entered. Errors are the caller's.

    Frames are counted without decoding, a hundred times faster, where the container can be
    trusted: MP4, MOV, Matroska or WebM with H.264, HEVC, VP9 or AV1, of which each packet is one
    frame; each with a stamp of its own, none marked as left out or damaged; the first a key frame
    and shown first, so that no frame waits for one that was cut off; units of H.264 and HEVC as
    long as they say; and as many as the header says, if it says. So a file that was cut short is
    found, and damage to the picture is not: who reads that frame sees it. All else (AVI, which
    keeps no stamps, GIF, MPEG, raw streams) is decoded from end to end.
    """
    with opened(path) as (container, stream):
        name, codec = container.format.name, stream.codec_context
        stamps = None
        if name in STAMPED and codec.name in ONE_FRAME_A_PACKET and codec.height:
            stamps = _stamps_of_packets(container, stream)
        if stamps:
            facts.update(frames=len(stamps), height=codec.height, width=codec.width)
    if not stamps:
        stamps = []
        with opened(path) as (container, stream):
            for frame in container.decode(stream):
                # Where no stamps are stored they count packets, and B frames change places.
                swapped = frame.pict_type == PictureType.B and name not in STAMPED
                stamps.append(None if swapped else frame.pts)
                facts.update(frames=len(stamps), height=frame.height, width=frame.width)
    spacing = Spacing.of(stamps) if name in ENTERED else None
    if spacing:
        facts.update(spacing._asdict())


def _stamps_of_packets(container: av.container.InputContainer, stream: av.VideoStream
                       ) -> list[int] | None:
    """When each packet is shown, in that order; None where packets cannot stand for frames."""
    codec, stamps = stream.codec_context, []
    try:
        for packet in container.demux(stream):
            if packet.size == 0:                          # the one that says that it was the last
                continue
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                return None
            if not (stamps or packet.is_keyframe) or not _units_fit(packet, codec):
                return None
            stamps.append(packet.pts)
    except av.FFmpegError:                                # decoding will say after which frame
        return None
    if len(set(stamps)) < len(stamps) or stream.frames not in (0, len(stamps)):
        return None
    return sorted(stamps) if stamps and stamps[0] == min(stamps) else None


def _units_fit(packet: av.Packet, codec: av.VideoCodecContext) -> bool:
    """Whether the last unit of a packet ends where the packet does: each begins with its length.
    True of codecs without units."""
    place = {"h264": 4, "hevc": 21}.get(codec.name)
    header = codec.extradata or b""
    if place is None or len(header) <= place or header[0] != 1:        # not as MP4 stores them
        return place is None
    size, data, position = (header[place] & 3) + 1, memoryview(packet), 0
    while position < len(data):
        position += size + int.from_bytes(data[position:position + size], "big")
    return position == len(data)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = Path(folder, "made.mp4")
            with av.open(str(path), "w") as file:
                stream = file.add_stream("libx264", rate=25, options={"g": "50"})
                stream.width = stream.height = 128
                for grey in range(200):
                    picture = np.full((128, 128, 3), grey, np.uint8)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
                file.mux(stream.encode())
        facts = dict(frames=0, height=0, width=0, first=None, distance=None)
        inspect_video(path, facts)
        print(f"{path.name}: {facts}")
        spacing = Spacing(facts["first"], facts["distance"]) if facts["distance"] else None
        start = max(0, facts["frames"] - 16)
        for how, known in (("from the first frame", None), ("from the key frame before", spacing)):
            begin = time.perf_counter()
            video = read_window(path, start, start + 16, spacing=known)
            print(f"its last {len(video)} frames, decoded {how}: "
                  f"{1000 * (time.perf_counter() - begin):.1f} ms")


if __name__ == "__main__":
    main()

"""Frames out of one file: the only place where a video, a picture or an array is opened.

Paper   none: App. B.3 takes windows anywhere in a video, and this makes them cheap.

Shapes  a file -> frames, uint8 (H, W, 3), red, green and blue, one at a time: turned and mirrored
        upright, 8 bits deep, transparent parts on black, with square pixels.

Read    read_frames; inspect_file, what is known of a file; _frames_from, how one is entered.

Not here: folders of frames (files.py), windows, crops and sizes (clips.py).

Every fact (how many frames, of what size, at what rate) is taken from what is decoded here. A
header says how a picture is stored, which is often not how it is shown. Whatever a decoder raises
becomes a ValueError that names the file.
"""
from __future__ import annotations

import functools
from contextlib import contextmanager
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Iterable, Iterator

import av
import numpy as np
from av.stream import Disposition
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, ImageSequence

PICTURES = frozenset(".png .jpg .jpeg .jpe .jfif .bmp .ppm .pgm .tif .tiff .webp".split())
Keys = list[list[int]]                   # [number of a frame, its time stamp], of key frames

STAMPED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # each packet says when it is shown
ENTERED = (*STAMPED, "mpegts", "flv", "asf", "ogg", "avi", "m4v")
ONE_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1")     # VP8 and MPEG-4 have packets unseen
LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
DELAYED = ("gif", "apng")                # a frame lasts as long as its delay says
STILLS = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
KEYS_APART = 12                          # frames: closer key frames are not noted
PROBED = 200                             # packets that show which stream moves
DEFAULT_RATE = 8.0                       # frames a second of what has no rate


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Whatever is raised while a file is read becomes a ValueError of one line that names it."""
    try:
        yield
    except Exception as error:
        reason = reason_of(error)
        said = reason if str(path) in reason else f"{path} cannot be decoded: {reason}"
        raise ValueError(said) from error


def reason_of(error: Exception) -> str:
    """What an exception says, in one line."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.split())


# ---------------------------------------------------------------------------------------------
# Any file

def read_frames(path: str | Path, start: int = 0, stop: int | None = None, stride: int = 1,
                keys: Keys | None = None) -> Iterator[np.ndarray]:
    """Frames start, start+stride, ... before stop, uint8 (H, W, 3), as many as there are.

    keys: what inspect_file has found, if it was asked. With them a video is entered at the key
    frame before `start`; without, its packets are looked through for them first. ValueError, with
    the file's name, where it cannot be decoded or a frame is of another size than the first.
    """
    path = Path(path)
    with naming(path):
        kind = kind_of(path)
        if kind == "array":
            frames = map(np.array, open_array(path)[start:stop:stride])
        elif kind != "video":
            frames = islice(_pillow_frames(path), start, stop, stride)
        else:
            length = None if stop is None else max(0, stop - start)
            frames = _pictures(islice(_frames_from(path, start, keys), 0, length, stride))
        yield from same_size(frames)


def same_size(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames as they are. ValueError at the first whose size is not that of the first."""
    first = None
    for number, frame in enumerate(frames):
        first = first or frame.shape
        if frame.shape != first:
            size, wanted = f"{frame.shape[1]}x{frame.shape[0]}", f"{first[1]}x{first[0]}"
            raise ValueError(f"frame {number} is {size} pixels, the first is {wanted}")
        yield frame


def inspect_file(path: str | Path) -> dict:
    """frames, height, width, keys (where it can be entered), and error, "" for a sound file.

    A file is decoded up to its end to count its frames, unless its packets can stand for them
    (_packet_stamps). The error says after how many frames it breaks, and why.
    """
    path = Path(path)
    facts = dict(frames=0, height=0, width=0, keys=[], error="")
    try:
        first = next(read_frames(path, stop=1), None)
        if first is not None:
            facts.update(height=first.shape[0], width=first.shape[1])
            kind = kind_of(path)
            if kind == "array":
                facts["frames"] = len(open_array(path))
            elif kind == "video":
                _inspect_video(path, facts)
            else:
                facts["frames"] = sum(1 for _ in read_frames(path))
    except Exception as error:                 # whatever it is: this file is named and left out
        reason = reason_of(error).removeprefix(f"{path} ").removeprefix("cannot be decoded: ")
        facts["error"] = f"breaks after {facts['frames']} frames ({reason})"
    if not facts["frames"] and not facts["error"]:
        facts["error"] = "holds no frames"
    return facts


def frame_rate(path: str | Path) -> float:
    """Frames a second, as read_frames gives them; 8 where a file has no rate of its own."""
    path = Path(path)
    with naming(path):
        kind = kind_of(path)
        if kind in ("array", "picture"):
            return DEFAULT_RATE
        if kind == "animated":
            return 1000 / max(1, _shortest(_webp_delays(path)))
        with opened(path) as (container, stream):
            if container.format.name in DELAYED:
                rate = 1 / (max(1, _shortest(_delays(path))) * stream.time_base)
            else:
                rate = stream.average_rate or stream.guessed_rate or 0
        return float(rate) if 0 < rate <= 1000 else DEFAULT_RATE


# ---------------------------------------------------------------------------------------------
# Arrays and pictures

def open_array(path: Path) -> np.ndarray:
    """A video as numpy stores it, uint8 (T, H, W, 3), on disk until it is looked at."""
    video = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(video, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays (.npz); wanted one array (.npy)")
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        raise ValueError(f"{path} holds {video.dtype} {video.shape}; wanted uint8 (T, H, W, 3)")
    return video


def is_picture(path: Path) -> bool:
    """Whether a file holds one picture, by its suffix; of .webp, whether nothing moves in it."""
    return kind_of(path) == "picture"


def kind_of(path: Path) -> str:
    """How a file is read: "array", "picture", "animated" (a WebP, by Pillow) or "video"."""
    suffix = path.suffix.lower()
    if suffix != ".webp":
        return "array" if suffix == ".npy" else "picture" if suffix in PICTURES else "video"
    with open(path, "rb") as file:
        head = file.read(21)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return "video"
    return "animated" if head[12:16] == b"VP8X" and head[20] & 2 else "picture"


def _pillow_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of a picture file, with those that a delay stands for."""
    copies = _copies(_webp_delays(path)) if kind_of(path) == "animated" else [1]
    with Image.open(path) as file:
        for picture, times in zip(ImageSequence.Iterator(file), copies):
            yield from repeat(upright_picture(picture), times)


def _webp_delays(path: Path) -> list[int]:
    """Milliseconds that each frame of an animated WebP is shown."""
    with Image.open(path) as file:
        delays = []
        for picture in ImageSequence.Iterator(file):
            picture.load()
            delays.append(picture.info.get("duration", 0))
        return delays


def upright_picture(picture: Image.Image) -> np.ndarray:
    """What Pillow has opened as uint8 (H, W, 3): as EXIF turns it, 8 bits, alpha on black."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):                   # 16 bits of grey
        levels = np.asarray(picture).astype(np.int64).clip(0, 65535)
        grey = ((levels * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of an unknown range; wanted 8 or "
                         "16 bits")
    if picture.has_transparency_data:
        return _on_black(np.asarray(picture.convert("RGBA")))
    return np.asarray(picture.convert("RGB"))


def _on_black(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4) -> (H, W, 3): each colour as bright as its pixel is opaque."""
    colours, alpha = picture[..., :3], picture[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(colours)
    return ((colours.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# Videos

@contextmanager
def opened(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A file and its stream of moving pictures. One thread decodes it: the caller has others for
    other files."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams[_moving_stream(path, container)]
        if stream.codec_context is None:
            raise ValueError(f"{path} cannot be decoded: its codec is unknown")
        stream.codec_context.thread_count = 1
        yield container, stream


def _moving_stream(path: str | Path, container: av.container.InputContainer) -> int:
    """The number of the first video stream that is no still picture, such as a film's cover."""
    streams = [stream.index for stream in container.streams
               if stream.type == "video" and not stream.disposition & STILLS]
    if not streams:
        raise ValueError(f"{path} has no video in it")
    if len(streams) == 1:
        return streams[0]
    seen = dict.fromkeys(streams, 0)
    with av.open(str(path), metadata_errors="replace") as probe:
        for packet in islice(probe.demux(*(probe.streams[each] for each in streams)), PROBED):
            seen[packet.stream_index] += packet.size > 0
            if seen[streams[0]] > 1:
                break
    return next((each for each in streams if seen[each] > 1), streams[0])


def _frames_from(path: Path, start: int, keys: Keys | None
                 ) -> Iterator[tuple[av.VideoFrame, av.VideoStream]]:
    """The frames of a video from number `start` on, each with the stream that it is of.

    The file is entered at the last key frame before `start`. Some containers look for the key
    frame by the time when it is decoded and not shown, and some are not exact: so the stamp that
    is reached has to be that of the key frame, else the one before it is tried. What is shown
    after a key frame needs nothing from before it. Where none is reached, or is known, all is
    decoded from the first frame: the frames are the same, later.
    """
    if start and keys is None:
        with opened(path) as (container, stream):
            keys = _keys(_packet_stamps(container, stream) or [])
    before = [key for key in keys or [] if 0 < key[0] <= start]
    for number, stamp in reversed(before[-2:]):
        with opened(path) as (container, stream):
            container.seek(stamp, stream=stream)
            frames = _from_stamp(_decoded(container, stream), stamp)
            entered = next(frames, None)
            if entered is not None:
                frames = islice(chain([entered], frames), start - number, None)
                yield from zip(frames, repeat(stream))
                return
    with opened(path) as (container, stream):
        frames = _decoded(container, stream)
        if container.format.name in DELAYED:
            copies = chain(_copies(_delays(path)), repeat(1))
            frames = chain.from_iterable(map(repeat, frames, copies))
        yield from zip(islice(frames, start, None), repeat(stream))


def _decoded(container: av.container.InputContainer, stream: av.VideoStream
             ) -> Iterator[av.VideoFrame]:
    """The frames from where the container stands. WebM keeps transparency beside the picture,
    where only the decoder of libvpx looks for it."""
    if stream.metadata.get("alpha_mode") != "1" or stream.codec_context.name not in LIBVPX:
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(LIBVPX[stream.codec_context.name], "r")
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def _from_stamp(frames: Iterator[av.VideoFrame], stamp: int) -> Iterator[av.VideoFrame]:
    """The frames from the whole one of that stamp on; none where it is not reached."""
    for frame in frames:
        if frame.pts is None or frame.pts > stamp or frame.is_corrupt:
            return
        if frame.pts == stamp:
            yield frame
            break
    yield from frames


def _delays(path: Path) -> list[int]:
    """How long each frame of a GIF is shown, in the units of its stream."""
    with opened(path) as (container, stream):
        return [packet.duration or 0 for packet in container.demux(stream) if packet.size]


def _copies(delays: list[int]) -> list[int]:
    """How many frames each delay stands for: writers merge equal frames into one long one."""
    shortest = _shortest(delays)
    return [max(1, round(delay / shortest)) if shortest else 1 for delay in delays]


def _shortest(delays: list[int]) -> float:
    """The delay of one frame. Delays are whole numbers, so that of 30 frames a second is now 3,
    now 4 hundredths: those near the shortest are averaged."""
    known = [delay for delay in delays if delay > 0]
    near = [delay for delay in known if delay < 1.5 * min(known)]
    return sum(near) / len(near) if near else 0.0


def _pictures(frames: Iterable[tuple[av.VideoFrame, av.VideoStream]]) -> Iterator[np.ndarray]:
    """Frames as uint8 (H, W, 3), upright, with square pixels, transparent parts on black."""
    converter = VideoReformatter()        # one for all: a new one costs more than its use
    for frame, stream in frames:
        aspect = stream.sample_aspect_ratio or 1
        width = None if aspect == 1 else max(1, round(frame.width * aspect))
        pixels = "rgba" if _has_alpha(frame.format.name) else "rgb24"
        picture = converter.reformat(frame, width=width, format=pixels, threads=1).to_ndarray()
        if pixels == "rgba":
            picture = _on_black(picture)
        matrix = frame.side_data.get("DISPLAYMATRIX")
        yield picture if matrix is None else turned(picture, np.frombuffer(matrix, np.int32))


@functools.cache
def _has_alpha(name: str) -> bool:
    pixels = av.VideoFormat(name)
    return pixels.has_palette or any(part.is_alpha for part in pixels.components)


def turned(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(H, W, 3) as a display matrix of nine numbers shows it: x' = m0 x + m3 y, y' = m1 x + m4 y.
    Phones store a sideways picture and this matrix; front cameras mirror with it. Other angles
    become the nearest quarter turn."""
    right, up, across, down = (int(matrix[place]) for place in (0, 1, 3, 4))
    if abs(up) + abs(across) > abs(right) + abs(down):
        picture, right, down = picture.swapaxes(0, 1), across, up
    if right < 0:
        picture = picture[:, ::-1]
    return picture[::-1] if down < 0 else picture


# ---------------------------------------------------------------------------------------------
# How many frames a video has

def _inspect_video(path: Path, facts: dict) -> None:
    """Enter the number of frames and the key frames of a video into facts, as far as it can be
    read; errors are the caller's."""
    with opened(path) as (container, stream):
        stamps = _packet_stamps(container, stream)
    if stamps:
        facts.update(frames=len(stamps), keys=_keys(stamps))
        return
    with opened(path) as (container, stream):
        name = container.format.name
    stamps, first = [], None
    for frame, _ in _frames_from(path, 0, None):
        first = first or frame
        if (frame.width, frame.height) != (first.width, first.height):
            raise ValueError(f"frame {facts['frames']} is {frame.width}x{frame.height} pixels, the "
                             f"first is {first.width}x{first.height}")
        facts["frames"] += 1
        # These count packets instead of storing stamps, and B frames change places.
        swapped = frame.pict_type == PictureType.B and name in ("avi", "m4v")
        stamps.append((None if swapped else frame.pts, frame.key_frame))
    if name in ENTERED:
        facts["keys"] = _keys(stamps)


def _keys(stamps: list[tuple[int | None, bool]]) -> Keys:
    """Number and stamp of key frames; none where stamps do not tell one frame from another."""
    keys: Keys = []
    last = None
    for number, (stamp, key) in enumerate(stamps):
        if stamp is None or (last is not None and stamp <= last):
            return []
        last = stamp
        if key and (not keys or number - keys[-1][0] >= KEYS_APART):
            keys.append([number, stamp])
    return keys


def _packet_stamps(container: av.container.InputContainer, stream: av.VideoStream
                   ) -> list[tuple[int, bool]] | None:
    """When each packet is shown and whether it is a key frame, in the order in which they are
    shown; None where packets cannot stand for frames, which then have to be decoded.

    They can, and save a hundred times the time, in MP4, MOV, Matroska and WebM with H.264, HEVC,
    VP9 or AV1, where each packet is one frame; each has a stamp of its own, and none is marked as
    left out or damaged; units of H.264 and HEVC are as long as they say; the first is a key frame
    and shown first, so that no frame waits for one that was cut off; there are as many as the
    header says, if it says; and the last key frame has the size of the first. So a file that was
    cut short is noticed. Damage within a picture is not: whoever reads that frame sees it.
    """
    codec = stream.codec_context
    if container.format.name not in STAMPED or codec.name not in ONE_FRAME_A_PACKET:
        return None
    stamps, first, last = [], None, None
    try:
        for packet in container.demux(stream):
            if packet.size == 0:                          # the one that says that it was the last
                continue
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                return None
            if not _units_fit(packet, codec):
                return None
            stamps.append((packet.pts, packet.is_keyframe))
            first = first or packet
            last = packet if packet.is_keyframe else last
        sizes = {(frame.width, frame.height) for packet in (first, last) if packet
                 for frame in (*codec.decode(packet), *codec.decode(None), codec.flush_buffers())
                 if frame}
    except av.FFmpegError:                                # decoding will say after which frame
        return None
    numbers = [stamp for stamp, _ in stamps]
    if not stamps or len(sizes) > 1 or stream.frames not in (0, len(stamps)):
        return None
    if numbers[0] != min(numbers) or not stamps[0][1] or len(set(numbers)) < len(numbers):
        return None
    return sorted(stamps)


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

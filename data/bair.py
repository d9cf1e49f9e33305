"""BAIR as it is published: TFRecord files, read without TensorFlow.

Paper   Sec. 4.1 and App. B.3 (BAIR Robot Pushing); the files are those of softmotion30_44k

Files   a row of records, each    length (8 bytes, little-endian), its checksum (4),
                                  data, its checksum (4)
        data, a tf.train.Example  protobuf: features (field 1) -> map entry (1) -> key (1) and
                                  Feature (2) -> bytes_list (1) -> value (1)
        a value                   a frame, 64x64 pixels of raw RGB, under "T/image_aux1/encoded";
                                  in TensorFlow Datasets' copy all of them, as PNG, under
                                  "image_aux1"

Read    find_records, read_record, record_frames; fields (the protobuf); masked_crc32c.

Run:    python -m data.bair FILE.tfrecords        its records
"""
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO, Iterator

import imageio.v3 as imageio
import numpy as np
from einops import rearrange

SUFFIXES = {".tfrecords", ".tfrecord"}                  # or FILE.tfrecord-00000-of-00256, TFDS's
# The camera of the paper's numbers and the official configuration. Video Diffusion reports on the
# other one, image_main: its number is on different videos.
CAMERA = "image_aux1"
SIDE = 64                                              # pixels, stored raw as RGB


def holds_records(path: Path) -> bool:
    return path.suffix in SUFFIXES or ".tfrecord-" in path.suffix


def find_records(files: list[Path]) -> list[Path]:
    """FILE/BYTE of every record. Only lengths are read, each with its checksum; a file that ends
    too early or has a wrong length is named, and its records up to there are used."""
    folders = sorted({str(path.parent) for path in files})
    if len(folders) > 1:                               # train and test, lest they be mixed
        raise ValueError(f"records in {' and in '.join(folders)}; give one of them to --data")
    parts = sorted({path.name.split(".tfrecord-")[0] for path in files
                    if ".tfrecord-" in path.name})
    if len(parts) > 1:                                 # TensorFlow Datasets puts them side by side
        raise ValueError(f"records of {' and of '.join(parts)} in {folders[0]}; move one of them "
                         "to a folder of its own")
    records: list[Path] = []
    for path in files:
        position, before = 0, len(records)
        with open(path, "rb") as file:
            try:
                while position < os.path.getsize(path):
                    length = _length(file, position)
                    records.append(path / str(position))
                    position += length + 16
            except ValueError as error:
                print(f"{error}; {len(records) - before} records before it are used",
                      file=sys.stderr)
    if not records:
        raise ValueError(f"no whole record in the {len(files)} files of {folders[0]}")
    return records


def _length(file: BinaryIO, position: int) -> int:
    """Bytes of data in the record at position, all of which are there; else ValueError."""
    left = os.path.getsize(file.name) - position
    file.seek(position)
    header = file.read(12)
    length = int.from_bytes(header[:8], "little")
    if left >= 12 and masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little"):
        raise ValueError(f"{file.name}/{position}: the checksum of its length is wrong")
    if left < length + 16:
        raise ValueError(f"{file.name}/{position} ends after {left} of {length + 16} bytes")
    return length


def read_record(record: Path) -> dict[str, memoryview]:
    """Key -> Feature message of a record. ValueError, with its place, where it is cut short or is
    no protobuf; the checksum of its length is verified, that of its frames is not."""
    with open(record.parent, "rb") as file:
        data = memoryview(file.read(_length(file, int(record.name))))
    features: dict[str, memoryview] = {}
    try:
        for _, message in fields(data):
            for _, entry in fields(message):
                parts = dict(fields(entry))
                features[bytes(parts[1]).decode()] = parts[2]
    except (ValueError, KeyError) as error:            # bytes that are not text, too
        raise ValueError(f"{record} is damaged or no tf.train.Example: {error}") from None
    return features


def record_frames(record: Path, start: int = 0, stop: int | None = None, stride: int = 1
                  ) -> list[np.ndarray]:
    """Frames start, start+stride, ... before stop of a record, uint8 (64, 64, 3) each."""
    features = read_record(record)
    if CAMERA in features:
        return [picture_of(record, data) for data in values_of(record, CAMERA, features[CAMERA])
                [start:stop:stride]]
    keys = [f"{t}/{CAMERA}/encoded" for t in range(len(features))]
    keys = keys[:next((t for t, key in enumerate(keys) if key not in features), len(keys))]
    if not keys:
        raise ValueError(f"{record} has no 0/{CAMERA}/encoded; its first keys are "
                         f"{' '.join(sorted(features)[:4]) or 'none'}")
    frames = []
    for key in keys[start:stop:stride]:
        values = values_of(record, key, features[key])
        if len(values) != 1 or len(values[0]) != SIDE * SIDE * 3:
            raise ValueError(f"{record}: {key} has {[len(value) for value in values]} bytes; "
                             f"wanted {SIDE * SIDE * 3}, raw RGB of {SIDE}x{SIDE}")
        frames.append(rearrange(np.frombuffer(values[0], np.uint8), "(h w c) -> h w c",
                                h=SIDE, w=SIDE))
    return frames


def values_of(record: Path, key: str, feature: memoryview) -> list[memoryview]:
    """The bytes that a Feature lists."""
    try:
        return [value for kind, items in fields(feature) if kind == 1 for _, value in fields(items)]
    except ValueError as error:
        raise ValueError(f"{record}: {key} is damaged: {error}") from None


def picture_of(record: Path, data: memoryview) -> np.ndarray:
    """A frame that TensorFlow Datasets has stored as PNG. ValueError where it is none."""
    try:
        picture = imageio.imread(bytes(data), plugin="pillow", mode="RGB")
    except (OSError, SyntaxError) as error:                # Pillow raises both on broken files
        raise ValueError(f"{record}: a frame cannot be decoded: {error}") from None
    if picture.shape != (SIDE, SIDE, 3):
        raise ValueError(f"{record}: a frame is {picture.shape}; wanted {SIDE}x{SIDE}")
    return picture


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of a protobuf message's fields, all of which have a length: so it is from a
    tf.train.Example down to its bytes. ValueError where it is anything else."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        size, position = _varint(message, position)
        if tag % 8 != 2:
            raise ValueError(f"a protobuf message has a field of kind {tag % 8}")
        if position + size > len(message):
            raise ValueError("a protobuf message ends in the middle of a field")
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


def masked_crc32c(data: bytes) -> int:
    """TFRecord's checksum, and a checkpoint's: CRC-32C, then turned and shifted.

    The turn is the format's own: where data contain checksums of data, a plain CRC of them is a
    number that anything ends up with. Long data are cut into pieces that go side by side: a
    checksum is linear in its bits, so that of the whole follows from theirs.
    """
    data = np.frombuffer(data, np.uint8)
    lanes = min(2048, max(1, len(data) // 256))
    width = -(-len(data) // lanes)
    pieces = np.zeros(lanes * width, np.uint8)
    pieces[lanes * width - len(data):] = data
    registers = np.full(lanes, 0xFFFFFFFF if lanes == 1 else 0, np.uint32)
    if lanes > 1:                                       # a register of ones, before zeros that
        pieces[lanes * width - len(data):][:4] ^= 255   # change nothing, is the same as this
    registers = _through(registers, pieces.reshape(lanes, width))
    shifted = np.uint32(1) << np.arange(32, dtype=np.uint32)
    shifted = _through(shifted, np.zeros((32, width), np.uint8)) if lanes > 1 else shifted
    checksum = 0
    for register in registers.tolist():                 # so far, followed by one more piece
        for bit in range(32):
            register ^= (checksum >> bit & 1) * int(shifted[bit])
        checksum = register
    checksum ^= 0xFFFFFFFF
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) % 2 ** 32


def _through(registers: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """CRC registers (lanes,) after the bytes of their pieces (lanes, width)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ (table & 1) * np.uint32(0x82F63B78)                # Castagnoli
    for column in pieces.T:
        registers = table[(registers ^ column) & 255] ^ registers >> 8
    return registers


def main() -> None:
    print(f"masked CRC-32C of 123456789: {masked_crc32c(b'123456789'):#x}, should be 0xc78ab0e5")
    if len(sys.argv) != 2:
        print("python -m data.bair FILE.tfrecords reads a file")
        return
    try:
        records = find_records([Path(sys.argv[1])])
        print(f"{len(records)} records; the first has {len(record_frames(records[0]))} frames")
    except (ValueError, OSError) as error:
        sys.exit(f"bair.py: {error}")


if __name__ == "__main__":
    main()

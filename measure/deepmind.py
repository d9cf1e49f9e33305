"""DeepMind's I3D checkpoint, read without TensorFlow.

Paper   App. B.3 (FVD with the I3D of Carreira & Zisserman, trained on Kinetics-400 alone)

Files   model.ckpt.data-00000-of-00001    230 tensors of float32 behind one another, in the order
                                          of their names: 50,818,176 bytes
        model.ckpt.index                  a table: name -> where it lies, and its checksum

Read    layout; read_raw and raw_bytes, there and back; what_is_wrong.

The data file has neither names nor shapes in it; order and shapes follow from the network. Since
any copy of the weights can be laid out in this way, one hash vouches for every container.

Run:    python -m measure.deepmind      where the first and the last tensors lie
"""
from __future__ import annotations

import struct
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from data.bair import masked_crc32c
from measure.networks import I3D

DATA, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
BYTES = 50_818_176
TABLE_MAGIC = 0xDB4775248B80FB57                        # of LevelDB, whose tables indices are
UNITS = {"b0": "Branch_0/Conv3d_0a_1x1", "b1a": "Branch_1/Conv3d_0a_1x1",
         "b1b": "Branch_1/Conv3d_0b_3x3", "b2a": "Branch_2/Conv3d_0a_1x1",
         "b2b": "Branch_2/Conv3d_0b_3x3", "b3b": "Branch_3/Conv3d_0b_1x1",
         "logits": "Logits/Conv3d_0c_1x1"}
LEAVES = {"conv3d.weight": "conv_3d/w", "conv3d.bias": "conv_3d/b", "bn.bias": "batch_norm/beta",
          "bn.running_mean": "batch_norm/moving_mean",
          "bn.running_var": "batch_norm/moving_variance"}


class Place(NamedTuple):
    """A tensor in the file: its name in TensorFlow and here, first byte, shape as it lies."""

    name: str
    ours: str
    offset: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.offset + 4 * int(np.prod(self.shape))


def layout() -> list[Place]:
    """All tensors, in the order of the file. Kernels lie as (time, height, width, in, out)."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in I3D().state_dict().items()
                  if not name.endswith(("bn.weight", "num_batches_tracked"))}
    named = sorted((tensorflow_name(ours), ours) for ours in shapes)
    places, offset = [], 0
    for name, ours in named:
        shape = shapes[ours]
        places.append(Place(name, ours, offset, (*shape[2:], *shape[1::-1]) if len(shape) == 5
                            else shape))
        offset = places[-1].end
    return places


def tensorflow_name(ours: str) -> str:
    """Mixed_5b.b2b.conv3d.weight -> RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w,
    the one branch whose second convolution DeepMind calls 0a like its first."""
    *unit, kind, leaf = ours.split(".")
    name = "/".join(["RGB/inception_i3d", *(UNITS.get(part, part) for part in unit),
                     LEAVES[f"{kind}.{leaf}"]])
    return name.replace("Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3")


def read_raw(data: bytes) -> dict[str, Tensor]:
    """The data file's bytes -> tensors under this project's names. ValueError at another length."""
    if len(data) != BYTES:
        raise ValueError(f"{len(data):,} bytes; wanted the {BYTES:,} of I3D's 230 tensors")
    state = {}
    for place in layout():
        array = np.frombuffer(data[place.offset:place.end], "<f4").reshape(place.shape)
        tensor = torch.from_numpy(array.copy())
        state[place.ours] = (rearrange(tensor, "t h w i o -> o i t h w").contiguous()
                             if tensor.ndim == 5 else tensor)
    return state


def raw_bytes(state: dict[str, Tensor]) -> bytes:
    """The opposite of read_raw. KeyError where a tensor is missing, ValueError where one does not
    fit. Factors of normalization (bn.weight), which DeepMind's network lacks, must all be one."""
    parts = []
    for place in layout():
        tensor = state[place.ours].detach().cpu().float()
        if tensor.ndim == 5:
            tensor = rearrange(tensor, "o i t h w -> t h w i o")
        if tuple(tensor.shape) != place.shape:
            raise ValueError(f"{place.ours} is {tuple(state[place.ours].shape)}; wanted one that "
                             f"lies as {place.shape}")
        parts.append(tensor.contiguous().numpy().astype("<f4").tobytes())
    other = [name for name, tensor in state.items() if name.endswith("bn.weight")
             and not (tensor == 1).all()]
    if other:
        raise ValueError(f"{other[0]} is not all ones; DeepMind's I3D has no such factors")
    return b"".join(parts)


# ---------------------------------------------------------------------------------------------
# What is wrong with a file of another hash

def what_is_wrong(data: bytes, index: Path) -> str:
    """In words, naming the first damaged tensor: by the checksums of the index where that lies
    beside the data, else by values that no trained network has."""
    if len(data) != BYTES:
        return f"{len(data):,} bytes; wanted {BYTES:,}"
    if index.is_file():
        wanted = checksums(index.read_bytes())
        bad = [place.name for place in layout()
               if wanted.get(place.name) != masked_crc32c(data[place.offset:place.end])]
        if len(bad) == 0:
            return "whole, but another checkpoint than rgb_scratch"
        return f"damaged or another one's: of 230 tensors, {len(bad)} do not fit {INDEX}: {bad[0]}"
    for place in layout():
        values = np.frombuffer(data[place.offset:place.end], "<f4")
        if not np.isfinite(values).all() or np.abs(values).max() > 1e4 or (
                place.name.endswith("variance") and values.min() < 0):
            return f"damaged in {place.name}"
    return (f"of the right size, but another checkpoint than rgb_scratch, or damaged: with {INDEX} "
            "beside it the tensor could be named")


def checksums(table: bytes) -> dict[str, int]:
    """name -> masked CRC-32C of the tensor, from the index, which is a LevelDB table of
    BundleEntryProto messages. ValueError where it is not such a table."""
    if len(table) < 48 or struct.unpack("<Q", table[-8:])[0] != TABLE_MAGIC:
        raise ValueError(f"{INDEX} is no index of a TensorFlow checkpoint")
    position = 0
    handles = []
    for _ in range(4):                                   # of the meta block, then of the index
        number, position = varint(table[-48:], position)
        handles.append(number)
    found = {}
    for _, handle in entries(block(table, *handles[2:])):
        offset, position = varint(handle, 0)
        size, _ = varint(handle, position)
        for name, message in entries(block(table, offset, size)):
            if name:                                     # the empty name is the header's
                found[name.decode()] = checksum_of(message)
    return found


def block(table: bytes, offset: int, size: int) -> bytes:
    if table[offset + size] != 0:
        raise ValueError(f"{INDEX} is compressed, which TensorFlow's are not")
    return table[offset:offset + size]


def entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block. A key says how many letters it shares with the one before."""
    restarts = struct.unpack("<I", data[-4:])[0]
    position, key = 0, b""
    while position < len(data) - 4 * (restarts + 1):
        shared, position = varint(data, position)
        length, position = varint(data, position)
        size, position = varint(data, position)
        key = key[:shared] + data[position:position + length]
        position += length
        yield key, data[position:position + size]
        position += size


def checksum_of(message: bytes) -> int:
    """Field 6 of a BundleEntryProto, four bytes."""
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        if tag == 6 << 3 | 5:
            return struct.unpack("<I", message[position:position + 4])[0]
        number, after = varint(message, position)
        position = after + (number if tag % 8 == 2 else 0)
    raise ValueError(f"{INDEX} has a tensor without a checksum")


def varint(data: bytes, position: int) -> tuple[int, int]:
    """A number, seven bits a byte, low ones first; and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position


def main() -> None:
    places = layout()
    for place in (*places[:4], *places[-2:]):
        print(f"{place.offset:>12,} {place.name:64} {place.shape}")
    print(f"{len(places)} tensors, {places[-1].end:,} bytes")


if __name__ == "__main__":
    main()

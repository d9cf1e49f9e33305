"""Whose numbers are in I3D and C3D: DeepMind's own file, its copies, its look-alikes, pinned files.

The real files are not here. Made ones lie as they do, and their hash is taken for the known one.
"""
import functools
import hashlib
import json
import struct

import numpy as np
import pytest
import torch

from data.bair import masked_crc32c
from measure import deepmind, pretrained
from measure.features import open_judges, stored_names
from measure.networks import C3D, I3D, randomize
from measure.numbers import entry


@pytest.fixture(scope="module")
def i3d():
    network = randomize(I3D(), 0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.linspace(-1, 1, len(buffer)))
    return network


@pytest.fixture(scope="module")
def raw(i3d):
    return deepmind.raw_bytes(i3d.state_dict())


@pytest.fixture
def known(monkeypatch, raw):
    """The made tensors are DeepMind's."""
    digits = pretrained.git_blob(raw)[:10]
    monkeypatch.setattr(pretrained, "I3D_TENSORS", digits)
    for name in (deepmind.DATA, "i3d_pretrained_400.safetensors"):
        file = pretrained.WEIGHTS[name]
        monkeypatch.setitem(pretrained.WEIGHTS, name, file._replace(hash=digits))
    return digits


def same(network, i3d):
    state = network.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in i3d.state_dict().items())


# ---------------------------------------------------------------------------------------------
# DeepMind's layout

def test_230_tensors_fill_the_files_50_818_176_bytes_in_the_order_of_their_names(raw):
    places = deepmind.layout()
    assert len(places) == 230 and places[-1].end == len(raw) == deepmind.BYTES == 50_818_176
    assert [place.name for place in places] == sorted(place.name for place in places)
    assert all(one.end == next.offset for one, next in zip(places, places[1:]))
    names = {place.name for place in places}
    assert "RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w" in names
    assert "RGB/inception_i3d/Mixed_5c/Branch_2/Conv3d_0b_3x3/conv_3d/w" in names
    assert "RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/b" in names


def test_a_kernel_lies_as_time_height_width_in_out(i3d, raw):
    place = next(place for place in deepmind.layout()
                 if place.ours == "Conv3d_1a_7x7.conv3d.weight")
    assert place.shape == (7, 7, 7, 3, 64)
    t, y, x, channel_in, channel_out = 1, 2, 3, 2, 40
    number = (((t * 7 + y) * 7 + x) * 3 + channel_in) * 64 + channel_out
    value = struct.unpack_from("<f", raw, place.offset + 4 * number)[0]
    assert value == i3d.Conv3d_1a_7x7.conv3d.weight[channel_out, channel_in, t, y, x].item()


def test_deepminds_file_is_the_first_choice_and_needs_no_tensorflow(tmp_path, known, raw, i3d):
    (tmp_path / deepmind.DATA).write_bytes(raw)
    (tmp_path / "i3d_pretrained_400.pt").write_bytes(b"not even looked at")
    network = pretrained.load_i3d(tmp_path)
    assert same(network, i3d)
    assert network.weights.startswith(f"{deepmind.DATA}, git blob {known}")
    assert entry("fvd", (1.0, 0.0), 9, 1, {"fvd": network}, [])[0] == "FVD"         # no star


# ---------------------------------------------------------------------------------------------
# Damage

checksum = functools.cache(masked_crc32c)                    # most tensors are in both indices


def index_of(raw):
    """A checkpoint's index as TensorFlow writes it: a LevelDB table of one block and its index."""
    def varint(number):
        parts = b""
        while number > 127:
            parts, number = parts + bytes([number & 127 | 128]), number >> 7
        return parts + bytes([number])

    def block(pairs):
        data, before = b"", b""
        for key, value in pairs:
            shared = next((i for i, (a, b) in enumerate(zip(before, key)) if a != b),
                          min(len(before), len(key)))
            data += (varint(shared) + varint(len(key) - shared) + varint(len(value))
                     + key[shared:] + value)
            before = key
        return data + struct.pack("<II", 0, 1)

    rows = [(b"", b"\x08\x01")]
    for place in deepmind.layout():
        message = (b"\x08\x01" + b"\x12\x02\x12\x00" + b"\x20" + varint(place.offset) + b"\x28"
                   + varint(place.end - place.offset) + b"\x35"
                   + struct.pack("<I", checksum(raw[place.offset:place.end])))
        rows.append((place.name.encode(), message))
    trailer = b"\0" + bytes(4)
    table = block(rows)
    index = block([(b"zzz", varint(0) + varint(len(table)))])
    handles = varint(0) + varint(0) + varint(len(table) + 5) + varint(len(index))
    footer = handles.ljust(40, b"\0") + struct.pack("<Q", deepmind.TABLE_MAGIC)
    return table + trailer + index + trailer + footer


def test_a_tensor_that_was_damaged_is_named_by_the_checksums_of_the_index(tmp_path, known, raw):
    place = deepmind.layout()[100]
    damaged = bytearray(raw)
    damaged[place.offset + 3] ^= 1                                   # one bit
    (tmp_path / deepmind.DATA).write_bytes(damaged)
    (tmp_path / deepmind.INDEX).write_bytes(index_of(raw))
    with pytest.raises(ValueError, match=f"of 230 tensors, 1 do not fit .*{place.name}") as error:
        pretrained.load_i3d(tmp_path)
    assert "\n" not in str(error.value) and "fetch https" in str(error.value)
    (tmp_path / deepmind.INDEX).write_bytes(index_of(bytes(damaged)))
    with pytest.raises(ValueError, match="whole, but another checkpoint than rgb_scratch"):
        pretrained.load_i3d(tmp_path)
    (tmp_path / deepmind.INDEX).write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="no index of a TensorFlow checkpoint"):
        pretrained.load_i3d(tmp_path)


@pytest.mark.parametrize("leaf, value", [("conv_3d/w", np.nan), ("moving_variance", -1.0),
                                         ("beta", 1e30)])
def test_without_an_index_impossible_values_name_the_tensor(tmp_path, known, raw, leaf, value):
    place = next(place for place in deepmind.layout()[90:] if place.name.endswith(leaf))
    damaged = bytearray(raw)
    struct.pack_into("<f", damaged, place.offset + 8, value)
    (tmp_path / deepmind.DATA).write_bytes(damaged)
    with pytest.raises(ValueError, match=f"is damaged in {place.name}; wanted git blob"):
        pretrained.load_i3d(tmp_path)


def test_a_file_of_another_length_or_with_other_numbers_is_refused(tmp_path, known, raw):
    other = raw[:-4] + struct.pack("<f", 0.125)
    for data, words in ((raw[:-4], "50,818,172 bytes; wanted 50,818,176"),
                        (other, "another checkpoint than rgb_scratch")):
        (tmp_path / deepmind.DATA).write_bytes(data)
        with pytest.raises(ValueError, match=words):
            pretrained.load_i3d(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 3, 9, 255, 256, 700, 5000, 600_001])
def test_the_fast_checksum_is_the_one_that_goes_bit_by_bit(size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (register & 1) * 0x82F63B78
    plain = register ^ 0xFFFFFFFF
    assert masked_crc32c(data) == ((plain >> 15 | plain << 17) + 0xA282EAD8) % 2 ** 32


# ---------------------------------------------------------------------------------------------
# Copies and look-alikes

def copies(i3d, path):
    state = {name: tensor for name, tensor in i3d.state_dict().items()
             if not name.endswith("num_batches_tracked")}
    if path.suffix == ".pt":
        torch.save(state, path)
        return
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in state.items():
        begin, end = end, end + 4 * tensor.numel()
        header[name] = dict(dtype="F32", shape=list(tensor.shape), data_offsets=[begin, end])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text
                     + b"".join(tensor.numpy().tobytes() for tensor in state.values()))


@pytest.mark.parametrize("name", ["i3d_pretrained_400.pt", "i3d_pretrained_400.safetensors"])
def test_any_copy_is_accepted_if_its_tensors_are_the_known_ones(tmp_path, known, i3d, name):
    copies(i3d, tmp_path / name)
    network = pretrained.load_i3d(tmp_path)
    assert same(network, i3d)
    assert network.weights == f"{name}, tensors of git blob {known}, verified"


@pytest.mark.parametrize("name", ["i3d_pretrained_400.pt", "i3d_pretrained_400.safetensors"])
@pytest.mark.parametrize("tensor, words", [("logits.conv3d.bias", "I3D's shape with other numbers"),
                                           ("Mixed_3b.b0.bn.weight", "is not all ones")])
def test_a_copy_that_differs_in_one_number_is_refused(tmp_path, known, i3d, name, tensor, words):
    value = i3d.state_dict()[tensor]
    before = value[0].item()
    value[0] += 1
    copies(i3d, tmp_path / name)
    value[0] = before
    with pytest.raises(ValueError, match=words):
        pretrained.load_i3d(tmp_path)


def test_a_look_alike_that_lies_there_is_told_by_its_hash(tmp_path, monkeypatch):
    known = "93daef59c7ae0e9e8f76225521407e60cbafa6aa"
    path = tmp_path / "i3d_torchscript.pt"
    path.write_bytes(b"stands for it")
    monkeypatch.setitem(pretrained.LOOKALIKES, pretrained.git_blob(path.read_bytes()),
                        pretrained.LOOKALIKES[known])
    with pytest.raises(FileNotFoundError, match="i3d_torchscript.pt there is StyleGAN-V's"):
        pretrained.load_i3d(tmp_path)


def test_black_against_white_is_the_distance_of_two_features(i3d):
    black, white = (i3d(pretrained.i3d_input(torch.full((1, 3, 15, 64, 64), value)))[0]
                    for value in (0.0, 1.0))
    distance = pretrained.black_and_white(i3d)
    assert distance == pytest.approx((black - white).double().square().sum().item(), rel=1e-4)


# ---------------------------------------------------------------------------------------------
# C3D, for whose files nobody has published a hash

@pytest.fixture
def c3d_files(tmp_path):
    state = C3D(num_classes=101).state_dict()
    arrays = {name.replace(".weight", "/W").replace(".bias", "/b"):
              np.zeros(tensor.shape, np.float32) for name, tensor in state.items()
              if name != "mean"}
    np.savez(tmp_path / "conv3d_deepnetA_ucf.npz", **arrays, persistent=np.zeros(3))
    np.savez(tmp_path / "mean2.npz", mean=np.zeros((3, 16, 128, 171), np.float32))
    return [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
            for name in ("conv3d_deepnetA_ucf.npz", "mean2.npz")]


def test_a_pinned_c3d_bears_no_star_and_what_else_is_in_its_file_is_ignored(tmp_path, c3d_files):
    def opened(pins):
        return open_judges(["is"], tmp_path, torch.device("cpu"), pins)

    unknown, pinned = opened(()), opened(c3d_files)
    assert stored_names(["is"], unknown) == stored_names(["is"], pinned)     # to be used again
    assert entry("is", (1.0, 0.0), 9, 1, unknown, [])[0] == "IS*"
    title, numbers = entry("is", (1.0, 0.0), 9, 1, pinned, [])
    assert title == "IS" and c3d_files[0] in numbers["weights"]
    with pytest.raises(ValueError, match=f"mean2.npz has sha256 {c3d_files[1]}; pinned were"):
        opened(c3d_files[:1])


@pytest.mark.parametrize("value, verdict", [(131.4, "131.4: the chain is right"),
                                            (219.0, "219.0: NOT RIGHT")])
def test_the_example_of_googles_code_says_whether_the_chain_is_right(tmp_path, monkeypatch, capsys,
                                                                     value, verdict):
    monkeypatch.setattr(pretrained, "load_i3d", lambda directory: None)
    monkeypatch.setattr(pretrained, "black_and_white", lambda network: value)
    monkeypatch.setattr("sys.argv", ["pretrained", str(tmp_path)])
    pretrained.main()
    assert verdict in capsys.readouterr().out

"""I3D, C3D, LPIPS and the files behind them, against arrays computed with MAGVIT's own code.

tests/golden/video_metrics_pieces.npz    resizing, I3D's stem, SAME pools, one Inception module
tests/golden/i3d_c3d_param_shapes.json   every parameter of the official I3D and C3D
"""
import hashlib
import json
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh import python
from torch import nn

from measure import networks, pretrained
from measure.judges import entry
from measure.networks import C3D, I3D, LPIPS, randomize
from measure.pretrained import WeightFile

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "video_metrics_pieces.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def official_shapes():
    return json.loads((GOLDEN / "i3d_c3d_param_shapes.json").read_text())


@pytest.fixture(scope="module")
def i3d():
    return randomize(I3D(), seed=0)


@pytest.fixture(scope="module")
def lpips():
    """Random, with biases and uneven heads, so that each of them matters."""
    network, generator = randomize(LPIPS(), seed=0), torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        elif name.startswith("heads"):
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
    return network


def channels_first(x):
    return x.movedim(-1, 1)                                    # (B, T, H, W, C) -> (B, C, T, H, W)


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------
# Pixels in

@pytest.mark.parametrize("size", [(14, 14), (4, 5), (20, 11)])
def test_resize_tf1_is_tensorflow_1s_bilinear(golden, size):
    found = pretrained.resize_tf1(channels_first(golden["resize/x"]), size)
    wanted = channels_first(golden[f"resize/tf1_bilinear_{size[0]}x{size[1]}"])
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(14, 14), (5, 6)])
def test_resize_align_corners_is_the_one_of_c3d(golden, size):
    found = pretrained.resize_align_corners(channels_first(golden["resize/x"]), size)
    wanted = channels_first(golden[f"resize/c3d_align_corners_{size[0]}x{size[1]}"])
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_the_two_resizes_read_a_ramp_where_their_names_say():
    ramp = torch.arange(4.0).expand(1, 4, 4)
    legacy = pretrained.resize_tf1(ramp, (4, 8))
    aligned = pretrained.resize_align_corners(ramp, (4, 7))
    assert legacy[0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert aligned[0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert pretrained.resize_align_corners(ramp, (1, 1)).tolist() == [[[0]]]


def test_i3d_input_is_square_and_between_minus_one_and_one():
    video = torch.zeros(2, 3, 4, 20, 30)
    video[1] = 1
    found = pretrained.i3d_input(video)
    assert found.shape == (2, 3, 4, 224, 224)
    assert found[0].unique().tolist() == [-1] and found[1].unique().tolist() == [1]


def test_c3d_input_is_bgr_between_0_and_255():
    video = torch.zeros(1, 3, 16, 20, 30)
    video[:, 0] = 1                                                                  # pure red
    found = pretrained.c3d_input(video)
    assert found.shape == (1, 3, 16, 112, 112)
    assert [found[:, channel].unique().tolist() for channel in range(3)] == [[0], [0], [255]]


@pytest.mark.parametrize("video, complaint", [
    (torch.zeros(1, 3, 16, 8, 8, dtype=torch.uint8), "torch.uint8"),
    (torch.zeros(1, 16, 8, 8, 3), "wanted float"),
    (torch.full((1, 3, 16, 8, 8), 255.0), "range from 255.000 to 255.000"),
    (torch.full((1, 3, 16, 8, 8), -1.0), "wanted \\[0, 1\\]"),
    (torch.full((1, 3, 16, 8, 8), torch.nan), "range from nan")])
def test_videos_of_another_kind_or_range_are_refused(video, complaint):
    for prepare in (pretrained.i3d_input, pretrained.c3d_input):
        with pytest.raises(ValueError, match=complaint):
            prepare(video)


# ---------------------------------------------------------------------------------------------
# I3D

def fill_unit(unit, golden, prefix):
    unit.eval()
    with torch.no_grad():
        unit.conv3d.weight.copy_(golden[f"{prefix}/conv_3d/kernel"].permute(4, 3, 0, 1, 2))
        unit.bn.bias.copy_(golden[f"{prefix}/batch_norm/beta"])
        unit.bn.running_mean.copy_(golden[f"{prefix}/batch_norm/moving_mean"])
        unit.bn.running_var.copy_(golden[f"{prefix}/batch_norm/moving_variance"])


@torch.no_grad()
def test_the_stem_and_its_pool_compute_what_the_official_ones_do(golden):
    stem = networks.Unit3d(3, 4, kernel=7, stride=2)
    fill_unit(stem, golden, "i3d_stem/params")
    y = stem(channels_first(golden["i3d_stem/x"]))
    torch.testing.assert_close(y, channels_first(golden["i3d_stem/y"]), rtol=0, atol=2e-5)
    pooled = networks.MaxPoolSame((1, 3, 3), (1, 2, 2))(y)
    torch.testing.assert_close(pooled, channels_first(golden["i3d_stem/maxpool133_s122"]),
                               rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [3, 2])
def test_max_pools_pad_as_the_official_ones_do(golden, size):
    pool = networks.MaxPoolSame((size,) * 3, (2, 2, 2))
    wanted = channels_first(golden[f"pool/max{size}{size}{size}_s222"])
    torch.testing.assert_close(pool(channels_first(golden["pool/x"])), wanted, rtol=0, atol=0)


@torch.no_grad()
def test_an_inception_module_computes_what_the_official_one_does(golden):
    module = networks.Mixed(6, 4, (3, 5), (2, 3), 4)
    for ours, theirs in INCEPTION.items():
        fill_unit(getattr(module, ours), golden, f"i3d_branch/params/{theirs}")
    y = module(channels_first(golden["i3d_branch/x"]))
    torch.testing.assert_close(y, channels_first(golden["i3d_branch/y"]), rtol=0, atol=2e-5)


INCEPTION = {"b0": "Branch_0.Conv3d_0a_1x1",
             "b1a": "Branch_1.Conv3d_0a_1x1", "b1b": "Branch_1.Conv3d_0b_3x3",
             "b2a": "Branch_2.Conv3d_0a_1x1", "b2b": "Branch_2.Conv3d_0b_3x3",
             "b3b": "Branch_3.Conv3d_0b_1x1"}


def official_name(ours):
    """Mixed_3b.b1a.conv3d.weight -> Mixed_3b/Branch_1.Conv3d_0a_1x1/conv_3d/kernel"""
    *unit, kind, leaf = ours.split(".")
    unit = "/".join(INCEPTION.get(part, part) for part in unit)
    unit = unit.replace("logits", "Logits.Conv3d_0c_1x1")
    leaf = {"conv3d.weight": "conv_3d/kernel", "conv3d.bias": "conv_3d/bias",
            "bn.bias": "batch_norm/beta", "bn.running_mean": "batch_norm/moving_mean",
            "bn.running_var": "batch_norm/moving_variance"}[f"{kind}.{leaf}"]
    return f"{unit}/{leaf}"


def test_i3d_has_exactly_the_official_parameters(official_shapes):
    found = {}
    for name, tensor in I3D().state_dict().items():
        if not name.endswith(("bn.weight", "num_batches_tracked")):
            shape = list(tensor.shape)
            found[official_name(name)] = shape[2:] + shape[1::-1] if len(shape) == 5 else shape
    assert found == official_shapes["I3D"]
    assert sum(np.prod(shape) for shape in found.values()) == 12_704_544


@pytest.mark.parametrize("size, kernel, stride, before, after", [
    (16, 7, 2, 2, 3), (17, 7, 2, 3, 3), (9, 7, 2, 3, 3), (224, 7, 2, 2, 3),     # stem
    (112, 3, 2, 0, 1), (8, 3, 2, 0, 1), (9, 3, 2, 1, 1), (8, 1, 1, 0, 0),       # first pools
    (4, 2, 2, 0, 0), (5, 2, 2, 0, 1), (28, 3, 1, 1, 1)])
def test_same_padding_follows_the_size_of_the_input(size, kernel, stride, before, after):
    x = torch.ones(1, 1, size, 1, 1)
    padded = networks.same_pad(x, (kernel, 1, 1), (stride, 1, 1)).flatten().tolist()
    assert padded == [0] * before + [1] * size + [0] * after


def test_i3d_takes_any_length_from_nine_frames_on():
    with torch.device("meta"):
        network = I3D()
        for T in range(9, 26):
            assert network(torch.empty(2, 3, T, 224, 224)).shape == (2, 400)


@pytest.mark.parametrize("shape", [(1, 3, 8, 224, 224), (1, 3, 16, 128, 128), (3, 16, 224, 224),
                                   (1, 16, 3, 224, 224), (1, 3, 16, 224, 224, 1)])
def test_i3d_refuses_eight_frames_and_other_shapes(i3d, shape):
    with pytest.raises(ValueError, match=r"wanted \(B, 3, T, 224, 224\).*T >= 9"):
        i3d(torch.zeros(shape))


def test_i3d_averages_its_logits_over_the_time_steps_left(i3d):
    steps = []
    hook = i3d.logits.register_forward_hook(lambda module, x, y: steps.append(y))
    found = i3d(pretrained.i3d_input(pictures(1, 3, 17, 16, 16)))
    hook.remove()
    assert steps[0].shape == (1, 400, 2, 1, 1)
    torch.testing.assert_close(found, steps[0].mean((2, 3, 4)))
    assert found.std() > 0.1                                     # random, but not without features


# ---------------------------------------------------------------------------------------------
# C3D

def test_c3d_has_exactly_the_official_parameters_and_mean_cube(official_shapes):
    found = {}
    for name, tensor in C3D().state_dict().items():
        shape = list(tensor.shape)
        if name == "mean":
            found["x_offset"] = shape[1:] + shape[:1]
        elif name.endswith("weight"):
            found[name.replace(".weight", "/kernel")] = shape[2:] + shape[1::-1]
        else:
            found[name.replace(".bias", "/bias")] = shape
    assert found == official_shapes["C3D"]
    assert sum(np.prod(shape) for shape in found.values()) == 79_011_685


def test_c3d_counts_the_border_in_its_last_pool_and_flattens_channels_first():
    network, seen = randomize(C3D(), seed=0), {}
    for name in ("conv1a", "relu5b", "fc6"):
        network.get_submodule(name).register_forward_hook(
            lambda module, x, y, name=name: seen.update({name: (x[0], y)}))
    video = pretrained.c3d_input(pictures(1, 3, 16, 8, 8))
    logits = network(video)
    assert logits.shape == (1, 101)
    torch.testing.assert_close(seen["conv1a"][0], video - 128)    # the mean is taken off first
    features = seen["relu5b"][1][0].numpy()                                    # (512, 2, 7, 7)
    padded = np.pad(features, ((0, 0), (0, 0), (0, 1), (0, 1)))
    wanted = [padded[c, :, h:h + 2, w:w + 2].max()
              for c in range(512) for h in range(0, 8, 2) for w in range(0, 8, 2)]
    assert seen["fc6"][0][0].tolist() == wanted


def test_c3d_refuses_other_lengths_and_sizes():
    with torch.device("meta"):
        for shape in ((1, 3, 15, 112, 112), (1, 3, 16, 128, 128), (3, 16, 112, 112)):
            with pytest.raises(ValueError, match=r"wanted \(B, 3, 16, 112, 112\)"):
                C3D()(torch.empty(shape))


# ---------------------------------------------------------------------------------------------
# LPIPS

def vgg_numpy(image, weights):
    """One image (3, H, W) through VGG16 by torchvision's numbers -> its five feature maps."""
    maps, x = [], image
    for index in range(30):
        if f"vgg.features.{index}.weight" in weights:
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
            x = np.tensordot(weights[f"vgg.features.{index}.weight"], windows,
                             axes=((1, 2, 3), (0, 3, 4)))
            x = x + weights[f"vgg.features.{index}.bias"][:, None, None]
        elif index in (4, 9, 16, 23):
            x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max((2, 4))
        else:
            x = np.maximum(x, 0)
        if index in (3, 8, 15, 22, 29):
            maps.append(x)
    return maps


def lpips_numpy(a, b, weights):
    maps = []
    for image in (a, b):
        image = image * 2 - 1
        channels = zip(image, (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
        maps.append(vgg_numpy(np.stack([(x - s) / d for x, s, d in channels]), weights))
    total = 0.0
    for depth, (x, y) in enumerate(zip(*maps)):
        pixels = [(h, w) for h in range(x.shape[1]) for w in range(x.shape[2])]
        for h, w in pixels:
            u = x[:, h, w] / (np.sqrt((x[:, h, w] ** 2).sum()) + 1e-10)
            v = y[:, h, w] / (np.sqrt((y[:, h, w] ** 2).sum()) + 1e-10)
            total += ((u - v) ** 2 * weights[f"heads.{depth}"]).sum() / len(pixels)
    return total


def test_lpips_is_what_a_slow_explicit_oracle_computes(lpips):
    a, b = pictures(3, 16, 32), pictures(3, 16, 32, seed=1)
    weights = {name: tensor.double().numpy() for name, tensor in lpips.state_dict().items()}
    wanted = lpips_numpy(a.double().numpy(), b.double().numpy(), weights)
    assert wanted > 0.1
    assert lpips(a, b).item() == pytest.approx(wanted, rel=2e-5)


def test_lpips_gives_one_value_for_each_frame(lpips):
    a, b = pictures(2, 3, 3, 16, 16), pictures(2, 3, 3, 16, 16, seed=1)     # (B, T, 3, H, W)
    found = lpips(a, b)
    assert found.shape == (2, 3) and lpips(a[0, 0], b[0, 0]).shape == ()
    torch.testing.assert_close(found[1, 2], lpips(a[1, 2], b[1, 2]))


def test_gradients_pass_through_lpips_to_its_input_and_stay_out_of_its_parameters(lpips):
    a = pictures(1, 3, 16, 16).requires_grad_()
    lpips(a, pictures(1, 3, 16, 16, seed=1)).sum().backward()
    assert a.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_pixels_without_any_feature_give_no_nan():
    network = randomize(LPIPS(), seed=0)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.fill_(-100)                                                   # all dead
    a = pictures(1, 3, 16, 16).requires_grad_()
    distance = network(a, pictures(1, 3, 16, 16, seed=1))
    distance.sum().backward()
    assert distance.item() == 0 and a.grad.abs().max() == 0


def test_lpips_stays_in_float32_under_autocast(lpips):
    a, b = pictures(1, 3, 16, 16), pictures(1, 3, 16, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = lpips(a, b)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(lpips(a, b).item(), rel=0.05)


def test_lpips_refuses_unequal_and_tiny_pictures(lpips):
    for a, b in (((3, 16, 16), (3, 16, 32)), ((3, 8, 8), (3, 8, 8)), ((16, 16, 3), (16, 16, 3))):
        with pytest.raises(ValueError, match="LPIPS got .* wanted two equal shapes"):
            lpips(torch.zeros(a), torch.zeros(b))


# ---------------------------------------------------------------------------------------------
# Frozen, random

@pytest.mark.parametrize("build", [I3D, C3D, LPIPS, networks.VGG16Features])
def test_networks_that_judge_are_never_trained(build):
    with torch.device("meta"):
        judge = build()
        student = nn.ModuleList([judge, nn.Dropout()]).train()
    assert student[1].training and not any(module.training for module in judge.modules())
    assert not any(parameter.requires_grad for parameter in judge.parameters())


def test_random_networks_are_a_function_of_the_seed_and_say_that_they_are_random():
    first, same, other = (randomize(LPIPS(), seed) for seed in (0, 0, 1))
    assert first.weights == "random (seed 0)" and other.weights == "random (seed 1)"
    name = "vgg.features.28.weight"
    assert torch.equal(first.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert LPIPS().weights == "unknown"


# ---------------------------------------------------------------------------------------------
# Files

def git_blob(path):
    data = path.read_bytes()
    return hashlib.sha1(b"blob " + str(len(data)).encode() + b"\0" + data).hexdigest()


def publish(monkeypatch, path):
    """Make WEIGHTS believe that the file at `path` is the published one."""
    digest = {"git blob": git_blob(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    file = pretrained.WEIGHTS[path.name]
    monkeypatch.setitem(pretrained.WEIGHTS, path.name, file._replace(hash=digest[file.kind]))


def one_line(error):
    return str(error.value).count("\n") == 0


def test_the_public_i3d_file_would_load_as_it_is(monkeypatch, tmp_path, i3d):
    path = tmp_path / "i3d_pretrained_400.pt"
    state = OrderedDict((name, tensor) for name, tensor in i3d.state_dict().items()
                        if not name.endswith("num_batches_tracked"))
    torch.save(state, path)                               # a plain OrderedDict, no _metadata
    publish(monkeypatch, path)
    network = pretrained.load_i3d(tmp_path)
    assert network.weights == f"i3d_pretrained_400.pt, git blob {git_blob(path)[:12]}, verified"
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state.items())
    assert not network.training and not network.logits.conv3d.weight.requires_grad


def test_a_missing_file_is_named_with_its_origin_and_its_place(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        pretrained.load_i3d(tmp_path)
    message = str(error.value)
    assert one_line(error) and str(tmp_path / pretrained.RAW_I3D) in message
    assert "https://github.com/google-deepmind/kinetics-i3d" in message and "FVD" in message
    assert message.endswith("or i3d_pretrained_400.pt")


def test_a_file_with_another_hash_is_refused(tmp_path):
    path = tmp_path / "i3d_pretrained_400.pt"
    torch.save({"logits.conv3d.bias": torch.zeros(400)}, path)
    with pytest.raises(ValueError) as error:
        pretrained.load_i3d(tmp_path)
    assert one_line(error) and git_blob(path) in str(error.value)
    assert "wanted git blob a867b87ac3a9097d200598b1d48a1b890d8ec744" in str(error.value)


def test_the_imagenet_i3d_is_refused_by_name(monkeypatch, tmp_path):
    known = "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a"
    path = tmp_path / "i3d_pretrained_400.pt"
    path.write_bytes(b"stands for rgb_imagenet.pt")
    monkeypatch.setitem(pretrained.LOOKALIKES, git_blob(path), pretrained.LOOKALIKES[known])
    with pytest.raises(ValueError, match="is pytorch-i3d's rgb_imagenet.pt") as error:
        pretrained.load_i3d(tmp_path)
    assert one_line(error)


def test_the_git_blob_hash_is_the_one_git_prints(monkeypatch, tmp_path):
    path = tmp_path / "hello.npz"
    path.write_bytes(b"hello\n")
    monkeypatch.setitem(pretrained.WEIGHTS, "hello.npz", WeightFile(
        "a test", "nowhere", "git blob", "ce013625030ba8dba906f756967f9e9ca394464a"))
    with pytest.raises(ValueError, match="is damaged"):       # so the hash was accepted
        pretrained.load_weights(path)


def chainer_arrays(official_shapes):
    """The real names and shapes; every tensor constant, so that the file is small on disk."""
    arrays = {}
    for number, (name, shape) in enumerate(official_shapes["C3D"].items(), start=1):
        if name != "x_offset":
            shape = shape[:-3:-1] + shape[:-2] if name.endswith("kernel") else shape
            name = name.replace("kernel", "W").replace("bias", "b")
            arrays[name] = np.full(shape, number, np.float32)
    return arrays


def test_chainers_c3d_loads_and_says_that_nobody_vouches_for_it(tmp_path, official_shapes):
    arrays = chainer_arrays(official_shapes)
    np.savez_compressed(tmp_path / "conv3d_deepnetA_ucf.npz", **arrays)
    wide = np.broadcast_to(np.arange(171.0), (3, 16, 128, 171))
    np.savez_compressed(tmp_path / "mean2.npz", mean=wide)
    network = pretrained.load_c3d(tmp_path)
    state = network.state_dict()
    for name, array in arrays.items():
        ours = name.replace("/W", ".weight").replace("/b", ".bias")
        assert state[ours].shape == array.shape and (state[ours] == array.flat[0]).all()
    assert network.mean[0, 0, 0].tolist() == list(range(8, 120))              # tgan2's crop
    labels = network.weights.split("; ")
    assert [label.split(",")[0] for label in labels] == ["conv3d_deepnetA_ucf.npz", "mean2.npz"]
    assert all(label.endswith(", unverified") and "sha256" in label for label in labels)
    assert not network.training


def test_lpips_loads_torchvisions_trunk_and_the_heads_of_the_lpips_package(
        monkeypatch, tmp_path, lpips):
    trunk, heads = tmp_path / "vgg16-397923af.pth", tmp_path / "lpips_vgg.pth"
    vgg = OrderedDict((name.removeprefix("vgg."), tensor)
                      for name, tensor in lpips.state_dict().items() if name.startswith("vgg."))
    torch.save(OrderedDict(vgg, **{"classifier.0.bias": torch.zeros(4096)}), trunk)
    torch.save(OrderedDict((f"lin{i}.model.1.weight", head.view(1, -1, 1, 1))
                           for i, head in enumerate(lpips.heads.state_dict().values())), heads)
    publish(monkeypatch, trunk)
    publish(monkeypatch, heads)
    network = pretrained.load_lpips(tmp_path)
    a, b = pictures(3, 16, 16), pictures(3, 16, 16, seed=1)
    assert torch.equal(network(a, b), lpips(a, b))
    assert network.weights.count(", verified") == 2


def test_vgg16_is_numbered_as_in_torchvision():
    with torch.device("meta"):
        layers = networks.VGG16Features().features
    kinds = {kind: [i for i, layer in enumerate(layers) if isinstance(layer, kind)]
             for kind in (nn.Conv2d, nn.MaxPool2d)}
    assert kinds[nn.Conv2d] == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert kinds[nn.MaxPool2d] == [4, 9, 16, 23] and len(layers) == 30


def test_the_command_line_tells_which_files_are_there(tmp_path):
    (tmp_path / "lpips_vgg.pth").write_text("not the heads")
    (tmp_path / "mean2.npz").write_bytes(b"")
    printed = python("-m", "measure.pretrained", tmp_path).stdout
    assert all(str(tmp_path / name) in printed for name in pretrained.WEIGHTS)
    assert all(file.origin in printed for file in pretrained.WEIGHTS.values())
    assert printed.count("not found") == 4 and printed.count("REFUSED") == 2
    assert "about 131" in printed and "not computed" in printed


# ---------------------------------------------------------------------------------------------
# DeepMind's own file, read without TensorFlow. The real one is not here: one is made that lies so

@pytest.fixture
def raw(tmp_path, monkeypatch):
    """(network, bytes) of a file of DeepMind's layout, whose hash is taken for the known one."""
    network = randomize(I3D(), seed=0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.linspace(-1, 1, len(buffer)))
    state = {name: tensor for name, tensor in network.state_dict().items()
             if not name.endswith(("bn.weight", "num_batches_tracked"))}
    parts = [tensor.permute(2, 3, 4, 1, 0) if tensor.ndim == 5 else tensor
             for _, tensor in sorted(state.items(), key=lambda item: pretrained.deepminds(item[0]))]
    data = b"".join(part.contiguous().numpy().astype("<f4").tobytes() for part in parts)
    path = tmp_path / pretrained.RAW_I3D
    path.write_bytes(data)
    publish(monkeypatch, path)
    return network, data


def test_deepminds_tensors_are_230_in_the_order_of_their_names():
    names = sorted(pretrained.deepminds(name) for name in I3D().state_dict()
                   if not name.endswith(("bn.weight", "num_batches_tracked")))
    assert len(names) == 230
    assert names[0] == "RGB/inception_i3d/Conv3d_1a_7x7/batch_norm/beta"
    assert {"RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w",
            "RGB/inception_i3d/Mixed_5c/Branch_2/Conv3d_0b_3x3/conv_3d/w",
            "RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/b"} <= {*names}


def test_deepminds_file_is_the_first_choice_and_bears_no_star(tmp_path, raw):
    wanted, data = raw
    (tmp_path / "i3d_pretrained_400.pt").write_bytes(b"not even looked at")
    network = pretrained.load_i3d(tmp_path)
    assert len(data) == 50_818_176
    assert all(torch.equal(network.state_dict()[name], tensor)
               for name, tensor in wanted.state_dict().items())
    assert entry("fvd", (1.0, 0.0), 9, 1, {"fvd": network}, [])[0] == "FVD"
    # A kernel lies as time, height, width, in, out; beta and the two moving statistics before it.
    t, y, x, channel_in, channel_out = 1, 2, 3, 2, 40
    number = 3 * 64 + (((t * 7 + y) * 7 + x) * 3 + channel_in) * 64 + channel_out
    value = wanted.Conv3d_1a_7x7.conv3d.weight[channel_out, channel_in, t, y, x].item()
    assert struct.unpack_from("<f", data, 4 * number)[0] == value


def test_a_file_in_which_one_bit_differs_is_refused(tmp_path, raw):
    data = bytearray(raw[1])
    data[1000] ^= 1
    (tmp_path / pretrained.RAW_I3D).write_bytes(data)
    with pytest.raises(ValueError, match="50,818,176 bytes with git blob .*; wanted git blob.*fetch"
                       ) as error:
        pretrained.load_i3d(tmp_path)
    assert one_line(error)


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


@pytest.mark.parametrize("value, verdict", [(131.4, "131.4: the chain is right"),
                                            (219.0, "219.0: NOT RIGHT")])
def test_the_example_of_googles_code_says_whether_the_chain_is_right(tmp_path, monkeypatch, capsys,
                                                                     value, verdict):
    monkeypatch.setattr(pretrained, "load_i3d", lambda directory: None)
    monkeypatch.setattr(pretrained, "black_and_white", lambda network: value)
    monkeypatch.setattr("sys.argv", ["pretrained", str(tmp_path)])
    pretrained.main()
    assert verdict in capsys.readouterr().out

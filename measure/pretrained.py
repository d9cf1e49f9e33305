"""How pixels enter the networks that judge, and the files of their weights, known by hash.

Paper   Sec. 4 (evaluation metrics), App. B.3

Shapes  FVD    video (B, 3, T, H, W) in [0, 1] -> i3d_input -> (B, 3, T, 224, 224) in [-1, 1]
        IS     video (B, 3, 16, H, W) in [0, 1] -> c3d_input -> (B, 3, 16, 112, 112) in [0, 255]
        files  a folder -> load_i3d, load_c3d, load_lpips -> a network that names its source

Read    the two ways to resize; WEIGHTS (which files, from where, known by which hash);
        load_weights, load_i3d and its siblings; black_and_white, which tests the chain.

FVD of the same two sets was 131 with the right I3D file and 219 with its ImageNet sibling. So
files are known by hash, nothing is downloaded, and a network's `.weights` names its source.

Not here: the networks (networks.py), metrics (metrics.py).

Run:    python -m measure.pretrained [DIR]      which files are there, and whether FVD comes out
"""
from __future__ import annotations

import hashlib
import io
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from measure.metrics import fvd, refuse_range
from measure.networks import C3D, I3D, LPIPS, Frozen


# ---------------------------------------------------------------------------------------------
# Pixels in. Two bilinear conventions; they differ in where output pixel i looks in the input.

def resize_tf1(video: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., C, H, W) -> (..., C, *size), pixel i at i * in/out, as TensorFlow 1 and so FVD do it.

    Not a mode of F.interpolate, which knows half-pixel centres and aligned corners.
    """
    return _bilinear(video, size, [n / m for n, m in zip(video.shape[-2:], size)])


def resize_align_corners(video: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., C, H, W) -> (..., C, *size), pixel i at i * (in-1)/(out-1), as tgan2 does for IS."""
    steps = [(n - 1) / max(m - 1, 1) for n, m in zip(video.shape[-2:], size)]
    return _bilinear(video, size, steps)


def _bilinear(x: Tensor, size: tuple[int, int], steps: list[float]) -> Tensor:
    """Read x at 0, step, 2 step, ... along both axes; beyond the last pixel it repeats."""
    for length, step in zip(size, steps):       # rows, then columns as rows: five times as fast
        position = torch.arange(length, device=x.device, dtype=torch.float32) * step
        low = position.long().clamp(max=x.shape[-2] - 1)
        high = (low + 1).clamp(max=x.shape[-2] - 1)
        weight = (position - low).to(x.dtype).view(-1, 1)
        x = torch.lerp(x.index_select(-2, low), x.index_select(-2, high), weight).mT.contiguous()
    return x


def i3d_input(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [0, 1] -> (B, 3, T, 224, 224) in [-1, 1]; no crop, any H and W."""
    return resize_tf1(_checked(video), (224, 224)) * 2 - 1


def c3d_input(video: Tensor) -> Tensor:
    """RGB (B, 3, 16, H, W) in [0, 1] -> BGR (B, 3, 16, 112, 112) in [0, 255], as Caffe has it."""
    return resize_align_corners(_checked(video), (112, 112)).flip(1) * 255   # tgan2 has 256


def _checked(video: Tensor) -> Tensor:
    if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
        raise ValueError(f"video is {video.dtype} {tuple(video.shape)}; wanted float "
                         "(B, 3, T, H, W)")
    refuse_range(video, "the video's pixels")
    return video


# ---------------------------------------------------------------------------------------------
# Files: what they are, and whether they are what they claim to be

class WeightFile(NamedTuple):
    serves: str            # what for
    origin: str            # where to fetch it by hand; the program never does
    kind: str              # of hash: "sha256", or "git blob" as `git hash-object FILE` prints it
    hash: str | None       # its first digits, or all; None where nobody published one


GITHUB = "https://github.com"
RAW_I3D, TORCH_I3D = "model.ckpt.data-00000-of-00001", "i3d_pretrained_400.pt"
WEIGHTS = {
    RAW_I3D: WeightFile("FVD: I3D trained on Kinetics-400 alone, DeepMind's own file",
        f"{GITHUB}/google-deepmind/kinetics-i3d/raw/master/data/checkpoints/rgb_scratch/{RAW_I3D}",
        "git blob", "fa7df95674"),
    TORCH_I3D: WeightFile("FVD: the same for PyTorch",
        f"{GITHUB}/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt "
        f"(or {GITHUB}/npurson/fid-metrics/releases/tag/v1.0)",
        "git blob", "a867b87ac3a9097d200598b1d48a1b890d8ec744"),
    "conv3d_deepnetA_ucf.npz": WeightFile("IS: C3D finetuned on UCF-101",
        f"{GITHUB}/rezoo/tgan2/releases/download/v1.0/conv3d_deepnetA_ucf.npz", "sha256", None),
    "mean2.npz": WeightFile("IS: C3D's mean cube",
        f"{GITHUB}/rezoo/tgan2/releases/download/v1.0/mean2.npz", "sha256", None),
    "vgg16-397923af.pth": WeightFile("LPIPS: VGG16 trained on ImageNet",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "sha256", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
    "lpips_vgg.pth": WeightFile("LPIPS: channel weights, v0.1",
        f"{GITHUB}/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
        "git blob", "47e943cfacabf7040b4af8cf4084ab91177f1b88")}
LOOKALIKES = {             # by git's hash, files that have been taken for the right one
    "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a":
        "pytorch-i3d's rgb_imagenet.pt, trained on ImageNet first, which gives another FVD",
    "2a7c22e23e6c74f50a0166ce61110bccd2ab48bb":
        "hassony2's model_rgb.pth, trained on ImageNet first, which gives another FVD",
    "93daef59c7ae0e9e8f76225521407e60cbafa6aa":
        "StyleGAN-V's i3d_torchscript.pt, a program and no file of tensors"}


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """A file named in WEIGHTS -> (tensors by name, label "name, hash, verified | unverified").

    FileNotFoundError says where to get a missing file; ValueError refuses a wrong one.
    """
    path = Path(path)
    if path.name not in WEIGHTS:
        raise ValueError(f"{path.name} is no known weight file; known are {', '.join(WEIGHTS)}")
    serves, origin, kind, wanted = WEIGHTS[path.name]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing ({serves}): save {origin} under this name")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest() if kind == "sha256" else git_blob(data)
    if wanted and not found.startswith(wanted):
        what = LOOKALIKES.get(found, f"{len(data):,} bytes with {kind} {found}")
        raise ValueError(f"{path} is {what}; wanted {kind} {wanted}: fetch {origin}")
    try:
        if path.name == RAW_I3D:
            state = read_raw(data)
        elif path.suffix == ".npz":
            state = {name: torch.from_numpy(array)
                     for name, array in np.load(io.BytesIO(data)).items()}
        else:       # a plain dict: without a version note PyTorch forgives missing batch counters
            state = dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except Exception as error:                     # whatever a reader raises: it is another file
        raise ValueError(f"{path} is damaged ({type(error).__name__}): fetch {origin}") from error
    return state, f"{path.name}, {kind} {found[:12]}, {'verified' if wanted else 'unverified'}"


def read_raw(data: bytes) -> dict[str, Tensor]:
    """DeepMind's I3D checkpoint, without TensorFlow: its bytes -> tensors by this project's names.

    The file has neither names nor shapes in it: 230 tensors of float32 lie behind one another in
    the order of their names, and the network says which. Kernels lie as (time, height, width, in,
    out).
    """
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in I3D().state_dict().items()
                  if not name.endswith(("bn.weight", "num_batches_tracked"))}    # it has no such
    names = sorted(shapes, key=deepminds)
    numbers = torch.from_numpy(np.frombuffer(data, "<f4").copy())
    state = dict(zip(names, numbers.split([math.prod(shapes[name]) for name in names])))
    for name, shape in shapes.items():
        if len(shape) == 5:
            kernel = state[name].view(*shape[2:], shape[1], shape[0])
            state[name] = rearrange(kernel, "t h w i o -> o i t h w").contiguous()
    return state


UNITS = {"b0": "Branch_0/Conv3d_0a_1x1", "b1a": "Branch_1/Conv3d_0a_1x1",
         "b1b": "Branch_1/Conv3d_0b_3x3", "b2a": "Branch_2/Conv3d_0a_1x1",
         "b2b": "Branch_2/Conv3d_0b_3x3", "b3b": "Branch_3/Conv3d_0b_1x1",
         "logits": "Logits/Conv3d_0c_1x1"}
LEAVES = {"conv3d.weight": "conv_3d/w", "conv3d.bias": "conv_3d/b", "bn.bias": "batch_norm/beta",
          "bn.running_mean": "batch_norm/moving_mean",
          "bn.running_var": "batch_norm/moving_variance"}


def deepminds(ours: str) -> str:
    """Mixed_5b.b2b.conv3d.weight -> RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w,
    the one branch whose second convolution DeepMind calls 0a like its first."""
    *unit, kind, leaf = ours.split(".")
    name = "/".join(["RGB/inception_i3d", *(UNITS.get(part, part) for part in unit),
                     LEAVES[f"{kind}.{leaf}"]])
    return name.replace("Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3")


def filled(network: Frozen, state: dict[str, Tensor], label: str) -> Frozen:
    """The network with the tensors of state that it knows; what is in the file beside is ignored,
    as by Chainer. ValueError where one is missing or of another shape."""
    known = network.state_dict()
    try:
        network.load_state_dict({name: tensor for name, tensor in state.items() if name in known})
    except RuntimeError as error:
        raise ValueError(f"{label}: {' '.join(str(error).split())[:200]}") from error
    network.weights = label
    return network


def load_i3d(directory: str | Path = "weights") -> I3D:
    """From DeepMind's file where it is there, else from PyTorch's. FileNotFoundError, which names
    both, where neither is; and what a look-alike is, if one lies there."""
    directory = Path(directory)
    there = [name for name in (RAW_I3D, TORCH_I3D) if (directory / name).is_file()]
    if not there:
        hashes = {path: git_blob(path.read_bytes()) for path in sorted(directory.glob("*.pt*"))
                  if path.is_file()}
        others = [f"; {path.name} there is {LOOKALIKES[found]}" for path, found in hashes.items()
                  if found in LOOKALIKES]
        serves, origin = WEIGHTS[RAW_I3D][:2]
        raise FileNotFoundError(f"{directory / RAW_I3D} is missing ({serves}): save {origin} under "
                                f"this name, or {TORCH_I3D}{''.join(others)}")
    state, label = load_weights(directory / there[0])
    network = I3D()
    ones = {name: tensor for name, tensor in network.state_dict().items()
            if name.endswith("bn.weight")}                                    # DeepMind's has none
    return filled(network, ones | state, label)


def load_c3d(directory: str | Path = "weights") -> C3D:
    """C3D with its mean cube, cropped as by tgan2 where that is larger; what misfits is refused."""
    arrays, label = load_weights(Path(directory, "conv3d_deepnetA_ucf.npz"))
    mean, mean_label = load_weights(Path(directory, "mean2.npz"))
    state = {name.replace("/W", ".weight").replace("/b", ".bias"): array     # Chainer's names
             for name, array in arrays.items()}
    state |= {name: cube if cube.shape[-2:] == (112, 112) else cube[..., 8:120, 8:120]
              for name, cube in mean.items() if cube.ndim > 1}
    return filled(C3D(), state, f"{label}; {mean_label}")


def load_lpips(directory: str | Path = "weights") -> LPIPS:
    trunk, trunk_label = load_weights(Path(directory, "vgg16-397923af.pth"))
    heads, heads_label = load_weights(Path(directory, "lpips_vgg.pth"))
    state = {f"vgg.{name}": tensor for name, tensor in trunk.items()}        # and its classifier
    state |= {f"heads.{i}": heads[f"lin{i}.model.1.weight"].flatten() for i in range(5)}
    return filled(LPIPS(), state, f"{trunk_label}; {heads_label}")


# ---------------------------------------------------------------------------------------------
# Whether the chain is right

def black_and_white(network: I3D) -> float:
    """FVD of 16 black videos against 16 white ones, of 15 frames of 64x64: about 131.

    The example that comes with Google's FVD code. Equal videos have no covariance, so what is
    left is the distance of two features: wrong weights give another one (219 with rgb_imagenet).
    """
    video = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1).expand(2, 3, 15, 64, 64)
    with torch.no_grad():
        black, white = network(i3d_input(video)).double()
    return fvd(black.expand(16, -1), white.expand(16, -1))


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "weights")
    for name, file in WEIGHTS.items():
        try:
            found = load_weights(directory / name)[1]
        except FileNotFoundError:
            found = "not found"
        except ValueError as error:
            found = f"REFUSED: {error}"
        print(f"{directory / name}\n    for    {file.serves}\n    from   {file.origin}\n"
              f"    hash   {file.kind} {file.hash or 'not published'}\n    here   {found}")
    try:
        value = black_and_white(load_i3d(directory))
        verdict = f"{value:.1f}: {'the chain is right' if 130 < value < 135 else 'NOT RIGHT'}"
    except (FileNotFoundError, ValueError) as error:
        verdict = f"not computed: {error}"
    print("\nFVD of 16 black videos and 16 white ones, which Google's code prints as about 131:\n"
          f"    {verdict}")


if __name__ == "__main__":
    main()

"""From google/praxis' parameters of MAGVIT-v2's tokenizer to ours: a reading of names.

Arrays of a file: `params/encoder/res_blocks_3/conv_1/w` and the like, layers of a kind numbered as
they are executed; `config_json` has the sizes. Kernels are (time, height, width, in, out), a group
norm's scale is stored as gamma and means 1 + gamma.
"""
from __future__ import annotations

import json

import numpy as np
import torch
from official import arrays_of, below, kernel
from torch import Tensor, nn

from discriminator import DiscriminatorConfig
from magvit2.blur_discriminator import BlurConfig, BlurDiscriminator3d
from magvit2.causal_tokenizer import (AdaptiveNorm, CausalConfig, CausalConv, Decoder, Encoder,
                                      FrameNorm, ResidualBlock, Upsample)


def causal_config(arrays: dict) -> CausalConfig:
    """The sizes that a file's config_json tells."""
    told = json.loads(str(arrays["config_json"]))
    return CausalConfig(
        base_channels=told["filters"], channel_multipliers=tuple(told["mult"]),
        temporal_downsample=tuple(told["temporal"]), num_res_blocks=told["nres"],
        bits=told["bits"], norm_groups=told["groups"] or 32)


def load_praxis_encoder(npz, prefix: str = "params/encoder") -> Encoder:
    """An Encoder in eval mode with the arrays of a file, or of an opened one, or of a dict."""
    arrays = arrays_of(npz)
    return fill(Encoder(causal_config(arrays)), below(arrays, prefix), "conv_downsample_layers")


def load_praxis_decoder(npz, prefix: str = "params/decoder") -> Decoder:
    """A Decoder likewise."""
    arrays = arrays_of(npz)
    return fill(Decoder(causal_config(arrays)), below(arrays, prefix), "conv_upsample_layers")


def load_praxis_discriminator(npz, prefix: str = "params") -> BlurDiscriminator3d:
    """A BlurDiscriminator3d likewise, for the clips of the file."""
    arrays = arrays_of(npz)
    told, params = json.loads(str(arrays["config_json"])), below(arrays, prefix)
    network = BlurDiscriminator3d(BlurConfig(
        base_channels=told["filters"], channel_multipliers=tuple(told["mult"]),
        resolution=tuple(told["size"])))
    names = {"conv_in": "conv_first", "conv_out": "conv_last", "dense": "proj/mlp_layers_0",
             "logit": "proj/mlp_layers_1"}
    for n in range(len(network.blocks)):
        names |= {f"blocks.{n}.{ours}": f"res_blocks_{n}/{theirs}" for ours, theirs in (
            ("conv1", "conv_first"), ("conv2", "conv_last"), ("skip", "conv_residual"))}
    for ours, theirs in names.items():
        layer, found = network.get_submodule(ours), below(params, theirs)
        if isinstance(layer, nn.Linear):
            put(layer.weight, found["linear/w"].T)
            put(layer.bias, found["bias/b"])
        else:
            convolution(layer, found)
    return network.eval()


def fill(network: nn.Module, params: dict, resizers: str) -> nn.Module:
    """An Encoder or Decoder, its layers visited as they are executed."""
    number = dict.fromkeys(("res_blocks", resizers, "cond_norm_layers"), 0)

    def next_of(kind: str) -> dict:
        number[kind] += 1
        return below(params, f"{kind}_{number[kind] - 1}")

    def visit(layer: nn.Module) -> None:
        if isinstance(layer, ResidualBlock):
            found = next_of("res_blocks")
            norm_0, _, conv_0, norm_1, _, conv_1 = layer.main
            for ours, theirs in ((norm_0, "norm_0"), (norm_1, "norm_1")):
                group_norm(ours, below(found, theirs))
            for ours, theirs in ((conv_0, "conv_0"), (conv_1, "conv_1"),
                                 (layer.skip, "conv_shortcut")):
                if isinstance(ours, CausalConv):
                    convolution(ours, below(found, theirs))
        elif isinstance(layer, AdaptiveNorm):
            found = next_of("cond_norm_layers")
            for ours, theirs in ((layer.scale, "gamma"), (layer.shift, "beta")):
                put(ours.weight, found[f"{theirs}_linear/w"].T[:, :, None, None, None])
                put(ours.bias, found[f"{theirs}_bias/b"])
        elif isinstance(layer, Upsample):
            convolution(layer.conv, next_of(resizers))
        elif isinstance(layer, FrameNorm):
            group_norm(layer, below(params, "norm"))
        elif isinstance(layer, CausalConv):
            convolution(layer, next_of(resizers) if max(layer.stride) > 1 else
                        below(params, "conv_first" if layer is network.first else "conv_last"))
        elif isinstance(layer, Decoder):                  # its deepest stage runs first
            for child in (layer.first, layer.mid, *reversed(layer.stages), layer.last):
                visit(child)
        else:
            for child in layer.children():
                visit(child)

    visit(network)
    used = sum(parameter.numel() for parameter in network.parameters())
    if used != sum(array.size for array in params.values()):
        raise ValueError(f"{used} parameters here, {sum(a.size for a in params.values())} there")
    return network.eval()


def convolution(layer: nn.Conv3d, found: dict) -> None:
    put(layer.weight, kernel(found["w"]))
    if layer.bias is not None:
        put(layer.bias, found["b"])


def group_norm(layer: nn.GroupNorm, found: dict) -> None:
    put(layer.weight, 1 + found["gamma"].reshape(-1))
    put(layer.bias, found["beta"].reshape(-1))


def put(parameter: Tensor, array) -> None:
    array = torch.as_tensor(np.ascontiguousarray(array))
    if parameter.shape != array.shape:
        raise ValueError(f"{tuple(array.shape)} for a parameter of {tuple(parameter.shape)}")
    parameter.data.copy_(array)

"""From the official JAX parameters to ours: a reading of names, nothing else.

The official code (google-research/magvit, flax) names a layer by its type and the order in which
it was created: `encoder/ResBlock_3/Conv_1/kernel`. A parameter file here is an .npz, or a dict of
arrays, with keys `params/<that path>`.

For owners of official weights: save the flattened flax parameters so,

    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    numpy.savez("vq.npz", **{"params/" + name: array for name, array in flat.items()})

and load_tokenizer("vq.npz", padding="zeros") returns a VideoTokenizer with them (all released
configurations pad with zeros). All sizes are read from the arrays. What arrays cannot tell is an
argument: padding, which down-samplers halve time, and the clip's resolution.
"""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import nn

from discriminator import Discriminator2d, Discriminator3d, DiscriminatorConfig
from tokenizer import (ImageTokenizer, NormSwish, ResidualBlock, TokenizerConfig, Upsample,
                       VideoTokenizer)
from transformer import MaskedTransformer, TransformerConfig


def arrays_of(npz) -> dict[str, np.ndarray]:
    """A path to an .npz, an opened one, or a dict -> a dict of arrays."""
    if isinstance(npz, (str, Path)):
        npz = np.load(npz)
    return {name: npz[name] for name in npz}


def below(arrays: dict, prefix: str) -> dict:
    """The arrays under a prefix, without it."""
    return {name.removeprefix(prefix + "/"): array for name, array in arrays.items()
            if name.startswith(prefix + "/")}


def video(array: np.ndarray) -> torch.Tensor:
    """(B, T, H, W, 3) -> (B, 3, T, H, W)."""
    return rearrange(torch.from_numpy(array), "b t h w c -> b c t h w")


def kernel(array: np.ndarray) -> torch.Tensor:
    """(time, height, width, in, out), or without time -> (out, in, time, height, width)."""
    if array.ndim == 4:
        array = array[None]
    return rearrange(torch.from_numpy(array), "t h w i o -> o i t h w")


def count(arrays: dict, pattern: str) -> int:
    return len({match[0] for name in arrays if (match := re.match(pattern, name))})


# ---------------------------------------------------------------------------------------------
# Tokenizer

def load_tokenizer(npz, prefix: str = "params", *, padding: str | None = None,
                   temporal_downsample: tuple[bool, ...] | None = None) -> VideoTokenizer:
    """A VideoTokenizer with official 3D-VQ parameters.

    padding: None reads "zero" in the file's name as "zeros", else "reflect".
    temporal_downsample: None takes the file's config_temporal_downsample, else the first two.
    """
    arrays = arrays_of(npz)
    return _tokenizer(VideoTokenizer, npz, arrays, prefix, padding, temporal_downsample)


def load_image_tokenizer(npz, prefix: str = "params", *, padding: str | None = None
                         ) -> ImageTokenizer:
    """An ImageTokenizer with official 2D-VQ parameters; None: "zeros", as the golden file."""
    arrays = arrays_of(npz)
    return _tokenizer(ImageTokenizer, npz, arrays, prefix, padding or "zeros", None)


def _tokenizer(kind, npz, arrays, prefix, padding, temporal_downsample):
    params = below(arrays, prefix)
    blocks = count(params, r"encoder/ResBlock_\d+/")
    samplers = count(params, r"decoder/Conv_\d+/") - 2
    per_stage = blocks // (samplers + 2)
    widths = [params[f"encoder/ResBlock_{i * per_stage}/Conv_1/kernel"].shape[-1]
              for i in range(samplers + 1)]
    base = params["encoder/Conv_0/kernel"].shape[-1]
    codes, width = params["quantizer/codebook"].shape
    if padding is None:
        padding = "zeros" if "zero" in str(npz) else "reflect"
    if temporal_downsample is None:
        temporal_downsample = arrays.get("config_temporal_downsample", (True, True, False))
    tokenizer = kind(TokenizerConfig(
        base_channels=base, channel_multipliers=tuple(w // base for w in widths),
        temporal_downsample=tuple(bool(flag) for flag in temporal_downsample)[:samplers],
        num_res_blocks=per_stage, codebook_size=codes, embedding_dim=width, padding=padding))
    state = tokenizer_state(params, tokenizer)
    tokenizer.load_state_dict(state)
    return tokenizer


def tokenizer_state(params: dict, tokenizer: VideoTokenizer) -> dict[str, torch.Tensor]:
    """Official arrays (parameters or their gradients) under the names of our state_dict."""
    state = {"quantizer.codebook": torch.from_numpy(params["quantizer/codebook"])}
    for part in ("encoder", "decoder"):
        convs = blocks = 0
        own = below(params, part)
        for number, layer in enumerate(getattr(tokenizer, part)):
            name = f"{part}.{number}"
            if isinstance(layer, ResidualBlock):
                block = below(own, f"ResBlock_{blocks}")
                blocks += 1
                for i in (0, 1):
                    _norm(state, f"{name}.main.{2 * i}.0", block, f"GroupNorm_{i}")
                    _conv(state, f"{name}.main.{2 * i + 1}", block, f"Conv_{i}")
                if "Conv_2/kernel" in block:
                    _conv(state, f"{name}.skip", block, "Conv_2")
            elif isinstance(layer, NormSwish):
                _norm(state, f"{name}.0", own, "GroupNorm_0")
            elif not isinstance(layer, nn.AvgPool3d):
                _conv(state, f"{name}.conv" if isinstance(layer, Upsample) else name, own,
                      f"Conv_{convs}")
                convs += 1
    return state


def _norm(state: dict, name: str, params: dict, official: str) -> None:
    state[f"{name}.weight"] = torch.from_numpy(params[f"{official}/scale"])
    state[f"{name}.bias"] = torch.from_numpy(params[f"{official}/bias"])


def _conv(state: dict, name: str, params: dict, official: str) -> None:
    state[f"{name}.weight"] = kernel(params[f"{official}/kernel"])
    if f"{official}/bias" in params:
        state[f"{name}.bias"] = torch.from_numpy(params[f"{official}/bias"])


# ---------------------------------------------------------------------------------------------
# Discriminator

def load_discriminator(npz, prefix: str = "params",
                       resolution: tuple[int, int, int] | None = None) -> Discriminator3d:
    """A Discriminator3d (2D kernels: a Discriminator2d) with official parameters.

    resolution (T, H, W): None takes the file's clip, `x` or `step0/batch`.
    """
    arrays = arrays_of(npz)
    params = below(arrays, prefix)
    if resolution is None:
        clip = arrays["x"] if "x" in arrays else arrays["step0/batch"]
        resolution = clip.shape[1:4]
    base = params["Conv_0/kernel"].shape[-1]
    multipliers = tuple(params[f"ResBlock_{i}/Conv_2/kernel"].shape[-1] // base
                        for i in range(count(params, r"ResBlock_\d+/")))
    kind = Discriminator2d if params["Conv_0/kernel"].ndim == 4 else Discriminator3d
    network = kind(DiscriminatorConfig(base, multipliers, tuple(resolution)))
    network.load_state_dict(discriminator_state(params))
    return network


def discriminator_state(params: dict) -> dict[str, torch.Tensor]:
    """Official arrays (parameters or their gradients) under the names of our state_dict."""
    state: dict[str, torch.Tensor] = {}
    _conv(state, "conv_in", params, "Conv_0")
    _conv(state, "conv_out", params, "Conv_1")
    for number in range(count(params, r"ResBlock_\d+/")):
        for ours, official in (("conv1", "Conv_0"), ("skip", "Conv_1"), ("conv2", "Conv_2")):
            _conv(state, f"blocks.{number}.{ours}", params, f"ResBlock_{number}/{official}")
    for ours, official in (("dense", "Dense_0"), ("logit", "Dense_1")):
        _dense(state, ours, params, official)
    return state


def _dense(state: dict, name: str, params: dict, official: str) -> None:
    state[f"{name}.weight"] = torch.from_numpy(params[f"{official}/kernel"]).T
    state[f"{name}.bias"] = torch.from_numpy(params[f"{official}/bias"])


# ---------------------------------------------------------------------------------------------
# Transformer. The official vocabulary ends with 16 special ids, written as negative numbers:
# -1 is [MASK], -k the k-th from the end. So 15 prompts and [MASK] are the same rows, and official
# special id -k is our prompt 16 - k.

# The four prompts that the official code shares among its tasks, by the name of one of them.
OFFICIAL_PROMPTS = {-6: "OPC", -5: "FI", -4: "FP", -3: "CG"}


def load_transformer(npz, prefix: str = "params", *, codebook_size: int | None = None,
                     num_classes: int | None = None) -> MaskedTransformer:
    """A MaskedTransformer, in eval mode, with official parameters.

    codebook_size, num_classes: None takes the file's. Single-task models have no prompt. Prompts
    that no official task uses have numbers for names.
    """
    arrays = arrays_of(npz)
    params = below(arrays, prefix)
    codes = int(arrays["codebook_size"] if codebook_size is None else codebook_size)
    classes = int(arrays["num_classes"] if num_classes is None else num_classes)
    vocabulary, width = params["BertEmbed_0/word_embeddings/embedding"].shape
    prompts = vocabulary - codes - classes - 2
    query = params["BertLayer_0/BertAttention_0/self_attention/query/kernel"]
    positions = len(params["BertEmbed_0/position_embeddings/embedding"])
    model = TransformerConfig(
        num_layers=count(params, r"BertLayer_\d+/"), hidden_size=width, num_heads=query.shape[1],
        mlp_size=params["BertLayer_0/BertMlp_0/layer_output/kernel"].shape[0],
        codebook_size=codes, num_tokens=positions - 1 - (prompts > 0), num_classes=classes,
        tasks=tuple(OFFICIAL_PROMPTS.get(i - prompts - 1, str(i)) for i in range(prompts))).build()
    model.load_state_dict(transformer_state(params))
    return model.eval()


def transformer_state(params: dict) -> dict[str, torch.Tensor]:
    """Official arrays (parameters or their gradients) under the names of our state_dict."""
    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(params[name])

    def norm(ours: str, official: str) -> None:
        state[f"{ours}.weight"], state[f"{ours}.bias"] = (tensor(f"{official}/scale"),
                                                          tensor(f"{official}/bias"))

    state = {"token_embedding.weight": tensor("BertEmbed_0/word_embeddings/embedding"),
             "position_embedding.weight": tensor("BertEmbed_0/position_embeddings/embedding"),
             "head_bias": tensor("BertMlmLayer_0/mlm_bias/bias")}
    norm("embedding_norm", "BertEmbed_0/embeddings_ln")
    _dense(state, "head.0", params, "BertMlmLayer_0/mlm_dense")
    norm("head.2", "BertMlmLayer_0/mlm_ln")
    for number in range(count(params, r"BertLayer_\d+/")):
        block, attention = f"blocks.{number}", f"BertLayer_{number}/BertAttention_0"
        three = [f"{attention}/self_attention/{name}" for name in ("query", "key", "value")]
        state[f"{block}.attention.query_key_value.weight"] = torch.cat(
            [rearrange(tensor(f"{name}/kernel"), "i heads d -> (heads d) i") for name in three])
        state[f"{block}.attention.query_key_value.bias"] = torch.cat(
            [tensor(f"{name}/bias").flatten() for name in three])
        state[f"{block}.attention.out.weight"] = rearrange(
            tensor(f"{attention}/self_attention/out/kernel"), "heads d o -> o (heads d)")
        state[f"{block}.attention.out.bias"] = tensor(f"{attention}/self_attention/out/bias")
        norm(f"{block}.attention_norm", f"{attention}/attention_output_ln")
        mlp = f"BertLayer_{number}/BertMlp_0"
        _dense(state, f"{block}.mlp.0", params, f"{mlp}/intermediate_output")
        _dense(state, f"{block}.mlp.2", params, f"{mlp}/layer_output")
        norm(f"{block}.mlp_norm", f"{mlp}/layer_output_ln")
    return state

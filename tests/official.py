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
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import nn

from discriminator import Discriminator2d, Discriminator3d, DiscriminatorConfig
from tokenizer import ImageTokenizer, ResidualBlock, TokenizerConfig, VideoTokenizer
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


def put(state: dict, ours: str, params: dict, official: str) -> None:
    """A layer's arrays into a state_dict: its kernel or scale is our weight."""
    for name, array in below(params, official).items():
        tensor = torch.from_numpy(array)
        if name == "kernel":
            tensor = tensor.T if tensor.ndim == 2 else kernel(array)
        state[f"{ours}.{'bias' if name == 'bias' else 'weight'}"] = tensor


# ---------------------------------------------------------------------------------------------
# Tokenizer

def load_tokenizer(npz, prefix: str = "params", *, padding: str | None = None,
                   temporal_downsample: tuple[bool, ...] | None = None,
                   kind: type = VideoTokenizer) -> VideoTokenizer:
    """A VideoTokenizer with official 3D-VQ parameters.

    padding: None reads "zero" in the file's name as "zeros", else "reflect".
    temporal_downsample: None takes the file's config_temporal_downsample, else the first two.
    """
    arrays = arrays_of(npz)
    params = below(arrays, prefix)
    samplers = count(params, r"decoder/Conv_\d+/") - 2
    per_stage = count(params, r"encoder/ResBlock_\d+/") // (samplers + 2)
    widths = [params[f"encoder/ResBlock_{i * per_stage}/Conv_1/kernel"].shape[-1]
              for i in range(samplers + 1)]
    base = params["encoder/Conv_0/kernel"].shape[-1]
    codes, width = params["quantizer/codebook"].shape
    if temporal_downsample is None:
        temporal_downsample = arrays.get("config_temporal_downsample", (True, True, False))
    tokenizer = kind(TokenizerConfig(
        base_channels=base, channel_multipliers=tuple(w // base for w in widths),
        temporal_downsample=tuple(bool(flag) for flag in temporal_downsample)[:samplers],
        num_res_blocks=per_stage, codebook_size=codes, embedding_dim=width,
        padding=padding or ("zeros" if "zero" in str(npz) else "reflect")))
    tokenizer.load_state_dict(tokenizer_state(params, tokenizer))
    return tokenizer


def load_image_tokenizer(npz, prefix: str = "params", *, padding: str | None = None
                         ) -> ImageTokenizer:
    """An ImageTokenizer with official 2D-VQ parameters; None: "zeros", as the golden file."""
    return load_tokenizer(npz, prefix, padding=padding or "zeros", kind=ImageTokenizer)


def tokenizer_state(params: dict, tokenizer: VideoTokenizer) -> dict[str, torch.Tensor]:
    """Official arrays (parameters or their gradients) under the names of our state_dict."""
    state = {"quantizer.codebook": torch.from_numpy(params["quantizer/codebook"])}
    number: Counter = Counter()             # of layers so far, by scope and type
    for part in ("encoder", "decoder"):
        for name, layer in getattr(tokenizer, part).named_children():
            scope = part
            if isinstance(layer, ResidualBlock):
                scope = f"{part}/ResBlock_{number[part]}"
                number[part] += 1
            for inner, leaf in layer.named_modules(prefix=f"{part}.{name}"):
                if isinstance(leaf, (nn.Conv3d, nn.GroupNorm)):
                    kind = "Conv" if isinstance(leaf, nn.Conv3d) else "GroupNorm"
                    put(state, inner, params, f"{scope}/{kind}_{number[scope, kind]}")
                    number[scope, kind] += 1
    return state


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
    for ours, official in (("conv_in", "Conv_0"), ("conv_out", "Conv_1"), ("dense", "Dense_0"),
                           ("logit", "Dense_1")):
        put(state, ours, params, official)
    for number in range(count(params, r"ResBlock_\d+/")):
        for ours, official in (("conv1", "Conv_0"), ("skip", "Conv_1"), ("conv2", "Conv_2")):
            put(state, f"blocks.{number}.{ours}", params, f"ResBlock_{number}/{official}")
    return state


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
    state = {ours: torch.from_numpy(params[official]) for ours, official in (
        ("token_embedding.weight", "BertEmbed_0/word_embeddings/embedding"),
        ("position_embedding.weight", "BertEmbed_0/position_embeddings/embedding"),
        ("head_bias", "BertMlmLayer_0/mlm_bias/bias"))}
    layers = {"embedding_norm": "BertEmbed_0/embeddings_ln", "head.0": "BertMlmLayer_0/mlm_dense",
              "head.2": "BertMlmLayer_0/mlm_ln"}
    for number in range(count(params, r"BertLayer_\d+/")):
        block, official = f"blocks.{number}", f"BertLayer_{number}"
        layers |= {f"{block}.attention_norm": f"{official}/BertAttention_0/attention_output_ln",
                   f"{block}.mlp.0": f"{official}/BertMlp_0/intermediate_output",
                   f"{block}.mlp.2": f"{official}/BertMlp_0/layer_output",
                   f"{block}.mlp_norm": f"{official}/BertMlp_0/layer_output_ln"}
        own = below(params, f"{official}/BertAttention_0/self_attention")
        three = [(own[f"{name}/kernel"], own[f"{name}/bias"]) for name in ("query", "key", "value")]
        state |= {
            f"{block}.attention.query_key_value.weight": torch.cat([rearrange(
                torch.from_numpy(weight), "i heads d -> (heads d) i") for weight, _ in three]),
            f"{block}.attention.query_key_value.bias": torch.cat([
                torch.from_numpy(bias).flatten() for _, bias in three]),
            f"{block}.attention.out.weight": rearrange(torch.from_numpy(own["out/kernel"]),
                                                       "heads d o -> o (heads d)"),
            f"{block}.attention.out.bias": torch.from_numpy(own["out/bias"])}
    for ours, official in layers.items():
        put(state, ours, params, official)
    return state

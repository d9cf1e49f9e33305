"""A video of any length through the causal tokenizer, a few frames at a time, with nothing lost.

Paper   MAGVIT-v2, App. A.1 (causal padding); streaming is ours

Shapes  1 + 4k frames, then 4k, 4k, ... (B, 3, T, H, W) -> tokens 1 + k, then k, k, ...
        tokens (B, t, h, w), any t at a time -> frames

Read    encode_stream, decode_stream.

No frame depends on a later one, so each convolution has to remember only the few frames that its
next window covers. Tokens and pixels are those of the whole video at once, however it is cut, and
memory is that of one piece. In the first paper's tokenizer every token depends on all frames of its
clip, so long_video.py has to cut a video into windows.
"""
from __future__ import annotations

from contextlib import contextmanager
from typing import Iterable, Iterator

import torch
from torch import Tensor, nn

from magvit2.causal_tokenizer import CausalConv, CausalTokenizer


@contextmanager
def streaming(network: nn.Module) -> Iterator[None]:
    """Within it, each call of the network continues where the last one ended."""
    layers = [module for module in network.modules() if isinstance(module, CausalConv)]
    for layer in layers:
        layer.streaming, layer.past = True, None
    try:
        yield
    finally:
        for layer in layers:
            layer.streaming, layer.past = False, None


@torch.no_grad()
def encode_stream(tokenizer: CausalTokenizer, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Tokens (B, t, h, w) of each piece (B, 3, T, H, W) in [0, 1] of one video.

    The first piece has 1 more than a multiple of 4 frames, the others a multiple of 4. One stream
    at a time per tokenizer.
    """
    with streaming(tokenizer.encoder):
        for number, piece in enumerate(pieces):
            T, *size = piece.shape[2:]
            tokenizer.latent_shape(T + 1 if number and T else T, *size)
            yield tokenizer.quantizer.tokens(tokenizer._run(tokenizer.encoder, piece))


@torch.no_grad()
def decode_stream(tokenizer: CausalTokenizer, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Frames (B, 3, T, H, W), linear, of each piece of tokens (B, t, h, w) of one video."""
    with streaming(tokenizer.decoder):
        for piece in pieces:
            yield tokenizer.decode(piece)

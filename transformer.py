"""The bidirectional transformer that predicts every visual token at once.

Paper   Sec. 3.2 (p_theta in Eq. (3)), Sec. 4.1 (sequence of 1026), App. A.2 and its Table 1

Shapes  tokens (B, N) with [MASK], task (B,), label (B,)
          -> [task prompt, class token, N visual tokens]    (B, 2 + N) ids of one vocabulary
          -> embeddings (B, 2 + N, D) -> Block x num_layers -> logits (B, N, K) over the codes

        The vocabulary, in this order (App. A.2 leaves it open; official):
          0 .. K-1                visual codes
          K .. K+C-1, then K+C    class labels, then "no class"
          one prompt per task     (paper; the official code shares some)
          the last id             [MASK]

Read    TransformerConfig, Attention, Block, MaskedTransformer.

Not here: what is masked and why, and the parts of the loss (commit.py); decoding (decode.py).

Run:    python transformer.py      the sizes beside Table 1 of the appendix
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from commit import MT10


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer. The defaults are the paper's B (App. A.2, Table 1)."""

    num_layers: int = 12                 # Table 1
    hidden_size: int = 768               # Table 1; D
    num_heads: int = 12                  # Table 1
    mlp_size: int = 3072                 # Table 1
    hidden_dropout: float = 0.1          # App. B.2
    attention_dropout: float = 0.1       # App. B.2
    codebook_size: int = 1024            # K, the tokenizer's
    num_tokens: int = 1024               # N = t*h*w, the tokenizer's
    num_classes: int = 0                 # C, the data set's
    tasks: tuple[str, ...] = MT10        # each has a prompt, in this order; (): no prompt at all
    grid: tuple[int, ...] = ()           # (t, h, w) of the tokens it was trained on, where known
    trained_tasks: tuple[str, ...] = ()  # those of the tasks that were trained, where known
    initial_deviation: float = 0.02      # of matrices and embeddings; official

    def build(self) -> MaskedTransformer:
        return MaskedTransformer(self)

    @property
    def vocabulary_size(self) -> int:
        """K codes + C classes + "no class" + prompts + [MASK]."""
        return self.codebook_size + self.num_classes + 1 + len(self.tasks) + 1

    @property
    def sequence_length(self) -> int:
        """1 prompt + 1 class token + N visual tokens: 1026 at full size (Sec. 4.1).

        Official models of a single task have no prompt, and one token less.
        """
        return bool(self.tasks) + 1 + self.num_tokens


TRANSFORMERS = {
    "B": TransformerConfig(),
    "L": TransformerConfig(num_layers=24, hidden_size=1024, num_heads=16, mlp_size=4096),
    "H": TransformerConfig(num_layers=32, hidden_size=1280, num_heads=16, mlp_size=5120),
    # Ours: for a laptop. Too small and too briefly trained to need dropout.
    "toy": TransformerConfig(num_layers=4, hidden_size=128, num_heads=4, mlp_size=512,
                             hidden_dropout=0.0, attention_dropout=0.0, initial_deviation=0.04,
                             codebook_size=512, num_tokens=64),
}


class Attention(nn.Module):
    """Full self-attention: every token sees every token, in both directions."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(self.query_key_value(x), "b n (three heads d) -> "
                                      "three b heads n d", three=3, heads=self.num_heads)
        return self.out(rearrange(self.attend(query, key, value), "b heads n d -> b n (heads d)"))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(query key^T / sqrt(d)) value, each (B, heads, n, d); variants override this."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


class Block(nn.Module):
    """Post-LN, as in the original BERT: normalize after adding (official; eps 1e-12)."""

    attention_type = Attention

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention = self.attention_type(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.mlp = nn.Sequential(nn.Linear(config.hidden_size, config.mlp_size),
                                 nn.GELU(approximate="tanh"),
                                 nn.Linear(config.mlp_size, config.hidden_size))
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class MaskedTransformer(nn.Module):
    """p_theta(z_i | [rho, c, z-bar]) for all i at once, as logits over the K codes."""

    block_type = Block
    recompute = False                   # True: each block's activations, in the backward pass

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocabulary_size, size)
        self.position_embedding = nn.Embedding(config.sequence_length, size)
        self.embedding_norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.blocks = nn.ModuleList(self.block_type(config) for _ in range(config.num_layers))
        # BERT's head: one more dense layer, then the transposed word embedding and a bias.
        self.head = nn.Sequential(nn.Linear(size, size), nn.GELU(approximate="tanh"),
                                  nn.LayerNorm(size, eps=1e-12))
        self.head_bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        for module in self.modules():
            initialize(module, config.initial_deviation)

    @property
    def mask_id(self) -> int:
        """The id that stands for [MASK] in `tokens`."""
        return self.config.vocabulary_size - 1

    @property
    def no_class(self) -> int:
        """The label of examples without a class."""
        return self.config.num_classes

    def prefix(self, task: Tensor, label: Tensor) -> Tensor:
        """[rho, c]: task (B,) index into config.tasks, label (B,) in [0, C] -> ids (B, 2).

        Without prompts, ids are (B, 1): [c].
        """
        class_id = self.config.codebook_size + label
        if not self.config.tasks:
            return class_id[:, None]
        return torch.stack([self.config.codebook_size + self.no_class + 1 + task, class_id], 1)

    def embed(self, tokens: Tensor, task: Tensor, label: Tensor) -> Tensor:
        """[rho, c, z-bar] as vectors (B, 2 + N, D); a variant's other conditions come in here."""
        return self.token_embedding(torch.cat([self.prefix(task, label), tokens], dim=1))

    def forward(self, tokens: Tensor, task: Tensor, label: Tensor) -> Tensor:
        """Predict all tokens from the corrupted ones.

        tokens (B, N): codes in [0, K) or mask_id, in t, h, w raster order. task (B,): index into
        config.tasks. label (B,): in [0, C), or no_class. Returns logits (B, N, K): [MASK],
        classes and prompts are cut off before any softmax, so they can never be predicted.
        """
        x = self.embed(tokens, task, label) + self.position_embedding.weight     # (B, 2 + N, D)
        x = self.dropout(self.embedding_norm(x))
        for block in self.blocks:
            again = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return self.predict(x[:, -tokens.shape[1]:])

    def predict(self, x: Tensor) -> Tensor:
        """The last block's vectors of visual tokens (B, N, D) -> logits (B, N, K)."""
        codes = self.config.codebook_size
        return F.linear(self.head(x), self.token_embedding.weight[:codes], self.head_bias[:codes])

    def cross_entropy(self, logits: Tensor, tokens: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """-log p(z_i) of each token (B, N), in float32: what Eq. (3) sums.

        logits (B, N, K), tokens (B, N). label_smoothing mixes the target with the uniform.
        """
        return F.cross_entropy(rearrange(logits.float(), "b n k -> b k n"), tokens,
                               reduction="none", label_smoothing=label_smoothing)

    def sample(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a code at every i: logits (B, N, K) -> tokens (B, N), their log p (B, N).

        noise (B, N, K): standard Gumbel noise makes argmax(logits + noise) a sample of
        softmax(logits); zeros take the likeliest code.
        """
        tokens = (logits + noise).argmax(-1)
        log_probability = F.log_softmax(logits, dim=-1).gather(-1, tokens[..., None])[..., 0]
        return tokens, log_probability


def initialize(module: nn.Module, deviation: float) -> None:
    """Normal, cut at two deviations, for matrices and embeddings; zero biases (official)."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def main() -> None:
    """Table 1 of the appendix beside what these modules count (UCF-101: 101 classes)."""
    paper = {"B": "87 M", "L": "305 M", "H": "634 M"}
    print("size  layers  width  heads    mlp   vocabulary  sequence   parameters  the paper says")
    for name, config in TRANSFORMERS.items():
        config = replace(config, num_classes=16 if name == "toy" else 101)
        with torch.device("meta"):
            count = sum(p.numel() for p in config.build().parameters())
        print(f"{name:4} {config.num_layers:7} {config.hidden_size:6} {config.num_heads:6} "
              f"{config.mlp_size:6} {config.vocabulary_size:12} {config.sequence_length:9} "
              f"{count:12,}  {paper.get(name, '')}")


if __name__ == "__main__":
    main()

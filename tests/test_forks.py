"""The rows of the README's fork table, each performed: in a copy where lines change, else as it is.

    python tests/test_forks.py     prints the table

What counts is lines added to or changed in the project's own files; a new file of the fork's own
is counted for the variants of the transformer, whose row says so.
"""
import difflib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh import python

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.clips import DataConfig  # noqa: E402
from evaluate import evaluate_protocol  # noqa: E402
from steps import TokenBatch  # noqa: E402
from train import train  # noqa: E402
from training.checkpoint import load_run, read_checkpoint  # noqa: E402
from training.presets import PRESETS  # noqa: E402

TINY = dict(tokenizer_batch=2, transformer_batch=2, token_pool=4, tokenizer_steps=3,
            transformer_steps=3, tokenizer_warmup=1, transformer_warmup=1,
            tokenizer_ema=0.5, precision="float32", decode_steps=2, inflate="")
# Row of the README: what, how, most lines, most files.
ROWS = {
    "task": ("add a task", "a region function and a row in `commit.TASKS`", 8, 1),
    "schedule": ("add a mask schedule", "a branch in `commit.mask_ratio`", 2, 1),
    "data": ("use a data set object of your own, for training and `--protocol own`",
             "`class_names`, `len()` and `clip(index, random)`, given to `train.train` and "
             "`evaluate.evaluate_protocol`", 0, 0),
    "tokenizer": ("use another tokenizer", "a file of your own, beside `train.py`, with six "
                  "methods and a configuration that builds it", 0, 0),
    "transformer": ("pre-LN and rotary positions", "a file of your own that overrides `Block` and "
                    "`Attention.attend`, counted here", 40, 1),
    "text": ("text embeddings instead of a label", "a file of your own that overrides "
             "`MaskedTransformer.embed`, counted here", 40, 1),
    "tracker": ("your own tracker, and a held-out evaluation every k steps",
                "`on_step=` of `train.train`; `stage.networks` leads to the networks", 0, 0),
    "tokens": ("stage 2 on tokens that you saved", "`tokens=` of `train.train`: step -> TokenBatch",
               0, 0),
    "tuning": ("fine-tune a run, on other classes or tasks", "`--init RUN`", 0, 0),
}


class Fork:
    """A copy of the project, edited; knows how many lines of it are not the project's."""

    def __init__(self, folder):
        self.folder, self.changed = folder, {}
        for path in ROOT.glob("*.py"):
            shutil.copy(path, folder)
        for wing in ("data", "training", "measure"):
            shutil.copytree(ROOT / wing, folder / wing)

    def edit(self, file, before, after):
        old = (self.folder / file).read_text()
        assert old.count(before) == 1, f"{file} has {old.count(before)} times {before!r}"
        new = old.replace(before, after)
        (self.folder / file).write_text(new)
        lines = difflib.ndiff(old.splitlines(), new.splitlines())
        self.changed[file] = self.changed.get(file, 0) + sum(line[:2] == "+ " for line in lines)

    def own(self, file, text, counted=False):
        (self.folder / file).write_text(text)
        if counted:
            self.changed[file] = len([line for line in text.splitlines() if line.strip()])

    def run(self, script):
        self.own("script.py", script)
        done = python("script.py", cwd=self.folder, OMP_NUM_THREADS=1)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def within(self, row):
        _, _, most_lines, most_files = ROWS[row]
        assert sum(self.changed.values()) <= most_lines and len(self.changed) <= most_files, (
            self.changed)


@pytest.fixture
def fork(tmp_path):
    return Fork(tmp_path)


TRAIN = f"""
from dataclasses import replace
import torch
from data.clips import DataConfig
from train import train
from training.checkpoint import load_run
from training.presets import PRESETS
tiny = replace(PRESETS["toy"], **{TINY!r})
"""


def test_a_task_is_a_region_and_a_row(fork):
    """In the middle of TASKS: prompts, the paper's sets and an older run stay what they were."""
    train(replace(PRESETS["toy"], **TINY), DataConfig(dataset="shapes"), fork.folder / "old",
          draw=False)
    fork.edit("commit.py", "@dataclass(frozen=True)\nclass Task:", '''\
def left_half(T: int, H: int, W: int) -> Tensor:
    return (torch.arange(W) < W // 2).expand(T, H, W)


@dataclass(frozen=True)
class Task:''')
    fork.edit("commit.py", '    "FI": Task(', '''\
    "OPL": Task("left outpainting", left_half, edge_padding),
    "FI": Task(''')
    fork.within("task")
    fork.run(TRAIN + """
from commit import MT8, TASKS
from decode import generate
from training.start import transformer_config
assert list(TASKS)[1] == "OPL" and "OPL" not in MT8 and len(MT8) == 8
assert transformer_config(PRESETS["ucf101-L"], 101).vocabulary_size == 1137
old = load_run("old")
assert old.transformer.config.tasks[1] == "FI"
try:
    generate(old.tokenizer, old.transformer, torch.rand(1, 3, 16, 32, 32), "OPL")
    raise SystemExit("an old run has no prompt for the new task")
except ValueError as error:
    assert "has no prompt for OPL" in str(error), error
train(replace(tiny, tasks=("OPL", "FP")), DataConfig(dataset="shapes"), "new", draw=False)
run = load_run("new")
tasks = run.transformer.config.tasks
assert tasks[-1] == "OPL" and len(tasks) == 11
generate(run.tokenizer, run.transformer, torch.rand(1, 3, 16, 32, 32), "OPL", steps=2)
""")


def test_a_schedule_is_a_branch(fork):
    fork.edit("commit.py", '    elif schedule == "exp":', '''    elif schedule == "sine":
        ratio = 1 - torch.sin(r * (math.pi / 2))
    elif schedule == "exp":''')
    fork.within("schedule")
    fork.run(TRAIN + """
train(replace(tiny, mask_schedule="sine", decode_schedule="sine"), DataConfig(dataset="shapes"),
      "run", draw=False)
""")


TOKENIZER = '''"""Finite scalar quantization (Mentzer et al. 2024) of 4x8x8 patches, all linear."""
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from tokenizer import TokenizerOutput


@dataclass(frozen=True)
class ScalarConfig:
    levels: tuple[int, ...] = (5, 5, 5)

    def build(self):
        return ScalarTokenizer(self)


class ScalarTokenizer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.register_buffer("levels", torch.tensor(config.levels))
        self.register_buffer("basis", torch.tensor([1, *config.levels[:-1]]).cumprod(0))
        self.codebook_size = int(torch.tensor(config.levels).prod())
        self.inward = nn.Linear(3 * 4 * 8 * 8, len(config.levels))
        self.outward = nn.Linear(len(config.levels), 3 * 4 * 8 * 8)

    def latent_shape(self, T, H, W):
        return T // 4, H // 8, W // 8

    def latents(self, video):
        patches = rearrange(video, "b c (t i) (h j) (w k) -> b t h w (c i j k)", i=4, j=8, k=8)
        half = (self.levels - 1) / 2
        return rearrange(self.inward(patches).tanh() * half, "b t h w d -> b d t h w")

    def tokens_of(self, rounded):
        digits = rearrange(rounded, "b d t h w -> b t h w d") + (self.levels - 1) // 2
        return (digits * self.basis).sum(-1).long()

    def pixels(self, rounded):
        patches = self.outward(rearrange(rounded, "b d t h w -> b t h w d"))
        return rearrange(patches, "b t h w (c i j k) -> b c (t i) (h j) (w k)", c=3, i=4, j=8, k=8)

    @torch.no_grad()
    def encode(self, video):
        return self.tokens_of(self.latents(video).round())

    def decode(self, tokens):
        digits = tokens[..., None] // self.basis % self.levels - (self.levels - 1) // 2
        return self.pixels(rearrange(digits.float(), "b t h w d -> b d t h w"))

    def forward(self, video):
        latents = self.latents(video)
        rounded = latents + (latents.round() - latents).detach()
        zero = latents.new_zeros(())
        return TokenizerOutput(self.pixels(rounded), self.tokens_of(latents.round()), zero, zero,
                               zero)
'''


def test_a_tokenizer_of_ones_own_is_one_file_and_no_changed_line(fork):
    """It computes with numbers when it is built, has no encoder and no codebook, and no adversary:
    training, resuming, the plan, the report and a protocol take it as it is."""
    fork.own("scalar.py", TOKENIZER)
    fork.within("tokenizer")
    fork.run(TRAIN + """
from evaluate import evaluate_protocol
from scalar import ScalarConfig
from training.plan import plan
config = replace(tiny, tokenizer=ScalarConfig(), codebook_from_data=False)
data = DataConfig(dataset="shapes")
train(config, data, "run", draw=False)
train(config, data, "run", draw=False)
run = load_run("run")
assert run.tokenizer.codebook_size == 125 == run.transformer.config.codebook_size
evaluate_protocol("run", "own", samples=4, batch=4, metrics=["psnr"], decoding=dict(steps=2))
assert "tokens of 125" in plan("mine", replace(config, token_pool=0))
try:
    train(replace(config, codebook_from_data=True), data, "other")
    raise SystemExit("a tokenizer without codes cannot start them")
except ValueError as error:
    assert "no codebook" in str(error)
""")


VARIANT = '''"""Pre-LN and rotary positions."""
from dataclasses import dataclass
import torch
from transformer import Attention, Block, MaskedTransformer, TransformerConfig
@dataclass(frozen=True)
class RotaryConfig(TransformerConfig):
    base: float = 10_000.0
    def build(self):
        return RotaryTransformer(self)
def rotate(x, base=10_000.0):
    """x (B, heads, n, d): pairs of numbers turned by an angle that grows with the position."""
    n, d = x.shape[-2:]
    rate = base ** (-torch.arange(0, d, 2, device=x.device) / d)
    angle = torch.arange(n, device=x.device)[:, None] * rate
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * angle.cos() - odd * angle.sin(),
                        even * angle.sin() + odd * angle.cos()], -1).flatten(-2).to(x.dtype)
class RotaryAttention(Attention):
    def attend(self, query, key, value):
        return super().attend(rotate(query), rotate(key), value)
class PreNormBlock(Block):
    attention_type = RotaryAttention
    def forward(self, x):
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
class RotaryTransformer(MaskedTransformer):
    block_type = PreNormBlock
    def __init__(self, config):
        super().__init__(config)
        self.position_embedding.weight.data.zero_()
        self.position_embedding.weight.requires_grad_(False)
'''
TEXT = '''"""A class token that is a projected text embedding: label i has row i of a file."""
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
from transformer import MaskedTransformer, TransformerConfig
@dataclass(frozen=True)
class TextConfig(TransformerConfig):
    file: str = "captions.npy"
    def build(self):
        return TextTransformer(self)
class TextTransformer(MaskedTransformer):
    def __init__(self, config):
        super().__init__(config)
        table = torch.from_numpy(np.load(config.file))
        self.register_buffer("text", torch.cat([table, torch.zeros_like(table[:1])]))
        self.project = nn.Linear(table.shape[1], config.hidden_size)
    def embed(self, tokens, task, label):
        x = super().embed(tokens, task, label)
        text = self.project(self.text[label])[:, None]
        return torch.cat([x[:, :1], text, x[:, 2:]], dim=1)
'''


@pytest.mark.parametrize("row, file, text, config, network", [
    ("transformer", "variant.py", VARIANT, "RotaryConfig", "RotaryTransformer"),
    ("text", "text.py", TEXT, "TextConfig", "TextTransformer")])
def test_a_variant_of_the_transformer_overrides_what_differs(fork, row, file, text, config,
                                                             network):
    fork.own(file, text, counted=True)
    np.save(fork.folder / "captions.npy", np.random.default_rng(0).random((16, 6), np.float32))
    fork.within(row)
    fork.run(TRAIN + f"""
from {file[:-3]} import {config}, {network}
from evaluate import evaluate_protocol
sizes = {config}(num_layers=1, hidden_size=32, num_heads=2, mlp_size=64)
config = replace(tiny, transformer=sizes, start_local=False)
train(config, DataConfig(dataset="shapes"), "run", draw=False)
assert type(load_run("run").transformer) is {network}
evaluate_protocol("run", "own", samples=4, batch=4, metrics=["psnr"], tasks=["CG"],
                  decoding=dict(steps=2))
""")


# ---------------------------------------------------------------------------------------------
# Forks that change nothing

class Stripes:
    """Clips of one's own: a stripe that falls or rises."""

    class_names = ["falls", "rises"]

    def __len__(self):
        return 8

    def clip(self, index, random=None):
        video = np.full((16, 32, 32, 3), 20, np.uint8)
        for t in range(16):
            video[t, (t if index % 2 == 0 else 15 - t) + index // 2] = 220
        return video, index % 2


def test_a_data_set_object_trains_and_is_judged_as_it_is(tmp_path):
    train(replace(PRESETS["toy"], **TINY), Stripes(), tmp_path / "run", draw=False)
    run = load_run(tmp_path / "run")
    assert run.class_names == ["falls", "rises"] and run.data.dataset == "object Stripes"
    outcome = evaluate_protocol(run.folder, "own", Stripes(), samples=8, batch=4,
                                metrics=["psnr", "ssim"], tasks=["FP", "CG"],
                                decoding=dict(steps=2))
    assert outcome["real_videos"] == 8 and set(outcome["results"]) == {"FP", "CG"}
    with pytest.raises(ValueError, match="give that object to the Python function"):
        evaluate_protocol(run.folder, "own", samples=8, metrics=["psnr"])


def test_a_tracker_sees_every_step_and_a_held_out_evaluation_is_logged(tmp_path):
    seen, video = [], torch.from_numpy(Stripes().clip(0)[0]).movedim(-1, 0)[None] / 255

    def on_step(stage, step, terms):
        seen.append((stage.name, step, terms["loss"].item()))
        if stage.name == "tokenizer" and step % 2 == 1:
            with torch.no_grad():
                decoded = stage.networks["ema"](video).reconstruction
            return dict(held_out=(decoded - video).square().mean().item())

    train(replace(PRESETS["toy"], **TINY), Stripes(), tmp_path, on_step=on_step, draw=False)
    assert [(stage, step) for stage, step, _ in seen] == [
        (stage, step) for stage in ("tokenizer", "transformer") for step in range(3)]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "held_out" in line] == [1]
    assert [line["step"] for line in lines if line["stage"] == "tokenizer"] == [0, 1, 2]


def test_stage_2_learns_from_tokens_that_were_saved(tmp_path):
    """step -> TokenBatch is all it asks for; here it has to copy what is shown to it."""
    random = torch.Generator().manual_seed(0)
    saved = torch.randint(512, (16, 64), generator=random)

    def tokens(step):
        chosen = saved[torch.randint(16, (4,), generator=random)]
        return TokenBatch("FP", chosen, chosen, torch.arange(64) > 15, torch.full((4,), 2),
                          torch.rand(4, 64, generator=random), torch.rand(4, generator=random))

    train(replace(PRESETS["toy"], **TINY), Stripes(), tmp_path, tokens=tokens, draw=False)
    assert read_checkpoint(tmp_path / "transformer.pt")["finished"]


def test_fine_tuning_starts_from_another_run_and_says_so(tmp_path):
    train(replace(PRESETS["toy"], **TINY), DataConfig(dataset="shapes"), tmp_path / "first",
          draw=False)
    tuned = replace(PRESETS["toy"], **TINY, init=str(tmp_path / "first"))
    train(tuned, Stripes(), tmp_path / "second", draw=False)          # 16 classes become 2
    state = read_checkpoint(tmp_path / "second/transformer.pt")
    assert state["origin"] == dict(run=str(tmp_path / "first"), step=3)
    before, after = (load_run(tmp_path / name) for name in ("first", "second"))
    moved = (before.transformer.blocks[0].mlp[0].weight - after.transformer.blocks[0].mlp[0].weight)
    assert moved.abs().max() < 0.02 and after.transformer.no_class == 2


# ---------------------------------------------------------------------------------------------

def table():
    rows = ["| to | do | lines changed, at most |", "|---|---|---|"]
    for what, how, lines, files in ROWS.values():
        rows.append(f"| {what} | {how} | {lines} in {files} file{'s' * (files != 1)} |"
                    if lines else f"| {what} | {how} | none |")
    return "\n".join(rows)


def test_the_readme_has_the_table_of_these_forks():
    assert table() in (ROOT / "README.md").read_text(), "run: python tests/test_forks.py"


if __name__ == "__main__":
    print(table())

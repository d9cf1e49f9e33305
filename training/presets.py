"""The paper's training tables as a table.

Paper   App. B.2 (recipe), Table 2 of the appendix (epochs), Sec. 4.1 and App. B.3 (data sets,
        decoding); official configurations where those are silent

Read    TrainConfig (what can be set, and where each default is from; the losses' weights are in
        steps.Recipe), DATASETS and EPOCHS (the rows), PRESETS.

Not here: the flags of its fields (command.py), networks and optimizers of a configuration
        (build.py), what it costs (plan.py).

Run:    python -m training.presets        each preset in a line: sizes, tasks, epochs, decoding
"""
from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass, replace
from functools import partial

import torch

from commit import MT8, MT10, TASKS, make_condition, mask_ratio
from discriminator import DISCRIMINATORS, DiscriminatorConfig
from steps import MACHINE, STAGE_1, STAGE_2, Recipe, setting
from tokenizer import TOKENIZERS, TokenizerConfig
from transformer import TRANSFORMERS, TransformerConfig

TASK_SETS = {"MT8": MT8, "MT10": MT10}
CLIPS, NETWORKS = partial(setting, "clips"), partial(setting, "networks")
DECODING = partial(setting, "decoding", may_change=True)


# Where the sizes of MAGVIT-v2 are, which are asked for as "v2 appendix" and so on.
SEQUEL = {"tokenizer": ("magvit2.causal_tokenizer", "CAUSAL_TOKENIZERS"),
          "discriminator": ("magvit2.blur_discriminator", "BLUR_DISCRIMINATORS"),
          "transformer": ("magvit2.factorized", "FACTORIZED_TRANSFORMERS")}


def named(kind: str, name, sizes: dict, instead: str = ""):
    """A network's configuration by its name. ValueError, with the names, where there is none."""
    if name in sizes:
        return sizes[name]
    module, table = SEQUEL[kind]
    sequel = {f"v2 {size}": config
              for size, config in getattr(importlib.import_module(module), table).items()}
    if name not in sequel:
        raise ValueError(f"{kind} {name!r} is unknown; {instead}choose from "
                         + ", ".join([*sizes, *sequel]))
    return sequel[name]


def settings_of(stage: str) -> str:
    """What the names of a stage's settings begin with; the 2D-VQ ("image") has the tokenizer's."""
    return "transformer" if stage == "transformer" else "tokenizer"


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """Everything that decides what a run computes. Each field is a flag of train.py."""

    resolution: int = CLIPS(128, "height and width; App. B.2; 64 on BAIR")
    frames: int = CLIPS(16, "frames of a clip; App. B.2")
    stride: int = CLIPS(1, "take every n-th frame; App. B.2")
    flip: bool = CLIPS(True, "mirror half of the clips; official")
    crop: float = CLIPS(1.0, "random crops have this share of the short side, or more")
    train_videos: int = CLIPS(0, "App. B.3, for --dry-run; a run counts its own")
    num_classes: int = CLIPS(0, "App. B.3, for --dry-run; likewise")

    tokenizer: str | TokenizerConfig = NETWORKS("B", f"one of {' '.join(TOKENIZERS)}")
    discriminator: str | DiscriminatorConfig = NETWORKS("", "likewise; by default the tokenizer's")
    transformer: str | TransformerConfig = NETWORKS("B", f"one of {' '.join(TRANSFORMERS)}")
    padding: str = NETWORKS("", "zeros, as in the released configurations; else reflect, Sec. 3.1")
    init: str = NETWORKS("", "run whose weights this one starts from (fine-tuning)")

    tokenizer_epochs: float = STAGE_1(0.0, "Table 2")
    tokenizer_steps: int = STAGE_1(0, "if set, instead of epochs")
    tokenizer_batch: int = STAGE_1(128, "App. B.2: 128 for B, 256 for L")
    tokenizer_rate: float = STAGE_1(1e-4, "peak learning rate, App. B.2")
    tokenizer_warmup: int = STAGE_1(0, "steps; 0: one epoch (official)")
    tokenizer_beta1: float = STAGE_1(0.0, "of Adam, App. B.2")
    tokenizer_beta2: float = STAGE_1(0.99, "of Adam, App. B.2")
    codebook_from_data: bool = STAGE_1(False, "ours: codes start at latents of the first clips")
    inflate: str = STAGE_1("", "central, average or last: start from the run's 2D-VQ, which is "
                           "trained first where it is not there (--stage image)")
    lpips_weights: str = STAGE_1("", "folder with the weights of the perceptual loss",
                                 may_change=True)

    tasks: tuple[str, ...] = STAGE_2(("CG",), "one is drawn per step; name one twice to weigh it "
                                     "more; MT8 and MT10 are the paper's sets")
    condition_frames: int = STAGE_2(1, "frames given in FP, FI, CFP; App. B.1; 5 on Kinetics-600")
    transformer_epochs: float = STAGE_2(0.0, "Table 2")
    transformer_steps: int = STAGE_2(0, "if set, instead of epochs")
    transformer_batch: int = STAGE_2(256, "App. B.2")
    transformer_rate: float = STAGE_2(1e-4, "peak learning rate, App. B.2")
    transformer_warmup: int = STAGE_2(5000, "steps; official")
    transformer_beta1: float = STAGE_2(0.9, "of Adam, App. B.2")
    transformer_beta2: float = STAGE_2(0.96, "of Adam, App. B.2")
    weight_decay: float = STAGE_2(0.045, "App. B.2; on matrices only (official)")
    class_dropout: float = STAGE_2(0.0, "ours: train for guidance; the paper does not")
    token_pool: int = STAGE_2(0, "ours: tokenize this many clips once and reuse them; 0: all, "
                              "anew in each step")
    start_local: bool = STAGE_2(False, "ours: attention starts with the neighbours")

    decode_steps: int = DECODING(12, "K of Algorithm 1, App. B.3")
    decode_schedule: str = DECODING("cosine", "gamma of decoding, App. B.3")
    decode_temperature: float = DECODING(4.5, "of the noise on confidences, App. B.3")

    seed: int = MACHINE(0, "decides every random draw of a run")
    recompute: bool = MACHINE(False, "recompute activations instead of keeping them",
                              may_change=True)
    tokenize_at_once: int = MACHINE(16, "clips that stage 2 tokenizes together", may_change=True)
    compile: bool = MACHINE(False, "torch.compile", may_change=True)
    save_every: int = MACHINE(500, "steps between checkpoints, or 0", may_change=True)
    save_minutes: float = MACHINE(0.0, "minutes between checkpoints, or 0", may_change=True)
    keep_every: int = MACHINE(0, "steps between checkpoints that are kept for good, or 0",
                              may_change=True)
    evaluate_every: int = MACHINE(0, "steps between looks at held-out clips, or 0", may_change=True)

    def __post_init__(self):
        for name, kind in (("init", str), ("lpips_weights", str), ("tasks", tuple),
                           ("loss_weights", tuple)):
            object.__setattr__(self, name, kind(getattr(self, name)))    # plain data, as saved

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        return self.frames, self.resolution, self.resolution

    @property
    def decoding(self) -> dict:
        """The keywords of decode.commit_decode."""
        return dict(steps=self.decode_steps, schedule=self.decode_schedule,
                    temperature=self.decode_temperature)

    def tokenizer_config(self):
        config = self.tokenizer
        if not dataclasses.is_dataclass(config):
            config = named("tokenizer", config, TOKENIZERS)
        if self.padding and not hasattr(config, "padding"):
            raise ValueError(f"--padding {self.padding}: a {type(config).__name__} has its own")
        return replace(config, padding=self.padding) if self.padding else config

    def discriminator_config(self) -> DiscriminatorConfig:
        config = self.discriminator or self.tokenizer
        if not isinstance(config, DiscriminatorConfig):
            config = named("discriminator", config, DISCRIMINATORS,
                           "give --adversarial-weight 0, or with --discriminator ")
        return replace(config, resolution=self.clip_shape)

    def steps(self, stage: str, videos: int) -> tuple[int, int]:
        """(steps in all, steps of warm-up) of a stage on so many training videos."""
        epochs, steps, batch, warmup = (getattr(self, f"{settings_of(stage)}_{field}") for field in
                                        ("epochs", "steps", "batch", "warmup"))
        per_epoch = max(1, videos // batch)
        return steps or round(epochs * per_epoch), warmup or per_epoch

    def check(self) -> None:
        """ValueError, in one line, where a value makes no sense."""
        for schedule in (self.mask_schedule, self.decode_schedule):
            mask_ratio(torch.ones(1), schedule)
        for field, choices in (("precision", ("auto", "bf16", "tf32", "float32")),
                               ("inflate", ("", "central", "average", "last"))):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose "
                                 + " or ".join(", ".join(filter(None, choices)).rsplit(", ", 1)))
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}; wanted above 0, and 1 at most")
        for field in ("tokenizer_batch", "transformer_batch", "accumulate",
                      "tokenize_at_once", "decode_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; wanted at least 1")
        if min(self.save_every, self.save_minutes, self.keep_every, self.evaluate_every) < 0:
            raise ValueError("save_every, save_minutes, keep_every and evaluate_every count from 0")
        for task in dict.fromkeys(self.tasks):
            refuse_leak(task, (self.frames, 16, 16), self.condition_frames)
        if not self.tasks:
            raise ValueError("no tasks; name some of " + " ".join(TASKS))


def refuse_leak(task: str, shape: tuple[int, int, int], condition_frames: int = 1) -> None:
    """ValueError where a task's padding lets hidden pixels through: it would train happily.

    Two clips that are equal where the task gives pixels must have the same condition.
    """
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 1, 3, *shape, generator=generator)
    try:
        condition, valid = make_condition(one, task, condition_frames)
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"the padding of {task} does not go with its region: {error}") from None
    changed = make_condition(torch.where(valid, one, other), task, condition_frames)[0]
    if not torch.equal(condition, changed):
        raise ValueError(f"the padding of {task} ({TASKS[task].padding.__name__}) depends on pixels"
                         " that its region does not give: the model would be shown the answer")


# Sec. 4.1, App. B.2, App. B.3: what differs between data sets; the rest is the same for all.
_bair = dict(resolution=64, train_videos=43_264)                       # "43K"; official count
_ssv2 = dict(train_videos=169_000, num_classes=174, flip=False)      # "left to right" is a class
DATASETS = {
    "ucf101": dict(tasks=("CG",), train_videos=9_537, num_classes=101),           # "9.5K"
    "bair": dict(**_bair, tasks=("FP",), decode_schedule="exp", decode_temperature=400.0),
    "bair-unc": dict(**_bair, tasks=("CG",)),              # Table 4: no classes, no condition
    "bair-mt": dict(**_bair, tasks=MT8),
    "k600": dict(tasks=("FP",), train_videos=384_000, condition_frames=5,
                 decode_schedule="uniform", decode_temperature=7.5),
    "ssv2-unc": dict(**_ssv2, tasks=("CG",), class_dropout=1.0),
    "ssv2-fp": dict(**_ssv2, tasks=("FP",)),
    "ssv2": dict(**_ssv2, tasks=MT10),
    "nuscenes": dict(tasks=("FP",), train_videos=5_400),
    "objectron": dict(tasks=("FI",), train_videos=14_400),
    "web": dict(tasks=MT8, train_videos=12_000_000),
}
# Table 2 of the appendix: epochs of the 3D-VQ (B, L), then of the transformer (B, L).
EPOCHS = {
    "ucf101": (500, 2000, 2000, 2000),
    "bair": (400, 800, 400, 800),
    "bair-unc": (400, 800, 400, 800),
    "bair-mt": (400, 800, 1200, 1600),
    "k600": (45, 180, 180, 360),
    "ssv2": (135, 400, 720, 1440),
    "ssv2-unc": (135, 400, 720, 1440),
    "ssv2-fp": (135, 400, 720, 1440),
    "nuscenes": (1280, 5120, 2560, 10240),
    "objectron": (1000, 2000, 1000, 2000),
    "web": (5, 20, 10, 20),
}


def _paper_preset(dataset: str, size: str) -> TrainConfig:
    row, large = DATASETS[dataset], size != "B"
    small_pictures = row.get("resolution") == 64
    return TrainConfig(
        **row, tokenizer=("L" if large else "B") + ("-64px" if small_pictures else ""),
        transformer=size, tokenizer_epochs=EPOCHS[dataset][large],
        transformer_epochs=EPOCHS[dataset][2 + large], tokenizer_batch=256 if large else 128,
        save_every=0, save_minutes=20.0)


DRAWN = "toy", "toy-v2"                  # presets whose clips are drawn, unless --data gives others
PRESETS = {
    # Ours: the whole paper on a laptop.
    "toy": TrainConfig(
        resolution=32, flip=False, train_videos=320, num_classes=16,
        tokenizer="toy", transformer="toy",
        tasks=(*MT10, "CG", "CG", "CG", "CG", "CG"),          # the one task without a condition
        tokenizer_steps=2500, tokenizer_batch=4, tokenizer_rate=4e-4, tokenizer_warmup=50,
        tokenizer_beta1=0.9, tokenizer_ema=0.99, entropy_weight=0.0003,
        adversarial_weight=0.0, perceptual_weight=0.0, codebook_from_data=True,
        transformer_steps=6000, transformer_batch=16, transformer_rate=2e-3,
        transformer_warmup=50, token_pool=320, start_local=True,
        decode_steps=16, decode_temperature=1.5, save_every=100),
    **{f"{dataset}-{size}": _paper_preset(dataset, size) for dataset in DATASETS for size in "BL"},
    "web-H": _paper_preset("web", "H"),                      # App. A.2: H for web videos only
}
# MAGVIT-v2, App. A.1 and A.2. Stage 2 predicts a code as two factors of 2^9: docs/magvit2.md.
PRESETS["k600-v2"] = replace(
    PRESETS["k600-L"], frames=17, tokenizer="v2 appendix", transformer="v2 L",
    inflate="last", reconstruction_weight=5.0, entropy_boost=3.0, tokenizer_epochs=190,
    transformer_epochs=360, decode_schedule="cosine", decode_temperature=32.0)
PRESETS["imagenet256-v2"] = replace(                     # pictures are clips: --layout images
    PRESETS["k600-v2"], resolution=256, frames=1, crop=0.8, tasks=("CG",), train_videos=1_281_167,
    num_classes=1000, tokenizer="v2 16x", discriminator="v2 appendix", inflate="",
    tokenizer_epochs=270, transformer_epochs=1080, transformer_batch=1024, class_dropout=0.1,
    decode_steps=64, decode_temperature=15.0)
PRESETS["imagenet512-v2"] = replace(PRESETS["imagenet256-v2"], resolution=512, tokenizer="v2 32x",
                                    decode_temperature=30.0)
# Ours: videos of your own on a laptop, three times as fast and in eight times the toy's tokens, so
# that what moves is not lost. Frames come first (Sec. 3.1): in them nothing is ever still.
PRESETS["clips"] = replace(
    PRESETS["toy"], stride=3, num_classes=0, tokenizer="clips", inflate="central", tasks=MT10,
    tokenizer_steps=4000, transformer_steps=4000, transformer_batch=8)
PRESETS["toy-v2"] = replace(
    PRESETS["toy"], frames=17, tokenizer="v2 toy", inflate="last", reconstruction_weight=5.0,
    codebook_from_data=False, entropy_weight=0.03, entropy_boost=3.0, entropy_boost_steps=200,
    tokenizer_steps=1500, tokenizer_rate=2e-3)


def main() -> None:
    print(f"{'preset':12} {'3D-VQ':>7} {'BERT':>5} {'tasks':>10} {'pixels':>7} {'classes':>8} "
          f"{'epochs':>12} {'batch':>9}  decoding")
    for name, config in PRESETS.items():
        tasks = {MT8: "MT8", MT10: "MT10"}.get(config.tasks, " ".join(config.tasks))
        epochs = f"{config.tokenizer_epochs:g}, {config.transformer_epochs:g}"
        print(f"{name:12} {config.tokenizer:>7} {config.transformer:>5} {tasks[:10]:>10} "
              f"{config.resolution:7} {config.num_classes:8} "
              f"{epochs if config.tokenizer_epochs else 'steps':>12} "
              f"{config.tokenizer_batch:>4},{config.transformer_batch:>4}  "
              f"{config.decode_schedule}, {config.decode_steps} steps, "
              f"temperature {config.decode_temperature:g}")


if __name__ == "__main__":
    main()

"""The paper's training tables as a table.

Paper   App. B.2 (recipe), Table 2 of the appendix (epochs), Sec. 4.1 and App. B.3 (data sets,
        decoding); official configurations where those are silent

Read    TrainConfig (what can be set, and where each default is from; the weights of the losses
        are in steps.Recipe), DATASETS and EPOCHS (the rows), PRESETS.

Not here: the flags of its fields (train.py), networks and optimizers of a configuration (start.py).
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import torch

from commit import MT8, MT10, TASKS, make_condition, mask_ratio
from discriminator import DISCRIMINATORS
from steps import Recipe
from tokenizer import TOKENIZERS
from transformer import TRANSFORMERS

TASK_SETS = {"MT8": MT8, "MT10": MT10}


@dataclass(frozen=True)
class TrainConfig(Recipe):
    """Everything that decides what a run computes. Each field is a flag of train.py."""

    # clips
    resolution: int = 128           # height and width; App. B.2; 64 on BAIR
    frames: int = 16                # frames of a clip; App. B.2
    stride: int = 1                 # take every n-th frame; App. B.2
    flip: bool = True               # mirror half of the clips; official
    crop: float = 1.0               # random crops have this share of the short side, or more
    train_videos: int = 0           # App. B.3, for --dry-run; a run counts its own
    num_classes: int = 0            # App. B.3, for --dry-run; a run counts its own
    # networks
    tokenizer: str | object = "B"   # a size in tokenizer.TOKENIZERS
    discriminator: str | object = ""    # a size in DISCRIMINATORS; by default the tokenizer's
    transformer: str | object = "B"     # a size in transformer.TRANSFORMERS
    padding: str = ""               # zeros, as in the released configurations; else reflect
    init: str = ""                  # a run whose weights this one starts from (fine-tuning),
    #                                 instead of inflation
    # stage 1, tokenizer
    tokenizer_epochs: float = 0.0   # Table 2 of the appendix
    tokenizer_steps: int = 0        # if set, instead of epochs
    tokenizer_batch: int = 128      # App. B.2: 128 for B, 256 for L
    tokenizer_rate: float = 1e-4    # peak learning rate, App. B.2
    tokenizer_warmup: int = 0       # steps; 0: one epoch (official)
    tokenizer_beta1: float = 0.0    # of Adam, App. B.2
    tokenizer_beta2: float = 0.99   # of Adam, App. B.2
    inflate: str = ""               # central or average: start from the run's 2D-VQ, which is
    #                                 trained first where it is missing (Sec. 3.1)
    residual_gain: float = 1.0      # ours: factor of each residual block's last weight at the start
    latent_gain: float = 1.0        # ours: factor of the encoder's last weight at the start
    codebook_from_data: bool = False    # ours: codes start at latents of the first clips
    lpips_weights: str = ""         # folder with the weights of the perceptual loss
    # stage 2, transformer
    tasks: tuple[str, ...] = ("CG",)    # one is drawn per step; name one twice to weigh it more;
    #                                 MT8 and MT10 are the paper's sets
    condition_frames: int = 1       # frames given in FP, FI and CFP; App. B.1; 5 on Kinetics-600
    transformer_epochs: float = 0.0     # Table 2 of the appendix
    transformer_steps: int = 0      # if set, instead of epochs
    transformer_batch: int = 256    # App. B.2
    transformer_rate: float = 1e-4  # peak learning rate, App. B.2
    transformer_warmup: int = 5000  # steps; official
    transformer_beta1: float = 0.9  # of Adam, App. B.2
    transformer_beta2: float = 0.96     # of Adam, App. B.2
    weight_decay: float = 0.045     # App. B.2; on matrices only (official)
    class_dropout: float = 0.0      # ours: train for guidance; the paper does not
    token_pool: int = 0             # ours: tokenize this many clips once and reuse them; 0: all,
    #                                 anew in each step
    start_local: bool = False       # ours: attention starts with the neighbours
    # decoding
    decode_steps: int = 12          # K of Algorithm 1, App. B.3
    decode_schedule: str = "cosine"     # gamma of decoding, App. B.3
    decode_temperature: float = 4.5     # of the noise on confidences, App. B.3
    # machine
    seed: int = 0                   # decides every random draw of a run
    recompute: bool = False         # recompute activations instead of keeping them
    compile: bool = False           # torch.compile
    save_every: int = 500           # steps between checkpoints, or 0
    keep_every: int = 0             # steps between checkpoints that are kept for good, or 0
    evaluate_every: int = 0         # steps between looks at held-out clips, or 0

    inflations = "", "central", "average"      # what `inflate` may be

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
        """The tokenizer's configuration, with the padding that was asked for."""
        config = named(self.tokenizer, TOKENIZERS, "tokenizer")
        if self.padding and not hasattr(config, "padding"):
            raise ValueError(f"--padding {self.padding}: a {type(config).__name__} has its own")
        return replace(config, padding=self.padding) if self.padding else config

    def discriminator_config(self):
        """The discriminator's configuration; by default the first paper's of the tokenizer's size.

        The first paper's ends in a layer that depends on the size of its clips.
        """
        if not self.discriminator and self.tokenizer not in DISCRIMINATORS:
            raise ValueError(f"no discriminator has the size of tokenizer {self.tokenizer!r}; give "
                             "--adversarial-weight 0, or --discriminator with one of "
                             + ", ".join(DISCRIMINATORS))
        config = named(self.discriminator or self.tokenizer, DISCRIMINATORS, "discriminator")
        return replace(config, resolution=self.clip_shape)

    def transformer_config(self):
        """The transformer's sizes; vocabulary and tokens are filled in when stage 2 starts."""
        return named(self.transformer, TRANSFORMERS, "transformer")

    def of(self, stage: str, setting: str) -> float:
        """A setting that both stages have: of("transformer", "rate") is transformer_rate. The
        2D-VQ (stage "image") has the settings of the tokenizer."""
        return getattr(self, f"{'transformer' if stage == 'transformer' else 'tokenizer'}_{setting}")

    def steps(self, stage: str, videos: int) -> tuple[int, int]:
        """(steps in all, steps of warm-up) of a stage on so many training videos."""
        per_epoch = max(1, videos // self.of(stage, "batch"))
        return (self.of(stage, "steps") or round(self.of(stage, "epochs") * per_epoch),
                self.of(stage, "warmup") or per_epoch)

    def check(self) -> None:
        """ValueError, in one line, where a value makes no sense."""
        for schedule in (self.mask_schedule, self.decode_schedule):
            mask_ratio(torch.ones(1), schedule)
        for field, choices in (("precision", ("auto", "bf16", "tf32", "float32")),
                               ("inflate", self.inflations)):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose "
                                 + " or ".join(filter(None, choices)))
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}; wanted above 0, and 1 at most")
        for field in ("tokenizer_batch", "transformer_batch", "accumulate", "decode_steps",
                      "condition_frames", "stride", "frames", "resolution"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; wanted at least 1")
        if min(self.save_every, self.keep_every, self.evaluate_every) < 0:
            raise ValueError("save_every, keep_every and evaluate_every count from 0")
        if not self.tasks:
            raise ValueError("no tasks; name some of " + " ".join(TASKS))
        for task in dict.fromkeys(self.tasks):
            make_condition(torch.zeros(1, 3, self.frames, 16, 16), task, self.condition_frames)


# Settings that a stopped run may change: they do not touch what is trained, beyond rounding.
MAY_CHANGE = ("lpips_weights", "decode_steps", "decode_schedule", "decode_temperature", "precision",
              "accumulate", "recompute", "compile", "save_every", "keep_every", "evaluate_every")
# Settings of stage 2 alone, in which a run may differ while its stage 1 is resumed.
STAGE_2 = ("mask_schedule", "label_smoothing", "loss_weights", "gradient_clip", "tasks",
           "condition_frames", "transformer", "transformer_epochs", "transformer_steps",
           "transformer_batch", "transformer_rate", "transformer_warmup", "transformer_beta1",
           "transformer_beta2", "weight_decay", "class_dropout", "token_pool", "start_local")


def named(name: str | object, sizes: dict, kind: str):
    """A configuration by its name in a table of sizes; one that is no name stays what it is."""
    if dataclasses.is_dataclass(name):
        return name
    if name not in sizes:
        raise ValueError(f"{kind} {name!r} is unknown; choose from {', '.join(sizes)}")
    return sizes[name]


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
        transformer_epochs=EPOCHS[dataset][2 + large], tokenizer_batch=256 if large else 128)


PRESETS = {
    # Ours: the whole paper on a laptop. Frames come first, then central inflation (Sec. 3.1).
    "toy": TrainConfig(
        resolution=32, flip=False, train_videos=320, num_classes=16,
        tokenizer="toy", transformer="toy",
        tasks=(*MT10, "CG", "CG", "CG", "CG", "CG"),          # the one task without a condition
        inflate="central",
        tokenizer_steps=2000, tokenizer_batch=4, tokenizer_rate=1e-3, tokenizer_warmup=50,
        tokenizer_beta1=0.9, tokenizer_ema=0.99, entropy_weight=0.0003,
        adversarial_weight=0.0, perceptual_weight=0.0,
        residual_gain=0.0, latent_gain=0.2, codebook_from_data=True,
        transformer_steps=6000, transformer_batch=16, transformer_rate=2e-3,
        transformer_warmup=50, token_pool=320, start_local=True,
        decode_steps=16, decode_temperature=1.5, save_every=100),
    **{f"{dataset}-{size}": _paper_preset(dataset, size) for dataset in DATASETS for size in "BL"},
    "web-H": _paper_preset("web", "H"),                      # App. A.2: H for web videos only
}
# Ours: videos of your own on a laptop, three times as fast and in eight times the toy's tokens, so
# that what moves is not lost.
PRESETS["clips"] = replace(
    PRESETS["toy"], stride=3, num_classes=0, tokenizer="clips", tasks=MT10, tokenizer_steps=4000,
    tokenizer_rate=4e-4, transformer_steps=4000, transformer_batch=8)

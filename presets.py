"""The paper's training tables as a table.

Paper   App. B.2 (recipe), Table 2 of the appendix (epochs), Sec. 4.1 and App. B.3 (data sets,
        decoding); official configurations where those are silent

Read    TrainConfig (what can be set, and where each default is from), DATASETS and EPOCHS (the
        rows), PRESETS, parse (the command line).

Not here: what a preset costs (plan.py).

Run:    python presets.py              each preset in a line: sizes, tasks, epochs, decoding
"""
from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from dataclasses import dataclass, replace

import torch

from commit import MT8, TASKS, make_condition, mask_ratio, task_index
from datasets import LAYOUTS
from discriminator import DISCRIMINATORS, DiscriminatorConfig
from tokenizer import TOKENIZERS, TokenizerConfig, VideoTokenizer
from transformer import TRANSFORMERS, TransformerConfig

TASK_SETS = {"MT8": MT8, "MT10": tuple(TASKS)}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes. Each field is a flag of train.py."""

    # Data
    dataset: str = "folder"              # "folder" reads --data; "shapes" is drawn
    resolution: int = 128                # App. B.2; 64 on BAIR
    frames: int = 16                     # App. B.2
    stride: int = 1                      # App. B.2
    flip: bool = True                    # mirror half of the clips; official
    train_videos: int = 0                # App. B.3; the data's own count replaces it
    num_classes: int = 0                 # App. B.3; likewise

    # Models: rows of TOKENIZERS and DISCRIMINATORS, of TRANSFORMERS
    tokenizer: str = "B"
    transformer: str = "B"
    padding: str = "reflect"             # Sec. 3.1; "zeros" as the released configurations

    # Stage 1 (App. B.2, 3D-VQ)
    tokenizer_epochs: float = 0.0        # Table 2
    tokenizer_steps: int = 0             # if set, instead of epochs
    tokenizer_batch: int = 128           # App. B.2: 128 for B, 256 for L
    tokenizer_rate: float = 1e-4         # App. B.2, peak
    tokenizer_warmup: int = 0            # steps; 0: one epoch (official)
    tokenizer_beta1: float = 0.0         # App. B.2
    tokenizer_beta2: float = 0.99        # App. B.2
    tokenizer_ema: float = 0.999         # App. B.2
    reconstruction_weight: float = 1.0   # of the mean squared error; official
    codebook_weight: float = 1.0         # official
    commitment_weight: float = 0.25      # official
    entropy_weight: float = 0.1          # official; the paper does not mention it
    perceptual_weight: float = 0.1       # App. B.2; needs --lpips-weights
    adversarial_weight: float = 0.1      # App. B.2, from the first step (Sec. 3.1)
    r1_weight: float = 10.0              # App. B.2
    lecam_weight: float = 0.001          # Sec. 3.1 uses it, MAGVIT-v2 prints this value
    codebook_from_data: bool = False     # ours: the codes start at latents of the first clips

    # Stage 2 (App. B.2, Transformer)
    tasks: tuple[str, ...] = ("CG",)     # one is drawn per step; name one twice to weigh it more
    condition_frames: int = 1            # App. B.1; 5 on Kinetics-600 (Sec. 4.1)
    transformer_epochs: float = 0.0      # Table 2
    transformer_steps: int = 0           # if set, instead of epochs
    transformer_batch: int = 256         # App. B.2
    transformer_rate: float = 1e-4       # App. B.2, peak
    transformer_warmup: int = 5000       # steps; official
    transformer_beta1: float = 0.9       # App. B.2
    transformer_beta2: float = 0.96      # App. B.2
    weight_decay: float = 0.045          # App. B.2; on matrices only (official)
    gradient_clip: float = 1.0           # App. B.2, global norm
    label_smoothing: float = 1e-4        # App. B.2
    mask_schedule: str = "cosine"        # App. B.2
    class_dropout: float = 0.0           # ours: train for guidance; the paper does not
    token_pool: int = 0                  # ours: tokenize this many clips once, then reuse them
    start_local: bool = False            # ours: attention starts with the neighbours

    # Decoding (App. B.3)
    decode_steps: int = 12
    decode_schedule: str = "cosine"
    decode_temperature: float = 4.5

    # Machine
    seed: int = 0
    precision: str = "auto"              # bf16 where it is fast, else float32
    accumulate: int = 1                  # split each batch into so many passes; the entropy and
                                         # LeCam terms then take their means over a part
    checkpointing: bool = False          # recompute activations instead of keeping them
    tokenize_at_once: int = 16           # clips, where stage 2 tokenizes its batches
    compile: bool = False                # torch.compile
    save_every: int = 500                # steps between checkpoints

    def latent_frames(self) -> int:
        return self.frames // math.prod(stride[0] for stride in self.tokenizer_config().strides)

    def tokenizer_config(self) -> TokenizerConfig:
        return replace(_row(TOKENIZERS, self.tokenizer, "tokenizer"), padding=self.padding)

    def discriminator_config(self) -> DiscriminatorConfig:
        return replace(_row(DISCRIMINATORS, self.tokenizer, "discriminator"),
                       resolution=(self.frames, self.resolution, self.resolution))

    def transformer_config(self, num_classes: int) -> TransformerConfig:
        with torch.device("meta"):
            tokenizer = VideoTokenizer(self.tokenizer_config())
        shape = tokenizer.latent_shape(self.frames, self.resolution, self.resolution)
        return replace(_row(TRANSFORMERS, self.transformer, "transformer"),
                       codebook_size=tokenizer.codebook_size, num_tokens=math.prod(shape),
                       num_classes=num_classes, num_tasks=len(TASKS))

    def steps(self, stage: str, videos: int) -> tuple[int, int]:
        """(steps in all, steps of warm-up) of a stage on so many training videos."""
        name = "transformer" if stage == "transformer" else "tokenizer"
        epochs, steps, batch, warmup = (getattr(self, f"{name}_{field}") for field in
                                        ("epochs", "steps", "batch", "warmup"))
        per_epoch = max(1, videos // batch)
        return steps or round(epochs * per_epoch), warmup or per_epoch

    def check(self) -> None:
        """ValueError, in one line, where a value makes no sense."""
        for task in self.tasks:
            task_index(task)
        for schedule in (self.mask_schedule, self.decode_schedule):
            mask_ratio(torch.ones(1), schedule)
        self.tokenizer_config(), self.transformer_config(0), self.discriminator_config()
        if self.precision not in ("auto", "bf16", "float32"):
            raise ValueError(f"precision is {self.precision!r}; choose auto, bf16 or float32")
        for field in ("tokenizer_batch", "transformer_batch", "accumulate",
                      "tokenize_at_once", "save_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; wanted at least 1")
        for task in self.tasks:
            make_condition(torch.zeros(1, 3, self.frames, 8, 8), task, self.condition_frames)


# Stage 2's fields, by their place in the class: they may change while stage 1 goes on.
_fields = [field.name for field in dataclasses.fields(TrainConfig)]
STAGE_2 = frozenset(_fields[_fields.index("tasks"):_fields.index("decode_steps")])


def _row(table: dict, name: str, what: str):
    if name not in table:
        raise ValueError(f"{what} {name!r} is unknown; choose from {' '.join(table)}")
    return table[name]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """bfloat16 where matrices and convolutions are; losses, distances and R1 stay float32.

    precision: TrainConfig's; "auto" is bfloat16 on GPUs and on CPUs that have it.
    """
    enabled = precision != "float32"
    if precision == "auto" and device.type == "cpu":
        enabled = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


# Sec. 4.1, App. B.2, App. B.3: what differs between data sets. Frames, stride, learning rates and
# the rest are the same for all.
_bair = dict(resolution=64, train_videos=43_264)                       # "43K"; official count
DATASETS = {
    "ucf101": dict(tasks=("CG",), train_videos=9_537, num_classes=101),           # "9.5K"
    "bair": dict(**_bair, tasks=("FP",), decode_schedule="exp", decode_temperature=400.0),
    "bair-mt": dict(**_bair, tasks=MT8),
    "k600": dict(tasks=("FP",), train_videos=384_000, condition_frames=5,
                 decode_schedule="uniform", decode_temperature=7.5),
    "ssv2": dict(tasks=tuple(TASKS), train_videos=169_000, num_classes=174),
    "nuscenes": dict(tasks=("FP",), train_videos=5_400),
    "objectron": dict(tasks=("FI",), train_videos=14_400),
    "web": dict(tasks=MT8, train_videos=12_000_000),
}
# Table 2 of the appendix: epochs of the 3D-VQ (B, L), then of the transformer (B, L).
EPOCHS = {
    "ucf101": (500, 2000, 2000, 2000),
    "bair": (400, 800, 400, 800),
    "bair-mt": (400, 800, 1200, 1600),
    "k600": (45, 180, 180, 360),
    "ssv2": (135, 400, 720, 1440),
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
    # Ours: the whole paper on a laptop.
    "toy": TrainConfig(
        dataset="shapes", resolution=32, flip=False, train_videos=320, num_classes=16,
        tokenizer="toy", transformer="toy",
        tasks=(*TASKS, "CG", "CG", "CG", "CG", "CG"),          # the one task without a condition
        tokenizer_steps=2300, tokenizer_batch=4, tokenizer_rate=4e-4, tokenizer_warmup=50,
        tokenizer_beta1=0.9, tokenizer_ema=0.99, entropy_weight=0.0003,
        adversarial_weight=0.0, perceptual_weight=0.0, codebook_from_data=True,
        transformer_steps=6000, transformer_batch=16, transformer_rate=2e-3,
        transformer_warmup=50, token_pool=320, start_local=True,
        decode_steps=16, decode_temperature=1.5, save_every=100),
    **{f"{dataset}-{size}": _paper_preset(dataset, size)
       for dataset in DATASETS for size in "BL"},
    "web-H": _paper_preset("web", "H"),                      # App. A.2: H for web videos only
}


# ---------------------------------------------------------------------------------------------

def parse(arguments: list[str] | None = None) -> tuple[TrainConfig, argparse.Namespace]:
    """Command line -> configuration and the other options. Exits with usage on a bad flag."""
    parser = argparse.ArgumentParser(
        prog="train.py", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description="Train MAGVIT: the tokenizer, then the transformer, then draw and measure.")
    parser.add_argument("preset", nargs="?", default="toy", metavar="PRESET", choices=PRESETS,
                        help="one of: " + " ".join(PRESETS))
    parser.add_argument("--data", help="folder of training videos: DIR/class/video or DIR/video")
    parser.add_argument("--test-data", help="folder of held-out videos for the final numbers")
    parser.add_argument("--split", metavar="FILE",
                        help="official list of training videos: trainlist01.txt, train.json")
    parser.add_argument("--test-split", metavar="FILE", help="likewise of held-out videos")
    parser.add_argument("--layout", default="auto", choices=LAYOUTS,
                        help="what lies in --data, where that is not plain; images: --stage image")
    parser.add_argument("--out", help="run folder (default runs/PRESET); an old one goes on")
    parser.add_argument("--stage", default="all",
                        choices=["all", "image", "tokenizer", "transformer"])
    parser.add_argument("--inflate", choices=["central", "average"],
                        help="start the tokenizer from the run's 2D-VQ (--stage image)")
    parser.add_argument("--lpips-weights", metavar="DIR",
                        help="folder with the weights of the perceptual loss (pretrained.py)")
    parser.add_argument("--pad-short", action="store_true",
                        help="repeat the last frame of videos that are too short")
    parser.add_argument("--no-report", dest="report", action="store_false",
                        help="stop after training, without pictures and numbers")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    hints = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        flag, kind = "--" + field.name.replace("_", "-"), hints[field.name]
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction)
        elif field.name == "tasks":
            parser.add_argument(flag, nargs="+", choices=[*TASK_SETS, *TASKS], metavar="TASK",
                                help="task names, MT8 or MT10")
        else:
            parser.add_argument(flag, type=kind, metavar=kind.__name__)
    options = parser.parse_args(arguments)
    given = {field.name: value for field in dataclasses.fields(TrainConfig)
             if (value := getattr(options, field.name)) is not None}
    if "tasks" in given:
        given["tasks"] = tuple(task for name in given["tasks"]
                               for task in TASK_SETS.get(name, (name,)))
    config = PRESETS[options.preset]
    if options.data and config.dataset == "shapes":
        given.setdefault("dataset", "folder")
        given.setdefault("num_classes", 0)
    config = replace(config, **given)
    try:
        config.check()
        if config.dataset == "folder" and not options.data and not options.dry_run:
            raise ValueError(f"{options.preset} needs --data, a folder of videos")
        if options.layout == "images" and options.stage != "image":
            raise ValueError("--layout images has clips of one frame; it is for --stage image")
    except ValueError as error:
        parser.error(str(error))
    return config, options


def main() -> None:
    print(f"{'preset':12} {'3D-VQ':>7} {'BERT':>5} {'tasks':>10} {'pixels':>7} {'classes':>8} "
          f"{'epochs':>12} {'batch':>9}  decoding")
    for name, config in PRESETS.items():
        tasks = {MT8: "MT8", tuple(TASKS): "MT10"}.get(config.tasks, " ".join(config.tasks))
        epochs = f"{config.tokenizer_epochs:g}, {config.transformer_epochs:g}"
        print(f"{name:12} {config.tokenizer:>7} {config.transformer:>5} {tasks[:10]:>10} "
              f"{config.resolution:7} {config.num_classes:8} "
              f"{epochs if config.tokenizer_epochs else 'steps':>12} "
              f"{config.tokenizer_batch:>4},{config.transformer_batch:>4}  "
              f"{config.decode_schedule}, {config.decode_steps} steps, "
              f"temperature {config.decode_temperature:g}")


if __name__ == "__main__":
    main()

"""Two stages, one loop: the tokenizer, then the transformer on its tokens.

Paper   Sec. 3.1 and 3.2 (Training), App. B.2

Shapes  stage 1: video (B, 3, T, H, W) -> tokenizer_step -> tokenizer.pt
        stage 2: video, task -> tokens, condition tokens (B, N) -> transformer_step
                 -> transformer.pt

Read    train_tokenizer and train_transformer (how a stage is set up), TokenSource, main.

Not here: what one step is (steps.py), the loop around it (loop.py), what can be set
        (presets.py), files (checkpoint.py), numbers at the end (report.py).

Run:    python train.py                                 the toy: both stages, pictures, numbers
        python train.py ucf101-B --data DIR             the paper's presets; --dry-run for the plan
        torchrun --nproc_per_node 8 train.py ucf101-L --data DIR
"""
from __future__ import annotations

import copy
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from checkpoint import load_checkpoint, load_network
from commit import TASKS, tokenize_condition
from data import ClipSource, load_batch, open_source
from discriminator import Discriminator2d, Discriminator3d, LeCam
from loop import Processes, TokenizerWatch, Trainee, fit, start_processes
from plan import plan
from presets import PRESETS, TrainConfig, autocast, parse
from report import report
from steps import TokenBatch, tokenizer_step, transformer_step
from tokenizer import ImageTokenizer, VideoTokenizer, inflate
from transformer import MaskedTransformer, start_local

__all__ = ["PRESETS", "TrainConfig", "fit", "tokenizer_step", "transformer_step"]


def train_tokenizer(config: TrainConfig, options, source: ClipSource, run: Path,
                    processes: Processes, stage: str = "tokenizer") -> bool:
    """Stage 1, or its 2D ancestor (stage "image"), with EMA and, if its weight is not 0, a GAN."""
    torch.manual_seed(config.seed)
    two_d = stage == "image"
    model = (ImageTokenizer if two_d else VideoTokenizer)(config.tokenizer_config())
    networks: dict[str, nn.Module] = dict(model=model)
    if config.adversarial_weight:
        discriminator = Discriminator2d if two_d else Discriminator3d
        networks |= dict(discriminator=discriminator(config.discriminator_config()), lecam=LeCam())
    if options.inflate and not two_d:
        state = load_checkpoint(run / "image.pt")
        inflate(state["ema"], model, options.inflate)
        if "discriminator" in networks:
            inflate(state["discriminator"], networks["discriminator"], options.inflate)
    if config.codebook_from_data and not options.inflate:
        codebook_from_data(model, load_batch(source, 0, 16, config.seed)[0], config.seed)
    networks["ema"] = copy.deepcopy(model).requires_grad_(False)
    for network in networks.values():
        network.to(processes.device)
        if hasattr(network, "encoder"):
            network.encoder.checkpointing = network.decoder.checkpointing = config.checkpointing
    if config.compile:
        model.compile()           # not the discriminator: R1 differentiates twice, which it cannot
    trainee = Trainee(networks, {
        name: torch.optim.Adam(networks[name].parameters(), lr=config.tokenizer_rate,
                               betas=(config.tokenizer_beta1, config.tokenizer_beta2), fused=True)
        for name in ("model", "discriminator") if name in networks})
    trainee.perceptual = perceptual_loss(config, options, processes)

    def batch_of(step: int) -> Tensor:
        video, _, _ = load_batch(source, step, config.tokenizer_batch, config.seed,
                                 processes.rank, processes.world)
        if two_d and video.shape[2] > 1:     # official: frames 3, 6, 10, 13 of 16; a picture is one
            T = video.shape[2]
            video = video[:, :, [round(k * T / 5) for k in range(1, 5)]]
        return video.to(processes.device, non_blocking=True)

    total, warmup = config.steps("tokenizer", len(source))
    plain = {stage: asdict(model.config), "train": asdict(config),
             "data": describe(options, source)}
    return fit(stage, trainee, tokenizer_step, batch_of, config.tokenizer_rate, total, warmup,
               config, run, processes, plain, TokenizerWatch(model.codebook_size))


@torch.no_grad()
def codebook_from_data(model: VideoTokenizer, video: Tensor, seed: int) -> None:
    """Start the codes at latents of real clips: a short run has no time to move them there.

    Each is drawn with the squared distance to the nearest one before as its chance (k-means++),
    so that a wide plain background gets few codes and not most of them. The latents start at a
    fifth of their size: else the quickest way to less loss is to make them all alike.
    """
    model.encoder[-1].weight.mul_(0.2)
    latents = rearrange(model._run(model.encoder, video), "b d t h w -> (b t h w) d")
    generator = torch.Generator().manual_seed(seed)
    chance = torch.full((len(latents),), 1e6)             # at first all alike
    for code in model.quantizer.codebook:
        place = torch.multinomial(chance + 1e-9, 1, generator=generator)[0]   # all taken: any
        code.copy_(latents[place])
        chance = chance.minimum((latents - code).square().sum(1))


def perceptual_loss(config: TrainConfig, options, processes: Processes) -> nn.Module | None:
    """LPIPS-VGG from --lpips-weights; without them the term is absent, and that is said."""
    if not config.perceptual_weight:
        return None
    if not options.lpips_weights:
        if processes.rank == 0:
            print("no --lpips-weights: training without the perceptual loss (App. B.2 has it); "
                  "python pretrained.py tells where the weights are from", file=sys.stderr)
        return None
    from pretrained import load_lpips
    return load_lpips(options.lpips_weights).to(processes.device)


def train_transformer(config: TrainConfig, options, source: ClipSource, run: Path,
                      processes: Processes) -> bool:
    """Stage 2 on the frozen EMA tokenizer of the run."""
    tokenizer_state = load_checkpoint(run / "tokenizer.pt")
    if not tokenizer_state["finished"] and processes.rank == 0:
        print(f"the tokenizer has stopped at step {tokenizer_state['step']}; its weights of then "
              "are used", file=sys.stderr)
    tokenizer = load_network(tokenizer_state, processes.device)
    torch.manual_seed(config.seed)
    classes = len(source.class_names)
    model = MaskedTransformer(config.transformer_config(classes))
    if config.start_local:
        start_local(model, tokenizer.latent_shape(config.frames, config.resolution,
                                                  config.resolution))
    model.checkpointing = config.checkpointing
    model.to(processes.device)
    if config.compile:
        model.compile()
    decayed, free = decay_groups(model)
    optimizer = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=config.weight_decay),
         dict(params=free, weight_decay=0.0)],
        lr=config.transformer_rate, betas=(config.transformer_beta1, config.transformer_beta2),
        fused=True)
    tasks = [task for task in config.tasks if classes or not TASKS[task].class_conditional]
    if processes.rank == 0 and len(tasks) < len(config.tasks):
        print("no classes in the data: training without CG and CFP", file=sys.stderr)
    clips = TokenSource(tokenizer, source, tasks, config, processes)

    def batch_of(step: int) -> TokenBatch:
        random = np.random.default_rng([config.seed, 2, step])       # the same in all processes
        task = tasks[random.integers(len(tasks))]
        tokens, condition_tokens, is_pad, label = clips(step, task)
        size, share = config.transformer_batch, config.transformer_batch // processes.world
        mine = slice(processes.rank * share, (processes.rank + 1) * share)
        scores = random.random((size, tokens.shape[1]), np.float32)[mine]
        r, dropped = random.random(size, np.float32)[mine], random.random(size)[mine]
        unlabelled = torch.from_numpy(dropped < config.class_dropout) | (
            not TASKS[task].class_conditional)
        label = label.masked_fill(unlabelled.to(label.device), classes)
        return TokenBatch(task, tokens, condition_tokens, is_pad, label,
                          *(torch.from_numpy(x).to(processes.device) for x in (scores, r)))

    total, warmup = config.steps("transformer", len(source))
    plain = {"transformer": asdict(model.config), "train": asdict(config),
             "data": describe(options, source)}
    return fit("transformer", Trainee(dict(model=model), dict(model=optimizer)), transformer_step,
               batch_of, config.transformer_rate, total, warmup, config, run, processes, plain)


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with weight decay, the matrices of linear layers, and those without (official)."""
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    chosen = {id(matrix) for matrix in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in chosen]


class TokenSource:
    """The tokens of step and task: made anew from clips, or from a pool tokenized once.

    With config.token_pool = P, the first P clips of the training order, augmented once, and
    their conditions are tokenized before the first step, to save that time in each.
    """

    def __init__(self, tokenizer: VideoTokenizer, source: ClipSource, tasks: list[str],
                 config: TrainConfig, processes: Processes):
        self.tokenizer, self.source = tokenizer, source
        self.config, self.processes = config, processes
        self.pool: dict[str, tuple[Tensor, Tensor]] = {}
        if not config.token_pool:
            return
        if processes.rank == 0 and config.token_pool < len(source):
            print(f"stage 2 learns from {config.token_pool} of the {len(source)} clips, tokenized "
                  "once (--token-pool 0: all, anew in each step)", file=sys.stderr)
        size, tokens, labels = 32, [], []
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {task: [] for task in tasks}
        for step in tqdm(range(math.ceil(config.token_pool / size)), desc="tokenizing",
                         disable=processes.rank > 0, mininterval=1.0):
            video, label, _ = load_batch(source, step, size, config.seed)
            video = video.to(processes.device)
            tokens.append(self._tokens(video))
            labels.append(label.to(processes.device))
            same: dict[tuple, tuple[Tensor, Tensor]] = {}              # FP and CFP, for instance
            for task in parts:
                rule = TASKS[task].region, TASKS[task].padding
                if rule not in same:
                    same[rule] = self._condition(video, task)
                parts[task].append(same[rule])
        first = slice(config.token_pool)                               # of the last batch, not all
        self.tokens, self.labels = torch.cat(tokens)[first], torch.cat(labels)[first]
        self.pool = {task: (torch.cat([tokens for tokens, _ in part])[first], part[0][1])
                     for task, part in parts.items()}

    def _tokens(self, video: Tensor) -> Tensor:
        with autocast(self.config.precision, video.device):
            return torch.cat([rearrange(self.tokenizer.encode(part), "b t h w -> b (t h w)")
                              for part in video.split(self.config.tokenize_at_once)])

    def _condition(self, video: Tensor, task: str) -> tuple[Tensor, Tensor]:
        with autocast(self.config.precision, video.device):
            parts = [tokenize_condition(self.tokenizer, part, task, self.config.condition_frames)
                     for part in video.split(self.config.tokenize_at_once)]
        return torch.cat([tokens for tokens, _ in parts]), parts[0][1]

    def __call__(self, step: int, task: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """tokens, condition tokens (B, N), is_pad (N,), label (B,) of this process's share."""
        batch, rank, world = (self.config.transformer_batch, self.processes.rank,
                              self.processes.world)
        if not self.pool:
            video, label, _ = load_batch(self.source, step, batch, self.config.seed + 1, rank,
                                         world)
            video = video.to(self.processes.device)
            return (self._tokens(video), *self._condition(video, task),
                    label.to(self.processes.device))
        chosen = torch.from_numpy(np.random.default_rng([self.config.seed, 3, step]).integers(
            len(self.labels), size=batch))[rank * batch // world:(rank + 1) * batch // world]
        condition, is_pad = self.pool[task]
        return self.tokens[chosen], condition[chosen], is_pad, self.labels[chosen]


def describe(options, source: ClipSource) -> dict:
    """The data of a run as plain data: enough for decode.py and evaluate.py to open it again."""
    paths = dict(root=options.data, test_root=options.test_data, split=options.split,
                 test_split=options.test_split)
    return dict(**{name: path and str(Path(path).resolve()) for name, path in paths.items()},
                layout=options.layout, pad_short=options.pad_short,
                class_names=source.class_names)


def main() -> None:
    config, options = parse()
    if options.dry_run:
        print(plan(options.preset, config))
        return
    run = Path(options.out or f"runs/{options.preset}")
    run.mkdir(parents=True, exist_ok=True)
    processes = start_processes()
    try:
        source = open_source(asdict(config), dict(
            root=options.data, split=options.split, layout=options.layout,
            pad_short=options.pad_short), run / "videos.json")
        stages = ["tokenizer", "transformer"] if options.stage == "all" else [options.stage]
        for stage in stages:
            name = "transformer_batch" if stage == "transformer" else "tokenizer_batch"
            if getattr(config, name) % processes.world:
                raise ValueError(f"{name} is {getattr(config, name)}; wanted a multiple of the "
                                 f"{processes.world} processes")
            begin = time.time()
            done = (train_transformer(config, options, source, run, processes)
                    if stage == "transformer" else
                    train_tokenizer(config, options, source, run, processes, stage))
            if not done:
                return
            if processes.rank == 0:
                print(f"{stage} done in {time.time() - begin:.0f} s", file=sys.stderr)
        if processes.rank == 0 and options.report and (run / "transformer.pt").exists():
            report(run)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"train.py: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()

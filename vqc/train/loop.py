"""The training loop: clips in windows of frames, a state that goes on from window to window, checkpoints.

Sources: RVM's and BiVM's schedules (`vqc.train.stages`); truncated back-propagation through time. A run stopped at any
moment goes on from its last checkpoint and ends with the same bits, given the same threads and machine: samples depend
on the seed and their number alone, and nothing else is random.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import Shard
from ..errors import TrainingError
from ..learning.checkpoint import Checkpoint
from ..models.bivm import BiVM, Details
from .data import Sample, Sampler
from .losses import laplacian_loss, matting_loss, mimicking_loss

Log = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Schedule:
    """One stage of training.

    `steps` of Adam, each over a `batch` of windows of `window` frames; a clip of `frames` frames gives frames / window
    steps, its state carried, the gradient cut between windows. `burn_in`: of so many frames before them a number,
    drawn anew for every clip, fills the state and gives no gradient: a past at a third of its cost. `size` (H, W) of
    frames. Learning rates of the three parts fall as half a cosine to `last_rate` of themselves after a linear
    `warm_up` (a share of the steps).
    `refine`: the scale the network works at, with the refiner bringing its result to `size` (None: no refiner).
    `mimic`: weight mu of the mimicking loss, where a float twin is given. `shortcuts`: weight lambda of eq. 13.
    `guess`: weight of the auxiliary matte. `amp`: convolutions in bfloat16. `statistics`: those of norms are first
    taken anew from so many batches, then stay: with few clips a step a batch's own say little (0: they are learned).
    """

    name: str
    steps: int
    batch: int = 2
    frames: int = 12
    window: int = 6
    size: tuple[int, int] = (160, 256)
    backbone_rate: float = 1e-3
    decoder_rate: float = 1e-3
    refiner_rate: float = 0.0
    warm_up: float = 0.02
    last_rate: float = 0.02
    burn_in: int = 0
    refine: float | None = None
    mimic: float = 0.0
    shortcuts: float = 1e-4
    guess: float = 0.25
    clip_norm: float = 5.0
    amp: bool = False
    statistics: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 1 <= self.window <= self.frames or self.frames % self.window:
            raise TrainingError(f"stage {self.name!r} cannot be run",
                                why=f"{self.steps} steps, batches of {self.batch}, clips of {self.frames} frames, "
                                f"windows of {self.window}", way_out="give clips of whole windows")  # fmt: skip


class Trainer:
    """Trains a `BiVM` on samples, stage by stage.

    `twin`: a float network of the same build for the mimicking loss. `folder`: where checkpoints lie (None: nowhere).
    `shard`: processes under torchrun, each of which draws its own samples; gradients are averaged. `every`: seconds
    between checkpoints. Raises TrainingError when the loss is not finite, after the last checkpoint was kept.
    """

    def __init__(self, net: BiVM, sampler_of: Callable[[int, tuple[int, int]], Sampler], *, seed: int = 0,
                 twin: BiVM | None = None, folder: Path | None = None, shard: Shard | None = None,
                 log: Log | None = None, every: float = 60.0):  # fmt: skip
        self.net, self.sampler_of, self.seed, self.twin = net, sampler_of, seed, twin
        self.folder, self.shard, self.log, self.every = folder, shard or Shard(), log, every

    def run(self, stages: list[Schedule]) -> None:
        """All stages in order. The network is left in eval mode."""
        for number, stage in enumerate(stages):
            self._run(number, stage)
        self.net.eval()

    # ---- one stage -------------------------------------------------------------------------------------------------

    def _run(self, number: int, stage: Schedule) -> None:
        net, device = self.net, next(self.net.parameters()).device
        self._train(stage)
        groups = self._groups(stage)
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        learned = [p for _, modules in self._parts(stage) for m in modules for p in m.parameters()]
        named = {str(i): p for i, p in enumerate(learned)}
        # What a checkpoint belongs to; the number of steps is part of it, as the learning rate's way depends on it.
        key = [stage, number, self.seed, net.bits, self.shard.world, {k: tuple(v.shape) for k, v in
               net.state_dict().items()}]  # fmt: skip
        notes = Checkpoint(self.folder, f"train-{stage.name}", [str(part) for part in key])
        begun = notes.load()
        first = 0
        if begun is not None:
            first = begun[0]
            self._restore(begun[1], optimizer, named)
        elif stage.statistics:
            self._take_statistics(number, stage)
        last_saved = time.monotonic()
        state: tuple[Tensor | None, ...] = (None,) * 4
        per_clip = stage.frames // stage.window
        for step, before, sample in self._windows(number, stage, first):
            at = step % per_clip
            if at == 0:
                state = (None,) * 4
            self._set_rate(optimizer, stage, step)
            sample = Sample(*(x.to(device) for x in (sample.frames, sample.foreground, sample.alpha)))
            if before.shape[1]:
                state = self._filled(stage, before.to(device), state)
            terms, state = self._loss(stage, sample, state)
            total = terms["total"]
            if not math.isfinite(self.shard.mean(float(total.detach()))):
                raise TrainingError(f"the loss of stage {stage.name!r} is not finite at step {step}",
                                    way_out="a smaller learning rate; the last checkpoint is kept")  # fmt: skip
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            self.shard.average(list(net.parameters()))
            nn.utils.clip_grad_norm_(net.parameters(), stage.clip_norm)
            optimizer.step()
            if self.log is not None:
                self.log(step + 1, stage.steps, {k: float(v.detach()) for k, v in terms.items()})
            # A checkpoint lies between clips, so that no state has to be kept.
            due = time.monotonic() - last_saved > self.every and at == per_clip - 1
            if (due or step + 1 == stage.steps) and self.shard.world == 1:
                notes.save(step + 1, self._tensors(optimizer, named))
                last_saved = time.monotonic()
        if self.shard.world > 1:
            self._agree()
            if self.shard.first:
                notes.save(stage.steps, self._tensors(optimizer, named))

    def _parts(self, stage: Schedule) -> list[tuple[float, list[nn.Module]]]:
        net = self.net
        return [(stage.backbone_rate, [net.backbone, net.aspp]), (stage.decoder_rate, [net.decoder, net.project_mat]),
                (stage.refiner_rate, [net.refiner])]  # fmt: skip

    def _groups(self, stage: Schedule) -> list[dict[str, object]]:
        return [{"params": [p for m in modules for p in m.parameters()], "lr": rate, "rate": rate}
                for rate, modules in self._parts(stage)]  # fmt: skip

    def _train(self, stage: Schedule) -> None:
        """Train mode, but for parts that do not learn and norms whose statistics stay."""
        self.net.train()
        for rate, modules in self._parts(stage):
            for m in modules:
                m.train(rate > 0)
        if stage.statistics:
            for norm in _norms(self.net):
                norm.eval()

    @torch.no_grad()
    def _take_statistics(self, number: int, stage: Schedule) -> None:
        """Statistics of the norms that learn, from the first and the last frame of every clip of `statistics` batches,
        weighted alike. What does not learn is not run by every stage (the refiner) and keeps its own."""
        device = next(self.net.parameters()).device
        sampler = self.sampler_of(stage.burn_in + stage.frames, stage.size)
        seed = (self.seed * 64 + number) * 64 + 1  # clips of their own
        norms = [m for rate, parts in self._parts(stage) if rate > 0 for part in parts for m in _norms(part)]
        momenta = [m.momentum for m in norms]
        self._train(stage)
        for m in norms:
            m.train()
            m.reset_running_stats()
            m.momentum = None
        for index in range(stage.statistics):
            first = (index * self.shard.world + self.shard.rank) * stage.batch
            frames = sampler.batch(seed, first, stage.batch).frames.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=stage.amp):
                state = self.net.details(frames[:, :1], (None,) * 4, stage.refine or 1.0).states
                self.net.details(frames[:, -1:], tuple(s.float() for s in state), stage.refine or 1.0)
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        if self.shard.world > 1:
            self._agree()
        self._train(stage)

    def _set_rate(self, optimizer: torch.optim.Optimizer, stage: Schedule, step: int) -> None:
        warm = max(1, round(stage.steps * stage.warm_up))
        if step < warm:
            share = (step + 1) / warm
        else:
            way = (step - warm) / max(1, stage.steps - warm)
            share = stage.last_rate + (1 - stage.last_rate) * 0.5 * (1 + math.cos(math.pi * way))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * share

    def _windows(self, number: int, stage: Schedule, first: int) -> Iterator[tuple[int, Tensor, Sample]]:
        """(step, frames [B,n,3,H,W] before its window that fill the state, its window) from step `first` on; the next
        clip is made while this one is learned from."""
        sampler = self.sampler_of(stage.burn_in + stage.frames, stage.size)
        per_clip = stage.frames // stage.window
        world, rank = self.shard.world, self.shard.rank
        seed = self.seed * 64 + number

        def clip(index: int) -> Sample:
            return sampler.batch(seed, (index * world + rank) * stage.batch, stage.batch)

        with ThreadPoolExecutor(1) as pool:
            done = first // per_clip
            ahead = pool.submit(clip, done)
            for index in range(done, -(-stage.steps // per_clip)):
                sample, ahead = ahead.result(), pool.submit(clip, index + 1)
                g = torch.Generator().manual_seed(seed * 1_000_003 + index)
                unused = int(torch.randint(stage.burn_in + 1, (), generator=g))
                for at in range(per_clip):
                    step = index * per_clip + at
                    if first <= step < stage.steps:
                        begin = stage.burn_in + at * stage.window
                        part = slice(begin, begin + stage.window)
                        before = sample.frames[:, unused : stage.burn_in] if at == 0 else sample.frames[:, :0]
                        window = (x[:, part] for x in (sample.frames, sample.foreground, sample.alpha))
                        yield step, before, Sample(*window)

    @torch.no_grad()
    def _filled(self, stage: Schedule, frames: Tensor, state: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The states after `frames` [B,n,3,H,W]. As at inference: norms keep their statistics, and learn none."""
        self.net.eval()
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=stage.amp):
            details = self.net.details(frames, state, stage.refine or 1.0)
        self._train(stage)
        return tuple(s.float() for s in details.states)

    # ---- the loss --------------------------------------------------------------------------------------------------

    def _loss(self, stage: Schedule, sample: Sample, state: tuple[Tensor | None, ...]
              ) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:  # fmt: skip
        device_type = sample.frames.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=stage.amp):
            details = self.net.details(sample.frames, state, stage.refine or 1.0)
        shape = sample.frames.shape[:2]
        fgr, pha = (x.float().unflatten(0, shape) for x in (details.fgr, details.pha))
        terms = matting_loss(fgr, pha, sample.foreground, sample.alpha)
        total = terms["total"]
        if details.matte is not None and stage.guess:
            terms["guess"] = stage.guess * _guess_loss(details.matte.float(), sample.alpha.flatten(0, 1), stage.refine)
            total = total + terms["guess"]
        if stage.shortcuts:
            terms["shortcuts"] = stage.shortcuts * self.net.backbone.regularizer()
            total = total + terms["shortcuts"]
        if self.twin is not None and stage.mimic:
            terms["mimic"] = stage.mimic * self._mimicking(details, sample, state, stage)
            total = total + terms["mimic"]
        terms["total"] = total
        return terms, tuple(s.detach().float() for s in details.states)

    def _mimicking(self, details: Details, sample: Sample, state: tuple[Tensor | None, ...], stage: Schedule) -> Tensor:
        assert self.twin is not None
        with torch.no_grad(), torch.autocast(sample.frames.device.type, torch.bfloat16, enabled=stage.amp):
            image = sample.frames.flatten(0, 1)
            if stage.refine:
                image = F.interpolate(image, scale_factor=stage.refine, mode="bilinear", align_corners=False,
                                      recompute_scale_factor=False)  # fmt: skip
            f1, f2, f3, f4 = self.twin.backbone(image)
            teacher = (f1, f2, f3, self.twin.aspp(f4))
        return mimicking_loss(details.features, teacher, details.mask)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _tensors(self, optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        tensors = {f"net {k}": v for k, v in self.net.state_dict().items()}
        for name, p in named.items():
            tensors |= {f"adam {name} {k}": torch.as_tensor(v) for k, v in optimizer.state.get(p, {}).items()}
        return tensors

    def _restore(self, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer,
                 named: dict[str, nn.Parameter]) -> None:  # fmt: skip
        self.net.load_state_dict({k.removeprefix("net "): v for k, v in tensors.items() if k.startswith("net ")})
        for name, p in named.items():
            found = {k.split(" ", 2)[2]: v for k, v in tensors.items() if k.startswith(f"adam {name} ")}
            if found:
                optimizer.state[p] = {k: v.clone().to(p.device if k != "step" else "cpu") for k, v in found.items()}

    def _agree(self) -> None:
        """Statistics of norms differ between processes, which saw different clips: their mean is what all keep."""
        for buffer in self.net.buffers():
            if buffer.is_floating_point() and buffer.numel():
                holder = torch.zeros_like(buffer).requires_grad_()
                holder.grad = buffer.clone()
                self.shard.average([holder])
                buffer.copy_(holder.grad)


def _norms(of: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in of.modules() if isinstance(m, nn.BatchNorm2d)]


def _guess_loss(matte: Tensor, alpha: Tensor, refine: float | None) -> Tensor:
    """L1 and one level of the Laplacian pyramid, at 1/16."""
    truth = F.interpolate(alpha, matte.shape[-2:], mode="bilinear", antialias=True, align_corners=False)
    return F.l1_loss(matte, truth) + laplacian_loss(matte, truth, 1)

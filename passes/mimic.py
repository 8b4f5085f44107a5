"""mimic: teach a program in training form what its float twin gives, on calibration clips and what is made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vqc.calibration import as_clips
from vqc.calibration.split import Split, split
from vqc.errors import PipelineError
from vqc.learning.augment import Augmented
from vqc.learning.checkpoint import Checkpoint
from vqc.learning.mimicking import (
    Apprentice,
    Lesson,
    Weights,
    lesson_loss,
    live_start,
    prepare,
    results_loss,
    run_live,
)
from vqc.learning.rollouts import twin_of
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program


@register
@dataclass(frozen=True)
class Mimic(Pass):
    """mimic: constants of a program in training form learn, by Adam, to give what the float twin gives.

    The loss of `window` frames is RVM's of the results (L1, Laplacian pyramid of a matte, change in time), plus
    `features` times the mean squared distance of the nodes that stand for a twin's value (`meta["imitates"]`), each by
    the twin's power, plus `matte` times the distance of a coarse matte (of `shb-decoder`), and `mimicking` times BiVM's
    LBM: encoder features of length 1 at each position, compared where the matte is uncertain (eq. 20; nodes with
    `meta["encoder"]`). The teacher is the twin; no labels are needed. Lessons are `length` frames from the calibration
    clips, moved, recoloured and put over other backgrounds (`vqc.learning.augment`); the state goes on from window to
    window, gradients do not. What learning does not reach is run once a lesson, of which `pool` are kept and learned
    from `reuse` times.

    Signs have the gradient of their surrogate, as wide as `reach` standard deviations of their input. A constant moves
    in units of its own size. Looks at held-out frames, the state carried from each clip's reset, decide: the best of
    them is kept, and the program stays as it was where none is better than the beginning.

    Preconditions: (1) the program holds `fake_binarize` layers of constant weights; (2) the context holds clips.
    Valid before: training form, before `lower-binary`. Valid after: the same graph, new constants. With a workdir a
    killed run goes on from its last look and ends with the same bits.

    Options: `steps` of one window each; `window`, `length` in frames; `rate` of the weights that become signs,
    `other_rate` of all else, both falling as a cosine; `learn`: "units" (the binary layers), "behind" (and all that
    reads them), "all"; `augment`; `swap`: the share of lessons over another background; `looks`; `held`: the share of
    every clip that is held out. Raises PipelineError without binary layers and for options out of range.
    """

    name: ClassVar[str] = "mimic"
    numerics: ClassVar[Numerics] = Lossy(-20.0)
    steps: int = 600
    window: int = 4
    length: int = 8
    rate: float = 1e-3
    other_rate: float = 5e-3
    learn: Literal["units", "behind", "all"] = "behind"
    features: float = 0.2
    mimicking: float = 0.0
    matte: float = 0.25
    augment: bool = True
    swap: float = 0.5
    pool: int = 12
    reuse: int = 2
    reach: float = 1.5
    looks: int = 4
    held: float = 0.25

    def apply(self, program: Program, context: PassContext) -> PassResult:
        self._check()
        result = PassResult(program)
        clips = as_clips(context.calibration, program)
        frames = split(clips, self.held)
        twin = twin_of(context, self.name)
        who = Apprentice(program, twin, self.learn, clips, self.reach)
        if not any(p.latent for p in who.learnables.values()):
            raise PipelineError(f"program {program.name} has no binary layer in training form to learn",
                                way_out="run shb-decoder or binarize before mimic")  # fmt: skip
        key = (program, twin, clips, str(self), context.seed, torch.get_num_threads())
        course = _Course(self, who, frames, context, Checkpoint(context.workdir, self.name, key))
        course.run()
        if course.better:
            who.bake()
            result.count("layer of signs", sum(p.latent for p in who.learnables.values()))
            result.count("constant", len(who.learnables))
            result.notes.append(f"loss of the results on {frames.held} held-out frames: {course.start:.4f} before, "
                                f"{course.best:.4f} after" + (", the best before learning diverged" if course.diverged
                                                              else ""))  # fmt: skip
        else:
            result.decline(program.name, "it stays as it was: " + ("learning diverged" if course.diverged else
                           f"no look at the held-out frames found less loss than {course.start:.4f}"))  # fmt: skip
        result.notes.append(f"{frames.learned} frames learned from, {frames.held} held out; {len(who.live)} of "
                            f"{len(who.program.calls)} nodes are reached by what learns")  # fmt: skip
        return result

    def _check(self) -> None:
        if min(self.steps, self.window, self.length, self.pool, self.reuse, self.looks) < 1:
            raise PipelineError("mimic needs steps, window, length, pool, reuse and looks of at least 1")
        if self.learn not in ("units", "behind", "all"):
            raise PipelineError(f"mimic cannot learn {self.learn!r}", way_out="use units, behind or all")
        if min(self.rate, self.other_rate, self.reach) <= 0:
            raise PipelineError("mimic needs rates and a reach above 0")


class _Course:
    """Learning from its start, or from its last checkpoint, to its end; the apprentice holds the best after `run`."""

    def __init__(self, how: Mimic, who: Apprentice, frames: Split, context: PassContext, notes: Checkpoint):
        self.how, self.who, self.frames, self.context, self.notes = how, who, frames, context, notes
        self.source = Augmented(who.twin, _learned(frames), how.length, context.seed, how.augment, how.swap)
        self.weights = Weights(how.features, how.mimicking, how.matte)
        self.params = list(who.learnables.values())
        groups = [{"params": [p.delta], "lr": 0.0, "full": how.rate if p.latent else how.other_rate}
                  for p in self.params]  # fmt: skip
        self.optimiser = torch.optim.Adam(groups)
        self.pool: dict[int, Lesson] = {}
        self.judged: list[tuple[Lesson, int]] | None = None
        self.visit = self.step = 0
        self.start = self.best = math.inf
        self.kept = [p.delta.detach().clone() for p in self.params]
        self.better = self.diverged = False

    def run(self) -> None:
        how = self.how
        if not self._resume():
            self.start = self.best = self._held_out()
        windows = max(1, -(-how.length // how.window))
        visits = max(1, how.steps // windows)
        every = max(1, visits // how.looks)
        while self.visit < visits and not self.diverged:
            self._learn(self._lesson(self.visit), visits * windows)
            self.visit += 1
            if not self.diverged and (self.visit % every == 0 or self.visit == visits):
                self._look()
            self.context.report(how.name, self.visit, visits)
        with torch.no_grad():
            for p, kept in zip(self.params, self.kept, strict=True):
                p.delta.copy_(kept)

    def _lesson(self, visit: int) -> Lesson:
        """Lessons come in rounds: `pool` of them, each learned from `reuse` times, in an order drawn for the round."""
        size = self.how.pool * self.how.reuse
        turn, place = divmod(visit, size)
        generator = torch.Generator().manual_seed(self.context.seed * 1_000_003 + 7 * turn + 1)
        order = torch.randperm(size, generator=generator)
        number = turn * self.how.pool + int(order[place]) % self.how.pool
        if number not in self.pool:
            self.pool = {k: x for k, x in self.pool.items() if k // self.how.pool == turn}
            features = bool(self.how.features or self.how.mimicking)
            self.pool[number] = prepare(self.who, self.source.steps(number), features)
        return self.pool[number]

    def _learn(self, lesson: Lesson, steps: int) -> None:
        state = live_start(self.who)
        for first in range(0, len(lesson.edges), self.how.window):
            for group in self.optimiser.param_groups:
                group["lr"] = group["full"] * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / steps)))
            self.optimiser.zero_grad(set_to_none=True)
            last = min(first + self.how.window, len(lesson.edges))
            values, state = run_live(self.who, lesson, first, last, state)
            loss, _ = lesson_loss(self.who, values, lesson, first, self.weights)
            state = [s.detach() for s in state]
            if not math.isfinite(float(loss.detach())):
                self.diverged = True
                return
            loss.backward()
            self.optimiser.step()
            self.step += 1

    @torch.no_grad()
    def _held_out(self) -> float:
        """The mean loss of the results over held-out steps, clip by clip, the state carried from each clip's reset."""
        if self.judged is None:
            self.judged = [(prepare(self.who, clip, False), start)
                           for clip, start in zip(self.frames.clips.clips, self.frames.starts, strict=True)
                           if start < len(clip)]  # fmt: skip
        total, count = 0.0, 0
        for lesson, start in self.judged:
            values, _ = run_live(self.who, lesson, 0, len(lesson.edges), live_start(self.who))
            given = [[found[n] if n is not None else true for n, true in zip(self.who.results, step, strict=True)]
                     for found, step in zip(values[start:], lesson.results[start:], strict=True)]  # fmt: skip
            steps = len(given)
            total += steps * float(results_loss(given, lesson.results[start:]))
            count += steps
        return total / count

    def _look(self) -> None:
        error = self._held_out()
        self.diverged = not math.isfinite(error)
        if error < self.best:
            self.best, self.better = error, True
            self.kept = [p.delta.detach().clone() for p in self.params]
        self._save()

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        found: dict[str, Tensor] = {"numbers": torch.tensor(
            [self.visit, self.start, self.best, self.better, self.diverged], dtype=torch.float64)}  # fmt: skip
        for p, kept in zip(self.params, self.kept, strict=True):
            found[f"now {p.key}"], found[f"best {p.key}"] = p.delta.detach(), kept
            for name, value in self.optimiser.state.get(p.delta, {}).items():
                found[f"adam {name} {p.key}"] = value
        self.notes.save(self.step, found)

    def _resume(self) -> bool:
        found = self.notes.load()
        if found is None:
            return False
        self.step, tensors = found
        visit, self.start, self.best, better, diverged = tensors["numbers"].tolist()
        self.visit, self.better, self.diverged = int(visit), bool(better), bool(diverged)
        with torch.no_grad():
            for p in self.params:
                p.delta.copy_(tensors[f"now {p.key}"])
                for name in ("step", "exp_avg", "exp_avg_sq"):
                    if f"adam {name} {p.key}" in tensors:
                        self.optimiser.state[p.delta][name] = tensors[f"adam {name} {p.key}"].clone()
        self.kept = [tensors[f"best {p.key}"] for p in self.params]
        return True


def _learned(frames: Split) -> list[list[tuple[Tensor, ...]]]:
    return [list(clip[:start]) for clip, start in zip(frames.clips.clips, frames.starts, strict=True)]

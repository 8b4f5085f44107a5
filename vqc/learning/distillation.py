"""Distillation of a whole student from several teachers (PMQ-VE's PMTD, equations 4 to 6): targets, windows, the loss.

What a teacher gives does not depend on the student, so its results and features are computed once for all steps that
are learned from. Errors are taken relative to the power of the float network's own values, so that a flow in pixels and
a picture in [0, 1] count alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from vqc.calibration.split import Split
from vqc.learning.execute import execute, whole
from vqc.learning.quantizers import WeightQuantizer, annealed, rounding_regulariser
from vqc.learning.store import Store
from vqc.learning.student import Student
from vqc.program import Program, evaluate

WeightLearning = Literal["none", "scales", "rounding"]
FLOAT = "float"


@dataclass(frozen=True)
class Lesson:
    """How to learn: steps of Adam, its rate (of the logarithm of a scale; other parameters in proportion), the weight
    of features against results, the share of the steps until the float teacher counts in full, steps of a video in a
    window, what of the weights is learned, the pull of roundings towards whole numbers."""

    steps: int
    rate: float
    feature_weight: float
    warm_up: float
    window: int
    weights: WeightLearning
    strength: float = 1.0


class Targets:
    """What teachers give at the steps that are learned from, and the float one at those held out.

    `taps`: names of the nodes whose values are features; the results come first among `keys`.
    """

    def __init__(self, twin: Program, taps: Sequence[str], frames: Split, store: Store):
        self.frames, self.store = frames, store
        self.results = [n.name for n in twin.result_nodes[: len(twin.outputs)] if n.meta["val"].is_floating_point()]
        self.taps = [t for t in taps if t not in self.results]
        self.teachers: list[str] = []  # those between the student and the float network
        self._power: dict[str, float] = {}
        self.learn_from(FLOAT, twin)

    @property
    def keys(self) -> list[str]:
        return [*self.results, *self.taps]

    def learn_from(self, name: str, program: Program) -> None:
        """Run a program through all clips, the state carried, and keep what the student will be measured by."""
        wanted = {n: n.name for n in program.graph.nodes if n.name in self.keys}
        power: dict[str, list[float]] = {k: [] for k in self.keys}
        for c, clip in enumerate(self.frames.clips):
            state = program.initial_state()
            for t, step in enumerate(clip):
                learns = self.frames.learns(c, t)
                if not learns and name != FLOAT:
                    break
                kept: dict[str, Tensor] = {}

                def keep(n: fx.Node, value: Any, kept: dict[str, Tensor] = kept) -> None:
                    if n in wanted:
                        kept[wanted[n]] = value

                out = evaluate(program, step, state, keep)
                state = [out[s.output] for s in program.states]
                for key, value in kept.items():
                    if learns or key in self.results:
                        self.store.put((name, key, c, t), value)
                    if learns:
                        power[key].append(float(value.double().square().mean()))
        if name == FLOAT:
            self._power = {k: max(sum(p) / max(len(p), 1), 1e-20) for k, p in power.items()}
        else:
            self.teachers.append(name)

    def error(self, teacher: str, keys: Sequence[str], values: Mapping[str, Tensor], place: tuple[int, int]) -> Tensor:
        """Mean over `keys` of the mean squared distance, by the power of the float network's values."""
        found = [
            (values[k] - self.store.get((teacher, k, *place))).square().mean() / self._power[k] for k in keys
        ]  # fmt: skip
        return torch.stack(found).mean()

    def loss(self, values: Mapping[str, Tensor], place: tuple[int, int], share: float, feature_weight: float) -> Tensor:
        """(L_INT + share * L_FP) / (1 + share); without teachers between, L_FP (PMQ-VE, equations 4 and 5)."""

        def of(teacher: str) -> Tensor:
            features = self.error(teacher, self.taps, values, place) if self.taps and feature_weight else 0.0
            # the paper's words: an l2 distance (a root) of results, a mean square of features
            return self.error(teacher, self.results, values, place).clamp_min(1e-12).sqrt() + feature_weight * features

        if not self.teachers:
            return of(FLOAT)
        between = torch.stack([of(teacher) for teacher in self.teachers]).sum()
        return (between + share * of(FLOAT)) / (1 + share) if share else between


@dataclass(frozen=True)
class Window:
    """Consecutive steps `first` .. `last - 1` of a clip; `fresh`: the state before them is the reset value."""

    clip: int
    first: int
    last: int

    @property
    def fresh(self) -> bool:
        return self.first == 0


def windows(frames: Split, recurrent: bool, length: int, seed: int) -> Iterator[Window]:
    """Windows of the steps that are learned from, for ever, in a drawn order that is new each time round.

    Where a state is carried, the windows of a clip follow each other from its reset; otherwise each step stands alone.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        if recurrent:
            for c in torch.randperm(len(frames.starts), generator=generator).tolist():
                for t in range(0, frames.starts[c], length):
                    yield Window(c, t, min(t + length, frames.starts[c]))
        else:
            places = [(c, t) for c, start in enumerate(frames.starts) for t in range(start)]
            for i in torch.randperm(len(places), generator=generator).tolist():
                yield Window(places[i][0], places[i][1], places[i][1] + 1)


class Pupil:
    """A student with an optimiser, in the middle of a lesson.

    `params` by name; `state`: what the student's own last step left, detached, for the next window of the same clip.
    """

    def __init__(self, student: Student, targets: Targets, lesson: Lesson):
        self.student, self.targets, self.lesson = student, targets, lesson
        self.state: list[Tensor] = student.program.initial_state()
        self.params: dict[str, Tensor] = {}
        groups = []

        def learn(name: str, parameter: Tensor, rate: float) -> None:
            self.params[name] = parameter
            groups.append({"params": [parameter], "lr": rate, "full": rate})

        for q, grid in student.activations.items():
            if grid.learns:
                learn(f"{q.name}.log_scale", grid.log_scale, lesson.rate)
                learn(f"{q.name}.zero", grid.zero, lesson.rate * grid.top)
        if lesson.weights != "none":
            for n, layer in student.layers.items():
                size = float(layer.bias.detach().square().mean().sqrt())
                learn(f"{n.name}.gain", layer.quantizer.gain, 0.1 * lesson.rate)
                learn(f"{n.name}.bias", layer.bias, 0.3 * lesson.rate * max(size, 1e-3))
                if lesson.weights == "rounding":
                    _begin(layer.quantizer)
                    learn(f"{n.name}.v", layer.quantizer.v, 3 * lesson.rate)
        self.optimiser = torch.optim.Adam(groups or [{"params": []}])
        self._roundings = [p for k, p in self.params.items() if k.endswith(".v")]
        self._count = sum(v.numel() for v in self._roundings)
        self._wanted = {n for n in student.program.graph.nodes if n.name in targets.keys}

    def _run(self, step: Sequence[Tensor], state: Sequence[Tensor], soft: bool) -> tuple[dict[str, Tensor], list[Any]]:
        program = self.student.program
        wanted = self._wanted | set(program.result_nodes)
        found = execute(program, program.calls, whole(program, step, state), wanted, self.student.overrides(soft=soft))
        results = program.result_nodes
        return {n.name: found[n] for n in self._wanted}, [found[results[s.output]] for s in program.states]

    def learn(self, window: Window, at: int, start: float, average: Callable[[list[Tensor]], None]) -> float:
        """One step of Adam on a window; returns the loss, which is not finite when learning diverged.

        `start`: the held-out error before the first step, whose root the pull of the roundings is measured by.
        """
        lesson = self.lesson
        share = min(1.0, at / max(lesson.warm_up * lesson.steps, 1e-9))
        for group in self.optimiser.param_groups:
            group["lr"] = group["full"] * 0.5 * (1 + math.cos(math.pi * at / lesson.steps))
        self.optimiser.zero_grad(set_to_none=True)
        state = self.student.program.initial_state() if window.fresh else self.state
        losses = []
        for t in range(window.first, window.last):
            values, state = self._run(self.targets.frames.clips.clips[window.clip][t], state, soft=True)
            losses.append(self.targets.loss(values, (window.clip, t), share, lesson.feature_weight))
        loss = torch.stack(losses).mean()
        self.state = [s.detach() for s in state]
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        if self._roundings and at >= lesson.warm_up * lesson.steps:
            b = annealed(at, lesson.steps, lesson.warm_up)
            pull = torch.stack([rounding_regulariser(v, b) for v in self._roundings]).sum()
            loss = loss + lesson.strength * math.sqrt(start) / self._count * pull
        loss.backward()
        average(list(self.params.values()))
        self.optimiser.step()
        return value

    @torch.no_grad()
    def held_out_error(self) -> float:
        """The mean error of the results on held-out steps against the float network, weights on their integers."""
        frames, program = self.targets.frames, self.student.program
        found = []
        for c, clip in enumerate(frames.clips):
            state = program.initial_state()
            for t, step in enumerate(clip):
                if frames.learns(c, t) and not program.states:
                    continue
                values, state = self._run(step, state, soft=False)
                if not frames.learns(c, t):
                    found.append(float(self.targets.error(FLOAT, self.targets.results, values, (c, t))))
        return sum(found) / len(found)

    # ---- what it has become ----------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Tensor]:
        return {k: p.detach().clone() for k, p in self.params.items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for k, p in self.params.items():
                p.copy_(snapshot[k])

    def leave_roundings(self) -> None:
        """Weights keep the integers they were given."""
        for layer in self.student.layers.values():
            layer.quantizer.learned = False

    def to_tensors(self) -> dict[str, Tensor]:
        """All that going on from here needs: parameters, Adam's moments, the state."""
        found = {f"now {k}": p.detach() for k, p in self.params.items()}
        for k, p in self.params.items():
            for name, value in self.optimiser.state.get(p, {}).items():
                found[f"adam {name} {k}"] = value
        return found | {f"state {i}": s for i, s in enumerate(self.state)}

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.restore({k: tensors[f"now {k}"] for k in self.params})
        for k, p in self.params.items():
            for name in ("step", "exp_avg", "exp_avg_sq"):
                if f"adam {name} {k}" in tensors:
                    self.optimiser.state[p][name] = tensors[f"adam {name} {k}"].clone()
        self.state = [tensors[f"state {i}"] for i in range(len(self.state))]


def _begin(quantizer: WeightQuantizer) -> None:
    """Learn from the integers that were given on; where those are the nearest ones, from the weight itself."""
    nearest = (quantizer.below + (quantizer.v.detach() >= 0)).clamp(-quantizer.top, quantizer.top)
    if not torch.equal(nearest, quantizer.given):
        quantizer.start_from(quantizer.given)
    quantizer.learned = True

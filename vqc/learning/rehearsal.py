"""A whole student on calibration clips beside what its results should be: rollouts, their error, losses of windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.checkpoint import checkpoint

from vqc.calibration.split import Split
from vqc.learning.execute import execute, whole
from vqc.learning.labels import Labels
from vqc.learning.moments import ChannelStats
from vqc.learning.motion import Motions, Target, flicker
from vqc.learning.store import Store
from vqc.program import Program, evaluate

Overrides = Mapping[fx.Node, Callable[..., Any]]
SAMPLES = 12  # steps learned from whose moments are matched; they are held in memory side by side
TINY = 1e-9  # of the first error: no better than that can be told
Window = tuple[int, int, int]  # clip, first step since its reset, steps


class Moments:
    """Mean and variance of the channels of layers' results over many steps."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def update(self, name: str, value: Tensor, axis: int) -> None:
        across = [d for d in range(value.ndim) if d != axis]
        var, mean = torch.var_mean(value, across, correction=0)
        mean, power = mean.double(), var.double() + mean.double().square()
        if name in self._sums:
            m, p, n = self._sums[name]
            self._sums[name] = (m + mean, p + power, n + 1)  # every step has as many values as any other
        else:
            self._sums[name] = (mean, power, 1)

    def __getitem__(self, name: str) -> ChannelStats:
        mean, power, n = self._sums[name]
        return ChannelStats(mean / n, (power / n - (mean / n).square()).clamp_min(0))


@dataclass(frozen=True)
class Score:
    """Of the held-out steps of each clip, against what both were in the first rollout: the mean squared error of the
    results, each in its own unit, so that none outweighs another; and the change of that error along the motion, 0
    where none is known."""

    clips: tuple[tuple[float, float], ...]

    def total(self, flow_weight: float) -> float:
        """The geometric mean over clips: a scene that is lost, or nearly perfect, counts no more than any other."""
        found = [max(task + flow_weight * change, TINY) for task, change in self.clips]
        return math.exp(_mean([math.log(x) for x in found]))


class _Errors:
    """What one clip's steps differ by: of each result the squared error by its power, and flicker."""

    def __init__(self, results: Sequence[int]):
        self.task: dict[int, list[float]] = {i: [] for i in results}
        self.flicker: list[float] = []
        self.steps = 0

    def add(self, errors: Mapping[int, Tensor], power: Mapping[int, float]) -> None:
        self.steps += 1
        for i, e in errors.items():
            self.task[i].append(float(e.square().mean(dtype=torch.float64)) / power[i])

    def of(self) -> list[float]:
        """Means: of each result, then of flicker."""
        return [*(_mean(e) for e in self.task.values()), _mean(self.flicker)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _units(errors: Sequence[_Errors]) -> list[list[float]]:
    """For each clip its first errors, so that scenes count alike, whether they are hard or easy. A clip that has nearly
    none (nobody is seen) counts less: its unit is a tenth of what clips have in the mean."""
    every = [e.of() for e in errors]
    means = [_mean(values) for values in zip(*every, strict=True)]
    return [[max(e, 0.1 * mean) or 1.0 for e, mean in zip(one, means, strict=True)] for one in every]


@dataclass(frozen=True)
class Weights:
    """Of the terms of the loss beside the task's: next states, flicker; and what flicker is measured from."""

    state: float = 0.0
    flow: float = 0.0
    target: Target = "twin"


class Rehearsal:
    """Clips, what the float twin (or a label) says about them, and how a student differs.

    `results`: indices of the results that count. Values are kept in `store`: results and states of the twin, states
    that the student carries into each step (`rollout` renews them).
    """

    def __init__(self, program: Program, twin: Program, parts: Split, labels: Labels, motions: Motions,
                 results: Sequence[int], weights: Weights, store: Store):  # fmt: skip
        self.program, self.twin, self.parts, self.labels, self.motions = program, twin, parts, labels, motions
        self.results, self.weights, self.store = tuple(results), weights, store
        self.calls = program.calls
        self.moments = Moments()  # of the twin's layers, on the sampled steps
        learned = [(c, t) for c, end in enumerate(parts.starts) for t in range(end)]
        count = min(SAMPLES, len(learned))
        self.sampled = [learned[(2 * i + 1) * len(learned) // (2 * count)] for i in range(count)]
        self._power: dict[int, float] = {}  # of each flat output of the twin
        self.units: list[list[float]] = []  # of each clip: of each result's error, and of flicker

    # ---- the twin --------------------------------------------------------------------------------------------------

    def watch_twin(self, axes: Mapping[str, int], report: Callable[[int, int], None]) -> None:
        """Run the twin once: keep its results, and of its nodes `axes` (name -> channel axis) the moments."""
        powers: dict[int, list[float]] = {}
        for done, (c, t, step, state) in enumerate(self._steps()):
            learns = self.parts.learns(c, t)

            def see(n: fx.Node, value: Any, seen: bool = (c, t) in self.sampled) -> None:
                if seen and n.name in axes:
                    self.moments.update(n.name, value, axes[n.name])

            out = evaluate(self.twin, step, state, see)
            state[:] = [out[s.output] for s in self.twin.states]
            if learns:
                for i in (*self.results, *(s.output for s in self.twin.states)):
                    powers.setdefault(i, []).append(float(out[i].square().mean(dtype=torch.float64)))
            self.store.put(("result", c, t), tuple(out[i] for i in self.results))
            if self.weights.state:
                self.store.put(("next", c, t), tuple(state))
            report(done + 1, self.parts.clips.frames)
        self._power = {i: sum(p) / len(p) or 1.0 for i, p in powers.items()}

    def _steps(self) -> Iterator[tuple[int, int, Sequence[Tensor], list[Tensor]]]:
        """(clip, steps since reset, inputs, state); the state is the reader's to replace in place."""
        for c, clip in enumerate(self.parts.clips):
            state = self.program.initial_state()
            for t, step in enumerate(clip):
                yield c, t, step, state

    def _targets(self, c: int, t: int) -> list[tuple[int, Tensor]]:
        """(index, what it should be) of each result that counts."""
        labelled = self.program.outputs.index(self.labels.result) if self.labels.result else -1
        truth = self.labels.value(c, t)
        found = self.store.get(("result", c, t))
        return [(i, truth if i == labelled and truth is not None else z)
                for i, z in zip(self.results, found, strict=True)]  # fmt: skip

    # ---- the student -----------------------------------------------------------------------------------------------

    def _run(self, overrides: Overrides, step: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        nodes = self.program.result_nodes
        found = execute(self.program, self.calls, whole(self.program, step, state), set(nodes), overrides)
        return tuple(found[n] for n in nodes)

    def rollout(self, overrides: Overrides) -> Score:
        """Run every clip from its reset, the student's state carried, and keep the states it meets on the way.

        Returns the score of the held-out steps, every clip's in its own units (`_units`).
        """
        found = [(_Errors(self.results), _Errors(self.results)) for _ in self.parts.clips]  # learned from, held out
        before: dict[int, Tensor] = {}
        with torch.no_grad():
            for c, t, step, state in self._steps():
                learns = self.parts.learns(c, t)
                if learns:
                    self.store.put(("state", c, t), tuple(state))
                out = self._run(overrides, step, state)
                state[:] = [out[s.output] for s in self.program.states]
                errors = {i: out[i] - z for i, z in self._targets(c, t)}
                if learns and self.units:
                    continue
                seen = found[c][0 if learns else 1]
                seen.add(errors, self._power)
                moved = self.motions.at(c, t - 1) if t and learns == self.parts.learns(c, t - 1) else None
                if moved is not None and self.weights.flow:
                    seen.flicker.append(self._mean_flicker(before, errors, moved).item())
                before = errors
        if not self.units:
            self.units = _units([held if held.steps else learned for learned, held in found])
        held = [(errors.of(), self.units[c]) for c, (_, errors) in enumerate(found) if errors.steps]
        parts = [[e / unit for e, unit in zip(errors, units, strict=True)] for errors, units in held]
        return Score(tuple((_mean(p[:-1]), p[-1]) for p in parts))

    def sweep(self, overrides: Overrides, axes: Mapping[fx.Node, int],
              fit: Callable[[fx.Node, ChannelStats, int], tuple[Tensor, Tensor]]) -> None:  # fmt: skip
        """Run the sampled steps side by side, node by node, from the states of the last rollout.

        At every node of `axes` (-> channel axis): `fit(node, moments, values a channel)` gives (gamma, beta), [C], and
        what follows sees gamma y + beta. So each layer is fitted to inputs that are mended already, in one run of few
        steps.
        """
        envs: list[dict[fx.Node, Any]] = []
        for c, t in self.sampled:
            envs.append(whole(self.program, self.parts.clips.clips[c][t], self.store.get(("state", c, t))))
        last = {a: n for n in self.calls for a in n.all_input_nodes}
        with torch.no_grad():
            for n in self.calls:
                values = [execute(self.program, [n], env, [n], overrides)[n] for env in envs]
                if n in axes:
                    moments = Moments()
                    for v in values:
                        moments.update(n.name, v, axes[n])
                    channels = values[0].shape[axes[n]]
                    count = sum(v.numel() for v in values) // channels
                    shape = [channels if d == axes[n] else 1 for d in range(values[0].ndim)]
                    gamma, beta = (x.float().view(shape) for x in fit(n, moments[n.name], count))
                    values = [v * gamma + beta for v in values]
                for env, v in zip(envs, values, strict=True):
                    env[n] = v
                    for a in n.all_input_nodes:
                        if last[a] is n:
                            env.pop(a, None)

    def _mean_flicker(self, now: Mapping[int, Tensor], then: Mapping[int, Tensor], motion: Any) -> Tensor:
        """Over the results that are pictures, each by the root of its power."""
        parts = [flicker(now[i], then[i], motion) / self._power[i] ** 0.5 for i in now if now[i].ndim == 4]
        return torch.stack(parts).mean() if parts else torch.zeros(())

    # ---- learning --------------------------------------------------------------------------------------------------

    def windows(self, frames: int) -> list[Window]:
        """Every window of `frames` steps that may be learned from, or of the whole of what
        may be learned from in a clip that is shorter."""
        found = []
        for c, end in enumerate(self.parts.starts):
            length = min(frames, end)
            found += [(c, t, length) for t in range(end - length + 1) if length]
        return found

    def loss(self, overrides: Overrides, window: Window, recompute: bool = False) -> Tensor:
        """The logarithm of the error of a window, from the state that the last rollout brought there; gradients go
        through all its steps. A logarithm, so that a scene that goes astray pulls no more than the others.

        `recompute`: hold the intermediate values of one step at a time, for two forward runs instead of one.
        """
        c, first, length = window
        state: Sequence[Tensor] = self.store.get(("state", c, first))
        total = torch.zeros(())
        shown: list[dict[int, Tensor]] = []
        for t in range(first, first + length):
            step = self.parts.clips.clips[c][t]
            if recompute:
                out = checkpoint(self._run, overrides, step, state, use_reentrant=False)
            else:
                out = self._run(overrides, step, state)
            state = [out[s.output] for s in self.program.states]
            targets = self._targets(c, t)
            task = [(out[i] - z).square().mean() / (self._power[i] * unit)
                    for (i, z), unit in zip(targets, self.units[c], strict=False)]  # fmt: skip
            total = total + torch.stack(task).mean()
            if self.weights.state and state:
                total = total + self.weights.state * self._state_loss(state, c, t)
            relative = self.weights.target == "twin"
            shown.append({i: out[i] - z if relative else out[i] for i, z in targets})
        total = total / length
        if self.weights.flow:
            moved = [
                (a, b, self.motions.at(c, first + i)) for i, (a, b) in enumerate(zip(shown, shown[1:], strict=False))
            ]
            terms = [self._mean_flicker(a, b, m) for a, b, m in moved if m is not None]
            if terms:
                total = total + self.weights.flow * torch.stack(terms).mean() / self.units[c][-1]
        return total.clamp_min(TINY).log()

    def _state_loss(self, state: Sequence[Tensor], c: int, t: int) -> Tensor:
        true = self.store.get(("next", c, t))
        parts = [(a - b).square().mean() / self._power[s.output]
                 for a, b, s in zip(state, true, self.twin.states, strict=True)]  # fmt: skip
        return torch.stack(parts).mean()

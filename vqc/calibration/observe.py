"""Observers: statistics of a node, apart for every frame slot or every phase since reset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from vqc.calibration.clips import Clips
from vqc.calibration.deal import Stretch
from vqc.calibration.statistics import Statistics
from vqc.program import Program, evaluate

PHASES = (0, 1, 2, 4, 8, 16)  # frames since reset at which a new phase begins; the last one never ends


def phase_of(frame: int) -> int:
    """Index into PHASES of a frame counted from the last reset."""
    return max(i for i, start in enumerate(PHASES) if frame >= start)


@dataclass
class Observed:
    """What was seen at one node: Statistics by key (0 for the whole tensor, the frame slot, or the phase)."""

    policy: str = "tensor"
    groups: dict[int, Statistics] = field(default_factory=dict)

    def update(self, key: int, value: torch.Tensor) -> None:
        self.groups.setdefault(key, Statistics()).update(value)

    def merge(self, other: Observed) -> None:
        """Take in another process's observations of the same node."""
        for key, statistics in other.groups.items():
            self.groups.setdefault(key, Statistics()).merge(statistics)

    @property
    def total(self) -> Statistics:
        """All groups merged."""
        result = Statistics()
        for key in sorted(self.groups):
            result.merge(self.groups[key])
        return result

    def __str__(self) -> str:
        low, high = self.total.range
        return f"[{low:.4g}, {high:.4g}]" + (f" x{len(self.groups)}" if len(self.groups) > 1 else "")


def rollout(program: Program, clips: Clips, visit: Callable[[fx.Node, Any, int], None],
            report: Callable[[int, int], None] | None = None,
            stretches: Sequence[Stretch] | None = None) -> None:  # fmt: skip
    """Run every clip in order, the state carried from its reset value; `visit(node, value, frames since reset)`.

    `stretches`: only these frames are visited. A state is carried from its clip's first frame all the same, through
    those operators alone that it depends on. `report(done, total)` counts all steps that run.
    """
    if stretches is None:
        stretches = [Stretch(c, 0, len(clip)) for c, clip in enumerate(clips)]
    begins = [0 if program.states else s.first for s in stretches]
    total = sum(s.last - begin for s, begin in zip(stretches, begins, strict=True))
    carrying = states_alone(program) if any(b < s.first for s, b in zip(stretches, begins, strict=True)) else program
    done = 0
    for s, begin in zip(stretches, begins, strict=True):
        state = program.initial_state()
        for t in range(begin, s.last):
            step = clips.clips[s.clip][t]
            if t < s.first:
                state = list(evaluate(carrying, step, state))
            else:
                out = evaluate(program, step, state, lambda n, v, t=t: visit(n, v, t))  # type: ignore[misc]
                state = [out[x.output] for x in program.states]
            done += 1
            if report is not None:
                report(done, total)


def states_alone(program: Program) -> Program:
    """A clone whose graph gives the next states and nothing else, in order; it is to be evaluated, not passed on."""
    clone = program.clone()
    results = clone.result_nodes
    clone.output_node.args = (tuple(results[s.output] for s in clone.states),)
    clone.drop_dead()
    return clone


def steps_of(program: Program, clips: Clips) -> Iterator[tuple[int, Sequence[torch.Tensor], list[torch.Tensor]]]:
    """(frames since reset, inputs, state before) of every step of a float rollout."""
    for clip in clips:
        state = program.initial_state()
        for t, step in enumerate(clip):
            yield t, step, state
            out = evaluate(program, step, state)
            state = [out[s.output] for s in program.states]

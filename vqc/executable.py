"""Executable: a compiled Program that runs one step; Stream: one running video with its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vqc.errors import AssumptionError, TargetError
from vqc.layers import Layer, by_kernel, text
from vqc.program import Declined, Program


@dataclass
class CompileReport:
    """What a backend did: the kernel of every node, what it left to another engine and why, sizes in bytes.

    `unfused`: results that are stored although a fusion was looked for, and why it was not made.
    `layers`: one row a kernel call, in the order they run (`Executable.profile` adds times). `arena_bytes`: working
    memory; `live_bytes`: the most that is alive at once in it, below which no plan can go. `peaks`: what one
    thread of this machine can do, 10^9 multiply-adds a second by kind; set by a profile.
    """

    backend: str
    target: str
    kernels: dict[str, str] = field(default_factory=dict)
    fallbacks: list[Declined] = field(default_factory=list)
    unfused: list[Declined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    arena_bytes: int = 0
    weight_bytes: int = 0
    state_bytes: int = 0
    live_bytes: int = 0
    layers: list[Layer] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)

    def table(self) -> str:
        """Every layer as a line of plain text: node, operator, kernel, result, operations, bytes, times."""
        return text([layer.row() for layer in self.layers])

    def summary(self) -> str:
        """Every kernel as a line of plain text: its calls, operations, bytes and times."""
        return text(by_kernel(self.layers))

    def __str__(self) -> str:
        lines = [f"{self.backend} for {self.target}: {len(self.kernels)} kernels, {len(self.fallbacks)} fallbacks"]
        if self.live_bytes:
            part = self.arena_bytes / self.live_bytes
            lines.append(f"  memory: arena {self.arena_bytes / 1e6:.2f} MB ({part:.3f} of what is alive at once), "
                         f"weights {self.weight_bytes / 1e6:.2f} MB, "
                         f"states {self.state_bytes / 1e6:.2f} MB")  # fmt: skip
        if self.layers and all(x.measured_ms is not None for x in self.layers):
            lines.append(f"  measured: {sum(x.measured_ms or 0.0 for x in self.layers):.2f} ms a step, profiled")
        if self.peaks:
            lines.append("  machine: " + ", ".join(f"{k} {v:.0f}" for k, v in self.peaks.items()) + " GMAC/s a thread")
        lines += [f"  note: {n}" for n in self.notes]
        lines += [f"  not fused {d.node}: {d.reason}" for d in self.unfused]
        lines += [f"  fallback {d.node}: {d.reason}" for d in self.fallbacks]
        return "\n".join(lines)


class Executable(ABC):
    """A Program made ready to run. Subclasses implement `_run`; the rest (checks, assumptions, structure) is here."""

    def __init__(self, program: Program, report: CompileReport):
        self.program = program
        self.report = report

    @abstractmethod
    def _run(self, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The graph's flat outputs (results, next states, assumptions, extras) as fresh tensors."""

    def step(self, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor] | None = None
             ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:  # fmt: skip
        """Run one step.

        Parameters: the flat input tensors in the Program's order; the state (None: the reset value).
        Returns (results, next state), both flat lists.
        Raises InputError on a wrong number, shape or dtype, AssumptionError when the data breaks an assumption.
        """
        self.program.check_inputs(inputs)
        state = self.program.initial_state() if state is None else list(state)
        self.program.check_state(state)
        out = self._run(inputs, state)
        for a in self.program.assumptions:
            if bool(out[a.output]) != a.expected:
                raise AssumptionError(
                    f"the input breaks an assumption of program {self.program.name}: {a.text}", where=a.where,
                    why=f"the network was captured for the case that this is {a.expected}",
                    way_out="capture it with an example of this kind, or run this clip with the PyTorch model",
                )  # fmt: skip
        return list(out[: len(self.program.outputs)]), [out[s.output] for s in self.program.states]

    def trace(self, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor] | None = None
              ) -> Sequence[torch.Tensor]:  # fmt: skip
        """All flat outputs of one step, the extra ones of `Program.with_outputs` included."""
        return self._run(inputs, self.program.initial_state() if state is None else list(state))

    def profile(self, steps: Sequence[Sequence[torch.Tensor]], rounds: int = 3) -> CompileReport:
        """Run steps (flat inputs of each, the state carried) several times over, and time every kernel call.

        Returns the report with `layers` measured: the least time of a call among the rounds, mean over the steps. The
        first round, which warms caches, does not count unless it is the only one. Raises TargetError when the backend
        cannot tell calls apart.
        """
        raise TargetError(f"the backend {self.report.backend} does not time its layers", way_out="use target native")


class Stream:
    """One running video: keeps the state between frames and gives results in the user's own structure.

    `stream(frame)` runs one step; `stream.run(clip)` yields a result for every frame; `stream.reset()` forgets.
    """

    def __init__(self, executable: Executable):
        self.executable = executable
        self.state = executable.program.initial_state()
        self.frame = 0  # frames since reset

    def reset(self) -> None:
        """Start a new video: every state back to its reset value."""
        self.state = self.executable.program.initial_state()
        self.frame = 0

    def step(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """One step on flat inputs; flat results."""
        results, self.state = self.executable.step(inputs, self.state)
        self.frame += 1
        return results

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        program = self.executable.program
        inputs = program.flatten_inputs(args, kwargs)
        results = self.step(inputs)
        return program.unflatten_outputs(results, self.state, inputs)

    def run(self, clip: Iterable[Any]) -> Iterator[Any]:
        """Yield the result of every step of a clip: each item a tensor, or a tuple of a step's arguments."""
        for item in clip:
            yield self(*item) if isinstance(item, (tuple, list)) else self(item)

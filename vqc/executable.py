"""Executable: a compiled Program that runs one step; Stream: one running video with its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vqc.errors import AssumptionError
from vqc.program import Declined, Program


@dataclass
class CompileReport:
    """What a backend did: the kernel of every node, what it left to another engine and why, sizes in bytes."""

    backend: str
    target: str
    kernels: dict[str, str] = field(default_factory=dict)
    fallbacks: list[Declined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    arena_bytes: int = 0
    weight_bytes: int = 0
    state_bytes: int = 0

    def __str__(self) -> str:
        lines = [f"{self.backend} for {self.target}: {len(self.kernels)} kernels, {len(self.fallbacks)} fallbacks"]
        lines += [f"  note: {n}" for n in self.notes]
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

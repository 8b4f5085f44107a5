"""Small Programs written by hand, for tests that need one exact graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from vqc import spec
from vqc.program import Input, Program, State, evaluate, infer, meta_of, short_name

aten = torch.ops.aten


class Hand:
    """A Program under construction: inputs, states, constants and calls in order, then `done`."""

    def __init__(self, name: str = "hand", seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        self._example: list[torch.Tensor] = []
        self.inputs: list[Input] = []
        self.resets: list[tuple[str, torch.Tensor]] = []
        self.program = Program(name, fx.Graph(), {}, (), ())

    def rand(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def _placeholder(self, name: str, value: torch.Tensor) -> fx.Node:
        node = self.program.graph.placeholder(name)
        node.name = name  # fx renames what is a name of Python's own, like `input`
        node.meta["val"] = meta_of(value)
        return node

    def input(self, name: str, *shape: int, frames: Any = None, dtype: torch.dtype = torch.float32) -> fx.Node:
        value = self.rand(*shape) if dtype.is_floating_point else torch.arange(torch.Size(shape).numel()).view(shape)
        value = value.to(dtype)
        self._example.append(value)
        self.inputs.append(Input(name, tuple(shape), dtype, frames=frames))
        return self._placeholder(name, value)

    def state(self, name: str, reset: torch.Tensor) -> fx.Node:
        self.resets.append((name, reset))
        return self._placeholder(name, reset)

    def const(self, name: str, value: Any) -> fx.Node:
        value = value if isinstance(value, torch.Tensor) else torch.tensor(value)
        self.program.constants[name] = value
        node = self.program.graph.create_node("get_attr", name, name=name.replace(".", "_"))
        node.meta["val"] = meta_of(value)
        return node

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if not isinstance(target, torch._ops.OpOverload) and target is not operator.getitem:
            target = target.default
        node = self.program.graph.create_node("call_function", target, args, kwargs, short_name(target))
        infer(self.program, node)
        return node

    def done(self, *results: fx.Node, states: Sequence[fx.Node] = ()) -> Program:
        """Close the graph with these results and next states, and check it against the spec."""
        self.program.graph.output((*results, *states))
        names = [f"y{i}" for i in range(len(results))] if len(results) != 1 else ["y"]
        declared = [State(n, n, len(results) + i, r) for i, (n, r) in enumerate(self.resets)]
        p = self.program
        p.inputs, p.outputs, p.states = tuple(self.inputs), tuple(names), tuple(declared)
        p.example = tuple(self._example)
        spec.check(p, "writing it by hand")
        return p


def run(program: Program, inputs: Sequence[torch.Tensor] | None = None) -> tuple[Any, ...]:
    """One step from the reset state on the Program's own example."""
    return evaluate(program, program.example if inputs is None else inputs)


def texts(program: Program) -> list[str]:
    """The lines of a Program's calls and results, without indent."""
    return [line.strip() for line in str(program).splitlines() if " = " in line]


def reasons(program: Program) -> dict[str, str]:
    """Why the last pass left each node alone."""
    return {d.node: d.reason for d in program.history[-1].declined}

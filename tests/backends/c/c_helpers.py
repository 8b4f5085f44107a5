"""Small Programs by hand, and comparing what C makes of them with their evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from vqc.backends.c import CBackend
from vqc.executable import Executable
from vqc.program import Input, Program, State, evaluate, infer, meta_of

aten = torch.ops.aten


class Builder:
    """Builds a Program call by call; `call` infers shapes as it goes."""

    def __init__(self, inputs: Sequence[Tensor], states: Sequence[Tensor] = (), name: str = "small"):
        graph = fx.Graph()
        self.inputs, self.states = [], []
        self.tensors = list(inputs)
        specs = []
        for i, x in enumerate(inputs):
            node = graph.placeholder(f"x{i}")
            node.meta["val"] = meta_of(x)
            self.inputs.append(node)
            specs.append(Input(f"x{i}", tuple(x.shape), x.dtype))
        self._resets = list(states)
        for i, s in enumerate(states):
            node = graph.placeholder(f"s{i}")
            node.meta["val"] = meta_of(s)
            self.states.append(node)
        self.program = Program(name, graph, {}, specs, [], example=inputs)

    def const(self, value: Tensor, name: str = "w") -> fx.Node:
        key = f"{name}{len(self.program.constants)}"
        self.program.constants[key] = value
        node = self.program.graph.create_node("get_attr", key)
        node.meta["val"] = meta_of(value)
        return node

    def call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, self.const, (args, kwargs))
        node = self.program.graph.call_function(op, args, kwargs)
        node.meta["source"] = f"test.py: {op}"
        infer(self.program, node)
        return node

    def done(self, *results: fx.Node, states: Sequence[fx.Node] = ()) -> Program:
        p = self.program
        p.graph.output((*results, *states))
        p.outputs = tuple(f"out{i}" for i in range(len(results)))
        p.states = tuple(State(f"s{i}", f"s{i}", len(results) + i, r) for i, r in enumerate(self._resets))
        return p


def single(op: Any, *args: Any, **kwargs: Any) -> Program:
    """A Program of one call: tensors among the positional arguments wrapped in `In` become inputs, others constants."""
    return chain(lambda b, *xs: b.call(op, *_unwrap(args, iter(xs)), **kwargs), *[a.tensor for a in _ins(args)])


class In:
    """Marks a tensor argument of `single` as an input of the Program."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def _ins(value: Any) -> list[In]:
    if isinstance(value, In):
        return [value]
    return [i for v in value for i in _ins(v)] if isinstance(value, (list, tuple)) else []


def _unwrap(value: Any, nodes: Any) -> Any:
    if isinstance(value, In):
        return next(nodes)
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrap(v, nodes) for v in value)
    return value


def chain(build: Callable[..., Any], *inputs: Tensor, states: Sequence[Tensor] = (), name: str = "small") -> Program:
    """A Program from a function (builder, input nodes, state nodes) -> result node, or (results, next states)."""
    b = Builder(inputs, states, name)
    out = build(b, *b.inputs, *b.states)
    if states:
        return b.done(*out[0], states=out[1])
    return b.done(*(out if isinstance(out, tuple) else (out,)))


Case = tuple[Sequence[Tensor], Callable[..., Any]]  # inputs, and a function (builder, input nodes) -> result node(s)


def together(cases: Sequence[Case]) -> Program:
    """One Program of many small cases, each with its own inputs: one compilation tests them all."""

    def build(b: Builder, *nodes: fx.Node) -> tuple[fx.Node, ...]:
        results: list[fx.Node] = []
        at = 0
        for inputs, case in cases:
            out = case(b, *nodes[at : at + len(inputs)])
            results += out if isinstance(out, (tuple, list)) else [out]
            at += len(inputs)
        return tuple(results)

    return chain(build, *(x for inputs, _ in cases for x in inputs))


def compiled(program: Program, target: str = "native", **options: Any) -> Executable:
    return CBackend().compile(program, target, {"fallback": "none", **options})


def check(program: Program, *, exact: bool = False, rtol: float = 1e-5, atol: float = 1e-6, target: str = "native",
          **options: Any) -> Executable:  # fmt: skip
    """Assert that C gives what evaluation gives, over two steps; every float bit for bit when `exact`."""
    exe = compiled(program, target, **options)
    state = program.initial_state()
    for _ in range(2 if program.states else 1):
        want = evaluate(program, program.example, state)
        got = exe.trace(program.example, state)
        assert len(want) == len(got)
        for a, b in zip(want, got, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            if exact or not (a.is_floating_point() or a.is_complex()):
                assert torch.equal(a, b), (
                    f"{(a != b).sum()} of {a.numel()} differ, e.g. {a[a != b][:4]} / {b[a != b][:4]}"
                )
            else:
                torch.testing.assert_close(b, a, rtol=rtol, atol=atol, equal_nan=True)
        state = [want[s.output] for s in program.states]
    return exe

"""Frames are never wrong: on random graphs, a change of one frame touches no part said to be of another."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from handmade import Hand, aten
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from vqc.frames import Frames, frame_layout, split_by_frame
from vqc.program import Program, evaluate, shape_of


def check_by_perturbation(program: Program, frame_axis: int, frames: int) -> int:
    """Change one input frame at a time; no part that is said to be of another frame may change.

    Returns how many tensors were said to have frames, so that a test can see that it checked something.
    """
    layout = frame_layout(program)
    x = program.example[0]

    def values(feed: torch.Tensor) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        evaluate(program, [feed, *program.example[1:]], observe=lambda n, v: seen.__setitem__(n.name, v))
        return seen

    clean = values(x)
    for k in range(frames):
        other = x.clone()
        other.select(frame_axis, k).mul_(-1.7).add_(0.3)
        for name, value in values(other).items():
            f = layout[name]
            if f.note or not isinstance(value, torch.Tensor):
                continue
            for (i, was), (_, now) in zip(split_by_frame(clean[name], f), split_by_frame(value, f), strict=True):
                if not f or i != k:
                    assert torch.equal(was, now), f"{name} ({f}): frame {k} reaches the part of frame {i}"
    return sum(bool(f) for f in layout.values())


Step = tuple[int, int, int, int]


def grow(h: Hand, x: fx.Node, steps: list[Step]) -> list[fx.Node]:
    """Values made by random operators; a step that does not fit its value is left out."""
    values = [x]
    for kind, which, a, b in steps:
        v = values[which % len(values)]
        twins = [o for o in values[a % len(values) :] + values if shape_of(o) == shape_of(v)]
        choices = operators(h, v, twins[0], a, b)
        try:
            made = choices[kind % len(choices)]()
        except (RuntimeError, IndexError):
            _forget_unfinished(h)
            continue
        if 0 not in shape_of(made) and len(shape_of(made)) > 1:
            values.append(made)
    return values


def operators(h: Hand, v: fx.Node, twin: fx.Node, a: int, b: int) -> list[Callable[[], fx.Node]]:
    """Calls on `v`, and on another value of its shape, with options taken from two numbers."""
    shape = shape_of(v)
    rank = len(shape)
    d, e = a % rank, b % rank
    front = min(d, rank - 2)
    weight = h.rand(3, shape[1] if rank == 4 else 1, 1 + a % 2, 1 + b % 2)
    return [
        lambda: h(aten.relu, v),
        lambda: h(aten.flatten.using_ints, v, front, front + 1),
        lambda: h(aten.transpose.int, v, d, e),
        lambda: h(aten.select.int, v, d, b % shape[d]),
        lambda: h(aten.slice.Tensor, v, d, b % shape[d], shape[d] - (a + b) % 2),
        lambda: h(aten.add.Tensor, v, twin),
        lambda: h(aten.cat, [v, twin], d),
        lambda: h(aten.stack, [v, twin], d),
        lambda: h(aten.mean.dim, v, [d], bool(b % 2)),
        lambda: h(aten.softmax.int, v, d),
        lambda: h(aten.unsqueeze, v, d),
        lambda: h(aten.reshape, v, [*shape[:d], *halves(shape[d]), *shape[d + 1 :]]),
        lambda: h(aten.conv2d, v, add_const(h, weight), None, [1, 1], [a % 2, b % 2]),
        lambda: h(aten.max_pool2d, v, [1 + a % 2, 1 + b % 2]),
        lambda: h(aten.repeat, v, [1 + (i == d) for i in range(rank)]),
        lambda: h(aten.constant_pad_nd, v, [0, 0] * (rank - 1 - d) + [a % 2, b % 2]),
        lambda: h(operator.getitem, h(aten.unbind.int, v, d), b % shape[d]),
        lambda: h(operator.getitem, h(aten.split.Tensor, v, 1 + b % 3, d), 0),
        lambda: h(aten.flip, v, [d]),
        lambda: h(aten.cumsum, v, d),
        lambda: h(aten.add.Tensor, v, h(aten.mean.dim, twin, [d], True)),
        lambda: h(aten.cat, [h(aten.select.int, v, d, k) for k in range(shape[d])], 0),
        lambda: h(aten.matmul, v, h(aten.transpose.int, twin, rank - 2, rank - 1)),
    ]


def halves(size: int) -> list[int]:
    return [size // 2, 2] if size % 2 == 0 and size else [size]


def add_const(h: Hand, value: torch.Tensor) -> fx.Node:
    first = next((n for n in h.program.graph.nodes if n.op == "call_function"), None)
    name = f"w{len(h.program.constants)}"
    if first is None:
        return h.const(name, value)
    return h.program.add_constant(name, value, before=first)


def _forget_unfinished(h: Hand) -> None:
    """Erase a call whose shapes did not fit."""
    for n in reversed(h.program.graph.nodes):
        if "val" not in n.meta:
            h.program.graph.erase_node(n)


STARTS = [((2, 3, 2, 4, 4), 1), ((1, 4, 3, 4, 2), 1), ((3, 2, 4, 4), 0), ((2, 2, 3, 4), 2), ((2, 2, 2, 2), 1)]
STEP = st.tuples(st.integers(0, 22), st.integers(0, 30), st.integers(0, 11), st.integers(0, 11))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(STEP, min_size=1, max_size=12),
    st.sampled_from(
        [((2, 3, 2, 4, 4), 1), ((1, 4, 3, 4, 2), 1), ((3, 2, 4, 4), 0), ((2, 2, 3, 4), 2), ((2, 2, 2, 2), 1)]
    ),
)
def test_never_wrong(steps: list[Step], start: tuple[tuple[int, ...], int]):
    shape, axis = start
    h = Hand()
    x = h.input("x", *shape, frames=Frames("axis", axis=axis, count=shape[axis]))
    values = grow(h, x, steps)
    assert check_by_perturbation(h.done(*values), axis, shape[axis]) >= 1


def test_the_oracle_sees_a_wrong_rule(monkeypatch: pytest.MonkeyPatch):
    from vqc import frame_rules

    monkeypatch.setitem(frame_rules.RULES, "aten.flip", lambda c: c.of(c.first))
    h = Hand()
    x = h.input("x", 2, 3, 4, frames=Frames("axis", axis=1, count=3))
    program = h.done(h(aten.flip, x, [1]))
    with pytest.raises(AssertionError, match="frame 0 reaches the part of frame 2"):
        check_by_perturbation(program, 1, 3)

"""Ranges that hold by the form of a recurrence."""

from __future__ import annotations

import dataclasses

from torch import fx

from vqc.frontend.emit import aten
from vqc.program import Program, State


def convex_update_range(program: Program, state: State) -> State:
    """The state with known range (-1, 1) when it is updated as (1 - z) h + z tanh(c), z a sigmoid.

    Such a state is a mean of its old value and a value in [-1, 1], so it stays in that range when it starts there.
    Any order of the sums and products is seen, and views around z and tanh.
    """
    if state.known_range is not None or float(state.reset.abs().max() if state.reset.numel() else 0) > 1:
        return state
    node = program.result_nodes[state.output]
    if _is_call(node, aten.add.Tensor) and node.kwargs.get("alpha", 1) == 1:
        left, right = node.args[:2]
        for a, b in ((left, right), (right, left)):
            if _matches(program, state, a, b):
                return dataclasses.replace(state, known_range=(-1.0, 1.0))
    return state


def _is_call(node: object, target: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def _factors(node: object) -> tuple[object, object] | None:
    return (node.args[0], node.args[1]) if _is_call(node, aten.mul.Tensor) else None  # type: ignore[attr-defined]


def _matches(program: Program, state: State, old: object, new: object) -> bool:
    """old = (1 - z) * h, new = z * tanh(c)."""
    first, second = _factors(old), _factors(new)
    if first is None or second is None:
        return False
    for complement, h in (first, first[::-1]):
        if not (isinstance(h, fx.Node) and h.op == "placeholder" and h.name == state.input):
            continue
        for z, c in (second, second[::-1]):
            if _through(c, aten.tanh.default) and _through(z, aten.sigmoid.default) and _one_minus(program, complement) is z:
                return True
    return False


def _one_minus(program: Program, node: object) -> object:
    if _is_call(node, aten.rsub.Scalar) and node.args[1] == 1 and node.kwargs.get("alpha", 1) == 1:  # type: ignore[attr-defined]
        return node.args[0]  # type: ignore[attr-defined]
    if _is_call(node, aten.sub.Tensor):
        one = program.constant(node.args[0])  # type: ignore[attr-defined]
        if one is not None and bool((one == 1).all()):
            return node.args[1]  # type: ignore[attr-defined]
    return None


def _through(node: object, target: object) -> bool:
    """Whether a value is the operator's result, or a piece of it."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target is target:
            return True
        name = getattr(getattr(node.target, "_schema", None), "name", getattr(node.target, "__name__", ""))
        if name.removeprefix("aten::") not in ("getitem", "split", "split_with_sizes", "slice", "select", "reshape", "unbind",
                                               "permute", "squeeze", "unsqueeze"):  # fmt: skip
            return False
        node = node.args[0]
    return False

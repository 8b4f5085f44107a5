"""Ranges that hold by the form of a recurrence."""

from __future__ import annotations

import dataclasses

from torch import fx

from vqc.frontend.emit import aten
from vqc.program import Program, State


def convex_update_range(program: Program, state: State) -> State:
    """The state with known range (-1, 1) when every step makes it a mean of itself and of values of tanh.

    Seen forms, with z a sigmoid and n a tanh, in any order of factors and summands, for one step or several in a row:
    (1 - z) h + z n,  z h + (1 - z) n,  n + z (h - n),  h + z (n - h),  lerp(h, n, z). The state stays in [-1, 1] when
    it starts there.
    """
    if state.known_range is not None or state.reset.is_complex():
        return state
    if state.reset.numel() and not bool((state.reset.abs() <= 1).all()):
        return state
    if _Bounded(program, state).holds(program.result_nodes[state.output]):
        return dataclasses.replace(state, known_range=(-1.0, 1.0))
    return state


class _Bounded:
    """Which values are means of the old state and of values of tanh: found in the graph's order."""

    def __init__(self, program: Program, state: State):
        self.program, self.state = program, state
        self.means: set[fx.Node] = set()
        for node in program.calls:
            if self._is_update(node):
                self.means.add(node)

    def holds(self, node: object) -> bool:
        node = _source(node)
        if isinstance(node, fx.Node) and node.op == "placeholder":
            return node.name == self.state.input
        return node in self.means

    def _is_update(self, node: fx.Node) -> bool:
        if _is_call(node, aten.lerp.Tensor):
            h, n, z = node.args
            return self._mean(h, n, z)
        if not _is_call(node, aten.add.Tensor) or node.kwargs.get("alpha", 1) != 1:
            return False
        left, right = node.args[:2]
        return any(self._sum(a, b) for a, b in ((left, right), (right, left)))

    def _mean(self, h: object, n: object, z: object) -> bool:
        """Whether z mixes the state and a tanh."""
        ends = (self.holds(h) and _through(n, aten.tanh.default)) or (self.holds(n) and _through(h, aten.tanh.default))
        return ends and _through(z, aten.sigmoid.default)

    def _sum(self, a: object, b: object) -> bool:
        second = _factors(b)
        if second is None:
            return False
        for difference, z in (second, second[::-1]):  # a + (other - a) z
            if _is_call(difference, aten.sub.Tensor):
                other, same = difference.args[:2]  # type: ignore[attr-defined]
                if same is a and self._mean(other, a, z):
                    return True
        first = _factors(a)
        if first is None:
            return False
        for complement, one in (first, first[::-1]):  # (1 - z) one + z other
            for z, other in (second, second[::-1]):
                if _one_minus(self.program, complement) is z and isinstance(z, fx.Node) and self._mean(one, other, z):
                    return True
        return False


def _is_call(node: object, target: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def _factors(node: object) -> tuple[object, object] | None:
    return (node.args[0], node.args[1]) if _is_call(node, aten.mul.Tensor) else None  # type: ignore[attr-defined]


def _one_minus(program: Program, node: object) -> object:
    if _is_call(node, aten.rsub.Scalar) and node.args[1] == 1 and node.kwargs.get("alpha", 1) == 1:  # type: ignore[attr-defined]
        return node.args[0]  # type: ignore[attr-defined]
    if _is_call(node, aten.sub.Tensor):
        one = program.constant(node.args[0])  # type: ignore[attr-defined]
        if one is not None and bool((one == 1).all()):
            return node.args[1]  # type: ignore[attr-defined]
    return None


_VIEWS = {"getitem", "split", "split_with_sizes", "slice", "select", "reshape", "unbind", "permute", "squeeze",
          "unsqueeze", "expand"}  # fmt: skip


def _source(node: object) -> object:
    """What a value is a piece or another shape of."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        name = getattr(getattr(node.target, "_schema", None), "name", getattr(node.target, "__name__", ""))
        if name.removeprefix("aten::") not in _VIEWS:
            return node
        node = node.args[0]
    return node


def _through(node: object, target: object) -> bool:
    """Whether a value is the operator's result, or a piece of it."""
    return _is_call(_source(node), target)

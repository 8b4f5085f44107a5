"""Activations that a decomposition has taken apart, put together again."""

from __future__ import annotations

from typing import Any

from torch import fx

from vqc.frontend.emit import aten
from vqc.frontend.recompose import Rewriter, rule, shape


def is_call(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def _plus_three_to_six(node: Any) -> fx.Node | None:
    """x of min(max(x + 3, 0), 6)."""
    low = high = None
    while is_call(node, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default):
        bounds = list(node.args[1:])
        if node.target is aten.clamp_max.default:
            bounds = [None, bounds[0]]
        lower, upper = (bounds + [None, None])[:2]
        low, high = (lower if lower is not None else low), (upper if upper is not None else high)
        node = node.args[0]
    if low == 0 and high == 6 and is_call(node, aten.add.Tensor) and node.args[1] == 3 and not node.kwargs:
        source = node.args[0]
        return source if isinstance(source, fx.Node) else None
    return None


@rule(aten.div.Tensor)
def hard_sigmoid(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """min(max(x + 3, 0), 6) / 6 and x times it."""
    top, six = node.args[:2]
    if six != 6 or node.kwargs:
        return None
    x = _plus_three_to_six(top)
    if x is not None:
        return r.call(aten.hardsigmoid.default, (x,), val=node.meta["val"])
    if is_call(top, aten.mul.Tensor):
        for one, other in (top.args, top.args[::-1]):
            x = _plus_three_to_six(other)
            if x is not None and x is one:
                return r.call(aten.hardswish.default, (x,), val=node.meta["val"])
    return None


@rule(aten.sub.Tensor, aten.add.Tensor, aten.mul.Tensor)
def number_first(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """A number, or a constant of no dimension made of one, as the first operand."""
    number, x = node.args[:2]
    if is_call(number, aten.full.default) and number.meta["val"].ndim == 0:
        number = number.args[1]
    if not isinstance(number, (int, float)) or not isinstance(x, fx.Node) or node.kwargs:
        return None
    if shape(x) != shape(node) or x.meta["val"].dtype != node.meta["val"].dtype:
        return None
    if node.target is aten.sub.Tensor:
        return r.call(aten.rsub.Scalar, (x, number), val=node.meta["val"])
    return r.call(node.target, (x, number), val=node.meta["val"])


@rule(aten.split_with_sizes.default)
def even_split(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """Pieces of one size (the last may be smaller) are a split by that size."""
    x, sizes = node.args[0], list(node.args[1])
    if len(set(sizes[:-1] or sizes)) != 1 or not 0 < sizes[-1] <= sizes[0]:
        return None
    return r.call(aten.split.Tensor, (x, sizes[0], *node.args[2:]), val=node.meta["val"])


@rule(aten.where.self)
def prelu(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """x where x > 0, w x elsewhere, with one w for each channel."""
    positive, x, scaled = node.args
    if not is_call(positive, aten.gt.Scalar) or positive.args != (x, 0) or not is_call(scaled, aten.mul.Tensor):
        return None
    assert isinstance(x, fx.Node)
    for weight, other in (scaled.args[:2], scaled.args[1::-1]):
        if other is not x or weight not in r.constant:
            continue
        count = weight.meta["val"].numel()
        per_channel = len(shape(x)) >= 2 and shape(weight)[::-1][len(shape(x)) - 2 :][:1] == (count,)
        if (count == 1 or per_channel) and count in (1, shape(x)[1] if len(shape(x)) > 1 else 1):
            flat = r.call(aten.reshape.default, (weight, [count]))
            return r.call(aten.prelu.default, (x, flat), val=node.meta["val"])
    return None

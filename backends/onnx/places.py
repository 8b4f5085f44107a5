"""Rules of operators that choose places: rolls, written parts, largest values, indices, windows laid out."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import fx

from vqc.backends.onnx.graph import Graph, Results, axis_of, need, pair, rule
from vqc.program import dtype_of, shape_of


@rule("aten::roll")
def _roll(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    value, shape, shifts, dims = g.value(x), shape_of(x), bound["shifts"], bound["dims"]
    if not dims:  # over all values, row by row
        flat = g.emit("Reshape", value, g.constant([-1], "shape"))
        order = np.roll(np.arange(math.prod(shape)), shifts[0])
        return g.emit("Reshape", g.emit("Gather", flat, g.constant(order, "order"), axis=0),
                      g.constant(list(shape), "shape"))  # fmt: skip
    for shift, dim in zip(shifts, dims, strict=True):
        axis = axis_of(x, dim)
        value = g.emit("Gather", value, g.constant(np.roll(np.arange(shape[axis]), shift), "order"), axis=axis)
    return value if value != g.value(x) else g.emit("Identity", value)


def _written(g: Graph, node: fx.Node, part: str, axis: int, places: list[int]) -> Results:
    """The first argument with `part` at these places of an axis: both side by side, each place from one of them."""
    x = node.args[0]
    order = np.arange(shape_of(x)[axis])
    order[places] = len(order) + np.arange(len(places))
    both = g.emit("Concat", g.value(x), part, axis=axis)
    return g.emit("Gather", both, g.constant(order, "order"), axis=axis)


@rule("aten::select_scatter")
def _select_scatter(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    axis = axis_of(x, bound["dim"])
    part = g.emit("Unsqueeze", g.value(bound["src"], dtype_of(node)), g.constant([axis], "axes"))
    return _written(g, node, part, axis, [bound["index"] % shape_of(x)[axis]])


@rule("aten::slice_scatter")
def _slice_scatter(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    axis = axis_of(x, bound["dim"])
    size = shape_of(x)[axis]
    places = list(range(size))[bound["start"] : bound["end"] : bound["step"]]
    shape = [len(places) if d == axis else n for d, n in enumerate(shape_of(x))]
    part = g.emit("Expand", g.value(bound["src"], dtype_of(node)), g.constant(shape, "shape"))
    return _written(g, node, part, axis, places)


@rule("aten::argmax", "aten::argmin")
def _arg(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    op = "ArgMax" if node.target.name() == "aten::argmax" else "ArgMin"
    need(dtype_of(x) != torch.bool, "the place of the largest boolean")
    if bound["dim"] is not None:
        return g.emit(op, g.value(x), axis=axis_of(x, bound["dim"]), keepdims=int(bound["keepdim"]))
    flat = g.emit("Reshape", g.value(x), g.constant([-1], "shape"))
    found = g.emit(op, flat, axis=0, keepdims=0)
    return g.emit("Reshape", found, g.constant(list(shape_of(node)), "shape"))


@rule("aten::max.dim", "aten::min.dim")
def _extreme(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    kind = "Max" if node.target.name() == "aten::max.dim" else "Min"
    need(dtype_of(x) != torch.bool, "the place of the largest boolean")
    axis, keep = axis_of(x, bound["dim"]), int(bound["keepdim"])
    value = g.value(x)
    return [g.emit(f"Reduce{kind}", value, g.constant([axis], "axes"), keepdims=keep),
            g.emit(f"Arg{kind}", value, axis=axis, keepdims=keep)]  # fmt: skip


@rule("aten::topk")
def _topk(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    return g.emit_many("TopK", [g.value(x), g.constant([bound["k"]], "k")], [None, None], axis=axis_of(x, bound["dim"]),
                       largest=int(bound["largest"]), sorted=int(bound["sorted"]))  # fmt: skip


@rule("aten::index_select", "aten::embedding")
def _index_select(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    if node.target.name() == "aten::embedding":
        return g.emit("Gather", g.value(bound["weight"]), g.value(bound["indices"]), axis=0)
    return g.emit("Gather", g.value(bound["self"]), g.value(bound["index"]), axis=axis_of(node, bound["dim"]))


@rule("aten::index.Tensor")
def _index(g: Graph, node: fx.Node) -> Results:
    x, indices = node.args[0], list(g.bound(node)["indices"])
    given = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    need(len(given) == 1, "an index in several dimensions")
    ((axis, index),) = given
    need(dtype_of(index) != torch.bool, "an index of booleans")
    return g.emit("Gather", g.value(x), g.value(index, torch.int64), axis=axis)


@rule("aten::gather")
def _gather(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    axis = axis_of(x, bound["dim"])
    other = zip(shape_of(x), shape_of(bound["index"]), strict=True)
    need(all(a == b for d, (a, b) in enumerate(other) if d != axis), "an index smaller than its tensor")
    return g.emit("GatherElements", g.value(x), g.value(bound["index"]), axis=axis)


@rule("aten::im2col")
def _im2col(g: Graph, node: fx.Node) -> Results:
    """One slice of the padded picture for every tap, laid side by side behind the channels."""
    bound, x = g.bound(node), node.args[0]
    need(len(shape_of(x)) == 4, "a rank other than 4")
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = (
        pair(bound[k], 1) for k in ("kernel_size", "dilation", "padding", "stride")
    )
    h, w = shape_of(x)[2] + 2 * ph, shape_of(x)[3] + 2 * pw
    oh, ow = (h - dh * (kh - 1) - 1) // sh + 1, (w - dw * (kw - 1) - 1) // sw + 1
    padded = g.emit("Pad", g.value(x), g.constant([0, 0, ph, pw, 0, 0, ph, pw], "pads"), mode="constant")
    taps = []
    for i in range(kh):
        for j in range(kw):
            starts, ends = [i * dh, j * dw], [i * dh + (oh - 1) * sh + 1, j * dw + (ow - 1) * sw + 1]
            tap = g.emit("Slice", padded, *(g.constant(v, "place") for v in (starts, ends, [2, 3], [sh, sw])))
            taps.append(g.emit("Unsqueeze", tap, g.constant([2], "axes")))
    return g.emit("Reshape", g.emit("Concat", *taps, axis=2), g.constant(list(shape_of(node)), "shape"))


@rule("aten::unfold")
def _unfold(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    axis, rank = axis_of(x, bound["dimension"]), len(shape_of(x))
    starts = np.arange(shape_of(node)[axis]) * bound["step"]
    windows = g.emit("Gather", g.value(x), g.constant(starts[:, None] + np.arange(bound["size"]), "places"), axis=axis)
    return g.emit("Transpose", windows, perm=[d for d in range(rank + 1) if d != axis + 1] + [axis + 1])


@rule("aten::channel_shuffle")
def _channel_shuffle(g: Graph, node: fx.Node) -> Results:
    bound, (n, c, *size) = g.bound(node), shape_of(node.args[0])
    groups = bound["groups"]
    apart = g.emit("Reshape", g.value(node.args[0]), g.constant([n, groups, c // groups, *size], "shape"))
    turned = g.emit("Transpose", apart, perm=[0, 2, 1, *range(3, 3 + len(size))])
    return g.emit("Reshape", turned, g.constant([n, c, *size], "shape"))


@rule("aten::repeat_interleave.self_int")
def _repeat_interleave(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    need(bound["dim"] is not None, "a repetition over all values")
    axis = axis_of(x, bound["dim"])
    order = np.repeat(np.arange(shape_of(x)[axis]), bound["repeats"])
    return g.emit("Gather", g.value(x), g.constant(order, "order"), axis=axis)

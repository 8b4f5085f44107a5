"""Rules of operators that only move values: copies, casts, views, parts, pads, shuffles."""

from __future__ import annotations

import numpy as np
from torch import fx

from vqc.backends.onnx.graph import ELEMENT, Graph, Results, axis_of, need, rule
from vqc.program import dtype_of, shape_of


@rule("aten::clone", "aten::contiguous", "aten::detach", "aten::alias", "aten::lift_fresh_copy", "aten::positive")
def _same(g: Graph, node: fx.Node) -> Results:
    return g.emit("Identity", g.value(node.args[0]))


@rule("aten::_to_copy", "aten::to.dtype", "aten::to.dtype_layout")
def _cast(g: Graph, node: fx.Node) -> Results:
    return g.emit("Cast", g.value(node.args[0]), to=ELEMENT[dtype_of(node)])


@rule("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::unsqueeze", "aten::squeeze", "aten::squeeze.dim",
      "aten::squeeze.dims", "aten::flatten.using_ints", "aten::unflatten.int", "aten::_reshape_copy")  # fmt: skip
def _reshape(g: Graph, node: fx.Node) -> Results:
    return g.emit("Reshape", g.value(node.args[0]), g.constant(list(shape_of(node)), "shape"))


@rule("aten::expand", "aten::expand_as")
def _expand(g: Graph, node: fx.Node) -> Results:
    return g.emit("Expand", g.value(node.args[0]), g.constant(list(shape_of(node)), "shape"))


@rule("aten::permute")
def _permute(g: Graph, node: fx.Node) -> Results:
    return g.emit("Transpose", g.value(node.args[0]), perm=[axis_of(node.args[0], d) for d in g.bound(node)["dims"]])


@rule("aten::transpose.int", "aten::t")
def _transpose(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    order = list(range(len(shape_of(x))))
    a, b = (axis_of(x, bound[k]) for k in ("dim0", "dim1")) if "dim0" in bound else (0, len(order) - 1)
    order[a], order[b] = order[b], order[a]
    return g.emit("Transpose", g.value(x), perm=order)


@rule("aten::cat", "aten::concat", "aten::stack")
def _cat(g: Graph, node: fx.Node) -> Results:
    bound, dtype = g.bound(node), dtype_of(node)
    axis = axis_of(node, bound["dim"])
    parts = [x for x in bound["tensors"] if shape_of(x) != (0,)]
    values = [g.value(x, dtype) for x in parts]
    if node.target.name() == "aten::stack":
        values = [g.emit("Unsqueeze", v, g.constant([axis], "axes")) for v in values]
    return g.emit("Concat", *values, axis=axis)


@rule("aten::slice.Tensor")
def _slice(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    axis = axis_of(x, bound["dim"])
    size = shape_of(x)[axis]
    start, stop, step = slice(bound["start"], bound["end"], bound["step"]).indices(size)
    return g.emit("Slice", g.value(x), *(g.constant([v], "place") for v in (start, stop, axis, step)))


@rule("aten::select.int")
def _select(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    axis = axis_of(x, bound["dim"])
    index = bound["index"] % shape_of(x)[axis]
    return g.emit("Gather", g.value(x), g.constant(np.array(index, np.int64), "place"), axis=axis)


@rule("aten::split.Tensor", "aten::split_with_sizes", "aten::chunk", "aten::unbind.int")
def _split(g: Graph, node: fx.Node) -> Results:
    x, parts = node.args[0], node.meta["val"]
    axis = axis_of(x, g.bound(node)["dim"])
    drops = node.target.name() == "aten::unbind.int"
    sizes = [1 if drops else p.shape[axis] for p in parts]
    found = g.emit_many("Split", [g.value(x), g.constant(sizes, "sizes")], [None] * len(sizes), axis=axis)
    return [g.emit("Squeeze", v, g.constant([axis], "axes")) for v in found] if drops else found


@rule("getitem")
def _getitem(g: Graph, node: fx.Node) -> Results:
    found = g.values[node.args[0]]
    need(not isinstance(found, str), "an index into a tensor")
    return g.emit("Identity", found[node.args[1]])


@rule("aten::flip")
def _flip(g: Graph, node: fx.Node) -> Results:
    x, dims = node.args[0], [axis_of(node, d) for d in g.bound(node)["dims"]]
    ends = [-(shape_of(x)[d] + 1) for d in dims]
    return g.emit(
        "Slice", g.value(x), *(g.constant(v, "place") for v in ([-1] * len(dims), ends, dims, [-1] * len(dims)))
    )


@rule("aten::repeat")
def _repeat(g: Graph, node: fx.Node) -> Results:
    x, times = node.args[0], list(g.bound(node)["repeats"])
    shape = [1] * (len(times) - len(shape_of(x))) + list(shape_of(x))
    return g.emit("Tile", g.emit("Reshape", g.value(x), g.constant(shape, "shape")), g.constant(times, "times"))


@rule("aten::constant_pad_nd", "aten::reflection_pad2d", "aten::replication_pad2d", "aten::reflection_pad1d",
      "aten::replication_pad1d")  # fmt: skip
def _pad(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    name = node.target.name()
    mode = "constant" if "constant" in name else "reflect" if "reflection" in name else "edge"
    amounts, rank = list(bound.get("pad", bound.get("padding"))), len(shape_of(x))
    before, after = [0] * rank, [0] * rank
    for i in range(len(amounts) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = amounts[2 * i], amounts[2 * i + 1]
    fill = [g.number(bound["value"], dtype_of(node))] if mode == "constant" else []
    return g.emit("Pad", g.value(x), g.constant(before + after, "pads"), *fill, mode=mode)


@rule("aten::pixel_shuffle")
def _pixel_shuffle(g: Graph, node: fx.Node) -> Results:
    need(len(shape_of(node)) == 4, "a rank other than 4")
    return g.emit("DepthToSpace", g.value(node.args[0]), blocksize=g.bound(node)["upscale_factor"], mode="CRD")


@rule("aten::pixel_unshuffle")
def _pixel_unshuffle(g: Graph, node: fx.Node) -> Results:
    """SpaceToDepth orders channels otherwise, so it is written as what it is."""
    (n, c, h, w), r = shape_of(node.args[0]), g.bound(node)["downscale_factor"]
    apart = g.emit("Reshape", g.value(node.args[0]), g.constant([n, c, h // r, r, w // r, r], "shape"))
    return g.emit(
        "Reshape", g.emit("Transpose", apart, perm=[0, 1, 3, 5, 2, 4]), g.constant(list(shape_of(node)), "shape")
    )

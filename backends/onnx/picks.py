"""Rules of operators that order, mark and write by index (sort, any, scatter, index_put); and what goes with them."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from vqc.backends.onnx.graph import ELEMENT, Graph, Results, axis_of, need, rule
from vqc.program import dtype_of, shape_of


@rule("aten::sort", "aten::sort.stable")
def _sort(g: Graph, node: fx.Node) -> Results:
    """TopK of all: among equals it takes the lower place first, as a stable sort does."""
    bound, x = g.bound(node), node.args[0]
    need(dtype_of(x) != torch.bool and bool(shape_of(x)), "sorting booleans, or a single number")
    axis = axis_of(x, bound["dim"])
    return g.emit_many("TopK", [g.value(x), g.constant([shape_of(x)[axis]], "k")], [None, None], axis=axis,
                       largest=int(bound["descending"]), sorted=1)  # fmt: skip


@rule("aten::any", "aten::any.dim", "aten::any.dims", "aten::all", "aten::all.dim", "aten::all.dims")
def _any(g: Graph, node: fx.Node) -> Results:
    """The largest, or the smallest, of zeros and ones."""
    bound, x = g.bound(node), node.args[0]
    dims = bound.get("dim")
    dims = range(len(shape_of(x))) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = [axis_of(x, d) for d in dims]
    marks = g.emit("Cast", g.value(x, torch.bool), to=ELEMENT[torch.int32])
    op = "ReduceMax" if "any" in node.target.name() else "ReduceMin"
    found = g.emit(op, marks, g.constant(axes, "axes"), keepdims=int(bound.get("keepdim", False)))
    return g.emit("Cast", found, to=ELEMENT[torch.bool])


@rule("aten::scatter.src", "aten::scatter.value")
def _scatter(g: Graph, node: fx.Node) -> Results:
    bound, x, index = g.bound(node), node.args[0], node.args[2]
    shape = list(shape_of(index))
    if "src" in bound:
        need(shape == list(shape_of(bound["src"])), "a source larger than its index")
        written = g.value(bound["src"], dtype_of(node))
    else:
        written = g.emit("Expand", g.number(bound["value"], dtype_of(node)), g.constant(shape, "shape"))
    return g.emit("ScatterElements", g.value(x), g.value(index), written, axis=axis_of(x, bound["dim"]))


@rule("aten::index_put")
def _index_put(g: Graph, node: fx.Node) -> Results:
    """Rows along one dimension, as `memory[:, place] = row`."""
    bound, x = g.bound(node), node.args[0]
    given = [(axis, i) for axis, i in enumerate(bound["indices"]) if i is not None]
    need(len(given) == 1 and not bound["accumulate"], "an index in several dimensions, or one that adds")
    ((axis, index),) = given
    need(dtype_of(index) != torch.bool and len(shape_of(index)) == 1, "an index of booleans or of rank other than 1")
    shape = [shape_of(index)[0] if d == axis else n for d, n in enumerate(shape_of(x))]
    along = g.constant([shape[axis] if d == axis else 1 for d in range(len(shape))], "along")
    size = g.constant(shape, "shape")
    places = g.emit("Expand", g.emit("Reshape", g.value(index, torch.int64), along), size)
    written = g.emit("Expand", g.value(bound["values"], dtype_of(node)), size)
    return g.emit("ScatterElements", g.value(x), places, written, axis=axis)


@rule("aten::index_copy", "aten::index_add")
def _index_copy(g: Graph, node: fx.Node) -> Results:
    """A part for every place of an index: written, or added to what is there."""
    bound, x, source = g.bound(node), node.args[0], node.args[3]
    assert isinstance(source, fx.Node)
    need(bool(shape_of(x)) and len(shape_of(source)) == len(shape_of(x)), "a single number")
    need(bound.get("alpha", 1) == 1, "a factor of what is added")
    axis, shape = axis_of(x, bound["dim"]), list(shape_of(source))
    along = g.constant([n if d == axis else 1 for d, n in enumerate(shape)], "along")
    places = g.emit("Reshape", g.value(bound["index"], torch.int64), along)
    places = g.emit("Expand", places, g.constant(shape, "shape"))
    adds = "add" if node.target.name() == "aten::index_add" else "none"
    return g.emit("ScatterElements", g.value(x), places, g.value(source), axis=axis, reduction=adds)


@rule("aten::cumsum")
def _cumsum(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    need(bool(shape_of(x)), "a single number")
    return g.emit(
        "CumSum", g.value(x, dtype_of(node)), g.constant(np.array(axis_of(x, bound["dim"]), np.int64), "axis")
    )


@rule("aten::remainder.Scalar", "aten::remainder.Tensor")
def _remainder(g: Graph, node: fx.Node) -> Results:
    """Of whole numbers: ONNX's Mod has the sign of the divisor there, as PyTorch's remainder has."""
    bound, dtype = g.bound(node), dtype_of(node)
    need(not dtype.is_floating_point, "a remainder of floats")
    return g.emit("Mod", g.value(bound["self"], dtype), g.value(bound["other"], dtype))


@rule("aten::div.Tensor_mode", "aten::div.Scalar_mode", "aten::floor_divide", "aten::floor_divide.Scalar")
def _rounded_division(g: Graph, node: fx.Node) -> Results:
    """What the remainder leaves, divided: OpenVINO's Div of whole numbers rounds down, where ONNX means to zero."""
    bound, dtype = g.bound(node), dtype_of(node)
    mode = bound.get("rounding_mode", "floor")
    first, other = g.value(bound["self"], dtype), g.value(bound["other"], dtype)
    if mode is None:
        return g.emit("Div", first, other)
    if not dtype.is_floating_point:
        rest = g.emit("Mod", first, other, fmod=int(mode == "trunc"))
        return g.emit("Div", g.emit("Sub", first, rest), other)
    if mode == "trunc":
        found = g.emit("Div", first, other)
        return g.emit("Mul", g.emit("Sign", found), g.emit("Floor", g.emit("Abs", found)))
    rest = g.emit("Mod", first, other, fmod=1)
    whole = g.emit("Round", g.emit("Div", g.emit("Sub", first, rest), other))
    below = g.emit("Less", g.emit("Mul", g.emit("Sign", rest), g.emit("Sign", other)), g.number(0, dtype))
    return g.emit("Sub", whole, g.emit("Cast", below, to=ELEMENT[dtype]))


@rule("aten::addcmul", "aten::addcdiv")
def _addc(g: Graph, node: fx.Node) -> Results:
    bound, dtype = g.bound(node), dtype_of(node)
    first, second = g.value(bound["tensor1"], dtype), g.value(bound["tensor2"], dtype)
    part = g.emit("Mul" if node.target.name() == "aten::addcmul" else "Div", first, second)
    part = part if bound["value"] == 1 else g.emit("Mul", part, g.number(bound["value"], dtype))
    return g.emit("Add", g.value(bound["self"], dtype), part)

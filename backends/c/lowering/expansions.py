"""Operators put together from others: statistics, norms, products with sums, gates, grids, pads, transposed volumes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from vqc.backends.c.expand import Expander, expansion
from vqc.backends.c.ir import numel
from vqc.backends.c.registry import op_name
from vqc.program import dtype_of


def _tensor(node: fx.Node, index: int = 0) -> fx.Node:
    arg = node.args[index]
    assert isinstance(arg, fx.Node)
    return arg


def _dims(e: Expander, x: fx.Node, dims: Any) -> list[int]:
    """Which axes a reduction goes over, counted from 0; all of them when none are named."""
    rank = len(e.shape(x))
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        return list(range(rank))
    return [int(d) % rank for d in (dims if isinstance(dims, (tuple, list)) else [dims])]


def _spread(e: Expander, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """(variance, mean) of var, std and their siblings."""
    x, keep = _tensor(node), bool(e.arg("keepdim"))
    dims = _dims(e, x, e.arg("dim"))
    count = numel([e.shape(x)[d] for d in dims])
    correction = e.arg("correction")
    if correction is None:
        correction = 0 if e.arg("unbiased") is False else 1
    mean = e("mean.dim", x, dims, True)
    gap = e("sub.Tensor", x, mean)
    total = e("sum.dim_IntList", e("mul.Tensor", gap, gap), dims, keep)
    left = count - correction
    variance = e("mul.Scalar", total, 1.0 / left if left > 0 else math.nan if count == 1 else math.inf)
    return variance, mean if keep else e("reshape", mean, list(e.shape(variance)))


_VARS = ("aten::var", "aten::std", "aten::var_mean", "aten::std_mean")


@expansion(*_VARS, *(f"{v}.{kind}" for v in _VARS for kind in ("dim", "correction")))
def expand_spread(e: Expander, node: fx.Node) -> fx.Node | tuple[fx.Node, ...]:
    variance, mean = _spread(e, node)
    name = op_name(node.target)
    first = e("sqrt", variance) if "std" in name else variance
    return (first, mean) if "_mean" in name else first


def _norm(e: Expander, x: fx.Node, order: float, dims: list[int], keep: bool) -> fx.Node:
    if order == 2:
        return e("sqrt", e("sum.dim_IntList", e("mul.Tensor", x, x), dims, keep))
    size = e("abs", x)
    if order == 1:
        return e("sum.dim_IntList", size, dims, keep)
    if math.isinf(order):
        return e("amax" if order > 0 else "amin", size, dims, keep)
    if order == 0:
        return e("sum.dim_IntList", e("_to_copy", e("ne.Scalar", x, 0), dtype=torch.float32), dims, keep)
    total = e("sum.dim_IntList", e("pow.Tensor_Scalar", size, order), dims, keep)
    return e("pow.Tensor_Scalar", total, 1.0 / order)


@expansion("aten::linalg_vector_norm", "aten::norm.ScalarOpt_dim", "aten::norm.Scalar")
def expand_norm(e: Expander, node: fx.Node) -> fx.Node:
    x = _tensor(node)
    order = e.arg("ord") if "linalg" in op_name(node.target) else e.arg("p")
    return _norm(e, x, 2.0 if order is None else float(order), _dims(e, x, e.arg("dim")), bool(e.arg("keepdim")))


@expansion("aten::logsumexp")
def expand_logsumexp(e: Expander, node: fx.Node) -> fx.Node:
    x, keep = _tensor(node), bool(e.arg("keepdim"))
    dims = _dims(e, x, e.arg("dim"))
    top = e("amax", x, dims, True)
    finite = e("nan_to_num", e("where.ScalarOther", e("isfinite", top), top, 0.0), math.nan)
    total = e("sum.dim_IntList", e("exp", e("sub.Tensor", x, finite)), dims, keep)
    back = finite if keep else e("reshape", finite, list(e.shape(total)))
    return e("add.Tensor", e("log", total), back)


@expansion("aten::count_nonzero", "aten::count_nonzero.dim_IntList")
def expand_count(e: Expander, node: fx.Node) -> fx.Node:
    x = _tensor(node)
    return e("sum.dim_IntList", e("ne.Scalar", x, 0), _dims(e, x, e.arg("dim")), False)


@expansion("aten::addmm", "aten::baddbmm", "aten::addbmm", "aten::addmv", "aten::addr")
def expand_product_and_sum(e: Expander, node: fx.Node) -> fx.Node:
    """beta * x + alpha * (a b)."""
    name = op_name(node.target)
    x, a, b = (_tensor(node, i) for i in range(3))
    if name == "aten::addr":
        product = e("mul.Tensor", e("unsqueeze", a, 1), e("unsqueeze", b, 0))
    else:
        product = e({"aten::addmm": "mm", "aten::addmv": "mv"}.get(name, "bmm"), a, b)
    if name == "aten::addbmm":
        product = e("sum.dim_IntList", product, [0])
    product = e.scaled(product, e.arg("alpha"))
    return product if e.arg("beta") == 0 else e("add.Tensor", product, e.scaled(x, e.arg("beta")))


@expansion("aten::glu")
def expand_glu(e: Expander, node: fx.Node) -> fx.Node:
    x = _tensor(node)
    dim = int(e.arg("dim")) % len(e.shape(x))
    half = e.shape(x)[dim] // 2
    first, second = (e("slice.Tensor", x, dim, half * i, half * (i + 1)) for i in (0, 1))
    return e("mul.Tensor", first, e("sigmoid", second))


@expansion("aten::log_sigmoid_forward")
def expand_log_sigmoid(e: Expander, node: fx.Node) -> tuple[fx.Node, ...]:
    """The result, and a buffer only gradients need."""
    x = _tensor(node)
    y = e("neg", e("softplus", e("neg", x)))
    return y, y


@expansion("aten::rrelu_with_noise")
def expand_rrelu(e: Expander, node: fx.Node) -> fx.Node | None:
    if e.arg("training"):
        return None
    return e("leaky_relu", node.args[0], (float(e.arg("lower")) + float(e.arg("upper"))) / 2)


@expansion("aten::tril", "aten::triu")
def expand_triangle(e: Expander, node: fx.Node) -> fx.Node:
    x = _tensor(node)
    mask = torch.ones(e.shape(x)[-2:], dtype=torch.bool)
    kept = mask.tril(int(e.arg("diagonal"))) if "tril" in op_name(node.target) else mask.triu(int(e.arg("diagonal")))
    return e("where.ScalarOther", e.const(kept, "kept"), x, 0)


@expansion("aten::affine_grid_generator")
def expand_affine_grid(e: Expander, node: fx.Node) -> fx.Node:
    """The corners' grid in homogeneous coordinates times the transposed matrices."""
    theta = _tensor(node)
    n, *rest = (int(s) for s in e.arg("size"))
    size, align = rest[1:], bool(e.arg("align_corners"))

    def axis(count: int) -> torch.Tensor:
        if align:
            return torch.linspace(-1, 1, count) if count > 1 else torch.zeros(1)
        return torch.linspace(-1, 1, count) * (count - 1) / count if count > 1 else torch.zeros(1)

    grids = torch.meshgrid(*(axis(s) for s in size), indexing="ij")
    base = torch.stack((*reversed(grids), torch.ones(size)), -1).reshape(-1, len(size) + 1)
    grid = e("matmul", e.const(base, "base"), e("transpose.int", theta, 1, 2))
    return e("reshape", grid, [n, *size, len(size)])


@expansion("aten::roll", when=lambda node: len(node.args) < 3 or not node.args[2])
def expand_roll(e: Expander, node: fx.Node) -> fx.Node:
    """Over all axes at once: over the elements in order."""
    x, shifts = _tensor(node), e.arg("shifts")
    shift = shifts[0] if isinstance(shifts, (tuple, list)) else shifts
    return e("reshape", e("roll", e("reshape", x, [-1]), [int(shift)], [0]), list(e.shape(x)))


@expansion(
    "aten::repeat_interleave.self_int", when=lambda n: (n.args[2] if len(n.args) > 2 else n.kwargs.get("dim")) is None
)
def expand_interleave(e: Expander, node: fx.Node) -> fx.Node:
    return e("repeat_interleave.self_int", e("reshape", node.args[0], [-1]), e.arg("repeats"), 0)


@expansion("aten::reflection_pad3d", "aten::replication_pad3d")
def expand_edge_pad(e: Expander, node: fx.Node) -> fx.Node:
    """Height and width as pictures, then the depth by its own positions."""
    x = _tensor(node)
    pads = [int(p) for p in e.arg("padding")]
    *lead, depth, h, w = e.shape(x)
    reflects = "reflection" in op_name(node.target)
    flat = e("reshape", x, [-1, depth, h, w])
    flat = e("reflection_pad2d" if reflects else "replication_pad2d", flat, pads[:4])
    at = torch.arange(-pads[4], depth + pads[5])
    if reflects:
        at = at.abs()
        at = torch.where(at >= depth, 2 * (depth - 1) - at, at)
    flat = e("index_select", flat, 1, e.const(at.clamp(0, depth - 1), "depths"))
    return e("reshape", flat, [*lead, *e.shape(flat)[1:]])


_CONVS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input")


def _unbatched(node: fx.Node) -> bool:
    axes = int(op_name(node.target).split(".")[0][-2])
    return len(node.args[0].meta["val"].shape) == axes + 1


@expansion(*(f"aten::{c}" for c in _CONVS), when=_unbatched)
def expand_unbatched(e: Expander, node: fx.Node) -> fx.Node:
    name = op_name(node.target).split("::")[1]
    made = e(name, e("unsqueeze", node.args[0], 0), *node.args[1:], **node.kwargs)
    return e("squeeze.dim", made, 0)


@expansion("aten::conv_transpose3d.input")
def expand_transposed_volume(e: Expander, node: fx.Node) -> fx.Node:
    """A convolution with turned weights over the input with zeros between its values."""
    x, weight = _tensor(node), _tensor(node, 1)
    if len(e.shape(x)) == 4:
        return e("squeeze.dim", e("conv_transpose3d.input", e("unsqueeze", x, 0), *node.args[1:], **node.kwargs), 0)
    stride, padding, more, dilation = (
        [int(v) for v in (values * 3 if len(values) == 1 else values)]
        for values in (list(e.arg(k)) for k in ("stride", "padding", "output_padding", "dilation"))
    )
    groups = int(e.arg("groups"))
    n, c, *size = e.shape(x)
    if any(s > 1 for s in stride):
        spread = [v for s in size for v in (s, 1)]
        gaps = [v for s in reversed(stride) for v in (0, s - 1, 0, 0)]
        x = e("constant_pad_nd", e("reshape", x, [n, c, *spread]), gaps)
        x = e("reshape", x, [n, c, *(s * t for s, t in zip(size, stride, strict=True))])
    kernel = e.shape(weight)[2:]
    pads: list[int] = []
    for i in (2, 1, 0):
        reach = dilation[i] * (kernel[i] - 1) - padding[i]
        pads += [reach, reach + more[i] - (stride[i] - 1)]
    x = e("constant_pad_nd", x, pads)
    each = e.shape(weight)[1]
    turned = e("flip", weight, [2, 3, 4])
    turned = e("transpose.int", e("reshape", turned, [groups, c // groups, each, *kernel]), 1, 2)
    turned = e("reshape", turned, [groups * each, c // groups, *kernel])
    return e("conv3d", x, turned, e.arg("bias"), [1, 1, 1], [0, 0, 0], dilation, groups)


@expansion("aten::_cdist_forward", "aten::_euclidean_dist")
def expand_distances(e: Expander, node: fx.Node) -> fx.Node:
    """Between all rows of both."""
    gap = e("sub.Tensor", e("unsqueeze", node.args[0], -2), e("unsqueeze", node.args[1], -3))
    order = 2.0 if "euclidean" in op_name(node.target) else float(e.arg("p"))
    return _norm(e, gap, order, [len(e.shape(gap)) - 1], False)


@expansion("aten::copy")
def expand_copy(e: Expander, node: fx.Node) -> fx.Node:
    x, source = _tensor(node), _tensor(node, 1)
    source = e.cast(source, dtype_of(x))
    return source if e.shape(source) == e.shape(x) else e("expand", source, list(e.shape(x)))


@expansion("aten::fill.Scalar", "aten::fill.Tensor")
def expand_fill(e: Expander, node: fx.Node) -> fx.Node:
    x, value = _tensor(node), node.args[1]
    if isinstance(value, fx.Node):
        return e("expand", e.cast(value, dtype_of(x)), list(e.shape(x)))
    return e("full_like", x, value)


@expansion("aten::native_layer_norm")
def expand_native_layer_norm(e: Expander, node: fx.Node) -> tuple[Any, ...] | None:
    if any(u.args[1] != 0 for u in node.users):
        return None
    return e("layer_norm", *node.args[:4], e.arg("eps"), False), None, None


@expansion("aten::native_group_norm")
def expand_native_group_norm(e: Expander, node: fx.Node) -> tuple[Any, ...] | None:
    if any(u.args[1] != 0 for u in node.users):
        return None
    made = e("group_norm", _tensor(node), e.arg("group"), e.arg("weight"), e.arg("bias"), e.arg("eps"), False)
    return made, None, None


@expansion("aten::_native_batch_norm_legit_no_training")
def expand_native_batch_norm(e: Expander, node: fx.Node) -> tuple[Any, ...] | None:
    if any(u.args[1] != 0 for u in node.users):
        return None
    x, weight, bias, mean, var = node.args[:5]
    return e("batch_norm", x, weight, bias, mean, var, False, 0.0, e.arg("eps"), False), None, None

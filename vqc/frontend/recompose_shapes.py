"""Canonical forms of operators that move, copy, resize or pool elements (rules of `vqc.frontend.recompose`)."""

from __future__ import annotations

from typing import Any

from torch import fx

from vqc.frontend.emit import aten
from vqc.frontend.recompose import Rewriter, arguments, rule, shape


@rule(aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten._reshape_copy.default)
def reshape(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x: Any = node.args[0]
    out = shape(node)
    while x.op == "call_function" and x.target is aten.reshape.default:
        x = x.args[0]
    if shape(x) == out:
        return x
    lin = x
    if lin.op == "call_function" and lin.target is aten.linear.default and len(lin.users) == 1:
        inner = lin.args[0]
        if isinstance(inner, fx.Node) and inner.target is aten.reshape.default:
            y = inner.args[0]
            if isinstance(y, fx.Node) and shape(y)[:-1] == out[:-1] and shape(y)[-1] == shape(inner)[-1]:
                return r.call(aten.linear.default, (y, *lin.args[1:]), val=node.meta["val"])
    return r.call(aten.reshape.default, (x, list(out)), val=node.meta["val"])


@rule(aten.permute.default)
def permute(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, dims = node.args[0], list(node.args[1])
    assert isinstance(x, fx.Node)
    if x.op == "call_function" and x.target is aten.permute.default:
        inner = list(x.args[1])
        x, dims = x.args[0], [inner[d] for d in dims]
    if dims == sorted(dims):
        return x  # type: ignore[return-value]
    return r.call(aten.permute.default, (x, dims), val=node.meta["val"])


@rule(aten.slice.Tensor, aten.expand.default, aten.repeat.default, aten.cat.default)
def nothing_done(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """A slice of everything, an expand to the same size, a concatenation of one."""
    x = node.args[0]
    if isinstance(x, (list, tuple)):
        if len(x) != 1:
            kept = [p for p in x if shape(p) != (0,)]  # cat ignores tensors of shape [0]
            if len(kept) == len(x) or not kept:
                return None
            return r.call(node.target, (kept, *node.args[1:]), dict(node.kwargs), val=node.meta["val"])
        x = x[0]
    same = isinstance(x, fx.Node) and shape(x) == shape(node) and x.meta["val"].dtype == node.meta["val"].dtype
    return x if same else None  # type: ignore[return-value]


@rule(aten._to_copy.default, aten.clone.default)
def to_copy(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    dtype = node.meta["val"].dtype
    if x.meta["val"].dtype == dtype:
        return x
    if dict(node.kwargs) == {"dtype": dtype}:
        return None
    return r.call(aten._to_copy.default, (x,), {"dtype": dtype}, val=node.meta["val"])


@rule(aten._softmax.default, aten._log_softmax.default)
def softmax(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, dim = node.args[0], node.args[1]
    target = aten.softmax.int if node.target is aten._softmax.default else aten.log_softmax.int
    return r.call(target, (x, dim), val=node.meta["val"])


@rule(aten.hardtanh.default)
def hardtanh(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = arguments(node)
    return r.call(aten.clamp.default, (a["self"], a["min_val"], a["max_val"]), val=node.meta["val"])


@rule(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
      aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)  # fmt: skip
def adaptive_pool(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, size = node.args[0], list(node.args[1])
    rank = len(shape(x))
    if all(s == 1 for s in size):
        return r.call(aten.mean.dim, (x, list(range(rank - len(size), rank)), True), val=node.meta["val"])
    whole = {aten._adaptive_avg_pool2d.default: aten.adaptive_avg_pool2d.default,
             aten._adaptive_avg_pool3d.default: aten.adaptive_avg_pool3d.default}  # fmt: skip
    target = whole.get(node.target)
    return None if target is None else r.call(target, (x, size), val=node.meta["val"])


@rule(aten.instance_norm.default)
def instance_norm(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = arguments(node)
    if a["use_input_stats"]:
        return None
    args = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"], False, a["momentum"], a["eps"])
    return r.call(aten.batch_norm.default, (*args, a["cudnn_enabled"]), val=node.meta["val"])


_RESIZES = ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
            "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa")  # fmt: skip


@rule(*(getattr(aten, n).vec for n in _RESIZES))
def resize(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = arguments(node)
    size = list(shape(node)[2:])
    scales = list(a["scale_factors"]) if a["scale_factors"] is not None else [None] * len(size)
    corners = (a["align_corners"],) if "align_corners" in a else ()
    target = getattr(aten, node.target._schema.name.split("::")[1]).default
    return r.call(target, (a["input"], size, *corners, *scales), val=node.meta["val"])


@rule(aten.channel_shuffle.default)
def channel_shuffle(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, groups = node.args
    assert isinstance(groups, int)
    n, c, *rest = shape(x)
    split = r.call(aten.reshape.default, (x, [n, groups, c // groups, *rest]))
    moved = r.call(aten.permute.default, (split, [0, 2, 1, *range(3, len(rest) + 3)]))
    return r.call(aten.reshape.default, (moved, list(shape(node))), val=node.meta["val"])


@rule(aten._unsafe_index.Tensor)
def unsafe_index(r: Rewriter, node: fx.Node) -> fx.Node | None:
    return r.call(aten.index.Tensor, tuple(node.args), val=node.meta["val"])


@rule(aten._prelu_kernel.default)
def prelu_kernel(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, weight = node.args
    assert isinstance(weight, fx.Node)
    count = weight.meta["val"].numel()
    if count != 1 and (len(shape(x)) < 2 or shape(weight)[1:2] != (count,)):
        return None
    return r.call(aten.prelu.default, (x, r.call(aten.reshape.default, (weight, [count]))), val=node.meta["val"])


@rule(aten.copy.default)
def copy(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, source = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(source, fx.Node)
    if source.meta["val"].dtype != x.meta["val"].dtype:
        source = r.call(aten._to_copy.default, (source,), {"dtype": x.meta["val"].dtype})
    return source if shape(source) == shape(x) else r.call(aten.expand.default, (source, list(shape(x))))


_WITH_NUMBER = {aten.add.Scalar: aten.add.Tensor, aten.sub.Scalar: aten.sub.Tensor, aten.mul.Scalar: aten.mul.Tensor,
                aten.div.Scalar: aten.div.Tensor}  # fmt: skip


@rule(*_WITH_NUMBER)
def with_number(r: Rewriter, node: fx.Node) -> fx.Node | None:
    extra = {"alpha": node.args[2]} if len(node.args) > 2 else dict(node.kwargs)
    return r.call(_WITH_NUMBER[node.target], tuple(node.args[:2]), extra, val=node.meta["val"])

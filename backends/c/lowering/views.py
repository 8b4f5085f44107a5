"""Views: no code, only another shape, strides and offset; a copy first where the strides do not allow it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from vqc.backends.c.ir import Value
from vqc.backends.c.lower import Lowering
from vqc.backends.c.registry import anything, lowering

VIEWS = (
    "aten::view",
    "aten::reshape",
    "aten::_unsafe_view",
    "aten::flatten.using_ints",
    "aten::unflatten.int",
    "aten::permute",
    "aten::transpose.int",
    "aten::t",
    "aten::movedim.int",
    "aten::movedim.intlist",
    "aten::numpy_T",
    "aten::slice.Tensor",
    "aten::select.int",
    "aten::narrow",
    "aten::diagonal",
    "aten::unfold",
    "aten::expand",
    "aten::expand_as",
    "aten::unsqueeze",
    "aten::squeeze",
    "aten::squeeze.dim",
    "aten::squeeze.dims",
    "aten::split.Tensor",
    "aten::split_with_sizes",
    "aten::split.sizes",
    "aten::chunk",
    "aten::unbind.int",
    "aten::alias",
    "aten::detach",
    "aten::contiguous",
    "aten::clone",
    "aten::lift_fresh_copy",
    "aten::_unsafe_split.Tensor",
    "aten::unsafe_chunk",
    "aten::unsafe_split.Tensor",
    "aten::dropout",
    "aten::alias_copy",
    "aten::view_as",
)


def _as_meta(v: Value) -> torch.Tensor:
    base = torch.empty(v.buffer.size // v.item, dtype=v.dtype, device="meta")
    return base.as_strided(v.shape, v.strides, v.offset)


def _as_value(v: Value, view: torch.Tensor) -> Value:
    return Value(v.buffer, v.dtype, tuple(view.shape), tuple(view.stride()), int(view.storage_offset()))


def _shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def view_of(ctx: Lowering, node: fx.Node, v: Value) -> Any:
    """The node's result as a view of `v` (a tuple of them for split), or None when it cannot be one.

    PyTorch itself decides, on storage-free tensors with the value's own strides.
    """
    meta = _as_meta(v)
    args = tuple(meta if a is node.args[0] else _like(a) for a in node.args)
    try:
        out = node.target(*args, **node.kwargs)
    except RuntimeError:  # `view` refuses strides it cannot express
        return None
    if isinstance(out, torch.Tensor):
        return _as_value(v, out) if _shares(out, meta) else None
    return tuple(_as_value(v, o) for o in out) if all(_shares(o, meta) for o in out) else None


def _like(arg: Any) -> Any:
    return torch.empty_like(arg.meta["val"]) if isinstance(arg, fx.Node) else arg


@lowering(*VIEWS, check=anything)
def lower_view(ctx: Lowering, node: fx.Node) -> None:
    source = node.args[0]
    if node.target in (torch.ops.aten.contiguous.default, torch.ops.aten.clone.default, torch.ops.aten.dropout.default,
                       torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.alias_copy.default):  # fmt: skip
        ctx.bind(node, ctx.dense(source))
        return
    result = view_of(ctx, node, ctx.value(source))
    if result is None:
        result = view_of(ctx, node, ctx.dense(source))
    assert result is not None, f"{node.name}: a dense tensor has every view"
    ctx.bind(node, result)


@lowering("getitem", check=anything)
def lower_getitem(ctx: Lowering, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    ctx.bind(node, ctx.env[source][node.args[1]])

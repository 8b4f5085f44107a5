"""Copies: concatenation, padding, repetition, shuffles, flips, rolls and nearest neighbours; any element type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from vqc.backends.c.ir import Struct, Value, dense_strides, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering import parts_c4, signs
from vqc.backends.c.registry import anything, lowering
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of


def part(v: Value, dim: int, start: int, length: int, step: int = 1) -> Value:
    """Every `step`-th of a stretch along an axis."""
    shape = list(v.shape)
    shape[dim] = length
    strides = list(v.strides)
    strides[dim] *= step
    return Value(v.buffer, v.dtype, tuple(shape), tuple(strides), v.offset + start * v.strides[dim])


def regroup(v: Value, shape: Sequence[int], order: Sequence[int]) -> Value:
    """A dense value seen as `shape`, its axes permuted."""
    strides = dense_strides(shape)
    return Value(v.buffer, v.dtype, tuple(shape[i] for i in order), tuple(strides[i] for i in order), v.offset)


def _one_dtype(program: Program, node: fx.Node) -> str | None:
    kinds = {dtype_of(n) for n in (*node.all_input_nodes, node)}
    return None if len(kinds) == 1 else f"it mixes {' and '.join(sorted(map(str, kinds)))}: convert first"


@lowering("aten::cat", "aten::concat", check=_one_dtype)
def lower_cat(ctx: Lowering, node: fx.Node) -> None:
    sources = node.args[0]
    assert isinstance(sources, (tuple, list))
    if not parts_c4.lazy_cat(ctx, node) and not signs.lazy_cat(ctx, node):
        concatenate(ctx, node, [ctx.value(s) for s in sources if shape_of(s) != (0,)])  # [0] fits anything


def concatenate(ctx: Lowering, node: fx.Node, values: Sequence[Value]) -> Value:
    """The node's result, put together from values."""
    out = ctx.result(node)
    dim = int(argument(node, "dim", 0)) % len(out.shape)
    at = 0
    for v in values:
        ctx.copy(v, part(out, dim, at, v.shape[dim]))
        at += v.shape[dim]
    return out


@lowering("aten::stack", check=_one_dtype)
def lower_stack(ctx: Lowering, node: fx.Node) -> None:
    sources = node.args[0]
    assert isinstance(sources, (tuple, list))
    values = [ctx.value(s) for s in sources]
    out = ctx.result(node)
    dim = int(argument(node, "dim", 0)) % len(out.shape)
    for i, v in enumerate(values):
        shape, strides = list(v.shape), list(v.strides)
        shape.insert(dim, 1)
        strides.insert(dim, 0)
        ctx.copy(Value(v.buffer, v.dtype, tuple(shape), tuple(strides), v.offset), part(out, dim, i, 1))


def fill(ctx: Lowering, out: Value, number: float) -> None:
    """Set every element of a tensor."""
    kind = out.dtype
    source = ctx.weight(torch.full((1,), number, dtype=kind), "fill")
    ctx.copy(Value(source.buffer, kind, out.shape, (0,) * len(out.shape), 0), out, only=False)


@lowering("aten::constant_pad_nd", check=_one_dtype)
def lower_constant_pad(ctx: Lowering, node: fx.Node) -> None:
    v = ctx.value(node.args[0])
    out = ctx.result(node)
    pads = [int(p) for p in argument(node, "pad")]
    inner = out
    for i in range(len(pads) // 2):
        dim = len(v.shape) - 1 - i
        before, after = pads[2 * i], pads[2 * i + 1]
        if before < 0:
            v = part(v, dim, -before, v.shape[dim] + before)
        if after < 0:
            v = part(v, dim, 0, v.shape[dim] + after)
        inner = part(inner, dim, max(before, 0), v.shape[dim])
    if inner.count != out.count:
        fill(ctx, out, float(argument(node, "value", 0) or 0))
    ctx.copy(v, inner, only=inner.count == out.count)


@lowering("aten::repeat", check=anything)
def lower_repeat(ctx: Lowering, node: fx.Node) -> None:
    v = ctx.value(node.args[0])
    times = [int(t) for t in argument(node, "repeats")]
    out = ctx.result(node)
    lead = len(times) - len(v.shape)
    sizes = (1,) * lead + v.shape
    steps = (0,) * lead + v.strides
    shape = [s for pair in zip(times, sizes, strict=True) for s in pair]
    strides = [s for step in steps for s in (0, step)]
    ctx.copy(Value(v.buffer, v.dtype, tuple(shape), tuple(strides), v.offset),
             Value(out.buffer, out.dtype, tuple(shape), dense_strides(shape)))  # fmt: skip


@lowering("aten::repeat_interleave.self_int", check=lambda p, n: None if argument(n, "dim") is not None else "no axis")
def lower_repeat_interleave(ctx: Lowering, node: fx.Node) -> None:
    v = ctx.value(node.args[0])
    out = ctx.result(node)
    dim, times = int(argument(node, "dim")) % len(v.shape), int(argument(node, "repeats"))
    shape = (*v.shape[: dim + 1], times, *v.shape[dim + 1 :])
    strides = (*v.strides[: dim + 1], 0, *v.strides[dim + 1 :])
    ctx.copy(
        Value(v.buffer, v.dtype, shape, strides, v.offset), Value(out.buffer, out.dtype, shape, dense_strides(shape))
    )


@lowering("aten::pixel_shuffle", check=anything)
def lower_pixel_shuffle(ctx: Lowering, node: fx.Node) -> None:
    x = ctx.dense(node.args[0])
    r = int(argument(node, "upscale_factor"))
    *lead, c, h, w = x.shape
    n, o = numel(lead), c // (r * r)
    src = regroup(x, (n, o, r, r, h, w), (0, 1, 4, 2, 5, 3))
    ctx.copy(src, regroup(ctx.result(node), src.shape, range(6)))


@lowering("aten::pixel_unshuffle", check=anything)
def lower_pixel_unshuffle(ctx: Lowering, node: fx.Node) -> None:
    x = ctx.dense(node.args[0])
    r = int(argument(node, "downscale_factor"))
    *lead, c, h, w = x.shape
    src = regroup(x, (numel(lead), c, h // r, r, w // r, r), (0, 1, 3, 5, 2, 4))
    ctx.copy(src, regroup(ctx.result(node), src.shape, range(6)))


@lowering("aten::channel_shuffle", check=anything)
def lower_channel_shuffle(ctx: Lowering, node: fx.Node) -> None:
    x = ctx.dense(node.args[0])
    g = int(argument(node, "groups"))
    src = regroup(x, (x.shape[0], g, x.shape[1] // g, numel(x.shape[2:])), (0, 2, 1, 3))
    ctx.copy(src, regroup(ctx.result(node), src.shape, range(4)))


@lowering("aten::flip", check=anything)
def lower_flip(ctx: Lowering, node: fx.Node) -> None:
    v = ctx.value(node.args[0])
    strides, offset = list(v.strides), v.offset
    for d in argument(node, "dims"):
        dim = int(d) % len(v.shape)
        offset += (v.shape[dim] - 1) * strides[dim]
        strides[dim] = -strides[dim]
    ctx.copy(Value(v.buffer, v.dtype, v.shape, v.strides, offset), ctx.result(node), strides)


@lowering("aten::roll", check=lambda p, n: None if argument(n, "dims") else "it rolls over all axes at once")
def lower_roll(ctx: Lowering, node: fx.Node) -> None:
    v = ctx.value(node.args[0])
    dims, shifts = [int(d) for d in argument(node, "dims")], [int(s) for s in argument(node, "shifts")]
    for i, (d, shift) in enumerate(zip(dims, shifts, strict=True)):
        out = ctx.result(node) if i == len(dims) - 1 else ctx.new(v.shape, v.dtype)
        dim = d % len(v.shape)
        size = v.shape[dim]
        s = shift % size
        if s:
            ctx.copy(part(v, dim, size - s, s), part(out, dim, 0, s))
        ctx.copy(part(v, dim, 0, size - s), part(out, dim, s, size - s))
        v = out


def gather(ctx: Lowering, node: fx.Node, rows: np.ndarray, cols: np.ndarray) -> None:
    """out[..., i, j] = x[..., rows[i], cols[j]]."""
    x = ctx.dense(node.args[0])
    out = ctx.result(node)
    h = x.shape[-2] if len(x.shape) > 1 else 1
    outer = numel(x.shape[:-2])
    if len(rows) == 1 and h == 1:
        outer = numel(x.shape[:-1])
    params = Struct("vqc_gather_params", {"size": x.item, "outer": outer, "h": h if len(rows) > 1 or h > 1 else 1,
                                          "w": x.shape[-1], "oh": len(rows), "ow": len(cols)})  # fmt: skip
    ctx.call(
        "vqc_gather",
        "move",
        params,
        x,
        ctx.weight(rows.astype(np.int32), "rows"),
        ctx.weight(cols.astype(np.int32), "cols"),
        ctx.weight(torch.zeros(1, dtype=x.dtype), "fill"),
        out=[out],
    )


def _reflect(size: int, before: int, after: int) -> np.ndarray:
    i = np.abs(np.arange(-before, size + after))
    return np.where(i >= size, 2 * (size - 1) - i, i)


def _replicate(size: int, before: int, after: int) -> np.ndarray:
    return np.clip(np.arange(-before, size + after), 0, size - 1)


def _lower_edge_pad(ctx: Lowering, node: fx.Node, index: Any) -> None:
    shape = shape_of(node.args[0])
    pads = [int(p) for p in argument(node, "padding")]
    cols = index(shape[-1], pads[0], pads[1])
    if len(pads) == 4:
        rows = index(shape[-2], pads[2], pads[3])
    else:
        rows = np.arange(shape[-2] if len(shape) > 1 else 1)
    gather(ctx, node, rows, cols)


@lowering("aten::reflection_pad1d", "aten::reflection_pad2d", check=anything)
def lower_reflection_pad(ctx: Lowering, node: fx.Node) -> None:
    _lower_edge_pad(ctx, node, _reflect)


@lowering("aten::replication_pad1d", "aten::replication_pad2d", check=anything)
def lower_replication_pad(ctx: Lowering, node: fx.Node) -> None:
    _lower_edge_pad(ctx, node, _replicate)


def nearest_index(in_size: int, out_size: int, scale: float | None) -> np.ndarray:
    """The source index of every output sample, computed in float32 as `aten.upsample_nearest2d` does."""
    step = np.float32(1.0 / scale) if scale else np.float32(in_size) / np.float32(out_size)
    index = np.floor(np.arange(out_size, dtype=np.float32) * step).astype(np.int64)
    return np.minimum(index, in_size - 1)


@lowering("aten::upsample_nearest2d", check=anything)
def lower_nearest(ctx: Lowering, node: fx.Node) -> None:
    h, w = shape_of(node.args[0])[-2:]
    oh, ow = (int(s) for s in argument(node, "output_size"))
    gather(
        ctx, node, nearest_index(h, oh, argument(node, "scales_h")), nearest_index(w, ow, argument(node, "scales_w"))
    )


def _fill_value(node: fx.Node) -> float:
    name = node.target.name()
    if "zeros" in name:
        return 0.0
    return 1.0 if "ones" in name else float(argument(node, "fill_value"))


@lowering(
    "aten::zeros", "aten::ones", "aten::full", "aten::zeros_like", "aten::ones_like", "aten::full_like",
    "aten::new_zeros", "aten::new_ones", "aten::new_full", check=anything,
)  # fmt: skip
def lower_full(ctx: Lowering, node: fx.Node) -> None:
    fill(ctx, ctx.result(node), _fill_value(node))


@lowering("aten::slice_scatter", "aten::select_scatter", check=_one_dtype)
def lower_scatter(ctx: Lowering, node: fx.Node) -> None:
    base, src = ctx.value(node.args[0]), ctx.value(node.args[1])
    out = ctx.result(node)
    dim = int(argument(node, "dim", 0)) % len(out.shape)
    size = out.shape[dim]
    ctx.copy(base, out, only=False)
    if node.target is torch.ops.aten.select_scatter.default:
        at = int(argument(node, "index")) % size
        shape, strides = list(src.shape), list(src.strides)
        shape.insert(dim, 1)
        strides.insert(dim, 0)
        src = Value(src.buffer, src.dtype, tuple(shape), tuple(strides), src.offset)
        ctx.copy(src, part(out, dim, at, 1), only=False)
        return
    start = argument(node, "start") or 0
    start = max(start + size, 0) if start < 0 else min(start, size)
    ctx.copy(src, part(out, dim, start, src.shape[dim], int(argument(node, "step", 1))), only=False)

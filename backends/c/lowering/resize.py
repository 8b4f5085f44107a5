"""Resizing beyond two bilinear axes: linear, cubic and antialiased along each axis in turn, and nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from vqc.backends.c.ir import Struct, Value, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.movement import gather, nearest_index
from vqc.backends.c.lowering.order import select_axis
from vqc.backends.c.registry import FLOATS, anything, lowering, op_name
from vqc.ops.exact import argument
from vqc.ops.resample import bilinear_table
from vqc.program import shape_of

Taps = tuple[np.ndarray, np.ndarray]  # positions and weights, [out, taps]


def linear_taps(size: int, out: int, align: bool, scale: float | None) -> Taps:
    """Two neighbours for every output position."""
    i0, i1, w0, w1 = bilinear_table(size, out, align, scale)
    return np.stack([i0, i1], 1), np.stack([w0, w1], 1)


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel at a distance."""
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


def cubic_taps(size: int, out: int, align: bool, scale: float | None) -> Taps:
    """Four neighbours, those past the edge being the edge; the cubic of `aten.upsample_bicubic2d`, a = -0.75."""
    index = np.arange(out, dtype=np.float64)
    if align:
        step = np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
        position = (np.float64(step) * index).astype(np.float32)
    else:
        step = np.float32(1.0 / scale) if scale else np.float32(size) / np.float32(out)
        position = (np.float64(step) * (index + 0.5) - 0.5).astype(np.float32)
    base = np.floor(position)
    rest = (position - base).astype(np.float64)
    near = np.arange(-1, 3)
    return np.clip(base[:, None].astype(np.int64) + near, 0, size - 1), _cubic(rest[:, None] - near, -0.75)


def antialiased_taps(size: int, out: int, align: bool, scale: float | None, cubic: bool) -> Taps:
    """All samples under the filter stretched to the step, as `aten._upsample_bilinear2d_aa` and its cubic sibling."""
    if align:
        step = (size - 1) / (out - 1) if out > 1 else 0.0
    else:
        step = 1.0 / scale if scale else size / out
    reach = (2.0 if cubic else 1.0) * max(step, 1.0)
    narrow = 1.0 / step if step >= 1.0 else 1.0
    taps = 2 * math.ceil(reach) + 1
    positions, weights = np.zeros((out, taps), np.int64), np.zeros((out, taps))
    for i in range(out):
        centre = step * (i + 0.5)
        first = max(int(centre - reach + 0.5), 0)
        count = max(min(int(centre + reach + 0.5), size) - first, 0)
        distance = (np.arange(count) + first - centre + 0.5) * narrow
        weight = _cubic(distance, -0.5) if cubic else np.maximum(1.0 - np.abs(distance), 0.0)
        positions[i, :count], weights[i, :count] = np.arange(count) + first, weight / weight.sum()
        positions[i, count:] = positions[i, count - 1]
    return positions, weights


def _along(ctx: Lowering, x: Value, dim: int, taps: Taps, out: Value | None) -> Value:
    positions, weights = taps
    shape = (*x.shape[:dim], len(positions), *x.shape[dim + 1 :])
    made = ctx.new(shape, x.dtype) if out is None else out
    params = Struct("vqc_taps_params", {"outer": numel(x.shape[:dim]), "in": x.shape[dim], "out": len(positions),
                                        "inner": numel(x.shape[dim + 1 :]), "taps": positions.shape[1]})  # fmt: skip
    ctx.call("vqc_taps_f32", "volume", params, x, ctx.weight(np.ascontiguousarray(positions, np.int32), "positions"),
             ctx.weight(np.ascontiguousarray(weights, np.float32), "weights"), out=[made])  # fmt: skip
    return made


def _scales(node: fx.Node, axes: int) -> list[float | None]:
    """The zoom factors given, depth first; None where a size was given."""
    names = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}[axes]
    return [argument(node, n) for n in names]


@lowering("aten::upsample_linear1d", "aten::upsample_trilinear3d", "aten::upsample_bicubic2d",
          "aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa", check=FLOATS)  # fmt: skip
def lower_resize(ctx: Lowering, node: fx.Node) -> None:
    name, shape = op_name(node.target), shape_of(node)
    axes, align = len(shape) - 2, bool(argument(node, "align_corners"))
    x = ctx.dense(node.args[0])
    scales = _scales(node, axes)
    # Axes that shrink first, so that less is left for the others; one that stays as it is costs nothing.
    todo = sorted((d for d in range(2, len(shape)) if x.shape[d] != shape[d]), key=lambda d: shape[d] / x.shape[d])
    if not todo:
        ctx.copy(x, ctx.result(node))
        return
    for i, dim in enumerate(todo):
        size, out, scale = x.shape[dim], shape[dim], scales[dim - 2]
        if name.endswith("_aa"):
            taps = antialiased_taps(size, out, align, scale, "bicubic" in name)
        else:
            taps = (cubic_taps if "cubic" in name else linear_taps)(size, out, align, scale)
        x = _along(ctx, x, dim, taps, ctx.result(node) if i == len(todo) - 1 else None)


def nearest_exact_index(size: int, out: int, scale: float | None) -> np.ndarray:
    """The source index of every output sample: the one whose centre is nearest."""
    step = np.float32(1.0 / scale) if scale else np.float32(size) / np.float32(out)
    index = np.floor((np.arange(out, dtype=np.float32) + np.float32(0.5)) * step).astype(np.int64)
    return np.minimum(index, size - 1)


@lowering("aten::upsample_nearest1d", "aten::upsample_nearest3d", "aten::_upsample_nearest_exact1d",
          "aten::_upsample_nearest_exact2d", "aten::_upsample_nearest_exact3d", check=anything)  # fmt: skip
def lower_nearest(ctx: Lowering, node: fx.Node) -> None:
    x, shape = ctx.dense(node.args[0]), shape_of(node)
    index: Any = nearest_exact_index if "exact" in op_name(node.target) else nearest_index
    scales = _scales(node, len(shape) - 2)
    tables: Sequence[np.ndarray] = [
        index(x.shape[2 + i], shape[2 + i], s) for i, s in enumerate(scales)
    ]  # fmt: skip
    if len(tables) == 2:
        gather(ctx, node, tables[0], tables[1])
        return
    for i, table in enumerate(tables):
        last = i == len(tables) - 1
        out = ctx.result(node) if last else ctx.new((*x.shape[: 2 + i], len(table), *x.shape[3 + i :]), x.dtype)
        select_axis(ctx, x, 2 + i, table, out)
        x = out

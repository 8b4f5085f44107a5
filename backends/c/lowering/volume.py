"""Pooling over one, two or three axes, dilated windows and positions of maxima included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from vqc.backends.c.ir import Struct, Value, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.registry import FLOATS, lowering, only, op_name
from vqc.ops.exact import argument
from vqc.ops.pool import pool_windows
from vqc.program import Program, shape_of

Windows = tuple[np.ndarray, np.ndarray, np.ndarray]  # first, last (not included), and what divides an average


def axes_of(node: fx.Node) -> int:
    """How many axes the windows have: the operator's name ends in 1d, 2d or 3d."""
    name = op_name(node.target).split(".")[0].replace("_with_indices", "")
    return int(name[-2])


def spread(value: Sequence[int] | int | None, axes: int, default: Sequence[int]) -> list[int]:
    """An option of a pooling, one number for each axis."""
    if value is None or (isinstance(value, (tuple, list)) and not value):
        return [int(v) for v in default]
    items = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    return items * axes if len(items) == 1 else items


def _dilated(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Windows:
    """Windows whose values lie `dilation` apart."""
    start = np.arange(out) * stride - padding
    first = np.where(start < 0, start + -(start // dilation) * dilation, start)
    last = np.minimum(start + (kernel - 1) * dilation + 1, size)
    return first.astype(np.int32), last.astype(np.int32), np.full(out, kernel, np.int32)


def _adaptive(size: int, out: int) -> Windows:
    i = np.arange(out)
    first, last = i * size // out, -(-(i + 1) * size // out)
    return first, last, last - first


def windows_of(node: fx.Node) -> tuple[list[Windows], list[int]]:
    """The windows along depth, height and width, and the dilation of each; an axis that is not there has one window."""
    axes = axes_of(node)
    size, out = shape_of(node.args[0])[-axes:], _result_shape(node)[-axes:]
    dilation = [1] * axes
    if "adaptive" in op_name(node.target):
        found = [_adaptive(s, o) for s, o in zip(size, out, strict=True)]
    else:
        kernel = spread(argument(node, "kernel_size"), axes, [])
        stride = spread(argument(node, "stride"), axes, kernel)
        padding = spread(argument(node, "padding"), axes, [0] * axes)
        dilation = spread(argument(node, "dilation"), axes, dilation)
        ceil, inside = bool(argument(node, "ceil_mode")), bool(argument(node, "count_include_pad"))
        found = []
        for i in range(axes):
            if dilation[i] == 1:
                found.append(pool_windows(size[i], kernel[i], stride[i], padding[i], ceil, inside))
            else:
                found.append(_dilated(size[i], out[i], kernel[i], stride[i], padding[i], dilation[i]))
    one = np.array([0]), np.array([1]), np.array([1])
    return [one] * (3 - axes) + found, [1] * (3 - axes) + dilation


def _result_shape(node: fx.Node) -> tuple[int, ...]:
    value: Any = node.meta["val"]
    return tuple((value[0] if isinstance(value, (tuple, list)) else value).shape)


def _params(node: fx.Node, x: Value, dilation: Sequence[int]) -> Struct:
    axes = axes_of(node)
    d, h, w = (1,) * (3 - axes) + x.shape[-axes:]
    od, oh, ow = (1,) * (3 - axes) + _result_shape(node)[-axes:]
    return Struct("vqc_volume_params", {
        "planes": numel(x.shape[:-axes]), "d": d, "h": h, "w": w, "od": od, "oh": oh, "ow": ow, "dd": dilation[0],
        "dh": dilation[1], "dw": dilation[2],
    })  # fmt: skip


def _tables(ctx: Lowering, windows: Sequence[Windows]) -> list[Value]:
    return [ctx.weight(np.concatenate(w[:2]).astype(np.int32), "windows") for w in windows]


def max_volume(ctx: Lowering, node: fx.Node) -> None:
    """The largest value of every window, float32."""
    x = ctx.dense(node.args[0])
    windows, dilation = windows_of(node)
    params = _params(node, x, dilation)
    ctx.call("vqc_max_volume_f32", "volume", params, x, *_tables(ctx, windows), out=[ctx.result(node)],
             scratch=4 * x.shape[-1])  # fmt: skip


@lowering("aten::max_pool1d", "aten::max_pool3d", check=FLOATS)
def lower_max(ctx: Lowering, node: fx.Node) -> None:
    max_volume(ctx, node)


@lowering(
    "aten::max_pool2d_with_indices", "aten::max_pool3d_with_indices", "aten::adaptive_max_pool1d",
    "aten::adaptive_max_pool2d", "aten::adaptive_max_pool3d", check=only(torch.float32, torch.int64),
)  # fmt: skip
def lower_max_where(ctx: Lowering, node: fx.Node) -> None:
    x, shape = ctx.dense(node.args[0]), _result_shape(node)
    windows, dilation = windows_of(node)
    values, where = ctx.new(shape, torch.float32), ctx.new(shape, torch.int64)
    params, tables = _params(node, x, dilation), _tables(ctx, windows)
    if any(u.args[1] == 1 for u in node.users):
        ctx.call("vqc_max_where_f32", "volume", params, x, *tables, out=[values, where])
    else:
        ctx.call("vqc_max_volume_f32", "volume", params, x, *tables, out=[values], scratch=4 * x.shape[-1])
    ctx.bind(node, (values, where))


@lowering("aten::avg_pool1d", "aten::avg_pool3d", "aten::adaptive_avg_pool1d", "aten::adaptive_avg_pool3d",
          check=FLOATS)  # fmt: skip
def lower_average(ctx: Lowering, node: fx.Node) -> None:
    x = ctx.dense(node.args[0])
    axes = axes_of(node)
    if "adaptive" in op_name(node.target) and numel(_result_shape(node)[-axes:]) == 1:
        params = Struct("vqc_mean_params", {"planes": numel(x.shape[:-axes]), "count": numel(x.shape[-axes:])})
        ctx.call("vqc_mean_hw_f32", "pool", params, x, out=[ctx.result(node)])
        return
    windows, dilation = windows_of(node)
    divisor = argument(node, "divisor_override")
    counts = [w[2].astype(np.float64) for w in windows]
    if divisor:
        counts = [np.full(len(counts[0]), float(divisor)), *(np.ones(len(c)) for c in counts[1:])]
    factors = [ctx.weight((1.0 / c).astype(np.float32), "factors") for c in counts]
    ctx.call("vqc_sum_volume_f32", "volume", _params(node, x, dilation), x, *_tables(ctx, windows), *factors,
             out=[ctx.result(node)], scratch=4 * x.shape[-1])  # fmt: skip


def integer_windows(program: Program, node: fx.Node) -> str | None:
    """A check: the windows have no gaps."""
    _, dilation = windows_of(node)
    return None if set(dilation) == {1} else f"its windows are dilated by {dilation[1:]}"

"""Pooling: averages and maxima over windows, and means over whole pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from vqc.backends.c.ir import Struct, Value, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.volume import integer_windows, max_volume, windows_of
from vqc.backends.c.registry import FLOATS, all_of, lowering, only
from vqc.ops.exact import argument
from vqc.ops.pool import pool_windows
from vqc.program import Program, dtype_of, shape_of


def _pair(value: Sequence[int] | int | None, default: Sequence[int] = (1, 1)) -> tuple[int, int]:
    if value is None or (isinstance(value, (tuple, list)) and not value):
        return (int(default[0]), int(default[-1]))
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


def _params(x: Value, out: Value) -> Struct:
    return Struct("vqc_pool_params", {"planes": numel(x.shape[:-2]), "h": x.shape[-2], "w": x.shape[-1],
                                      "oh": out.shape[-2], "ow": out.shape[-1]})  # fmt: skip


def _average(ctx: Lowering, node: fx.Node, windows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    x, out = ctx.dense(node.args[0]), ctx.result(node)
    tables = [ctx.weight(np.concatenate(w[:2]).astype(np.int32), "windows") for w in windows]
    counts = [ctx.weight(w[2].astype(np.int32), "counts") for w in windows]
    ctx.call("vqc_avg_pool_f32", "pool", _params(x, out), x, *tables, *counts, out=[out])


def _lower_avg(ctx: Lowering, node: fx.Node, kernel: tuple[int, int]) -> None:
    shape = shape_of(node.args[0])
    stride, padding = _pair(argument(node, "stride"), kernel), _pair(argument(node, "padding"), (0, 0))
    ceil, inside = bool(argument(node, "ceil_mode")), bool(argument(node, "count_include_pad"))
    windows = [pool_windows(shape[i - 2], kernel[i], stride[i], padding[i], ceil, inside) for i in (0, 1)]
    divisor = argument(node, "divisor_override")
    if divisor:
        rows, cols = windows
        windows = [(*rows[:2], np.full_like(rows[2], int(divisor))), (*cols[:2], np.ones_like(cols[2]))]
    _average(ctx, node, windows)


@lowering("aten::avg_pool2d", check=FLOATS)
def lower_avg_pool(ctx: Lowering, node: fx.Node) -> None:
    _lower_avg(ctx, node, _pair(argument(node, "kernel_size")))


@lowering("vqc::avg_pool2d", check=FLOATS)
def lower_exact_avg_pool(ctx: Lowering, node: fx.Node) -> None:
    _lower_avg(ctx, node, _pair(argument(node, "kernel")))


def _plain_integers(program: Program, node: fx.Node) -> str | None:
    """The integer kernels take windows without gaps."""
    return None if dtype_of(node) == torch.float32 else integer_windows(program, node)


@lowering("aten::max_pool2d", check=all_of(only(torch.float32, torch.uint8, torch.int8), _plain_integers))
def lower_max_pool(ctx: Lowering, node: fx.Node) -> None:
    x = ctx.dense(node.args[0])
    if x.dtype == torch.float32:
        max_volume(ctx, node)
        return
    windows, _ = windows_of(node)
    tables = [ctx.weight(np.concatenate(w[:2]).astype(np.int32), "windows") for w in windows[1:]]
    kind = {torch.uint8: "u8", torch.int8: "s8"}[x.dtype]
    out = ctx.result(node)
    ctx.call(f"vqc_max_pool_{kind}", "pool", _params(x, out), x, *tables, out=[out])


@lowering("aten::adaptive_avg_pool2d", check=FLOATS)
def lower_adaptive(ctx: Lowering, node: fx.Node) -> None:
    shape = shape_of(node.args[0])
    size = tuple(shape_of(node)[-2:])
    if size == (1, 1):
        _mean(ctx, node)
        return
    windows = []
    for have, want in zip(shape[-2:], size, strict=True):
        i = np.arange(want)
        first, last = i * have // want, -(-(i + 1) * have // want)
        windows.append((first, last, last - first))
    _average(ctx, node, windows)


@lowering("vqc::mean_hw", check=FLOATS)
def lower_mean_hw(ctx: Lowering, node: fx.Node) -> None:
    _mean(ctx, node)


def _mean(ctx: Lowering, node: fx.Node) -> None:
    x = ctx.dense(node.args[0])
    params = Struct("vqc_mean_params", {"planes": numel(x.shape[:-2]), "count": numel(x.shape[-2:])})
    ctx.call("vqc_mean_hw_f32", "pool", params, x, out=[ctx.result(node)])

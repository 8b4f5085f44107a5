"""Reductions over axes, running sums, positions of extremes, and softmax; floats, integers and truth values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.ir import Struct, Value, dense_strides, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.registry import FLOATS, Check, all_of, lowering, only, op_name
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
_KINDS = {"sum": "SUM", "mean": "SUM", "amax": "MAX", "amin": "MIN", "max": "MAX", "min": "MIN", "prod": "PROD",
          "any": "MAX", "all": "MIN", "argmax": "MAX", "argmin": "MIN", "cumsum": "SUM", "cumprod": "PROD"}  # fmt: skip
_KNOWN: Check = only(torch.float32, *INTEGERS)


def _name(node: fx.Node) -> str:
    return op_name(node.target).split("::")[1].split(".")[0]


def _axes(node: fx.Node) -> list[int]:
    rank = len(shape_of(node.args[0]))
    dims: Any = argument(node, "dim")
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        return list(range(rank))
    dims = dims if isinstance(dims, (tuple, list)) else [dims]
    return sorted(int(d) % rank for d in dims) if rank else []


def reduce_axes(ctx: Lowering, x: Value, axes: Sequence[int]) -> tuple[Value, int, int, int]:
    """(dense value, outer, count, inner) with the axes next to each other: [outer, count, inner]."""
    kept = [i for i in range(len(x.shape)) if i not in axes and x.shape[i] != 1]
    gone = [i for i in axes if x.shape[i] != 1]
    count = numel([x.shape[i] for i in gone])
    between = [i for i in kept if gone and gone[0] < i < gone[-1]]
    if between:  # kept axes among the reduced ones: bring the reduced ones to the end
        order = kept + gone
        moved = Value(x.buffer, x.dtype, tuple(x.shape[i] for i in order), tuple(x.strides[i] for i in order), x.offset)
        return ctx.dense(moved), numel([x.shape[i] for i in kept]), count, 1
    x = ctx.dense(x)
    if not gone:
        return x, x.count, 1, 1
    outer = numel([x.shape[i] for i in kept if i < gone[0]])
    return x, outer, count, numel([x.shape[i] for i in kept if i > gone[-1]])


def converted(ctx: Lowering, x: Value, dtype: torch.dtype, *, truth: bool = False) -> Value:
    """A dense tensor of another element type; `truth`: 1 where the element is not 0, else 0."""
    if x.dtype == dtype and not truth:
        return ctx.dense(x)
    integer = x.dtype != torch.float32
    e = ex.load(x, integer)
    zero = ex.const(0.0)
    e = ex.apply("ne", e, zero, integer=integer) if truth else ex.apply("add", e, zero, integer=integer)
    return ctx.compute(e, like=ctx.new(x.shape, dtype))


def store(ctx: Lowering, x: Value, out: Value) -> None:
    """The elements of a dense tensor in the element type of `out`, whose shape may differ in axes of size 1."""
    flat = Value(x.buffer, x.dtype, out.shape, dense_strides(out.shape), x.offset)
    integer = x.dtype != torch.float32
    ctx.compute(ex.apply("add", ex.load(flat, integer), ex.const(0.0), integer=integer), like=out)


def _one_result(program: Program, node: fx.Node) -> str | None:
    return None if isinstance(node.meta["val"], torch.Tensor) else "it has two results"


def _not_mixed(program: Program, node: fx.Node) -> str | None:
    """Integers may become other integers or truth values, and floats truth values; nothing else is converted."""
    floats = dtype_of(node.args[0]) == torch.float32
    if floats and dtype_of(node) not in (torch.float32, torch.bool):
        return "it makes integers of floats"
    if not floats and dtype_of(node) == torch.float32 and _name(node) not in ("sum", "prod", "cumsum", "cumprod"):
        return "it makes floats of integers"
    return None


@lowering(
    "aten::mean.dim", "aten::mean", "aten::sum.dim_IntList", "aten::sum", "aten::amax", "aten::amin", "aten::max",
    "aten::min", "aten::prod", "aten::prod.dim_int", "aten::any", "aten::any.dim", "aten::any.dims", "aten::all",
    "aten::all.dim", "aten::all.dims", check=all_of(_one_result, _KNOWN, _not_mixed),
)  # fmt: skip
def lower_reduce(ctx: Lowering, node: fx.Node) -> None:
    name, source = _name(node), ctx.value(node.args[0])
    truth = name in ("any", "all")
    whole = truth or dtype_of(node) != torch.float32
    if whole or source.dtype != torch.float32:
        source = converted(ctx, source, torch.int64 if whole else torch.float32, truth=truth)
    x, outer, count, inner = reduce_axes(ctx, source, _axes(node))
    factor = 1.0 / count if name == "mean" else 1.0
    params = Struct("vqc_reduce_params", {"kind": "VQC_REDUCE_" + _KINDS[name], "outer": outer, "count": count,
                                          "inner": inner, "factor": factor})  # fmt: skip
    out = ctx.result(node)
    if not whole:
        ctx.call("vqc_reduce_f32", "reduce", params, x, out=[out])
        return
    made = out if out.dtype == torch.int64 else ctx.new(out.shape, torch.int64)
    ctx.call("vqc_reduce_s64", "reduce", params, x, out=[made])
    if made is not out:
        store(ctx, made, out)


@lowering("aten::argmax", "aten::argmin", check=only(torch.float32, *INTEGERS))
def lower_arg(ctx: Lowering, node: fx.Node) -> None:
    source = ctx.value(node.args[0])
    if source.dtype != torch.float32:
        source = converted(ctx, source, torch.int64)
    x, outer, count, inner = reduce_axes(ctx, source, _axes(node))
    params = Struct("vqc_reduce_params", {"kind": "VQC_REDUCE_" + _KINDS[_name(node)], "outer": outer, "count": count,
                                          "inner": inner})  # fmt: skip
    ctx.call(f"vqc_arg_{'f32' if x.dtype == torch.float32 else 's64'}", "reduce", params, x, out=[ctx.result(node)])


@lowering("aten::cumsum", "aten::cumprod", check=all_of(_KNOWN, _not_mixed))
def lower_running(ctx: Lowering, node: fx.Node) -> None:
    floats = dtype_of(node) == torch.float32
    x = converted(ctx, ctx.value(node.args[0]), torch.float32 if floats else torch.int64)
    out = ctx.result(node)
    dim = int(argument(node, "dim")) % max(len(x.shape), 1)
    params = Struct("vqc_reduce_params", {
        "kind": "VQC_REDUCE_" + _KINDS[_name(node)], "outer": numel(x.shape[:dim]),
        "count": numel(x.shape[dim : dim + 1]), "inner": numel(x.shape[dim + 1 :]),
    })  # fmt: skip
    made = out if floats or out.dtype == torch.int64 else ctx.new(out.shape, torch.int64)
    ctx.call(f"vqc_running_{'f32' if floats else 's64'}", "reduce", params, x, out=[made])
    if made is not out:
        store(ctx, made, out)


def softmax(ctx: Lowering, x: Value, dim: int, out: Value, *, log: bool = False, safe: bool = False) -> None:
    """Softmax of a dense value along an axis; `safe`: zeros where everything is -inf."""
    dim %= max(len(x.shape), 1)
    params = Struct("vqc_reduce_params", {
        "log": log, "safe": safe, "outer": numel(x.shape[:dim]), "count": numel(x.shape[dim : dim + 1]),
        "inner": numel(x.shape[dim + 1 :]),
    })  # fmt: skip
    ctx.call("vqc_softmax_f32", "reduce", params, x, out=[out])


@lowering("aten::softmax.int", "aten::_softmax", "aten::log_softmax.int", "aten::_log_softmax", "aten::_safe_softmax",
          check=FLOATS)  # fmt: skip
def lower_softmax(ctx: Lowering, node: fx.Node) -> None:
    name = op_name(node.target)
    softmax(ctx, ctx.dense(node.args[0]), int(argument(node, "dim")), ctx.result(node), log="log" in name,
            safe="safe" in name)  # fmt: skip

"""Reductions over axes, and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from vqc.backends.c.ir import Struct, Value, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.registry import FLOATS, all_of, lowering, op_name
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

_KINDS = {"sum": "VQC_REDUCE_SUM", "mean": "VQC_REDUCE_SUM", "amax": "VQC_REDUCE_MAX", "amin": "VQC_REDUCE_MIN",
          "max": "VQC_REDUCE_MAX", "min": "VQC_REDUCE_MIN"}  # fmt: skip


def _axes(node: fx.Node) -> list[int]:
    rank = len(shape_of(node.args[0]))
    dims: Any = argument(node, "dim")
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        return list(range(rank))
    dims = dims if isinstance(dims, (tuple, list)) else [dims]
    return sorted(int(d) % rank for d in dims)


def reduce_axes(ctx: Lowering, x: Value, axes: Sequence[int]) -> tuple[Value, int, int, int]:
    """(dense value, outer, count, inner) with the axes next to each other: [outer, count, inner]."""
    x = ctx.dense(x)
    kept = [i for i in range(len(x.shape)) if i not in axes and x.shape[i] != 1]
    gone = [i for i in axes if x.shape[i] != 1]
    count = numel([x.shape[i] for i in gone])
    between = [i for i in kept if gone and gone[0] < i < gone[-1]]
    if between:  # kept axes among the reduced ones: bring the reduced ones to the end
        order = kept + gone
        moved = Value(x.buffer, x.dtype, tuple(x.shape[i] for i in order), tuple(x.strides[i] for i in order), x.offset)
        return ctx.dense(moved), numel([x.shape[i] for i in kept]), count, 1
    if not gone:
        return x, x.count, 1, 1
    outer = numel([x.shape[i] for i in kept if i < gone[0]])
    return x, outer, count, numel([x.shape[i] for i in kept if i > gone[-1]])


def _one_result(program: Program, node: fx.Node) -> str | None:
    return None if isinstance(node.meta["val"], torch.Tensor) else "its indices are not computed by the kernel"


@lowering(
    "aten::mean.dim", "aten::mean", "aten::sum.dim_IntList", "aten::sum", "aten::amax", "aten::amin", "aten::max",
    "aten::min", check=all_of(_one_result, FLOATS),
)  # fmt: skip
def lower_reduce(ctx: Lowering, node: fx.Node) -> None:
    name = op_name(node.target).split("::")[1].split(".")[0]
    x, outer, count, inner = reduce_axes(ctx, ctx.value(node.args[0]), _axes(node))
    params = Struct("vqc_reduce_params", {"kind": _KINDS[name], "outer": outer, "count": count, "inner": inner,
                                          "factor": 1.0 / count if name == "mean" else 1.0})  # fmt: skip
    ctx.call("vqc_reduce_f32", "reduce", params, x, out=[ctx.result(node)])


def softmax(ctx: Lowering, x: Value, dim: int, out: Value) -> None:
    """Softmax of a dense value along an axis."""
    dim %= len(x.shape)
    params = Struct("vqc_reduce_params", {"outer": numel(x.shape[:dim]), "count": x.shape[dim],
                                          "inner": numel(x.shape[dim + 1 :])})  # fmt: skip
    ctx.call("vqc_softmax_f32", "reduce", params, x, out=[out])


def _float(program: Program, node: fx.Node) -> str | None:
    return None if dtype_of(node) == torch.float32 else "it is not float32"


@lowering("aten::softmax.int", "aten::_softmax", check=all_of(_float, FLOATS))
def lower_softmax(ctx: Lowering, node: fx.Node) -> None:
    softmax(ctx, ctx.dense(node.args[0]), int(argument(node, "dim")), ctx.result(node))

"""Normalisations: by the frame's own statistics, and batch norm with fixed ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.expand import Expander, expansion
from vqc.backends.c.ir import Struct, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.conv import constant_arguments
from vqc.backends.c.lowering.pointwise import finish, operand
from vqc.backends.c.registry import FLOATS, all_of, lowering
from vqc.ops.exact import argument
from vqc.program import Program, shape_of


def _norm(ctx: Lowering, node: fx.Node, rows: int, count: int, cycle: int, span: int, rms: bool = False) -> None:
    x = ctx.dense(node.args[0])
    weight, bias = (ctx.dense(a) if isinstance(a, fx.Node) else None
                    for a in (argument(node, "weight"), argument(node, "bias")))  # fmt: skip
    eps = argument(node, "eps")
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
    params = Struct("vqc_norm_params", {"rows": rows, "count": count, "cycle": cycle, "span": span, "eps": eps,
                                        "rms": rms})  # fmt: skip
    ctx.call("vqc_norm_f32", "reduce", params, x, weight, bias, out=[ctx.result(node)])


@lowering("aten::layer_norm", check=FLOATS)
def lower_layer_norm(ctx: Lowering, node: fx.Node) -> None:
    shape = shape_of(node.args[0])
    count = numel([int(s) for s in argument(node, "normalized_shape")])
    _norm(ctx, node, numel(shape) // count, count, 1, 1)


@lowering("aten::rms_norm", check=FLOATS)
def lower_rms_norm(ctx: Lowering, node: fx.Node) -> None:
    count = numel([int(s) for s in argument(node, "normalized_shape")])
    _norm(ctx, node, numel(shape_of(node.args[0])) // count, count, 1, 1, rms=True)


@lowering("aten::group_norm", check=FLOATS)
def lower_group_norm(ctx: Lowering, node: fx.Node) -> None:
    shape = shape_of(node.args[0])
    groups, span = int(argument(node, "num_groups")), numel(shape[2:])
    _norm(ctx, node, shape[0] * groups, shape[1] // groups * span, groups, span)


def _own_statistics(program: Program, node: fx.Node) -> str | None:
    return None if argument(node, "use_input_stats") else "it normalises by running statistics"


@expansion("aten::instance_norm")
def expand_instance_norm(e: Expander, node: fx.Node) -> fx.Node | None:
    """By running statistics it is a batch norm."""
    if e.arg("use_input_stats"):
        return None
    weight, bias, mean, var = (e.arg(k) for k in ("weight", "bias", "running_mean", "running_var"))
    return e("batch_norm", node.args[0], weight, bias, mean, var, False, 0.0, e.arg("eps"), False)


@expansion("aten::batch_norm")
def expand_batch_norm(e: Expander, node: fx.Node) -> fx.Node | None:
    """With factors or statistics computed at run time, or by the input's own statistics: operator by operator."""
    names = ("weight", "bias", "running_mean", "running_var")
    given = {k: e.arg(k) for k in names}
    training = bool(e.arg("training"))
    constant = all(v is None or e.program.constant(v) is not None for v in given.values())
    if training and given["running_mean"] is not None:
        return None  # it would have to update them
    if constant and not training:
        return None
    x = node.args[0]
    assert isinstance(x, fx.Node)
    shape = [1, -1, *(1,) * (len(e.shape(x)) - 2)]
    dims = [0, *range(2, len(e.shape(x)))]

    def along(value: fx.Node) -> fx.Node:
        return e("view", value, shape)

    if training:
        mean = e("mean.dim", x, dims, True)
        centred = e("sub.Tensor", x, mean)
        var = e("mean.dim", e("mul.Tensor", centred, centred), dims, True)
    else:
        centred = e("sub.Tensor", x, along(given["running_mean"]))
        var = along(given["running_var"])
    y = e("mul.Tensor", centred, e("rsqrt", e("add.Scalar", var, float(e.arg("eps")))))
    if given["weight"] is not None:
        y = e("mul.Tensor", y, along(given["weight"]))
    return y if given["bias"] is None else e("add.Tensor", y, along(given["bias"]))


@lowering("aten::instance_norm", check=all_of(FLOATS, _own_statistics))
def lower_instance_norm(ctx: Lowering, node: fx.Node) -> None:
    shape = shape_of(node.args[0])
    span = numel(shape[2:])
    _norm(ctx, node, shape[0] * shape[1], span, shape[1], span)


def _evaluating(program: Program, node: fx.Node) -> str | None:
    return "it is in training mode" if argument(node, "training") else None


_FIXED = constant_arguments("weight", "bias", "running_mean", "running_var")


@lowering("aten::batch_norm", check=all_of(FLOATS, _evaluating, _FIXED))
def lower_batch_norm(ctx: Lowering, node: fx.Node) -> None:
    """x * (weight / sqrt(var + eps)) + (bias - mean * ...), the factors computed once in double."""
    shape = (-1, *(1,) * (len(shape_of(node)) - 2))
    mean, var = (_double(ctx, node, k) for k in ("running_mean", "running_var"))
    assert mean is not None and var is not None
    weight, bias = (_double(ctx, node, k) for k in ("weight", "bias"))
    scale = 1.0 / torch.sqrt(var + float(argument(node, "eps")))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    factors = [ctx.weight(t.to(torch.float32).reshape(shape), "batch_norm") for t in (scale, shift)]
    x = operand(ctx, node, node.args[0])
    finish(ctx, node, ex.apply("add", ex.apply("mul", x, ex.load(factors[0])), ex.load(factors[1])))


def _double(ctx: Lowering, node: fx.Node, name: str) -> Any:
    tensor = ctx.constant(argument(node, name))
    return None if tensor is None else tensor.double()

"""Activations and clamps as pointwise expressions."""

from __future__ import annotations

import math

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.expr import Expr, apply, const
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.pointwise import POINTWISE, finish, held, integer_call, operand, pointwise, scaled
from vqc.backends.c.registry import lowering
from vqc.ops.exact import SIXTH, argument
from vqc.program import dtype_of, shape_of


@pointwise("aten::relu", needs=("max",))
def _relu(get, node):
    return held(get(node.args[0]), 0.0, None)


@pointwise("aten::relu6", needs=("max", "min"))
def _relu6(get, node):
    return held(get(node.args[0]), 0.0, 6.0)


@pointwise("aten::hardtanh", needs=("max", "min"))
def _hardtanh(get, node):
    return held(get(node.args[0]), argument(node, "min_val"), argument(node, "max_val"))


@pointwise("aten::clamp", "aten::clamp.Tensor", needs=("max", "min"))
def _clamp(get, node):
    low, high = (argument(node, k) for k in ("min", "max"))
    return held(get(node.args[0]), None if low is None else get(low), None if high is None else get(high))


@pointwise("aten::clamp_min", "aten::clamp_min.Tensor", needs=("max",))
def _clamp_min(get, node):
    return held(get(node.args[0]), get(node.args[1]), None)


@pointwise("aten::clamp_max", "aten::clamp_max.Tensor", needs=("min",))
def _clamp_max(get, node):
    return held(get(node.args[0]), None, get(node.args[1]))


@pointwise("aten::threshold", needs=("where", "le"))
def _threshold(get, node):
    x = get(node.args[0])
    return apply("where", apply("le", x, get(node.args[1])), get(node.args[2]), x)


@pointwise("aten::leaky_relu", needs=("leaky",))
def _leaky_relu(get, node):
    return apply("leaky", get(node.args[0]), const(argument(node, "negative_slope")))


@lowering(
    "aten::prelu", "aten::_prelu_kernel", check=lambda p, n: None if dtype_of(n) == torch.float32 else "not float32"
)
def lower_prelu(ctx: Lowering, node: fx.Node) -> None:
    x, slope = operand(ctx, node, node.args[0]), ctx.constant(node.args[1])
    if slope is not None and slope.numel() == 1:
        finish(ctx, node, apply("leaky", x, const(slope.item())))
        return
    v = ctx.dense(node.args[1])
    if len(v.shape) == 1 and len(shape_of(node)) > 1:  # one slope for each channel
        shape = (v.shape[0], *(1,) * (len(shape_of(node)) - 2))
        v = type(v)(v.buffer, v.dtype, shape, (1,) + (0,) * (len(shape) - 1), v.offset)
    finish(ctx, node, apply("leaky", x, ex.load(v)))


POINTWISE.update(("aten::prelu", "aten::_prelu_kernel"))


def _gate(x: Expr) -> Expr:
    return apply("mul", held(apply("add", x, const(3.0)), 0.0, 6.0), const(SIXTH))


@pointwise("aten::hardsigmoid", "vqc::hardsigmoid", needs=("div",))
def _hardsigmoid(get, node):
    return _gate(get(node.args[0]))


@pointwise("aten::hardswish", "vqc::hardswish", needs=("div",))
def _hardswish(get, node):
    x = get(node.args[0])
    return apply("mul", x, _gate(x))


@pointwise("aten::silu", "vqc::silu", needs=("sigmoid",))
def _silu(get, node):
    x = get(node.args[0])
    return apply("mul", x, apply("sigmoid", x))


@pointwise("aten::gelu", needs=("erf",))
def _gelu(get, node):
    x = get(node.args[0])
    if argument(node, "approximate") == "tanh":
        cube = apply("mul", apply("mul", apply("mul", x, x), x), const(0.044715))
        gate = apply("tanh", apply("mul", apply("add", x, cube), const(math.sqrt(2 / math.pi))))
    else:
        gate = apply("erf", apply("mul", x, const(math.sqrt(0.5))))
    return apply("mul", apply("mul", x, const(0.5)), apply("add", gate, const(1.0)))


@pointwise("aten::elu", needs=("expm1",))
def _elu(get, node):
    x = get(node.args[0])
    alpha, scale, inner = (float(argument(node, k)) for k in ("alpha", "scale", "input_scale"))
    low = apply("mul", apply("expm1", scaled(x, inner)), const(alpha * scale))
    return apply("where", apply("lt", const(0.0), x), scaled(x, scale), low)


@pointwise("aten::softplus", needs=("log1p",))
def _softplus(get, node):
    x = get(node.args[0])
    beta, limit = float(argument(node, "beta")), float(argument(node, "threshold"))
    z = scaled(x, beta)
    soft = scaled(apply("log1p", apply("exp", z)), 1.0 / beta)
    return apply("where", apply("lt", const(limit), z), x, soft)


@pointwise("aten::mish", needs=("tanh",))
def _mish(get, node):
    x = get(node.args[0])
    soft = apply("where", apply("lt", const(20.0), x), x, apply("log1p", apply("exp", x)))
    return apply("mul", x, apply("tanh", soft))


@pointwise("aten::lerp.Scalar", "aten::lerp.Tensor", needs=("add", "mul", "sub"))
def _lerp(get, node):
    a, b = get(node.args[0]), get(node.args[1])
    return apply("add", a, apply("mul", get(node.args[2]), apply("sub", b, a)))


@pointwise("aten::addcmul", needs=("add", "mul"))
def _addcmul(get, node):
    product = apply("mul", get(node.args[1]), get(node.args[2]))
    return apply("add", get(node.args[0]), scaled(product, argument(node, "value", 1)))


@pointwise("aten::pow.Tensor_Scalar", "aten::pow.Tensor_Tensor", "aten::pow.Scalar", needs=("ipow",))
def _pow(get, node):
    x, y = get(node.args[0]), node.args[1]
    if integer_call(node):
        return apply("ipow", x, get(y))
    if y in (2, 3):
        return apply("mul", x, x) if y == 2 else apply("mul", apply("mul", x, x), x)
    if y == 0.5:
        return apply("sqrt", x)
    if y in (-1, -2):
        return apply("div", const(1.0), x if y == -1 else apply("mul", x, x))
    return apply("pow", x, get(y))

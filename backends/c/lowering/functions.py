"""Pointwise functions beyond the arithmetic of pointwise.py: special values, logarithms, angles, bits, shrinkage."""

from __future__ import annotations

import math

import torch
from torch import fx

from vqc.backends.c.expr import Expr, apply, const
from vqc.backends.c.lowering.pointwise import INTEGERS, held, integer_call, pointwise, scaled
from vqc.ops.exact import argument
from vqc.program import DTYPE_NAMES, Program, dtype_of

_UNARY = {
    "log2": "log2", "log10": "log10", "exp2": "exp2", "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan",
    "sinh": "sinh", "cosh": "cosh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "sgn": "sign",
    "special_exp2": "exp2", "special_erf": "erf", "special_expm1": "expm1", "special_expit": "sigmoid",
    "special_log1p": "log1p",
}  # fmt: skip
_NAN, _INF = const(math.nan), const(math.inf)


def _register_simple() -> None:
    for name, code in _UNARY.items():
        pointwise(f"aten::{name}", needs=(code,))(lambda get, n, code=code: apply(code, get(n.args[0])))


_register_simple()


def is_nan(x: Expr) -> Expr:
    return apply("ne", x, x)


@pointwise("aten::isnan", needs=("ne",))
def _isnan(get, node):
    return is_nan(get(node.args[0]))


@pointwise("aten::isinf", needs=("eq", "abs"))
def _isinf(get, node):
    return apply("eq", apply("abs", get(node.args[0])), _INF)


@pointwise("aten::isfinite", needs=("lt", "abs"))
def _isfinite(get, node):
    return apply("lt", apply("abs", get(node.args[0])), _INF)


@pointwise("aten::isposinf", needs=("eq",))
def _isposinf(get, node):
    return apply("eq", get(node.args[0]), _INF)


@pointwise("aten::isneginf", needs=("eq",))
def _isneginf(get, node):
    return apply("eq", get(node.args[0]), const(-math.inf))


@pointwise("aten::nan_to_num", needs=("where", "eq", "ne"))
def _nan_to_num(get, node):
    x = get(node.args[0])
    limits = torch.finfo(torch.float32)
    nan, high, low = (argument(node, k) for k in ("nan", "posinf", "neginf"))
    y = apply("where", is_nan(x), const(0.0 if nan is None else nan), x)
    y = apply("where", apply("eq", x, _INF), const(limits.max if high is None else high), y)
    return apply("where", apply("eq", x, const(-math.inf)), const(limits.min if low is None else low), y)


@pointwise("aten::signbit", needs=("lt", "where"))
def _signbit(get, node):
    return _negative(get(node.args[0]))


def _negative(x: Expr) -> Expr:
    """Whether the sign is minus, that of a zero included."""
    zero = apply("eq", x, const(0.0))
    return apply("lt", apply("where", zero, apply("div", const(1.0), x), x), const(0.0))


@pointwise("aten::copysign.Tensor", "aten::copysign.Scalar", needs=("abs", "where"))
def _copysign(get, node):
    size = apply("abs", get(node.args[0]))
    other = node.args[1]
    if not isinstance(other, fx.Node):
        return apply("neg", size) if math.copysign(1.0, other) < 0 else size
    return apply("where", _negative(get(other)), apply("neg", size), size)


@pointwise("aten::frac", needs=("trunc",))
def _frac(get, node):
    x = get(node.args[0])
    return apply("sub", x, apply("trunc", x))


@pointwise("aten::fmod.Tensor", "aten::fmod.Scalar", needs=("fmod",))
def _fmod(get, node):
    return apply("fmod", get(node.args[0]), get(node.args[1]))


@pointwise("aten::remainder.Scalar_Tensor", needs=("mod",))
def _remainder(get, node):
    return apply("mod", get(node.args[0]), get(node.args[1]))


@pointwise("aten::deg2rad", needs=("div",))
def _deg2rad(get, node):
    return scaled(get(node.args[0]), math.pi / 180)


@pointwise("aten::rad2deg", needs=("div",))
def _rad2deg(get, node):
    return scaled(get(node.args[0]), 180 / math.pi)


@pointwise("aten::erfc", "aten::special_erfc", needs=("erf",))
def _erfc(get, node):
    return apply("sub", const(1.0), apply("erf", get(node.args[0])))


@pointwise("aten::sinc", needs=("sin",))
def _sinc(get, node):
    x = get(node.args[0])
    turned = scaled(x, math.pi)
    return apply("where", apply("eq", x, const(0.0)), const(1.0), apply("div", apply("sin", turned), turned))


@pointwise("aten::logit", needs=("log",))
def _logit(get, node):
    x, eps = get(node.args[0]), argument(node, "eps")
    x = x if eps is None else held(x, eps, 1 - eps)
    return apply("log", apply("div", x, apply("sub", const(1.0), x)))


@pointwise("aten::hypot", needs=("sqrt",))
def _hypot(get, node):
    a, b = get(node.args[0]), get(node.args[1])
    return apply("sqrt", apply("add", apply("mul", a, a), apply("mul", b, b)))


@pointwise("aten::logaddexp", needs=("log1p",))
def _logaddexp(get, node):
    a, b = get(node.args[0]), get(node.args[1])
    gap = apply("abs", apply("sub", a, b))
    sum_ = apply("add", apply("max", a, b), apply("log1p", apply("exp", apply("neg", gap))))
    return apply("where", apply("eq", a, b), apply("add", a, const(math.log(2))), sum_)  # equal infinities too


@pointwise("aten::xlogy.Tensor", "aten::xlogy.Scalar_Other", "aten::xlogy.Scalar_Self", needs=("log",))
def _xlogy(get, node):
    x, y = get(node.args[0]), get(node.args[1])
    product = apply("where", apply("eq", x, const(0.0)), const(0.0), apply("mul", x, apply("log", y)))
    return apply("where", is_nan(y), y, product)


@pointwise("aten::fmax", needs=("max", "where", "ne"))
def _fmax(get, node):
    a, b = get(node.args[0]), get(node.args[1])
    return apply("where", is_nan(a), b, apply("where", is_nan(b), a, apply("max", a, b)))


@pointwise("aten::fmin", needs=("min", "where", "ne"))
def _fmin(get, node):
    a, b = get(node.args[0]), get(node.args[1])
    return apply("where", is_nan(a), b, apply("where", is_nan(b), a, apply("min", a, b)))


@pointwise("aten::heaviside", needs=("lt", "eq", "where"))
def _heaviside(get, node):
    x, at_zero = get(node.args[0]), get(node.args[1])
    step = apply("lt", const(0.0), x)
    return apply("where", apply("eq", x, const(0.0)), at_zero, step)


@pointwise("aten::addcdiv", needs=("div",))
def _addcdiv(get, node):
    quotient = apply("div", get(node.args[1]), get(node.args[2]))
    return apply("add", get(node.args[0]), scaled(quotient, argument(node, "value", 1)))


@pointwise("aten::celu", needs=("expm1",))
def _celu(get, node):
    x, alpha = get(node.args[0]), float(argument(node, "alpha"))
    low = scaled(apply("expm1", scaled(x, 1.0 / alpha)), alpha)
    return apply("where", apply("lt", const(0.0), x), x, low)


@pointwise("aten::selu", needs=("expm1",))
def _selu(get, node):
    x, alpha, scale = get(node.args[0]), 1.6732632423543772, 1.0507009873554805
    return apply("where", apply("lt", const(0.0), x), scaled(x, scale), scaled(apply("expm1", x), alpha * scale))


@pointwise("aten::hardshrink", needs=("lt", "abs", "where"))
def _hardshrink(get, node):
    x = get(node.args[0])
    small = apply("le", apply("abs", x), const(float(argument(node, "lambd"))))
    return apply("where", small, const(0.0), x)


@pointwise("aten::softshrink", needs=("where",))
def _softshrink(get, node):
    x, edge = get(node.args[0]), float(argument(node, "lambd"))
    low = apply("where", apply("lt", x, const(-edge)), apply("add", x, const(edge)), scaled(x, 0.0))
    return apply("where", apply("lt", const(edge), x), apply("sub", x, const(edge)), low)


@pointwise("aten::log_sigmoid", needs=("log1p",))
def _log_sigmoid(get, node):
    x = get(node.args[0])
    return apply("sub", held(x, None, 0.0), apply("log1p", apply("exp", apply("neg", apply("abs", x)))))


# ---- bits ----------------------------------------------------------------------------------------------------------


def _whole(program: Program, node: fx.Node) -> str | None:
    bad = next((n for n in (*node.all_input_nodes, node) if dtype_of(n) not in (*INTEGERS, torch.bool)), None)
    return None if bad is None else f"{bad.name} is {DTYPE_NAMES[dtype_of(bad)]}; only integers are taken"


def _bit_operation(of_bits: str, of_truths: str):
    def build(get, node):
        return apply(of_bits if integer_call(node) else of_truths, get(node.args[0]), get(node.args[1]))

    return build


for _name, _bits, _truths in (("and", "bitand", "and"), ("or", "bitor", "or"), ("xor", "bitxor", "ne")):
    pointwise(f"aten::bitwise_{_name}.Tensor", f"aten::bitwise_{_name}.Scalar", f"aten::__{_name}__.Tensor",
              f"aten::__{_name}__.Scalar", needs=(_bits,), check=_whole)(_bit_operation(_bits, _truths))  # fmt: skip


@pointwise("aten::bitwise_not", needs=("bitnot",), check=_whole)
def _bitwise_not(get, node):
    return apply("bitnot" if integer_call(node) else "not", get(node.args[0]))


@pointwise("aten::bitwise_left_shift.Tensor", "aten::bitwise_left_shift.Tensor_Scalar", "aten::__lshift__.Scalar",
           "aten::__lshift__.Tensor", needs=("shl",), check=_whole)  # fmt: skip
def _left_shift(get, node):
    return apply("shl", get(node.args[0]), get(node.args[1]))


@pointwise("aten::bitwise_right_shift.Tensor", "aten::bitwise_right_shift.Tensor_Scalar", "aten::__rshift__.Scalar",
           "aten::__rshift__.Tensor", needs=("shr",), check=_whole)  # fmt: skip
def _right_shift(get, node):
    return apply("shr", get(node.args[0]), get(node.args[1]))


def _truth(x: Expr) -> Expr:
    return apply("ne", x, const(0.0))


@pointwise("aten::logical_xor", needs=("ne",))
def _logical_xor(get, node):
    return apply("ne", _truth(get(node.args[0])), _truth(get(node.args[1])))

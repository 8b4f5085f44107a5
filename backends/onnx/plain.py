"""Rules of operators that ONNX has too: arithmetic, comparisons, functions of one value, reductions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from vqc.backends.onnx.graph import Graph, Results, axis_of, need, rule
from vqc.program import dtype_of, shape_of

# ---- arithmetic ------------------------------------------------------------------------------------------------------

_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min"}
_COMPARE = {"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal"}
_BOTH = ("Tensor", "Scalar")


def _alpha(g: Graph, bound: dict[str, Any], value: str, dtype: torch.dtype) -> str:
    alpha = bound.get("alpha", 1)
    return value if alpha == 1 else g.emit("Mul", value, g.number(alpha, dtype))


def _two(op: str, flipped: bool = False) -> Any:
    def apply(g: Graph, node: fx.Node) -> Results:
        bound, dtype = g.bound(node), dtype_of(node)
        need(bound.get("rounding_mode") is None, "a division with a rounding mode")
        if dtype == torch.bool and op == "Mul":
            return g.emit("And", g.value(bound["self"], dtype), g.value(bound["other"], dtype))
        need(dtype != torch.bool, f"{op} of booleans")
        first, other = g.value(bound["self"], dtype), g.value(bound["other"], dtype)
        if flipped:
            return g.emit(op, other, _alpha(g, bound, first, dtype))
        return g.emit(op, first, _alpha(g, bound, other, dtype))

    return apply


def _compared(op: str, negate: bool = False) -> Any:
    def apply(g: Graph, node: fx.Node) -> Results:
        bound = g.bound(node)
        kinds = [dtype_of(a) for a in (bound["self"], bound["other"]) if isinstance(a, fx.Node)]
        dtype = kinds[0] if len(kinds) == 1 else torch.promote_types(*kinds)
        if len(kinds) == 1 and isinstance(bound["other"], float) and not dtype.is_floating_point:
            dtype = torch.float32
        if dtype == torch.bool:
            dtype = torch.int32
        found = g.emit(op, g.value(bound["self"], dtype), g.value(bound["other"], dtype))
        return g.emit("Not", found) if negate else found

    return apply


for _name, _op in _BINARY.items():
    rule(*(f"aten::{_name}.{kind}" for kind in _BOTH), f"aten::{_name}")(_two(_op))
rule("aten::rsub.Scalar", "aten::rsub.Tensor")(_two("Sub", flipped=True))
for _name, _op in _COMPARE.items():
    rule(*(f"aten::{_name}.{kind}" for kind in _BOTH))(_compared(_op))
rule("aten::ne.Tensor", "aten::ne.Scalar")(_compared("Equal", negate=True))


@rule("aten::pow.Tensor_Scalar", "aten::pow.Tensor_Tensor")
def _power(g: Graph, node: fx.Node) -> Results:
    bound, dtype = g.bound(node), dtype_of(node)
    return g.emit("Pow", g.value(bound["self"], dtype), g.value(bound["exponent"], dtype))


@rule("aten::pow.Scalar")
def _power_of_a_number(g: Graph, node: fx.Node) -> Results:
    bound, dtype = g.bound(node), dtype_of(node)
    return g.emit("Pow", g.number(bound["self"], dtype), g.value(bound["exponent"], dtype))


@rule("aten::square")
def _square(g: Graph, node: fx.Node) -> Results:
    x = g.value(node.args[0])
    return g.emit("Mul", x, x)


@rule("aten::lerp.Tensor", "aten::lerp.Scalar")
def _lerp(g: Graph, node: fx.Node) -> Results:
    bound, dtype = g.bound(node), dtype_of(node)
    a, b, w = (g.value(bound[k], dtype) for k in ("self", "end", "weight"))
    return g.emit("Add", a, g.emit("Mul", w, g.emit("Sub", b, a)))


@rule("aten::logical_and", "aten::bitwise_and.Tensor", "aten::logical_or", "aten::bitwise_or.Tensor")
def _logical(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    need(dtype_of(node) == torch.bool, "bits of integers")
    op = "And" if "and" in node.target.name() else "Or"
    return g.emit(op, g.value(bound["self"], torch.bool), g.value(bound["other"], torch.bool))


@rule("aten::logical_not", "aten::bitwise_not")
def _not(g: Graph, node: fx.Node) -> Results:
    need(dtype_of(node) == torch.bool, "bits of integers")
    return g.emit("Not", g.value(node.args[0], torch.bool))


@rule("aten::where.self")
def _where(g: Graph, node: fx.Node) -> Results:
    bound, dtype = g.bound(node), dtype_of(node)
    return g.emit("Where", g.value(bound["condition"], torch.bool), g.value(bound["self"], dtype),
                  g.value(bound["other"], dtype))  # fmt: skip


@rule("aten::masked_fill.Scalar", "aten::masked_fill.Tensor")
def _masked_fill(g: Graph, node: fx.Node) -> Results:
    bound, dtype = g.bound(node), dtype_of(node)
    return g.emit(
        "Where", g.value(bound["mask"], torch.bool), g.value(bound["value"], dtype), g.value(bound["self"], dtype)
    )


@rule("aten::clamp", "aten::clamp_min", "aten::clamp_max", "aten::hardtanh", "aten::relu6")
def _clamp(g: Graph, node: fx.Node) -> Results:
    bound, dtype = g.bound(node), dtype_of(node)
    name = node.target.name()
    low, high = bound.get("min", bound.get("min_val")), bound.get("max", bound.get("max_val"))
    if name == "aten::relu6":
        low, high = 0, 6
    low, high = ("" if v is None else g.value(v, dtype) for v in (low, high))
    return g.emit("Clip", g.value(bound["self"], dtype), low, high)


# ---- functions of one value ------------------------------------------------------------------------------------------

_ONE = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "neg": "Neg",
        "abs": "Abs", "floor": "Floor", "ceil": "Ceil", "round": "Round", "sin": "Sin", "cos": "Cos", "erf": "Erf",
        "sign": "Sign", "reciprocal": "Reciprocal", "hardswish": "HardSwish", "softplus": "Softplus",
        "mish": "Mish", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh",
        "selu": "Selu"}  # fmt: skip
_EXACT = ("sigmoid", "tanh", "exp", "hardswish")  # of vqc's own, whose ONNX twins round otherwise


def _unary(op: str) -> Any:
    def apply(g: Graph, node: fx.Node) -> Results:
        bound = g.bound(node)
        need(bound.get("beta", 1) == 1 and bound.get("decimals", 0) == 0, "an argument that is not the default")
        need(op != "Softplus" or bound.get("threshold", 20) >= 20, "a threshold below 20")
        return g.emit(op, g.value(node.args[0], dtype_of(node)))

    return apply


for _name, _op in _ONE.items():
    rule(f"aten::{_name}", *([f"vqc::{_name}"] if _name in _EXACT else []))(_unary(_op))


@rule("aten::expm1", "aten::log1p")
def _near_one(g: Graph, node: fx.Node) -> Results:
    x, one = g.value(node.args[0], dtype_of(node)), g.number(1, dtype_of(node))
    if node.target.name() == "aten::expm1":
        return g.emit("Sub", g.emit("Exp", x), one)
    return g.emit("Log", g.emit("Add", x, one))


@rule("aten::log2", "aten::log10")
def _logarithm(g: Graph, node: fx.Node) -> Results:
    base = 2 if node.target.name() == "aten::log2" else 10
    found = g.emit("Log", g.value(node.args[0], dtype_of(node)))
    return g.emit("Mul", found, g.number(1 / math.log(base), dtype_of(node)))


@rule("aten::log_sigmoid", "aten::log_sigmoid_forward")
def _log_sigmoid(g: Graph, node: fx.Node) -> Results:
    need(node.target.name() == "aten::log_sigmoid", "its buffer is a result too")
    return g.emit("Neg", g.emit("Softplus", g.emit("Neg", g.value(node.args[0]))))


@rule("aten::glu")
def _glu(g: Graph, node: fx.Node) -> Results:
    x = node.args[0]
    axis = axis_of(x, g.bound(node)["dim"])
    half = g.constant([shape_of(node)[axis]] * 2, "sizes")
    first, gate = g.emit_many("Split", [g.value(x), half], [None, None], axis=axis)
    return g.emit("Mul", first, g.emit("Sigmoid", gate))


@rule("aten::hardsigmoid", "vqc::hardsigmoid")
def _hardsigmoid(g: Graph, node: fx.Node) -> Results:
    return g.emit("HardSigmoid", g.value(node.args[0]), alpha=1 / 6, beta=0.5)


@rule("aten::silu", "vqc::silu")
def _silu(g: Graph, node: fx.Node) -> Results:
    x = g.value(node.args[0])
    return g.emit("Mul", x, g.emit("Sigmoid", x))


@rule("aten::rsqrt")
def _rsqrt(g: Graph, node: fx.Node) -> Results:
    return g.emit("Reciprocal", g.emit("Sqrt", g.value(node.args[0])))


@rule("aten::gelu")
def _gelu(g: Graph, node: fx.Node) -> Results:
    return g.emit("Gelu", g.value(node.args[0]), approximate=g.bound(node)["approximate"])


@rule("aten::leaky_relu")
def _leaky(g: Graph, node: fx.Node) -> Results:
    return g.emit("LeakyRelu", g.value(node.args[0]), alpha=float(g.bound(node)["negative_slope"]))


@rule("aten::elu")
def _elu(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    need(bound["scale"] == 1 and bound["input_scale"] == 1, "an ELU with scales")
    return g.emit("Elu", g.value(node.args[0]), alpha=float(bound["alpha"]))


@rule("aten::prelu", "aten::_prelu_kernel")
def _prelu(g: Graph, node: fx.Node) -> Results:
    x, slope = node.args[:2]
    weight, rank = g.known(slope, "the slope"), len(shape_of(x))
    if weight.numel() > 1 and weight.ndim == 1:
        weight = weight.view(-1, *[1] * (rank - 2))
    return g.emit("PRelu", g.value(x), g.constant(weight.numpy(), f"{slope.target}"))


@rule("aten::_softmax", "aten::softmax.int", "aten::log_softmax.int", "aten::_log_softmax")
def _softmax(g: Graph, node: fx.Node) -> Results:
    op = "LogSoftmax" if "log" in node.target.name() else "Softmax"
    return g.emit(op, g.value(node.args[0], dtype_of(node)), axis=axis_of(node.args[0], node.args[1]))


# ---- sums ------------------------------------------------------------------------------------------------------------

_REDUCE = {"aten::mean.dim": "ReduceMean", "aten::sum.dim_IntList": "ReduceSum", "aten::amax": "ReduceMax",
           "aten::amin": "ReduceMin", "aten::mean": "ReduceMean", "aten::sum": "ReduceSum", "aten::max": "ReduceMax",
           "aten::min": "ReduceMin"}  # fmt: skip


@rule(*_REDUCE)
def _reduce(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    dims = bound.get("dim") or list(range(len(shape_of(x))))
    axes = [axis_of(x, d) for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
    return g.emit(_REDUCE[node.target.name()], g.value(x, dtype_of(node)), g.constant(axes, "axes"),
                  keepdims=int(bound.get("keepdim", False)))  # fmt: skip


@rule("vqc::mean_hw")
def _mean_hw(g: Graph, node: fx.Node) -> Results:
    return g.emit("ReduceMean", g.value(node.args[0]), g.constant([2, 3], "axes"), keepdims=1)


@rule("aten::matmul", "aten::mm", "aten::bmm")
def _matmul(g: Graph, node: fx.Node) -> Results:
    return g.emit("MatMul", g.value(node.args[0]), g.value(node.args[1]))


@rule("aten::linear")
def _linear(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    weight = g.emit("Transpose", g.value(bound["weight"]), perm=[1, 0])
    y = g.emit("MatMul", g.value(bound["input"]), weight)
    return y if bound["bias"] is None else g.emit("Add", y, g.value(bound["bias"]))


@rule("aten::addmm")
def _addmm(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    return g.emit("Gemm", g.value(bound["mat1"]), g.value(bound["mat2"]), g.value(bound["self"]),
                  alpha=float(bound["alpha"]), beta=float(bound["beta"]))  # fmt: skip


def same_zoom(size: int, out: int, zoom: float | None) -> float:
    """The zoom factor of an axis that ONNX is to be told: the user's own where there is one."""
    if zoom is not None and size != out and math.floor(size * zoom) == out:
        return float(zoom)
    return out / size

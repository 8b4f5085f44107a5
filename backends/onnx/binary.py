"""Operators that ONNX does not have, as functions of the domain `ai.vqc` with a body of standard operators.

A runtime that knows a function by its name and domain may put its own kernel in its place; every other one computes the
body. Sums of +1 and -1 are exact in float32 below 2^24 taps, the scale and the shift are rounded once each: the body
has the reference's bits wherever a runtime does not contract.

    Binarize(x, tau) -> s8             -1 where x < tau, else +1
    BConv2d(x, w, scale, bias)         sum of x * w over the taps inside the picture, * scale, + bias
    BConv2dThreshold(x, w, threshold, flip) -> s8
    MaskedBConv2d(x, w, scale, bias, mask), MaskedConv2d(x, w, bias, mask)   0 where the mask is false

    Exp, Sigmoid, Tanh, HardSigmoid, HardSwish, Silu (x)    the steps of `vqc.ops.exact`, each rounded; style "exact"

scale, bias, threshold and flip are [1,O,1,1], tau is [1,C,1,1] or one value, mask [N,1,H,W].
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import fx

from vqc.backends.onnx.graph import DOMAIN, OPSET, Graph, Results, array_of, rule
from vqc.backends.onnx.layers import conv_attributes
from vqc.ops.exact import EXP_COEFFICIENTS, EXP_HIGH, EXP_LOW, LN2_HI, LN2_LO, LOG2E, SIXTH
from vqc.program import shape_of

_CONV = ("strides", "pads", "dilations")


def _column(g: Graph, argument: object, what: str, channels: int) -> str:
    """A value for each channel as [1,O,1,1]; zeros where there is none."""
    if argument is None:
        return g.constant(np.zeros((1, channels, 1, 1), np.float32), "no_bias")
    return g.constant(array_of(g.known(argument, what)).reshape(1, -1, 1, 1), what)


def _attributes(bound: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in conv_attributes({**bound, "groups": 1}).items() if k in _CONV}


@rule("vqc::binarize")
def _binarize(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    return g.emit("Binarize", g.value(b["x"]), _column(g, b["tau"], "tau", 1), domain=DOMAIN)


@rule("vqc::bconv2d", "vqc::masked_bconv2d")
def _bconv(g: Graph, node: fx.Node) -> Results:
    b, channels = g.bound(node), shape_of(node)[1]
    inputs = [g.value(b["x"]), g.value(b["weight"]), _column(g, b["scale"], "scale", channels),
              _column(g, b["bias"], "bias", channels)]  # fmt: skip
    if "mask" not in b:
        return g.emit("BConv2d", *inputs, domain=DOMAIN, **_attributes(b))
    return g.emit("MaskedBConv2d", *inputs, g.value(b["mask"]), domain=DOMAIN, **_attributes(b))


@rule("vqc::bconv2d_threshold")
def _threshold(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    threshold = g.known(b["threshold"], "the threshold").to(torch.float32)
    flip = array_of(g.known(b["flip"], "flip")).reshape(1, -1, 1, 1)
    return g.emit("BConv2dThreshold", g.value(b["x"]), g.value(b["weight"]),
                  g.constant(threshold.numpy().reshape(1, -1, 1, 1), "threshold"), g.constant(flip, "flip"),
                  domain=DOMAIN, **_attributes(b))  # fmt: skip


@rule("vqc::masked_conv2d")
def _masked_conv(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    bias = g.constant(np.zeros(shape_of(node)[1], np.float32), "no_bias") if b["bias"] is None else g.value(b["bias"])
    return g.emit("MaskedConv2d", g.value(b["x"]), g.value(b["weight"]), bias, g.value(b["mask"]), domain=DOMAIN,
                  **conv_attributes(b))  # fmt: skip


# ---- the bodies ------------------------------------------------------------------------------------------------------


def _node(op: str, inputs: str, out: str, *, given: tuple[str, ...] = (), **attributes: object) -> onnx.NodeProto:
    """A node of a body; `given`: attributes that are the function's own."""
    node = helper.make_node(op, inputs.split(), [out], **attributes)
    for name in given:
        kind = onnx.AttributeProto.INT if name == "group" else onnx.AttributeProto.INTS
        node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=kind))
    return node


def _number(value: float, out: str, kind: int = TensorProto.FLOAT) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [out], value=helper.make_tensor(out, kind, [], [value]))


def _sums() -> list[onnx.NodeProto]:
    return [_node("Cast", "x", "xf", to=TensorProto.FLOAT), _node("Cast", "w", "wf", to=TensorProto.FLOAT),
            _node("Conv", "xf wf", "acc", given=_CONV)]  # fmt: skip


def _scaled(out: str) -> list[onnx.NodeProto]:
    return [*_sums(), _node("Mul", "acc scale", "scaled"), _node("Add", "scaled bias", out)]


def _kept(y: str) -> list[onnx.NodeProto]:
    return [_number(0.0, "zero"), _node("Where", f"mask {y} zero", "y")]


_SIGNS = [_number(1, "plus", TensorProto.INT8), _number(-1, "minus", TensorProto.INT8)]
_BODIES: dict[str, tuple[str, tuple[str, ...], list[onnx.NodeProto]]] = {
    "Binarize": ("x tau", (), [_node("Less", "x tau", "below"), *_SIGNS, _node("Where", "below minus plus", "y")]),
    "BConv2d": ("x w scale bias", _CONV, _scaled("y")),
    "BConv2dThreshold": ("x w threshold flip", _CONV, [
        *_sums(), _node("GreaterOrEqual", "acc threshold", "above"), _node("Xor", "above flip", "positive"), *_SIGNS,
        _node("Where", "positive plus minus", "y")]),
    "MaskedBConv2d": ("x w scale bias mask", _CONV, [*_scaled("dense"), *_kept("dense")]),
    "MaskedConv2d": ("x w bias mask", (*_CONV, "group"), [
        _node("Conv", "x w bias", "dense", given=(*_CONV, "group")), *_kept("dense")]),
}  # fmt: skip


def _exponential(x: str, out: str) -> list[onnx.NodeProto]:
    """e^x in the steps of `vqc.ops.exact`; 2^k is exact for a whole k."""
    numbers = {"low": EXP_LOW, "high": EXP_HIGH, "log2e": LOG2E, "hi": LN2_HI, "lo": LN2_LO, "two": 2.0}
    nodes = [_number(v, k) for k, v in numbers.items()]
    nodes += [_number(c, f"c{i}") for i, c in enumerate(EXP_COEFFICIENTS)]
    nodes += [
        _node("Clip", f"{x} low high", "held"), _node("Mul", "held log2e", "scaled"), _node("Round", "scaled", "k"),
        _node("Mul", "k hi", "khi"), _node("Sub", "held khi", "upper"), _node("Mul", "k lo", "klo"),
        _node("Sub", "upper klo", "r"), _node("Mul", "r c0", "p0"),
    ]  # fmt: skip
    last = len(EXP_COEFFICIENTS) - 1
    for i in range(1, last):
        nodes += [_node("Add", f"p{i - 1} c{i}", f"s{i}"), _node("Mul", f"s{i} r", f"p{i}")]
    return [*nodes, _node("Add", f"p{last - 1} c{last}", "p"), _node("Pow", "two k", "power"),
            _node("Mul", "p power", out)]  # fmt: skip


def _logistic(out: str) -> list[onnx.NodeProto]:
    return [_node("Neg", "x", "minus"), *_exponential("minus", "e"), _number(1.0, "one"),
            _node("Add", "e one", "below"), _node("Div", "one below", out)]  # fmt: skip


def _gate(out: str) -> list[onnx.NodeProto]:
    return [_number(3.0, "three"), _number(0.0, "none"), _number(6.0, "six"), _number(SIXTH, "sixth"),
            _node("Add", "x three", "moved"), _node("Clip", "moved none six", "cut"),
            _node("Mul", "cut sixth", out)]  # fmt: skip


_BODIES |= {
    "Exp": ("x", (), _exponential("x", "y")),
    "Sigmoid": ("x", (), _logistic("y")),
    "Tanh": ("x", (), [_number(2.0, "double"), _node("Mul", "x double", "twice"), *_exponential("twice", "e"),
                       _number(1.0, "one"), _node("Add", "e one", "below"), _node("Div", "double below", "part"),
                       _node("Sub", "one part", "y")]),
    "HardSigmoid": ("x", (), _gate("y")),
    "HardSwish": ("x", (), [*_gate("gate"), _node("Mul", "x gate", "y")]),
    "Silu": ("x", (), [*_logistic("gate"), _node("Mul", "x gate", "y")]),
}  # fmt: skip


def function(name: str) -> onnx.FunctionProto:
    """The function of this name with its body."""
    inputs, attributes, body = _BODIES[name]
    return helper.make_function(DOMAIN, name, inputs.split(), ["y"], body, [helper.make_opsetid("", OPSET)],
                                attributes=list(attributes))  # fmt: skip

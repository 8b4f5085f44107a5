"""Rules of integer layers: QuantizeLinear and DequantizeLinear around float layers, as ONNX writes quantization.

vqc's integer layer is acc * scale[o] + bias[o] with acc the exact sum of (x - x_zero) * w. In QDQ form the picture is
(x - x_zero) * sx, the weight w * (scale[o] / sx), and the layer is float. sx is the scale the picture was quantized by;
where it has one for each channel, those are in the integer weight already, and sx is 1: the values a runtime sees are
then the integers themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import fx

from vqc.backends.onnx.graph import DOMAIN, ELEMENT, Graph, Results, array_of, axis_of, need, rule
from vqc.backends.onnx.layers import conv_attributes
from vqc.interop.decomposed import picture_scale
from vqc.program import dtype_of, shape_of

# ---- quantize and dequantize -----------------------------------------------------------------------------------------


def _zero(g: Graph, zero: np.ndarray, dtype: torch.dtype) -> str:
    info = torch.iinfo(dtype)
    need(bool((zero >= info.min).all() and (zero <= info.max).all()), f"a zero point outside {dtype}")
    return g.constant(zero.astype(np.dtype(str(dtype).removeprefix("torch."))), "zero_point")


def quantized(g: Graph, x: str, scale: np.ndarray, zero: np.ndarray, low: int, high: int, dtype: torch.dtype,
              axis: int | None = None) -> str:  # fmt: skip
    """QuantizeLinear, and a Clip where fewer levels than the dtype's are used. `zero` outside them: spelled out."""
    info = torch.iinfo(dtype)
    attributes = {} if axis is None else {"axis": axis}
    q = g.emit("QuantizeLinear", x, g.constant(scale.astype(np.float32), "scale"), _zero(g, zero, dtype), **attributes)
    if (low, high) != (info.min, info.max):
        q = g.emit("Clip", q, g.number(low, dtype), g.number(high, dtype))
    return q


def dequantized(
    g: Graph, q: str, scale: np.ndarray, zero: np.ndarray, dtype: torch.dtype, axis: int | None = None
) -> str:
    attributes = {} if axis is None else {"axis": axis}
    return g.emit(
        "DequantizeLinear", q, g.constant(scale.astype(np.float32), "scale"), _zero(g, zero, dtype), **attributes
    )


@rule("quantized_decomposed::quantize_per_tensor")
def _quantize(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    return quantized(g, g.value(b["input"]), np.array(b["scale"]), np.array(b["zero_point"]), b["quant_min"],
                     b["quant_max"], dtype_of(node))  # fmt: skip


@rule("quantized_decomposed::quantize_per_channel")
def _quantize_channel(g: Graph, node: fx.Node) -> Results:
    """With zero points that the dtype does not hold (a picture's own grid) it is x / scale + zero, rounded and cut."""
    b = g.bound(node)
    scale, zero = (array_of(g.known(b[k], k)) for k in ("scales", "zero_points"))
    info = torch.iinfo(dtype_of(node))
    if zero.min() >= info.min and zero.max() <= info.max:
        return quantized(g, g.value(b["input"]), scale, zero, b["quant_min"], b["quant_max"], dtype_of(node), b["axis"])
    shape = [1] * len(shape_of(node))
    shape[b["axis"]] = -1
    inverse = g.constant((1 / scale.astype(np.float32)).reshape(shape), "inverse")
    return clipped(g, g.emit("Mul", g.value(b["input"]), inverse), zero, b["quant_min"], b["quant_max"], dtype_of(node),
                   b["axis"], len(shape_of(node)))  # fmt: skip


def clipped(g: Graph, y: str, zero: np.ndarray, low: int, high: int, dtype: torch.dtype, axis: int, rank: int) -> str:
    """A value in units of its step, rounded, its zero points added, cut to the levels there are, and cast."""
    shape = [1] * rank
    shape[axis] = -1
    y = g.emit("Add", g.emit("Round", y), g.constant(zero.astype(np.float32).reshape(shape), "zero_point"))
    y = g.emit("Clip", y, g.number(low, torch.float32), g.number(high, torch.float32))
    return g.emit("Cast", y, to=ELEMENT[dtype])


@rule("quantized_decomposed::dequantize_per_tensor")
def _dequantize(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    return dequantized(g, g.value(b["input"]), np.array(b["scale"]), np.array(b["zero_point"]), dtype_of(node.args[0]))


@rule("quantized_decomposed::dequantize_per_channel")
def _dequantize_channel(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    scale = array_of(g.known(b["scales"], "the scales"))
    zero = np.zeros(scale.shape, np.int64) if b["zero_points"] is None else array_of(g.known(b["zero_points"], "zeros"))
    return centred(g, g.value(b["input"]), scale, zero, dtype_of(node.args[0]), b["axis"], len(shape_of(node)))


def centred(
    g: Graph, q: str, scale: np.ndarray, zero: np.ndarray, dtype: torch.dtype, axis: int | None, rank: int
) -> str:
    """DequantizeLinear, or its arithmetic where a zero point is outside the dtype."""
    info = torch.iinfo(dtype)
    if zero.min() >= info.min and zero.max() <= info.max:
        return dequantized(g, q, scale, zero, dtype, axis)
    shape = [1] * rank
    if axis is not None:
        shape[axis] = -1
    y = g.emit(
        "Sub", g.emit("Cast", q, to=TensorProto.FLOAT), g.constant(zero.astype(np.float32).reshape(shape), "zero")
    )
    return g.emit("Mul", y, g.constant(np.broadcast_to(scale, zero.shape).astype(np.float32).reshape(shape), "scale"))


# ---- layers ----------------------------------------------------------------------------------------------------------


def picture(g: Graph, x: fx.Node, x_zero: Any, channel_axis: int) -> tuple[str, float]:
    """The dequantized picture, and its scale."""
    zero = array_of(g.known(x_zero, "the zero point"))
    rank = len(shape_of(x))
    if zero.size > 1 and (zero == zero[0]).all():
        zero = zero[:1]
    scale = picture_scale(x) if zero.size == 1 else 1.0
    if zero.size == 1:
        return centred(g, g.value(x), np.array(scale), zero.reshape(()), dtype_of(x), None, rank), scale
    return centred(g, g.value(x), np.full(zero.shape, scale), zero, dtype_of(x), channel_axis, rank), scale


def weight_of(g: Graph, weight: Any, scale: np.ndarray, axis: int, name: str, turned: bool = False) -> str:
    """A dequantized weight: 4-bit integers where 4 bits hold it, with a scale for each output channel."""
    values = array_of(g.known(weight, "the weight"))
    values = np.ascontiguousarray(values.T) if turned else values
    kind = TensorProto.INT4 if values.dtype == np.int8 and values.size and np.abs(values).max() <= 7 else None
    stored = g.constant(values.astype(np.int32) if kind else values, name, kind)
    return g.emit("DequantizeLinear", stored, g.constant(scale.astype(np.float32), "weight_scale"), axis=axis)


def requantized(g: Graph, node: fx.Node, y: str) -> str:
    """The activation and the QuantizeLinear of a layer with an 8-bit result; `y` itself for one with a float result."""
    b = g.bound(node)
    if "inv_scale" not in b:
        return y
    if b["activation"] == "relu":
        y = g.emit("Relu", y)
    scale = np.float32(1) / np.float32(b["inv_scale"])
    return quantized(g, y, np.array(scale), np.array(b["zero_point"]), 0, 255, torch.uint8)


def _output_scale(g: Graph, bound: dict[str, Any], x_scale: float) -> np.ndarray:
    return (array_of(g.known(bound["scale"], "the scale")).astype(np.float64) / x_scale).astype(np.float32)


def integer_conv(g: Graph, bound: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Inputs and attributes of the float convolution that an integer one is."""
    x, scale = picture(g, bound["x"], bound["x_zero"], 1)
    weight = weight_of(g, bound["weight"], _output_scale(g, bound, scale), 0, f"{bound['weight'].target}_q")
    bias = [] if bound["bias"] is None else [g.value(bound["bias"])]
    return [x, weight, *bias], conv_attributes(bound)


@rule("vqc::qconv2d", "vqc::qconv2d_requantize")
def _qconv(g: Graph, node: fx.Node) -> Results:
    inputs, attributes = integer_conv(g, g.bound(node))
    return requantized(g, node, g.emit("Conv", *inputs, **attributes))


@rule("vqc::masked_qconv2d", "vqc::masked_qconv2d_requantize")
def _masked_qconv(g: Graph, node: fx.Node) -> Results:
    """A layer under a mask is a function of ai.vqc; what the mask leaves out is 0, which its zero point stands for."""
    bound = g.bound(node)
    inputs, attributes = integer_conv(g, bound)
    if bound["bias"] is None:
        inputs.append(g.constant(np.zeros(shape_of(node)[1], np.float32), "no_bias"))
    y = g.emit("MaskedConv2d", *inputs, g.value(bound["mask"]), domain=DOMAIN, **attributes)
    return requantized(g, node, y)


@rule("vqc::qconv_transpose2d", "vqc::qconv_transpose2d_requantize")
def _qconv_transpose(g: Graph, node: fx.Node) -> Results:
    """The weight is [C, O/groups, kh, kw]: its output channels are axis 1, and groups share its scales."""
    b = g.bound(node)
    x, scale = picture(g, b["x"], b["x_zero"], 1)
    scales, each = _output_scale(g, b, scale), shape_of(b["weight"])[1]
    shared = scales.reshape(-1, each)
    same = bool((shared == shared[0]).all())
    attributes = {**conv_attributes(b), "output_padding": list(b["output_padding"])}
    name = f"{b['weight'].target}_q"
    bias = [] if b["bias"] is None else [g.value(b["bias"])]
    if same:
        weight = weight_of(g, b["weight"], shared[0], 1, name)
        return requantized(g, node, g.emit("ConvTranspose", x, weight, *bias, **attributes))
    weight = weight_of(g, b["weight"], np.ones(each), 1, name)
    y = g.emit(
        "Mul", g.emit("ConvTranspose", x, weight, **attributes), g.constant(scales.reshape(1, -1, 1, 1), "scale")
    )
    if bias:
        y = g.emit("Add", y, g.emit("Reshape", bias[0], g.constant([1, -1, 1, 1], "shape")))
    return requantized(g, node, y)


@rule("vqc::qlinear", "vqc::qlinear_requantize")
def _qlinear(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    x, scale = picture(g, b["x"], b["x_zero"], axis_of(b["x"], -1))
    weight = weight_of(g, b["weight"], _output_scale(g, b, scale), 1, f"{b['weight'].target}_q", turned=True)
    y = g.emit("MatMul", x, weight)
    if b["bias"] is not None:
        y = g.emit("Add", y, g.value(b["bias"]))
    return requantized(g, node, y)


@rule("vqc::lut")
def _lut(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    return g.emit("Gather", g.value(b["table"]), g.emit("Cast", g.value(b["x"]), to=TensorProto.INT32), axis=0)

"""Rules with the reference's own operations, each rounded where it rounds: the model then has its integers.

A picture is dequantized by 1, so a convolution adds whole numbers, which float32 does without rounding below 2^24 in
any order; the scale and the bias come after it. Functions are spelled out as `ai.vqc` functions, ordered sums as the
additions they are. What would take too many stays as it is: `conv2d` of many taps, `conv_transpose2d` and `grid_sample`
of vqc; and the float layers, which have no order.
A runtime must not contract, nor move a Mul into the convolution before it: run these models without optimization.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import fx

from vqc.backends.onnx.graph import DOMAIN, RULES, Graph, Results, array_of, need, rule
from vqc.backends.onnx.layers import conv_attributes
from vqc.backends.onnx.quantized import centred, clipped, quantized
from vqc.ops._common import FLOAT_EXACT
from vqc.ops.pool import LANES, pool_windows
from vqc.ops.resample import bilinear_table
from vqc.program import dtype_of, shape_of

LARGEST_WINDOW = 16  # of an average that is spelled out
MOST_TAPS = 64  # of a float convolution that is


def _column(values: np.ndarray, rank: int = 4, axis: int = 1) -> np.ndarray:
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


@rule("quantized_decomposed::quantize_per_tensor", exact=True)
def _quantize(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    inverse = np.float32(1.0 / b["scale"])
    y = g.emit("Mul", g.value(b["input"]), g.constant(np.array(inverse), "inverse"))
    return quantized(g, y, np.array(1.0), np.array(b["zero_point"]), b["quant_min"], b["quant_max"], dtype_of(node))


@rule("quantized_decomposed::quantize_per_channel", exact=True)
def _quantize_channel(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    scale, zero = array_of(g.known(b["scales"], "the scales")), array_of(g.known(b["zero_points"], "the zero points"))
    inverse = (1.0 / scale).astype(np.float32)
    y = g.emit("Mul", g.value(b["input"]), g.constant(_column(inverse, len(shape_of(node)), b["axis"]), "inverse"))
    return clipped(g, y, zero, b["quant_min"], b["quant_max"], dtype_of(node), b["axis"], len(shape_of(node)))


def _whole(g: Graph, x: fx.Node, x_zero: Any, weight: torch.Tensor, sums: tuple[int, ...]) -> str:
    """The picture as whole numbers; CannotExport where a sum may leave what float32 holds."""
    zero = array_of(g.known(x_zero, "the zero point")).astype(np.int64)
    info = torch.iinfo(dtype_of(x))
    peak = max(int(info.max - zero.min()), int(zero.max() - info.min))
    reach = int(weight.abs().long().sum(sums).max())
    need(peak * reach < FLOAT_EXACT, "a sum may reach 2^24, which float32 does not hold exactly")
    if zero.size > 1 and (zero == zero[0]).all():
        zero = zero[:1]
    if zero.size == 1:
        return centred(g, g.value(x), np.array(1.0), zero.reshape(()), dtype_of(x), None, len(shape_of(x)))
    return centred(g, g.value(x), np.ones(zero.shape), zero, dtype_of(x), 1, len(shape_of(x)))


def _weight(g: Graph, b: dict[str, Any], turned: bool = False) -> str:
    values = array_of(g.known(b["weight"], "the weight"))
    stored = g.constant(np.asarray(values.T, order="C") if turned else values, f"{b['weight'].target}_q")
    return g.emit("DequantizeLinear", stored, g.constant(np.array(1.0, np.float32), "scale"))


def _finished(g: Graph, node: fx.Node, acc: str, rank: int, axis: int) -> str:
    """acc * scale + bias, a mask, an activation and the requantization."""
    b = g.bound(node)
    scale = array_of(g.known(b["scale"], "the scale"))
    y = g.emit("Mul", acc, g.constant(_column(scale, rank, axis), "scale"))
    if b["bias"] is not None:
        y = g.emit("Add", y, g.constant(_column(array_of(g.known(b["bias"], "the bias")), rank, axis), "bias"))
    if "mask" in b:
        y = g.emit("Where", g.value(b["mask"]), y, g.number(0.0, torch.float32))
    if "inv_scale" not in b:
        return y
    if b["activation"] == "relu":
        y = g.emit("Relu", y)
    y = g.emit("Mul", y, g.constant(np.array(np.float32(b["inv_scale"])), "inverse"))
    return quantized(g, y, np.array(1.0), np.array(b["zero_point"]), 0, 255, torch.uint8)


@rule("vqc::qconv2d", "vqc::qconv2d_requantize", "vqc::masked_qconv2d", "vqc::masked_qconv2d_requantize", exact=True)
def _conv(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    x = _whole(g, b["x"], b["x_zero"], g.known(b["weight"], "the weight"), (1, 2, 3))
    return _finished(g, node, g.emit("Conv", x, _weight(g, b), **conv_attributes(b)), 4, 1)


@rule("vqc::qconv_transpose2d", "vqc::qconv_transpose2d_requantize", exact=True)
def _conv_transpose(g: Graph, node: fx.Node) -> Results:
    b = g.bound(node)
    x = _whole(g, b["x"], b["x_zero"], g.known(b["weight"], "the weight"), (0, 2, 3))
    acc = g.emit("ConvTranspose", x, _weight(g, b), **conv_attributes(b), output_padding=list(b["output_padding"]))
    return _finished(g, node, acc, 4, 1)


@rule("vqc::qlinear", "vqc::qlinear_requantize", exact=True)
def _linear(g: Graph, node: fx.Node) -> Results:
    b, rank = g.bound(node), len(shape_of(node))
    x = _whole(g, b["x"], b["x_zero"], g.known(b["weight"], "the weight"), (1,))
    return _finished(g, node, g.emit("MatMul", x, _weight(g, b, turned=True)), rank, rank - 1)


@rule("vqc::resize_bilinear", exact=True)
def _resize(g: Graph, node: fx.Node) -> Results:
    """Two gathers, two products and a sum along each axis, columns first."""
    b, size = g.bound(node), shape_of(node.args[0])
    y = g.value(b["x"])
    for axis, out, zoom in ((3, b["out_w"], b["scale_w"]), (2, b["out_h"], b["scale_h"])):
        i0, i1, w0, w1 = bilinear_table(size[axis], out, b["align_corners"], zoom)
        parts = [g.emit("Mul", g.emit("Gather", y, g.constant(i.astype(np.int64), "rows"), axis=axis),
                        g.constant(_column(w, 4, axis), "weights")) for i, w in ((i0, w0), (i1, w1))]  # fmt: skip
        y = g.emit("Add", *parts)
    return y


@rule("vqc::avg_pool2d", exact=True)
def _avg_pool(g: Graph, node: fx.Node) -> Results:
    """The samples of a window added in row-major order; a missing one is -0.0, which leaves a sum as it is."""
    b, (h, w), (ho, wo) = g.bound(node), shape_of(node.args[0])[2:], shape_of(node)[2:]
    kernel, stride, padding = (list(b[k]) for k in ("kernel", "stride", "padding"))
    if kernel[0] * kernel[1] > LARGEST_WINDOW:
        return RULES["vqc::avg_pool2d"](g, node)
    reach = [max(0, (o - 1) * stride[i] + kernel[i] - padding[i] - n) for i, (o, n) in enumerate(((ho, h), (wo, w)))]
    x = g.value(b["x"])
    if any(padding) or any(reach):
        pads = [0, 0, padding[0], padding[1], 0, 0, reach[0], reach[1]]
        x = g.emit("Pad", x, g.constant(pads, "pads"), g.number(-0.0, torch.float32))
    acc = ""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            ends = [i + (ho - 1) * stride[0] + 1, j + (wo - 1) * stride[1] + 1]
            tap = g.emit("Slice", x, *(g.constant(v, "place") for v in ([i, j], ends, [2, 3], stride)))
            acc = g.emit("Add", acc, tap) if acc else tap
    counts = [pool_windows(n, kernel[i], stride[i], padding[i], b["ceil_mode"], b["count_include_pad"])[2]
              for i, n in enumerate((h, w))]  # fmt: skip
    return g.emit("Mul", acc, g.constant((1.0 / np.outer(*counts)).astype(np.float32), "factors"))


@rule("vqc::conv2d", exact=True)
def _ordered_conv(g: Graph, node: fx.Node) -> Results:
    """A product and a sum for each tap in the reference's order, for a few taps of all channels or of one's own."""
    b = g.bound(node)
    shape, (ho, wo), channels = shape_of(b["weight"]), shape_of(node)[2:], shape_of(b["x"])[1]
    alone = b["groups"] == channels == shape[0]
    if shape[1] * shape[2] * shape[3] > MOST_TAPS or not (b["groups"] == 1 or alone):
        return RULES["vqc::conv2d"](g, node)
    weight, (up, left), stride = g.known(b["weight"], "the weight"), b["padding"], list(b["stride"])
    x = g.value(b["x"])
    if up or left:
        pads = [0, 0, up, left, 0, 0, up, left]
        x = g.emit("Pad", x, g.constant(pads, "pads"), g.number(0.0, torch.float32))
    acc = g.number(0.0, torch.float32)
    for c, i, j in itertools.product(*(range(n) for n in shape[1:])):
        first = [i * b["dilation"][0], j * b["dilation"][1]]
        ends = [first[0] + (ho - 1) * stride[0] + 1, first[1] + (wo - 1) * stride[1] + 1]
        starts, stops, axes, steps = first, ends, [2, 3], stride
        if not alone:
            starts, stops, axes, steps = [c, *first], [c + 1, *ends], [1, 2, 3], [1, *stride]
        tap = g.emit("Slice", x, *(g.constant(v, "place") for v in (starts, stops, axes, steps)))
        product = g.emit("Mul", tap, g.constant(_column(array_of(weight[:, c, i, j])), "tap"))
        acc = g.emit("Add", acc, product)
    if b["bias"] is None:
        return acc
    return g.emit("Add", acc, g.constant(_column(array_of(g.known(b["bias"], "the bias"))), "bias"))


@rule("vqc::mean_hw", exact=True)
def _mean(g: Graph, node: fx.Node) -> Results:
    """Rows of 16 added one after another by a Scan, then the 16 sums as 8+8, 4+4, 2+2, 1+1."""
    n, c, h, w = shape_of(node.args[0])
    x = g.emit("Reshape", g.value(node.args[0]), g.constant([n * c, h * w], "shape"))
    if h * w % LANES:
        pads = [0, 0, 0, -(h * w) % LANES]
        x = g.emit("Pad", x, g.constant(pads, "pads"), g.number(0.0, torch.float32))
    x = g.emit("Reshape", x, g.constant([n * c, -1, LANES], "shape"))
    kinds = [helper.make_tensor_value_info(k, TensorProto.FLOAT, [n * c, LANES]) for k in ("before", "row", "after")]
    body = helper.make_graph([helper.make_node("Add", ["before", "row"], ["after"])], "add_rows", kinds[:2], kinds[2:])
    zeros = g.constant(np.zeros((n * c, LANES), np.float32), "zeros")
    acc = g.emit("Scan", zeros, x, body=body, num_scan_inputs=1, scan_input_axes=[1])
    width = LANES
    while width > 1:
        width //= 2
        halves = g.emit_many("Split", [acc, g.constant([width, width], "sizes")], [None, None], axis=1)
        acc = g.emit("Add", *halves)
    mean = g.emit("Mul", acc, g.number(1.0 / (h * w), torch.float32))
    return g.emit("Reshape", mean, g.constant([n, c, 1, 1], "shape"))


_FUNCTIONS = {"exp": "Exp", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardsigmoid": "HardSigmoid",
              "hardswish": "HardSwish", "silu": "Silu"}  # fmt: skip


@rule(*(f"vqc::{name}" for name in _FUNCTIONS), exact=True)
def _function(g: Graph, node: fx.Node) -> Results:
    name = node.target.name().removeprefix("vqc::")
    return g.emit(_FUNCTIONS[name], g.value(node.args[0]), domain=DOMAIN)

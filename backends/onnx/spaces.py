"""Rules of layers along one or three dimensions, of the other ways to resize, and of averages of unlike windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from vqc.backends.onnx.graph import Graph, Results, need, rule
from vqc.backends.onnx.layers import resize
from vqc.program import shape_of


def _each(value: Any, count: int, default: int) -> list[int]:
    """One number a dimension, out of one for all, one for each, or none."""
    values = [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])] or [default]
    return values * count if len(values) == 1 else values


def _attributes(bound: dict[str, Any], count: int) -> dict[str, Any]:
    return {"strides": _each(bound["stride"], count, 1), "pads": _each(bound["padding"], count, 0) * 2,
            "dilations": _each(bound["dilation"], count, 1), "group": bound["groups"]}  # fmt: skip


@rule("aten::conv1d", "aten::conv3d")
def _conv(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    bias = [] if bound["bias"] is None else [g.value(bound["bias"])]
    attributes = _attributes(bound, len(shape_of(bound["weight"])) - 2)
    return g.emit("Conv", g.value(bound["input"]), g.value(bound["weight"]), *bias, **attributes)


@rule("aten::conv_transpose1d", "aten::conv_transpose3d.input")
def _conv_transpose(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    count = len(shape_of(bound["weight"])) - 2
    bias = [] if bound["bias"] is None else [g.value(bound["bias"])]
    return g.emit("ConvTranspose", g.value(bound["input"]), g.value(bound["weight"]), *bias,
                  **_attributes(bound, count), output_padding=_each(bound["output_padding"], count, 0))  # fmt: skip


@rule("aten::avg_pool1d", "aten::avg_pool3d", "aten::max_pool1d", "aten::max_pool3d")
def _pool(g: Graph, node: fx.Node) -> Results:
    bound, name = g.bound(node), node.target.name()
    count = int(name[-2])
    need(len(shape_of(node)) == count + 2, "no batch")
    need(bound.get("divisor_override") is None, "an average with a divisor of its own")
    kernel = _each(bound["kernel_size"], count, 1)
    same = {"kernel_shape": kernel, "strides": _each(bound["stride"], count, 1) if bound["stride"] else kernel,
            "pads": _each(bound["padding"], count, 0) * 2, "ceil_mode": int(bound["ceil_mode"])}  # fmt: skip
    if "max" in name:
        return g.emit("MaxPool", g.value(node.args[0]), **same, dilations=_each(bound["dilation"], count, 1))
    return g.emit("AveragePool", g.value(node.args[0]), **same, count_include_pad=int(bound["count_include_pad"]))


def _shares(size: int, out: int) -> np.ndarray:
    """[out, size]: what each value along an axis gives to each window of an adaptive average, in float32."""
    shares = np.zeros((out, size), np.float32)
    for i in range(out):
        start, stop = i * size // out, -(-(i + 1) * size // out)
        shares[i, start:stop] = 1 / (stop - start)
    return shares


@rule("aten::adaptive_avg_pool1d", "aten::adaptive_avg_pool2d", "aten::adaptive_avg_pool3d")
def _adaptive(g: Graph, node: fx.Node) -> Results:
    """Windows of one size are an average pool; unlike ones, along the last two axes, two products with their shares."""
    x, count = node.args[0], int(node.target.name()[-2])
    sizes, outs = shape_of(x)[-count:], shape_of(node)[-count:]
    if all(o == 1 for o in outs):
        axes = list(range(len(shape_of(x)) - count, len(shape_of(x))))
        return g.emit("ReduceMean", g.value(x), g.constant(axes, "axes"), keepdims=1)
    if all(n % o == 0 for n, o in zip(sizes, outs, strict=True)) and len(shape_of(x)) == count + 2:
        kernel = [n // o for n, o in zip(sizes, outs, strict=True)]
        return g.emit("AveragePool", g.value(x), kernel_shape=kernel, strides=kernel)
    need(count < 3 or sizes[0] == outs[0], "windows of different sizes along time")
    y = g.emit("MatMul", g.value(x), g.constant(np.ascontiguousarray(_shares(sizes[-1], outs[-1]).T), "shares"))
    return y if count == 1 else g.emit("MatMul", g.constant(_shares(sizes[-2], outs[-2]), "shares"), y)


_RESIZED = {"linear1d": "linear", "trilinear3d": "linear", "bicubic2d": "cubic", "nearest1d": "nearest",
            "nearest3d": "nearest", "nearest_exact1d": "nearest", "nearest_exact2d": "nearest",
            "nearest_exact3d": "nearest"}  # fmt: skip


@rule(*(f"aten::{'_' * ('exact' in n)}upsample_{n}" for n in _RESIZED))
def _other_resize(g: Graph, node: fx.Node) -> Results:
    bound, kind = g.bound(node), node.target.name().split("upsample_")[1]
    mode, count = _RESIZED[kind], int(kind[-2])
    named = (["scales_d", "scales_h", "scales_w"] if count > 1 else ["scales"])[-count:]
    zooms = [bound[k] for k in named]
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "half_pixel"}
    if bound.get("align_corners"):
        attributes["coordinate_transformation_mode"] = "align_corners"
    if mode == "nearest":
        attributes["nearest_mode"] = "round_prefer_ceil"
        if "exact" not in kind:
            attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if mode == "cubic":
        attributes["cubic_coeff_a"] = -0.75
    return resize(g, node, zooms, **attributes)

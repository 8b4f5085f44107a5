"""Rules of convolutions in float, pooling, resizing and sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from vqc.backends.onnx.graph import Graph, Results, need, pair, rule
from vqc.backends.onnx.plain import same_zoom
from vqc.program import dtype_of, shape_of


def conv_attributes(bound: dict[str, Any]) -> dict[str, Any]:
    """strides, pads, dilations and group of a convolution's arguments by name."""
    padding = pair(bound["padding"], 0)
    return {"strides": pair(bound["stride"], 1), "pads": padding * 2, "dilations": pair(bound["dilation"], 1),
            "group": bound.get("groups", 1)}  # fmt: skip


@rule("aten::conv2d", "vqc::conv2d")
def _conv(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    x = bound["x"] if "x" in bound else bound["input"]
    bias = [] if bound["bias"] is None else [g.value(bound["bias"])]
    return g.emit("Conv", g.value(x), g.value(bound["weight"]), *bias, **conv_attributes(bound))


@rule("aten::conv_transpose2d.input", "vqc::conv_transpose2d")
def _conv_transpose(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    x = bound["x"] if "x" in bound else bound["input"]
    bias = [] if bound["bias"] is None else [g.value(bound["bias"])]
    return g.emit("ConvTranspose", g.value(x), g.value(bound["weight"]), *bias, **conv_attributes(bound),
                  output_padding=pair(bound["output_padding"], 0))  # fmt: skip


@rule("aten::avg_pool2d", "vqc::avg_pool2d")
def _avg_pool(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    need(bound.get("divisor_override") is None, "an average with a divisor of its own")
    kernel = pair(bound["kernel"] if "kernel" in bound else bound["kernel_size"], 1)
    strides = pair(bound["stride"], 1) if bound["stride"] else kernel
    return g.emit("AveragePool", g.value(node.args[0]), kernel_shape=kernel, strides=strides,
                  pads=pair(bound["padding"], 0) * 2, ceil_mode=int(bound["ceil_mode"]),
                  count_include_pad=int(bound["count_include_pad"]))  # fmt: skip


@rule("aten::max_pool2d")
def _max_pool(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    kernel = pair(bound["kernel_size"], 1)
    strides = pair(bound["stride"], 1) if bound["stride"] else kernel
    return g.emit("MaxPool", g.value(node.args[0]), kernel_shape=kernel, strides=strides,
                  pads=pair(bound["padding"], 0) * 2, dilations=pair(bound["dilation"], 1),
                  ceil_mode=int(bound["ceil_mode"]))  # fmt: skip


def resize(g: Graph, node: fx.Node, zooms: Sequence[float | None], **attributes: Any) -> str:
    """A Resize of all dimensions behind the channels, by its scales where every reader gets the size from them.

    Runtimes multiply in float32 and the checker in float64, and 3 x 6.6666665 is 20 in one of them and 19 in the other.
    """
    x, sizes, outs = node.args[0], shape_of(node.args[0])[2:], shape_of(node)[2:]
    pairs = list(zip(sizes, outs, strict=True))
    scales = np.array([1, 1, *(same_zoom(n, o, z) for (n, o), z in zip(pairs, zooms, strict=True))], np.float32)
    kinds = (np.float32, np.float64)
    if all(np.floor(kind(s) * kind(n)) == o for s, (n, o) in zip(scales[2:], pairs, strict=True) for kind in kinds):
        return g.emit("Resize", g.value(x), "", g.constant(scales, "scales"), **attributes)
    return g.emit("Resize", g.value(x), "", "", g.constant(list(shape_of(node)), "sizes"), **attributes)


@rule("aten::upsample_bilinear2d", "aten::upsample_bilinear2d.vec", "vqc::resize_bilinear")
def _bilinear(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    both = bound.get("scale_factors") or (None, None)
    zooms = (bound.get("scale_h", bound.get("scales_h", both[0])), bound.get("scale_w", bound.get("scales_w", both[1])))
    mode = "align_corners" if bound["align_corners"] else "half_pixel"
    return resize(g, node, zooms, mode="linear", coordinate_transformation_mode=mode)


@rule("aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa")
def _antialiased(g: Graph, node: fx.Node) -> Results:
    """Two products with the filters of rows and of columns: OpenVINO's Resize skips antialiasing and says nothing."""
    bound, value, outs = g.bound(node), g.value(node.args[0]), shape_of(node)[2:]
    for axis, (size, out, key) in enumerate(
        zip(shape_of(node.args[0])[2:], outs, ("scales_h", "scales_w"), strict=True)
    ):
        if size == out and bound[key] in (None, 1.0):
            continue
        unit = torch.eye(size, dtype=dtype_of(node)).view(1, 1, size, size)
        taps = node.target(unit, [out, size], bound["align_corners"], bound[key])[0, 0]  # [out,size]
        if axis == 0:
            value = g.emit("MatMul", g.constant(taps.numpy(), "rows"), value)
        else:
            value = g.emit("MatMul", value, g.constant(taps.T.contiguous().numpy(), "columns"))
    return value if value != g.value(node.args[0]) else g.emit("Identity", value)


@rule("aten::upsample_nearest2d", "aten::upsample_nearest2d.vec")
def _nearest(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    both = bound.get("scale_factors") or (None, None)
    zooms = (bound.get("scales_h", both[0]), bound.get("scales_w", both[1]))
    return resize(g, node, zooms, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


_MODES = {0: "linear", 1: "nearest", 2: "cubic"}
_PADDING = {0: "zeros", 1: "border", 2: "reflection"}


@rule("aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::grid_sampler", "vqc::grid_sample")
def _grid_sample(g: Graph, node: fx.Node) -> Results:
    bound = g.bound(node)
    x = bound["x"] if "x" in bound else bound["input"]
    padding = bound["padding_mode"]
    return g.emit("GridSample", g.value(x), g.value(bound["grid"]), mode=_MODES[bound.get("interpolation_mode", 0)],
                  padding_mode=padding if isinstance(padding, str) else _PADDING[padding],
                  align_corners=int(bound["align_corners"]))  # fmt: skip


@rule("vqc::fake_binarize")
def _fake_binarize(g: Graph, node: fx.Node) -> Results:
    need(False, "it is a form for training; apply lower-binary first")
    return ""


@rule("aten::full", "aten::zeros", "aten::ones", "aten::zeros_like", "aten::ones_like", "aten::full_like",
      "aten::new_zeros", "aten::new_ones", "aten::new_full")  # fmt: skip
def _filled(g: Graph, node: fx.Node) -> Results:
    name = node.target.name()
    value: Any = 0 if "zeros" in name else 1 if "ones" in name else g.bound(node)["fill_value"]
    need(isinstance(value, (bool, int, float)) and dtype_of(node) != torch.bfloat16, "a value that is computed")
    return g.emit("Identity", g.constant(torch.full(shape_of(node), value, dtype=dtype_of(node)).numpy(), "filled"))

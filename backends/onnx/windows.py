"""Rules of windows whose places are a result, and of what is put back by them: maxima, unpooling, fold."""

from __future__ import annotations

import numpy as np
from torch import fx

from vqc.backends.onnx.graph import Graph, Results, need, pair, rule
from vqc.program import shape_of


@rule("aten::max_pool2d_with_indices")
def _max_pool_with_places(g: Graph, node: fx.Node) -> Results:
    """PyTorch counts places in each channel's own picture, ONNX through the whole tensor."""
    bound, shape = g.bound(node), shape_of(node.args[0])
    need(len(shape) == 4, "a rank other than 4")
    kernel = pair(bound["kernel_size"], 1)
    found, places = g.emit_many("MaxPool", [g.value(node.args[0])], [None, None], kernel_shape=kernel,
                                strides=pair(bound["stride"], 1) if bound["stride"] else kernel,
                                pads=pair(bound["padding"], 0) * 2, dilations=pair(bound["dilation"], 1),
                                ceil_mode=int(bound["ceil_mode"]))  # fmt: skip
    return [found, g.emit("Mod", places, g.constant([shape[2] * shape[3]], "size"))]


@rule("aten::max_unpool2d")
def _max_unpool(g: Graph, node: fx.Node) -> Results:
    bound, values = g.bound(node), node.args[0]
    need(len(shape_of(values)) == 4, "a rank other than 4")
    (n, c), (h, w) = shape_of(values)[:2], shape_of(node)[2:]
    flat = g.constant([n, c, -1], "flat")
    empty = g.emit("Expand", g.number(0, values.meta["val"].dtype), g.constant([n, c, h * w], "shape"))
    put = g.emit("ScatterElements", empty, g.emit("Reshape", g.value(bound["indices"]), flat),
                 g.emit("Reshape", g.value(values), flat), axis=2)  # fmt: skip
    return g.emit("Reshape", put, g.constant([n, c, h, w], "shape"))


def _windows(size: int, out: int) -> np.ndarray:
    """[out, longest]: the places of each window of an adaptive pool; a shorter one has its last place again."""
    spans = [range(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
    longest = max(map(len, spans))
    return np.array([[*s, *[s[-1]] * (longest - len(s))] for s in spans])


@rule("aten::adaptive_max_pool2d")
def _adaptive_max(g: Graph, node: fx.Node) -> Results:
    """The values of every window side by side, the first of the largest among them, and where that came from."""
    x = node.args[0]
    need(len(shape_of(x)) == 4, "a rank other than 4")
    (n, c, h, w), (oh, ow) = shape_of(x), g.bound(node)["output_size"]
    rows, columns = _windows(h, oh), _windows(w, ow)
    count = rows.shape[1] * columns.shape[1]
    apart = g.emit("Gather", g.value(x), g.constant(rows, "rows"), axis=2)  # [n,c,oh,rows,w]
    apart = g.emit("Gather", apart, g.constant(columns, "columns"), axis=4)  # [n,c,oh,rows,ow,columns]
    beside = g.emit("Reshape", g.emit("Transpose", apart, perm=[0, 1, 2, 4, 3, 5]),
                    g.constant([n, c, oh * ow, count], "shape"))  # fmt: skip
    shape = g.constant([n, c, oh, ow], "shape")
    found = g.emit("ReduceMax", beside, g.constant([3], "axes"), keepdims=0)
    places = (rows[:, None, :, None] * w + columns[None, :, None, :]).reshape(1, 1, oh * ow, count)
    every = g.emit("Expand", g.constant(places, "places"), g.constant([n, c, oh * ow, count], "shape"))
    first = g.emit("ArgMax", beside, axis=3, keepdims=1)
    return [g.emit("Reshape", found, shape), g.emit("Reshape", g.emit("GatherElements", every, first, axis=3), shape)]


@rule("aten::col2im")
def _col2im(g: Graph, node: fx.Node) -> Results:
    """A transposed convolution in which every tap of a window is a channel of its own, and its weight a one."""
    bound, x = g.bound(node), node.args[0]
    need(len(shape_of(x)) == 3, "no batch")
    kernel, dilation, padding, stride = (pair(bound[k], 1) for k in ("kernel_size", "dilation", "padding", "stride"))
    (n, c), (kh, kw) = shape_of(node)[:2], kernel
    # How far the first value of the last window lies from that of the first, and what is left behind that.
    reach = [size + 2 * p - d * (k - 1) - 1
             for size, p, d, k in zip(shape_of(node)[2:], padding, dilation, kernel, strict=True)]  # fmt: skip
    tiles = [r // s + 1 for r, s in zip(reach, stride, strict=True)]
    rest = [r % s for r, s in zip(reach, stride, strict=True)]
    taps = np.tile(np.eye(kh * kw, dtype=np.float32).reshape(kh * kw, 1, kh, kw), (c, 1, 1, 1))
    picture = g.emit("Reshape", g.value(x), g.constant([n, c * kh * kw, *tiles], "shape"))
    return g.emit("ConvTranspose", picture, g.constant(taps, "taps"), group=c, strides=stride, dilations=dilation,
                  pads=padding * 2, output_padding=rest)  # fmt: skip

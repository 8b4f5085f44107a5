"""Deformable convolution, and unfolding and folding windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.ir import Struct, Value, dense_strides
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.matmul import product
from vqc.backends.c.lowering.movement import fill, part
from vqc.backends.c.lowering.pointwise import finish
from vqc.backends.c.lowering.volume import spread
from vqc.backends.c.registry import FLOATS, lowering
from vqc.ops.exact import argument
from vqc.program import shape_of

STRIPE_BYTES = 8 << 20  # columns of a deformable convolution that are made before they are multiplied


@lowering("torchvision::deform_conv2d", check=FLOATS)
def lower_deform(ctx: Lowering, node: fx.Node) -> None:
    """The columns at the shifted positions, by stripes of output rows, times the weights."""
    x, offset = ctx.dense(node.args[0]), ctx.dense(argument(node, "offset"))
    mask = ctx.dense(argument(node, "mask")) if argument(node, "use_mask") else None
    weight, bias = ctx.dense(argument(node, "weight")), ctx.value(argument(node, "bias"))
    (n, c, h, w), (o, each, kh, kw), (oh, ow) = x.shape, weight.shape, shape_of(node)[2:]
    groups, depth = int(argument(node, "groups")), each * kh * kw
    out = ctx.new((n, o, oh, ow), torch.float32)
    rows = max(1, min(oh, STRIPE_BYTES // (4 * c * kh * kw * ow)))
    for top in range(0, oh, rows):
        height = min(rows, oh - top)
        fields = {"n": n, "c": c, "h": h, "w": w, "oh": oh, "ow": ow, "top": top, "rows": height, "kh": kh, "kw": kw}
        for short, name in (("s", "stride"), ("p", "pad"), ("d", "dilation")):
            fields |= {short + axis: int(argument(node, f"{name}_{axis}")) for axis in "hw"}
        fields["groups"] = int(argument(node, "offset_groups"))
        columns = ctx.new((n, groups, depth, height * ow), torch.float32, "columns")
        ctx.call("vqc_deform_columns_f32", "sample", Struct("vqc_deform_params", fields), x, offset, mask,
                 out=[columns])  # fmt: skip
        matrix = (groups, o // groups, depth)
        left = Value(weight.buffer, weight.dtype, matrix, dense_strides(matrix), weight.offset)
        shape = (n, groups, o // groups, height * ow)
        into = Value(out.buffer, out.dtype, shape, dense_strides((*shape[:3], oh * ow)), top * ow)
        product(ctx, left, columns, None, into)
    channels = Value(bias.buffer, bias.dtype, (o, 1, 1), (bias.strides[0], 0, 0), bias.offset)
    finish(ctx, node, ex.apply("add", ex.load(out), ex.load(channels)))


def _windows(ctx: Lowering, node: fx.Node, size: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """([kernel, stride, padding, dilation] of both axes, positions of the windows along both)."""
    names = ("kernel_size", "stride", "padding", "dilation")
    options = [spread(argument(node, name), 2, []) for name in names]
    kernel, stride, padding, dilation = options
    count = [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    return options, count


@lowering("aten::im2col", check=lambda p, n: None)
def lower_unfold(ctx: Lowering, node: fx.Node) -> None:
    """A copy of the padded picture with the windows as further axes."""
    x, out = ctx.value(node.args[0]), ctx.result(node)
    lead, (h, w) = x.shape[:-2], x.shape[-2:]
    ((kh, kw), (sh, sw), (ph, pw), (dh, dw)), (oh, ow) = _windows(ctx, node, (h, w))
    if ph or pw:
        padded = ctx.new((*lead, h + 2 * ph, w + 2 * pw), x.dtype)
        fill(ctx, padded, 0.0)
        ctx.copy(x, part(part(padded, len(lead), ph, h), len(lead) + 1, pw, w), only=False)
        x = padded
    sy, sx = x.strides[-2:]
    shape = (*lead, kh, kw, oh, ow)
    ctx.copy(Value(x.buffer, x.dtype, shape, (*x.strides[:-2], dh * sy, dw * sx, sh * sy, sw * sx), x.offset),
             Value(out.buffer, out.dtype, shape, dense_strides(shape), out.offset))  # fmt: skip


@lowering("aten::col2im", check=FLOATS)
def lower_fold(ctx: Lowering, node: fx.Node) -> None:
    """Every tap's values added to the places they came from."""
    columns = ctx.dense(node.args[0])
    size = [int(s) for s in argument(node, "output_size")]
    ((kh, kw), (sh, sw), (ph, pw), (dh, dw)), (oh, ow) = _windows(ctx, node, size)
    lead = (*columns.shape[:-2], columns.shape[-2] // (kh * kw))
    split = Value(columns.buffer, columns.dtype, (*lead, kh, kw, oh, ow), dense_strides((*lead, kh, kw, oh, ow)),
                  columns.offset)  # fmt: skip
    padded = ctx.new((*lead, size[0] + 2 * ph, size[1] + 2 * pw), torch.float32)
    fill(ctx, padded, 0.0)
    axis = len(lead)
    for i in range(kh):
        for j in range(kw):
            taps = part(part(split, axis, i, 1), axis + 1, j, 1)
            taps = Value(taps.buffer, taps.dtype, (*lead, oh, ow), (*taps.strides[:axis], *taps.strides[axis + 2 :]),
                         taps.offset)  # fmt: skip
            place = part(part(padded, axis, i * dh, oh, sh), axis + 1, j * dw, ow, sw)
            ctx.compute(ex.apply("add", ex.load(place), ex.load(taps)), like=place)
    ctx.bind(node, part(part(padded, axis, ph, size[0]), axis + 1, pw, size[1]))

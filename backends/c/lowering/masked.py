"""Convolutions under a spatial mask: bands and scratch of the dense kernels, and the mask as one more argument."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from vqc.backends.c.ir import Struct, align
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.conv import constant_arguments, geometry, packed_weight
from vqc.backends.c.packing import C4Geometry, Geometry, pack_c4, pack_words
from vqc.backends.c.registry import all_of, lowering, only
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

LIST_SPARE = 68  # what the lists of vqc_conv_masked.h hold beside numbers for every position, row and tap
GROUP, COPY, GATHER_CHANNELS = 48, 16, 32  # CV_GROUP, CV_COPY, CV_GATHER_CHANNELS


def list_bytes(geo: Geometry, rows: int) -> int:
    """Scratch for the lists of a band, and for gathered inputs (cv_cover)."""
    down, right = ((geo.kernel[i] - 1) * geo.dilation[i] // geo.stride[i] for i in (1, 2))
    taps = geo.kernel[1] * geo.kernel[2]
    lists = 3 * rows * (geo.out[2] + right) + 2 * (rows + down) + taps + LIST_SPARE
    gathered = GROUP * geo.planes * taps + COPY if geo.o // geo.groups >= GATHER_CHANNELS else 0
    return align(4 * (lists + gathered))


@lowering("vqc::masked_conv2d", check=all_of(only(torch.float32, torch.bool), constant_arguments("weight", "bias")))
def lower_masked_conv(ctx: Lowering, node: fx.Node) -> None:
    weight, bias = ctx.constant(argument(node, "weight")), ctx.constant(argument(node, "bias"))
    assert weight is not None
    geo = geometry(node, weight, transposed=False)
    rows = ctx.rows(geo)
    ctx.call(
        "vqc_masked_conv_f32", "conv_f32", Struct("vqc_conv_params", geo.fields(rows)), ctx.dense(node.args[0]),
        ctx.weight(packed_weight(geo, weight), "weight"), ctx.weight(bias, "bias") if bias is not None else None, None,
        ctx.dense(argument(node, "mask")), out=[ctx.result(node)], scratch=geo.scratch(rows) + list_bytes(geo, rows),
    )  # fmt: skip


# ---- integers: the input in the layout c4 --------------------------------------------------------------------------


def _words_fit(program: Program, node: fx.Node) -> str | None:
    weight = program.constant(argument(node, "weight"))
    if dtype_of(node.args[0]) != torch.uint8 or weight is None or weight.dtype != torch.int8:
        return "the masked integer kernel takes pictures of uint8 and weights of int8"
    groups = int(argument(node, "groups"))
    if groups > 1 and shape_of(node.args[0])[1] // groups % 4:
        return "the masked integer kernel takes groups of 4, 8, ... channels"
    return None


@lowering(
    "vqc::masked_qconv2d", "vqc::masked_qconv2d_requantize",
    check=all_of(constant_arguments("weight", "scale", "bias", "x_zero"), _words_fit),
)  # fmt: skip
def lower_masked_qconv(ctx: Lowering, node: fx.Node) -> None:
    weight, scale = ctx.constant(argument(node, "weight")), ctx.constant(argument(node, "scale"))
    zero, bias = ctx.constant(argument(node, "x_zero")), ctx.constant(argument(node, "bias"))
    assert weight is not None and scale is not None and zero is not None
    geo = geometry(node, weight, transposed=False)
    quads = -(-(geo.c // geo.groups) // 4)
    words = replace(geo, c=quads * geo.groups)  # as many planes as the kernel packs
    rows = ctx.rows(words)
    fields = geo.fields(rows)
    kernel = "vqc_masked_qconv_f32"
    if dtype_of(node) == torch.uint8:
        kernel = "vqc_masked_qconv_u8"
        fields |= {"inv_scale": float(argument(node, "inv_scale")), "zero_point": int(argument(node, "zero_point"))}
        if argument(node, "activation") == "relu":
            fields |= {"act": "VQC_ACT_CLAMP"}
    in_place = 4 * quads * rows * geo.out[2] if words.direct else 0  # read in place by the float kernel, packed here
    _, offset, zeros = pack_c4(weight, zero, C4Geometry.of(node, weight))
    ctx.call(
        kernel, "masked_c4", Struct("vqc_conv_params", fields), ctx.packed(node.args[0], "c4"),
        ctx.weight(pack_words(weight.flatten(2), geo.groups, 1), "weight"), ctx.weight(scale, "scale"),
        ctx.weight(bias, "bias") if bias is not None else None, ctx.weight(offset, "offset"),
        ctx.weight(zeros, "x_zero"), ctx.dense(argument(node, "mask")), out=[ctx.result(node)],
        scratch=words.scratch(rows) + align(in_place) + list_bytes(words, rows),
    )  # fmt: skip

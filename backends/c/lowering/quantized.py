"""Integer operators: convolutions, linear layers, tables, and quantization (as pointwise expressions)."""

from __future__ import annotations

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.ir import Struct
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering import c4
from vqc.backends.c.lowering.conv import constant_arguments, geometry, packed_weight
from vqc.backends.c.lowering.pointwise import finish, operand
from vqc.backends.c.registry import all_of, anything, lowering, only
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

_NAMES = {torch.uint8: "u8", torch.int8: "s8", torch.int16: "s16", torch.float32: "f32"}
_CONSTANTS = constant_arguments("weight", "scale", "bias", "x_zero")
_SMALL = only(torch.uint8, torch.int8, torch.int16, torch.int32, torch.float32)


def _requantize(node: fx.Node) -> dict[str, float | int]:
    """The fields of the u8 epilogue: the output's inverse scale and zero point."""
    return {"inv_scale": float(argument(node, "inv_scale")), "zero_point": int(argument(node, "zero_point"))}


def _requantized(node: fx.Node, e: ex.Expr) -> ex.Expr:
    """Activation and u8 levels of a convolution's scaled sums."""
    if argument(node, "activation") == "relu":
        e = ex.apply("max", e, ex.const(0.0))
    q = ex.apply("rint", ex.apply("mul", e, ex.const(float(argument(node, "inv_scale")))))
    q = ex.apply("add", q, ex.const(int(argument(node, "zero_point"))))
    return ex.apply("min", ex.apply("max", q, ex.const(0.0)), ex.const(255.0))


def _lower_conv(ctx: Lowering, node: fx.Node, *, transposed: bool) -> None:
    weight, scale = ctx.constant(argument(node, "weight")), ctx.constant(argument(node, "scale"))
    zero, bias = ctx.constant(argument(node, "x_zero")), ctx.constant(argument(node, "bias"))
    assert weight is not None and scale is not None and zero is not None
    geo = geometry(node, weight, transposed=transposed, pair=True)
    rows = ctx.rows(geo)
    fields = geo.fields(rows) | {"zeros": int(zero.numel())}
    if dtype_of(node) == torch.uint8:
        fields |= _requantize(node)
        if argument(node, "activation") == "relu":
            fields |= {"act": "VQC_ACT_CLAMP"}
    x = ctx.dense(node.args[0])
    w = ctx.weight(packed_weight(geo, weight), str(argument(node, "weight")))
    kernel = (f"vqc_qconv{'_transpose' if transposed else ''}_{_NAMES[x.dtype]}{_NAMES[weight.dtype]}"
              f"_{_NAMES[dtype_of(node)]}")  # fmt: skip
    ctx.call(kernel, "qconv", Struct("vqc_conv_params", fields), x, w, ctx.weight(scale, "scale"),
             ctx.weight(bias, "bias") if bias is not None else None, ctx.weight(zero, "x_zero"), out=[ctx.result(node)],
             scratch=geo.scratch(rows))  # fmt: skip


@lowering("vqc::qconv2d", "vqc::qconv2d_requantize", check=all_of(_SMALL, _CONSTANTS))
def lower_qconv(ctx: Lowering, node: fx.Node) -> None:
    _lower(ctx, node, transposed=False)


def _lower(ctx: Lowering, node: fx.Node, *, transposed: bool) -> None:
    if c4.takes_c4(ctx.program, node):
        e = c4.sums(ctx, node)
        finish(ctx, node, _requantized(node, e) if dtype_of(node) == torch.uint8 else e)
    else:
        _lower_conv(ctx, node, transposed=transposed)


@lowering("vqc::qconv_transpose2d", "vqc::qconv_transpose2d_requantize", check=all_of(_SMALL, _CONSTANTS))
def lower_qconv_transpose(ctx: Lowering, node: fx.Node) -> None:
    _lower(ctx, node, transposed=True)


@lowering("vqc::qlinear", "vqc::qlinear_requantize", check=all_of(_SMALL, _CONSTANTS))
def lower_qlinear(ctx: Lowering, node: fx.Node) -> None:
    weight, scale = ctx.constant(argument(node, "weight")), ctx.constant(argument(node, "scale"))
    zero, bias = ctx.constant(argument(node, "x_zero")), ctx.constant(argument(node, "bias"))
    assert weight is not None and scale is not None and zero is not None
    x = ctx.dense(node.args[0])
    o, k = weight.shape
    fields: dict[str, float | int] = {"rows": x.count // k, "k": k, "o": o}
    if dtype_of(node) == torch.uint8:
        fields |= _requantize(node) | {"relu": int(argument(node, "activation") == "relu")}
    offset = (weight.to(torch.int64).sum(1) * int(zero.reshape(-1)[0])).to(torch.int32)
    ctx.call(
        f"vqc_qlinear_{_NAMES[x.dtype]}s8_{_NAMES[dtype_of(node)]}",
        "qlinear",
        Struct("vqc_qlinear_params", fields),
        x,
        ctx.weight(weight, "weight"),
        ctx.weight(scale, "scale"),
        ctx.weight(bias, "bias") if bias is not None else None,
        ctx.weight(offset, "offset"),
        out=[ctx.result(node)],
    )


@lowering("vqc::lut", check=anything)
def lower_lut(ctx: Lowering, node: fx.Node) -> None:
    x, table = ctx.dense(node.args[0]), ctx.dense(argument(node, "table"))
    ctx.call("vqc_lut_u8", "move", Struct("vqc_lut_params", {"size": table.item, "count": x.count}), x, table,
             out=[ctx.result(node)])  # fmt: skip


# ---- quantize, dequantize ------------------------------------------------------------------------------------------


def _number(ctx: Lowering, node: fx.Node, name: str) -> float:
    value = argument(node, name)
    tensor = ctx.constant(value)
    return float(value if tensor is None else tensor.reshape(-1)[0].item())


def _per_tensor(program: Program, node: fx.Node) -> str | None:
    for name in ("scale", "zero_point"):
        value = argument(node, name)
        if isinstance(value, fx.Node) and program.constant(value) is None:
            return f"its {name} is computed at run time"
    return None


def _levels(program: Program, node: fx.Node) -> str | None:
    for n in (node, node.args[0]):
        if isinstance(n, fx.Node) and dtype_of(n) not in (torch.float32, torch.uint8, torch.int8, torch.int16):
            return f"{n.name} is {dtype_of(n)}; integers of up to 16 bits fit the float kernels"
    return None


@lowering(
    "quantized_decomposed::quantize_per_tensor", "quantized_decomposed::quantize_per_tensor.tensor",
    check=all_of(_per_tensor, _levels),
)  # fmt: skip
def lower_quantize(ctx: Lowering, node: fx.Node) -> None:
    inverse = 1.0 / _number(ctx, node, "scale")  # in double, then rounded to float32 where it is used
    x = operand(ctx, node, node.args[0])
    q = ex.apply("rint", ex.apply("mul", x, ex.const(inverse)))
    q = ex.apply("add", q, ex.const(_number(ctx, node, "zero_point")))
    finish(ctx, node, _clamp(q, node))


def _clamp(q: ex.Expr, node: fx.Node) -> ex.Expr:
    low, high = ex.const(argument(node, "quant_min")), ex.const(argument(node, "quant_max"))
    return ex.apply("min", ex.apply("max", q, low), high)


@lowering(
    "quantized_decomposed::dequantize_per_tensor", "quantized_decomposed::dequantize_per_tensor.tensor",
    check=all_of(_per_tensor, _levels),
)  # fmt: skip
def lower_dequantize(ctx: Lowering, node: fx.Node) -> None:
    x = ex.apply("sub", operand(ctx, node, node.args[0]), ex.const(_number(ctx, node, "zero_point")))
    finish(ctx, node, ex.apply("mul", x, ex.const(_number(ctx, node, "scale"))))


_CONSTANT_CHANNELS = constant_arguments("scales", "zero_points")


def _single_scales(program: Program, node: fx.Node) -> str | None:
    scales = program.constant(argument(node, "scales"))
    return None if scales is not None and scales.dtype == torch.float32 else "its scales are not float32"


_CHANNEL = all_of(_CONSTANT_CHANNELS, _single_scales)


def _along(ctx: Lowering, node: fx.Node, tensor: torch.Tensor) -> ex.Expr:
    shape = [1] * len(shape_of(node))
    shape[int(argument(node, "axis"))] = -1
    return ex.load(ctx.weight(tensor.to(torch.float32).reshape(shape), "per_channel"))


def _zero_points(ctx: Lowering, node: fx.Node) -> torch.Tensor | None:
    return ctx.constant(argument(node, "zero_points"))


@lowering("quantized_decomposed::quantize_per_channel", check=all_of(_CHANNEL, _levels))
def lower_quantize_channel(ctx: Lowering, node: fx.Node) -> None:
    scales, zeros = ctx.constant(argument(node, "scales")), _zero_points(ctx, node)
    assert scales is not None
    q = ex.apply("mul", operand(ctx, node, node.args[0]), _along(ctx, node, 1.0 / scales))
    q = ex.apply("rint", q)
    if zeros is not None:
        q = ex.apply("add", q, _along(ctx, node, zeros))
    finish(ctx, node, _clamp(q, node))


@lowering("quantized_decomposed::dequantize_per_channel", check=all_of(_CHANNEL, _levels))
def lower_dequantize_channel(ctx: Lowering, node: fx.Node) -> None:
    scales, zeros = ctx.constant(argument(node, "scales")), _zero_points(ctx, node)
    assert scales is not None
    x = operand(ctx, node, node.args[0])
    if zeros is not None:
        x = ex.apply("sub", x, _along(ctx, node, zeros))
    finish(ctx, node, ex.apply("mul", x, _along(ctx, node, scales)))

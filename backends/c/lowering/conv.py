"""Float convolutions, with the activation that follows in the same kernel where it is one of the cheap ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from vqc.backends.c import rows as row_programs
from vqc.backends.c import winograd
from vqc.backends.c.expr import Expr
from vqc.backends.c.ir import Array, Buffer, Call, Ref, Scratch, Struct, Value, align, dense_strides, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.packing import Geometry, pack_conv, pack_transposed
from vqc.backends.c.registry import FLOATS, all_of, lowering, op_name
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

ROWS_RUN = 512  # VQC_CONV_ROWS_RUN
ROWS_BYTES = 64 << 10  # of a task's input, which should stay in the nearest cache


def constant_arguments(*names: str) -> Any:
    """A check: these arguments are constants of the program, or absent."""

    def check(program: Program, node: fx.Node) -> str | None:
        for name in names:
            value = argument(node, name)
            if value is not None and program.constant(value) is None:
                return f"its {name} is computed at run time; the kernel packs it when it compiles"
        return None

    return check


def _batched(program: Program, node: fx.Node) -> str | None:
    axes = {"conv1d": 3, "conv2d": 4, "conv3d": 5, "conv_transpose1d": 3, "conv_transpose2d": 4}
    want = axes[op_name(node.target).split("::")[1].split(".")[0]]
    have = len(shape_of(node.args[0]))
    return None if have == want else f"its input has {have} axes, the kernel takes {want}"


def triple(value: Sequence[int] | int, axes: int, fill: int) -> tuple[int, int, int]:
    """An option of a convolution over `axes` axes as (depth, height, width)."""
    items = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    if len(items) < axes:
        items *= axes
    return (*([fill] * (3 - axes)), *items)  # type: ignore[return-value]


def geometry(node: fx.Node, weight: torch.Tensor, *, transposed: bool, pair: bool = False) -> Geometry:
    """The sizes of a convolution node (aten, or vqc with the same argument names)."""
    x, out = shape_of(node.args[0]), shape_of(node)
    axes = len(x) - 2
    ones = (1,) * (3 - axes)
    return Geometry(
        n=x[0], c=x[1], o=out[1], groups=int(argument(node, "groups", 1)), size=(*ones, *x[2:]), out=(*ones, *out[2:]),
        kernel=(*ones, *weight.shape[2:]), stride=triple(argument(node, "stride", 1), axes, 1),
        padding=triple(argument(node, "padding", 0), axes, 0), dilation=triple(argument(node, "dilation", 1), axes, 1),
        transposed=transposed, pair=pair,
    )  # fmt: skip


def packed_weight(geo: Geometry, weight: torch.Tensor) -> torch.Tensor:
    """The weight as the kernel reads it."""
    lead = weight.shape[:2]
    if geo.transposed:
        return pack_transposed(weight.reshape(*lead, *geo.kernel[1:]), geo.groups, geo.stride[1:], geo.padding[1:],
                               geo.dilation[1:], geo.pair)  # fmt: skip
    return pack_conv(weight.reshape(*lead, *geo.kernel), geo.groups, geo.pair)


def _activation(ctx: Lowering, node: fx.Node) -> tuple[fx.Node, dict[str, Any], torch.Tensor | None] | None:
    """The node's only user, when it is an activation the kernel can apply: (user, fields, slopes)."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.op != "call_function" or user.args[0] is not node:
        return None
    clamp = {"act": "VQC_ACT_CLAMP", "lo": -math.inf, "hi": math.inf}
    match op_name(user.target):
        case "aten::relu":
            return user, clamp | {"lo": 0.0}, None
        case "aten::relu6":
            return user, clamp | {"lo": 0.0, "hi": 6.0}, None
        case "aten::hardtanh":
            return user, clamp | {"lo": float(argument(user, "min_val")), "hi": float(argument(user, "max_val"))}, None
        case "aten::clamp":
            lo, hi = argument(user, "min"), argument(user, "max")
            ends = {"lo": -math.inf if lo is None else float(lo), "hi": math.inf if hi is None else float(hi)}
            return (user, clamp | ends, None) if ends["lo"] <= ends["hi"] else None
        case "aten::leaky_relu":
            return user, {"act": "VQC_ACT_LEAKY", "lo": float(argument(user, "negative_slope"))}, None
        case "aten::prelu" | "aten::_prelu_kernel":
            slope = ctx.constant(user.args[1])
            if slope is None or slope.numel() not in (1, shape_of(node)[1]):
                return None
            return user, {"act": "VQC_ACT_PRELU"}, slope.reshape(-1).expand(shape_of(node)[1]).contiguous()
        case "aten::hardswish":
            return user, {"act": "VQC_ACT_HARDSWISH"}, None
        case "aten::hardsigmoid":
            return user, {"act": "VQC_ACT_HARDSIGMOID"}, None
    return None


def _weight(ctx: Lowering, arg: Any, geo: Geometry) -> Value:
    """The packed weight: in the weights, or, computed at run time, by a gather that does the packing."""
    constant = ctx.constant(arg)
    if constant is not None:
        return ctx.weight(packed_weight(geo, constant), str(arg))
    shape = shape_of(arg)
    numbers = torch.arange(1, numel(shape) + 1, dtype=torch.int32).reshape(shape)
    order = packed_weight(geo, numbers) - 1  # -1 where the packing fills in zeros
    packed = ctx.new((order.numel(),), torch.float32)
    params = Struct(
        "vqc_gather_params", {"size": 4, "outer": 1, "h": 1, "w": numel(shape), "oh": 1, "ow": order.numel()}
    )
    ctx.call("vqc_gather", "move", params, ctx.dense(arg), ctx.weight(torch.zeros(1, dtype=torch.int32), "row"),
             ctx.weight(order.to(torch.int32), "order"), ctx.weight(torch.zeros(1), "fill"), out=[packed])  # fmt: skip
    return packed


def takes_rows(program: Program, node: fx.Node, e: Expr) -> bool:
    """Whether a pointwise result's only reader is a 1x1 convolution that computes it as it goes, run by run."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) > 1 or op_name(user.target) != "aten::conv2d" or user.args[0] is not node:
        return False
    weight = program.constant(user.args[1])
    if weight is None or tuple(weight.shape[2:]) != (1, 1) or 4 * ROWS_RUN * weight.shape[1] > ROWS_BYTES:
        return False
    geo = geometry(user, weight, transposed=False)
    if not geo.direct or geo.groups > 1 or dtype_of(node) != torch.float32:
        return False
    whole = all(x.op not in ("sums", "cat", "resized") for x in e.parts())
    return whole and row_programs.why_not(e, shape_of(node)) is None


def _first(ctx: Lowering, shape: Sequence[int], operands: Sequence[row_programs.Operand]) -> tuple[int, Call] | None:
    """An operand of a row program of [N,C,H,W], which nothing else reads, and the 1x1 convolution that computes it."""
    for i, v in enumerate(o.value for o in operands):
        made = _made_for_this(ctx, v, shape, "vqc_conv_f32")
        if made is None:
            continue
        conv = next(n for n in ctx.program.calls if n.name == made.node)
        geo = geometry(conv, conv.args[1].meta["val"], transposed=False)
        if geo.direct and geo.groups == 1 and 4 * ROWS_RUN * (shape[1] + geo.o) <= ROWS_BYTES:
            return i, made
    return None


def _masked(ctx: Lowering, shape: Sequence[int], operands: Sequence[row_programs.Operand]) -> tuple[int, Call] | None:
    """The same for a convolution under a mask, whose zeros are then never stored."""
    for i, v in enumerate(o.value for o in operands):
        made = _made_for_this(ctx, v, shape, "vqc_masked_conv_f32")
        if made is not None and made.params.fields["groups"] == 1:
            return i, made
    return None


def _made_for_this(ctx: Lowering, v: Value, shape: Sequence[int], kernel: str) -> Call | None:
    """The call of a kernel that makes an operand, a whole tensor of this shape, which nothing else reads."""
    made = [c for c in ctx.calls if v.buffer in c.writes]
    if [c.kernel for c in made] != [kernel] or not v.is_whole or v.shape != tuple(shape):
        return None
    held = [n for n, x in ctx.env.items() if isinstance(x, Value) and x.buffer is v.buffer]
    if any(v.buffer in c.reads for c in ctx.calls) or any(len(n.users) > 1 for n in held):
        return None
    return made[0]


def _lower_rows(ctx: Lowering, node: fx.Node, e: Expr, geo: Geometry, fields: dict[str, Any], w: Value,
                b: Value | None, slopes: Value | None, last: fx.Node) -> None:  # fmt: skip
    """The call for a convolution whose input is still an expression."""
    shape = shape_of(node.args[0])
    made = Value(Buffer("input", 0, "arena"), torch.float32, shape, dense_strides(shape))
    code = row_programs.write([(e, made)], lead=0)
    more: dict[str, Any] = {"conv": Struct("vqc_conv_params", fields),
                            "rest": row_programs.rows_struct(ctx, code, [made])}  # fmt: skip
    operands, channels = [Ref(o.value.buffer, o.value.start) for o in code.operands], geo.c
    inner: list[Any] = [None] * 6

    def take(at: int, call: Call, field: str, place: str) -> list[Any]:
        """Make an operand's call a part of this one; gives its arguments behind the input."""
        ctx.calls.remove(call)
        x, *rest = call.args
        assert isinstance(x, Ref)
        operands[at] = x
        more.update({field: Array("vqc_conv_params", (Struct("vqc_conv_params", call.params.fields),)), place: at})
        read = code.operands[at].value
        for name in (call.node, *(n.name for n, v in ctx.env.items() if v is read)):
            ctx.kernels[name] = f"in vqc_conv_rows_f32 of {node.name}"
        return rest

    first = _first(ctx, shape, code.operands)
    if first is not None:
        inner[:3] = take(*first, "first", "at")[:3]
        channels += shape[1]
    scratch = align(4 * ROWS_RUN * channels)
    masked = _masked(ctx, shape, code.operands)
    if masked is not None:
        fields_of = masked[1].params.fields
        room = next(a.size for a in masked[1].args if isinstance(a, Scratch))
        scratch += align(4 * fields_of["o"] * fields_of["rows"] * fields_of["ow"]) + room
        weight, bias, _, mask = take(*masked, "masked", "masked_at")[:4]
        inner[3:] = [weight, bias, mask]
    ctx.call("vqc_conv_rows_f32", "conv_rows", Struct("vqc_conv_rows_params", more), tuple(operands) or None, w, b,
             slopes, *inner, out=[ctx.result(last)], scratch=scratch)  # fmt: skip
    if last is not node:
        ctx.kernels[last.name] = "vqc_conv_rows_f32"
    ctx.kernels[node.args[0].name] = f"in vqc_conv_rows_f32 of {node.name}"


def _lower(ctx: Lowering, node: fx.Node, *, transposed: bool, exact: bool) -> None:
    bias = argument(node, "bias")
    weight: Any = node.args[1]
    geo = geometry(node, weight.meta["val"], transposed=transposed)
    constant = ctx.constant(weight)
    paired = ctx.winograd and not exact and constant is not None and winograd.suits(geo)
    if paired:
        geo = winograd.PairedRows.of(geo)
    rows = align(ctx.rows(geo), 2) if paired else ctx.rows(geo)
    fields = geo.fields(rows)
    slopes: Value | None = None
    last = node
    found = None if exact else _activation(ctx, node)
    if found is not None:
        last, extra, slope = found
        fields |= extra
        slopes = ctx.weight(slope, "slope") if slope is not None else None
        ctx.done.add(last)
    waiting = ctx.env.get(node.args[0])
    if isinstance(waiting, Expr) and not exact and not transposed and takes_rows(ctx.program, node.args[0], waiting):
        w, b = _weight(ctx, node.args[1], geo), ctx.dense(bias) if bias is not None else None
        _lower_rows(ctx, node, waiting, geo, fields, w, b, slopes, last)
        return
    x = ctx.dense(node.args[0])
    if paired:
        kernel, family = "vqc_conv_winograd_f32", "conv_winograd"
        w = ctx.weight(winograd.pack(geo, constant.reshape(*constant.shape[:2], *geo.kernel)), str(weight))
    else:
        kernel = f"vqc_conv{'_transpose' if transposed else ''}{'_exact' if exact else ''}_f32"
        family = "conv_exact_f32" if exact else "conv_f32"
        w = _weight(ctx, weight, geo)
    b = ctx.dense(bias) if bias is not None else None
    out = ctx.result(last)
    ctx.call(kernel, family, Struct("vqc_conv_params", fields), x, w, b, slopes, out=[out], scratch=geo.scratch(rows))
    if last is not node:
        ctx.kernels[last.name] = kernel


@lowering("aten::conv1d", "aten::conv2d", "aten::conv3d", check=all_of(FLOATS, _batched))
def lower_conv(ctx: Lowering, node: fx.Node) -> None:
    _lower(ctx, node, transposed=False, exact=False)


@lowering("aten::conv_transpose1d", "aten::conv_transpose2d.input", check=all_of(FLOATS, _batched))
def lower_conv_transpose(ctx: Lowering, node: fx.Node) -> None:
    _lower(ctx, node, transposed=True, exact=False)


@lowering("vqc::conv2d", check=FLOATS)
def lower_exact_conv(ctx: Lowering, node: fx.Node) -> None:
    _lower(ctx, node, transposed=False, exact=True)


@lowering("vqc::conv_transpose2d", check=FLOATS)
def lower_exact_conv_transpose(ctx: Lowering, node: fx.Node) -> None:
    _lower(ctx, node, transposed=True, exact=True)

"""Masked binary convolutions and what follows them: computed where the mask is true, together, and nowhere else.

A masked convolution's result is mostly zeros. It is not stored: its sums become a leaf of a pointwise expression, as
those of an integer convolution do (c4.py), and the call is made where that expression ends. Where the mask is false the
expression is what it is for a result of +0, which needs no convolution:

- y = f(conv) + d, where f(0) is a zero of either sign there and d is never -0: it is d. y takes over d's memory, and
  the kernel changes what the mask keeps. f(conv) = g(conv) * u is such a case, if the mask is u != 0.
- else a pointwise call computes it everywhere, and the kernel overwrites what the mask keeps.

This is the unit of BiVM's decoder (arXiv 2507.04456, eq. 17), y = U * f3(conv3x3) + f1(conv1x1), and every other chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from vqc.backends.c import expr as ex
from vqc.backends.c import rows
from vqc.backends.c.expr import Expr
from vqc.backends.c.ir import Scratch, Struct, Value
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering import binary, c4
from vqc.backends.c.lowering.conv import constant_arguments
from vqc.backends.c.lowering.pointwise import finish
from vqc.backends.c.registry import all_of, lowering, op_name
from vqc.ops.exact import argument
from vqc.program import dtype_of, shape_of

CASTS = ("aten::_to_copy", "aten::to.dtype")
LARGEST = 1e38  # bounds below are finite floats
MOST_VALUES = 1 << 24  # of a dense branch, that are looked at one by one
NEVER_NEGATIVE = ("aten::sigmoid", "vqc::sigmoid", "aten::exp", "vqc::exp", "aten::abs")
POINT_BY_POINT = (
    "aten::prelu",
    "aten::_prelu_kernel",
    "aten::relu",
    "aten::leaky_relu",
    "aten::add.Tensor",
    "aten::mul.Tensor",
)


@dataclass(eq=False)
class MaskedSums:
    """A masked binary convolution whose sums are still to be computed; `result`: its result where the mask is true."""

    node: fx.Node
    mask: Value
    result: Expr

    def emit(self, ctx: Lowering, e: Expr, node: fx.Node) -> Value:
        """The calls for an expression with these sums; gives the node's value."""
        if e is self.result:
            return self._alone(ctx)
        start, e, harmless = self._begin(ctx, e, node)
        y = ctx.new(shape_of(node), torch.float32, node.name)
        code = rows.write([(e, y)], lead=1)
        weight = ctx.constant(argument(self.node, "weight"))
        assert weight is not None
        kernel = "vqc_masked_bconv2d_rows"
        fields, values, scratch = binary.sizes(ctx, self.node, weight, kernel)
        conv = Struct("vqc_bconv_params", fields | {"act": "VQC_BACT_NONE"})
        pieces = ctx.row_function(rows.write([(e, y)], lead=2, pieces=True).text) if harmless else "NULL"
        rest = rows.rows_struct(ctx, code, [y])
        params = Struct("vqc_bconv_rows_params", {"conv": conv, "rest": rest, "pieces": pieces})
        operands = [o.value for o in code.operands]
        call = ctx.call(kernel, "bconv", params, *values, self.mask, start, tuple(operands) or None, out=[y],
                        comment=f"{self.node.name} and what follows, to {node.name}")  # fmt: skip
        call.args = (*call.args, Scratch(scratch))
        call.node = self.node.name
        others = [v for v in operands if v.buffer is start.buffer and not (v.is_whole and v.shape == y.shape)]
        if start.is_whole and not others:
            call.inplace = (y.buffer, (start.buffer,))
        ctx.kernels[self.node.name] = kernel
        ctx.kernels[node.name] = f"in {self.node.name}"
        return y

    def _alone(self, ctx: Lowering) -> Value:
        scale, bias = (ctx.constant(argument(self.node, name)) for name in ("scale", "bias"))
        assert scale is not None
        y = ctx.new(shape_of(self.node), torch.float32, self.node.name)
        extra = [ctx.weight(scale, "scale"), ctx.weight(bias, "bias") if bias is not None else None, self.mask]
        call = binary.call(ctx, self.node, "vqc_masked_bconv2d", {"act": "VQC_BACT_NONE"}, extra, [y])
        call.node = self.node.name
        ctx.kernels[self.node.name] = call.kernel
        return y

    def _begin(self, ctx: Lowering, e: Expr, node: fx.Node) -> tuple[Value, Expr, bool]:
        """What the result is where the mask is false, the expression to compute where it is true, and whether that
        changes nothing where the mask is false, whatever the sums are."""
        for a, d in (e.args, e.args[::-1]) if e.op == "add" else ():
            apart = rows.sums_of(a) and not rows.sums_of(d) and d.op != "const" and not d.integer
            if apart and self._is_zero(ctx, self._outside(a)) and never_minus_zero(ctx, d):
                start = self._stored(ctx, d, node)
                return start, ex.substitute(e, d, ex.load(start)), self._is_zero(ctx, a)
        outside = self._outside(e)
        if outside.op == "const":  # a program needs an operation
            outside = ex.apply("add", outside, ex.const(-0.0))
        return self._stored(ctx, outside, node), e, False

    def _stored(self, ctx: Lowering, e: Expr, node: fx.Node) -> Value:
        """A float tensor of the result's shape in memory."""
        shape = shape_of(node)
        v = e.value if e.value is not None else ctx.compute(e, node)
        if v.shape == shape and v.is_dense and v.dtype == torch.float32:
            return v
        return ctx.compute(ex.apply("add", ex.load(v), ex.const(-0.0)), node)

    def _outside(self, e: Expr) -> Expr:
        return ex.substitute(e, self.result, ex.const(0.0))

    # ---- what is zero where the mask is false ----------------------------------------------------------------------

    def _is_zero(self, ctx: Lowering, e: Expr) -> bool:
        """Whether an expression is +0 or -0 wherever the mask is false."""

        def zero(x: Expr) -> bool:
            match x.op:
                case "const":
                    return x.number == 0
                case "load":
                    return x.value is not None and self._loads_zero(ctx, x.value)
                case "mul":
                    return any(zero(a) and bound(ctx, b) < LARGEST for a, b in (x.args, x.args[::-1]))
                case "leaky":
                    return zero(x.args[0]) and bound(ctx, x.args[1]) < LARGEST
                case "add" | "sub" | "max" | "min" | "neg" | "abs":
                    return all(map(zero, x.args))
                case "where":
                    chosen = x.args[0]
                    never = chosen.value is not None and self._loads_zero(ctx, chosen.value)
                    return zero(x.args[2]) and (never or zero(x.args[1]))
            return False

        return zero(e)

    def _loads_zero(self, ctx: Lowering, v: Value) -> bool:
        """Whether a tensor is zero wherever the mask is false: the mask, or what it was made of."""
        shape = shape_of(self.node)
        found = [self.mask]
        mask = argument(self.node, "mask")
        name = op_name(mask.target) if mask.op == "call_function" else ""
        x = mask.args[0] if name else None
        if isinstance(x, fx.Node) and isinstance(of := ctx.env.get(x), Value) and dtype_of(x) == torch.float32:
            against_zero = len(mask.args) > 1 and mask.args[1] in (0, 0.0)
            unequal = name == "aten::ne.Scalar" and against_zero
            above = name == "aten::gt.Scalar" and against_zero and never_negative(ctx, x)
            if unequal or above or name in CASTS:
                found.append(of)
        casts = [u for u in mask.users if u.op == "call_function" and op_name(u.target) in CASTS]
        found += [u for u in map(ctx.env.get, casts) if isinstance(u, Value)]
        return any(
            v.buffer is u.buffer and v.offset == u.offset and v.layout is None and u.layout is None
            and ex.broadcast_strides(v, shape) == ex.broadcast_strides(u, shape)
            for u in found
        )  # fmt: skip


# ---- what is known of numbers --------------------------------------------------------------------------------------


def bound(ctx: Lowering, e: Expr) -> float:
    """A number that an expression's absolute value never exceeds; infinity where none is known."""
    found = [bound(ctx, a) for a in e.args]
    match e.op:
        case "const":
            return math.inf if math.isnan(e.number) else abs(e.number)
        case "load" if e.value is not None and e.value.buffer.kind == "weight":
            most = float(ctx.pool.tensor(e.value).abs().max()) if e.value.is_dense else math.inf
            return math.inf if math.isnan(most) else most
        case "load" if e.value is not None and e.value.dtype == torch.bool:
            return 1.0
        case "sums":
            return float(binary.SUM_LIMIT)
        case "add" | "sub":
            return sum(found)
        case "mul" if max(found) < math.inf:  # 0 * inf is no number
            return found[0] * found[1]
        case "leaky":
            return found[0] * max(1.0, found[1])
        case "max" | "min" | "neg" | "abs":
            return max(found)
        case "where":
            return max(found[1:])
        case "sigmoid" | "tanh" | "tanh_exact" if found[0] < LARGEST:
            return 1.0
    return math.inf


def never_minus_zero(ctx: Lowering, e: Expr) -> bool:
    """Whether no element of an expression can be -0; a sum is -0 only if both operands are."""
    match e.op:
        case "const":
            return not (e.number == 0 and math.copysign(1.0, e.number) < 0)
        case "add":
            return any(never_minus_zero(ctx, a) for a in e.args)
        case "abs" | "sigmoid" | "exp" | "exp_exact":
            return True
        case "load" if e.value is not None:
            if e.value.buffer.kind == "weight":
                return e.value.is_dense and not _has_minus_zero(ctx.pool.tensor(e.value))
            key = ex.key(e.value)
            made = [n for n, v in ctx.env.items() if isinstance(v, Value) and ex.key(v) == key]
            return any(_node_never_minus_zero(ctx, n) for n in made)
    return False


def _has_minus_zero(t: Tensor) -> bool:
    return t.is_floating_point() and bool(((t == 0) & torch.signbit(t)).any())


def _node_never_minus_zero(ctx: Lowering, node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    name = op_name(node.target)
    if name in NEVER_NEGATIVE:
        return True
    if name == "aten::add.Tensor" and argument(node, "alpha", 1) == 1:
        for a in node.args[:2]:
            tensor = ctx.constant(a)
            if tensor is not None and not _has_minus_zero(tensor):
                return True
            if tensor is None and isinstance(a, fx.Node) and _node_never_minus_zero(ctx, a):
                return True
    values = every_value(ctx, node)
    return values is not None and not _has_minus_zero(values)


def every_value(ctx: Lowering, node: fx.Node) -> Tensor | None:
    """All values that a binary convolution, or a chain of pointwise operators with constants after it, can have.

    The sums are whole numbers of a known range, so there are not many: [1,O,1,V], in the operators' own arithmetic.
    None for other nodes.
    """
    if node.op != "call_function":
        return None
    if op_name(node.target) == "vqc::bconv2d":
        weight, scale, bias = (ctx.constant(argument(node, name)) for name in ("weight", "scale", "bias"))
        if weight is None or scale is None or weight.shape[0] * (2 * weight[0].numel() + 1) > MOST_VALUES:
            return None
        most = weight[0].numel()
        values = torch.arange(-most, most + 1, dtype=torch.float32).view(1, 1, 1, -1) * scale.view(1, -1, 1, 1)
        return values if bias is None else values + bias.view(1, -1, 1, 1)
    if op_name(node.target) not in POINT_BY_POINT or not isinstance(node.args[0], fx.Node):
        return None
    rest = [ctx.constant(a) if isinstance(a, fx.Node) else a for a in node.args[1:]]
    if any(isinstance(a, fx.Node) and t is None for a, t in zip(node.args[1:], rest, strict=True)):
        return None
    if any(isinstance(t, Tensor) and t.ndim == 4 and t.shape[2:] != (1, 1) for t in rest):
        return None
    inner = every_value(ctx, node.args[0])
    return None if inner is None else node.target(inner, *rest, **node.kwargs)


def never_negative(ctx: Lowering, node: fx.Node) -> bool:
    """Whether a tensor holds no number below zero and no NaN: 0 and 1, and what is interpolated between such."""
    if node.op != "call_function":
        return False
    name = op_name(node.target)
    if dtype_of(node) == torch.bool:
        return True
    if name in (*CASTS, "vqc::resize_bilinear") or "upsample" in name:
        return "bicubic" not in name and isinstance(node.args[0], fx.Node) and never_negative(ctx, node.args[0])
    return False


# ---- the rule ------------------------------------------------------------------------------------------------------


@lowering("vqc::masked_bconv2d", check=all_of(binary.binary_weight, constant_arguments("scale", "bias")))
def lower_masked_bconv(ctx: Lowering, node: fx.Node) -> None:
    scale, bias = ctx.constant(argument(node, "scale")), ctx.constant(argument(node, "bias"))
    assert scale is not None
    source = MaskedSums(node, ctx.dense(argument(node, "mask")), ex.const(0.0))
    e = ex.apply("mul", Expr("sums", source=source), c4.per_channel(ctx, scale))
    if bias is not None:
        e = ex.apply("add", e, c4.per_channel(ctx, bias))
    source.result = e
    finish(ctx, node, e)

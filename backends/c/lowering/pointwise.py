"""Pointwise operators: expressions that grow along chains and are emitted as one program each.

A node whose only reader is another pointwise node of the same shape is not computed by itself: its expression goes into
that node's. Everything stays what it was, operation by operation: the interpreter rounds each one once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c import rows
from vqc.backends.c.expr import Expr, apply, const
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering import c4, conv, parts_c4
from vqc.backends.c.registry import all_of, lowering, op_name, tensors
from vqc.ops.exact import argument
from vqc.program import DTYPE_NAMES, Program, dtype_of, shape_of

POINTWISE: set[str] = {
    "quantized_decomposed::quantize_per_tensor", "quantized_decomposed::quantize_per_tensor.tensor",
    "quantized_decomposed::dequantize_per_tensor", "quantized_decomposed::dequantize_per_tensor.tensor",
    "quantized_decomposed::quantize_per_channel", "quantized_decomposed::dequantize_per_channel", "aten::batch_norm",
}  # fmt: skip
INTEGER_OPS = {
    "add",
    "sub",
    "mul",
    "max",
    "min",
    "lt",
    "le",
    "eq",
    "ne",
    "and",
    "or",
    "where",
    "neg",
    "abs",
    "sign",
    "not",
    "mod",
    "fmod",
    "floordiv",
    "truncdiv",
    "ipow",
    "bitand",
    "bitor",
    "bitxor",
    "bitnot",
    "shl",
    "shr",
}
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def operand(ctx: Lowering, node: fx.Node, arg: Any, integer: bool = False) -> Expr:
    """An argument as an expression: a number, a lazy result of the same shape, or a load that broadcasts."""
    if not isinstance(arg, fx.Node):
        return const(float(arg))
    tensor = ctx.constant(arg)
    if tensor is not None and tensor.numel() == 1:
        return const(float(tensor.item()))
    found = ctx.env.get(arg)
    if isinstance(found, Expr) and found.integer == integer and shape_of(arg) == shape_of(node):
        return found
    return ex.load(ctx.value(arg), integer)


def finish(ctx: Lowering, node: fx.Node, e: Expr) -> None:
    """Bind the node to its expression: lazily when the only reader can take it in, else computed now."""
    if ctx.following is node:  # whoever asked decides what to do with it
        ctx.followed = e
        return
    lazy = [(a, ctx.env[a]) for a in node.all_input_nodes if isinstance(ctx.env.get(a), Expr)]
    held = sorted(((a, x) for a, x in lazy if rows.sums_of(x)), key=lambda h: not c4.unmasked(h[1]))
    while held and (why := c4.why_not_fused(e, node)) is not None:
        arg, inner = held.pop(0)  # its convolution is computed by itself
        ctx.unfused[arg.name] = f"{node.name}: {why}"
        lazy.remove((arg, inner))
        e = ex.substitute(e, inner, ex.load(ctx.value(arg), e.integer))
    while lazy and parts_c4.leaves(e) and rows.why_not(e, shape_of(node)) is not None:
        arg, inner = lazy.pop()  # parts can hold no more than a row program
        e = ex.substitute(e, inner, ex.load(ctx.value(arg), e.integer))
    while not rows.sums_of(e) and ex.linearize(e) is None and lazy:  # too much for one program: operands by themselves
        arg, inner = lazy.pop()
        e = ex.substitute(e, inner, ex.load(ctx.value(arg), e.integer))
    if e.op in ("const", "load"):  # a program needs an operation
        e = apply("add", e, const(-0.0), integer=e.integer)
    if _reader_takes(ctx.program, node, e.integer) or conv.takes_rows(ctx.program, node, e):
        ctx.bind(node, e)
        ctx.kernels[node.name] = "in the next pointwise kernel"
    else:
        ctx.bind(node, ctx.compute(e, node))


def _reader_takes(program: Program, node: fx.Node, integer: bool) -> bool:
    if len(node.users) != 1:
        return False
    user = next(iter(node.users))
    if user.op == "call_function" and parts_c4.is_cat(user):
        return parts_c4.leads_to_c4(program, node)
    if user.op != "call_function" or op_name(user.target) not in POINTWISE or shape_of(user) != shape_of(node):
        return False
    # Integers narrower than the register would have to wrap; large ones do not fit a float.
    return dtype_of(node) in (
        (torch.int64, torch.bool) if integer else (torch.float32, torch.bool, torch.uint8, torch.int8)
    )


def _is_integer(node: fx.Node) -> bool:
    """Whether a node is computed in integers: an integer among the operands, and no float anywhere."""
    kinds = {dtype_of(n) for n in (*node.all_input_nodes, node)}
    numbers = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, float) and not a.is_integer()]
    return torch.float32 not in kinds and bool(kinds & set(INTEGERS)) and not numbers


def integer_call(node: fx.Node) -> bool:
    """Whether a node's expression is made of operations on integers."""
    return _is_integer(node)


def _complex(program: Program, node: fx.Node) -> str | None:
    bad = next((n for n in (*node.all_input_nodes, node) if dtype_of(n) == torch.complex64), None)
    return None if bad is None else f"{bad.name} is complex: it has no kernel for that"


def pointwise(*ops: str, needs: tuple[str, ...] = (), check: Any = None) -> Any:
    """Register a function (operand getter, node) -> Expr for these operators; `needs`: its operations."""

    def wrap(build: Any) -> Any:
        def integers_known(program: Program, node: fx.Node) -> str | None:
            if _is_integer(node) and not set(needs) <= INTEGER_OPS:
                kind = next(DTYPE_NAMES[d] for d in map(dtype_of, (*node.all_input_nodes, node)) if d in INTEGERS)
                return f"it works on {kind}; this kernel takes float32"
            rank = max((t.ndim for n in (node, *node.all_input_nodes) for t in tensors(n.meta["val"])), default=0)
            return None if rank <= ex.MAX_DIMS else f"it has {rank} axes, the kernel takes {ex.MAX_DIMS}"

        checks = [_complex, integers_known, *([check] if check else [])]

        @lowering(*ops, check=all_of(*checks))
        def lower(ctx: Lowering, node: fx.Node) -> None:
            integer = _is_integer(node)

            def get(arg: Any) -> Expr:
                return operand(ctx, node, arg, integer)

            e = build(get, node)
            finish(ctx, node, _typed(e) if integer else e)

        POINTWISE.update(ops)
        return build

    return wrap


def _typed(e: Expr) -> Expr:
    """The expression with its own operations marked as integer ones."""
    if e.op in ("const", "load") or e.integer:
        return e
    return Expr(e.op, tuple(_typed(a) for a in e.args), e.value, e.number, True)


# ---- one operation each --------------------------------------------------------------------------------------------

_UNARY = {
    "neg": "neg", "abs": "abs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "rint",
    "sign": "sign", "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sin": "sin", "cos": "cos",
    "erf": "erf", "tanh": "tanh", "sigmoid": "sigmoid", "logical_not": "not",
}  # fmt: skip
_BINARY = {
    "mul": "mul", "div": "div", "maximum": "max", "minimum": "min", "logical_and": "and", "logical_or": "or",
    "atan2": "atan2", "remainder": "mod",
}  # fmt: skip
_COMPARE = {"lt": ("lt", False), "le": ("le", False), "gt": ("lt", True), "ge": ("le", True), "eq": ("eq", False),
            "ne": ("ne", False)}  # fmt: skip


def _register_simple() -> None:
    for name, code in _UNARY.items():
        pointwise(f"aten::{name}", needs=(code,))(lambda get, n, code=code: apply(code, get(n.args[0])))
    for name, code in _BINARY.items():
        pointwise(f"aten::{name}", f"aten::{name}.Tensor", f"aten::{name}.Scalar", needs=(code,))(
            lambda get, n, code=code: apply(code, get(n.args[0]), get(n.args[1]))
        )
    for name, (code, swap) in _COMPARE.items():
        pointwise(f"aten::{name}.Tensor", f"aten::{name}.Scalar", needs=(code,))(
            lambda get, n, code=code, swap=swap: apply(
                code, *[get(a) for a in (n.args[:2][::-1] if swap else n.args[:2])]
            )
        )
    for name, code in (("exp", "exp_exact"), ("sigmoid", "sigmoid"), ("tanh", "tanh_exact")):
        pointwise(f"vqc::{name}", needs=(code,))(lambda get, n, code=code: apply(code, get(n.args[0])))


_register_simple()


def scaled(e: Expr, factor: float) -> Expr:
    return e if factor == 1 else apply("mul", e, const(factor))


@pointwise("aten::add.Tensor", "aten::add.Scalar", needs=("add", "mul"))
def _add(get, node):
    return apply("add", get(node.args[0]), scaled(get(node.args[1]), argument(node, "alpha", 1)))


@pointwise("aten::sub.Tensor", "aten::sub.Scalar", needs=("sub", "mul"))
def _sub(get, node):
    return apply("sub", get(node.args[0]), scaled(get(node.args[1]), argument(node, "alpha", 1)))


@pointwise("aten::rsub.Scalar", "aten::rsub.Tensor", needs=("sub", "mul"))
def _rsub(get, node):
    return apply("sub", get(node.args[1]), scaled(get(node.args[0]), argument(node, "alpha", 1)))


@pointwise("aten::reciprocal", needs=("div",))
def _reciprocal(get, node):
    return apply("div", const(1.0), get(node.args[0]))


@pointwise("aten::rsqrt", needs=("div", "sqrt"))
def _rsqrt(get, node):
    return apply("div", const(1.0), apply("sqrt", get(node.args[0])))


@pointwise("aten::square", needs=("mul",))
def _square(get, node):
    x = get(node.args[0])
    return apply("mul", x, x)


@pointwise(
    "aten::div.Tensor_mode",
    "aten::div.Scalar_mode",
    "aten::floor_divide",
    "aten::floor_divide.Scalar",
    needs=("floordiv", "truncdiv"),
)
def _div_mode(get, node):
    mode = argument(node, "rounding_mode") if node.target is not torch.ops.aten.floor_divide.default else "floor"
    code = {None: "div", "floor": "floordiv", "trunc": "truncdiv"}[mode]
    return apply(code, get(node.args[0]), get(node.args[1]))


@pointwise(
    "aten::where.self", "aten::where.ScalarSelf", "aten::where.ScalarOther", "aten::where.Scalar", needs=("where",)
)
def _where(get, node):
    return apply("where", *(get(a) for a in node.args[:3]))


@pointwise("aten::masked_fill.Scalar", "aten::masked_fill.Tensor", needs=("where",))
def _masked_fill(get, node):
    return apply("where", get(node.args[1]), get(node.args[2]), get(node.args[0]))


def held(e: Expr, low: Any, high: Any) -> Expr:
    """min(max(e, low), high); None leaves an end open."""
    if low is not None:
        e = apply("max", e, low if isinstance(low, Expr) else const(low))
    if high is not None:
        e = apply("min", e, high if isinstance(high, Expr) else const(high))
    return e


# ---- conversions ---------------------------------------------------------------------------------------------------

_LIMITS = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-32768, 32767)}


@pointwise("aten::_to_copy", "aten::to.dtype", needs=("add",))
def _to_copy(get, node):
    x, before, after = get(node.args[0]), dtype_of(node.args[0]), dtype_of(node)
    if after == torch.bool and before != torch.bool:
        return apply("ne", x, const(0.0))
    if before == torch.float32 and after in INTEGERS:
        return held(apply("trunc", x), *_LIMITS.get(after, (None, None)))
    return x

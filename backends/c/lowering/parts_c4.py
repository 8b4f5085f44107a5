"""Concatenations and resizes that end, quantized, in the input of a convolution: nothing in between is stored.

`cat` along channels and `resize_bilinear` are not computed where they stand if their only readers lead to a tensor in
the layout c4: they become leaves of its expression ("cat", "resized"), and one call fills the tensor, part by part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c import rows
from vqc.backends.c.expr import Expr
from vqc.backends.c.ir import Array, Struct, Value
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering import c4
from vqc.backends.c.registry import op_name
from vqc.ops.exact import argument
from vqc.ops.resample import bilinear_table
from vqc.program import Program, dtype_of, shape_of

BAND_ROWS = 16  # output rows of one task


@dataclass(frozen=True, eq=False)
class Resized:
    """A bilinear resize that is not computed yet: its source and the tables of rows and columns."""

    node: fx.Node
    x: Value
    tables: tuple[Value, ...]
    twice: bool


@dataclass(frozen=True, eq=False)
class Cat:
    """A concatenation along channels that is not made yet: the expression and the channels of every part."""

    node: fx.Node
    parts: tuple[tuple[Expr, int], ...]


def leads_to_c4(program: Program, node: fx.Node) -> bool:
    """Whether a result's only readers are pointwise operations with constants and concatenations, up to a c4 tensor."""
    return why_stored(program, node) is None


def why_stored(program: Program, node: fx.Node) -> str | None:
    """None if a result's readers lead to a c4 tensor, each the only one; else where the way ends."""
    from vqc.backends.c.lowering.pointwise import POINTWISE

    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.op != "call_function":
            return "it is a result of the program"
        if not is_cat(user):
            others = [a for a in user.all_input_nodes if a is not node and program.constant(a) is None]
            if op_name(user.target) not in POINTWISE or shape_of(user) != shape_of(node) or others:
                return f"{user.name} is no pointwise operation on it alone"
        if c4.wants_c4(program, user):
            return None
        node = user
    return f"{node.name} has {len(node.users)} readers"


def is_cat(node: fx.Node) -> bool:
    """Whether a node puts pictures together channel after channel."""
    if op_name(node.target) not in ("aten::cat", "aten::concat") or len(shape_of(node)) != 4:
        return False
    tensors = node.args[0]
    assert isinstance(tensors, (list, tuple))
    return int(argument(node, "dim", 0)) % 4 == 1 and all(
        isinstance(t, fx.Node) and len(shape_of(t)) == 4 and shape_of(t)[1] > 0 and dtype_of(t) == dtype_of(node)
        for t in tensors
    )


def lazy_resize(ctx: Lowering, node: fx.Node, align: bool, scales: Sequence[float | None]) -> bool:
    """Bind a resize as a leaf where that saves storing it; whether it was done."""
    why = why_stored(ctx.program, node)
    if dtype_of(node) != torch.float32 or why is not None:
        if why is not None and any(op_name(n.target) in c4.CONVOLUTIONS for n in ctx.program.calls):
            ctx.unfused[node.name] = why
        return False
    x = ctx.dense(node.args[0])
    tables, twice = bilinear_tables(ctx, x.shape, shape_of(node), align, scales)
    ctx.bind(node, Expr("resized", source=Resized(node, x, tables, twice)))
    ctx.kernels[node.name] = "in the tensor it ends in"
    return True


def bilinear_tables(ctx: Lowering, before: Sequence[int], after: Sequence[int], align: bool,
                    scales: Sequence[float | None]) -> tuple[tuple[Value, ...], bool]:  # fmt: skip
    """Rows, their weights, columns, their weights; and whether the columns are doubled evenly."""
    tables, twice = [], False
    for i in (0, 1):
        i0, i1, w0, w1 = bilinear_table(before[2 + i], after[2 + i], align, scales[i])
        tables += [ctx.weight(np.concatenate([i0, i1]), "indices"), ctx.weight(np.concatenate([w0, w1]), "weights")]
        twice = _doubles(i0, i1, w0, w1, before[2 + i])
    return tuple(tables), twice


def _doubles(i0: np.ndarray, i1: np.ndarray, w0: np.ndarray, w1: np.ndarray, size: int) -> bool:
    """Whether a table is that of twice the columns, with equal weights all along but at the ends."""
    k = np.arange(1, size - 1)
    if len(i0) != 2 * size or not len(k):
        return False
    even, odd = 2 * k, 2 * k + 1
    places = (i0[even] == k - 1) & (i1[even] == k) & (i0[odd] == k) & (i1[odd] == k + 1)
    same = (w0[even] == w0[2]) & (w1[even] == w1[2]) & (w0[odd] == w0[3]) & (w1[odd] == w1[3])
    return bool((places & same).all())


def lazy_cat(ctx: Lowering, node: fx.Node) -> bool:
    """Make a concatenation that is read in the layout c4, or bind it as a leaf where it leads there; whether done."""
    if not is_cat(node):
        return False
    now = c4.wants_c4(ctx.program, node)
    if not now and not (dtype_of(node) == torch.float32 and leads_to_c4(ctx.program, node)):
        return False
    tensors: Any = node.args[0]
    parts = []
    for t in tensors:
        found = ctx.env.get(t)
        if isinstance(found, Expr) and not rows.sums_of(found):
            found = _contiguous(ctx, found, shape_of(t))
            known = rows.why_not(found, shape_of(t)) is None
        else:
            known = False
        parts.append((found if known else ex.load(ctx.value(t)), shape_of(t)[1]))
    e = Expr("cat", source=Cat(node, tuple(parts)))
    if now:
        emit(ctx, e, node)
    else:
        ctx.bind(node, e)
        ctx.kernels[node.name] = "in the tensor it ends in"
    return True


def leaves(e: Expr) -> list[Expr]:
    """The distinct concatenations and resizes in an expression."""
    return [x for x in e.parts() if x.op in ("cat", "resized")]


def emit(ctx: Lowering, e: Expr, node: fx.Node) -> Value:
    """One call that fills the node's tensor, in the layout c4, from an expression with such leaves."""
    out = ctx.result(node, "c4")
    n, c, h, w = out.shape
    structs: list[Struct] = []
    operands: list[Value] = []
    first = 0
    for part, channels in _parts(ctx, e, out.shape):
        shape = (n, channels, h, w)
        part = _fitting(ctx, part, shape)
        resized = [x.source for x in leaves(part)]
        code = rows.write([(part, replace(out, shape=shape))], lead=4 if resized else 0)
        fields: dict[str, Any] = {"first": first, "channels": channels, "in": len(operands)}
        fields |= {"resized": int(bool(resized)), "rest": rows.rows_struct(ctx, code, [out])}
        operands += [o.value for o in code.operands]
        if resized:
            r = resized[0]
            fields |= {"h": r.x.shape[2], "w": r.x.shape[3], "twice": int(r.twice)}
            operands += [r.x, *r.tables]
        structs.append(Struct("vqc_part", fields))
        first += channels
    params = Struct("vqc_parts_c4_params", {"n": n, "c": c, "h": h, "w": w, "rows": min(h, BAND_ROWS),
                                            "parts": Array("vqc_part", tuple(structs))})  # fmt: skip
    ctx.call("vqc_parts_c4", "c4", params, tuple(operands) or None, out=[out], scratch=4 * 8 * w,
             comment=f"{node.name}: {len(structs)} parts")  # fmt: skip
    return out


def _parts(ctx: Lowering, e: Expr, shape: tuple[int, ...]) -> list[tuple[Expr, int]]:
    """The expression of every part over its own channels: what is done to a concatenation is done to its parts."""
    cats = [x for x in leaves(e) if x.op == "cat"]
    n, channels, *picture = shape
    if not cats:
        return [(e, channels)]
    found, first = [], 0
    for i, (inner, count) in enumerate(cats[0].source.parts):
        over = (n, count, *picture)
        part = _contiguous(ctx, _over(e, cats[0], inner, first, count, channels), over)
        if rows.why_not(part, over) is not None:  # together they are too much for a row program
            value = ex.load(_value(ctx, inner, cats[0].source.node, i))
            part = _contiguous(ctx, _over(e, cats[0], value, first, count, channels), over)
        found += _parts(ctx, part, over)
        first += count
    return found


def _over(e: Expr, cat: Expr, inner: Expr, first: int, count: int, channels: int) -> Expr:
    """An expression with `inner`, one part of a concatenation, in its place; what else it reads is cut to the part."""

    def change(x: Expr) -> Expr | None:
        if x is cat:
            return inner
        if x.value is None or len(x.value.shape) < 3:
            return None
        v, axis = x.value, len(x.value.shape) - 3
        if v.shape[axis] == 1:
            return None
        assert v.shape[axis] == channels
        shape = (*v.shape[:axis], count, *v.shape[axis + 1 :])
        return replace(x, value=replace(v, shape=shape, offset=v.offset + first * v.strides[axis]))

    return ex.rewrite(e, change)


def _fitting(ctx: Lowering, e: Expr, shape: tuple[int, ...]) -> Expr:
    """The expression as a part can hold it: with one resize at most, and no strided operand."""
    found = leaves(e)
    for x in found[1:]:
        e = ex.substitute(e, x, ex.load(force(ctx, x)))
    return _contiguous(ctx, e, shape)


def _contiguous(ctx: Lowering, e: Expr, shape: Sequence[int]) -> Expr:
    """The expression with operands copied whose positions are not one run, because of strides or of broadcasting."""

    def dense(x: Expr) -> Expr | None:
        if x.value is None or rows.operand_of(x.value, shape) is not None:
            return None
        v = x.value
        spread = Value(v.buffer, v.dtype, tuple(shape), ex.broadcast_strides(v, shape), v.offset)
        return replace(x, value=ctx.dense(spread))

    return ex.rewrite(e, dense)


def force(ctx: Lowering, leaf: Expr) -> Value:
    """Compute a leaf by itself after all."""
    from vqc.backends.c.lowering.movement import concatenate
    from vqc.backends.c.lowering.resample import resize

    source = leaf.source
    if isinstance(source, Resized):
        return resize(ctx, source.x, source.tables, source.twice, ctx.result(source.node))
    return concatenate(
        ctx, source.node, [_value(ctx, part, source.node, i) for i, (part, _) in enumerate(source.parts)]
    )


def _value(ctx: Lowering, part: Expr, node: fx.Node, index: int) -> Value:
    tensors: Any = node.args[0]
    return part.value if part.value is not None and part.op == "load" else ctx.compute(part, tensors[index])


def without_leaves(ctx: Lowering, e: Expr) -> Expr:
    """An expression whose concatenations and resizes are computed."""
    for x in leaves(e):
        e = ex.substitute(e, x, ex.load(force(ctx, x)))
    return e

"""Pointwise expressions, and their translation into programs of the pointwise interpreter (vqc_pointwise.h)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vqc.backends.c.ir import DTYPES, Array, Buffer, Struct, Value, dense_strides

REGISTERS = 12  # VQC_PW_REGS
OPERANDS = 16  # PW_OPERANDS
MAX_OPS = 48  # longer chains are cut: no gain, and tables nobody can read
MAX_DIMS = 8  # VQC_MAX_DIMS


@dataclass(frozen=True, eq=False)
class Expr:
    """A pointwise expression: "load" of a value, "const", or an operation of `vqc_pw_code` in lower case.

    `integer`: computed in int64 registers, else in float. Shared subexpressions are the same object. "sums", "cat" and
    "resized": something that is not computed yet, described by `source` (lowering/c4.py, lowering/parts_c4.py).
    """

    op: str
    args: tuple[Expr, ...] = ()
    value: Value | None = None
    number: float = 0.0
    integer: bool = False
    source: Any = None

    def parts(self) -> list[Expr]:
        """The distinct expressions it is made of, itself first, each before its arguments."""
        found: dict[int, Expr] = {}

        def walk(e: Expr) -> None:
            if id(e) not in found:
                found[id(e)] = e
                for a in e.args:
                    walk(a)

        walk(self)
        return list(found.values())

    def loads(self) -> list[Value]:
        """The distinct values the expression reads, in order."""
        found: dict[tuple, Value] = {}
        for e in self.parts():
            if e.value is not None:
                found.setdefault(key(e.value), e.value)
        return list(found.values())


def load(value: Value, integer: bool = False) -> Expr:
    return Expr("load", value=value, integer=integer)


def const(number: float) -> Expr:
    return Expr("const", number=float(number))


def apply(op: str, *args: Expr, integer: bool = False) -> Expr:
    return Expr(op, args, integer=integer)


def rewrite(e: Expr, change: Callable[[Expr], Expr | None], known: dict[int, Expr] | None = None) -> Expr:
    """The expression with every part for which `change` gives another one replaced by that, from the top down."""
    known = {} if known is None else known
    if id(e) not in known:
        new = change(e)
        if new is None:
            args = tuple(rewrite(a, change, known) for a in e.args)
            same = all(a is b for a, b in zip(args, e.args, strict=True))
            new = e if same else replace(e, args=args)
        known[id(e)] = new
    return known[id(e)]


def substitute(e: Expr, old: Expr, new: Expr) -> Expr:
    """The expression with one part replaced, wherever it stands."""
    return rewrite(e, lambda x: new if x is old else None)


def key(v: Value) -> tuple:
    return (id(v.buffer), v.offset, v.shape, v.strides, v.dtype)


# Operations whose second or first operand may be the instruction's constant.
_IMMEDIATE = {
    "add",
    "sub",
    "mul",
    "div",
    "max",
    "min",
    "lt",
    "le",
    "eq",
    "ne",
    "and",
    "or",
    "leaky",
    "pow",
    "mod",
    "atan2",
    "fmod",
    "floordiv",
    "truncdiv",
    "bitand",
    "bitor",
    "bitxor",
    "shl",
    "shr",
    "ipow",
}


@dataclass(frozen=True)
class PwOp:
    """One instruction: code, registers d, a, b, c (b the operand's index for load and store), constant."""

    code: str
    d: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    i: float = 0.0


IMM = 255  # VQC_PW_IMM


class _Full(Exception):
    """More registers, operands or instructions than a program can have."""


def linearize(expr: Expr) -> tuple[list[PwOp], list[Value]] | None:
    """The instructions (without the store) that leave the result in the last one's `d`, and the values they load.

    None when the expression is too large for one program.
    """
    uses: dict[int, int] = {}
    order: dict[tuple, Value] = {}
    canonical: dict[tuple, Expr] = {}

    def same(e: Expr) -> Expr:  # two loads of one value are one
        return canonical.setdefault((key(e.value), e.integer), e) if e.value is not None else e

    def count(e: Expr) -> None:
        e = same(e)
        uses[id(e)] = uses.get(id(e), 0) + 1
        if uses[id(e)] == 1:
            for a in e.args:
                count(a)

    ops: list[PwOp] = []
    free = list(range(REGISTERS - 1, -1, -1))
    where: dict[int, int] = {}

    def done(e: Expr) -> None:
        e = same(e)
        uses[id(e)] -= 1
        if uses[id(e)] == 0 and id(e) in where:
            free.append(where.pop(id(e)))

    def fresh() -> int:
        if not free:
            raise _Full
        return free.pop()

    def visit(e: Expr) -> int:
        e = same(e)
        if id(e) in where:
            return where[id(e)]
        if len(ops) >= MAX_OPS:
            raise _Full
        if e.value is not None:
            index = list(order).index(key(e.value)) if key(e.value) in order else len(order)
            order.setdefault(key(e.value), e.value)
            if len(order) >= OPERANDS:
                raise _Full
            where[id(e)] = d = fresh()
            ops.append(PwOp("LOAD", d=d, b=index))
            return d
        if e.op == "const":
            where[id(e)] = d = fresh()
            ops.append(PwOp("CONST", d=d, i=e.number))
            return d
        regs, number = [], 0.0
        immediate = e.op in _IMMEDIATE and [a.op for a in e.args].count("const") == 1
        for a in e.args:
            if immediate and a.op == "const":
                number = a.number
                regs.append(IMM)
            else:
                regs.append(visit(a))
        for a in e.args:
            done(a)
        where[id(e)] = d = fresh()
        regs += [0] * (3 - len(regs))
        ops.append(PwOp(e.op.upper(), d, regs[0], regs[1], regs[2], number))
        return d

    try:
        count(expr)
        visit(expr)
    except _Full:
        return None
    return ops, list(order.values())


def broadcast_strides(value: Value, shape: Sequence[int]) -> tuple[int, ...]:
    """The value's strides over a shape it broadcasts to: 0 along new and stretched axes."""
    lead = len(shape) - len(value.shape)
    return (0,) * lead + tuple(
        0 if size == 1 else stride for size, stride in zip(value.shape, value.strides, strict=True)
    )


def collapse(shape: Sequence[int], *strides: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Drop axes of size 1 and merge neighbours that all tensors step through evenly; at least one axis is left."""
    axes = [(s, [st[i] for st in strides]) for i, s in enumerate(shape) if s != 1]
    merged: list[tuple[int, list[int]]] = []
    for size, steps in axes:
        if merged and all(a == b * size for a, b in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    if not merged:
        merged = [(1, [0] * len(strides))]
    return [s for s, _ in merged], [[steps[i] for _, steps in merged] for i in range(len(strides))]


def program(expr: Expr, out: Value) -> tuple[Struct, list[Value]]:
    """The parameters of a pointwise call that writes `out`, and the values it loads. The expression must fit."""
    lines = linearize(expr)
    assert lines is not None, "the expression was checked when it was built"
    ops, values = lines
    ops = [*ops, PwOp("STORE", a=ops[-1].d, b=len(values))]
    shape, strides = collapse(out.shape, *(broadcast_strides(v, out.shape) for v in values), out.strides)
    assert len(shape) <= MAX_DIMS
    operands = tuple(
        Struct("vqc_pw_operand", {"dtype": DTYPES[v.dtype][0], "stride": s})
        for v, s in zip([*values, out], strides, strict=True)
    )
    table = tuple(
        Struct("vqc_pw_op", {"code": "VQC_PW_" + o.code, "d": o.d, "a": o.a, "b": o.b, "c": o.c, "i": float(o.i)})
        for o in ops
    )
    return Struct("vqc_pw_params", {
        "dims": len(shape), "shape": shape, "operands": Array("vqc_pw_operand", operands), "inputs": len(values),
        "outputs": 1, "ops": Array("vqc_pw_op", table), "count": len(ops),
    }), values  # fmt: skip


def can_share(out: Value, values: Sequence[Value]) -> list[Buffer]:
    """The buffers whose memory the output may take over, element on element: dense, alike, and read only so."""
    buffers = [v.buffer for v in values]
    if out.strides != dense_strides(out.shape):
        return []
    return [
        v.buffer
        for v in values
        if v.dtype == out.dtype and v.shape == out.shape and v.is_whole and buffers.count(v.buffer) == 1
    ]

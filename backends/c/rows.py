"""Row programs: pointwise expressions as generated C functions over a run of positions of one channel (vqc_c4.h).

They are what follows the sums of an integer convolution, and what fills tensors of the layout c4. Every operation is
rounded once, in the written order, as in the pointwise interpreter: the results are equal (of two zeros, max and min
with a constant may give the one of the other sign).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from vqc.backends.c import expr as ex
from vqc.backends.c.expr import Expr
from vqc.backends.c.ir import DTYPES, Array, Buffer, Ref, Struct, Value, dense_strides, numel
from vqc.backends.c.text import number

if TYPE_CHECKING:
    from vqc.backends.c.lower import Lowering

OPERANDS = 24  # VQC_ROW_OPERANDS
WORDS = 4  # VQC_ROW_WORDS: outputs in the layout c4
MAX_OPS = 64

# What fits each integer type and is a float: limits of what is stored there, as in vqc_pointwise_f32.c.
STORED: dict[torch.dtype, tuple[int, int]] = {
    torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-32768, 32767), torch.int32: (-(2**31), 2**31 - 128),
    torch.int64: (-(2**63), 2**63 - 2**39),
}  # fmt: skip

# Each operation as C on floats; a truth value is 1 or 0. The same as in vqc_pointwise_f32.c.
C_OPS: dict[str, str] = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}",
    "max": "{0} > {1} || {0} != {0} ? {0} : {1}", "min": "{0} < {1} || {0} != {0} ? {0} : {1}",
    "lt": "{0} < {1} ? 1.0f : 0.0f", "le": "{0} <= {1} ? 1.0f : 0.0f", "eq": "{0} == {1} ? 1.0f : 0.0f",
    "ne": "{0} != {1} ? 1.0f : 0.0f", "and": "{0} != 0.0f && {1} != 0.0f ? 1.0f : 0.0f",
    "or": "{0} != 0.0f || {1} != 0.0f ? 1.0f : 0.0f", "leaky": "{0} > 0.0f ? {0} : {0} * {1}",
    "where": "{0} != 0.0f ? {1} : {2}", "neg": "-{0}", "abs": "fabsf({0})", "sqrt": "sqrtf({0})",
    "floor": "floorf({0})", "ceil": "ceilf({0})", "trunc": "truncf({0})", "rint": "rintf({0})",
    "sign": "(float)(({0} > 0.0f) - ({0} < 0.0f))", "not": "{0} == 0.0f ? 1.0f : 0.0f", "exp": "vqc_exp_wide({0})",
    "exp_exact": "vqc_exp({0})", "sigmoid": "vqc_sigmoid({0})", "tanh": "vqc_tanh_near({0})",
    "tanh_exact": "vqc_tanh({0})",
}  # fmt: skip


@dataclass(frozen=True)
class Operand:
    """How a row program reads a tensor: steps in elements, and whether it moves along positions."""

    value: Value
    batch: int
    channel: int
    moves: bool

    def struct(self) -> Struct:
        item = self.value.item
        steps = {"batch": self.batch * item, "channel": self.channel * item, "position": item if self.moves else 0}
        return Struct("vqc_row_operand", steps)


def operand_of(value: Value, shape: Sequence[int]) -> Operand | None:
    """A tensor that broadcasts to [N,C,...] as a row operand; None when its positions are not a run or one element."""
    if value.layout is not None or len(shape) < 2:
        return None
    strides = ex.broadcast_strides(value, shape)
    step, run, still = 1, True, True
    for size, stride in zip(reversed(shape[2:]), reversed(strides[2:]), strict=True):
        if size == 1:
            continue
        run, still = run and stride == step, still and stride == 0
        step *= size
    if not run and not still:
        return None
    return Operand(value, strides[0], strides[1], moves=run and not still)


def output_of(value: Value) -> Struct:
    """The steps of an output, dense or in the layout c4."""
    n, c = value.shape[:2]
    positions = value.count // (n * c)
    if value.layout == "c4":
        quads = -(-c // 4)
        return Struct("vqc_row_operand", {"batch": 4 * quads * positions, "channel": 4 * positions, "position": 4})
    item = value.item
    return Struct("vqc_row_operand", {"batch": c * positions * item, "channel": positions * item, "position": item})


@dataclass
class RowCode:
    """A row program's C, without its name, and what it is called with."""

    text: str
    constants: list[float]
    operands: list[Operand]
    count: int


@dataclass
class _Writer:
    """Turns expressions into statements; equal operands and equal objects are read and computed once."""

    shape: tuple[int, ...]
    first: int  # operands that stand before the first one
    head: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    known: dict[int, str] = field(default_factory=dict)
    loads: dict[tuple, str] = field(default_factory=dict)

    def visit(self, e: Expr) -> str:
        if id(e) not in self.known:
            self.known[id(e)] = self.write(e)
        return self.known[id(e)]

    def write(self, e: Expr) -> str:
        if e.op == "sums":
            if not any("sums" in line for line in self.head):
                self.head.append("const int32_t *sums = (const int32_t *)in[0];")
            return self.name("(float)sums[i]")
        if e.op == "resized":  # two rows of its source at the output's columns, and their weights
            self.head += [
                "const float *top = (const float *)in[0], *bottom = (const float *)in[1];",
                "const float top_weight = *(const float *)in[2], bottom_weight = *(const float *)in[3];",
            ]
            return self.name("top[i] * top_weight + bottom[i] * bottom_weight")
        if e.op == "const":
            self.constants.append(e.number)
            self.head.append(f"const float k{len(self.constants) - 1} = constants[{len(self.constants) - 1}];")
            return f"k{len(self.constants) - 1}"
        if e.value is not None:
            return self.load(e.value)
        if e.op in ("max", "min") and e.args[1].op == "const" and not math.isnan(e.args[1].number):
            less = "<" if e.op == "min" else ">"  # one instruction; a NaN stays one
            return self.name(f"{(y := self.visit(e.args[1]))} {less} {(x := self.visit(e.args[0]))} ? {y} : {x}")
        return self.name(C_OPS[e.op].format(*(self.visit(a) for a in e.args)))

    def load(self, value: Value) -> str:
        key = ex.key(value)
        if key not in self.loads:
            found = operand_of(value, self.shape)
            assert found is not None, "checked by `fits`"
            i, ctype = len(self.operands), DTYPES[value.dtype][1]
            self.operands.append(found)
            pointer = f"(const {ctype} *)in[{i + self.first}]"
            cast = "" if ctype == "float" else "(float)"
            if found.moves:
                self.head.append(f"const {ctype} *x{i} = {pointer};")
                self.loads[key] = self.name(f"{cast}x{i}[i]")
            else:
                self.head.append(f"const float x{i} = {cast}*({pointer});")
                self.loads[key] = f"x{i}"
        return self.loads[key]

    def name(self, text: str) -> str:
        self.body.append(f"const float v{len(self.body)} = {text};")
        return f"v{len(self.body) - 1}"

    def store(self, index: int, e: Expr, dtype: torch.dtype, *, words: bool) -> None:
        ctype = "int32_t" if words else DTYPES[dtype][1]
        self.head.append(f"{ctype} *y{index} = ({ctype} *)out[{index}];")
        if dtype == torch.float32:
            self.body.append(f"y{index}[i] = {self.visit(e)};")
            return
        narrow = "" if words else f"({ctype})"
        level = _level(e)
        if level is not None:
            inner, zero, low, high = level
            low, high = low - zero, high - zero  # a limit that is a whole number can be held before rounding
            v = self.name(f"{(x := self.visit(inner))} > {low}.0f ? {x} : {low}.0f")
            v = self.name(f"{v} < {high}.0f ? {v} : {high}.0f")
            self.body.append(f"y{index}[i] = {narrow}(vqc_round({v}) + {zero});")
            return
        if dtype == torch.bool:
            self.body.append(f"y{index}[i] = {self.visit(e)} != 0.0f;")
            return
        low, high = STORED[dtype]
        # Held in the type's range first: a conversion from outside has no meaning in C. NaN becomes the low end.
        v = self.name(f"{(x := self.visit(e))} > {low}.0f ? {x} : {low}.0f")
        v = self.name(f"{v} < {high}.0f ? {v} : {high}.0f")
        self.body.append(f"y{index}[i] = {narrow}({'int64_t' if dtype == torch.int64 else 'int32_t'}){v};")


def _level(e: Expr) -> tuple[Expr, int, int, int] | None:
    """(x, zero point, low, high), if e is min(max(rint(x) + zero point, low), high) with small whole numbers."""
    numbers = []
    for op in ("min", "max", "add"):
        if e.op != op or e.args[1].op != "const" or not e.args[1].number.is_integer():
            return None
        numbers.append(int(e.args[1].number))
        e = e.args[0]
    if e.op != "rint" or max(map(abs, numbers)) > 255 or numbers[1] != 0:
        return None
    return e.args[0], numbers[2], numbers[1], numbers[0]


def sums_of(e: Expr) -> list[Expr]:
    """The distinct sums of convolutions in an expression."""
    return [x for x in e.parts() if x.op == "sums"]


def why_not(e: Expr, shape: Sequence[int]) -> str | None:
    """None if the expression can be a row program over [N,C,...], else the reason it cannot."""
    parts = e.parts()
    for x in parts:
        if x.integer:
            return "it computes in 64-bit integers"
        if x.value is not None:
            if x.value.dtype == torch.int64:
                return "it reads 64-bit integers"
            if operand_of(x.value, shape) is None:
                return "an operand's positions are not contiguous"
        elif x.op not in C_OPS and x.op not in ("sums", "resized", "cat", "const"):
            return f"{x.op} has no form in a row program"
    if len(parts) > MAX_OPS:
        return f"it has more than {MAX_OPS} operations"
    return None if few_operands([e]) else "it reads too many tensors"


def few_operands(results: Sequence[Expr]) -> bool:
    """Whether one row program can read all that these results read."""
    return len({ex.key(v) for e in results for v in e.loads()}) <= OPERANDS - WORDS - 2


def write(results: Sequence[tuple[Expr, Value]], lead: int, *, pieces: bool = False) -> RowCode:
    """The row program that makes these results over [N,C,...]; every one must pass `why_not`.

    `lead`: operands before its own: 1 for sums, 4 for a resize, 2 for sums and where pieces are (`_over_pieces`).
    """
    w = _Writer(results[0][1].shape, lead)
    for i, (e, out) in enumerate(results):
        w.store(i, e, out.dtype, words=out.layout == "c4")
    constants = [] if w.constants else ["(void)constants;"]
    reads = [] if w.operands or lead else ["(void)in;"]
    loop = ["VQC_INDEPENDENT", "for (ptrdiff_t i = 0; i < n; i++) {", *("    " + line for line in w.body), "}"]
    lines = [*w.head, *constants, *reads, *(_over_pieces(w.body) if pieces else loop)]
    return RowCode("\n".join("    " + line for line in lines), w.constants, w.operands, len(w.body))


def _over_pieces(body: Sequence[str]) -> list[str]:
    """The loop over pieces of 16 positions that lie apart: piece k begins at in[1][k], its sums at 16 k."""
    moved = [re.sub(r"\b([xy]\d+)\[i\]", r"\1[p + i]", line).replace("sums[i]", "sums[k + i]") for line in body]
    return [
        "const int32_t *at = (const int32_t *)in[1];", "for (ptrdiff_t k = 0; k < n; k += 16) {",
        "    const ptrdiff_t p = at[k / 16];", "    VQC_INDEPENDENT", "    for (ptrdiff_t i = 0; i < 16; i++) {",
        *("        " + line for line in moved), "    }", "}",
    ]  # fmt: skip


def flattened(e: Expr, shape: Sequence[int]) -> Expr | None:
    """The expression over one run of all elements, if all it reads is dense and whole or one element."""
    count = numel(shape)
    if any(not (v.is_dense and v.shape == tuple(shape)) and v.count != 1 for v in e.loads()):
        return None

    def change(x: Expr) -> Expr | None:
        if x.value is None:
            return None
        run = (1, 1, x.value.count)
        return replace(x, value=replace(x.value, shape=run, strides=dense_strides(run)))

    return ex.rewrite(e, change) if count > 0 else None


def rows_struct(ctx: Lowering, code: RowCode, outputs: Sequence[Value]) -> Struct:
    """vqc_rows: the function (written once for equal texts), its constants, operands, and which outputs are words."""
    words = sum(1 << i for i, v in enumerate(outputs) if v.layout == "c4")
    constants = Array("float", tuple(number(c) for c in code.constants)) if code.constants else "NULL"
    operands = Array("vqc_row_operand", (*(o.struct() for o in code.operands), *(output_of(v) for v in outputs)))
    return Struct("vqc_rows", {"row": ctx.row_function(code.text), "constants": constants, "operands": operands,
                               "inputs": len(code.operands), "outputs": len(outputs), "words": words})  # fmt: skip


def refs(values: Sequence[Value], *, writes: bool = False) -> tuple[Ref, ...] | None:
    """Values as a list of memory arguments; None for an empty one."""
    return tuple(Ref(v.buffer, v.start, writes=writes) for v in values) or None


def may_share(out: Value, code: RowCode) -> tuple[Buffer, ...]:
    """The buffers an output may take over: read only once, element on element, by the same run of positions."""
    buffers = [o.value.buffer for o in code.operands]
    return tuple(
        o.value.buffer
        for o in code.operands
        if out.layout is None and o.moves and o.value.dtype == out.dtype and o.value.shape == out.shape
        and o.value.is_whole and buffers.count(o.value.buffer) == 1
    )  # fmt: skip

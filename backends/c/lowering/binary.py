"""Binary convolutions: pictures of +1 and -1 live as bits (layout "b32"), epilogues go into the convolution's kernel.

A convolution takes along, as far as each has no other reader: the sum with a residual, a ReLU or PReLU, and the sign
that makes the next binary picture. The float operations stay what they were, one rounding each, in the same order.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from vqc.backends.c import rows
from vqc.backends.c.expr import Expr
from vqc.backends.c.ir import Arg, Call, Ref, Scratch, Struct, Value, align
from vqc.backends.c.layouts import Layout, register_layout
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.conv import constant_arguments
from vqc.backends.c.registry import all_of, lowering, op_name
from vqc.backends.c.targets import target_called
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

BITS = "b32"  # uint32 [N][ceil(C/32)][H][W]; bit 1 is -1
BLOCK = 8  # BC_BLOCK in vqc_bconv_band.h
SEGMENT = 64  # BC_SEGMENT
KERNEL_LIMIT = 7  # columns of a kernel: 16 classes of columns are enough then
SUM_LIMIT = 32767  # channels times taps: some hooks count in 16 bits
MOST_BROUGHT = 8  # operators of a residual that may be computed before the convolution instead of behind it
BROUGHT = {"aten::split.Tensor", "aten::slice.Tensor", "getitem", "aten::add.Tensor", "aten::mul.Tensor", "aten::cat"}
BAND_BYTES = 192 << 10  # unpacked input a task aims at, counted for the hook that unpacks most


def words(channels: int) -> int:
    """Words of 32 channels."""
    return -(-channels // 32)


def _bits_size(shape: Sequence[int], dtype: torch.dtype) -> int:
    n, c, h, w = shape
    return 4 * n * words(c) * h * w


def bits_params(shape: Sequence[int], taus: int = 0) -> Struct:
    """The parameters of kernels between tensors and bits."""
    n, c, h, w = shape
    return Struct("vqc_bits_params", {"n": n, "c": c, "plane": h * w, "taus": taus})


def _pack(ctx: Lowering, dense: Value, packed: Value) -> None:
    ctx.call("vqc_bits_pack", "bconv", bits_params(dense.shape), dense, out=[packed])


def _unpack(ctx: Lowering, packed: Value, dense: Value) -> None:
    ctx.call("vqc_bits_unpack", "bconv", bits_params(dense.shape), packed, out=[dense])


register_layout(Layout(BITS, _bits_size, _pack, _unpack))


# ---- sizes and weights ---------------------------------------------------------------------------------------------


def shared_taps(channels: int, taps: int) -> tuple[int, int]:
    """(bits of a tap, taps) of a word that taps share, for the channels that fill no word; one tap: none is shared."""
    left = channels % 32
    bits = align(left, 4)
    return bits, 1 if left == 0 else min(taps, 32 // bits)


def pack_weight(weight: Tensor) -> Tensor:
    """Weights s8 [O,C,kh,kw] of +1 and -1 as the kernels read them: int32 [O/8][steps][8] (vqc_bconv.h)."""
    o, c, taps = weight.shape[0], weight.shape[1], weight.shape[2] * weight.shape[3]
    signs = torch.zeros(align(o, BLOCK), 32 * words(c), taps, dtype=torch.int64)
    signs[:o, :c] = (weight < 0).flatten(2).to(torch.int64)
    place = torch.ones(32, dtype=torch.int64) << torch.arange(32)
    packed = (signs.view(len(signs), -1, 32, taps) * place.view(1, 1, 32, 1)).sum(2)
    bits, sharing = shared_taps(c, taps)
    if sharing > 1:
        last = torch.zeros(len(signs), align(taps, sharing), dtype=torch.int64)
        last[:, :taps] = packed[:, -1]
        last = (last.view(len(signs), -1, sharing) << bits * torch.arange(sharing)).sum(2)
        packed = torch.cat((packed[:, :-1].flatten(1), last), 1)
    packed = packed.reshape(len(signs) // BLOCK, BLOCK, -1).transpose(1, 2).contiguous()
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def _inside(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> list[tuple[bool, ...]]:
    """For every output along an axis, which taps lie inside the picture."""
    return [tuple(0 <= i * stride - padding + k * dilation < size for k in range(kernel)) for i in range(out)]


def _classes(inside: Sequence[tuple[bool, ...]]) -> tuple[list[int], list[tuple[bool, ...]]]:
    kinds = list(dict.fromkeys(inside))
    return [kinds.index(i) for i in inside], kinds


@dataclass(frozen=True)
class BinaryGeometry:
    """A binary convolution's sizes; pairs are (height, width)."""

    x: tuple[int, int, int, int]
    out: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, node: fx.Node, weight: Tensor) -> BinaryGeometry:
        """The sizes of a binary convolution node."""
        pairs = [tuple(argument(node, name)) for name in ("stride", "padding", "dilation")]
        return cls(shape_of(node.args[0]), shape_of(node), tuple(weight.shape[2:]), *pairs)

    def inside(self, axis: int) -> list[tuple[bool, ...]]:
        """For every output row (axis 0) or column (1), which taps lie inside the picture."""
        return _inside(self.x[2 + axis], self.out[2 + axis], self.kernel[axis], self.stride[axis], self.padding[axis],
                       self.dilation[axis])  # fmt: skip

    @property
    def shared(self) -> int:
        """Words that taps share, for the channels that fill no word."""
        taps = self.kernel[0] * self.kernel[1]
        sharing = shared_taps(self.x[1], taps)[1]
        return -(-taps // sharing) if sharing > 1 else 0

    @property
    def steps(self) -> int:
        """Words that are compared for an output: of a word of channels each tap's, or those that taps share."""
        return (words(self.x[1]) - (self.shared > 0)) * self.kernel[0] * self.kernel[1] + self.shared

    def band(self, rows: int) -> int:
        """Most bytes of unpacked input of a task: a byte for four channels, rows padded (bc_shape_of)."""
        reach = (self.kernel[1] - 1) * self.dilation[1]
        phases = min(self.stride[1], reach + 1)
        pitch = align(align(self.out[3], SEGMENT) + reach // self.stride[1], SEGMENT)
        in_rows = (rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        return 8 * (words(self.x[1]) + self.shared) * in_rows * phases * pitch

    def rows(self, workers: int) -> int:
        """Output rows of one task: as many as the cache holds, and work for every worker."""
        most = self.out[2]
        if workers > 1:
            most = max(1, -(-most * self.out[0] // (2 * workers)))
        while most > 1 and self.band(most) > BAND_BYTES:
            most -= 1
        return most

    def scratch(self, rows: int) -> int:
        """Most bytes of scratch of one worker that any hook needs (bc_shape_of)."""
        tables = align(4 * (self.steps + 3 * align(self.out[3], SEGMENT)))
        past = 64  # a masked piece at the end of the last row reads a whole vector
        differ = align(4 * rows * align(self.out[3], SEGMENT))
        return tables + align(16384 + 128 * self.steps) + differ + align(self.band(rows)) + past

    @property
    def packed_scratch(self) -> int:
        """Most bytes beyond that for what a mask keeps, put side by side: BC_KEPT or BC_CHUNK and 16 positions."""
        return align(4 * self.steps) + 4 * self.steps * (384 + 16) + 2 * 64

    def arm_scratch(self, kinds: int) -> int:
        """Most bytes that kernels on Arm need beyond that (bc_plan_of in vqc_bconv_task_neon.h)."""
        channels = align(self.out[1], BLOCK)
        return channels * 2 * (kinds + 128) + channels // BLOCK * (16 * BLOCK * self.steps + 64) + 3 * 64


def base_sums(geo: BinaryGeometry, weight: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """What padding adds: (base, classes, row classes, column classes) as vqc_bconv.h has them."""
    row_of, row_kinds = _classes(geo.inside(0))
    column_of, column_kinds = _classes(geo.inside(1))
    ones = (weight < 0).sum(1).to(torch.int64)  # [O,kh,kw]
    base = torch.zeros(align(weight.shape[0], BLOCK), len(row_kinds), len(column_kinds), dtype=torch.int64)
    for (i, down), (k, across) in product(enumerate(row_kinds), enumerate(column_kinds)):
        taps = torch.tensor(down)[:, None] & torch.tensor(across)[None]
        base[: weight.shape[0], i, k] = weight.shape[1] * int(taps.sum()) + 2 * (ones * ~taps).sum((1, 2))
    padded = torch.cat((base.reshape(-1), base.new_zeros(16))).to(torch.int32)
    return padded, torch.tensor([*row_of, *column_of], dtype=torch.uint8), len(row_kinds), len(column_kinds)


# ---- what a convolution takes along --------------------------------------------------------------------------------


@dataclass
class Epilogue:
    """What follows a convolution in its kernel; `last` is the float node it ends with, `sign` a binarize of it."""

    last: fx.Node
    residual: fx.Node | None = None
    factor: float = 1.0  # of the residual, whose channels are repeated as often as they have to
    act: str = "VQC_BACT_NONE"
    slope: Tensor | None = None
    sign: fx.Node | None = None
    taken: list[fx.Node] = field(default_factory=list)
    declined: str = ""


def _only_user(node: fx.Node) -> fx.Node | None:
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.op == "call_function" else None


def _take_residual(ctx: Lowering, e: Epilogue) -> None:
    user = _only_user(e.last)
    if user is None or op_name(user.target) != "aten::add.Tensor":
        return
    others = [a for a in user.args[:2] if a is not e.last]
    peeled: list[fx.Node] = []
    other = others[0] if others and isinstance(others[0], fx.Node) else None
    if other is None or shape_of(other) != shape_of(e.last) or dtype_of(other) != torch.float32:
        e.declined = f"{user.name} is no sum of two pictures of one size"
    elif argument(user, "alpha", 1) != 1:
        e.declined = f"{user.name} scales an operand"
    else:
        factor, source = _peel(ctx, other, peeled)
        if isinstance(waiting := ctx.env.get(source), Expr) and rows.sums_of(waiting):
            e.declined = f"{user.name} goes into the row program of {source.name}"
        elif not _bring(ctx, source, e.last):
            e.declined = f"{user.name} waits for {source.name}, which is computed later"
        else:
            e.residual, e.factor, e.last = source, factor, user
            e.taken += [*peeled, user]


def _peel(ctx: Lowering, node: fx.Node, peeled: list[fx.Node]) -> tuple[float, fx.Node]:
    """(factor, source) of a residual: the number it is multiplied by, and what is repeated along its channels.

    Both are left where another operator reads the product or the repetition. `peeled` gets what went away.
    """
    factor = 1.0

    def free(n: fx.Node, name: str) -> bool:
        ours = n.op == "call_function" and n not in ctx.env and n not in ctx.done and len(n.users) == 1
        return ours and op_name(n.target) == name

    if free(node, "aten::mul.Tensor"):
        a, b = node.args
        number = b if isinstance(b, (int, float)) else ctx.constant(b)
        one = isinstance(number, (int, float)) or (number is not None and number.numel() == 1)
        if one and isinstance(a, fx.Node) and dtype_of(a) == torch.float32 and shape_of(a) == shape_of(node):
            peeled.append(node)
            node, factor = a, float(torch.tensor(float(number), dtype=torch.float32))
    if free(node, "aten::cat"):
        parts = list(node.args[0])
        if len(set(parts)) == 1 and argument(node, "dim", 0) == 1:
            peeled.append(node)
            node = parts[0]
    return factor, node


def _bring(ctx: Lowering, node: fx.Node, after: fx.Node) -> bool:
    """Compute a residual now, if it only waits for a few operators that stand behind the convolution."""
    waiting: set[fx.Node] = set()
    todo = [node]
    while todo:
        n = todo.pop()
        if n in ctx.env or n.op != "call_function" or n in waiting:
            continue
        if n is after or n in ctx.done or op_name(n.target) not in BROUGHT or len(waiting) == MOST_BROUGHT:
            return False
        waiting.add(n)
        todo += n.all_input_nodes
    here = ctx.node
    for n in ctx.program.calls if waiting else ():
        if n in waiting and n not in ctx.done:  # the rule of one before may have taken it along
            ctx.lower(n)
            ctx.done.add(n)
    if node in waiting:
        ctx.dense(node)  # now, so that the call goes by its name
    ctx.node = here
    return True


def _take_activation(ctx: Lowering, e: Epilogue) -> None:
    user = _only_user(e.last)
    if user is None or user.args[0] is not e.last:
        return
    channels = shape_of(e.last)[1]
    match op_name(user.target):
        case "aten::relu":
            e.act = "VQC_BACT_RELU"
        case "aten::leaky_relu":
            e.act, e.slope = "VQC_BACT_PRELU", torch.full((channels,), float(argument(user, "negative_slope")))
        case "aten::prelu" | "aten::_prelu_kernel":
            slope = ctx.constant(user.args[1])
            if slope is None or slope.numel() not in (1, channels):
                e.declined = f"the slope of {user.name} is not one constant, or one for each channel"
                return
            e.act, e.slope = "VQC_BACT_PRELU", slope.reshape(-1).expand(channels).contiguous()
        case _:
            return
    e.last = user
    e.taken.append(user)


def _take_sign(ctx: Lowering, e: Epilogue) -> None:
    for user in e.last.users:
        if user.op == "call_function" and op_name(user.target) == "vqc::binarize":
            if ctx.constant(user.args[1]) is None:
                e.declined = f"the threshold of {user.name} is computed at run time"
                continue
            e.sign = user
            e.taken.append(user)
            return


def epilogue(ctx: Lowering, node: fx.Node) -> Epilogue:
    """What the kernel of a binary convolution takes along, and why it stopped."""
    e = Epilogue(node)
    _take_residual(ctx, e)
    _take_activation(ctx, e)
    _take_sign(ctx, e)
    return e


# ---- convolutions --------------------------------------------------------------------------------------------------


def binary_weight(program: Program, node: fx.Node) -> str | None:
    weight = program.constant(argument(node, "weight"))
    if weight is None:
        return "its weight is computed at run time; the kernel packs it when it compiles"
    if not bool((weight.abs() == 1).all()):
        return "its weight holds something else than +1 and -1"
    if weight[0].numel() > SUM_LIMIT:
        return f"its sums have {weight[0].numel()} terms, the C kernel takes {SUM_LIMIT}"
    if weight.shape[3] > KERNEL_LIMIT:
        return f"its kernel has {weight.shape[3]} columns, the C kernel takes {KERNEL_LIMIT}"
    return None


def _for_arm(target: str) -> bool:
    machine = platform.machine() if target == "native" else target_called(target).triple
    return machine.startswith(("aarch64", "arm64"))


def sizes(ctx: Lowering, node: fx.Node, weight: Tensor, kernel: str) -> tuple[dict[str, Any], list[Value], int]:
    """The fields of vqc_bconv_params, the values every kernel begins with (x, w, base, classes), and scratch bytes."""
    geo = BinaryGeometry.of(node, weight)
    base, classes, row_classes, column_classes = base_sums(geo, weight)
    height = ctx.rows(geo, node.name)
    pairs = {"k": geo.kernel, "s": geo.stride, "p": geo.padding, "d": geo.dilation}
    fields = {
        "n": geo.x[0], "c": geo.x[1], "h": geo.x[2], "w": geo.x[3], "o": geo.out[1], "oh": geo.out[2],
        "ow": geo.out[3], **{k + a: v[i] for k, v in pairs.items() for i, a in enumerate("hw")},
        "row_classes": row_classes, "column_classes": column_classes, "rows": height,
        "residuals": geo.out[1], "residual_scale": 1.0,
    }  # fmt: skip
    values = [ctx.packed(argument(node, "x"), BITS), ctx.weight(pack_weight(weight), "weight"),
              ctx.weight(base, "base"), ctx.weight(classes, "classes")]  # fmt: skip
    arm = geo.arm_scratch(row_classes * column_classes) if _for_arm(ctx.target) else 0
    packed = geo.packed_scratch if kernel.startswith("vqc_masked") else 0
    return fields, values, align(geo.scratch(height) + arm + packed)


def call(ctx: Lowering, node: fx.Node, kernel: str, fields: dict[str, Any], extra: Sequence[Value | None],
          out: Sequence[Value | None]) -> Call:  # fmt: skip
    weight = ctx.constant(argument(node, "weight"))
    assert weight is not None
    common, values, scratch = sizes(ctx, node, weight, kernel)
    call = ctx.call(kernel, "bconv", Struct("vqc_bconv_params", common | fields), *values, *extra)
    written: list[Arg] = [None if v is None else Ref(v.buffer, v.start, writes=True) for v in out]
    call.args = (*call.args, *written, Scratch(scratch))
    return call


@lowering("vqc::bconv2d", check=all_of(binary_weight, constant_arguments("scale", "bias")))
def lower_bconv(ctx: Lowering, node: fx.Node) -> None:
    e = epilogue(ctx, node)
    scale, bias = ctx.constant(argument(node, "scale")), ctx.constant(argument(node, "bias"))
    tau = ctx.constant(e.sign.args[1]) if e.sign is not None else None
    assert scale is not None
    residual = ctx.dense(e.residual) if e.residual is not None else None
    floats = [scale, bias, residual, e.slope, tau]
    extra = [ctx.weight(t) if isinstance(t, Tensor) else t for t in floats]
    keep = e.sign is None or len(e.last.users) > 1
    y = ctx.result(e.last) if keep else None
    bits = ctx.result(e.sign, BITS) if e.sign is not None else None
    fields: dict[str, Any] = {"act": e.act, "taus": 0 if tau is None else tau.numel(), "residual_scale": e.factor}
    if residual is not None:
        fields["residuals"] = residual.shape[1]
    made = call(ctx, node, "vqc_bconv2d", fields, extra, [y, bits])
    if residual is not None and y is not None and residual.is_whole and residual.shape == y.shape:
        made.inplace = (y.buffer, (residual.buffer,))
    for taken in e.taken:
        ctx.done.add(taken)
        ctx.kernels[taken.name] = f"in vqc_bconv2d of {node.name}"
    if e.declined:
        ctx.kernels[node.name] = f"vqc_bconv2d, not further: {e.declined}"


@lowering("vqc::bconv2d_threshold", check=all_of(binary_weight, constant_arguments("threshold", "flip")))
def lower_bconv_threshold(ctx: Lowering, node: fx.Node) -> None:
    threshold, flip = ctx.constant(argument(node, "threshold")), ctx.constant(argument(node, "flip"))
    assert threshold is not None and flip is not None
    extra = [ctx.weight(threshold, "threshold"), ctx.weight(flip.to(torch.uint8), "flip")]
    call(ctx, node, "vqc_bconv2d_threshold", {}, extra, [ctx.result(node, BITS)])

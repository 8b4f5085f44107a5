"""Integer convolutions in the layout c4, and the row programs that follow their sums or fill such tensors.

A convolution is not computed where it stands: its sums become a leaf of a pointwise expression (`Expr` "sums"), and the
call is made when that expression is: everything pointwise between this convolution and the next one runs on sums that
are still in the first cache. A result with several readers is stored once, and the readers that only quantize it become
further outputs of the same call (`followers`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c import rows
from vqc.backends.c.expr import Expr
from vqc.backends.c.ir import Scratch, Struct, Value, align, dense_strides, numel
from vqc.backends.c.layouts import Convert, Layout, register_layout
from vqc.backends.c.lower import Lowering
from vqc.backends.c.packing import (
    C4Geometry,
    fits_4_bits,
    pack_4_bits,
    pack_c4,
    pack_depthwise_c4,
    pack_transposed_c4,
)
from vqc.backends.c.registry import op_name, rule_for
from vqc.backends.c.rows import sums_of
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

TRANSPOSED = ("vqc::qconv_transpose2d", "vqc::qconv_transpose2d_requantize")
CONVOLUTIONS = ("vqc::qconv2d", "vqc::qconv2d_requantize", *TRANSPOSED)
MOST_STRIDE = 8  # of a transposed convolution
PLAIN_ELEMENTS, PLAIN_POSITIONS = 4096, 64  # of a float result that has a row program of its own
MOST_FOLLOWED = 3  # readers of one result that are computed with it


def _size(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> int:
    n, c = shape[:2]
    return 4 * n * -(-c // 4) * numel(shape[2:])


def _convert(kernel: str) -> Convert:
    def convert(ctx: Lowering, source: Value, target: Value) -> None:
        n, c = source.shape[:2]
        params = Struct("vqc_c4_params", {"n": n, "c": c, "positions": numel(source.shape[2:])})
        ctx.call(kernel, "c4", params, source, out=[target])

    return convert


register_layout(Layout("c4", _size, _convert("vqc_pack_c4"), _convert("vqc_unpack_c4")))


@dataclass(frozen=True, eq=False)
class Sums:
    """A convolution whose sums are still to be computed."""

    node: fx.Node
    geometry: C4Geometry
    x: Value
    weight: torch.Tensor
    zero: torch.Tensor


def takes_c4(program: Program, node: fx.Node) -> bool:
    """Whether a node is a convolution that reads its input in the layout c4."""
    if node.op != "call_function" or op_name(node.target) not in CONVOLUTIONS:
        return False
    weight = program.constant(argument(node, "weight"))
    zero = program.constant(argument(node, "x_zero"))
    if weight is None or weight.dtype != torch.int8 or dtype_of(node.args[0]) != torch.uint8 or zero is None:
        return False
    if int(zero.min()) < 0 or int(zero.max()) > 255:  # what lies outside the picture is a byte like the others
        return False
    groups, c, o = int(argument(node, "groups", 1)), shape_of(node.args[0])[1], shape_of(node)[1]
    if op_name(node.target) in TRANSPOSED:
        stride = argument(node, "stride")
        if max(stride if isinstance(stride, (list, tuple)) else [stride]) > MOST_STRIDE:
            return False
    elif groups == c == o:
        return True
    return groups == 1 or (c // groups % 4 == 0 and o // groups % 4 == 0)


def wants_c4(program: Program, node: fx.Node) -> bool:
    """Whether a u8 picture is read by a convolution in the layout c4."""
    shape = shape_of(node)
    return dtype_of(node) == torch.uint8 and len(shape) == 4 and any(takes_c4(program, u) for u in node.users)


def sums(ctx: Lowering, node: fx.Node) -> Expr:
    """The convolution's sums, scaled, and with its bias: (float)acc * scale + bias."""
    weight, scale = ctx.constant(argument(node, "weight")), ctx.constant(argument(node, "scale"))
    zero, bias = ctx.constant(argument(node, "x_zero")), ctx.constant(argument(node, "bias"))
    assert weight is not None and scale is not None and zero is not None
    geometry = C4Geometry.of(node, weight, transposed=op_name(node.target) in TRANSPOSED)
    leaf = Expr("sums", source=Sums(node, geometry, ctx.packed(node.args[0], "c4"), weight, zero))
    e = ex.apply("mul", leaf, per_channel(ctx, scale))
    return e if bias is None else ex.apply("add", e, per_channel(ctx, bias))


def per_channel(ctx: Lowering, tensor: torch.Tensor) -> Expr:
    """A constant of one number, or of one for every channel of [N,C,H,W]."""
    if tensor.numel() == 1:
        return ex.const(float(tensor.item()))
    return ex.load(ctx.weight(tensor.to(torch.float32).reshape(-1, 1, 1), "per_channel"))


def unmasked(e: Expr) -> bool:
    """Whether the sums of an expression are those of a convolution of this page."""
    return all(isinstance(x.source, Sums) for x in sums_of(e))


def why_not_fused(e: Expr, node: fx.Node) -> str | None:
    """None if a node's expression can follow the sums it has, else the reason it cannot."""
    found = sums_of(e)
    if len(found) > 1:
        return "it reads two convolutions, and one call computes one"
    if not isinstance(found[0].source, Sums) and dtype_of(node) != torch.float32:
        return "the masked kernel stores float32"
    return rows.why_not(e, shape_of(node))


def by_rows(ctx: Lowering, e: Expr, node: fx.Node) -> bool:
    """Whether a row program computes an expression: it has sums, or its result is wanted in the layout c4."""
    return bool(sums_of(e)) or (wants_c4(ctx.program, node) and rows.why_not(e, shape_of(node)) is None)


def emit_plain(ctx: Lowering, e: Expr, node: fx.Node) -> Value | None:
    """The call of a generated row program for a large dense float result; None where the interpreter is as good."""
    shape = shape_of(node)
    if dtype_of(node) != torch.float32 or e.integer or numel(shape) < PLAIN_ELEMENTS:
        return None
    flat = rows.flattened(e, shape)
    view = (1, 1, numel(shape)) if flat is not None else shape
    e = e if flat is None else flat
    if len(view) < 3 or numel(view[2:]) < PLAIN_POSITIONS or rows.why_not(e, view) is not None:
        return None
    out = ctx.new(shape, torch.float32, node.name)
    code = rows.write([(e, replace(out, shape=view, strides=dense_strides(view)))], lead=0)
    params = Struct("vqc_rows_c4_params", {
        "n": view[0], "c": view[1], "positions": numel(view[2:]),
        "rest": rows.rows_struct(ctx, code, [replace(out, shape=view, strides=dense_strides(view))]),
    })  # fmt: skip
    values = [o.value for o in code.operands]
    shared = rows.may_share(replace(out, shape=view), code)
    call = ctx.call("vqc_rows_c4", "c4", params, tuple(values) or None, comment=f"{node.name}: {code.count} operations",
                    inplace=(out.buffer, shared) if shared else None)  # fmt: skip
    call.args = (*call.args, rows.refs([out], writes=True))
    return out


def emit(ctx: Lowering, e: Expr, node: fx.Node) -> Value:
    """The call that computes a pointwise expression, with the convolution whose sums it has; gives the node's value."""
    found = sums_of(e)
    if found and not isinstance(found[0].source, Sums):
        return found[0].source.emit(ctx, e, node)
    results: list[tuple[fx.Node, Expr]] = [(node, e), *followers(ctx, node, e)]
    outputs = []
    for n, _ in results:
        outputs.append(ctx.new(shape_of(n), dtype_of(n), n.name, "c4" if wants_c4(ctx.program, n) else None))
        ctx.bind(n, outputs[-1])
    code = rows.write([(x, v) for (_, x), v in zip(results, outputs, strict=True)], lead=len(found))
    rest = rows.rows_struct(ctx, code, outputs)
    values = [o.value for o in code.operands]
    names = [n.name for n, _ in results]
    if found:
        _convolution(ctx, found[0].source, rest, values, outputs, names)
    else:
        batch, channels = shape_of(node)[:2]
        params = Struct("vqc_rows_c4_params", {"n": batch, "c": channels, "positions": numel(shape_of(node)[2:]),
                                               "rest": rest})  # fmt: skip
        text = f"{', '.join(names)}: {code.count} operations"
        call = ctx.call("vqc_rows_c4", "c4", params, tuple(values) or None, comment=text)
        call.args = (*call.args, rows.refs(outputs, writes=True))
    for name in names[1:]:
        ctx.kernels[name] = f"with {node.name}"
    return outputs[0]


KERNELS = {
    (False, False): ("vqc_qconv_c4", pack_c4),
    (True, False): ("vqc_qconv_dw_c4", pack_depthwise_c4),
    (False, True): ("vqc_qconv_transpose_c4", pack_transposed_c4),
}


def _convolution(ctx: Lowering, s: Sums, rest: Struct, values: list[Value], outputs: list[Value], names: list[str]
                 ) -> None:  # fmt: skip
    geo = s.geometry
    height = ctx.rows(geo, s.node.name)
    kernel, pack = KERNELS[(geo.depthwise, geo.transposed)]
    packed, offset, zero = pack(s.weight, s.zero, geo)
    bits = 4 if not geo.depthwise and fits_4_bits(s.weight) else 8
    if bits == 4:
        packed = pack_4_bits(packed)
    params = Struct("vqc_qconv_c4_params", geo.fields(height) | {"bits": bits, "rest": rest})
    after = [n for n in names if n != s.node.name]
    text = f"{s.node.name}{' with ' + ', '.join(after) if after else ''}: [{','.join(map(str, geo.out_shape))}]"
    call = ctx.call(kernel, "qconv_c4", params, s.x, ctx.weight(packed, str(argument(s.node, "weight"))),
                    ctx.weight(offset, "offset"), ctx.weight(zero, "x_zero"), tuple(values) or None,
                    comment=text)  # fmt: skip
    call.args = (*call.args, rows.refs(outputs, writes=True), Scratch(align(geo.scratch(height))))
    call.node = s.node.name
    ctx.kernels[s.node.name] = kernel
    for n in after:
        ctx.kernels[n] = f"in {s.node.name}"


def followers(ctx: Lowering, node: fx.Node, e: Expr) -> list[tuple[fx.Node, Expr]]:
    """Readers of a result that only quantize it for a convolution: they are made with it, from the same registers."""
    found: list[tuple[fx.Node, Expr]] = []
    if dtype_of(node) != torch.float32:
        return found
    for user in node.users:
        if len(found) < MOST_FOLLOWED and user not in ctx.done:
            chain, last = _follow(ctx, node, e, user)
            if last is not None and rows.few_operands([e, *(x for _, x in found), last]):
                found.append((chain[-1], last))
                ctx.done.update(chain)
                for n in chain[:-1]:
                    ctx.kernels[n.name] = f"with {node.name}"
    return found


def _follow(ctx: Lowering, node: fx.Node, e: Expr, user: fx.Node) -> tuple[list[fx.Node], Expr | None]:
    """The chain of single readers from `user` to a tensor in c4, and its expression; None where there is none."""
    from vqc.backends.c.lowering.pointwise import POINTWISE, integer_call

    chain: list[fx.Node] = []
    held = ctx.env.get(node)
    last = node
    inner: Expr | None = e
    for _ in range(3):
        others = [a for a in user.all_input_nodes if a is not last and ctx.constant(a) is None]
        if user.op != "call_function" or op_name(user.target) not in POINTWISE or others or user in ctx.done:
            break
        if shape_of(user) != shape_of(node) or integer_call(user):
            break
        ctx.env[last] = inner
        ctx.following = user
        rule = rule_for(user.target, ctx.target)
        assert rule is not None
        rule.lower(ctx, user)
        ctx.following, inner = None, ctx.followed
        chain.append(user)
        last = user
        if wants_c4(ctx.program, user):
            break
        if len(user.users) != 1:
            break
        user = next(iter(user.users))
    for n in chain:
        ctx.env.pop(n, None)
    if held is not None:
        ctx.env[node] = held
    else:
        ctx.env.pop(node, None)
    if not chain or not wants_c4(ctx.program, chain[-1]) or inner is None:
        return [], None
    return (chain, inner) if rows.why_not(inner, shape_of(node)) is None else ([], None)

"""Signs: float pictures become bits; of a concatenation, or a resize in one, nothing but its signs is stored.

`cat` along channels whose only readers are signs is not made: it becomes a leaf, as one that leads to the layout c4
does (parts_c4.py), and so does a bilinear resize that only such a `cat` reads. Where that resizes a `cat`, each of its
parts is resized. Signs of one picture at two thresholds are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.expr import Expr
from vqc.backends.c.ir import Array, Ref, Scratch, Struct, Value, align
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering import parts_c4
from vqc.backends.c.lowering.binary import BITS, bits_params
from vqc.backends.c.registry import lowering, op_name
from vqc.program import dtype_of, shape_of

BAND_BYTES = 16 << 10  # of words a task has in the cache
APART, GROUP = 80, 4  # SIGNS_APART, SIGNS_GROUP
RESIZES = ("aten::upsample_bilinear2d", "vqc::resize_bilinear")


def _is_sign(ctx: Lowering, node: fx.Node) -> bool:
    """Whether a node is a sign at a constant threshold."""
    is_call = node.op == "call_function" and op_name(node.target) == "vqc::binarize"
    return is_call and ctx.constant(node.args[1]) is not None


def only_signs(ctx: Lowering, node: fx.Node) -> bool:
    """Whether a node puts float pictures together whose signs alone are read."""
    if node.op != "call_function" or not parts_c4.is_cat(node) or dtype_of(node) != torch.float32:
        return False
    return bool(node.users) and all(_is_sign(ctx, u) for u in node.users)


def lazy_cat(ctx: Lowering, node: fx.Node) -> bool:
    """Bind a concatenation as a leaf if only its signs are read, or those of its resize; whether it was done."""
    if not only_signs(ctx, node) and not _only_resized(ctx, node):
        return False
    parts: list[tuple[Expr, int]] = []
    for t in node.args[0]:
        assert isinstance(t, fx.Node)
        found = ctx.env.get(t)
        if isinstance(found, Expr) and found.op == "cat" and found.source.node is t and only_signs(ctx, node):
            parts += found.source.parts
            continue
        resized = isinstance(found, Expr) and found.op == "resized" and only_signs(ctx, node)
        parts.append((found if resized else ex.load(ctx.value(t)), shape_of(t)[1]))
    ctx.bind(node, Expr("cat", source=parts_c4.Cat(node, tuple(parts))))
    ctx.kernels[node.name] = "in its signs"
    return True


def _in_signs(ctx: Lowering, node: fx.Node) -> bool:
    """Whether a resize's only reader is such a concatenation, in one place."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) > 1 or not only_signs(ctx, user):
        return False
    tensors: Any = user.args[0]
    return bool(tensors.count(node) == 1)


def _only_resized(ctx: Lowering, node: fx.Node) -> bool:
    """Whether a concatenation of float pictures is read by such a resize alone."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) > 1 or not parts_c4.is_cat(node) or dtype_of(node) != torch.float32:
        return False
    resize = user.op == "call_function" and op_name(user.target) in RESIZES and user.args[0] is node
    return resize and _in_signs(ctx, user)


def lazy_resize(ctx: Lowering, node: fx.Node, align_corners: bool, scales: Sequence[float | None]) -> bool:
    """Bind a bilinear resize as a leaf if only such a concatenation reads it; whether it was done."""
    if not _in_signs(ctx, node):
        return False
    source = ctx.env.get(node.args[0])
    joined = isinstance(source, Expr) and source.op == "cat"
    before = shape_of(node.args[0])
    tables, twice = parts_c4.bilinear_tables(ctx, before, shape_of(node), align_corners, scales)
    if joined:
        made = [
            (Expr("resized", source=parts_c4.Resized(node, _planes(ctx, e.value), tables, twice)), channels)
            for e, channels in source.source.parts
        ]
        ctx.bind(node, Expr("cat", source=parts_c4.Cat(node, tuple(made))))
    else:
        ctx.bind(node, Expr("resized", source=parts_c4.Resized(node, ctx.dense(node.args[0]), tables, twice)))
    ctx.kernels[node.name] = "in its signs"
    return True


@lowering("vqc::binarize", check=lambda program, node: None)
def lower_binarize(ctx: Lowering, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    waiting = [u for u in source.users if _is_sign(ctx, u) and u is not node and u not in ctx.env]
    found = ctx.env.get(source)
    parts = found.source.parts if isinstance(found, Expr) and found.op == "cat" else None
    if len(shape_of(source)) == 4 and _is_sign(ctx, node) and (parts is not None or waiting):
        if parts is None:
            parts = ((ex.load(ctx.value(source)), shape_of(source)[1]),)
        _signs(ctx, [node, *waiting[:1]], parts)
        return
    x, tau = ctx.dense(source), ctx.dense(node.args[1])
    ctx.call("vqc_binarize", "bconv", bits_params(x.shape, tau.count), x, tau, out=[ctx.result(node, BITS)])


def _signs(ctx: Lowering, nodes: Sequence[fx.Node], parts: Sequence[tuple[Expr, int]]) -> None:
    """One call for the signs of parts at one threshold or two."""
    n, c, h, w = shape_of(nodes[0])
    structs: list[Struct] = []
    operands: list[Value] = []
    first = 0
    for part, channels in parts:
        fields: dict[str, Any] = {"first": first, "channels": channels, "in": len(operands)}
        if part.op == "resized":
            x, tables = part.source.x, part.source.tables
            fields |= {"resized": 1, "twice": int(part.source.twice)}
        else:
            assert part.value is not None
            x, tables = _planes(ctx, part.value), ()
            fields |= {"resized": 0, "twice": 0}
        structs.append(
            Struct("vqc_sign_part", fields | {"h": x.shape[2], "w": x.shape[3], "batch": x.strides[0] if n > 1 else 0})
        )
        operands += [x, *tables]
        first += channels
    taus = [ctx.dense(node.args[1]) for node in nodes]
    rows = max(1, min(h, BAND_BYTES // (4 * len(nodes) * max(w, 1))))
    params = Struct("vqc_signs_params", {
        "n": n, "c": c, "h": h, "w": w, "rows": rows, "taus": taus[0].count, "taus2": taus[-1].count,
        "parts": Array("vqc_sign_part", tuple(structs)),
    })  # fmt: skip
    results = [ctx.result(node, BITS) for node in nodes]
    second = taus[1] if len(nodes) > 1 else None
    made = ctx.call("vqc_signs", "signs", params, tuple(operands), taus[0], second,
                    comment=f"{', '.join(node.name for node in nodes)}: of {len(parts)} parts")  # fmt: skip
    written = [Ref(v.buffer, v.start, writes=True) for v in results]
    room = align(4 * (w + APART) * 2 * GROUP + 4 * (w * rows + APART) * len(nodes))
    made.args = (*made.args, written[0], written[1] if len(nodes) > 1 else None, Scratch(room))
    for node in nodes[1:]:
        ctx.done.add(node)
        ctx.kernels[node.name] = f"in vqc_signs of {nodes[0].name}"


def _planes(ctx: Lowering, v: Value) -> Value:
    """A tensor [N,C,H,W] whose images are dense; images may be apart."""
    _, c, h, w = v.shape
    inner = Value(v.buffer, v.dtype, (1, c, h, w), (c * h * w, *v.strides[1:]), v.offset, v.layout)
    return v if v.layout is None and inner.is_dense else ctx.dense(v)

"""Matrix products: linear layers, matmul, bmm, and attention as products around a softmax."""

from __future__ import annotations

import math

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.ir import Struct, Value, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.conv import constant_arguments
from vqc.backends.c.lowering.reduce import softmax
from vqc.backends.c.registry import FLOATS, all_of, lowering
from vqc.ops.exact import argument
from vqc.program import Program, shape_of


def _product(ctx: Lowering, a: Value, b: Value, bias: Value | None, out: Value, batch: int, steps: tuple[int, int]
             ) -> None:  # fmt: skip
    m, k, n = numel(a.shape) // (batch if steps[0] else 1) // a.shape[-1], a.shape[-1], b.shape[-1]
    params = Struct(
        "vqc_matmul_params", {"batch": batch, "m": m, "k": k, "n": n, "a_step": steps[0], "b_step": steps[1]}
    )
    ctx.call("vqc_matmul_f32", "matmul", params, a, b, bias, out=[out])


@lowering("aten::linear", check=all_of(FLOATS, constant_arguments("weight", "bias")))
def lower_linear(ctx: Lowering, node: fx.Node) -> None:
    weight, bias = ctx.constant(node.args[1]), ctx.constant(argument(node, "bias"))
    assert weight is not None
    w = ctx.weight(weight.t().contiguous(), str(node.args[1]))
    b = ctx.weight(bias, "bias") if bias is not None else None
    _product(ctx, ctx.dense(node.args[0]), w, b, ctx.result(node), 1, (0, 0))


def _batches(program: Program, node: fx.Node) -> str | None:
    a, b = (shape_of(n) for n in node.args[:2])
    if len(a) < 2 or len(b) < 2:
        return f"one operand is a vector ({list(a)} times {list(b)})"
    if numel(b[:-2]) != 1 and tuple(a[:-2]) != tuple(b[:-2]):
        return f"its batches {list(a[:-2])} and {list(b[:-2])} broadcast"
    return None


@lowering("aten::matmul", "aten::bmm", "aten::mm", check=all_of(FLOATS, _batches))
def lower_matmul(ctx: Lowering, node: fx.Node) -> None:
    a, b = ctx.dense(node.args[0]), ctx.dense(node.args[1])
    if numel(b.shape[:-2]) == 1:  # one matrix for all: the batches of `a` are only more rows
        _product(ctx, a, b, None, ctx.result(node), 1, (0, 0))
    else:
        steps = (numel(a.shape[-2:]), numel(b.shape[-2:]))
        _product(ctx, a, b, None, ctx.result(node), numel(b.shape[:-2]), steps)


def _plain_attention(program: Program, node: fx.Node) -> str | None:
    q, k, v = (shape_of(n) for n in node.args[:3])
    if argument(node, "is_causal") or argument(node, "enable_gqa") or float(argument(node, "dropout_p") or 0) != 0:
        return "it is causal, grouped or drops values"
    if q[:-2] != k[:-2] or q[:-2] != v[:-2]:
        return "its batches broadcast"
    mask = argument(node, "attn_mask")
    if isinstance(mask, fx.Node) and mask.meta["val"].dtype != torch.float32:
        return "its mask is not float32"
    return None


@lowering("aten::scaled_dot_product_attention", check=all_of(FLOATS, _plain_attention))
def lower_attention(ctx: Lowering, node: fx.Node) -> None:
    """softmax(q k^T * scale + mask) v."""
    q, v = ctx.dense(node.args[0]), ctx.dense(node.args[2])
    keys = ctx.value(node.args[1])
    swapped = (*range(len(keys.shape) - 2), len(keys.shape) - 1, len(keys.shape) - 2)
    kt = ctx.dense(Value(keys.buffer, keys.dtype, tuple(keys.shape[i] for i in swapped),
                         tuple(keys.strides[i] for i in swapped), keys.offset))  # fmt: skip
    batch, steps = numel(q.shape[:-2]), lambda a, b: (numel(a.shape[-2:]), numel(b.shape[-2:]))
    scores = ctx.new((*q.shape[:-1], kt.shape[-1]), q.dtype)
    _product(ctx, q, kt, None, scores, batch, steps(q, kt))
    scale = argument(node, "scale")
    scaled = ex.apply("mul", ex.load(scores), ex.const(1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)))
    mask = argument(node, "attn_mask")
    if mask is not None:
        scaled = ex.apply("add", scaled, ex.load(ctx.value(mask)))
    weights = ctx.new(scores.shape, scores.dtype)
    softmax(ctx, ctx.compute(scaled, like=ctx.new(scores.shape, scores.dtype)), -1, weights)
    _product(ctx, weights, v, None, ctx.result(node), batch, steps(weights, v))

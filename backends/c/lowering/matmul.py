"""Matrix products: linear layers, matmul, bmm, and attention as products around a softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.ir import Struct, Value, align, dense_strides, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.reduce import softmax
from vqc.backends.c.registry import FLOATS, all_of, lowering
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

PANEL = 48  # VQC_MM_PANEL
DEPTH = 1024  # MM_DEPTH
ROWS = 8  # the highest register tile


def pack_panels(b: torch.Tensor) -> torch.Tensor:
    """b [K, N] as [panel][K][width], flat: 48 columns a panel, the last one 16, 32 or 48, zeros after column N."""
    parts = []
    for start in range(0, b.shape[1], PANEL):
        part = b[:, start : start + PANEL]
        missing = -part.shape[1] % 16
        parts.append(torch.cat((part, part.new_zeros(b.shape[0], missing)), 1).reshape(-1))
    return torch.cat(parts)


def _restrided(v: Value, shape: Sequence[int], strides: Sequence[int]) -> Value:
    return Value(v.buffer, v.dtype, tuple(shape), tuple(strides), v.offset)


def transposed(v: Value) -> Value:
    """The last two axes swapped."""
    return _restrided(v, (*v.shape[:-2], v.shape[-1], v.shape[-2]), (*v.strides[:-2], v.strides[-1], v.strides[-2]))


def product(ctx: Lowering, a: Value, b: Value | torch.Tensor, bias: Value | None, out: Value) -> None:
    """out [..., M, N] = a [..., M, K] b [..., K, N] (+ bias [N]); batches broadcast, a and b may have any strides.

    A tensor for b is a constant matrix [K, N]: it goes into the weights in panels. The rows of out may be parts of
    longer ones.
    """
    constant = isinstance(b, torch.Tensor)
    batch, (m, n), k = out.shape[:-2], out.shape[-2:], a.shape[-1]
    b_steps: Sequence[int] = (0,) * len(batch)
    b_strides = (0, 0)
    if isinstance(b, Value):
        b_steps = ex.broadcast_strides(_restrided(b, b.shape[:-2], b.strides[:-2]), batch)
        b_strides = (b.strides[-2], b.strides[-1])
    a_steps = ex.broadcast_strides(_restrided(a, a.shape[:-2], a.strides[:-2]), batch)
    shape, (a_all, b_all) = ex.collapse([*batch, m], [*a_steps, a.strides[-2]], [*b_steps, 0])
    if b_all[-1] == 0:  # the rows, and all batches that go on with them
        m, a_row = shape.pop(), a_all.pop()
        b_all.pop()
    else:
        m, a_row = 1, 0
    a_col = a.strides[-1] if k > 1 else 1
    panels = -(-n // PANEL)
    rows = m
    if ctx.workers > 1 and (tasks := numel(shape) * panels) < 2 * ctx.workers:
        rows = max(ROWS, align(-(-m * tasks // (2 * ctx.workers)), ROWS))
    params = Struct("vqc_matmul_params", {
        "m": m, "k": k, "n": n, "rows": rows, "packed": constant, "dims": len(shape), "shape": shape, "a_step": a_all,
        "b_step": b_all, "a_row": a_row, "a_col": a_col, "b_row": b_strides[0], "b_col": b_strides[1],
        "y_row": out.strides[-2],
    })  # fmt: skip
    scratch = (0 if constant else 4 * align(PANEL * k, 16)) + (0 if a_col == 1 else 4 * ROWS * DEPTH)
    right = ctx.weight(pack_panels(b), "matrix") if isinstance(b, torch.Tensor) else b
    ctx.call("vqc_matmul_f32", "matmul", params, a, right, bias, out=[out], scratch=max(scratch, 64))


def _axes(program: Program, node: fx.Node) -> str | None:
    rank = max(len(shape_of(n)) for n in (node, *node.all_input_nodes))
    return None if rank <= ex.MAX_DIMS else f"it has {rank} axes, the kernel takes {ex.MAX_DIMS}"


@lowering("aten::linear", check=all_of(FLOATS, _axes))
def lower_linear(ctx: Lowering, node: fx.Node) -> None:
    x, weight, bias = ctx.value(node.args[0]), ctx.constant(node.args[1]), argument(node, "bias")
    out = ctx.result(node)
    if len(x.shape) == 1:
        x = _restrided(x, (1, *x.shape), (0, *x.strides))
    shape = (*x.shape[:-1], numel(shape_of(node.args[1])[:-1]))
    right: Value | torch.Tensor
    if weight is not None:
        right = weight.reshape(-1, weight.shape[-1]).t()
    else:
        w = ctx.value(node.args[1])
        right = transposed(w if len(w.shape) == 2 else _restrided(w, (1, *w.shape), (0, *w.strides)))
    product(ctx, x, right, None if bias is None else ctx.dense(bias), _restrided(out, shape, dense_strides(shape)))


@lowering("aten::matmul", "aten::bmm", "aten::mm", "aten::mv", "aten::dot", check=all_of(FLOATS, _axes))
def lower_matmul(ctx: Lowering, node: fx.Node) -> None:
    a, b = ctx.value(node.args[0]), ctx.value(node.args[1])
    constant = ctx.constant(node.args[1])
    out = ctx.result(node)
    if len(a.shape) == 1:
        a = _restrided(a, (1, *a.shape), (0, *a.strides))
    if len(b.shape) == 1:
        b = _restrided(b, (*b.shape, 1), (*b.strides, 0))
        constant = None if constant is None else constant[:, None]
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    plain = constant is not None and numel(constant.shape[:-2]) == 1
    right = constant.reshape(constant.shape[-2:]) if plain and constant is not None else b
    product(ctx, a, right, None, _restrided(out, shape, dense_strides(shape)))


def _plain_attention(program: Program, node: fx.Node) -> str | None:
    if float(argument(node, "dropout_p") or 0) != 0:
        return "it drops values at random"
    for n in node.all_input_nodes:
        if dtype_of(n) not in (torch.float32, torch.bool):
            return f"{n.name} is {dtype_of(n)}; this kernel takes f32, and a mask of truth values"
    return None


def _grouped(v: Value, heads: int) -> Value:
    """Keys or values [..., H, S, E] for more query heads: each serves several in turn, [..., H, g, S, E]."""
    have = v.shape[-3]
    shape = (*v.shape[:-2], heads // have, *v.shape[-2:])
    return _restrided(v, shape, (*v.strides[:-2], 0, *v.strides[-2:]))


@lowering("aten::scaled_dot_product_attention", check=all_of(_plain_attention, _axes))
def lower_attention(ctx: Lowering, node: fx.Node) -> None:
    """softmax(q k^T * scale + mask) v; a row in which everything is masked gives zeros."""
    q, k, v = (ctx.value(a) for a in node.args[:3])
    final = ctx.result(node)
    out: Value = final
    outer = final.shape[:-2]
    mask: Any = argument(node, "attn_mask")
    if argument(node, "enable_gqa") and k.shape[-3] != q.shape[-3]:
        heads = q.shape[-3]
        split = (*q.shape[:-3], k.shape[-3], heads // k.shape[-3])
        step = q.strides[-3]
        q = _restrided(q, (*split, *q.shape[-2:]), (*q.strides[:-3], step * split[-1], step, *q.strides[-2:]))
        k, v = _grouped(k, heads), _grouped(v, heads)
        out = _restrided(final, (*split, *final.shape[-2:]), dense_strides((*split, *final.shape[-2:])))
    scores = ctx.new((*out.shape[:-1], k.shape[-2]), q.dtype)
    product(ctx, q, transposed(k), None, scores)
    plain = (*outer, *scores.shape[-2:])  # as the mask sees them
    flat = _restrided(scores, plain, dense_strides(plain))
    scale = argument(node, "scale")
    scaled = ex.apply("mul", ex.load(flat), ex.const(1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)))
    low = ex.const(-math.inf)
    if argument(node, "is_causal"):
        ones = torch.ones(plain[-2:], dtype=torch.bool).tril()
        scaled = ex.apply("where", ex.load(ctx.weight(ones, "causal")), scaled, low)
    if mask is not None:
        m = ex.load(ctx.value(mask))
        scaled = ex.apply("where", m, scaled, low) if dtype_of(mask) == torch.bool else ex.apply("add", scaled, m)
    weights = ctx.new(scores.shape, scores.dtype)
    softmax(ctx, ctx.compute(scaled, like=ctx.new(plain, scores.dtype)), -1, weights, safe=True)
    product(ctx, weights, v, None, out)

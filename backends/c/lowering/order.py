"""Sorting and searching, and reading and writing at positions computed at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from vqc.backends.c import expr as ex
from vqc.backends.c.expand import Expander, expansion
from vqc.backends.c.ir import Struct, Value, dense_strides, numel
from vqc.backends.c.lower import Lowering
from vqc.backends.c.lowering.reduce import INTEGERS, converted, store
from vqc.backends.c.registry import Check, all_of, anything, lowering, only, op_name
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

MAX_INDICES = 8  # VQC_INDEX_MAX


# ---- sorting -------------------------------------------------------------------------------------------------------


def _sort(ctx: Lowering, node: fx.Node, dim: int, kept: int | None, descending: bool) -> None:
    x = ctx.value(node.args[0])
    if not x.shape:
        x = Value(x.buffer, x.dtype, (1,), (1,), x.offset)
    rank = len(x.shape)
    dim %= rank
    order = (*(i for i in range(rank) if i != dim), dim)
    moved = Value(x.buffer, x.dtype, tuple(x.shape[i] for i in order), tuple(x.strides[i] for i in order), x.offset)
    kind = "f32" if x.dtype == torch.float32 else "s64"
    source = converted(ctx, moved, torch.float32 if kind == "f32" else torch.int64)
    count = x.shape[dim]
    kept = count if kept is None else kept
    params = Struct("vqc_sort_params", {"rows": source.count // count, "count": count, "kept": kept,
                                        "descending": descending})  # fmt: skip
    shape = (*source.shape[:-1], kept)
    values, indices = ctx.new(shape, source.dtype), ctx.new(shape, torch.int64)
    ctx.call(f"vqc_sort_{kind}", "order", params, source, out=[values, indices], scratch=8 * count)
    if values.dtype != x.dtype:
        narrow = ctx.new(shape, x.dtype)
        store(ctx, values, narrow)
        values = narrow
    back = [order.index(i) for i in range(rank)]

    def result(v: Value) -> Value:
        strides = dense_strides(shape)
        found = Value(v.buffer, v.dtype, tuple(shape[i] for i in back), tuple(strides[i] for i in back), v.offset)
        scalar = not shape_of(node.args[0])
        return Value(v.buffer, v.dtype, (), (), v.offset) if scalar else found

    ctx.bind(node, (result(values), result(indices)))


_SORTED: Check = only(torch.float32, *INTEGERS)


@lowering("aten::topk", check=_SORTED)
def lower_topk(ctx: Lowering, node: fx.Node) -> None:
    _sort(ctx, node, int(argument(node, "dim")), int(argument(node, "k")), bool(argument(node, "largest")))


@lowering("aten::sort", "aten::sort.stable", check=_SORTED)
def lower_sort(ctx: Lowering, node: fx.Node) -> None:
    _sort(ctx, node, int(argument(node, "dim")), None, bool(argument(node, "descending")))


@expansion("aten::argsort", "aten::argsort.stable")
def expand_argsort(e: Expander, node: fx.Node) -> fx.Node:
    return e.item(e("sort", node.args[0], e.arg("dim"), e.arg("descending")), 1)


@expansion("aten::kthvalue", "aten::median.dim")
def expand_kth(e: Expander, node: fx.Node) -> tuple[fx.Node, ...] | None:
    """The k-th smallest and where it was; of a median the lower one of the two in the middle."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    if not e.shape(x):
        return None
    dim = int(e.arg("dim")) % len(e.shape(x))
    at = int(e.arg("k")) - 1 if "kthvalue" in op_name(node.target) else (e.shape(x)[dim] - 1) // 2
    both = e("sort", x, dim, False)
    found = [e("select.int", e.item(both, i), dim, at) for i in (0, 1)]
    return tuple(e("unsqueeze", f, dim) if e.arg("keepdim") else f for f in found)


@expansion("aten::max.dim", "aten::min.dim")
def expand_extreme(e: Expander, node: fx.Node) -> tuple[fx.Node, ...]:
    """The largest or smallest value and where it is."""
    name = "max" if "max" in op_name(node.target) else "min"
    x, dim, keep = node.args[0], int(e.arg("dim")), bool(e.arg("keepdim"))
    return e("a" + name, x, [dim], keep), e("arg" + name, x, dim, keep)


@expansion("aten::aminmax")
def expand_both_extremes(e: Expander, node: fx.Node) -> tuple[fx.Node, ...]:
    dims = [] if e.arg("dim") is None else [e.arg("dim")]
    return tuple(e(name, node.args[0], dims, bool(e.arg("keepdim"))) for name in ("amin", "amax"))


def _one_row(program: Program, node: fx.Node) -> str | None:
    if argument(node, "sorter") is not None:
        return "it has a sorter"
    edges = node.args[1] if "bucketize" in op_name(node.target) else node.args[0]
    values = node.args[0] if "bucketize" in op_name(node.target) else node.args[1]
    if not isinstance(values, fx.Node):
        return "it looks for one number"
    ok = len(shape_of(edges)) == 1 or shape_of(edges)[:-1] == shape_of(values)[:-1]
    return None if ok else f"its shapes {list(shape_of(edges))} and {list(shape_of(values))} do not match"


def _float_inputs(program: Program, node: fx.Node) -> str | None:
    bad = next((n for n in node.all_input_nodes if dtype_of(n) != torch.float32), None)
    return None if bad is None else f"{bad.name} is {dtype_of(bad)}; this kernel takes float32"


@lowering("aten::bucketize.Tensor", "aten::searchsorted.Tensor", check=all_of(_float_inputs, _one_row))
def lower_search(ctx: Lowering, node: fx.Node) -> None:
    swap = "bucketize" in op_name(node.target)
    edges, x = (ctx.dense(a) for a in (node.args[1::-1] if swap else node.args[:2]))
    right = bool(argument(node, "right")) or argument(node, "side") == "right"
    shared = len(edges.shape) == 1
    rows = 1 if shared else numel(edges.shape[:-1])
    params = Struct("vqc_search_params", {"rows": rows, "sorted": edges.shape[-1], "count": x.count // rows,
                                          "right": right, "shared": shared})  # fmt: skip
    out = ctx.result(node)
    made = out if out.dtype == torch.int64 else ctx.new(out.shape, torch.int64)
    ctx.call("vqc_search_f32", "order", params, edges, x, out=[made])
    if made is not out:
        store(ctx, made, out)


# ---- index tensors -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """An index tensor: its int64 value, its strides over the points; size and stride of the axis it picks from."""

    value: Value
    walk: tuple[int, ...]
    limit: int
    jump: int


def _access(ctx: Lowering, mode: str, shape: Sequence[int], table: Value, step: Sequence[int], other: Value,
            other_step: Sequence[int], indices: Sequence[Index]) -> None:  # fmt: skip
    """Read the table into `other`, or write `other` into the table, at all points of `shape`."""
    merged, (steps, others, *walks) = ex.collapse(shape, step, other_step, *(i.walk for i in indices))
    params = Struct("vqc_index_params", {
        "mode": "VQC_INDEX_" + mode, "size": table.item, "dims": len(merged), "indices": len(indices), "shape": merged,
        "step": steps, "other": others, "limit": [i.limit for i in indices], "jump": [i.jump for i in indices],
        "walk": [s for w in walks for s in w],
    })  # fmt: skip
    positions = tuple(i.value for i in indices)
    if mode == "READ":
        ctx.call("vqc_index_read", "order", params, table, positions, out=[other])
    else:
        ctx.call("vqc_index_write", "order", params, other, positions, out=[table])


def _index(ctx: Lowering, arg: Any, shape: Sequence[int], limit: int, jump: int) -> Index:
    """An index that broadcasts to the points."""
    v = converted(ctx, ctx.value(arg), torch.int64)
    return Index(v, ex.broadcast_strides(v, shape), limit, jump)


def _plan(ctx: Lowering, table: Value, indices: Sequence[Any]) -> tuple[tuple[int, ...], list[int], list[Index]]:
    """(shape of the points, the table's steps over them, the indices) of `table[indices]`."""
    at = [i for i, a in enumerate(indices) if a is not None]
    picked = torch.broadcast_shapes(*(shape_of(indices[i]) for i in at))
    rest = [i for i in range(len(table.shape)) if i not in at]
    together = at == list(range(at[0], at[-1] + 1))
    before = [i for i in rest if i < at[0]] if together else []
    after = [i for i in rest if i not in before]
    shape = (*(table.shape[i] for i in before), *picked, *(table.shape[i] for i in after))
    step = [*(table.strides[i] for i in before), *(0 for _ in picked), *(table.strides[i] for i in after)]
    lead = len(before)
    found = []
    for i in at:
        index = _index(ctx, indices[i], picked, table.shape[i], table.strides[i])
        walk = (*(0,) * lead, *index.walk, *(0,) * len(after))
        found.append(Index(index.value, walk, index.limit, index.jump))
    return shape, step, found


def _whole_numbers(program: Program, node: fx.Node) -> str | None:
    indices = [i for i in node.args[1] if i is not None]
    for i in indices:
        if dtype_of(i) in (torch.bool, torch.uint8):
            return f"{i.name} is a mask computed at run time: how many elements it takes depends on the data"
    return None if len(indices) <= MAX_INDICES else f"it has {len(indices)} indices, the kernel takes {MAX_INDICES}"


def _few_axes(program: Program, node: fx.Node) -> str | None:
    rank = max(len(shape_of(n)) for n in (node, *node.all_input_nodes))
    return None if rank <= ex.MAX_DIMS else f"it has {rank} axes, the kernel takes {ex.MAX_DIMS}"


@lowering("aten::index.Tensor", "aten::_unsafe_index.Tensor", check=all_of(_whole_numbers, _few_axes))
def lower_index(ctx: Lowering, node: fx.Node) -> None:
    table, out = ctx.value(node.args[0]), ctx.result(node)
    shape, step, indices = _plan(ctx, table, list(node.args[1]))
    _access(ctx, "READ", shape, table, step, out, dense_strides(shape), indices)


def _base(ctx: Lowering, node: fx.Node) -> Value:
    """The node's result, holding its first argument."""
    out = ctx.result(node)
    ctx.copy(ctx.value(node.args[0]), out, only=False)
    return out


def _addable(program: Program, node: fx.Node) -> str | None:
    ok = dtype_of(node) in (torch.float32, torch.int64)
    return None if ok or not argument(node, "accumulate") else f"it adds up {dtype_of(node)}"


@lowering("aten::index_put", "aten::_unsafe_index_put", check=all_of(_whole_numbers, _few_axes, _addable))
def lower_index_put(ctx: Lowering, node: fx.Node) -> None:
    out, values = _base(ctx, node), ctx.value(node.args[2])
    shape, step, indices = _plan(ctx, out, list(node.args[1]))
    mode = "ADD" if argument(node, "accumulate") else "WRITE"
    _access(ctx, mode, shape, out, step, values, ex.broadcast_strides(values, shape), indices)


def _mask_and_number(node: fx.Node) -> bool:
    indices = [i for i in node.args[1] if i is not None]
    mask = len(indices) == 1 and node.args[1][0] is not None and dtype_of(indices[0]) == torch.bool
    return mask and not argument(node, "accumulate") and numel(shape_of(node.args[2])) == 1


@expansion("aten::index_put", when=_mask_and_number)
def expand_masked_fill(e: Expander, node: fx.Node) -> fx.Node:
    """x[mask] = number."""
    x, mask = node.args[0], node.args[1][0]
    assert isinstance(x, fx.Node)
    assert isinstance(mask, fx.Node)
    trailing = len(e.shape(x)) - len(e.shape(mask))
    wide = e("reshape", mask, [*e.shape(mask), *(1,) * trailing]) if trailing else mask
    return e("where.self", wide, e("reshape", node.args[2], []), x)


@lowering("aten::gather", check=_few_axes)
def lower_gather(ctx: Lowering, node: fx.Node) -> None:
    table, out = ctx.value(node.args[0]), ctx.result(node)
    dim = int(argument(node, "dim")) % max(len(table.shape), 1)
    step, limit, jump = _without(table, dim)
    index = _index(ctx, argument(node, "index"), out.shape, limit, jump)
    _access(ctx, "READ", out.shape, table, step, out, dense_strides(out.shape), [index])


def _without(table: Value, dim: int) -> tuple[list[int], int, int]:
    """The table's steps with 0 for an axis, and that axis' size and stride."""
    if not table.shape:
        return [], 1, 1
    step = list(table.strides)
    step[dim] = 0
    return step, table.shape[dim], table.strides[dim]


_MODES = {"add": "ADD", "multiply": "MUL", "sum": "ADD", "prod": "MUL", "amax": "MAX_OF", "amin": "MIN_OF"}


def _scatter_mode(node: fx.Node) -> str:
    name = op_name(node.target)
    if "scatter_add" in name:
        return "ADD"
    reduce = argument(node, "reduce")
    return "WRITE" if reduce is None else _MODES.get(str(reduce), "")


def _scatters(program: Program, node: fx.Node) -> str | None:
    mode = _scatter_mode(node)
    if not mode or argument(node, "include_self") is False:
        return "it takes a mean, or leaves out what was there"
    if mode != "WRITE" and dtype_of(node) not in (torch.float32, torch.int64):
        return f"it combines {dtype_of(node)}"
    return None


@lowering(
    "aten::scatter.src", "aten::scatter.value", "aten::scatter.reduce", "aten::scatter.value_reduce",
    "aten::scatter_add", "aten::scatter_reduce.two", check=all_of(_scatters, _few_axes),
)  # fmt: skip
def lower_scatter(ctx: Lowering, node: fx.Node) -> None:
    out = _base(ctx, node)
    shape = shape_of(argument(node, "index"))
    step, limit, jump = _without(out, int(argument(node, "dim")) % max(len(out.shape), 1))
    index = _index(ctx, argument(node, "index"), shape, limit, jump)
    source = argument(node, "src")
    if isinstance(source, fx.Node):
        other = ctx.value(source)
    else:
        number = torch.full((1,), argument(node, "value"), dtype=out.dtype)
        other = Value(ctx.weight(number, "value").buffer, out.dtype, shape, (0,) * len(shape))
    _access(ctx, _scatter_mode(node), shape, out, step, other, other.strides, [index])


def _along(ctx: Lowering, node: fx.Node, table: Value, mode: str, other: Value) -> None:
    """Index an axis by a list: other[..., i, ...] and table[..., index[i], ...]."""
    dim = int(argument(node, "dim")) % max(len(table.shape), 1)
    step, limit, jump = _without(table, dim)
    v = converted(ctx, ctx.value(argument(node, "index")), torch.int64)
    walk = tuple(1 if i == dim else 0 for i in range(len(other.shape)))
    _access(ctx, mode, other.shape, table, step, other, other.strides, [Index(v, walk, limit, jump)])


def select_axis(ctx: Lowering, x: Value, dim: int, at: np.ndarray, out: Value) -> None:
    """out[..., i, ...] = x[..., at[i], ...] for constant positions of an axis."""
    step, limit, jump = _without(x, dim)
    walk = tuple(1 if i == dim else 0 for i in range(len(out.shape)))
    index = Index(ctx.weight(at.astype(np.int64), "positions"), walk, limit, jump)
    _access(ctx, "READ", out.shape, x, step, out, out.strides, [index])


@lowering("aten::index_select", check=_few_axes)
def lower_index_select(ctx: Lowering, node: fx.Node) -> None:
    out = ctx.result(node)
    _along(ctx, node, ctx.value(node.args[0]), "READ", out)


@lowering("aten::index_copy", check=_few_axes)
def lower_index_copy(ctx: Lowering, node: fx.Node) -> None:
    _along(ctx, node, _base(ctx, node), "WRITE", ctx.value(argument(node, "source")))


@expansion("aten::index_fill.int_Scalar", "aten::index_fill.int_Tensor")
def expand_index_fill(e: Expander, node: fx.Node) -> fx.Node:
    x, index, value = node.args[0], e.arg("index"), e.arg("value")
    assert isinstance(x, fx.Node)
    dim = int(e.arg("dim")) % max(len(e.shape(x)), 1)
    if not isinstance(value, fx.Node):
        value = e.const(torch.tensor(value, dtype=dtype_of(x)), "value")
    return e("index_put", x, [*(None,) * dim, index], value)


@lowering("aten::index_add", check=all_of(_few_axes, only(torch.float32, torch.int64)))
def lower_index_add(ctx: Lowering, node: fx.Node) -> None:
    source, alpha = ctx.value(argument(node, "source")), argument(node, "alpha")
    if alpha != 1:
        integer = source.dtype != torch.float32
        scaled = ex.apply("mul", ex.load(source, integer), ex.const(float(alpha)), integer=integer)
        source = ctx.compute(scaled, like=ctx.new(source.shape, source.dtype))
    _along(ctx, node, _base(ctx, node), "ADD", source)


@lowering("aten::embedding", check=anything)
def lower_embedding(ctx: Lowering, node: fx.Node) -> None:
    table, out = ctx.value(node.args[0]), ctx.result(node)
    index = _index(ctx, argument(node, "indices"), out.shape[:-1], table.shape[0], table.strides[0])
    step = [*(0 for _ in out.shape[:-1]), table.strides[1]]
    _access(ctx, "READ", out.shape, table, step, out, dense_strides(out.shape),
            [Index(index.value, (*index.walk, 0), index.limit, index.jump)])  # fmt: skip


@expansion("aten::take")
def expand_take(e: Expander, node: fx.Node) -> fx.Node:
    return e("index.Tensor", e("reshape", node.args[0], [-1]), [node.args[1]])


@expansion("aten::max_unpool2d", "aten::max_unpool3d")
def expand_unpool(e: Expander, node: fx.Node) -> fx.Node:
    """Every value goes to its place in its plane, zeros everywhere else."""
    x, index = node.args[:2]
    assert isinstance(x, fx.Node)
    axes = 2 if "2d" in op_name(node.target) else 3
    lead, size = e.shape(x)[:-axes], [int(s) for s in e.arg("output_size")]
    zeros = e.const(torch.zeros(*lead, numel(size)), "zeros")
    flat = e("scatter.src", zeros, -1, e("reshape", index, [*lead, -1]), e("reshape", x, [*lead, -1]))
    return e("reshape", flat, [*lead, *size])

"""Reductions of every type, sorting, running sums, and index tensors, with drawn shapes, axes and indices."""

from __future__ import annotations

import math
import operator

import pytest
import torch
from c_helpers import Builder, Case, aten, check, compiled, single, together
from c_helpers import In as Input
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.backends.c import CBackend

TARGETS = ["native", "portable"]
DTYPES = [torch.float32, torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool]


def numbers(shape, dtype=torch.float32, distinct: bool = False) -> torch.Tensor:
    """Random numbers of any type; `distinct`: no two alike (as far as the type allows)."""
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.rand(shape) < 0.4
    if distinct:
        return torch.randperm(count).reshape(shape).to(dtype)
    values = torch.randn(shape)
    return values if dtype == torch.float32 else torch.randint(0 if dtype == torch.uint8 else -3, 4, shape).to(dtype)


def item(b: Builder, node, index: int):
    return b.call(operator.getitem, node, index)


@st.composite
def shapes(draw, most: int = 4):
    """A shape, and some of its axes."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 5, 18, 35]), min_size=1, max_size=most))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    return shape, [a - len(shape) if draw(st.booleans()) else a for a in axes]


@st.composite
def reductions(draw) -> Case:
    shape, axes = draw(shapes())
    dtype = draw(st.sampled_from(DTYPES))
    keep, turned = draw(st.booleans()), draw(st.booleans())
    x = numbers(shape, dtype)

    def build(b: Builder, x):
        if turned:
            x = b.call(aten.permute.default, x, list(range(len(shape)))[::-1])
        results = [b.call(aten.sum.dim_IntList, x, axes, keep), b.call(aten.any.dims, x, axes, keep),
                   b.call(aten.all.dims, x, axes, keep), b.call(aten.any.default, x), b.call(aten.sum.default, x),
                   b.call(aten.any.dim, x, axes[0], keep), b.call(aten.prod.dim_int, x, axes[0], keep)]  # fmt: skip
        if dtype != torch.bool:
            results += [b.call(aten.amax.default, x, axes, keep), b.call(aten.amin.default, x, axes, keep),
                        b.call(aten.argmax.default, x, axes[0], keep), b.call(aten.argmin.default, x),
                        b.call(aten.max.default, x), b.call(aten.cumsum.default, x, axes[0])]  # fmt: skip
        if dtype == torch.float32:
            pair = b.call(aten.max.dim, x, axes[0], keep)
            spread = b.call(aten.var_mean.correction, x, axes, correction=1, keepdim=keep)
            results += [b.call(aten.mean.dim, x, axes, keep), b.call(aten.logsumexp.default, x, axes, keep),
                        b.call(aten.softmax.int, x, axes[0]), b.call(aten.log_softmax.int, x, axes[0]),
                        item(b, pair, 0), item(b, pair, 1), item(b, spread, 0), item(b, spread, 1),
                        b.call(aten.std.correction, x, axes, correction=0, keepdim=keep),
                        *(b.call(aten.linalg_vector_norm.default, x, p, axes, keep) for p in (0, 1, 2, 3, math.inf)),
                        b.call(aten.cumprod.default, x, axes[0])]  # fmt: skip
        return tuple(results)

    return [x], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(reductions(), min_size=5, max_size=5))
def test_reductions(target, cases):
    check(together(cases), rtol=1e-4, atol=1e-5, target=target)


def test_extremes_of_nan_and_infinity():
    x = torch.tensor([[1.0, float("nan"), 3.0], [float("-inf"), -1.0, -2.0], [2.0, 5.0, 5.0]])
    names = ["amax", "amin", "argmax", "argmin"]
    build = lambda b, x: tuple(b.call(getattr(aten, n).default, x, *([1] if "arg" in n else [[1]])) for n in names)  # noqa: E731
    check(together([([x], build), ([x[1:]], lambda b, x: b.call(aten.softmax.int, x, 1))]), rtol=1e-6, atol=0)


@st.composite
def sorts(draw) -> Case:
    shape, axes = draw(shapes(3))
    dim, descending = axes[0], draw(st.booleans())
    dtype = draw(st.sampled_from([torch.float32, torch.int64, torch.int32]))
    k = draw(st.integers(1, shape[dim]))
    x = numbers(shape, dtype, distinct=True)

    def build(b: Builder, x):
        results = []
        for call in (b.call(aten.sort.default, x, dim, descending), b.call(aten.topk.default, x, k, dim, descending),
                     b.call(aten.sort.stable, x, stable=True, dim=dim, descending=descending),
                     b.call(aten.kthvalue.default, x, k, dim), b.call(aten.median.dim, x, dim, True)):  # fmt: skip
            results += [item(b, call, 0), item(b, call, 1)]
        return (*results, b.call(aten.argsort.default, x, dim, descending))

    return [x], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(sorts(), min_size=4, max_size=4))
def test_sorting(target, cases):
    check(together(cases), exact=True, target=target)


def test_sorting_is_stable_and_puts_nan_last():
    x = torch.tensor([[2.0, float("nan"), 1.0, 2.0, -0.0, 0.0, 1.0, float("inf")]]).repeat(2, 9)

    def build(b, x):
        up, down = (b.call(aten.sort.stable, x, stable=True, dim=1, descending=d) for d in (False, True))
        return item(b, up, 0), item(b, up, 1), item(b, down, 0), item(b, down, 1)

    check(together([([x], build)]), rtol=0, atol=0)


def test_search():
    edges, x = torch.randn(9).sort().values, torch.randn(3, 4)
    x[0, 0] = edges[3]
    rows = torch.randn(3, 6).sort(1).values

    def build(b, e, x, r):
        return (b.call(aten.bucketize.Tensor, x, e), b.call(aten.bucketize.Tensor, x, e, out_int32=True, right=True),
                b.call(aten.searchsorted.Tensor, r, x), b.call(aten.searchsorted.Tensor, r, x, right=True))  # fmt: skip

    check(together([([edges, x, rows], build)]), exact=True)


def _positions(shape, limit: int) -> torch.Tensor:
    return torch.randint(-limit, limit, shape)


@st.composite
def indexings(draw) -> Case:
    """x[..., i, :, j] in all arrangements, read and written; indices of several shapes, negative ones too."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    picked = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    common = draw(st.lists(st.integers(1, 4), max_size=2))
    dtype = draw(st.sampled_from([torch.float32, torch.int64, torch.uint8, torch.bool, torch.int16]))
    turned, accumulate = draw(st.booleans()), draw(st.booleans()) and dtype in (torch.float32, torch.int64)
    x = numbers(shape, dtype)
    indices: list = [None] * len(shape)
    for axis in sorted(picked):
        own = [draw(st.sampled_from([s, 1])) for s in common]
        size = shape[::-1][axis] if turned else shape[axis]
        indices[axis] = _positions(own, size).to(draw(st.sampled_from([torch.int64, torch.int32])))
    source = x.permute(list(range(x.ndim))[::-1]) if turned else x
    found = source[tuple(slice(None) if i is None else i.long() for i in indices)]
    values = numbers(found.shape, dtype)
    if not accumulate:  # which of two writes to one place stays is nobody's promise
        values = numbers([1] * found.ndim, dtype)

    def build(b: Builder, x, values, *given):
        it = iter(given)
        idx = [None if i is None else next(it) for i in indices]
        x = b.call(aten.permute.default, x, list(range(len(shape)))[::-1]) if turned else x
        return b.call(aten.index.Tensor, x, idx), b.call(aten.index_put.default, x, idx, values, accumulate)

    return [x, values, *(i for i in indices if i is not None)], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(indexings(), min_size=6, max_size=6))
def test_index_tensors(target, cases):
    check(together(cases), rtol=1e-6, atol=1e-6, target=target)


@st.composite
def gathers(draw) -> Case:
    """Reading and writing along one axis at positions of its own for every element."""
    shape, axes = draw(shapes(3))
    dim = axes[0]
    dtype = draw(st.sampled_from([torch.float32, torch.int64]))
    part = [draw(st.integers(1, s)) for s in shape]
    index = torch.stack([torch.randperm(shape[dim])[: part[dim]] for _ in range(torch.Size(part).numel() // part[dim])])
    rest = [s for i, s in enumerate(part) if i != dim % len(shape)]
    index = index.reshape(*rest, part[dim]).movedim(-1, dim)
    chosen = torch.randint(0, shape[dim], (4,))
    apart = torch.randperm(shape[dim])
    x, src = numbers(shape, dtype), numbers(shape, dtype)

    def build(b: Builder, x, src, index, chosen, apart):
        some = b.call(aten.index_select.default, src, dim, chosen)
        results = [b.call(aten.gather.default, x, dim, index), some, b.call(aten.scatter.src, x, dim, index, src),
                   b.call(aten.scatter.value, x, dim, index, 7), b.call(aten.scatter_add.default, x, dim, index, src),
                   b.call(aten.index_add.default, x, dim, chosen, some, alpha=2),
                   b.call(aten.index_copy.default, x, dim, apart, src),
                   b.call(aten.index_fill.int_Scalar, x, dim, chosen, 5),
                   *(b.call(aten.scatter_reduce.two, x, dim, index, src, r) for r in ("sum", "prod", "amax", "amin")),
                   b.call(aten.scatter.reduce, x, dim, index, src, reduce="multiply")]  # fmt: skip
        return tuple(results)

    return [x, src, index.contiguous(), chosen, apart], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(gathers(), min_size=3, max_size=3))
def test_gathers_and_scatters(target, cases):
    check(together(cases), rtol=1e-5, atol=1e-5, target=target)


def test_embeddings_masks_and_places():
    table, x = torch.randn(9, 5), torch.randn(2, 3, 4, 6)
    mask = torch.rand(2, 3) < 0.5
    pooled, where = torch.nn.functional.max_pool2d(x, 2, return_indices=True)

    def build(b, table, ids, x, mask, pooled, where, value):
        wide = b.call(aten.index_put.default, x, [mask], value)
        return (b.call(aten.embedding.default, table, ids), wide, b.call(aten.take.default, x, ids),
                b.call(aten.max_unpool2d.default, pooled, where, [4, 6]),
                b.call(aten.count_nonzero.default, mask))  # fmt: skip

    check(
        together([([table, torch.randint(0, 9, (2, 7)), x, mask, pooled, where, torch.tensor(3.0)], build)]), exact=True
    )


def test_an_index_outside_reads_the_nearest_element():
    x = torch.arange(5.0)
    exe = compiled(single(aten.index.Tensor, Input(x), [Input(torch.tensor([0]))]))
    for at, want in ((99, 4.0), (-99, 0.0), (-1, 4.0)):
        assert exe.trace([x, torch.tensor([at])])[0].item() == want


def test_what_depends_on_data_is_declined_with_the_reason():
    x, mask = torch.randn(3, 4), torch.rand(3) < 0.5
    b = Builder([x, mask, torch.zeros(2, 4)])
    put = b.call(aten.index_put.default, b.inputs[0], [b.inputs[1]], b.inputs[2])
    reason = CBackend().supports(b.done(put), put, "native")
    assert reason is not None and "depends on the data" in reason
    b = Builder([x, torch.zeros(3, 4, dtype=torch.int64)])
    mean = b.call(aten.scatter_reduce.two, b.inputs[0], 1, b.inputs[1], b.inputs[0], "mean")
    assert "mean" in (CBackend().supports(b.done(mean), mean, "native") or "")

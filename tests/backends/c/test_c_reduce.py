"""Reductions, normalisations, softmax and matrix products in C."""

from __future__ import annotations

import pytest
import torch
from c_helpers import In, aten, chain, check, single
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 5, 19]), min_size=1, max_size=4), st.data())
def test_reductions(shape, data):
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    keep = data.draw(st.booleans())
    x = torch.randn(shape)

    def build(b, x):
        return (b.call(aten.mean.dim, x, axes, keep), b.call(aten.sum.dim_IntList, x, axes, keep),
                b.call(aten.amax.default, x, axes, keep), b.call(aten.amin.default, x, axes, keep))  # fmt: skip

    exe = check(chain(build, x), atol=1e-5)
    got = exe.trace([x])
    assert torch.equal(got[2], x.amax(axes, keep)) and torch.equal(got[3], x.amin(axes, keep))


def test_long_sums_and_whole_tensors():
    x = torch.rand(2, 3, 200, 211)

    def build(b, x):
        return (
            b.call(aten.mean.dim, x, [2, 3]),
            b.call(aten.mean.default, x),
            b.call(aten.sum.default, x),
            b.call(aten.max.default, x),
            b.call(aten.softmax.int, x, 1),
            b.call(aten.softmax.int, x, -1),
        )

    check(chain(build, x))


def test_normalisations():
    x = torch.randn(2, 6, 7, 9) * 3 + 1
    w, bias = torch.randn(6), torch.randn(6)
    mean, var = torch.randn(6), torch.rand(6) + 0.1

    def build(b, x):
        return (
            b.call(aten.batch_norm.default, x, w, bias, mean, var, False, 0.1, 1e-5, True),
            b.call(aten.batch_norm.default, x, None, None, mean, var, False, 0.1, 1e-3, True),
            b.call(aten.group_norm.default, x, 3, w, bias, 1e-5, True),
            b.call(aten.layer_norm.default, x, [7, 9], torch.ones(7, 9) * 2, torch.ones(7, 9), 1e-5),
            b.call(aten.layer_norm.default, x, [9]),
            b.call(aten.instance_norm.default, x, w, bias, None, None, True, 0.1, 1e-5, True),
        )  # fmt: skip

    check(chain(build, x), atol=1e-5)


def test_batch_norm_joins_the_chain_around_it():
    def build(b, x):
        y = b.call(
            aten.batch_norm.default,
            b.call(aten.mul.Tensor, x, 2.0),
            None,
            None,
            torch.randn(4),
            torch.ones(4),
            False,
            0.1,
            1e-5,
            True,
        )
        return b.call(aten.relu.default, y)

    exe = check(chain(build, torch.randn(2, 4, 6, 6)))
    assert len(exe.model.model.lowered.calls) == 1


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 2), (8, 16, 16), (13, 40, 70), (9, 7, 33)])
def test_products(sizes):
    m, k, n = sizes

    def build(b, x, y, z):
        return (b.call(aten.linear.default, x, torch.randn(n, k), torch.randn(n)), b.call(aten.matmul.default, x, y),
                b.call(aten.linear.default, x, torch.randn(n, k)), b.call(aten.matmul.default, x, z),
                b.call(aten.bmm.default, x, z))  # fmt: skip

    check(chain(build, torch.randn(2, m, k), torch.randn(k, n), torch.randn(2, k, n)), atol=1e-4)


def test_attention():
    q, k, v = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 12, 8), torch.randn(2, 3, 12, 5)
    check(single(aten.scaled_dot_product_attention.default, In(q), In(k), In(v)), atol=1e-5)
    check(
        single(aten.scaled_dot_product_attention.default, In(q), In(k), In(v), In(torch.randn(10, 12)), scale=0.3),
        atol=1e-5,
    )

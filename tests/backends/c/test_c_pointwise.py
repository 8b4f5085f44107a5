"""Pointwise operators in C against PyTorch, alone and in chains; the exact ones bit for bit."""

from __future__ import annotations

import pytest
import torch
from c_helpers import In, aten, chain, check, compiled, single
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401

vops = torch.ops.vqc

X = torch.cat(
    [torch.randn(300) * 3, torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 88.5, -88.0, 1e-6, -3.0, 3.0])]
)
POSITIVE = X.abs() + 1e-3

EXACT = {
    "neg": X, "abs": X, "reciprocal": POSITIVE, "floor": X, "ceil": X, "trunc": X, "round": X, "sign": X, "square": X,
    "relu": X, "relu6": X, "hardtanh": X,
}  # fmt: skip
CLOSE = {  # sqrt too: PyTorch's is not always the rounded root
    "sqrt": POSITIVE, "rsqrt": POSITIVE, "exp": X, "expm1": X.clamp(max=20), "log": POSITIVE, "log1p": POSITIVE,
    "sin": X, "cos": X, "erf": X, "tanh": X, "sigmoid": X, "hardsigmoid": X, "hardswish": X, "silu": X,
    "elu": X, "softplus": X.clamp(max=50), "mish": X,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["exact", "close"])
def test_unary_operators(kind):
    table = EXACT if kind == "exact" else CLOSE
    program = chain(lambda b, *xs: tuple(b.call(getattr(aten, k).default, x) for k, x in zip(table, xs, strict=True)),
                    *table.values())  # fmt: skip
    check(program, exact=kind == "exact", rtol=2e-6, atol=1e-6)


def test_gelu():
    # 1 + erf cancels: for x near -4 PyTorch's own result is 1.2e-6 from the true one, and ours 1.1e-6.
    check(single(aten.gelu.default, In(X)), rtol=2e-6, atol=2.5e-6)


def test_tanh_gelu():
    check(single(aten.gelu.default, In(X), approximate="tanh"))


@pytest.mark.parametrize("target", ["native", "portable"])
def test_exact_twins_bit_for_bit(target):
    x = torch.cat([torch.linspace(-100, 100, 40001), X, torch.randn(5000) * 0.01])
    names = ["exp", "sigmoid", "tanh", "hardsigmoid", "hardswish", "silu"]
    program = chain(lambda b, x: tuple(b.call(getattr(vops, n).default, x) for n in names), x)
    check(program, exact=True, target=target)


def test_nan_goes_through_minimum_and_maximum():
    x = torch.tensor([1.0, float("nan"), 3.0, float("inf"), -float("inf")])
    y = torch.tensor([float("nan"), 2.0, 1.0, 5.0, 5.0])
    p = chain(
        lambda b, x, y: (
            b.call(aten.maximum.default, x, y),
            b.call(aten.minimum.default, x, y),
            b.call(aten.relu.default, x),
            b.call(aten.clamp.default, x, -1.0, 2.0),
        ),
        x,
        y,
    )
    check(p, rtol=0, atol=0)


BINARY = ["add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "maximum.default", "minimum.default", "lt.Tensor",
          "le.Tensor", "gt.Tensor", "ge.Tensor", "eq.Tensor", "ne.Tensor"]  # fmt: skip


def _op(name):
    packet, overload = name.split(".")
    return getattr(getattr(aten, packet), overload)


@st.composite
def broadcasts(draw):
    """Two shapes that broadcast, of up to 4 axes."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 5, 17]), min_size=1, max_size=4))
    if draw(st.booleans()):
        shape[-1] = 300  # more than a block
    other = [draw(st.sampled_from([s, 1])) for s in shape][draw(st.integers(0, len(shape) - 1)) :]
    return shape, other, draw(st.booleans())


@settings(max_examples=12, deadline=None)
@given(broadcasts(), st.integers(0, 5))
def test_binary_operators_broadcast(shapes, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-4, 5, tuple(s), generator=g) / 2 + 0.25 * (s is shapes[0]) for s in shapes[:2])
    b = b + 10.0 * (b == 0)
    if shapes[2]:
        a, b = b, a + 10.0 * (a == 0)
    p = chain(lambda bld, x, y: tuple(bld.call(_op(n), x, y) for n in BINARY), a, b)
    check(p, exact=True)


def test_scalars_and_alpha():
    def build(b, x):
        return (
            b.call(aten.add.Tensor, x, 2.5),
            b.call(aten.sub.Tensor, x, x, alpha=2),
            b.call(aten.mul.Scalar, x, 3.0),
            b.call(aten.div.Tensor, x, 7.0),
            b.call(aten.rsub.Scalar, x, 1.0),
            b.call(aten.add.Tensor, x, x, alpha=0.5),
            b.call(aten.pow.Tensor_Scalar, x, 2.0),
            b.call(aten.gt.Scalar, x, 0.1),
            b.call(aten.remainder.Scalar, x, 2.0),
            b.call(aten.div.Tensor_mode, x, 0.7, rounding_mode="floor"),
            b.call(aten.clamp_min.default, x, 0.2),
        )

    check(chain(build, X))


def test_where_and_masks():
    def build(b, x, y):
        mask = b.call(aten.gt.Tensor, x, y)
        other = b.call(aten.lt.Scalar, y, 0.5)
        both = b.call(aten.logical_and.default, mask, other)
        return (
            b.call(aten.where.self, mask, x, y), b.call(aten.masked_fill.Scalar, x, both, -7.0),
            b.call(aten.logical_not.default, both), b.call(aten.bitwise_or.Tensor, mask, other), mask,
            b.call(aten._to_copy.default, both, dtype=torch.float32),
        )  # fmt: skip

    check(chain(build, torch.randn(3, 50), torch.randn(3, 50)), exact=True)


def test_conversions_and_integers():
    ints = torch.randint(-300, 300, (2, 70))

    def build(b, x, i, q):
        as_int = b.call(aten._to_copy.default, x, dtype=torch.int64)
        return (
            as_int, b.call(aten.add.Tensor, i, 5), b.call(aten.mul.Tensor, i, as_int), b.call(aten.eq.Scalar, i, 3),
            b.call(aten._to_copy.default, i, dtype=torch.float32), b.call(aten._to_copy.default, i, dtype=torch.uint8),
            b.call(aten._to_copy.default, q, dtype=torch.float32), b.call(aten.add.Tensor, q, q),
            b.call(aten.sub.Tensor, q, i), b.call(aten._to_copy.default, x, dtype=torch.bool),
            b.call(aten.where.self, b.call(aten.lt.Tensor, i, as_int), i, as_int), b.call(aten.div.Tensor, i, 4),
            b.call(aten.clamp.default, i, -5, 9), b.call(aten.abs.default, i), b.call(aten.neg.default, i),
        )  # fmt: skip

    check(chain(build, torch.randn(2, 70) * 100, ints, torch.randint(0, 256, (2, 70), dtype=torch.uint8)), exact=True)


def test_a_chain_is_one_kernel_and_keeps_every_rounding():
    def build(b, x, y):
        z = b.call(vops.sigmoid.default, x)
        keep = b.call(aten.rsub.Scalar, z, 1.0)  # z has two readers: computed; the rest is one chain
        new = b.call(aten.mul.Tensor, z, b.call(vops.tanh.default, y))
        return b.call(aten.add.Tensor, b.call(aten.mul.Tensor, keep, y), new)

    exe = check(chain(build, torch.randn(1, 4, 30, 30) * 4, torch.randn(1, 4, 30, 30)), exact=True)
    calls = exe.model.model.lowered.calls
    assert [c.kernel for c in calls] == ["vqc_pointwise_f32"] * 2


def test_a_chain_too_long_for_one_program_is_cut():
    def build(b, *xs):
        y = xs[0]
        for k in range(40):
            y = b.call(aten.mul.Tensor, b.call(aten.add.Tensor, y, xs[1 + k % 20]), 0.7)
        return y

    exe = check(chain(build, *[torch.randn(2, 33) for _ in range(21)]), exact=True)
    assert 2 <= len(exe.model.model.lowered.calls) < 10


def test_an_expression_that_needs_many_registers_is_cut():
    def tree(b, xs):
        if len(xs) == 1:
            return b.call(aten.mul.Tensor, xs[0], 1.5)
        half = len(xs) // 2
        return b.call(aten.sub.Tensor, tree(b, xs[:half]), tree(b, xs[half:]))

    check(chain(lambda b, *xs: tree(b, list(xs)), *[torch.randn(2, 33) for _ in range(32)]), exact=True)


def test_prelu_slopes_and_leaky_relu():
    x = torch.randn(2, 6, 5, 7)
    p = chain(lambda b, x: (b.call(aten.prelu.default, x, torch.linspace(-1, 1, 6)),
                            b.call(aten.prelu.default, x, torch.tensor([0.3])),
                            b.call(aten.leaky_relu.default, x, 0.2)), x)  # fmt: skip
    check(p, exact=True)


def test_views_as_operands_are_read_where_they_are():
    def build(b, x):
        t = b.call(aten.permute.default, x, [0, 2, 1])
        head = b.call(aten.slice.Tensor, t, 1, 0, 3)
        return b.call(aten.add.Tensor, head, b.call(aten.slice.Tensor, x, 1, 2, 3))

    exe = check(chain(build, torch.randn(2, 5, 5)), exact=True)
    assert len(exe.model.model.lowered.calls) == 1


def test_parallel_blocks_give_the_same():
    x = torch.randn(3, 40, 900)
    p = chain(lambda b, x: b.call(aten.mul.Tensor, b.call(aten.sigmoid.default, x), x), x)
    a, b = compiled(p), compiled(p, threads=3)
    assert torch.equal(a.trace([x])[0], b.trace([x])[0])

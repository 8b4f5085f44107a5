"""Pointwise functions of floats, integers, truth values and complex numbers; statistics put together from others."""

from __future__ import annotations

import math

import pytest
import torch
from c_helpers import Builder, Case, aten, check, together
from hypothesis import given, settings
from hypothesis import strategies as st

TARGETS = ["native", "portable"]
ANY = torch.cat([torch.randn(40) * 3, torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0])])
ODD = torch.cat([ANY, torch.tensor([float("nan"), float("inf"), float("-inf")])])
UNIT, POSITIVE = ANY.clamp(-0.99, 0.99), ANY.abs() + 0.01

UNARY: dict[str, torch.Tensor] = {
    "log2": POSITIVE, "log10": POSITIVE, "exp2": ANY, "tan": UNIT, "asin": UNIT, "acos": UNIT, "atan": ANY, "sinh": ANY,
    "cosh": ANY, "asinh": ANY, "acosh": POSITIVE + 1, "atanh": UNIT, "sgn": ANY, "isnan": ODD, "isinf": ODD,
    "isfinite": ODD, "isposinf": ODD, "isneginf": ODD, "nan_to_num": ODD, "signbit": ANY, "frac": ANY, "deg2rad": ANY,
    "rad2deg": ANY, "erf": ANY, "erfc": ANY, "sinc": ANY, "celu": ANY, "selu": ANY, "hardshrink": ANY,
    "softshrink": ANY, "log_sigmoid": ANY, "mish": ANY, "softplus": ANY, "gelu": ANY,
    "special_expit": ANY, "special_exp2": ANY,
}  # fmt: skip
BINARY = [
    "atan2",
    "hypot",
    "logaddexp",
    "fmax",
    "fmin",
    "heaviside",
    "maximum",
    "minimum",
    "logical_xor",
    "logical_and",
]


def _unary() -> list[Case]:
    return [([x], lambda b, x, n=n: b.call(getattr(aten, n).default, x)) for n, x in UNARY.items()]


def _binary() -> list[Case]:
    a, b = ODD, ODD.roll(7)
    cases: list[Case] = [([a, b], lambda g, x, y, n=n: g.call(getattr(aten, n).default, x, y)) for n in BINARY]
    plain, other = ANY, ANY.roll(5) + 0.3

    def more(g: Builder, x, y, p, q):
        return (g.call(aten.copysign.Tensor, x, y), g.call(aten.copysign.Scalar, x, -0.0),
                g.call(aten.fmod.Tensor, p, q), g.call(aten.fmod.Scalar, p, 0.75), g.call(aten.remainder.Tensor, p, q),
                g.call(aten.remainder.Scalar_Tensor, 2.5, q), g.call(aten.xlogy.Tensor, g.call(aten.relu.default, p),
                                                                     g.call(aten.abs.default, q)),
                g.call(aten.addcdiv.default, p, q, q, value=2),
                g.call(aten.div.Tensor_mode, p, q, rounding_mode="floor"),
                g.call(aten.div.Tensor_mode, p, q, rounding_mode="trunc"), g.call(aten.clamp.Tensor, p, q, None),
                g.call(aten.nan_to_num.default, x, 1.0, 2.0, -3.0), g.call(aten.logit.default, p, 0.01),
                g.call(aten.pow.Tensor_Tensor, g.call(aten.abs.default, p), q), g.call(aten.fill.Scalar, p, 3.0),
                g.call(aten.fill.Tensor, p, g.call(aten.select.int, q, 0, 3)),
                g.call(aten.copy.default, p, q))  # fmt: skip

    return [*cases, ([a, b, plain, other], more)]


@pytest.mark.parametrize("target", TARGETS)
def test_functions_of_floats(target):
    check(together([*_unary(), *_binary()]), rtol=1e-5, atol=2e-6, target=target)


@st.composite
def integers(draw) -> Case:
    """Every operation on two integer tensors of one type, values at the ends of the type's range among them."""
    dtype = draw(st.sampled_from([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]))
    ends = torch.iinfo(dtype)
    some = st.one_of(st.integers(-9, 9), st.sampled_from([ends.min, ends.max, ends.max - 1]))
    if dtype == torch.uint8:
        some = st.one_of(st.integers(0, 20), st.just(255))
    x = torch.tensor(draw(st.lists(some, min_size=30, max_size=30)), dtype=dtype)
    y = torch.tensor(draw(st.lists(some.filter(lambda v: v not in (0, -1)), min_size=30, max_size=30)), dtype=dtype)
    small = torch.tensor(draw(st.lists(st.integers(0, 6), min_size=30, max_size=30)), dtype=dtype)

    def build(b: Builder, x, y, n):
        pairs = ["add.Tensor", "sub.Tensor", "mul.Tensor", "floor_divide.default", "remainder.Tensor", "fmod.Tensor",
                 "maximum.default", "minimum.default", "bitwise_and.Tensor", "bitwise_or.Tensor", "bitwise_xor.Tensor",
                 "lt.Tensor", "ge.Tensor", "eq.Tensor", "logical_or.default", "logical_xor.default"]  # fmt: skip
        results = [b.call(_op(name), x, y) for name in pairs]
        return (*results, b.call(aten.bitwise_not.default, x), b.call(aten.bitwise_left_shift.Tensor, x, n),
                b.call(aten.bitwise_right_shift.Tensor, x, n), b.call(aten.pow.Tensor_Tensor, x, n),
                b.call(aten.pow.Tensor_Scalar, x, 3), b.call(aten.div.Tensor_mode, x, y, rounding_mode="trunc"),
                b.call(aten.clamp.default, x, 2, 5), b.call(aten.remainder.Scalar, x, 3), b.call(aten.abs.default, y),
                b.call(aten.__and__.Scalar, x, 5), b.call(aten.__rshift__.Scalar, x, 1))  # fmt: skip

    return [x, y, small], build


def _op(name: str):
    packet, overload = name.split(".")
    return getattr(getattr(aten, packet), overload)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(integers(), min_size=6, max_size=6))
def test_functions_of_integers(target, cases):
    check(together(cases), exact=True, target=target)


def test_dividing_integers_by_zero_ends_the_step_as_usual():
    """PyTorch raises; generated code gives 0."""
    from c_helpers import In, compiled, single

    exe = compiled(single(aten.floor_divide.default, In(torch.tensor([7, -7])), In(torch.tensor([2, 2]))))
    low = torch.iinfo(torch.int64).min
    assert exe.trace([torch.tensor([7, low]), torch.tensor([0, -1])])[0].tolist() == [0, low]


def test_complex_numbers():
    """Rotations as video transformers write them, and the arithmetic around."""
    q, angle = torch.randn(2, 3, 4, 6), torch.rand(4, 3) * 6

    def build(b: Builder, q, angle):
        z = b.call(aten.view_as_complex.default, b.call(aten.reshape.default, q, [2, 3, 4, 3, 2]))
        turn = b.call(aten.polar.default, b.call(aten.fill.Scalar, angle, 1.0), angle)
        real = b.call(aten.select.int, b.call(aten.view_as_real.default, z), -1, 0)
        table = torch.polar(torch.rand(4, 3), torch.rand(4, 3))
        made = [b.call(aten.mul.Tensor, z, turn), b.call(aten.mul.Tensor, z, table), b.call(aten.mul.Scalar, z, 2.0),
                b.call(aten.add.Tensor, z, turn), b.call(aten.sub.Tensor, z, turn, alpha=2),
                b.call(aten.add.Tensor, z, real), b.call(aten.mul.Tensor, z, real), b.call(aten.div.Tensor, z, turn),
                b.call(aten.neg.default, z), b.call(aten.conj_physical.default, z),
                b.call(aten.cat.default, [z, b.call(aten.permute.default, z, [0, 1, 2, 3])], 1),
                b.call(aten.complex.default, real, real), b.call(aten.exp.default, turn)]  # fmt: skip
        flat = [b.call(aten.view_as_real.default, m) for m in made]
        moved = b.call(aten.view_as_real.default, b.call(aten.permute.default, z, [2, 0, 3, 1]))
        return (*flat, moved, b.call(aten.abs.default, z), b.call(aten.angle.default, z), made[0])

    check(together([([q, angle], build)]), rtol=1e-5, atol=1e-5)


@st.composite
def statistics(draw) -> Case:
    """Norms by the input's own statistics, with and without factors, some of them computed."""
    c, groups = 6, draw(st.sampled_from([1, 2, 3]))
    space = draw(st.lists(st.integers(2, 9), min_size=1, max_size=3))
    x = torch.randn(2, c, *space) * 2 + 1
    w, v = torch.rand(c) + 0.5, torch.randn(c)
    last = space[-1]

    def build(b: Builder, x, w, v, mean, var):
        flat = torch.rand(last)
        return (b.call(aten.layer_norm.default, x, [last], flat, flat), b.call(aten.layer_norm.default, x, [last]),
                b.call(aten.layer_norm.default, x, [c, *space]), b.call(aten.rms_norm.default, x, [last], flat),
                b.call(aten.rms_norm.default, x, [last], None, 1e-3), b.call(aten.group_norm.default, x, groups, w, v),
                b.call(aten.instance_norm.default, x, w, v, None, None, True, 0.1, 1e-5, False),
                b.call(aten.instance_norm.default, x, w, v, mean, var, False, 0.1, 1e-5, False),
                b.call(aten.instance_norm.default, x, None, None, torch.zeros(c), torch.ones(c), False, 0.1, 1e-5,
                       False),
                b.call(aten.batch_norm.default, x, w, v, mean, var, False, 0.1, 1e-5, False),
                b.call(aten.batch_norm.default, x, None, v, None, None, True, 0.1, 1e-5, False))  # fmt: skip

    return [x, w, v, torch.randn(c), torch.rand(c) + 0.5], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(statistics(), min_size=4, max_size=4))
def test_norms(target, cases):
    check(together(cases), rtol=1e-4, atol=1e-5, target=target)


def test_distances():
    a, b = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    check(together([([a, b], lambda g, x, y: tuple(g.call(aten._cdist_forward.default, x, y, p, None)
                                                   for p in (2.0, 1.0, math.inf)))]), rtol=1e-5, atol=1e-5)  # fmt: skip

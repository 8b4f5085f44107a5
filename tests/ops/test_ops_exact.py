"""The exact elementwise functions: bit for bit against numpy's one-rounding-per-operation, and close to the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_oracles import F, run, same_bits
from torch import fx

from vqc import ops
from vqc.ops import exact

NAMES = ("exp", "sigmoid", "tanh", "hardsigmoid", "hardswish", "silu")


def np_exp(x):
    x = np.minimum(np.maximum(x, F(-87)), F(88))
    k = np.rint(x * F(exact.LOG2E))
    r = (x - k * F(exact.LN2_HI)) - k * F(exact.LN2_LO)
    p = np.full_like(r, exact.EXP_COEFFICIENTS[0])
    for c in exact.EXP_COEFFICIENTS[1:]:
        p = p * r
        p = p + F(c)
    return p * np.array([2.0 ** int(v) for v in k.ravel()], F).reshape(k.shape)


def np_sigmoid(x):
    return F(1) / (F(1) + np_exp(-x))


def np_hardsigmoid(x):
    return np.minimum(np.maximum(x + F(3), F(0)), F(6)) * F(1 / 6)


ORACLES = {
    "exp": np_exp,
    "sigmoid": np_sigmoid,
    "tanh": lambda x: F(1) - F(2) / (np_exp(F(2) * x) + F(1)),
    "hardsigmoid": np_hardsigmoid,
    "hardswish": lambda x: x * np_hardsigmoid(x),
    "silu": lambda x: x * np_sigmoid(x),
}
ATEN = {
    "exp": torch.exp, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "hardsigmoid": torch.nn.functional.hardsigmoid,
    "hardswish": torch.nn.functional.hardswish, "silu": torch.nn.functional.silu,
}  # fmt: skip

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.floats(-20, 20, width=32), finite), min_size=1, max_size=37))
def test_equals_single_rounded_operations(name, values):
    x = np.array(values, F)
    with np.errstate(over="ignore"):
        same_bits(run(getattr(ops, name), torch.from_numpy(x)), ORACLES[name](x))


@pytest.mark.parametrize("name", NAMES)
def test_equals_on_a_large_vector(name):
    """Long enough for every vectorised path of the eager engine and its tail."""
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(-12, 12, 40001), rng.uniform(-100, 100, 20002), [0.0, -0.0, 1e-40, np.inf, -np.inf]]
    )
    x = x.astype(F)
    with np.errstate(invalid="ignore"):
        same_bits(getattr(ops, name)(torch.from_numpy(x)), ORACLES[name](x))


@pytest.mark.parametrize("name", NAMES)
def test_strides_of_the_input_do_not_matter(name):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(run(getattr(ops, name), x), getattr(ops, name)(x.contiguous()))


def test_sigmoid_and_tanh_are_within_2e_7():
    x = np.unique(np.concatenate([np.linspace(-90, 90, 400_001), np.linspace(-9, 9, 1_500_001)]).astype(F))
    wide = x.astype(np.float64)
    for name, truth in (("sigmoid", 1 / (1 + np.exp(-wide))), ("tanh", np.tanh(wide))):
        assert np.abs(getattr(ops, name)(torch.from_numpy(x)).numpy() - truth).max() < 2e-7


def test_exp_is_within_its_relative_error():
    x = np.linspace(-87, 88, 1_000_001).astype(F)
    truth = np.exp(x.astype(np.float64))
    assert (np.abs(ops.exp(torch.from_numpy(x)).numpy() - truth) / truth).max() < 1.2e-7


def test_fixed_points():
    zero = torch.zeros(1)
    assert ops.exp(zero).item() == 1.0 and ops.sigmoid(zero).item() == 0.5 and ops.tanh(zero).item() == 0.0
    far = torch.tensor([-1e30, 1e30])
    assert ops.tanh(far).tolist() == [-1.0, 1.0] and ops.hardsigmoid(far).tolist() == [0.0, F(6) * F(1 / 6)]
    assert 0 < ops.sigmoid(far)[0] < 1e-37 and ops.sigmoid(far)[1] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_close_to_aten(name):
    x = torch.linspace(-15, 15, 30_001)
    torch.testing.assert_close(getattr(ops, name)(x), ATEN[name](x), rtol=1e-6, atol=2e-6 if name != "exp" else 0)


def test_constants_are_floats_a_generator_can_print():
    constants = (exact.LOG2E, exact.LN2_HI, exact.LN2_LO, exact.SIXTH, *exact.EXP_COEFFICIENTS)
    assert all(float(F(c)) == c for c in constants)
    assert float(F(1 / 6)) == exact.SIXTH and float(F(1 / np.log(2))) == exact.LOG2E
    assert abs(exact.LN2_HI + exact.LN2_LO - np.log(2)) < 1e-13
    for k in (-126, 127):  # k * LN2_HI loses nothing
        assert float(F(k) * F(exact.LN2_HI)) == k * exact.LN2_HI


def test_polynomial_is_as_good_as_it_says():
    r = np.linspace(-1, 1, 100_001) * 1.0005 * np.log(2) / 2
    assert np.abs(np.polyval(exact.EXP_COEFFICIENTS, r) / np.exp(r) - 1).max() < 3.7e-9


def test_only_float32_is_taken():
    with pytest.raises(TypeError, match="vqc::sigmoid: x is float64, it must be float32"):
        ops.sigmoid(torch.zeros(1, dtype=torch.float64))


# ---- the table of operators that are exact as they stand ------------------------------------------------------------


def call(target, *args, **kwargs):
    graph = fx.Graph()

    def node(a):
        if not isinstance(a, torch.Tensor):
            return a
        n = graph.placeholder("x")
        n.meta["val"] = a
        return n

    n = graph.call_function(target, tuple(node(a) for a in args), kwargs)
    n.meta["val"] = target(*args, **kwargs)
    return n


def test_exact_as_they_stand():
    x, aten = torch.randn(1, 4, 4, 4), torch.ops.aten
    for n in (
        call(aten.add.Tensor, x, x), call(aten.mul.Tensor, x, 2.0), call(aten.relu.default, x),
        call(aten.hardtanh.default, x), call(aten.leaky_relu.default, x, 0.1), call(aten.pixel_shuffle.default, x, 2),
        call(aten.constant_pad_nd.default, x, [1, 1]), call(aten.upsample_nearest2d.default, x, [8, 8]),
        call(aten.max_pool2d.default, x, [2, 2]), call(aten.gt.Scalar, x.long(), 1), call(aten.sum.default, x.long()),
        call(torch.ops.vqc.sigmoid.default, x), call(aten.div.Tensor, x, x),
    ):  # fmt: skip
        assert ops.is_exact(n), n.target


def test_not_exact_as_they_stand():
    x, aten = torch.randn(1, 4, 4, 4), torch.ops.aten
    for n in (
        call(aten.add.Tensor, x, x, alpha=2), call(aten.sigmoid.default, x), call(aten.sum.default, x),
        call(aten.mean.dim, x, [2, 3]), call(aten.addcmul.default, x, x, x), call(aten.lerp.Scalar, x, x, 0.5),
        call(aten.round.decimals, x, decimals=2), call(aten.div.Tensor_mode, x, x, rounding_mode="floor"),
        call(aten.conv2d.default, x, torch.randn(2, 4, 1, 1)), call(aten.pow.Tensor_Scalar, x, 3),
    ):  # fmt: skip
        assert not ops.is_exact(n), n.target

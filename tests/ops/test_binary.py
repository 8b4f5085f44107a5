"""The binary operators against loops, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_oracles import integer_conv, run, same_bits

from vqc import ops

fast = settings(max_examples=30, deadline=None, derandomize=True)
ONE, NONE = [1, 1], [0, 0]


def signs(rng, *shape):
    return torch.from_numpy((2 * rng.integers(0, 2, shape) - 1).astype(np.int8))


def floats(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


@st.composite
def convolutions(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    pair = lambda low, high: [draw(st.integers(low, high)), draw(st.integers(low, high))]  # noqa: E731
    kernel, dilation, stride, padding = pair(1, 3), pair(1, 2), pair(1, 3), pair(0, 3)
    size = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) + draw(st.integers(0, 4)) for i in (0, 1)]
    channels, o = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    x, w = signs(rng, draw(st.integers(1, 2)), channels, *size), signs(rng, o, channels, *kernel)
    return rng, x, w, (stride, padding, dilation)


@fast
@given(convolutions(), st.booleans())
def test_bconv2d_equals_loops(case, biased):
    rng, x, w, geometry = case
    scale, bias = floats(rng, len(w)), floats(rng, len(w)) if biased else None
    want = integer_conv(x.numpy(), w.numpy(), scale.numpy(), None if bias is None else bias.numpy(),
                        np.zeros(1, np.int32), *geometry, 1)  # fmt: skip
    same_bits(run(ops.bconv2d, x, w, scale, bias, *geometry), want)


@fast
@given(convolutions())
def test_bconv2d_threshold_equals_loops(case):
    rng, x, w, geometry = case
    acc = integer_conv(x.numpy(), w.numpy(), np.ones(len(w), np.float32), None, np.zeros(1, np.int32), *geometry, 1)
    reach = w[0].numel()
    threshold = torch.from_numpy(rng.integers(-reach - 1, reach + 2, len(w)).astype(np.int32))
    flip = torch.from_numpy(rng.integers(0, 2, len(w)).astype(bool))
    above = (acc >= threshold.numpy().reshape(1, -1, 1, 1)) ^ flip.numpy().reshape(1, -1, 1, 1)
    same_bits(run(ops.bconv2d_threshold, x, w, threshold, flip, *geometry), np.where(above, 1, -1).astype(np.int8))


def test_binarize_is_a_sign_with_a_positive_zero():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[0.0, -0.0, 1e-45, -1e-45, inf, -inf, nan], [1.5, 0.0, 1.4, 1.6, inf, -inf, nan]]).view(
        1, 2, 7, 1
    )
    zero = [1, 1, 1, -1, 1, -1, 1]
    assert run(ops.binarize, x, torch.zeros(1)).flatten().tolist() == [*zero, 1, 1, 1, 1, 1, -1, 1]
    assert run(ops.binarize, x, torch.tensor([0.0, 1.5])).flatten().tolist() == [*zero, 1, -1, -1, 1, 1, -1, 1]


def test_a_threshold_is_met_at_equality():
    x = torch.tensor([1.5, 1.4999999, 1.5000001]).view(1, 1, 3, 1)
    assert ops.binarize(x, torch.tensor([1.5])).flatten().tolist() == [1, -1, 1]


def test_padding_is_a_true_zero():
    """One channel of +1 under weights of +1: each sum is the number of taps inside."""
    x, w = torch.ones(1, 1, 3, 3, dtype=torch.int8), torch.ones(1, 1, 3, 3, dtype=torch.int8)
    y = ops.bconv2d(x, w, torch.ones(1), None, ONE, ONE, ONE)
    assert y.flatten().tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]


X, W, S = torch.ones(1, 2, 4, 4, dtype=torch.int8), torch.ones(3, 2, 3, 3, dtype=torch.int8), torch.ones(3)
T, F = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.bool)


@pytest.mark.parametrize("op, args, error, text", [
    (ops.bconv2d, (X.float(), W, S, None, ONE, ONE, ONE), TypeError, "x is float32, it must be int8"),
    (ops.bconv2d, (X, W.int(), S, None, ONE, ONE, ONE), TypeError, "weight is int32"),
    (ops.bconv2d, (X * 0, W, S, None, ONE, ONE, ONE), ValueError, "x holds something else than"),
    (ops.bconv2d, (X, W * 3, S, None, ONE, ONE, ONE), ValueError, "weight holds something else than"),
    (ops.bconv2d, (X, W[:, :1], S, None, ONE, ONE, ONE), ValueError, "no groups"),
    (ops.bconv2d, (X, W, S[:2], None, ONE, ONE, ONE), ValueError, r"scale is \[2\], not \[3\]"),
    (ops.bconv2d, (X, W, S, S[:1], ONE, ONE, ONE), ValueError, "bias"),
    (ops.bconv2d, (X, W, S, None, ONE, NONE, [2, 2]), ValueError, "larger than the padded picture"),
    (ops.bconv2d_threshold, (X, W, T.long(), F, ONE, ONE, ONE), TypeError, "threshold is int64"),
    (ops.bconv2d_threshold, (X, W, T, F[:2], ONE, ONE, ONE), ValueError, "flip"),
    (ops.binarize, (X.float(), torch.zeros(3)), ValueError, "it must hold 1 or 2 values"),
    (ops.binarize, (X, torch.zeros(1)), TypeError, "x is int8"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(op, args, error, text):
    with pytest.raises(error, match=text):
        op(*args)

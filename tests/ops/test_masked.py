"""Masked operators against loops: the dense value where the mask is true, the inactive one elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_oracles import conv_out_hw, float_conv, integer_conv, requantized, run, same_bits

from vqc import ops

fast = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def cases(draw):
    """A generator, sizes, options and the density of a mask."""
    pair = lambda low, high: [draw(st.integers(low, high)), draw(st.integers(low, high))]  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, dilation, stride, padding = pair(1, 3), pair(1, 2), pair(1, 3), pair(0, 2)
    size = [draw(st.integers(max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]), 7)) for i in (0, 1)]
    x = (draw(st.integers(1, 2)), groups * draw(st.integers(1, 3)), *size)
    weight = (groups * draw(st.integers(1, 2)), x[1] // groups, *kernel)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    hw = conv_out_hw(x, weight, stride, padding, dilation, None, False)
    mask = rng.random((x[0], 1, *hw)) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    return rng, x, weight, mask, (stride, padding, dilation, groups), draw(st.booleans())


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def tensors(*arrays):
    return [None if a is None else torch.from_numpy(a) for a in arrays]


@fast
@given(cases())
def test_masked_conv2d_keeps_sums_and_is_zero_outside(case):
    rng, x, weight, mask, tail, biased = case
    x, weight, bias = floats(rng, *x), floats(rng, *weight), floats(rng, weight[0]) if biased else None
    got = run(ops.masked_conv2d, *tensors(x, weight, bias, mask), *tail)
    want = float_conv(x, weight, bias, *tail)
    np.testing.assert_allclose(got.numpy(), np.where(mask, want, 0), rtol=1e-5, atol=1e-5)
    outside = got.numpy()[np.broadcast_to(~mask, want.shape)]
    assert not outside.view(np.uint32).any()  # +0, not -0


@fast
@given(cases(), st.sampled_from(["uint8", "int8"]))
def test_masked_qconv2d_equals_loops(case, dtype):
    rng, x, weight, mask, tail, biased = case
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max + 1, x).astype(dtype)
    zero = rng.integers(info.min, info.max + 1, 1).astype(np.int32)
    weight = rng.integers(-128, 128, weight).astype(np.int8)
    scale, bias = floats(rng, weight.shape[0]), floats(rng, weight.shape[0]) if biased else None
    dense = integer_conv(x, weight, scale, bias, zero, *tail)
    args = (*tensors(x, weight, scale, bias, zero, mask), *tail)
    same_bits(run(ops.masked_qconv2d, *args), np.where(mask, dense, np.float32(0)))
    got = run(ops.masked_qconv2d_requantize, *args, "relu", 0.01, 77)
    same_bits(got, np.where(mask, requantized(dense, "relu", 0.01, 77), np.uint8(77)))


@fast
@given(cases())
def test_masked_bconv2d_equals_loops(case):
    rng, x, weight, mask, (stride, padding, dilation, groups), biased = case
    weight = (weight[0], x[1], *weight[2:])
    x, w = (np.where(rng.random(s) < 0.5, -1, 1).astype(np.int8) for s in (x, weight))
    scale, bias = floats(rng, weight[0]), floats(rng, weight[0]) if biased else None
    dense = integer_conv(x, w, scale, bias, np.zeros(1, np.int32), stride, padding, dilation, 1)
    got = run(ops.masked_bconv2d, *tensors(x, w, scale, bias, mask), stride, padding, dilation)
    same_bits(got, np.where(mask, dense, np.float32(0)))


one, pad = [1, 1], [1, 1]
x8, w8 = torch.zeros(1, 4, 5, 5, dtype=torch.uint8), torch.ones(2, 4, 3, 3, dtype=torch.int8)
fixed = (w8, torch.ones(2), None, torch.zeros(1, dtype=torch.int32))
good = torch.ones(1, 1, 5, 5, dtype=torch.bool)
quantize = ("relu", 1.0, 0)
CALLS = {
    "masked_conv2d": lambda m: ops.masked_conv2d(x8.float(), w8.float(), None, m, one, pad, one, 1),
    "masked_qconv2d": lambda m: ops.masked_qconv2d(x8, *fixed, m, one, pad, one, 1),
    "masked_qconv2d_requantize": lambda m: ops.masked_qconv2d_requantize(x8, *fixed, m, one, pad, one, 1, *quantize),
    "masked_bconv2d": lambda m: ops.masked_bconv2d(torch.ones_like(x8, dtype=torch.int8), *fixed[:3], m, one, pad, one),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("mask", "error", "text"),
    [
        (good.float(), TypeError, "mask is float32, it must be bool"),
        (good[:, :, :4], ValueError, r"mask is \[1, 1, 4, 5\], not \[1, 1, 5, 5\]"),
        (good.expand(1, 2, 5, 5), ValueError, r"mask is \[1, 2, 5, 5\], not \[1, 1, 5, 5\]"),
    ],
)
def test_a_wrong_mask_is_named(name, mask, error, text):
    CALLS[name](good)
    with pytest.raises(error, match=f"vqc::{name}: {text}"):
        CALLS[name](mask)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": x8}, TypeError, "x is uint8, it must be float32"),
        ({"bias": torch.ones(3)}, ValueError, r"bias is \[3\], not \[2\]"),
        ({"weight": torch.ones(2, 3, 3, 3)}, ValueError, r"weight \[2, 3, 3, 3\] does not fit 4 channels in 1 groups"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    given = {"x": x8.float(), "weight": w8.float(), "bias": None} | change
    with pytest.raises(error, match=f"vqc::masked_conv2d: {text}"):
        ops.masked_conv2d(*given.values(), good, one, pad, one, 1)

"""Ordered float convolutions against float32 scalars summed tap after tap, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_oracles import F, float_conv, run, same_bits

from vqc import ops

fast = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    pair = lambda low, high: [draw(st.integers(low, high)), draw(st.integers(low, high))]  # noqa: E731
    groups, per_in, per_out = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel, stride, padding, dilation = pair(1, 3), pair(1, 3), pair(0, 2), pair(1, 2)
    size = [draw(st.integers(max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]), 6)) for i in (0, 1)]
    x = rng.standard_normal((draw(st.integers(1, 2)), groups * per_in, *size)).astype(F)
    bias = rng.standard_normal(groups * per_out).astype(F) if draw(st.booleans()) else None
    return rng, x, bias, groups, per_in, per_out, kernel, stride, padding, dilation


def tensor(a):
    return None if a is None else torch.from_numpy(a)


@fast
@given(cases())
def test_conv2d_in_order(case):
    rng, x, bias, groups, per_in, per_out, kernel, stride, padding, dilation = case
    w = rng.standard_normal((groups * per_out, per_in, *kernel)).astype(F)
    got = run(ops.conv2d, tensor(x), tensor(w), tensor(bias), stride, padding, dilation, groups)
    same_bits(got, float_conv(x, w, bias, stride, padding, dilation, groups))
    aten = torch.nn.functional.conv2d(tensor(x), tensor(w), tensor(bias), stride, padding, dilation, groups)
    torch.testing.assert_close(got, aten, rtol=1e-5, atol=1e-5)


@fast
@given(cases(), st.tuples(st.integers(0, 1), st.integers(0, 1)))
def test_conv_transpose2d_in_order(case, extra):
    rng, x, bias, groups, per_in, per_out, kernel, stride, padding, dilation = case
    extra = [min(extra[i], max(stride[i], dilation[i]) - 1) for i in (0, 1)]
    size = [(x.shape[2 + i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 + extra[i] for i in (0, 1)]
    padding = [min(padding[i], (size[i] - 1) // 2) for i in (0, 1)]
    w = rng.standard_normal((groups * per_in, per_out, *kernel)).astype(F)
    got = run(ops.conv_transpose2d, tensor(x), tensor(w), tensor(bias), stride, padding, extra, groups, dilation)
    same_bits(got, float_conv(x, w, bias, stride, padding, dilation, groups, extra))
    aten = torch.nn.functional.conv_transpose2d(
        tensor(x), tensor(w), tensor(bias), stride, padding, extra, groups, dilation
    )
    torch.testing.assert_close(got, aten, rtol=1e-5, atol=1e-5)


def test_the_order_is_visible():
    """Taps that cancel only in this order: 2^30 and -2^30 swallow what came between them, and only that."""
    x = torch.tensor([2.0**30, 1.0, -(2.0**30), 1.0]).view(1, 1, 1, 4)
    assert ops.conv2d(x, torch.ones(1, 1, 1, 4), None, [1, 1], [0, 0], [1, 1], 1).item() == 1.0
    assert ops.conv2d(x.view(1, 4, 1, 1), torch.ones(1, 4, 1, 1), None, [1, 1], [0, 0], [1, 1], 1).item() == 1.0


def test_products_are_rounded_before_they_are_added():
    """(1 + 2^-12)^2 - (1 + 2^-11) is 2^-24 when fused, 0 when the product is rounded first."""
    a = 1 + 2.0**-12
    x, w = torch.tensor([[-(1 + 2.0**-11)], [a]]).view(1, 2, 1, 1), torch.tensor([1.0, a]).view(1, 2, 1, 1)
    assert ops.conv2d(x, w, None, [1, 1], [0, 0], [1, 1], 1).item() == 0.0
    assert ops.conv_transpose2d(x, w.view(2, 1, 1, 1), None, [1, 1], [0, 0], [0, 0], 1, [1, 1]).item() == 0.0


def test_strides_of_the_input_do_not_matter():
    x, w = torch.randn(2, 4, 6, 5).to(memory_format=torch.channels_last), torch.randn(3, 4, 3, 3)
    args = (w, None, [1, 1], [1, 1], [1, 1], 1)
    assert torch.equal(run(ops.conv2d, x, *args), ops.conv2d(x.contiguous(), *args))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(device):
    x, w = torch.zeros(1, 4, 5, 5, device=device), torch.zeros(4, 4, 3, 3, device=device)
    with pytest.raises(TypeError, match="vqc::conv2d: weight is float64"):
        ops.conv2d(x, w.double(), None, [1, 1], [1, 1], [1, 1], 1)
    with pytest.raises(ValueError, match=r"vqc::conv_transpose2d: bias is \[3\], not \[4\]"):
        ops.conv_transpose2d(x, w, torch.zeros(3, device=device), [1, 1], [1, 1], [0, 0], 1, [1, 1])

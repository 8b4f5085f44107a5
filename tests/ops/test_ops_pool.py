"""Averages with one order: against float32 scalars added one by one, and against aten."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ops_oracles import F, run, same_bits

from vqc import ops

fast = settings(max_examples=40, deadline=None, derandomize=True)


def channel_mean(values):
    lanes = [F(0)] * 16
    for i, v in enumerate(values):
        lanes[i % 16] = lanes[i % 16] + v
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    return lanes[0] * F(1.0 / len(values))


@fast
@given(st.integers(0, 2**16), st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 11))
def test_mean_hw_is_sixteen_lanes_and_a_tree(seed, n, c, h, w):
    x = np.random.default_rng(seed).standard_normal((n, c, h, w)).astype(F) * F(1000)
    want = np.array([[channel_mean(x[i, j].ravel()) for j in range(c)] for i in range(n)], F).reshape(n, c, 1, 1)
    same_bits(run(ops.mean_hw, torch.from_numpy(x)), want)


def test_mean_hw_adds_a_large_picture_in_the_same_order():
    """Hundreds of rows, where a library's own sum would go in blocks."""
    x = np.random.default_rng(1).standard_normal((1, 2, 61, 83)).astype(F)
    want = np.array([channel_mean(c.ravel()) for c in x[0]], F).reshape(1, 2, 1, 1)
    same_bits(ops.mean_hw(torch.from_numpy(x)), want)
    assert not np.array_equal(want.ravel(), x.mean((2, 3)).ravel())


def test_mean_hw_is_close_to_aten_and_takes_any_strides():
    x = torch.rand(2, 5, 37, 61)
    torch.testing.assert_close(ops.mean_hw(x), x.mean((2, 3), keepdim=True), rtol=1e-6, atol=0)
    assert torch.equal(ops.mean_hw(x.to(memory_format=torch.channels_last)), ops.mean_hw(x))
    assert torch.equal(run(ops.mean_hw, x.transpose(2, 3)), ops.mean_hw(x.transpose(2, 3).contiguous()))


def window_average(x, kernel, stride, padding, ceil_mode, include_pad):
    n, c, h, w = x.shape
    like = torch.nn.functional.avg_pool2d(torch.from_numpy(x), kernel, stride, padding, ceil_mode, include_pad)
    out = np.zeros(like.shape, F)
    for i in np.ndindex(*out.shape):
        y0, x0 = i[2] * stride[0] - padding[0], i[3] * stride[1] - padding[1]
        y1, x1 = min(y0 + kernel[0], h + padding[0]), min(x0 + kernel[1], w + padding[1])
        padded = (y1 - y0) * (x1 - x0)
        taps = [x[i[0], i[1], a, b] for a in range(max(y0, 0), min(y1, h)) for b in range(max(x0, 0), min(x1, w))]
        acc = taps[0]
        for v in taps[1:]:
            acc = acc + v
        out[i] = acc * F(1.0 / (padded if include_pad else len(taps)))
    return out


@fast
@given(st.data())
def test_avg_pool2d_adds_real_samples_in_order(data):
    pair = lambda low, high: [data.draw(st.integers(low, high)), data.draw(st.integers(low, high))]  # noqa: E731
    kernel, stride = pair(1, 4), pair(1, 3)
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    size = pair(1, 8)
    assume(all(size[i] + 2 * padding[i] >= kernel[i] for i in (0, 1)))
    flags = (data.draw(st.booleans()), data.draw(st.booleans()))
    x = np.random.default_rng(data.draw(st.integers(0, 999))).standard_normal((2, 2, *size)).astype(F)
    args = (kernel, stride, padding, *flags)
    got = run(ops.avg_pool2d, torch.from_numpy(x), *args)
    same_bits(got, window_average(x, *args))
    torch.testing.assert_close(got, torch.nn.functional.avg_pool2d(torch.from_numpy(x), *args), rtol=1e-5, atol=1e-6)


def test_a_window_of_negative_zeros_stays_negative():
    """The sum starts from the first sample, not from +0."""
    y = ops.avg_pool2d(torch.full((1, 1, 3, 3), -0.0), [3, 3], [1, 1], [1, 1], False, True)
    assert torch.signbit(y).all()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(device):
    x = torch.zeros(1, 1, 4, 4, device=device)
    with pytest.raises(ValueError, match="more than half of kernel"):
        ops.avg_pool2d(x, [2, 2], [2, 2], [2, 0], False, True)
    with pytest.raises(ValueError, match="larger than the padded picture"):
        ops.avg_pool2d(x, [7, 7], [1, 1], [1, 1], False, True)
    with pytest.raises(ValueError, match="mean_hw: x has 3 axes"):
        ops.mean_hw(x[0])
    with pytest.raises(ValueError, match="is empty"):
        ops.mean_hw(x[..., :0])

"""Binary convolutions in C, bit for bit: shapes, borders, fused epilogues, thresholds, on every kind of kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from c_helpers import aten, chain, check
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401

vops = torch.ops.vqc
CPU = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
LEVELS = {"x86-64-v2": "sse4_2", "x86-64-v3": "avx2", "x86-64-v4": "avx512bw"}
TARGETS = ["native", "portable", *(name for name, flag in LEVELS.items() if flag in CPU)]


def signs(*shape):
    return (2 * torch.randint(0, 2, shape) - 1).to(torch.int8)


@st.composite
def shapes(draw):
    """(x shape, output channels, kernel, stride, padding, dilation) of a convolution that has a result."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (2, 3), (1, 7), (7, 2)]))
    stride, dilation, padding = (
        [draw(st.integers(low, high)), draw(st.integers(low, high))] for low, high in ((1, 3), (1, 2), (0, 3))
    )
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    size = [least[0] + draw(st.integers(0, 6)), least[1] + draw(st.sampled_from([0, 1, 5, 17, 32, 63, 64, 70, 130]))]
    channels = draw(st.sampled_from([1, 3, 31, 32, 33, 64, 70]))
    return (draw(st.integers(1, 2)), channels, *size), draw(st.integers(1, 41)), kernel, stride, padding, dilation


def program(case):
    """A float output, a fused residual, activation and sign, and a threshold, on one shape."""
    x_shape, o, kernel, stride, padding, dilation = case
    x, w = torch.randn(x_shape), signs(o, x_shape[1], *kernel)
    geometry = (stride, padding, dilation)
    scale, bias = torch.randn(o) * 0.1, torch.randn(o)
    reach = x_shape[1] * kernel[0] * kernel[1]

    def build(b, x, r):
        q = b.call(vops.binarize.default, x, torch.randn(x_shape[1]) * 0.1)
        plain = b.call(vops.bconv2d.default, q, w, scale, None, *geometry)
        summed = b.call(aten.add.Tensor, r, b.call(vops.bconv2d.default, q, w, scale, bias, *geometry))
        active = b.call(aten.prelu.default, summed, torch.rand(o))
        sign = b.call(vops.binarize.default, active, torch.randn(1))
        limit = torch.randint(-reach - 1, reach + 2, (o,), dtype=torch.int32)
        decided = b.call(vops.bconv2d_threshold.default, q, w, limit, torch.rand(o) < 0.5, *geometry)
        again = b.call(vops.bconv2d.default, decided, signs(9, o, 1, 1), torch.ones(9), None, [1, 1], [0, 0], [1, 1])
        return q, plain, active, sign, decided, again

    like = vops.bconv2d(signs(*x_shape), w, scale, None, *geometry)
    return chain(build, x, torch.randn_like(like))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=shapes())
def test_any_shape(target, case):
    check(program(case), exact=True, target=target)

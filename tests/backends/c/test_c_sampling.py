"""Resizing, grid sampling and pooling in C."""

from __future__ import annotations

import torch
from c_helpers import aten, chain, check
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401

vops = torch.ops.vqc
SIZE = st.integers(1, 13)


@settings(max_examples=10, deadline=None)
@given(SIZE, SIZE, SIZE, SIZE, st.booleans(), st.sampled_from([None, 2.0, 0.5, 1.7]))
def test_bilinear_resize(h, w, oh, ow, align, scale):
    if scale is not None and min(int(h * scale), int(w * scale)) > 0:
        oh, ow = int(h * scale), int(w * scale)
    else:
        scale = None

    def build(b, x):
        return (b.call(vops.resize_bilinear.default, x, oh, ow, align, scale, scale),
                b.call(aten.upsample_bilinear2d.default, x, [oh, ow], align, scale, scale))  # fmt: skip

    x = torch.randn(2, 3, h, w)
    exe = check(chain(build, x), rtol=1e-5, atol=1e-5)
    assert torch.equal(exe.trace([x])[0], vops.resize_bilinear(x, oh, ow, align, scale, scale))


@settings(max_examples=10, deadline=None)
@given(SIZE, SIZE, SIZE, SIZE, st.booleans(), st.sampled_from(["border", "zeros"]), st.integers(0, 99))
def test_grid_sampling(h, w, oh, ow, align, padding, seed):
    g = torch.Generator().manual_seed(seed)
    x, grid = torch.randn(2, 3, h, w, generator=g), torch.randn(2, oh, ow, 2, generator=g)
    grid[0, 0, 0] = torch.tensor([-1.0, 1.0])
    grid[1, 0, 0] = torch.tensor([1e9, -1e9])
    mode = ["zeros", "border"].index(padding)

    def build(b, x, grid):
        return (b.call(vops.grid_sample.default, x, grid, padding, align),
                b.call(aten.grid_sampler_2d.default, x, grid, 0, mode, align))  # fmt: skip

    exe = check(chain(build, x, grid), rtol=1e-4, atol=1e-4)
    assert torch.equal(exe.trace([x, grid])[0], vops.grid_sample(x, grid, padding, align))


def test_nearest_grid_sampling():
    x, grid = torch.randn(1, 3, 8, 9), torch.rand(1, 5, 6, 2) * 2.4 - 1.2
    for padding in (0, 1):
        p = chain(lambda b, x, g: b.call(aten.grid_sampler_2d.default, x, g, 1, padding, False), x, grid)  # noqa: B023
        check(p, exact=True)


@st.composite
def windows(draw):
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    stride = [draw(st.integers(1, 3)) for _ in range(2)]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    size = [draw(st.integers(k, k + 9)) for k in kernel]
    return size, kernel, stride, padding, draw(st.booleans()), draw(st.booleans())


@settings(max_examples=12, deadline=None)
@given(windows())
def test_pooling(case):
    size, kernel, stride, padding, ceil, inside = case
    x = torch.randn(2, 3, *size)

    def build(b, x):
        return (b.call(vops.avg_pool2d.default, x, kernel, stride, padding, ceil, inside),
                b.call(aten.max_pool2d.default, x, kernel, stride, padding, [1, 1], ceil),
                b.call(aten.avg_pool2d.default, x, kernel, stride, padding, ceil, inside))  # fmt: skip

    exe = check(chain(build, x), rtol=1e-5, atol=1e-6)
    got = exe.trace([x])
    assert torch.equal(got[0], vops.avg_pool2d(x, kernel, stride, padding, ceil, inside))
    assert torch.equal(got[1], aten.max_pool2d(x, kernel, stride, padding, [1, 1], ceil))


def test_adaptive_and_global_means():
    def build(b, x):
        return (
            b.call(aten.adaptive_avg_pool2d.default, x, [1, 1]),
            b.call(aten.adaptive_avg_pool2d.default, x, [3, 4]),
            b.call(aten.avg_pool2d.default, x, [3, 3], [2, 2], [1, 1], False, True, 5),
            b.call(vops.mean_hw.default, x),
        )

    x = torch.randn(2, 5, 11, 13)
    exe = check(chain(build, x))
    assert torch.equal(exe.trace([x])[3], vops.mean_hw(x))
    y = torch.randn(2, 5, 1, 3)  # less than one row of lanes
    exe = check(chain(lambda b, x: b.call(vops.mean_hw.default, x), y), exact=True)

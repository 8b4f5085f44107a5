"""Bilinear resampling: against float32 scalars written as the operators' docstrings say, and against aten."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_oracles import F, run, same_bits

from vqc import ops
from vqc.ops import bilinear_table

fast = settings(max_examples=50, deadline=None, derandomize=True)
aten_resize = torch.ops.aten.upsample_bilinear2d.default


@st.composite
def axes(draw, limit=9):
    """(in size, out size, align_corners, scale) of one axis, the scale given or not, up or down."""
    size, align = draw(st.integers(1, limit)), draw(st.booleans())
    if draw(st.booleans()):
        scale = draw(st.sampled_from([0.25, 0.3, 0.5, 0.77, 1.0, 1.3, 2.0, 2.7, 4.0]))
        return size, max(1, int(size * scale)), align, scale
    return size, draw(st.integers(1, limit)), align, None


def exact_position(size, out, align, scale, d):
    if align:
        return d * (size - 1) / (out - 1) if out > 1 else 0.0
    return max((d + 0.5) * (1 / scale if scale else size / out) - 0.5, 0.0)


@fast
@given(axes(limit=700))
def test_table_is_where_the_samples_are(axis):
    size, out, align, scale = axis
    i0, i1, w0, w1 = bilinear_table(size, out, align, scale)
    assert [t.dtype for t in (i0, i1, w0, w1)] == [np.int32, np.int32, F, F] and {len(t) for t in (i0, i1, w0, w1)} == {
        out
    }
    assert (i0 >= 0).all() and (i1 < size).all() and ((i1 == i0 + 1) | (i1 == size - 1)).all()
    assert (w1 >= 0).all() and (w1 <= 1).all() and np.array_equal(w0, F(1) - w1)
    if size == out:
        assert np.array_equal(i0, np.arange(out)) and not w1.any()
        return
    for d in range(out):
        want = min(exact_position(size, out, align, scale, d), size - 1)
        assert math.isclose(i0[d] * float(w0[d]) + i1[d] * float(w1[d]), want, abs_tol=2e-7 * size + 1e-7)


@fast
@given(axes(), axes(), st.integers(0, 999))
def test_resize_is_four_products_and_three_sums(vertical, horizontal, seed):
    (h, ho, align, sh), (w, wo, _, sw) = vertical, horizontal
    x = np.random.default_rng(seed).standard_normal((2, 2, h, w)).astype(F)
    want = np.zeros((2, 2, ho, wo), F)
    (i0, i1, u0, u1), (j0, j1, v0, v1) = bilinear_table(h, ho, align, sh), bilinear_table(w, wo, align, sw)
    for n, c, y, z in np.ndindex(*want.shape):
        p = x[n, c]
        t = p[i0[y], j0[z]] * v0[z] + p[i0[y], j1[z]] * v1[z]
        b = p[i1[y], j0[z]] * v0[z] + p[i1[y], j1[z]] * v1[z]
        want[n, c, y, z] = t * u0[y] + b * u1[y]
    got = run(ops.resize_bilinear, torch.from_numpy(x), ho, wo, align, sh, sw)
    same_bits(got, want)
    torch.testing.assert_close(got, aten_resize(torch.from_numpy(x), [ho, wo], align, sh, sw), rtol=0, atol=1e-6)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(
    ("size", "out", "scale"),
    [
        ((18, 32), (36, 64), 2.0),
        ((270, 480), (288, 512), None),
        ((288, 512), (115, 204), 0.4),
        ((288, 512), (97, 131), None),
    ],
)
def test_resize_is_aten_at_video_sizes(size, out, scale, align):
    x = torch.rand(1, 2, *size)
    got = ops.resize_bilinear(x, *out, align, scale, scale)
    torch.testing.assert_close(got, aten_resize(x, list(out), align, scale, scale), rtol=0, atol=1e-6)


def test_resize_to_the_same_size_is_a_copy():
    x = torch.randn(1, 3, 5, 6)
    assert torch.equal(ops.resize_bilinear(x, 5, 6, False, 1.1, None), x)
    assert torch.equal(run(ops.resize_bilinear, x.to(memory_format=torch.channels_last), 5, 6, True, None, None), x)


# ---- grid sampling --------------------------------------------------------------------------------------------------


def sample(x, grid, mode, align):
    n, c, h, w = x.shape
    out = np.zeros((n, c, *grid.shape[1:3]), F)
    one, half = F(1), F(0.5)

    def position(g, size):
        p = ((g + one) * half) * F(size - 1) if align else ((g + one) * F(size) - one) * half
        if mode == "border":
            p = min(max(p, F(0)), F(size - 1))
        before = np.floor(p)
        return before, p - before

    for k, a, b in np.ndindex(n, *grid.shape[1:3]):
        (x0, wx), (y0, wy) = position(grid[k, a, b, 0], w), position(grid[k, a, b, 1], h)

        def tap(ch, y, z, k=k):
            if mode == "border":
                y, z = min(y, h - 1), min(z, w - 1)
            elif not (0 <= y < h and 0 <= z < w):
                return F(0)
            return x[k, ch, int(y), int(z)]

        for ch in range(c):
            p = tap(ch, y0, x0) * (one - wx) + tap(ch, y0, x0 + one) * wx
            q = tap(ch, y0 + one, x0) * (one - wx) + tap(ch, y0 + one, x0 + one) * wx
            out[k, ch, a, b] = p * (one - wy) + q * wy
    return out


@fast
@given(st.integers(0, 9999), st.integers(1, 6), st.integers(1, 7), st.sampled_from(["border", "zeros"]), st.booleans())
def test_grid_sample_equals_scalars(seed, h, w, mode, align):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 2, h, w)).astype(F)
    grid = rng.uniform(-1.6, 1.6, (2, 3, 4, 2)).astype(F)
    grid[0, 0] = [[-1, -1], [1, 1], [0, 1], [-1, 0.5]]
    got = run(ops.grid_sample, torch.from_numpy(x), torch.from_numpy(grid), mode, align)
    same_bits(got, sample(x, grid, mode, align))
    aten = torch.nn.functional.grid_sample(torch.from_numpy(x), torch.from_numpy(grid), "bilinear", mode, align)
    torch.testing.assert_close(got, aten, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mode", ["border", "zeros"])
def test_far_positions_touch_no_memory_outside(mode):
    x = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    far = torch.tensor([[1e37, 0.0], [-1e37, 0.0], [0.0, 1e20], [1e9, 1e9]]).view(1, 1, 4, 2)
    got = ops.grid_sample(x, far, mode, False).flatten().tolist()
    assert got == ([0.0] * 4 if mode == "zeros" else [8.0, 5.0, 10.5, 12.0])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(device):
    x, grid = torch.zeros(1, 1, 4, 4, device=device), torch.zeros(1, 2, 2, 2, device=device)
    with pytest.raises(ValueError, match="padding_mode is 'reflection'"):
        ops.grid_sample(x, grid, "reflection", False)
    with pytest.raises(ValueError, match=r"it must be \[N,Ho,Wo,2\]"):
        ops.grid_sample(x, grid[..., :1], "zeros", False)
    with pytest.raises(ValueError, match="cannot make 0 x 3"):
        ops.resize_bilinear(x, 0, 3, False, None, None)

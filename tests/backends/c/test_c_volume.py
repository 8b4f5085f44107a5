"""Pooling over one to three axes, resizing in every mode, sampling in every mode, windows, pads: drawn arguments."""

from __future__ import annotations

import operator

import pytest
import torch
from c_helpers import Builder, Case, aten, check, together
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.backends.c.lowering import sampling

TARGETS = ["native", "portable"]


def item(b: Builder, node, index: int):
    return b.call(operator.getitem, node, index)


@st.composite
def pools(draw) -> Case:
    axes = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    stride = [draw(st.integers(1, 3)) for _ in range(axes)]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    size = [draw(st.integers((k - 1) * d + 1, 9)) for k, d in zip(kernel, dilation, strict=True)]
    ceil, inside = draw(st.booleans()), draw(st.booleans())
    out = [draw(st.integers(1, 7)) for _ in range(axes)]
    lead = draw(st.sampled_from([[2], [2, 3]]))
    divisor = draw(st.sampled_from([None, 5]))
    x = torch.randn(*lead, *size)

    def build(b: Builder, x):
        op = {n: getattr(aten, f"{n}{axes}d").default for n in ("max_pool", "avg_pool", "adaptive_avg_pool")}
        results = [b.call(op["max_pool"], x, kernel, stride, padding, dilation, ceil),
                   b.call(op["adaptive_avg_pool"], x, out), b.call(op["adaptive_avg_pool"], x, [1] * axes)]  # fmt: skip
        more = [] if axes == 1 else [divisor]
        results.append(b.call(op["avg_pool"], x, kernel, stride, padding, ceil, inside, *more))
        adaptive = b.call(getattr(aten, f"adaptive_max_pool{axes}d").default, x, out)
        results += [item(b, adaptive, 0), item(b, adaptive, 1)]
        if axes > 1:
            where = b.call(
                getattr(aten, f"max_pool{axes}d_with_indices").default, x, kernel, stride, padding, dilation, ceil
            )
            results += [item(b, where, 0), item(b, where, 1)]
        return tuple(results)

    return [x], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(pools(), min_size=9, max_size=9))
def test_pools(target, cases):
    check(together(cases), rtol=1e-5, atol=1e-6, target=target)


@st.composite
def resizes(draw) -> Case:
    """Every mode, by sizes or by scales."""
    mode = draw(st.sampled_from(["linear1d", "trilinear3d", "bicubic2d", "bilinear2d_aa", "bicubic2d_aa", "nearest1d",
                                 "nearest3d", "nearest_exact1d", "nearest_exact2d", "nearest_exact3d"]))  # fmt: skip
    axes = int(mode.replace("_aa", "")[-2])
    size = [draw(st.integers(1, 9)) for _ in range(axes)]
    scale = draw(st.sampled_from([None, 2.0, 0.5, 1.7]))
    out = [draw(st.integers(1, 15)) for _ in range(axes)] if scale is None else [int(s * scale) for s in size]
    if min(out) == 0:
        scale, out = None, [draw(st.integers(1, 15)) for _ in range(axes)]
    if "aa" in mode:  # PyTorch itself confuses the layout of pictures with one column
        scale, out = None, [max(o, 2) for o in out]
    align = draw(st.booleans())
    name = ("_upsample_" if "aa" in mode or "exact" in mode else "upsample_") + mode
    arguments = [out] if "nearest" in mode else [out, align]
    op = getattr(aten, name).default

    def build(b: Builder, x):
        return b.call(op, x, *arguments, *[scale] * axes)

    return [torch.randn(2, 3, *size)], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(resizes(), min_size=14, max_size=14))
def test_resizes(target, cases):
    check(together(cases), rtol=1e-4, atol=2e-5, target=target)


@st.composite
def samples(draw) -> Case:
    """Grids over pictures and volumes, some positions far outside."""
    volume = draw(st.booleans())
    mode = draw(st.integers(0, 1 if volume else 2))
    padding, align = draw(st.integers(0, 2)), draw(st.booleans())
    size = [draw(st.integers(1, 7)) for _ in range(3 if volume else 2)]
    out = [draw(st.integers(1, 6)) for _ in size]
    grid = torch.randn(2, *out, len(size)) * 1.3
    op = (aten.grid_sampler_3d if volume else aten.grid_sampler_2d).default
    return [torch.randn(2, 3, *size), grid], lambda b, x, g: b.call(op, x, g, mode, padding, align)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(samples(), min_size=16, max_size=16))
def test_samples(target, cases):
    check(together(cases), rtol=1e-4, atol=5e-5, target=target)


@st.composite
def windows(draw) -> Case:
    """Unfolding and folding back."""
    kernel, stride, dilation = ([draw(st.integers(1, 3)) for _ in range(2)] for _ in range(3))
    padding = [draw(st.integers(0, 2)) for _ in range(2)]
    size = [draw(st.integers((k - 1) * d + 1, 9)) for k, d in zip(kernel, dilation, strict=True)]
    lead = draw(st.sampled_from([[3], [2, 3]]))

    def build(b: Builder, x):
        columns = b.call(aten.im2col.default, x, kernel, dilation, padding, stride)
        return columns, b.call(aten.col2im.default, columns, size, kernel, dilation, padding, stride)

    return [torch.randn(*lead, *size)], build


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(st.lists(windows(), min_size=8, max_size=8))
def test_windows(target, cases):
    check(together(cases), rtol=1e-5, atol=1e-5, target=target)


def test_pads_grids_and_shuffles():
    x, theta = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 2, 3)

    def build(b, x, theta, volume_theta):
        return (b.call(aten.reflection_pad3d.default, x, [1, 2, 3, 0, 2, 3]),
                b.call(aten.replication_pad3d.default, x, [1, 2, 0, 4, 5, 1]),
                b.call(aten.roll.default, x, [7]), b.call(aten.repeat_interleave.self_int, x, 2),
                b.call(aten.tril.default, x, 1), b.call(aten.triu.default, x, -1), b.call(aten.glu.default, theta, 0),
                *(b.call(aten.affine_grid_generator.default, theta, [2, 1, 3, 5], a) for a in (False, True)),
                b.call(aten.affine_grid_generator.default, volume_theta, [2, 1, 3, 1, 5], False))  # fmt: skip

    check(together([([x, theta, torch.randn(2, 3, 4)], build)]), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def deform():
    """torchvision's operator under its own name, defined by the wild networks where the package is not there."""
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "wild"))
    import networks_align  # noqa: F401

    return torch.ops.torchvision.deform_conv2d.default


@st.composite
def deformed(draw):
    groups, shifts = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    c, o = 2 * draw(st.integers(1, 3)), groups * draw(st.integers(1, 5))
    kernel, stride, dilation = ([draw(st.integers(1, 3)) for _ in range(2)] for _ in range(3))
    padding = [draw(st.integers(0, 2)) for _ in range(2)]
    size = [draw(st.integers((k - 1) * d + 2, 9)) for k, d in zip(kernel, dilation, strict=True)]
    out = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    taps = kernel[0] * kernel[1]
    masked = draw(st.booleans())
    tensors = [torch.randn(2, c, *size), torch.randn(o, c // groups, *kernel),
               torch.randn(2, 2 * shifts * taps, *out) * 2,
               torch.rand(2, shifts * taps, *out) if masked else torch.zeros(2, 1), torch.randn(o)]  # fmt: skip
    return tensors, [*stride, *padding, *dilation, groups, shifts, masked]


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(cases=st.lists(deformed(), min_size=5, max_size=5))
def test_deformable_convolution(target, cases, deform):
    program = together([(t, lambda b, *xs, a=a: b.call(deform, *xs, *a)) for t, a in cases])
    check(program, rtol=1e-4, atol=1e-4, target=target)


def test_stripes_of_a_deformable_convolution(deform, monkeypatch):
    """Made in pieces it is the same."""
    x, w = torch.randn(1, 4, 11, 9), torch.randn(5, 4, 3, 3)
    offset, mask, bias = torch.randn(1, 18, 11, 9), torch.rand(1, 9, 11, 9), torch.randn(5)
    monkeypatch.setattr(sampling, "STRIPE_BYTES", 4 * 4 * 9 * 9 * 4)
    case = lambda b, *xs: b.call(deform, *xs, 1, 1, 1, 1, 1, 1, 1, 1, True)  # noqa: E731
    exe = check(together([([x, w, offset, mask, bias], case)]), rtol=1e-4, atol=1e-4)
    assert sum(c.kernel == "vqc_deform_columns_f32" for c in exe.model.model.lowered.calls) == 3

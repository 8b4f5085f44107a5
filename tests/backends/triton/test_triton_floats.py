"""Float layers in the interpreter, bit for bit against the reference operators."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401  registers vqc::
from vqc.backends.triton import floats
from vqc.backends.triton.epilogue import Epilogue, Step

CPU = torch.device("cpu")
vops = torch.ops.vqc
FEW = settings(max_examples=9, deadline=None, derandomize=True)
SIZE, CHANNELS = st.integers(1, 9), st.sampled_from((1, 3, 33))


def picture(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(SIZE, SIZE, SIZE, SIZE, CHANNELS, st.booleans(), st.sampled_from((None, 2.0, 1.7)), st.integers(0, 999))
@FEW
def test_resize(h, w, ho, wo, c, align, scale, seed):
    x = picture(seed, 2, c, h, w)
    call = floats.resize(x.shape, (ho, wo), align, (scale, scale), Epilogue((Step("relu"),)), CPU)
    assert torch.equal(call(x).value, vops.resize_bilinear(x, ho, wo, align, scale, scale).relu())


@pytest.mark.parametrize("border", [True, False])
@given(SIZE, SIZE, SIZE, SIZE, CHANNELS, st.booleans(), st.integers(0, 999))
@FEW
def test_warp(border, h, w, ho, wo, c, align, seed):
    x, grid = picture(seed, 2, c, h, w), picture(seed + 1, 2, ho, wo, 2)
    call = floats.grid_sample(x.shape, (ho, wo), border, align, Epilogue(), CPU)
    wanted = vops.grid_sample(x, grid, "border" if border else "zeros", align)
    assert torch.equal(call(x, [grid]).value, wanted)


@given(st.integers(3, 11), st.integers(4, 9), CHANNELS, st.tuples(st.integers(1, 3), st.integers(1, 3)),
       st.tuples(st.integers(1, 3), st.integers(1, 2)), st.booleans(), st.booleans(), st.integers(0, 999))  # fmt: skip
@FEW
def test_averages(h, w, c, kernel, stride, ceil, count_pad, seed):
    x, pad = picture(seed, 2, c, h, w), [kernel[0] // 2, kernel[1] // 2]
    wanted = vops.avg_pool2d(x, list(kernel), list(stride), pad, ceil, count_pad)
    call = floats.average(x.shape, wanted.shape[2:], kernel, stride, pad, ceil, count_pad, Epilogue(), CPU)
    assert torch.equal(call(x).value, wanted)


@given(SIZE, SIZE, CHANNELS, st.integers(0, 999))
@FEW
def test_means(h, w, c, seed):
    x = picture(seed, 2, c, h, w)
    assert torch.equal(floats.Mean()(x).value, vops.mean_hw(x))


@given(st.sampled_from((1, 2)), st.sampled_from((1, 5)), st.sampled_from((3, 9)), st.integers(1, 2), st.integers(1, 2),
       st.booleans(), st.integers(0, 999))  # fmt: skip
@FEW
def test_ordered_convolutions(groups, c, o, stride, dilation, biased, seed):
    x, w = picture(seed, 2, c * groups, 7, 8), picture(seed + 1, o * groups, c, 3, 2)
    bias = picture(seed + 2, o * groups) if biased else None
    wanted = vops.conv2d(x, w, bias, [stride, 1], [2, 1], [dilation, 1], groups)
    call = floats.conv(x.shape, wanted.shape[2:], w, bias, [stride, 1], [2, 1], [dilation, 1], groups, Epilogue(), CPU)
    assert torch.equal(call(x).value, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_channels(dtype):
    a, b = (torch.randint(0, 256, (2, c, 3, 5)).to(dtype) for c in (7, 40))
    (both,) = floats.Channels([(0, 0, 7, 0, 0), (1, 0, 40, 0, 7)], [47])([a, b])
    assert torch.equal(both, torch.cat([a, b], 1))
    some, rest = floats.Channels([(0, 2, 30, 0, 0), (0, 32, 15, 1, 0)], [30, 15])([both])
    assert torch.equal(some, both[:, 2:32]) and torch.equal(rest, both[:, 32:])


@given(SIZE, SIZE, st.integers(0, 8), st.integers(0, 8), st.sampled_from((torch.float32, torch.int8)))
@FEW
def test_crops(h, w, top, left, dtype):
    x = torch.randint(-128, 128, (2, 5, h + top + 1, w + left), dtype=dtype)
    (made,) = floats.Channels([(0, 0, 5, 0, 0)], [5], None, (top, left, h, w))([x])
    assert torch.equal(made, x[:, :, top : top + h, left : left + w])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pictures_of_half_the_bits(dtype):
    """They are read as floats, and rounded once, ties to even, when they are stored: NaN, halves and all."""
    x = torch.randn(2, 5, 4, 6) * 10 ** (torch.rand(2, 5, 4, 6) * 8 - 5)
    x[0, 0, 0] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, float("nan"), float("inf"), -0.0, 1.9999999])
    x[0, 1, 0] = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 3e38, -3.39e38, 1e-40, 6e-8])
    y = x.to(dtype).contiguous(memory_format=torch.channels_last)
    made = floats.average(x.shape, (4, 6), [1, 1], [1, 1], [0, 0], False, True, Epilogue(dtype=dtype), CPU)(y).value
    assert made.dtype == dtype
    torch.testing.assert_close(made, y, rtol=0, atol=0, equal_nan=True)
    (both,) = floats.Channels([(0, 0, 5, 0, 0), (1, 0, 5, 0, 5)], [10], [dtype])([x, y])
    torch.testing.assert_close(both, torch.cat([y, y], 1), rtol=0, atol=0, equal_nan=True)
    step = Epilogue((Step("mul", "full", 0),), dtype=dtype)
    wide = floats.resize(x.shape, (7, 9), False, (None, None), step, CPU)
    gate = torch.rand(2, 5, 7, 9).to(dtype)
    wanted = (vops.resize_bilinear(y.float(), 7, 9, False, None, None) * gate).to(dtype)
    torch.testing.assert_close(wide(y, [gate]).value, wanted, rtol=0, atol=0, equal_nan=True)

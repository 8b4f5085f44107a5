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

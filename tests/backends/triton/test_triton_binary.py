"""The binary convolution kernels in the interpreter, bit for bit against the reference, both ways of summing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401  registers vqc::
from vqc.backends.triton import masks, packing
from vqc.backends.triton.binary import WAYS, BinaryConvolution, choose
from vqc.backends.triton.convolution import Geometry
from vqc.backends.triton.epilogue import Epilogue
from vqc.ops._common import conv_size

CPU = torch.device("cpu")
vops = torch.ops.vqc
FEW = settings(max_examples=9, deadline=None, derandomize=True)


def signs(g, *shape):
    return (2 * torch.randint(0, 2, shape, generator=g) - 1).to(torch.int8)


def packed(x):
    """s8 +1 and -1 [N,C,H,W] as words."""
    return packing.words(x.permute(0, 2, 3, 1) > 0)


@st.composite
def layers(draw):
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride, dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3))), draw(st.tuples(*[st.integers(1, 2)] * 2))
    pad = draw(st.tuples(st.integers(0, 2), st.integers(0, 3)))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * pad[i]) for i in (0, 1)]
    size = [draw(st.integers(least[i], least[i] + 8)) for i in (0, 1)]
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    n, c, o = (
        draw(st.integers(1, 2)),
        draw(st.sampled_from((1, 31, 32, 33, 64, 100))),
        draw(st.sampled_from((1, 7, 33))),
    )
    x, w = signs(g, n, c, *size), signs(g, o, c, *kernel)
    scale, bias = torch.rand(o, generator=g), torch.randn(o, generator=g) if draw(st.booleans()) else None
    out = tuple(conv_size(size[i], kernel[i], stride[i], pad[i], dilation[i]) for i in (0, 1))
    where = Geometry(tuple(x.shape), out, tuple(stride), tuple(pad), tuple(dilation), 1)
    return where, x, w, scale, bias, g


def reference(where, x, w, scale, bias):
    return vops.bconv2d(x, w, scale, bias, list(where.stride), list(where.pad), list(where.dilation))


@pytest.mark.parametrize("way", WAYS)
@given(layers())
@FEW
def test_float_results_equal_the_reference(way, case):
    where, x, w, scale, bias, _ = case
    call = BinaryConvolution(where, w, scale, bias, Epilogue(), CPU, way=way)
    assert call.kernel == f"bconv_{way}"
    assert torch.equal(call(packed(x)).value, reference(where, x, w, scale, bias))


@pytest.mark.parametrize("way", WAYS)
@given(layers(), st.sampled_from((0.0, 0.05, 0.5)), st.booleans())
@FEW
def test_masked_and_packed_again(way, case, density, each):
    """Under a mask, with the next layer's signs as the only result."""
    where, x, w, scale, bias, g = case
    o = w.shape[0]
    mask = torch.rand(x.shape[0], 1, *where.out, generator=g) < density
    tau = torch.randn(o if each else 1, generator=g) * 0.5
    call = BinaryConvolution(where, w, scale, bias, Epilogue(value=False, signs=tau), CPU, masked=True, way=way)
    plain, listed = masks.find(mask)
    made = call(packed(x), (), plain, listed)
    y = torch.where(mask, reference(where, x, w, scale, bias), torch.zeros(()))
    assert made.value is None
    assert torch.equal(packing.unpacked(made.signs, o), vops.binarize(y, tau))
    assert torch.equal(made.signs, packed(vops.binarize(y, tau)))  # channels that do not exist are 0


def test_words_and_signs_are_each_other():
    g = torch.Generator().manual_seed(2)
    for c in (1, 31, 32, 33, 96):
        x = signs(g, 2, c, 3, 4)
        assert torch.equal(packing.unpacked(packed(x), c), x)


def test_the_way_is_the_cheaper_one():
    assert choose(outputs=64, channels=64, taps=9, positions=9216, masked=False) == "dot"
    assert choose(outputs=128, channels=1024, taps=1, positions=100, masked=False) == "dot"
    assert choose(outputs=1, channels=32, taps=9, positions=9216, masked=False) == "dot"
    assert choose(outputs=1, channels=96, taps=9, positions=9216, masked=False) == "dot"

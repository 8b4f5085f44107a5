"""Products of attention and layers of 4-bit weights beside float16, against plain integer arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.backends.triton.convolution import Geometry
from vqc.backends.triton.epilogue import Epilogue, Step
from vqc.backends.triton.products import ConvolutionW4A16, matmul_i8, pack_levels
from vqc.ops._common import conv_size

CPU = torch.device("cpu")
FEW = settings(max_examples=12, deadline=None, derandomize=True)


def judged(a, b, rows, columns, steps, frames):
    """The meaning, in whole numbers and one rounding after the other."""
    z, m, k = a.shape
    parts = torch.einsum("zmfk,znfk->fzmn", *(t.long().reshape(z, -1, frames, k // frames) for t in (a, b)))
    if steps is None:
        y = parts.sum(0).float()
    else:
        y = torch.zeros(parts.shape[1:])
        for f in range(frames):
            y = y + parts[f].float() * steps[:, f].view(z, 1, 1)
    y = y * rows.repeat_interleave(m // rows.shape[1], 1)[:, :, None]
    return y * columns.repeat_interleave(b.shape[1] // columns.shape[1], 1)[:, None, :]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 40), st.integers(1, 9),
       st.integers(1, 9), st.booleans(), st.sampled_from(("s8", "u8", "u8t", "s8t", "w4", "a4w4", "u8w4")),
       st.integers(0, 2**20))  # fmt: skip
@FEW
def test_products_with_scales_of_frames(z, frames, row_frames, size, per_row, lines, split, kind, seed):
    g = torch.Generator().manual_seed(seed)
    m, n, k = row_frames * per_row, 2 * lines, frames * size
    low, high = (0, 256) if kind.startswith("u8") else (-8, 8) if kind.startswith("a4") else (-128, 128)
    a = torch.randint(low, high, (z, m, k), generator=g).to(torch.uint8 if low == 0 else torch.int8)
    reach = 8 if "w4" in kind else 128
    b = torch.randint(-reach, reach, (z, n, k), generator=g).to(torch.int8)
    rows, columns = (torch.rand(z, f, generator=g) * 1e-2 for f in (row_frames, 2))
    steps = torch.rand(z, frames, generator=g) if split else None
    wanted = judged(a, b, rows, columns, steps, frames)
    given_a = pack_levels(a, frames) if kind.startswith("a4") else a
    given_b = pack_levels(b, frames) if "w4" in kind else b.mT.contiguous() if kind.endswith("t") else b
    bits = 4 if kind.startswith("a4") else 8, 4 if "w4" in kind else 8
    made = matmul_i8(given_a, given_b, rows, columns, steps, k, frames, kind.endswith("t"), *bits)
    assert torch.equal(made, wanted)


def test_four_bits_take_half_the_bytes():
    x = torch.randint(-8, 8, (2, 5, 128)).to(torch.int8)
    assert pack_levels(x, 2).numel() * 2 == x.numel()
    with pytest.raises(ValueError, match="do not fit 4 bits"):
        pack_levels(torch.full((1, 1, 4), 8, dtype=torch.int8))


def test_what_does_not_fit_is_refused():
    a, b = torch.zeros(1, 4, 6, dtype=torch.int8), torch.zeros(1, 3, 6, dtype=torch.int8)
    one = torch.ones(1, 1)
    assert matmul_i8(a, b, one, one, None, 6, 1, False).shape == (1, 4, 3)
    for bad, message in (
        ((a, b[:, :, :5], one, one, None, 6, 1, False), "b has 5 taps a line, not 6"),
        ((a, b, torch.ones(1, 3), one, None, 6, 1, False), "rows is"),
        ((a, b, one, one, torch.ones(1, 2), 6, 3, False), "steps is"),
        ((a, b, one, one, None, 6, 4, False), "6 taps in 4 frames"),
        ((a, b, one, one, None, 6, 1, False, 8, 4), "b has 6 bytes a line, not 32"),
        ((a, b, one, one, None, 6, 1, True, 8, 4), "4 not of a transposed b"),
    ):
        with pytest.raises(ValueError, match=message):
            matmul_i8(*bad)
    with pytest.raises(TypeError):
        matmul_i8(a.float(), b, one, one, None, 6, 1, False)
    wide = torch.zeros(1, 1, 2**16, dtype=torch.int8)
    with pytest.raises(ValueError, match="leave int32"):
        matmul_i8(wide, wide, one, one, None, 2**16, 1, False)


@given(st.sampled_from((1, 2)), st.sampled_from((3, 32, 64)), st.sampled_from((4, 17)), st.integers(1, 3),
       st.integers(1, 2), st.integers(1, 2), st.booleans(), st.integers(0, 2**20))  # fmt: skip
@FEW
def test_w4a16(groups, c, o, kernel, stride, dilation, biased, seed):
    """Pictures of whole numbers: every sum is exact in float32, whatever its order."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-8, 9, (2, groups * c, 6, 7), generator=g).half()
    w = torch.randint(-8, 8, (groups * o, c, kernel, kernel), generator=g).to(torch.int8)
    scale, bias = torch.rand(groups * o, generator=g), torch.randn(groups * o, generator=g) if biased else None
    pads, strides, dilations = (1, kernel // 2), (stride, 1), (1, dilation)
    out = [conv_size(x.shape[2 + i], kernel, strides[i], pads[i], dilations[i]) for i in (0, 1)]
    where = Geometry(tuple(x.shape), tuple(out), strides, pads, dilations, groups)
    call = ConvolutionW4A16(where, w, scale, bias, Epilogue((Step("relu"),)), CPU)
    sums = torch.nn.functional.conv2d(x.double(), w.double(), None, strides, pads, dilations, groups)
    wanted = sums.float() * scale.view(1, -1, 1, 1)
    wanted = wanted if bias is None else wanted + bias.view(1, -1, 1, 1)
    assert torch.equal(call(x).value, wanted.relu())
    again = torch.ops.vqc_triton.conv2d_w4a16(x, w, scale, bias, list(strides), list(pads), list(dilations), groups)
    assert torch.equal(again, wanted.half())


def test_w4a16_with_a_scale_for_parts_of_a_filter():
    g = torch.Generator().manual_seed(1)
    x, w = torch.randint(-8, 9, (1, 128, 1, 9), generator=g).half(), torch.randint(-8, 8, (20, 128, 1, 1), generator=g)
    scale = 2.0 ** torch.randint(-4, 3, (2, 20), generator=g)  # powers of two: sums of parts are exact, too
    where = Geometry((1, 128, 1, 9), (1, 9), (1, 1), (0, 0), (1, 1), 1)
    made = ConvolutionW4A16(where, w.to(torch.int8), scale, None, Epilogue(), CPU)(x)
    wanted = sum(torch.nn.functional.conv2d(x[:, i : i + 64].double(), w[:, i : i + 64].double())
                 * scale[i // 64].view(1, -1, 1, 1) for i in (0, 64))  # fmt: skip
    assert torch.equal(made.value, wanted.float())
    with pytest.raises(ValueError, match="no multiples of 64"):
        ConvolutionW4A16(where, w.to(torch.int8), torch.ones(4, 20), None, Epilogue(), CPU)


def test_fake_forms():
    a, b, one = (torch.empty(s, dtype=d, device="meta") for s, d in (
        ((2, 4, 6), torch.int8), ((2, 3, 6), torch.int8), ((2, 1), torch.float32)))  # fmt: skip
    assert matmul_i8(a, b, one, one, None, 6, 1, False).shape == (2, 4, 3)
    x, w = torch.empty(1, 4, 6, 6, dtype=torch.float16, device="meta"), torch.empty(5, 4, 3, 3, device="meta")
    assert torch.ops.vqc_triton.conv2d_w4a16(x, w, one, None, [2, 2], [1, 1], [1, 1], 1).shape == (1, 5, 3, 3)

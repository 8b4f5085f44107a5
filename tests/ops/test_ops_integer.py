"""The integer operators against loops, over shapes, borders, zero points and groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_oracles import integer_conv, requantized, run, same_bits

from vqc import ops

fast = settings(max_examples=30, deadline=None, derandomize=True)
SIGNED = {torch.uint8: (0, 256), torch.int8: (-128, 128), torch.int16: (-32768, 32768)}


def integers(rng, shape, dtype):
    low, high = SIGNED[dtype]
    return torch.from_numpy(rng.integers(low, high, shape)).to(dtype)


def floats(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def zeros(rng, channels, x_dtype):
    low, high = SIGNED[x_dtype]
    return torch.from_numpy(rng.integers(low, high, channels).astype(np.int32))


@st.composite
def convolutions(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    pair = lambda low, high: [draw(st.integers(low, high)), draw(st.integers(low, high))]  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_in, per_out = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel, dilation = pair(1, 3), pair(1, 2)
    stride, padding = pair(1, 3), pair(0, 2)
    size = [draw(st.integers(max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]), 7)) for i in (0, 1)]
    x_dtype = draw(st.sampled_from([torch.uint8, torch.int8]))
    channels = groups * per_in
    x = integers(rng, (draw(st.integers(1, 2)), channels, *size), x_dtype)
    bias = floats(rng, groups * per_out) if draw(st.booleans()) else None
    zero = zeros(rng, channels if draw(st.booleans()) else 1, x_dtype)
    dims = (groups, per_in, per_out, kernel)
    return rng, x, dims, bias, zero, stride, padding, dilation, draw(st.sampled_from([torch.int8, torch.int16]))


@fast
@given(convolutions())
def test_qconv2d_equals_loops(case):
    rng, x, (groups, per_in, per_out, kernel), bias, zero, stride, padding, dilation, dtype = case
    w = integers(rng, (groups * per_out, per_in, *kernel), dtype)
    scale = floats(rng, groups * per_out)
    want = integer_conv(x.numpy(), w.numpy(), scale.numpy(), None if bias is None else bias.numpy(), zero.numpy(),
                        stride, padding, dilation, groups)  # fmt: skip
    args = (x, w, scale, bias, zero, stride, padding, dilation, groups)
    same_bits(run(ops.qconv2d, *args), want)
    for activation, inv_scale, zp in (("none", 0.003, 128), ("relu", 0.01, 0)):
        got = run(ops.qconv2d_requantize, *args, activation, inv_scale, zp)
        same_bits(got, requantized(want, activation, inv_scale, zp))


@fast
@given(convolutions(), st.tuples(st.integers(0, 1), st.integers(0, 1)))
def test_qconv_transpose2d_equals_loops(case, extra):
    rng, x, (groups, per_in, per_out, kernel), bias, zero, stride, padding, dilation, dtype = case
    extra = [min(extra[i], max(stride[i], dilation[i]) - 1) for i in (0, 1)]
    size = [(x.shape[2 + i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 + extra[i] for i in (0, 1)]
    padding = [min(padding[i], (size[i] - 1) // 2) for i in (0, 1)]
    w = integers(rng, (groups * per_in, per_out, *kernel), dtype)
    scale = floats(rng, groups * per_out)
    want = integer_conv(x.numpy(), w.numpy(), scale.numpy(), None if bias is None else bias.numpy(), zero.numpy(),
                        stride, padding, dilation, groups, extra)  # fmt: skip
    args = (x, w, scale, bias, zero, stride, padding, extra, groups, dilation)
    same_bits(run(ops.qconv_transpose2d, *args), want)
    got = run(ops.qconv_transpose2d_requantize, *args, "relu", 0.02, 3)
    same_bits(got, requantized(want, "relu", 0.02, 3))


@fast
@given(st.integers(0, 2**16), st.integers(1, 40), st.integers(1, 5), st.sampled_from([(), (3,), (2, 3)]), st.booleans())
def test_qlinear_equals_integer_product(seed, k, o, batch, signed):
    rng = np.random.default_rng(seed)
    dtype = torch.int8 if signed else torch.uint8
    x, w, scale, zero = (
        integers(rng, (*batch, k), dtype),
        integers(rng, (o, k), torch.int8),
        floats(rng, o),
        zeros(rng, 1, dtype),
    )
    bias = floats(rng, o) if seed % 2 else None
    acc = (x.numpy().astype(np.int64) - zero.numpy()) @ w.numpy().astype(np.int64).T
    want = acc.astype(np.float32) * scale.numpy()
    want = want if bias is None else want + bias.numpy()
    same_bits(run(ops.qlinear, x, w, scale, bias, zero), want)
    got = run(ops.qlinear_requantize, x, w, scale, bias, zero, "none", 0.01, 100)
    same_bits(got, requantized(want, "none", 0.01, 100))


def test_padding_is_a_true_zero():
    """A picture full of the zero point gives 0 everywhere, at borders too, for one zero and for one per channel."""
    w = torch.full((1, 2, 3, 3), 7, dtype=torch.int8)
    for zero in ([5], [5, 200]):
        x = torch.tensor(zero, dtype=torch.uint8).view(1, -1, 1, 1).expand(1, 2, 4, 4)
        y = ops.qconv2d(x, w, torch.ones(1), None, torch.tensor(zero, dtype=torch.int32), [1, 1], [1, 1], [1, 1], 1)
        assert torch.equal(y, torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
@pytest.mark.parametrize("channels", [8, 512])
def test_sums_past_float32_stay_exact(dtype, channels):
    """All signs alike: 3x3 sums far over 2^24 must be rounded once, never on the way."""
    x = torch.full((1, channels, 3, 3), 255, dtype=torch.uint8)
    w = torch.full((2, channels, 3, 3), 127 if dtype == torch.int8 else 1819, dtype=dtype)
    w[1, 0, 0, 0] -= 1
    one = torch.ones(2)
    y = ops.qconv2d(x, w, one, None, torch.zeros(1, dtype=torch.int32), [1, 1], [0, 0], [1, 1], 1)
    acc = (w.long() * 255).sum((1, 2, 3))
    assert torch.equal(y.flatten(), acc.to(torch.float32)) and int(acc[0] - acc[1]) == 255


def test_a_sum_outside_int32_is_refused():
    x = torch.full((1, 512, 3, 3), 255, dtype=torch.uint8)
    w = torch.full((1, 512, 3, 3), 32767, dtype=torch.int16)
    with pytest.raises(ValueError, match="vqc::qconv2d: a sum leaves int32"):
        ops.qconv2d(x, w, torch.ones(1), None, torch.zeros(1, dtype=torch.int32), [1, 1], [0, 0], [1, 1], 1)


def test_the_users_precision_settings_do_not_reach_in():
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 32, 12, 12), torch.uint8), integers(rng, (8, 32, 3, 3), torch.int8)
    args = (x, w, floats(rng, 8), floats(rng, 8), zeros(rng, 1, torch.uint8), [1, 1], [1, 1], [1, 1], 1)
    want = ops.qconv2d(*args)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = ops.qconv2d(*args)
    finally:
        torch.set_float32_matmul_precision(before)
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_requantize_ties_go_to_even_and_saturate():
    acc = [-300, -3, -1, 0, 1, 3, 5, 7, 600]  # halves of odd numbers are ties
    x = torch.tensor(acc, dtype=torch.int64).clamp(-128, 127).to(torch.int8).view(1, 1, 1, -1)
    x[..., 0], x[..., -1] = -128, 127
    w = torch.full((1, 1, 1, 1), 5, dtype=torch.int8)
    tail = (torch.zeros(1, dtype=torch.int32), [1, 1], [0, 0], [1, 1], 1)
    half = ops.qconv2d_requantize(x[..., 1:-1], torch.ones_like(w), torch.ones(1), None, *tail, "none", 0.5, 10)
    assert half.flatten().tolist() == [8, 10, 10, 10, 12, 12, 14]  # -1.5 -0.5 0 0.5 1.5 2.5 3.5
    wide = ops.qconv2d_requantize(x, w, torch.ones(1), None, *tail, "none", 1.0, 128)
    assert wide.flatten()[0] == 0 and wide.flatten()[-1] == 255
    relu = ops.qconv2d_requantize(x, w, torch.ones(1), None, *tail, "relu", 1.0, 7)
    assert relu.flatten()[:4].tolist() == [7, 7, 7, 7]


def test_requantize_agrees_with_the_quantize_operator():
    """A fused result is the same integer as the float result through quantize_per_tensor with that scale."""
    rng = np.random.default_rng(3)
    x, w = integers(rng, (1, 4, 9, 9), torch.uint8), integers(rng, (5, 4, 3, 3), torch.int8)
    args = (x, w, floats(rng, 5).abs() * 1e-3, floats(rng, 5), zeros(rng, 4, torch.uint8), [1, 1], [1, 1], [1, 1], 1)
    for scale in (0.0123, 1 / 3, 0.1):
        want = torch.ops.quantized_decomposed.quantize_per_tensor(ops.qconv2d(*args), scale, 77, 0, 255, torch.uint8)
        assert torch.equal(ops.qconv2d_requantize(*args, "none", 1.0 / scale, 77), want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_lut_is_indexing(dtype):
    rng = np.random.default_rng(1)
    table = integers(rng, (256,), torch.uint8) if dtype == torch.uint8 else floats(rng, 256)
    x = integers(rng, (2, 3, 5, 7), torch.uint8)
    same_bits(run(ops.lut, x, table), table.numpy()[x.numpy()])
    same_bits(run(ops.lut, x.to(memory_format=torch.channels_last), table), table.numpy()[x.numpy()])


def good_conv():
    return {
        "x": torch.zeros(1, 4, 5, 5, dtype=torch.uint8), "weight": torch.zeros(2, 4, 3, 3, dtype=torch.int8),
        "scale": torch.ones(2), "bias": None, "x_zero": torch.zeros(1, dtype=torch.int32), "stride": [1, 1],
        "padding": [1, 1], "dilation": [1, 1], "groups": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": torch.zeros(1, 4, 5, 5)}, TypeError, "x is float32, it must be uint8 or int8"),
        ({"weight": torch.zeros(2, 4, 3, 3)}, TypeError, "weight is float32"),
        ({"weight": torch.zeros(2, 3, 3, 3, dtype=torch.int8)}, ValueError, "does not fit 4 channels in 1 groups"),
        ({"scale": torch.ones(3)}, ValueError, r"scale is \[3\], not \[2\]"),
        ({"bias": torch.ones(1)}, ValueError, r"bias is \[1\], not \[2\]"),
        ({"x_zero": torch.zeros(2, dtype=torch.int32)}, ValueError, "it must hold 1 or 4 values"),
        ({"x_zero": torch.zeros(1)}, TypeError, "x_zero is float32"),
        ({"stride": [0, 1]}, ValueError, "two integers of at least 1"),
        ({"padding": [0, 0], "dilation": [3, 3]}, ValueError, "the kernel is larger than the padded picture"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(change, error, text, device):
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in (good_conv() | change).values()]
    with pytest.raises(error, match=text):
        ops.qconv2d(*args)


def test_wrong_requantization_is_named():
    args = tuple(good_conv().values())
    for tail, text in (
        (("gelu", 1.0, 0), "activation is 'gelu'"),
        (("none", 0.0, 0), "inv_scale"),
        (("none", 1.0, 256), "0..255"),
    ):
        with pytest.raises(ValueError, match=text):
            ops.qconv2d_requantize(*args, *tail)
    with pytest.raises(ValueError, match=r"table is \[255\]"):
        ops.lut(torch.zeros(1, dtype=torch.uint8), torch.zeros(255))
    with pytest.raises(ValueError, match="does not fit x"):
        ops.qlinear(
            torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 4, dtype=torch.int8), *tuple(good_conv().values())[2:5]
        )
    with pytest.raises(ValueError, match="output_padding"):
        ops.qconv_transpose2d(
            args[0], torch.zeros(4, 2, 3, 3, dtype=torch.int8), *args[2:5], [1, 1], [1, 1], [1, 0], 1, [1, 1]
        )

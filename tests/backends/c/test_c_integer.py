"""Integer linear layers, tables and quantization in C, bit for bit."""

from __future__ import annotations

import pytest
import torch
from c_helpers import In, aten, chain, check, single
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401

vops, qd = torch.ops.vqc, torch.ops.quantized_decomposed


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(1, 70), st.integers(1, 20), st.booleans(), st.booleans(), st.integers(0, 99))
def test_linear(rows, k, o, signed, biased, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (2, rows, k), generator=g).to(torch.int8)
    x = x if signed else (x.to(torch.int32) + 128).to(torch.uint8)
    w = torch.randint(-128, 128, (o, k), generator=g).to(torch.int8)
    bias = torch.randn(o, generator=g) if biased else None
    args = (w, torch.rand(o, generator=g) * 1e-3, bias, torch.tensor([7 + seed % 3], dtype=torch.int32))

    def build(b, x):
        return (b.call(vops.qlinear.default, x, *args),
                b.call(vops.qlinear_requantize.default, x, *args, "relu", 31.7, 9),
                b.call(vops.qlinear_requantize.default, x, *args, "none", 31.7, 128))  # fmt: skip

    check(chain(build, x), exact=True)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32], ids=str)
def test_tables(kind):
    table = torch.randn(256) if kind == torch.float32 else torch.randint(0, 256, (256,), dtype=torch.uint8)
    check(single(vops.lut.default, In(torch.randint(0, 256, (2, 3, 50, 7), dtype=torch.uint8)), table), exact=True)


def test_quantize_and_dequantize_per_tensor():
    x = torch.cat([torch.randn(4, 700) * 30, torch.arange(-350, 350)[None] / 2.0])

    def build(b, x):
        q = b.call(qd.quantize_per_tensor.default, x, 0.1, 13, 0, 255, torch.uint8)
        s = b.call(qd.quantize_per_tensor.default, x, 0.3, -5, -128, 127, torch.int8)
        h = b.call(qd.quantize_per_tensor.default, x, 0.001, 0, -32768, 32767, torch.int16)
        halves = b.call(qd.quantize_per_tensor.default, x, 1.0, 0, -128, 127, torch.int8)
        return (q, s, h, halves, b.call(qd.dequantize_per_tensor.default, q, 0.1, 13, 0, 255, torch.uint8),
                b.call(qd.dequantize_per_tensor.default, s, 0.3, -5, -128, 127, torch.int8))  # fmt: skip

    check(chain(build, x), exact=True)


def test_quantize_and_dequantize_per_channel():
    x = torch.randn(3, 5, 7, 9) * 10
    scales, zeros = torch.rand(5) * 0.1 + 0.01, torch.randint(-20, 20, (5,))

    def build(b, x):
        q = b.call(qd.quantize_per_channel.default, x, scales, zeros, 1, -128, 127, torch.int8)
        return q, b.call(qd.dequantize_per_channel.default, q, scales, zeros, 1, -128, 127, torch.int8)

    check(chain(build, x), exact=True)


def test_integer_residual_is_one_kernel():
    def build(b, x, y):
        total = b.call(aten.add.Tensor, b.call(qd.dequantize_per_tensor.default, x, 0.11, 3, 0, 255, torch.uint8),
                       b.call(qd.dequantize_per_tensor.default, y, 0.07, 100, 0, 255, torch.uint8))  # fmt: skip
        return b.call(qd.quantize_per_tensor.default, b.call(aten.relu.default, total), 0.13, 0, 0, 255, torch.uint8)

    x, y = (torch.randint(0, 256, (1, 4, 20, 30), dtype=torch.uint8) for _ in range(2))
    exe = check(chain(build, x, y), exact=True)
    assert len(exe.model.model.lowered.calls) == 1


def test_fake_quantization_in_floats_is_one_kernel_and_exact():
    def build(b, x):
        q = b.call(qd.quantize_per_tensor.default, x, 0.05, 100, 0, 255, torch.uint8)
        return b.call(qd.dequantize_per_tensor.default, q, 0.05, 100, 0, 255, torch.uint8)

    exe = check(chain(build, torch.randn(2, 3, 40, 9) * 5), exact=True)
    assert len(exe.model.model.lowered.calls) == 1


def test_integer_layers_in_a_row():
    g = torch.Generator().manual_seed(0)

    def conv(b, x, c, o, act):
        w = torch.randint(-128, 128, (o, c, 3, 3), generator=g).to(torch.int8)
        return b.call(
            vops.qconv2d_requantize.default,
            x,
            w,
            torch.rand(o, generator=g) * 1e-3,
            torch.randn(o, generator=g),
            torch.tensor([12], dtype=torch.int32),
            [1, 1],
            [1, 1],
            [1, 1],
            1,
            act,
            9.0,
            12,
        )

    def build(b, x):
        q = b.call(qd.quantize_per_tensor.default, x, 1 / 255, 12, 0, 255, torch.uint8)
        one = conv(b, q, 3, 8, "relu")
        two = conv(b, one, 8, 8, "none")
        both = b.call(
            aten.cat.default, [one, b.call(vops.lut.default, two, torch.arange(255, -1, -1, dtype=torch.uint8))], 1
        )
        up = b.call(aten.upsample_nearest2d.default, both, [20, 24], None, None)
        small = b.call(aten.max_pool2d.default, up, [3, 3], [2, 2], [1, 1])
        return b.call(aten.pixel_shuffle.default, conv(b, small, 16, 12, "none"), 2), one, two

    check(chain(build, torch.rand(1, 3, 10, 12)), exact=True)


def test_requantization_rounds_ties_to_even():
    """Sums times 1/2: every second result lies between two integers."""
    x = torch.arange(-60, 68).to(torch.int8)
    one, half = torch.ones(1), torch.tensor([0], dtype=torch.int32)
    line = (torch.ones(1, 1, dtype=torch.int8), one, None, half)
    patch = (torch.ones(1, 1, 1, 1, dtype=torch.int8), one, None, half)

    def build(b, x):
        image = b.call(aten.reshape.default, x, [1, 1, 1, -1])
        return (
            b.call(vops.qlinear_requantize.default, b.call(aten.reshape.default, x, [-1, 1]), *line, "none", 0.5, 100),
            b.call(vops.qconv2d_requantize.default, image, *patch, [1, 1], [0, 0], [1, 1], 1, "none", 0.5, 100),
        )

    exe = check(chain(build, x), exact=True)
    assert exe.trace([x])[1].flatten()[:5].tolist() == [70, 70, 71, 72, 72]

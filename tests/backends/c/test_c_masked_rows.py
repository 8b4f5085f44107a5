"""Masked binary convolutions with what follows them in one kernel: the reference's bits, signs of zeros included."""

from __future__ import annotations

import pytest
import torch
from c_exports import qemu, self_test
from c_helpers import aten, chain, compiled
from test_c_masked import MASKS, mask_of

from vqc.backends.c import CBackend
from vqc.backends.c.cross import build_export
from vqc.program import evaluate

vops = torch.ops.vqc
KERNEL = "vqc_masked_bconv2d_rows"


def signs(g, *shape):
    return (2 * torch.randint(0, 2, shape, generator=g) - 1).to(torch.int8)


def same_bits(program, target="native", **options):
    """Assert that C gives the reference's bits, -0 and +0 told apart; the compiled program."""
    exe = compiled(program, target, **options)
    for want, got in zip(evaluate(program, program.example), exe.trace(program.example, []), strict=True):
        number = ~want.isnan()
        assert torch.equal(number, ~got.isnan()) and torch.equal(want[number], got[number])
        assert torch.equal(torch.signbit(want[number]), torch.signbit(got[number]))
    return exe


def calls(exe, kernel=KERNEL):
    return [c for c in exe.model.model.lowered.calls if c.kernel == kernel]


def conv(b, g, x, channels, mask=None, kernel=3, bias=True):
    """A binary convolution that keeps the size, masked or not."""
    w = signs(g, channels, x.meta["val"].shape[1], kernel, kernel)
    head = (w, torch.rand(channels, generator=g), torch.randn(channels, generator=g) if bias else None)
    tail = ([1, 1], [kernel // 2] * 2, [1, 1])
    if mask is None:
        return b.call(vops.bconv2d.default, x, *head, *tail)
    return b.call(vops.masked_bconv2d.default, x, *head, mask, *tail)


def shift(g, channels):
    return torch.randn(channels, 1, 1, generator=g)


def unit(b, g, x, u, mask, channels, last=True):
    """The unit of BiVM's decoder: u * phi(masked 3x3) + phi(1x1)."""
    y, d = conv(b, g, x, channels, mask), conv(b, g, x, channels, kernel=1)
    y = b.call(aten.prelu.default, b.call(aten.add.Tensor, y, shift(g, channels)), torch.rand(channels, generator=g))
    d = b.call(aten.prelu.default, d, torch.rand(channels, generator=g))
    y = b.call(aten.add.Tensor, y, shift(g, channels))
    if last:
        d = b.call(aten.add.Tensor, d, shift(g, channels))
    return b.call(aten.add.Tensor, b.call(aten.mul.Tensor, y, u), d)


def fractions(mask, g):
    return mask * (0.1 + 0.9 * torch.rand(mask.shape, generator=g))


@pytest.mark.parametrize("target", ["native", "x86-64-v3", "portable"])
def test_the_decoder_unit_under_every_kind_of_mask(target):
    """Several bands; widths that are no multiple of a vector; 9, 18 and 27 words; 33 and 9 channels out."""
    g = torch.Generator().manual_seed(1)
    size = (41, 150) if target == "native" else (17, 83)
    masks = [mask_of(kind, (1, 1, *size), g) for kind in MASKS]

    def build(b, *inputs):
        xs, us = inputs[:2], inputs[2:]
        units = []
        for i, u in enumerate(us):
            mask = b.call(aten.ne.Scalar, u, 0.0)
            units.append(unit(b, g, xs[i % 2], u, mask, (33, 9)[i % 3 == 0], last=i % 2 == 0))
        return tuple(units)

    exe = same_bits(chain(build, signs(g, 1, 70, *size), signs(g, 1, 20, *size), *(fractions(m, g) for m in masks)),
                    target)  # fmt: skip
    assert len(calls(exe)) == len(MASKS)
    assert all(c.params.fields["pieces"] != "NULL" and c.inplace is not None for c in calls(exe))


CHAINS = {
    "a sum with a picture": lambda b, g, m, u, d: b.call(aten.add.Tensor, m, d),
    "prelu and a sum with a picture": lambda b, g, m, u, d: b.call(
        aten.add.Tensor, d, b.call(aten.prelu.default, m, torch.rand(12, generator=g))),
    "nothing is added": lambda b, g, m, u, d: b.call(aten.leaky_relu.default, m, 0.25),
    "not zero at zero": lambda b, g, m, u, d: b.call(
        aten.add.Tensor, b.call(vops.sigmoid.default, m), b.call(aten.abs.default, d)),
    "a product with another picture": lambda b, g, m, u, d: b.call(aten.mul.Tensor, m, d),
    "a factor that is infinite": lambda b, g, m, u, d: b.call(
        aten.add.Tensor, b.call(aten.abs.default, d),
        b.call(aten.mul.Tensor, b.call(aten.mul.Tensor, m, float("inf")), u)),
    "turned round": lambda b, g, m, u, d: b.call(
        aten.sub.Tensor, b.call(aten.abs.default, d), b.call(aten.mul.Tensor, u, b.call(aten.neg.default, m))),
    "the picture is read again": lambda b, g, m, u, d: b.call(
        aten.mul.Tensor, b.call(aten.add.Tensor, b.call(aten.mul.Tensor, m, u), b.call(aten.abs.default, d)), d),
    "a choice": lambda b, g, m, u, d: b.call(
        aten.where.self, b.call(aten.gt.Scalar, m, 0.5), b.call(aten.mul.Tensor, m, u), d),
}  # fmt: skip


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_chains_of_all_kinds_keep_their_bits(target):
    """What is added holds -0, which a zero of the masked side turns into +0 or not."""
    g = torch.Generator().manual_seed(2)
    size = (11, 37)
    mask = mask_of("noise", (2, 1, *size), g)
    d = torch.randn(2, 12, *size, generator=g)
    d = torch.where(torch.rand(d.shape, generator=g) < 0.5, torch.full((), -0.0), d)

    def build(b, x, u, d, given):
        made = b.call(aten.ne.Scalar, u, 0.0)
        return tuple(make(b, g, conv(b, g, x, 12, m, bias=bias), u, d)
                     for make in CHAINS.values() for m, bias in ((made, True), (given, False)))  # fmt: skip

    exe = same_bits(chain(build, signs(g, 2, 40, *size), fractions(mask, g), d, mask_of("blob", (2, 1, *size), g)),
                    target)  # fmt: skip
    assert len(calls(exe)) >= 2 * (len(CHAINS) - 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_masks_made_by_interpolation_and_threads(threads):
    """The mask of BiVM: above zero, of a bilinear picture of zeros and ones; two units, one after the other."""
    g = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 1, 6, 9, generator=g)

    def build(b, x, c):
        ones = b.call(aten._to_copy.default, b.call(aten.gt.Scalar, c, 0.6), dtype=torch.float32)
        u = b.call(vops.resize_bilinear.default, ones, 48, 72, False, None, None)
        mask = b.call(aten.gt.Scalar, u, 0.0)
        y = unit(b, g, x, u, mask, 40)
        return unit(b, g, b.call(vops.binarize.default, y, torch.zeros(1)), u, mask, 24)

    exe = same_bits(chain(build, signs(g, 2, 33, 48, 72), coarse), threads=threads)
    assert [c.params.fields["pieces"] == "NULL" for c in calls(exe)] == [False, False]


def proven(build, *inputs):
    """Whether the kernel may compute any position, for a program with one masked convolution."""
    (call,) = calls(same_bits(chain(build, *inputs)))
    return call.params.fields["pieces"] != "NULL"


def test_what_cannot_be_proven_is_not_assumed():
    g = torch.Generator().manual_seed(4)
    x, u = signs(g, 1, 8, 9, 40), torch.randn(1, 1, 9, 40, generator=g)
    d = torch.randn(1, 8, 9, 40, generator=g)

    def weighted(compare, *number, dense=lambda b, d: b.call(aten.abs.default, d), factor=1.0):
        def build(b, x, u, d):
            y = conv(b, g, x, 8, b.call(compare, u, *number))
            y = b.call(aten.mul.Tensor, b.call(aten.mul.Tensor, y, factor), u)
            return b.call(aten.add.Tensor, y, dense(b, d))

        return proven(build, x, u, d)

    assert weighted(aten.ne.Scalar, 0.0)
    assert not weighted(aten.gt.Scalar, 0.0)  # u may be below zero
    assert not weighted(aten.ne.Scalar, 0.5)
    assert not weighted(aten.ne.Scalar, 0.0, factor=float("inf"))
    assert not weighted(aten.ne.Scalar, 0.0, dense=lambda b, d: b.call(aten.relu.default, d))  # of -0 it is -0
    negative = (torch.tensor([-0.0]), torch.tensor([0.0]))
    assert not weighted(aten.ne.Scalar, 0.0, dense=lambda b, d: b.call(aten.add.Tensor, d, negative[0]))
    assert weighted(aten.ne.Scalar, 0.0, dense=lambda b, d: b.call(aten.add.Tensor, d, negative[1]))


def test_a_slope_below_zero_makes_minus_zeros():
    """prelu(+0) is -0 there: the dense branch's own values say whether the masked side's zero matters."""
    g = torch.Generator().manual_seed(5)
    x, u = signs(g, 1, 8, 9, 40), fractions(mask_of("noise", (1, 1, 9, 40), g), g)

    def with_slope(slope):
        def build(b, x, u):
            w = signs(g, 8, 8, 1, 1)
            d = b.call(vops.bconv2d.default, x, w, torch.ones(8), torch.zeros(8), [1, 1], [0, 0], [1, 1])
            d = b.call(aten.prelu.default, d, torch.full((8,), slope))
            y = conv(b, g, x, 8, b.call(aten.ne.Scalar, u, 0.0))
            return b.call(aten.add.Tensor, b.call(aten.mul.Tensor, y, u), d)

        return proven(build, x, u)

    assert with_slope(0.25)
    assert not with_slope(-0.25)


def test_integers_and_bits_after_it_are_made_from_its_result():
    g = torch.Generator().manual_seed(6)

    def build(b, x, u):
        y = unit(b, g, x, u, b.call(aten.ne.Scalar, u, 0.0), 16)
        q = b.call(torch.ops.quantized_decomposed.quantize_per_tensor.default, y, 0.05, 120, 0, 255, torch.uint8)
        return b.call(vops.binarize.default, y, torch.zeros(1)), q

    same_bits(chain(build, signs(g, 1, 16, 9, 40), fractions(mask_of("blob", (1, 1, 9, 40), g), g)))

    def alone(b, x, m):
        y = b.call(aten.leaky_relu.default, conv(b, g, x, 16, m), 0.5)
        return b.call(torch.ops.quantized_decomposed.quantize_per_tensor.default, y, 0.05, 120, 0, 255, torch.uint8)

    exe = same_bits(chain(alone, signs(g, 1, 16, 9, 40), mask_of("blob", (1, 1, 9, 40), g)))
    assert len(calls(exe)) == 1
    assert any("stores float32" in d.reason for d in exe.model.model.lowered.unfused)


@pytest.mark.parametrize("variant", ["neon", "i8mm"])
def test_arm_gives_the_same_signs(variant, tmp_path):
    """The self-test compares integers bit for bit: the results against thresholds at some of their own values."""
    g = torch.Generator().manual_seed(7)
    masks = [mask_of(kind, (1, 1, 9, 83), g) for kind in ("blob", "noise", "full", "rows")]

    def build(b, x, *us):
        made = [b.call(aten.ne.Scalar, u, 0.0) for u in us]
        ys = [unit(b, g, x, u, m, 17) for u, m in zip(us, made, strict=True)]
        ys.append(b.call(aten.leaky_relu.default, conv(b, g, x, 17, made[0]), 0.5))
        return tuple(b.call(vops.binarize.default, y, torch.full((1,), tau)) for y in ys for tau in (-1.5, 0.0, 2.5))

    program = chain(build, signs(g, 1, 40, 9, 83), *(fractions(m, g) for m in masks))
    out = CBackend().export(program, "aarch64-linux", tmp_path / "out", {})
    done = self_test(build_export(out, "aarch64-linux", variant)["small_test"], out, qemu("aarch64"), "-cpu", "max")
    assert done.returncode == 0 and f"small, {variant}: ok" in done.stdout, done.stdout + done.stderr

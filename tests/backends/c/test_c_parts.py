"""Concatenations and resizes that end in what a convolution reads: filled in part by part, to the bit."""

from __future__ import annotations

import pytest
import torch
from c_helpers import aten, chain, compiled
from c_random import same_results

import vqc.ops  # noqa: F401
from vqc.program import evaluate

vops, qd = torch.ops.vqc, torch.ops.quantized_decomposed

N, H, W = 2, 6, 10


class Weights:
    """Constants of this file's Programs, from one seed."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)

    def rand(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def levels(self, *shape):
        return torch.randint(0, 256, shape, generator=self.generator).to(torch.uint8)


class Parts:
    """The calls these tests are made of, on one Builder; `small`, `tiny`: sources to resize."""

    def __init__(self, b, w, x, y, small, dot, u, v):
        self.b, self.w, self.x, self.y, self.small, self.dot, self.u, self.v = b, w, x, y, small, dot, u, v

    def call(self, op, *args):
        return self.b.call(op, *args)

    def cat(self, *parts):
        return self.call(aten.cat.default, list(parts), 1)

    def resize(self, x, h=H, w=W, align=False, scale=(None, None)):
        return self.call(vops.resize_bilinear.default, x, h, w, align, *scale)

    def quantize(self, x, scale=0.03, zero=100):
        return self.call(qd.quantize_per_tensor.default, x, scale, zero, 0, 255, torch.uint8)

    def channels(self, x):
        c = x.meta["val"].shape[1]
        scales = torch.rand(c, generator=self.w.generator) * 0.1 + 0.01
        zeros = torch.randint(0, 200, (c,), generator=self.w.generator)
        return self.call(qd.quantize_per_channel.default, x, scales, zeros, 1, 0, 255, torch.uint8)

    def conv(self, x, o=5):
        c = x.meta["val"].shape[1]
        weight = torch.randint(-128, 128, (o, c, 3, 3), generator=self.w.generator).to(torch.int8)
        zero, ones = torch.tensor([77], dtype=torch.int32), [1, 1]
        scale = (torch.rand(o, generator=self.w.generator) + 0.1) * 1e-3
        return self.call(vops.qconv2d.default, x, weight, scale, None, zero, ones, ones, ones, 1)

    def slice(self, x, first, last, axis=1):
        return self.call(aten.slice.Tensor, x, axis, first, last, 1)


def several_parts(p):
    """Channel counts that fall between words: 3 + 1, 3 + 2 + 3, 1 + 3 + 5 + 2 + 3."""
    one, two, five = p.slice(p.x, 1, 2), p.slice(p.y, 2, 4), p.resize(p.small)
    return [p.quantize(p.cat(p.x, one)), p.channels(p.cat(p.x, two, p.x)), p.channels(p.cat(one, p.x, five, two, p.x))]


def nested(p):
    """Concatenations in concatenations, with something done to each."""
    inner = p.call(aten.relu.default, p.cat(p.x, p.resize(p.small)))
    middle = p.call(aten.mul.Tensor, p.cat(p.y, inner, p.slice(p.x, 0, 1)), p.w.rand(13, 1, 1))
    outer = p.cat(middle, p.call(aten.neg.default, p.resize(p.dot)), middle)
    return [p.channels(p.call(aten.add.Tensor, outer, p.w.rand(1, 28, 1, 1)))]


def views(p):
    """Parts that lie in other tensors: slices of channels, rows and columns, expanded ones, constants, turned ones."""
    wide = p.call(aten.constant_pad_nd.default, p.y, [1, 2, 3, 1])
    cut = p.slice(p.slice(wide, 2, 2 + H, 2), 1, 1 + W, 3)
    spread = p.call(aten.expand.default, p.slice(p.slice(p.x, 0, 1, 0), 1, 2), [N, 3, H, W])
    dot = p.call(aten.expand.default, p.dot, [N, 2, H, W])
    turned = p.call(aten.permute.default, p.call(aten.view.default, p.x, [N, 3, W, H]), [0, 1, 3, 2])
    constant = p.b.const(p.w.rand(N, 3, H, W))
    return [
        p.quantize(p.cat(cut, spread, dot, turned, constant)),
        p.channels(p.cat(spread, constant, cut)),
        p.quantize(p.cat(constant, constant)),
        p.quantize(p.cat(p.b.const(torch.zeros(0)), p.x)),
    ]


def before_and_after(p):
    """Operands that are cut to each part, rows and columns, and steps that no row program has."""
    both = p.cat(p.call(aten.sub.Tensor, p.x, 0.25), p.resize(p.small), p.call(vops.sigmoid.default, p.y))
    after = p.call(aten.prelu.default, p.call(aten.mul.Tensor, both, p.w.rand(12, 1, 1)), p.w.rand(12))
    found = [p.quantize(p.call(aten.add.Tensor, after, p.w.rand(1, 12, H, W)))]
    for shape in ((W,), (H, 1), (1, 1, H, W), (N, 1, 1, 1), (1,)):
        some = p.cat(p.x, p.call(aten.mul.Tensor, p.y, p.w.rand(*shape)))
        found.append(p.channels(p.call(aten.sub.Tensor, some, p.w.rand(*shape))))
    odd = p.cat(p.call(aten.remainder.Scalar, p.x, 0.7), p.call(aten.abs.default, p.resize(p.small)))
    found.append(p.quantize(p.call(aten.remainder.Scalar, odd, 1.5)))
    found.append(p.quantize(p.cat(p.call(aten.remainder.Scalar, p.resize(p.dot), 0.5), p.x)))
    square = p.cat(p.x, p.y)
    found.append(p.quantize(p.call(aten.mul.Tensor, square, square)))
    return found


def too_much(p):
    """Before and after fit a row program, together they do not."""
    x, z = p.x, p.resize(p.small)
    for k in range(40):
        x, z = p.call(aten.add.Tensor, x, 1.0 - k / 20), p.call(aten.mul.Tensor, z, 1.5 - k / 40)
    inner = p.cat(x, p.call(aten.sub.Tensor, p.y, 0.5), z)
    for k in range(40):
        inner = p.call(aten.sub.Tensor, inner, 1.0 - k / 20)
    many, more = p.x, p.y
    for _ in range(11):
        many, more = p.call(aten.mul.Tensor, many, p.w.rand(3, 1, 1)), p.call(aten.add.Tensor, more, p.w.rand(4, 1, 1))
    both = p.cat(many, more)
    for _ in range(11):
        both = p.call(aten.add.Tensor, both, p.w.rand(7, 1, 1))
    return [p.quantize(inner), p.channels(both)]


def in_levels(p):
    """Concatenations of levels: of a convolution's, of a table's, wrapped ones, and of quantized parts."""
    q = p.quantize(p.x)
    wrapped = p.call(aten.add.Tensor, p.u, p.u)
    pooled = p.call(aten.max_pool2d.default, p.u, [3, 3], [1, 1], [1, 1])
    levels = p.quantize(p.conv(p.u, 3), 0.2)
    resized = p.channels(p.resize(p.small))
    return [
        p.cat(p.u, p.v),
        p.cat(q, wrapped, pooled),
        p.cat(levels, resized, p.u, levels),
        p.cat(q, p.slice(p.v, 1, 2)),
    ]


def resizes(p):
    """Up, down, to other sizes, with aligned corners, with a scale, from one pixel, one axis alone."""
    found = []
    for x in (p.x, p.small, p.dot):
        h, w = x.meta["val"].shape[2:]
        less, more = (h // 2 or 1, w // 2 or 1), (h + 3, w + 1)
        for to in ((2 * h, 2 * w), (h, w), (2 * h, w), (h, 2 * w), less, more, (1, 1), (1, 9)):
            found.append(p.quantize(p.resize(x, *to)))
            found.append(p.channels(p.call(aten.relu.default, p.resize(x, *to, True))))
    found.append(p.quantize(p.resize(p.small, 7, 11, False, (2.4, 2.3))))
    return found


def two_readers(p):
    """Resizes and concatenations that others read too, two resizes together, one thing twice."""
    up, both = p.resize(p.small), p.cat(p.x, p.y)
    same = p.resize(p.small)
    total = p.call(aten.add.Tensor, p.resize(p.small), p.call(aten.mul.Tensor, p.resize(p.small, align=True), 0.5))
    return [
        p.quantize(up),
        p.quantize(p.cat(up, p.x)),
        p.quantize(both),
        p.channels(p.cat(both, p.y)),
        p.quantize(total),
        p.quantize(p.cat(same, same)),
        p.quantize(p.cat(p.x, p.x, p.x)),
        p.quantize(p.cat(total, p.x)),
    ]


def after_convolutions(p):
    """Parts that are sums of convolutions, alone and with steps after them."""
    a, c = p.conv(p.u, 3), p.call(aten.relu.default, p.conv(p.v, 6))
    more = p.call(aten.add.Tensor, p.conv(p.u, 3), p.x)
    return [p.quantize(p.cat(a, p.resize(p.small), c)), p.channels(p.cat(more, p.y))]


CASES = (several_parts, nested, views, before_and_after, too_much, in_levels, resizes, two_readers, after_convolutions)


def program(cases, names):
    """All levels of all cases as results, and what a convolution makes of them."""
    w = Weights()

    def build(b, *inputs):
        p, results = Parts(b, w, *inputs), []
        for case in cases:
            for i, q in enumerate(case(p)):
                results += [p.conv(q), q] if i % 2 else [p.conv(q)]
                names.extend([f"{case.__name__} {i}"] * (1 + i % 2))
        return tuple(results)

    return chain(build, w.rand(N, 3, H, W), w.rand(N, 4, H, W), w.rand(N, 5, 3, 5), w.rand(N, 2, 1, 1),
                 w.levels(N, 3, H, W), w.levels(N, 6, H, W))  # fmt: skip


@pytest.mark.parametrize(("target", "threads"), [("native", 1), ("portable", 2)])
def test_parts(target, threads):
    names: list[str] = []
    made = program(CASES, names)
    exe = compiled(made, target, threads=threads)
    same_results(evaluate(made, made.example), exe.trace(made.example), names=names)
    calls = [c.kernel for c in exe.model.model.lowered.calls]
    assert calls.count("vqc_parts_c4") > 50


def test_wide_pictures():
    """Rows longer than a run, and more rows than a band."""

    def build(b, x, small, u):
        p = Parts(b, Weights(), x, None, small, None, u, None)
        both = p.call(aten.relu.default, p.cat(p.resize(small, 40, 900), x, p.resize(x, 40, 900, True)))
        return p.conv(p.channels(both)), p.conv(p.cat(u, p.quantize(x), u)), p.conv(p.quantize(p.resize(small, 7, 385)))

    w = Weights()
    made = chain(build, w.rand(1, 3, 40, 900), w.rand(1, 2, 20, 450), w.levels(1, 3, 40, 900))
    for target in ("native", "portable"):
        same_results(evaluate(made, made.example), compiled(made, target, threads=2).trace(made.example))


def test_nothing_in_between_is_stored():
    def build(b, x, y, small):
        p = Parts(b, Weights(), x, y, small, None, None, None)
        up = p.call(aten.relu.default, p.resize(small))
        return p.conv(p.quantize(p.call(aten.mul.Tensor, p.cat(p.call(aten.neg.default, x), p.cat(y, up)), 0.5)))

    w = Weights()
    exe = compiled(chain(build, w.rand(N, 3, H, W), w.rand(N, 4, H, W), w.rand(N, 5, 3, 5)))
    assert [c.kernel for c in exe.model.model.lowered.calls] == ["vqc_parts_c4", "vqc_qconv_c4"]


def test_a_state_in_a_concatenation():
    """The old state is a part, and the new one is made from what reads it."""

    def build(b, x, s):
        p = Parts(b, Weights(), x, None, None, None, None, None)
        new = p.call(aten.add.Tensor, p.conv(p.quantize(p.cat(x, s)), 4), s)
        return [p.conv(p.channels(p.cat(s, new)))], [new]

    w = Weights()
    made = chain(build, w.rand(1, 3, H, W), states=[w.rand(1, 4, H, W)])
    exe, state = compiled(made), made.initial_state()
    for _ in range(3):
        want = evaluate(made, made.example, state)
        same_results(want, exe.trace(made.example, state))
        state = [want[1]]

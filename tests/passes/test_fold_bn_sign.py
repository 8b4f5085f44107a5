"""fold-bn-sign: thresholds that decide as the float expression does, at every sum; and what it leaves."""

from __future__ import annotations

import pytest
import torch
from handmade import Hand, reasons, run

import vqc.passes  # noqa: F401
from vqc import testing
from vqc.passes.fold_bn_sign import find_thresholds
from vqc.pipeline import PassContext, parse
from vqc.program import Program

aten, v = torch.ops.aten, torch.ops.vqc
PLAIN = ([1, 1], [0, 0], [1, 1])
DEBUG = PassContext(debug=True)


def fold(program: Program) -> Program:
    return parse("fold-bn-sign").run(program, DEBUG)


def layer(h: Hand, x, scale: torch.Tensor, bias: torch.Tensor | None, kernel: int = 3, channels: int = 4):
    weight = (1 - 2 * (h.rand(len(scale), channels, kernel, kernel) < 0)).to(torch.int8)
    shift = None if bias is None else h.const("bias", bias)
    return h(v.bconv2d, x, h.const("w", weight), h.const("scale", scale), shift, *PLAIN)


def binarize(h: Hand, x, tau: torch.Tensor, name: str = "tau"):
    return h(v.binarize, x, h.const(name, tau))


def every_sum(channels: int = 30) -> tuple[Hand, torch.Tensor]:
    """One row whose columns hold 0 to `channels` minus ones: a 1x1 layer of all +1 shows every sum it can reach."""
    x = torch.ones(1, channels, 1, channels + 1, dtype=torch.int8)
    for i in range(channels + 1):
        x[0, :i, 0, i] = -1
    return Hand(), x


def exhaustive(scale, bias, tau, between=None):
    """(before, after) whose one input shows a 1x1 layer with weights +1 every sum it can reach."""
    h, x = every_sum()
    o = len(scale)
    weight = h.const("w", torch.ones(o, x.shape[1], 1, 1, dtype=torch.int8))
    shift = None if bias is None else h.const("bias", bias)
    rows = h(v.bconv2d, h.const("x", x), weight, h.const("scale", scale), shift, *PLAIN)
    y = rows if between is None else between(h, rows, o)
    before = h.done(binarize(h, y, tau), h(aten.neg, h.input("unused", 1)))
    return before, fold(before)


def prelu(h, y, o):
    return h(aten.prelu, y, h.const("slope", torch.rand(o, generator=h.generator) + 0.01))


def affine(h, y, o):
    y = h(aten.mul.Tensor, y, h.const("g", h.rand(o, 1, 1)))
    return h(aten.relu6, h(aten.add.Tensor, y, h.const("b", h.rand(1, o, 1, 1))))


def gate(h, y, o):
    return h(v.sigmoid, h(aten.sub.Tensor, y, 0.25))


@pytest.mark.parametrize("between", [None, prelu, affine, gate], ids=["norm", "prelu", "affine", "gate"])
@pytest.mark.parametrize("shape", ["one", "channels"])
def test_every_sum_decides_as_the_floats_do(between, shape):
    """Scales of both signs, and thresholds that lie exactly on values the layer has."""
    g = torch.Generator().manual_seed(5)
    scale, bias = torch.randn(40, generator=g) * 0.3, torch.randn(40, generator=g)
    tau = torch.randn(1 if shape == "one" else 40, generator=g) * 0.5
    if shape == "channels":  # on the value of a sum itself: only the right rounding tells which side it is on
        sums = torch.randint(-30, 31, (40,), generator=g).float()
        if between is None:
            tau = sums * scale + bias
    before, after = exhaustive(scale, bias, tau, between)
    testing.assert_ops(after, {"vqc.bconv2d_threshold": 1, "vqc.binarize": 0, "vqc.bconv2d": 0})
    want, got = run(before)[0], run(after)[0]
    assert torch.equal(want, got) and want.dtype == got.dtype == torch.int8
    assert 0.1 < float((got > 0).float().mean()) < 0.9


@pytest.mark.parametrize("tau, sign", [(0.0, 1), (1.0, -1)])
def test_a_gain_of_zero_is_a_constant(tau, sign):
    before, after = exhaustive(torch.zeros(3), torch.full((3,), 0.5), torch.full((3,), tau))
    assert torch.equal(run(after)[0], run(before)[0]) and bool((run(after)[0] == sign).all())


def test_without_a_bias_and_with_borders():
    h = Hand()
    x = h(v.binarize, h.input("x", 2, 4, 6, 7), h.const("t", torch.zeros(4)))
    weight = h.const("w", (1 - 2 * (h.rand(5, 4, 3, 3) < 0)).to(torch.int8))
    y = h(v.bconv2d, x, weight, h.const("scale", h.rand(5)), None, [2, 1], [1, 2], [1, 2])
    before = h.done(binarize(h, y, h.rand(5)))
    after = fold(before)
    testing.assert_ops(after, {"vqc.bconv2d_threshold": 1, "vqc.binarize": 1})
    assert torch.equal(run(after)[0], run(before)[0])


@pytest.mark.parametrize("kind", ["shortcut", "two signs", "hat", "sigmoid", "threshold", "shape"])
def test_declines(kind):
    h = Hand()
    x = h(v.binarize, h.input("x", 1, 4, 6, 6), h.const("t", torch.zeros(4)))
    y = layer(h, x, h.rand(5), h.rand(5))
    z = {"hat": lambda: h(aten.abs, y), "sigmoid": lambda: h(aten.sigmoid, y),
         "shape": lambda: h(aten.add.Tensor, y, h.const("row", h.rand(4)))}.get(kind, lambda: y)()  # fmt: skip
    tau = h.input("tau", 5) if kind == "threshold" else h.const("tau", torch.full((5,), 0.4))
    results = [h(v.binarize, z, tau)]
    if kind == "two signs":
        results.append(binarize(h, z, torch.zeros(1), "other"))
    if kind == "shortcut":
        results.append(h(aten.add.Tensor, z, 1.0))
    before = h.done(*results)
    after = fold(before)
    want = {"shortcut": "2 calls read bconv2d", "two signs": "2 calls read bconv2d", "hat": "at more than one sum",
            "sigmoid": "run exact-float before", "threshold": "computed at run time",
            "shape": "no constant of channels"}[kind]  # fmt: skip
    assert want in reasons(after)["bconv2d"] and not after.history[-1].rewrites
    assert str(after) == str(before)


def test_thresholds_of_all_patterns():
    """All patterns of decisions of a small reach: those that change once at most are told exactly, the others not."""
    reach = 2
    sums = torch.arange(-reach, reach + 1)
    for number in range(2**5):
        up = torch.tensor([[bool(number >> i & 1) for i in range(5)]])
        found = find_thresholds(up)
        steps = int((up[:, 1:] != up[:, :-1]).sum())
        assert (found is None) == (steps > 1)
        if found is not None:
            at, flip = found
            assert torch.equal((sums >= at) != flip, up[0]) and -reach <= int(at) <= reach

"""exact-float: what it rewrites, what it leaves alone and why, and that nothing outside the integer cone moves."""

from __future__ import annotations

import expecttest
import pytest
import torch
from handmade import Hand, aten, reasons, run, texts

from vqc.ops import is_exact
from vqc.passes.exact_float import ExactFloat, integer_cone
from vqc.pipeline import PassContext

qd, vqc = torch.ops.quantized_decomposed, torch.ops.vqc
U8 = (0.02, 128, 0, 255, torch.uint8)


def quantize(h: Hand, x):
    return h(qd.quantize_per_tensor.default, x, *U8)


def through(op, *args, shape=(1, 4, 6, 8), consts=(), **kwargs):
    """A program of one operator between an input and a quantizer; its float value is the second result."""
    h = Hand()
    fixed = [h.const(f"c{i}", c) for i, c in enumerate(consts)] if not callable(consts) else consts(h)
    y = h(op, h.input("x", *shape), *fixed, *args, **kwargs)
    return h.done(quantize(h, y), y)


def test_before_and_after():
    h = Hand("gate")
    x, r = h.input("x", 1, 2, 4, 4), h.state("r", torch.zeros(1, 2, 4, 4))
    gate = h(aten.sigmoid.default, h(aten.add.Tensor, x, r))
    q = quantize(h, h(aten.mul.Tensor, gate, x))
    pooled = h(aten.mean.dim, gate, [-1, -2])
    p = h.done(q, h(aten.sigmoid.default, x), h(aten.tanh.default, pooled), states=[gate])
    q2 = ExactFloat()(p, PassContext(debug=True))
    expecttest.assert_eq = None
    assert texts(p) == [
        "add: f32[1,2,4,4] = aten.add.Tensor(x, r)",
        "sigmoid: f32[1,2,4,4] = aten.sigmoid(add)",
    ] + texts(p)[2:]
    assert q2.history[-1].rewrites == {"aten.sigmoid": 1}

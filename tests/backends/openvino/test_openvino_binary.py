"""One-bit layers on OpenVINO's binary kernels: the reference's decisions, whatever the channels and the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import Hand

import vqc
from vqc.backends.openvino.model import SMALLEST, below
from vqc.errors import TargetError
from vqc.program import Program, evaluate

v = torch.ops.vqc
aten = torch.ops.aten


SHAPES = ({}, {"stride": 2}, {"pad": 2, "dilation": 2}, {"kernel": 1, "pad": 0, "many": False})


def signs(*shape: int) -> torch.Tensor:
    return (2 * torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1)) - 1).to(torch.int8)


def layer(channels: int, out: int = 5, kernel: int = 3, stride: int = 1, pad: int = 1, dilation: int = 1,
          many: bool = True) -> Program:  # fmt: skip
    h = Hand()
    x = h.input("x", 1, channels, 9, 10)
    tau = torch.linspace(-0.5, 0.5, channels) if many else torch.zeros(1)
    b = h(v.binarize, x, h.const("t", tau))
    y = h(v.bconv2d, b, h.const("w", signs(out, channels, kernel, kernel)), h.const("s", torch.ones(out)),
          h.const("b", torch.zeros(out)), [stride] * 2, [pad] * 2, [dilation] * 2)  # fmt: skip
    return h.done(y, b)


def both(program: Program, inputs: list[torch.Tensor] | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    exe = vqc.compile(program, "openvino")
    given = list(program.example) if inputs is None else inputs
    state = program.initial_state()
    return list(zip(exe.trace(given, state), evaluate(program, given, state), strict=True))


@pytest.mark.parametrize("channels", [8, 35, 64, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_the_reference_s(channels: int, shape: dict):
    program = layer(channels, **shape)
    exe = vqc.compile(program, "openvino")
    assert ("jit_" in exe.report.notes[1] and "_u1" in exe.report.notes[1]) == (channels >= 8)
    assert all(torch.equal(a, b) for a, b in both(program))


def test_a_value_at_the_threshold_is_plus_one():
    program = layer(8, kernel=1, pad=0)
    tau = torch.linspace(-0.5, 0.5, 8).view(1, 8, 1, 1)
    under = torch.from_numpy(np.nextafter(tau.numpy(), np.float32(-np.inf)))
    for x in (tau, under, torch.zeros_like(tau), -torch.zeros_like(tau)):
        for a, b in both(program, [x.expand(1, 8, 9, 10).contiguous()]):
            assert torch.equal(a, b)
    assert float(below(np.zeros(1))[0]) == -SMALLEST and float(below(np.ones(1))[0]) < 1


@pytest.mark.parametrize("tau", [1e-39, float(SMALLEST), -1e-39])
def test_zero_beside_the_smallest_thresholds(tau: float):
    h = Hand()
    b = h(v.binarize, h.input("x", 1, 8, 2, 2), h.const("t", torch.full((8,), tau)))
    y = h(v.bconv2d, b, h.const("w", signs(3, 8, 1, 1)), h.const("s", torch.ones(3)), h.const("b", torch.zeros(3)),
          [1, 1], [0, 0], [1, 1])  # fmt: skip
    assert all(torch.equal(p, q) for p, q in both(h.done(y, b), [torch.zeros(1, 8, 2, 2)]))


def test_thresholds_masks_and_signs_that_are_put_together():
    h = Hand()
    x, s = h.input("x", 1, 24, 9, 10), h.state("s", torch.ones(1, 6, 9, 10))
    a, b = (h(v.binarize, x, h.const(n, torch.full((24,), t))) for n, t in (("t1", 0.0), ("t2", 0.3)))
    both_signs = h(aten.cat, [a, b], 1)
    inner = h(v.bconv2d_threshold, both_signs, h.const("w1", signs(16, 48, 3, 3)),
              h.const("l", torch.arange(-8, 8, dtype=torch.int32)), h.const("f", torch.arange(16) % 3 == 0),
              [1, 1], [1, 1], [1, 1])  # fmt: skip
    mask = h(aten.gt.Scalar, h(aten.slice.Tensor, x, 1, 0, 1), 0.0)
    y = h(v.masked_bconv2d, inner, h.const("w2", signs(6, 16, 3, 3)), h.const("s2", torch.linspace(0.01, 0.3, 6)),
          h.const("b2", torch.linspace(-1, 1, 6)), mask, [1, 1], [1, 1], [1, 1])  # fmt: skip
    nxt = h(aten.add.Tensor, y, s)
    program = h.done(y, inner, both_signs, states=[nxt])
    (y1, y2), *others, (n1, n2) = both(program)
    assert all(torch.equal(p, q) for p, q in others)
    assert torch.allclose(y1, y2, rtol=1e-6, atol=1e-6) and torch.allclose(n1, n2, rtol=1e-6, atol=1e-6)
    assert torch.equal(y1 == 0, y2 == 0)


def test_the_float_form_gives_the_same():
    program = layer(35)
    exe = vqc.compile(program, "openvino:float")
    assert "_u1" not in exe.report.notes[1]
    assert all(torch.equal(a, b) for a, b in zip(exe.trace(program.example, []), evaluate(program, program.example),
                                                 strict=True))  # fmt: skip


def test_targets_and_options():
    with pytest.raises(TargetError, match="openvino:float"):
        vqc.compile(layer(8), "openvino:half")
    with pytest.raises(TargetError, match="threads"):
        vqc.compile(layer(8), "openvino", optimize="all")

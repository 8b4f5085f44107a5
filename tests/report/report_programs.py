"""Small recurrent programs and passes whose error is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from handmade import Hand, aten

from vqc.pipeline import Exact, Lossy, Numerics, Pass, PassContext, PassResult, Pipeline
from vqc.program import Program


def recurrent() -> Program:
    """Three convolutions around a state that halves: h <- (h + relu(conv(x))) / 2, a picture of one channel."""
    h = Hand("recurrent")
    x = h.input("x", 1, 3, 12, 16)
    s = h.state("h", torch.zeros(1, 4, 12, 16))
    first = h(aten.conv2d, x, h.const("w0", h.rand(4, 3, 3, 3)), h.const("b0", h.rand(4)), [1, 1], [1, 1])
    second = h(aten.conv2d, h(aten.relu, first), h.const("w1", h.rand(4, 4, 3, 3)), None, [1, 1], [1, 1])
    new = h(aten.mul.Tensor, h(aten.add.Tensor, s, h(aten.relu, second)), 0.5)
    head = h(aten.conv2d, new, h.const("w2", h.rand(1, 4, 1, 1) * 0.1))
    return h.done(h(aten.sigmoid, head), states=[new])


def growing() -> Program:
    """h <- h * conv(x), where conv gives 1 exactly: a convolution that gives 1 + e makes (1 + e)^(t + 1) of it."""
    h = Hand("growing")
    x = h.input("x", 1, 1, 4, 6)
    s = h.state("h", torch.ones(1, 1, 4, 6))
    one = h(aten.conv2d, x, h.const("w", torch.zeros(1, 1, 1, 1)), h.const("b", torch.ones(1)))
    new = h(aten.mul.Tensor, s, one)
    return h.done(h(aten.mul.Tensor, new, 0.5), states=[new])


def numbers() -> Program:
    """No picture and no state: one linear layer."""
    h = Hand("numbers")
    x = h.input("x", 1, 8)
    return h.done(h(aten.linear, x, h.const("w", h.rand(5, 8))))


def clip(program: Program, frames: int, seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    g = torch.Generator().manual_seed(seed)
    return [tuple(torch.rand(i.shape, generator=g) for i in program.inputs) for _ in range(frames)]


@dataclass(frozen=True)
class Shift(Pass):
    """Adds `by` to a constant."""

    name: ClassVar[str] = "shift"
    numerics: ClassVar[Numerics] = Lossy(-100.0)
    constant: str = "b"
    by: float = 0.0

    def apply(self, program: Program, context: PassContext) -> PassResult:
        program.constants[self.constant] = program.constants[self.constant] + self.by
        return PassResult(program, {"constant": 1})


@dataclass(frozen=True)
class Coarse(Pass):
    """Rounds a constant to `levels` steps on each side of zero."""

    name: ClassVar[str] = "coarse"
    numerics: ClassVar[Numerics] = Lossy(-100.0)
    constant: str = "w1"
    levels: int = 1

    def apply(self, program: Program, context: PassContext) -> PassResult:
        w = program.constants[self.constant]
        step = w.abs().max() / self.levels
        program.constants[self.constant] = (w / step).round() * step
        return PassResult(program, {"constant": 1})


@dataclass(frozen=True)
class Nothing(Pass):
    """Changes nothing, and promises so."""

    name: ClassVar[str] = "nothing"
    numerics: ClassVar[Numerics] = Exact()

    def apply(self, program: Program, context: PassContext) -> PassResult:
        return PassResult(program)


def pipeline(*passes: Pass) -> Pipeline:
    return Pipeline(passes)

"""What follows a layer's sums, as data: steps, and the results that are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PLACES = ("full", "plane", "image", "channel", "one", "")


@dataclass(frozen=True)
class Step:
    """One pointwise operation (`kernels/epilogue.py` lists kinds and places).

    `operand`: a constant tensor, or the position of a run-time operand in the call; None without one.
    """

    kind: str
    place: str = ""
    operand: Tensor | int | None = None


@dataclass(frozen=True)
class Levels:
    """Quantization of the value: clamp(rint(y * inv) + zero, low, high). inv, zero: f32 [1] or [O]; dtype u8, s8 or
    bool (levels 0 and 1)."""

    inv: Tensor
    zero: Tensor
    low: int
    high: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Epilogue:
    """Steps, and what is stored of the value after them: itself, its levels, its signs against tau (f32 [1] or [O]).

    `dtype`: what the value is rounded to when it is stored (float32, float16, bfloat16); levels and signs are made of
    the value before that.
    """

    steps: tuple[Step, ...] = ()
    value: bool = True
    levels: Levels | None = None
    signs: Tensor | None = None
    dtype: torch.dtype = torch.float32

    def meta(self) -> dict[str, Any]:
        """The kernel's argument HOW, known beforehand."""
        levels = "" if self.levels is None else _reach(self.levels.inv)
        bits = "" if self.signs is None else _reach(self.signs)
        return {"HOW": (self.value, levels, bits, *(part for s in self.steps for part in (s.kind, s.place)))}

    def to(self, device: torch.device) -> Epilogue:
        """The same with its constants on a device."""
        steps = tuple(Step(s.kind, s.place, s.operand.to(device) if isinstance(s.operand, Tensor) else s.operand)
                      for s in self.steps)  # fmt: skip
        q = self.levels
        levels = None if q is None else Levels(q.inv.to(device), q.zero.to(device), q.low, q.high, q.dtype)
        signs = None if self.signs is None else self.signs.to(device)
        return Epilogue(steps, self.value, levels, signs, self.dtype)

    def operands(self, given: list[Tensor]) -> tuple[Tensor | None, ...]:
        """The pointers of all steps, run-time operands in the form the kernel reads; an empty tuple has one None."""
        found = []
        for s in self.steps:
            x = given[s.operand] if isinstance(s.operand, int) else s.operand
            found.append(None if x is None else _laid(x, s.place))
        return tuple(found) or (None,)


@dataclass(frozen=True)
class Results:
    """What a call gives: value and levels of logical shape [N,C,H,W] in the channels_last format, signs as int32 words
    [N,H,W,ceil(C/32)]; None where not asked for."""

    value: Tensor | None = None
    levels: Tensor | None = None
    signs: Tensor | None = None


def _reach(t: Tensor) -> str:
    return "tensor" if t.numel() == 1 else "channel"


def _laid(x: Tensor, place: str) -> Tensor:
    """An operand's memory as its place says."""
    return nhwc(x) if place == "full" else bits_of(x.contiguous().reshape(-1))


def nhwc(x: Tensor) -> Tensor:
    """Logical [N,C,H,W] as a dense [N,H,W,C]: no copy when it is in the channels_last format already."""
    return bits_of(x.permute(0, 2, 3, 1).contiguous())


def bits_of(x: Tensor) -> Tensor:
    """What kernels are given of a tensor: bfloat16 as int16 (`kernels.exact.stored_as`), bool as u8, others as is."""
    return x.view({torch.bfloat16: torch.int16, torch.bool: torch.uint8}.get(x.dtype, x.dtype))


# What a comparison stores: 1.0 is true and 0.0 is false.
FLAGS = Levels(torch.ones(1), torch.zeros(1), 0, 1, torch.bool)
# What a sign stores where somebody reads it as a number.
SIGNS = Levels(torch.ones(1), torch.zeros(1), -1, 1, torch.int8)


def allocate(e: Epilogue, n: int, h: int, w: int, o: int, device: torch.device) -> tuple[dict[str, Any], Results]:
    """Memory for the results, as the kernel's argument OUT and as tensors of the program."""
    y = torch.empty((n, h, w, o), dtype=e.dtype, device=device) if e.value else None
    bits = None if e.signs is None else torch.empty((n, h, w, -(-o // 32)), dtype=torch.int32, device=device)
    value, stored = (None, None) if y is None else (y.permute(0, 3, 1, 2), bits_of(y))
    if e.levels is None:
        return {"OUT": (stored, None, None, None, None, None, bits, e.signs)}, Results(value, None, bits)
    flags = e.levels.dtype == torch.bool
    q = torch.empty((n, h, w, o), dtype=torch.uint8 if flags else e.levels.dtype, device=device)
    out = (stored, q, e.levels.inv, e.levels.zero, float(e.levels.low), float(e.levels.high), bits, e.signs)
    levels = (q.view(torch.bool) if flags else q).permute(0, 3, 1, 2)
    return {"OUT": out}, Results(value, levels, bits)

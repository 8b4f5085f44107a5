"""What follows a layer's sums, as data: steps, and the results that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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

    def to(self, device: torch.device) -> Epilogue:
        """The same with its constants on a device."""
        steps = tuple(Step(s.kind, s.place, s.operand.to(device) if isinstance(s.operand, Tensor) else s.operand)
                      for s in self.steps)  # fmt: skip
        q = self.levels
        levels = None if q is None else Levels(q.inv.to(device), q.zero.to(device), q.low, q.high, q.dtype)
        signs = None if self.signs is None else self.signs.to(device)
        return Epilogue(steps, self.value, levels, signs, self.dtype)


@dataclass(frozen=True)
class Results:
    """What a call gives: value and levels of logical shape [N,C,H,W] in the channels_last format, signs as int32 words
    [N,H,W,ceil(C/32)]; None where not asked for."""

    value: Tensor | None = None
    levels: Tensor | None = None
    signs: Tensor | None = None


def _reach(t: Tensor) -> str:
    return "tensor" if t.numel() == 1 else "channel"


def nhwc(x: Tensor) -> Tensor:
    """Logical [N,C,H,W] as a dense [N,H,W,C]: no copy when it is in the channels_last format already."""
    return bits_of(x.permute(0, 2, 3, 1).contiguous())


def pixels(x: Tensor) -> tuple[Tensor, int]:
    """Logical [N,C,H,W] as [N,H,W,C] whose channels lie together, and the elements from one position to the next.

    No copy for the channels_last format and for some channels of a picture in it.
    """
    y = x.permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    wide = next((y.stride(i) // k for i, k in ((2, 1), (1, w), (0, h * w)) if y.shape[i] > 1), c)
    wanted = (h * w * wide, w * wide, wide, 1)
    if wide < c or any(size > 1 and s != t for size, s, t in zip(y.shape, y.stride(), wanted, strict=True)):
        return nhwc(x), c
    return bits_of(y), wide


def bits_of(x: Tensor) -> Tensor:
    """What kernels are given of a tensor: bfloat16 as int16 (`kernels.exact.stored_as`), bool as u8, others as is."""
    return x.view({torch.bfloat16: torch.int16, torch.bool: torch.uint8}.get(x.dtype, x.dtype))


# What a comparison stores: 1.0 is true and 0.0 is false.
FLAGS = Levels(torch.ones(1), torch.zeros(1), 0, 1, torch.bool)
# What a sign stores where somebody reads it as a number.
SIGNS = Levels(torch.ones(1), torch.zeros(1), -1, 1, torch.int8)


def finishing(e: Epilogue, given: Sequence[Tensor], n: int, h: int, w: int, o: int, device: torch.device,
              into: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Any], dict[str, Any], Results]:  # fmt: skip
    """Of an epilogue on pictures [n,o,h,w]: a kernel's arguments OPS and OUT, its argument HOW, and the results.

    given: the run-time operands. into: where "value" or "levels" go, if not to memory of their own: [n,h,w,o], some
    channels of a larger picture.
    """
    into = into or {}
    y = q = None
    if e.value:
        y = into.get("value")
        y = torch.empty((n, h, w, o), dtype=e.dtype, device=device) if y is None else y
    if e.levels is not None:
        q = into.get("levels")
        dtype = torch.uint8 if e.levels.dtype == torch.bool else e.levels.dtype
        q = torch.empty((n, h, w, o), dtype=dtype, device=device) if q is None else q
    bits = None if e.signs is None else torch.empty((n, h, w, -(-o // 32)), dtype=torch.int32, device=device)
    value, ys = (None, 0) if y is None else _stored(y)
    levels, qs = (None, 0) if q is None else _stored(q)
    operands, steps = [], []
    for s in e.steps:
        x = given[s.operand] if isinstance(s.operand, int) else s.operand
        stride = 0
        if x is not None and s.place in ("full", "plane"):
            channels = o if s.place == "full" else 1
            x, wide = pixels(x if x.ndim == 4 else x.reshape(n, channels, h, w))
            stride = 0 if wide == channels else wide
        elif x is not None:
            x = bits_of(x.contiguous().reshape(-1))
        operands.append(x)
        steps += [s.kind, s.place, stride]
    numbers: tuple[Any, ...] = (None,) * 4
    if e.levels is not None:
        numbers = (e.levels.inv, e.levels.zero, float(e.levels.low), float(e.levels.high))
    reach = ["" if t is None else _reach(t) for t in (None if e.levels is None else e.levels.inv, e.signs)]
    args = {"OPS": tuple(operands) or (None,), "OUT": (value, levels, *numbers, bits, e.signs)}
    flags = e.levels is not None and e.levels.dtype == torch.bool
    logical = None if q is None else (q.view(torch.bool) if flags else q).permute(0, 3, 1, 2)
    results = Results(None if y is None else y.permute(0, 3, 1, 2), logical, bits)
    return args, {"HOW": (e.value, *reach, ys, qs, *steps)}, results


def _stored(x: Tensor) -> tuple[Tensor, int]:
    """What a kernel writes to, and its stride as HOW has it; x [N,H,W,C]."""
    laid, wide = pixels(x.permute(0, 3, 1, 2))
    assert laid.data_ptr() == x.data_ptr(), "results are written where they belong, not to a copy"
    return laid, 0 if wide == x.shape[3] else wide

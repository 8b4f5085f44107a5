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
    """Quantization of the value: clamp(rint(y * inv) + zero, low, high). inv, zero: f32 [1] or [O]; dtype u8 or s8."""

    inv: Tensor
    zero: Tensor
    low: int
    high: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Epilogue:
    """Steps, and what is stored of the value after them: itself, its levels, its signs against tau (f32 [1] or [O])."""

    steps: tuple[Step, ...] = ()
    value: bool = True
    levels: Levels | None = None
    signs: Tensor | None = None

    def meta(self) -> dict[str, Any]:
        """The kernel's arguments that are known beforehand."""
        return {
            "KINDS": tuple(s.kind for s in self.steps),
            "PLACES": tuple(s.place for s in self.steps),
            "FLOAT": self.value,
            "LEVELS": "" if self.levels is None else _reach(self.levels.inv),
            "BITS": "" if self.signs is None else _reach(self.signs),
        }

    def to(self, device: torch.device) -> Epilogue:
        """The same with its constants on a device."""
        steps = tuple(Step(s.kind, s.place, s.operand.to(device) if isinstance(s.operand, Tensor) else s.operand)
                      for s in self.steps)  # fmt: skip
        q = self.levels
        levels = None if q is None else Levels(q.inv.to(device), q.zero.to(device), q.low, q.high, q.dtype)
        return Epilogue(steps, self.value, levels, None if self.signs is None else self.signs.to(device))

    def operands(self, given: list[Tensor]) -> tuple[Tensor | None, ...]:
        """The pointers of all steps, run-time operands in the form the kernel reads; an empty tuple has one None."""
        found = []
        for s in self.steps:
            x = given[s.operand] if isinstance(s.operand, int) else s.operand
            found.append(None if x is None else _laid(x, s.place))
        return tuple(found) or (None,)


@dataclass(frozen=True)
class Results:
    """What a call gives: f32 and levels of logical shape [N,C,H,W] in the channels_last format, signs as int32 words
    [N,H,W,ceil(C/32)]; None where not asked for."""

    value: Tensor | None = None
    levels: Tensor | None = None
    signs: Tensor | None = None


def _reach(t: Tensor) -> str:
    return "tensor" if t.numel() == 1 else "channel"


def _laid(x: Tensor, place: str) -> Tensor:
    """An operand's memory as its place says."""
    return nhwc(x) if place == "full" else x.contiguous().reshape(-1)


def nhwc(x: Tensor) -> Tensor:
    """Logical [N,C,H,W] as a dense [N,H,W,C]: no copy when it is in the channels_last format already."""
    return x.permute(0, 2, 3, 1).contiguous()


def allocate(e: Epilogue, n: int, h: int, w: int, o: int, device: torch.device) -> tuple[dict[str, Any], Results]:
    """Memory for the results, as the kernel's arguments and as tensors of the program."""
    y = torch.empty((n, h, w, o), dtype=torch.float32, device=device) if e.value else None
    q = None if e.levels is None else torch.empty((n, h, w, o), dtype=e.levels.dtype, device=device)
    bits = None if e.signs is None else torch.empty((n, h, w, -(-o // 32)), dtype=torch.int32, device=device)
    args = {
        "y_ptr": y, "q_ptr": q, "bits_ptr": bits, "tau_ptr": e.signs,
        "inv_ptr": None if e.levels is None else e.levels.inv,
        "zero_ptr": None if e.levels is None else e.levels.zero,
        "low": 0.0 if e.levels is None else float(e.levels.low),
        "high": 0.0 if e.levels is None else float(e.levels.high),
        "WORDS": -(-o // 32),
    }  # fmt: skip
    logical = [None if t is None else t.permute(0, 3, 1, 2) for t in (y, q)]
    return args, Results(logical[0], logical[1], bits)

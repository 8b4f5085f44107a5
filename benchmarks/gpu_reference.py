"""Whether what a GPU computes is what the reference computes, which is asked before any time of it is believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import vqc
from benchmarks.machine import Record
from vqc.backends.triton import packing
from vqc.backends.triton.samples import Layer
from vqc.executable import Executable, Stream
from vqc.metrics import sqnr_db
from vqc.program import Program

STEPS = 2  # of a network, the state carried
# Where PyTorch runs float convolutions, whose sums have no order, a value may fall on the other side of a rounding and
# everything behind it differ by a step of a grid. A kernel that is wrong is far below this.
LEAST_DB = 30.0


def same_convolution(layer: Layer, four: bool, ours: Any, x: Tensor) -> bool:
    """Whether a float result equals the reference operator's."""
    g = torch.Generator().manual_seed(0)
    reach = 8 if four else 128
    weight = torch.randint(-reach, reach, (layer.o, layer.c, layer.kernel, layer.kernel), generator=g).to(torch.int8)
    pad = layer.kernel // 2
    zero = torch.tensor([128], dtype=torch.int32)
    wanted = torch.ops.vqc.qconv2d(x.cpu(), weight, torch.full((layer.o,), 1e-4), torch.zeros(layer.o), zero, [1, 1],
                                   [pad, pad], [1, 1], 1)  # fmt: skip
    return torch.equal(ours(x).value.cpu(), wanted)


def same_binary(layer: Layer, ours: Any, x: Tensor) -> bool:
    """The same for a binary convolution."""
    g = torch.Generator().manual_seed(0)
    shape = (layer.o, layer.c, layer.kernel, layer.kernel)
    weight = (2 * torch.randint(0, 2, shape, generator=g) - 1).to(torch.int8)
    pad = layer.kernel // 2
    signs, ones = packing.unpacked(x, layer.c).cpu(), torch.ones(layer.o)
    wanted = torch.ops.vqc.bconv2d(signs, weight, ones, torch.zeros(layer.o), [1, 1], [pad, pad], [1, 1])
    return torch.equal(ours(x).value.cpu(), wanted)


def agreement(exe: Executable, program: Program, device: torch.device) -> Record:
    """Steps of an executable beside the reference's, from a reset. `equal`: whether all results and states have equal
    bits; `reference`: the lowest SQNR (dB) of one; `wrong`: why this cannot be the program, or "".
    """
    ours, judge = Stream(exe), Stream(vqc.compile(program, "reference"))
    frames = list(program.example)
    equal, found = True, []
    for _ in range(STEPS):
        made, wanted = ours.step([x.to(device) for x in frames]), judge.step(frames)
        for a, b in zip(_all(made, ours.state), _all(wanted, judge.state), strict=True):
            if a.dtype != b.dtype or a.shape != b.shape:
                wrong = f"a result is {a.dtype}{list(a.shape)} and has to be {b.dtype}{list(b.shape)}"
                return {"equal": False, "reference": "another kind of result", "wrong": wrong}
            equal &= torch.equal(a, b)
            found.append(sqnr_db(a, b))
        frames = [x.flip(-1) for x in frames]
    least, wrong = next((db for db in found if math.isnan(db)), min(found)), ""
    if not equal and not exe.report.fallbacks:
        wrong = f"all of it runs in kernels, and results differ from the reference's ({least:.1f} dB)"
    elif not equal and not least >= LEAST_DB:
        wrong = f"results are {least:.1f} dB from the reference's, and {LEAST_DB:g} is the least"
    return {"equal": equal, "reference": "equal bits" if equal else f"{least:.1f} dB", "wrong": wrong}


def _all(results: Sequence[Any], state: Sequence[Tensor]) -> list[Tensor]:
    return [x.cpu() for x in (*results, *state)]


def told_apart(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records that may be written, without the note that nothing is wrong, and those that are wrong."""
    wrong = [r for r in records if r.get("wrong") or ("wrong" not in r and r.get("equal") is False)]
    return [{k: v for k, v in r.items() if k != "wrong"} for r in records if r not in wrong], wrong

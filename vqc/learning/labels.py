"""Labels: what a result should be, and how pictures move, on clips where that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vqc.calibration import Clips
from vqc.errors import CalibrationError
from vqc.program import Program, shape_of
from vqc.video.composites import Composite

Motion = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Labels:
    """Truth beside calibration clips, clip by clip and step by step; None where it is not known.

    `truth[c][t]`: result `result` of step t of clip c, float of the result's shape ([N,C,H,W]).
    `motion[c][t]`: from the picture of step t to that of step t + 1: the flow, float [N,2,H,W], x and y in pixels, and
    where it holds, bool [N,1,H,W] (`vqc.video.flow` has the convention); one entry less than the clip has steps.
    `result`: a name among the program's results; "": the one that has the shape of the truth.
    Either may be left out: ().
    """

    truth: Sequence[Sequence[Tensor | None]] = ()
    motion: Sequence[Sequence[Motion | None]] = ()
    result: str = ""

    def value(self, clip: int, t: int) -> Tensor | None:
        """The truth of a step, None where there is none."""
        return self.truth[clip][t] if self.truth else None

    def moved(self, clip: int, t: int) -> Motion | None:
        """(flow, valid) from step t to step t + 1, None where it is not known."""
        return self.motion[clip][t] if self.motion else None


def of_composites(composites: Sequence[Composite], result: str = "") -> Labels:
    """The mattes and motions of composites that are the calibration clips, in their order, frame by frame."""
    truth = [list(c.alpha.split(1)) for c in composites]
    motion = [list(zip(c.flow_forward.split(1), c.matte_valid.split(1), strict=True)) for c in composites]
    return Labels(truth, motion, result)


def as_labels(source: Any, program: Program, clips: Clips) -> Labels:
    """Bring `context.labels` into one form and check it against the program and its clips.

    `source`: None; Labels; or the truth alone, a list of clips, each a list of steps (a tensor or None) or, for a
    result of batch 1, a tensor [T,C,H,W]. Raises CalibrationError naming the clip and the step for a wrong number of
    clips or steps, a wrong shape, NaN or infinity, and for a truth that several results could have.
    """
    if source is None:
        return Labels()
    labels = source if isinstance(source, Labels) else Labels(truth=source)
    truth = [_steps(c) for c in labels.truth]
    motion = [list(c) for c in labels.motion]
    _count("truth", truth, [len(c) for c in clips])
    _count("motion", motion, [len(c) - 1 for c in clips])
    known = [(c, t, x) for c, steps in enumerate(truth) for t, x in enumerate(steps) if x is not None]
    result = labels.result
    if known:
        result = _result(program, result, known[0][2])
        shape = shape_of(program.result_nodes[program.outputs.index(result)])
        for c, t, x in known:
            _check(f"the truth of result {result}", x, shape, c, t)
    for c, moves in enumerate(motion):
        for t, move in enumerate(moves):
            if move is not None:
                flow, valid = move
                batch, _, *size = flow.shape if flow.ndim == 4 else (1, 2, 0, 0)
                _check("a flow", flow, (batch, 2, *size), c, t)
                _check("where a flow holds", valid, (batch, 1, *size), c, t, torch.bool)
    return replace(labels, truth=truth, motion=motion, result=result)


def _steps(clip: Any) -> list[Tensor | None]:
    return list(clip.split(1)) if isinstance(clip, Tensor) else list(clip)


def _count(what: str, given: Sequence[Sequence[Any]], lengths: list[int]) -> None:
    if given and [len(c) for c in given] != lengths:
        raise CalibrationError(f"the labels hold {what} for {[len(c) for c in given]} steps",
                               why=f"the calibration clips ask for {lengths}",
                               way_out="give an entry for each step, None where it is not known")  # fmt: skip


def _result(program: Program, name: str, value: Tensor) -> str:
    if name:
        if name not in program.outputs:
            raise CalibrationError(f"the labels are of result {name!r}, which program {program.name} does not have",
                                   way_out="use one of " + ", ".join(program.outputs))  # fmt: skip
        return name
    shapes = {o: shape_of(n) for o, n in zip(program.outputs, program.result_nodes, strict=False)}
    fits = [o for o, shape in shapes.items() if shape == tuple(value.shape)]
    if len(fits) != 1:
        raise CalibrationError(f"labels of shape {tuple(value.shape)} do not say which result they are of",
                               why=f"the results have {', '.join(f'{o} {s}' for o, s in shapes.items())}",
                               way_out="give Labels(truth, result=...), or labels of the result's shape")  # fmt: skip
    return fits[0]


def _check(what: str, x: Tensor, shape: tuple[int, ...], clip: int, t: int, dtype: torch.dtype | None = None) -> None:
    where = f"clip {clip}, step {t}"
    right = x.dtype == dtype if dtype is not None else x.is_floating_point()
    if tuple(x.shape) != tuple(shape) or not right:
        raise CalibrationError(f"{what} is {x.dtype} {tuple(x.shape)}", where=where,
                               why=f"expected {dtype or 'floats'} {tuple(shape)}",
                               way_out="bring the labels to the size of the clips")  # fmt: skip
    if not bool(torch.isfinite(x).all()):
        raise CalibrationError(f"{what} holds NaN or infinity", where=where, way_out="give None for that step")

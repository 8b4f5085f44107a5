"""Calibration clips: whatever the user has, as lists of steps with flat input tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vqc.errors import CalibrationError, InputError
from vqc.program import Program

Step = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Clips:
    """Clips in order, each a list of steps in order, each a tuple of the program's flat input tensors."""

    clips: tuple[tuple[Step, ...], ...]

    def __iter__(self) -> Iterator[tuple[Step, ...]]:
        return iter(self.clips)

    @property
    def frames(self) -> int:
        return sum(len(c) for c in self.clips)


def as_clips(source: Any, program: Program) -> Clips:
    """Bring calibration data into one form and check it against the program.

    `source` may be: a tensor of frames [T, C, H, W] (float, or uint8 that is scaled by 1/255) for a program with one
    frame input [1, C, H, W]; a list of steps, each a tensor or a tuple of a step's arguments; a list of such clips;
    or `Clips`. States are never given: they are carried from their reset value.

    Raises CalibrationError when there is no frame, a step does not fit the program's inputs, or a value is NaN or
    infinite; the message names the clip, the step and the input.
    """
    if isinstance(source, Clips):
        clips = [list(c) for c in source.clips]
    elif source is None:
        raise CalibrationError(
            "no calibration clip was given", way_out="pass calibration=..., e.g. vqc.video.read_clip"
        )
    else:
        clips = [[_step(s) for s in clip] for clip in _clips(source, program)]
    checked = []
    for c, clip in enumerate(clips):
        steps = []
        for t, step in enumerate(clip):
            where = f"calibration clip {c}, step {t}"
            try:
                flat = program.flatten_inputs(tuple(step))
            except InputError as e:
                why = "; ".join(filter(None, (e.what, e.why)))
                raise CalibrationError(f"a calibration step does not fit program {program.name}", where=where,
                                       why=why, way_out=e.way_out) from e  # fmt: skip
            for spec, x in zip(program.inputs, flat, strict=True):
                if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                    raise CalibrationError(f"input {spec.name} holds NaN or infinity", where=where,
                                           why="a range taken from it would be meaningless",
                                           way_out="leave this frame out, or mend what decodes it")  # fmt: skip
            steps.append(tuple(flat))
        if steps:
            checked.append(tuple(steps))
    if not checked:
        raise CalibrationError("the calibration clips hold no frame", why="no range can be taken from nothing",
                               way_out="give at least one frame; 32 to 256 of typical content are enough")  # fmt: skip
    return Clips(tuple(checked))


def _clips(source: Any, program: Program) -> Iterable[Iterable[Any]]:
    if isinstance(source, torch.Tensor):
        return [_frames(source, program)]
    items = list(source)
    if items and all(isinstance(i, (list, Clips)) for i in items):
        return [_frames(i, program) if isinstance(i, torch.Tensor) else i for i in items]
    first = program.inputs[0] if program.inputs else None
    if (
        items
        and first is not None
        and all(isinstance(i, torch.Tensor) and tuple(i.shape) != first.shape for i in items)
    ):
        return [_frames(i, program) for i in items]
    return [items]


def _frames(clip: torch.Tensor, program: Program) -> list[torch.Tensor]:
    if clip.dtype == torch.uint8 and program.inputs and program.inputs[0].dtype.is_floating_point:
        clip = clip.to(program.inputs[0].dtype) / 255
    if program.inputs and clip.ndim == len(program.inputs[0].shape) and program.inputs[0].shape[0] == 1:
        return [f[None] for f in clip]
    return list(clip)


def _step(step: Any) -> Step:
    return tuple(step) if isinstance(step, (tuple, list)) else (step,)

"""Where the frames of a video are in each tensor of a Program.

Time may be an axis of its own ([B,T,C,H,W]), folded into another axis ([B*T,C,H,W]), the one step of an unrolled loop a
tensor belongs to, or the slot of a fixed window (the first of two images). It is derived once from the inputs by a
forward analysis and is what lets an observer keep a range per frame.

The analysis is careful rather than clever: a tensor gets a frame only when every element of it comes from operators
that keep frames apart. An operator it does not know, or one that mixes frames, ends in `none`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from vqc.program import Program

Kind = Literal["axis", "folded", "step", "slot", "none"]


@dataclass(frozen=True)
class Frames:
    """The place of time in one tensor.

    axis    dimension `axis` holds `count` frames, the first of them frame `index`
    folded  dimension `axis` is outer * count * inner, row-major, with `count` frames from frame `index` on; inner is
            what is left of the dimension's size
    step    the whole tensor belongs to frame `index`
    slot    the whole tensor belongs to slot `index` of a window of `count`
    none    one frame a step, no time at all, or frames mixed (`note` says which)

    `slots` > 0 on axis and folded: the entries are slots of a window of that many, not frames of a clip.
    """

    kind: Kind = "none"
    axis: int = -1
    count: int = 1
    index: int = 0
    outer: int = 1
    slots: int = 0
    note: str = ""

    def __bool__(self) -> bool:
        return self.kind != "none"

    def __str__(self) -> str:
        if self.kind == "slot":
            return f"slot {self.index} of {self.count}"
        if self.kind == "step":
            return f"t={self.index}"
        if self.kind == "none":
            return self.note
        place = f"@{self.axis}" if self.kind == "axis" else (" in batch" if self.axis == 0 else f" in axis {self.axis}")
        first = f" from {self.index}" if self.index else ""
        return f"{'slots' if self.slots else 'T'}={self.count}{place}{first}"

    def moved(self, axis: int) -> Frames:
        """The same time at another axis (unchanged when time is at no axis)."""
        return replace(self, axis=axis) if self.placed else self

    @property
    def placed(self) -> bool:
        """Whether time is inside one of the tensor's dimensions."""
        return self.kind in ("axis", "folded")

    @property
    def carries(self) -> bool:
        """Whether the tensor's content depends on particular frames: all but states, constants and single frames."""
        return self.kind != "none" or bool(self.note)

    def inner(self, shape: Sequence[int]) -> int:
        """How many elements of dimension `axis` lie inside one frame, contiguously."""
        return shape[self.axis] // (self.outer * self.count)

    def one(self, k: int) -> Frames:
        """The k-th frame of an axis or a folded axis, alone."""
        if self.slots:
            return Frames("slot", index=self.index + k, count=self.slots)
        return Frames("step", index=self.index + k)


NONE = Frames()
MIXED = Frames(note="mixed")
WINDOW = Frames(note="window")  # several slots of one window together: the window's own, once a step
SEVERAL = Frames(note="several")  # a tuple whose tensors differ


def placed(shape: Sequence[int], axis: int, count: int, index: int, outer: int, slots: int = 0) -> Frames:
    """Frames at an axis in their simplest form: one frame is a step or slot, an axis all of time is no folded one."""
    if count == 1:
        return Frames("axis", axis, 1, index, 1, slots).one(0)
    kind: Kind = "axis" if shape[axis] == count else "folded"
    return Frames(kind, axis, count, index, outer, slots)


def mix(parts: Sequence[Frames]) -> Frames:
    """What an operator gives that does not keep these apart."""
    parts = [p for p in parts if p.carries]
    if not parts:
        return NONE
    if all(p == parts[0] for p in parts) and not parts[0].placed:
        return parts[0]
    if all(p.kind == "slot" or p.slots or p == WINDOW for p in parts):
        return WINDOW
    return MIXED


def reshaped(frames: Frames, before: Sequence[int], after: Sequence[int]) -> Frames:
    """The frames of a row-major tensor of shape `before` seen as one of shape `after`."""
    if not frames.placed:
        return frames
    if 0 in after:
        return mix([frames])
    outside = math.prod(before[: frames.axis]) * frames.outer  # elements of this layout: [outside, count, rest]
    seen = 1
    for axis, size in enumerate(after):
        if seen * size >= outside * frames.count and outside % seen == 0 and seen <= outside:
            outer = outside // seen
            if size % (outer * frames.count):
                return mix([frames])
            return placed(after, axis, frames.count, frames.index, outer, frames.slots)
        seen *= size
    return mix([frames])


def split_by_frame(value: torch.Tensor, frames: Frames | None) -> list[tuple[int, torch.Tensor]]:
    """The parts of a tensor by frame: (frame index, tensor) in order of the frames.

    For an axis each tensor lacks that dimension; for a folded axis the dimension holds what is left of it. A tensor of
    one step or slot is one part. A tensor without frames is one part of index 0.
    """
    if frames is None or not frames.placed:
        return [(frames.index if frames is not None else 0, value)]
    first = frames.index
    if frames.kind == "axis":
        return [(first + k, part) for k, part in enumerate(value.unbind(frames.axis))]
    shape, inner = list(value.shape), frames.inner(value.shape)
    apart = value.reshape(*shape[: frames.axis], frames.outer, frames.count, inner, *shape[frames.axis + 1 :])
    shape[frames.axis] = frames.outer * inner
    return [(first + k, part.reshape(shape)) for k, part in enumerate(apart.unbind(frames.axis + 1))]


def frame_layout(program: Program) -> dict[str, Frames]:
    """The frames of every placeholder, constant and call of a Program, by node name.

    Starts from `Input.frames` (None: one frame a step, which needs no place). A node with a tuple of results gets the
    frames they share, `none` when they differ; its `getitem` nodes have each their own.
    """
    from vqc.frame_rules import call_frames  # the rules need this module's vocabulary

    layout: dict[str, Frames] = {}
    several: dict[str, tuple[Frames, ...]] = {}
    declared = {i.name: i.frames for i in program.inputs}
    for n in program.graph.nodes:
        if n.op == "placeholder" and isinstance(declared.get(n.name), Frames):
            f = declared[n.name]
            if f.placed:
                f = placed(n.meta["val"].shape, f.axis, f.count, f.index, f.outer, f.slots)
            layout[n.name] = f
        elif n.op in ("placeholder", "get_attr"):
            layout[n.name] = NONE
        elif n.op == "call_function":
            result = call_frames(n, layout, several)
            if isinstance(result, tuple):
                several[n.name] = result
                layout[n.name] = result[0] if len(set(result)) == 1 else SEVERAL
            else:
                layout[n.name] = result
    return layout

"""What a pass may learn from, and what it may only be judged by: the end of every clip is held out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vqc.calibration.clips import Clips
from vqc.errors import CalibrationError


@dataclass(frozen=True)
class Split:
    """Clips, each with the step from which on it is held out.

    A held-out step needs the state that the steps before it leave, so both parts stay one clip: run it from its reset,
    and ask `learns` at every step. `starts[c]` is the first held-out step of clip c (its length when none is).
    """

    clips: Clips
    starts: tuple[int, ...]

    def learns(self, clip: int, t: int) -> bool:
        """Whether step `t` (counted from reset) of clip number `clip` may be learned from; False: it is held out."""
        return t < self.starts[clip]

    @property
    def learned(self) -> int:
        """How many steps may be learned from."""
        return sum(self.starts)

    @property
    def held(self) -> int:
        """How many steps are held out."""
        return self.clips.frames - self.learned


def split(clips: Clips, share: float = 0.25) -> Split:
    """Hold out the last `share` of every clip's steps, at least one and never all of them.

    A clip of one step is learned from. When no clip has more than one step, whole clips are held out instead: the
    last `share` of them. Raises CalibrationError when there are fewer than two steps in all, or when `share` does not
    lie between 0 and 1.
    """
    if not 0 < share < 1:
        raise CalibrationError(f"a share of {share:g} of the calibration steps cannot be held out",
                               why="something must be left on both sides",
                               way_out="give a share between 0 and 1")  # fmt: skip
    if clips.frames < 2:
        raise CalibrationError(f"the calibration clips hold {clips.frames} frame, too few to learn from",
                               why="what is learned from one frame must be judged by another",
                               way_out="give at least two frames; 32 to 256 of typical content are enough")  # fmt: skip
    lengths = [len(c) for c in clips]
    if max(lengths) == 1:
        kept = len(lengths) - _held(len(lengths), share)
        return Split(clips, tuple(1 if c < kept else 0 for c in range(len(lengths))))
    return Split(clips, tuple(n - _held(n, share) if n > 1 else 1 for n in lengths))


def _held(count: int, share: float) -> int:
    return min(max(1, math.floor(count * share)), count - 1)

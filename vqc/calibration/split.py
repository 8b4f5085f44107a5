"""What a pass may learn from, and what it may only be judged by: whole clips where there are several."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vqc.calibration.clips import Clips
from vqc.errors import CalibrationError

WHOLE = 3  # clips from which on whole ones are held out; of two, half of all scenes would be lost to learning


@dataclass(frozen=True)
class Split:
    """Clips, each with the step from which on it is held out.

    A held-out step needs the state that the steps before it leave, so both parts stay one clip: run it from its reset,
    and ask `learns` at every step. `starts[c]` is the first held-out step of clip c: its length when nothing of it is
    held out, 0 when all of it is.
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
    """Hold out a `share` of the clips, or of one or two clips the last `share` of the steps.

    Of three or more clips whole ones are held out, at least one and never all: a scene that nothing was learned from
    tells what the end of a scene learned from does not. They lie evenly among the clips in their order, and the last
    one is always among them: of clips 0 to 7 and a quarter these are 3 and 7. So clips of one kind, put side by side,
    are on both sides if they are enough. Of fewer clips the end of each is held out, at least one step and never all; a
    clip of one step is learned from, and of two such clips the second is held out.

    Raises CalibrationError when there are fewer than two steps in all, or when `share` does not lie between 0 and 1.
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
    count = len(lengths)
    if count >= WHOLE or max(lengths) == 1:
        held = _held(count, share)
        whole = {(i + 1) * count // held - 1 for i in range(held)}
        return Split(clips, tuple(0 if c in whole else n for c, n in enumerate(lengths)))
    return Split(clips, tuple(n - _held(n, share) if n > 1 else 1 for n in lengths))


def _held(count: int, share: float) -> int:
    return min(max(1, math.floor(count * share)), count - 1)

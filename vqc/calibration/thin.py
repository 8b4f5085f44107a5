"""Whether calibration clips say more of a network than one of their frames would.

A look at observers alone, which hold enough for it and merge exactly, so several processes say what one would. Two
signs were kept of those that were tried on RVM (quantizers in its float graph), RIFE, SRVGG and BiVM with clips of
`vqc.video.CLIPS`: 8 bits, calibrated on some and judged by five frames or more of each other clip, losses being those
of PSNR to float against the best calibration tried for that clip.

- The range of all frames against an average frame's: 1.00 to 1.08 as wide at the median tensor on a frozen frame, 1.03
  to 1.16 on twelve frames of one clip (1.26 on titles), 1.18 and more on three clips of four. By frozen frames RVM lost
  4 to 23 dB on the worst clip, RIFE 3 to 6, SRVGG 1 to 5; by three clips of four RVM 3 and 4, RIFE 1 to 2, SRVGG 1 to
  2. BiVM's picture hardly hangs on calibration, and a note on it warns of little.
- One short clip, which the first sign may miss: RVM lost 3 to 20 dB by twelve frames of one clip, and 32 frames of the
  same brought 6 and 17 dB back for two clips of four, nothing for the others.

How much ranges widen in the second half of the frames does not tell: hardly on a frozen frame, and by more than a
tenth at up to all tensors where three clips are joined. Nor is it seen that nobody is in a clip (the titles) where the
network looks for people: RVM lost 20 dB by 32 frames of it, without a note. `tests/networks/test_thin_calibration.py`
holds the first sign to three networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from vqc.calibration.clips import Clips
from vqc.calibration.observe import Observed
from vqc.calibration.statistics import Statistics
from vqc.program import Program

MARK = "thin calibration: "  # how the note begins, which the history and the command line know it by
# The headroom of recipe int8: where no more lies between the frames, an average one, widened, covers them all.
ENOUGH = 1.1
FRAMES = 32  # of a clip that is the only one: what the errors of `vqc.calibration.clips` ask for as well


def spread(seen: Statistics) -> float | None:
    """The width of the range of all frames over the mean width of one frame's, 1 or more.

    None for a tensor whose range says nothing of the clip: without values, constant, or of two values, such as signs.
    """
    if seen.frames == 0 or np.count_nonzero(seen.counts) <= 2:
        return None
    low, high = seen.range
    mean = float(seen.sum_high - seen.sum_low) / seen.frames
    return (high - low) / mean if mean > 0 else None


def thin(observed: Iterable[Observed], clips: Clips) -> str:
    """What is wrong with clips as calibration data, beginning with MARK; "" where nothing is known to be.

    `observed`: what was seen at every tensor, on these clips. They are thin when they are one clip of fewer than FRAMES
    frames, or when at half of the tensors, or more, the range of all frames is less than ENOUGH times as wide as an
    average frame's. Tensors whose `spread` is None do not count, and where there is no other, no clip is thin.
    """
    spreads = [s for s in (spread(o.total) for o in observed) if s is not None]
    narrow, several = sum(s < ENOUGH for s in spreads), len(clips.clips) > 1
    alike, short = 2 * narrow >= len(spreads), not several and clips.frames < FRAMES
    if not spreads or not (alike or short):
        return ""
    change = moved(clips)
    known = "" if change is None else f", each {100 * change:.2g} % of the pictures' range from the one before"
    return (
        f"{MARK}{_count(clips.frames, 'frame')} of {_count(len(clips.clips), 'clip')}{known}; at {narrow} of "
        f"{_count(len(spreads), 'tensor')} the range of all is less than {100 * (ENOUGH - 1):.0f} % wider than an "
        f"average frame's{', so they say little more than one frame does' if alike else ''}. Larger values of other "
        f"clips may be cut off: give {'clips that differ more' if several else 'several clips'}, with the motion and "
        f"the light of what will be played{f'; one clip alone needs {FRAMES} frames or more' if short else ''}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def moved(clips: Clips) -> float | None:
    """Mean |change| of the inputs from a frame to the next of its clip, as a part of all that was seen of an input.

    None where no clip has two frames. Integers count as numbers, and an input that is always the same as 0.
    """
    parts = []
    for k in range(len(clips.clips[0][0])):
        low, high, changes = math.inf, -math.inf, list[float]()
        for clip in clips:
            for t, step in enumerate(clip):
                x = step[k].float()
                if x.numel():
                    low, high = min(low, float(x.min())), max(high, float(x.max()))
                if x.numel() and t:
                    changes.append(float((x - clip[t - 1][k].float()).abs().mean()))
        if changes:
            parts.append(sum(changes) / len(changes) / (high - low) if high > low else 0.0)
    return sum(parts) / len(parts) if parts else None


def warnings(program: Program) -> list[str]:
    """What the history of a program says of thin calibration."""
    return [note for record in program.history for note in record.notes if note.startswith(MARK)]

"""A calibration clip at several speeds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vqc.errors import CalibrationError


def at_speeds(
    clip: Tensor, speeds: Sequence[int] = (1, 2, 4), *, frames: int | None = None, stretches: int = 1
) -> list[Tensor]:
    """Stretches of a clip, as it is and with frames left out, so that what moves in it moves faster.

    A network that reads motion (interpolation, anything with optical flow) holds in its layers what grows with motion;
    rounding that is fitted to calm clips does not carry over to fast ones. `clip`: [T, ...] frames in their order.
    `speeds`: of 2, every second frame is taken. `frames`: of each stretch, by default as many as fit. `stretches`: of
    each speed. Returns views [frames, ...] of the clip, the first speed's first; their starts are spread over its
    length.

    Raises CalibrationError when a speed is below 1, or the clip too short for two frames, or for `frames`, at each.
    """
    if not speeds or min(speeds) < 1 or stretches < 1:
        raise CalibrationError(f"a clip cannot be had at speeds {tuple(speeds)}, {stretches} times",
                               way_out="give whole numbers from 1 on")  # fmt: skip
    length = clip.shape[0]
    count = (length - 1) // max(speeds) + 1 if frames is None else frames
    if count < 2 or (count - 1) * max(speeds) >= length:
        raise CalibrationError(
            f"a clip of {length} frames has no {max(count, 2)} of them at {max(speeds)} times its speed",
            way_out="take a longer clip, fewer frames or lower speeds",
        )
    found = []
    number = len(speeds) * stretches
    for i in range(number):
        speed = speeds[i // stretches]
        spare = length - ((count - 1) * speed + 1)
        start = spare * i // max(1, number - 1)
        found.append(clip[start : start + (count - 1) * speed + 1 : speed])
    return found

"""Calibration clips at several speeds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vqc.errors import CalibrationError


def at_speeds(
    clips: Tensor | Sequence[Tensor],
    speeds: Sequence[int] = (1, 2, 4, 8),
    *,
    frames: int | None = None,
    stretches: int = 1,
) -> list[Tensor]:
    """Stretches of clips, as they are and with frames left out, so that what moves in them moves faster.

    A network that reads motion (interpolation, anything with optical flow) holds in its layers what grows with motion;
    rounding that is fitted to calm clips does not carry over to fast ones. `clips`: one or several, each [T, ...]
    frames in their order. `speeds`: of 2, every second frame is taken. `frames`: of each stretch, by default as many as
    fit. `stretches`: of each clip at each speed, spread over its length. Returns views [frames, ...] of the clips: all
    at the first speed, then all at the second, and so on; so the first `stretches` times the number of clips are calm,
    if the first speed is 1: `observe{clips=...}` can take ranges from these alone.

    Raises CalibrationError when a speed is below 1, or a clip too short for two frames, or for `frames`, at each.
    """
    given = [clips] if isinstance(clips, Tensor) else list(clips)
    if not speeds or min(speeds) < 1 or stretches < 1:
        raise CalibrationError(f"clips cannot be had at speeds {tuple(speeds)}, {stretches} times",
                               way_out="give whole numbers from 1 on")  # fmt: skip
    counts = [(c.shape[0] - 1) // max(speeds) + 1 if frames is None else frames for c in given]
    for clip, count in zip(given, counts, strict=True):
        if count < 2 or (count - 1) * max(speeds) >= clip.shape[0]:
            raise CalibrationError(
                f"a clip of {clip.shape[0]} frames has no {max(count, 2)} of them at {max(speeds)} times its speed",
                way_out="take a longer clip, fewer frames or lower speeds",
            )
    found = []
    for speed in speeds:
        for clip, count in zip(given, counts, strict=True):
            reach = (count - 1) * speed + 1
            for i in range(stretches):
                start = (clip.shape[0] - reach) * (2 * i + 1) // (2 * stretches)
                found.append(clip[start : start + reach : speed])
    return found

"""A clip played frame by frame, however long it is: what one step looks at is all that is held of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vqc import video
from vqc.errors import InputError
from vqc.report.network import Network
from vqc.report.session import Engine, Playback, play, strip_rows
from vqc.video.read import too_short

Progress = Callable[[str, int, int], None]
STRIP = 4  # rows of the strip


def windows(net: Network, path: Path, frames: int, start: int) -> Iterator[Tensor]:
    """What each step looks at, [net.reach + 1, 3, H, W], over `frames` frames of a clip from `start` on (0: all).

    Raises VideoError for a clip that cannot be read or is shorter than that, at the place where it shows, InputError
    when the network needs more frames for one step.
    """
    enough(net, frames)
    held: deque[Tensor] = deque(maxlen=net.reach + 1)
    count = 0
    for frame in islice(video.iter_frames(path, net.size, start), frames or None):
        held.append(frame)
        count += 1
        if len(held) == net.reach + 1:
            yield torch.stack(tuple(held))
    if count < max(frames, net.reach + 1):
        raise too_short(path, frames or net.reach + 1, start, count, fewer(count, net.reach + 1, start))


def enough(net: Network, frames: int, option: str = "--frames") -> None:
    """Raise InputError for a number of frames (0: all) that is none for a step, with the option that says it."""
    if 0 < frames <= net.reach:
        raise InputError(f"{frames} frames are too few for {net.name}", why=f"a step looks at {net.reach + 1} frames",
                         way_out=f"use {option} {net.reach + 1} or more")  # fmt: skip


def fewer(count: int, least: int, start: int = 0, ahead: int = 0, option: str = "--frames") -> str:
    """The way out when a clip has `count` frames from `start` on, of which the option leaves out `ahead`; `least`: of
    how many something can be made."""
    way = f"use {option} {count - ahead} or fewer" if count >= least else "give a longer clip"
    return f"{way}, or an earlier --start" if start else way


def played(engine: Engine, net: Network, steps: Iterator[Tensor], progress: Progress, total: int, label: str,
           onto: Playback, keep: bool = True) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Play a clip from a reset: what each step looks at, and the picture to be shown of it [C,H,W].

    `onto` gets the times and, with `keep`, the judged pictures. A matte is shown laid over a colour where the network
    gives the person's colours too. `total`: steps, 0 if nobody knows.
    """
    engine.reset()
    for t, window in enumerate(steps):
        play(engine, net, window, onto=onto)
        shown = onto.pictures[-1]
        if onto.foregrounds:
            colours = onto.foregrounds.pop()
            shown = video.composite(colours, shown) if shown.shape[0] == 1 else shown
        if not keep:
            onto.pictures.clear()
        progress(label, t + 1, total)
        yield window, shown


def strip(net: Network, seen: list[Tensor], reference: Playback, shown: Playback) -> Tensor:
    """Some frames of a clip in rows: the frame, the reference's picture, the other's, ten times their difference.

    `seen`: what the steps of `chosen` looked at.
    """
    picked = chosen(len(shown.pictures))
    few = [replace(p, pictures=[p.pictures[t] for t in picked]) for p in (reference, shown)]
    frames = torch.stack([window[net.reach // 2] for window in seen])
    return video.strip(strip_rows(frames, few[0], few[1], count=STRIP))


def chosen(total: int) -> list[int]:
    """The steps that a strip shows, out of so many."""
    return sorted({round(i * (total - 1) / max(1, STRIP - 1)) for i in range(min(STRIP, total))})

"""Which process observes which frames, when several share a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What a frame costs that only moves the state on, where one that is observed costs 1. It was measured on RVM; another
# network's share moves the cuts, never the result.
CARRIED = 0.6


@dataclass(frozen=True)
class Stretch:
    """Frames [first, last) of clip number `clip`."""

    clip: int
    first: int
    last: int


def deal(lengths: Sequence[int], world: int, recurrent: bool) -> list[tuple[Stretch, ...]]:
    """The stretches of every process, so that the slowest is predicted to be done as early as possible.

    `lengths`: frames of every clip, at least `world` in all; every process gets at least one. Without a state, frames
    are independent and are dealt evenly. With one, whole clips are dealt, the longest first, each to who has least
    to do. Only where clips are fewer than processes a clip is cut: who observes its later part has to carry the state
    through the earlier one, so the first part is the longest (`cuts`).
    """
    if sum(lengths) < world:
        raise ValueError(f"{sum(lengths)} frames cannot be dealt to {world} processes")
    if not recurrent:
        return _evenly(lengths, world)
    if len(lengths) >= world:
        return _whole(lengths, world)
    teams = [1] * len(lengths)
    for _ in range(world - len(lengths)):
        able = [c for c in range(len(lengths)) if teams[c] < lengths[c]]
        teams[max(able, key=lambda c: cuts(lengths[c], teams[c])[1])] += 1
    dealt: list[tuple[Stretch, ...]] = []
    for c, (length, team) in enumerate(zip(lengths, teams, strict=True)):
        bounds = cuts(length, team)
        dealt += [(Stretch(c, a, b),) for a, b in zip(bounds, bounds[1:], strict=False)]
    return dealt


def cuts(length: int, parts: int) -> list[int]:
    """Bounds 0 = b_0 < b_1 < .. < b_parts = length of a clip's parts that are predicted to take equally long.

    Part i takes CARRIED * b_{i-1} + (b_i - b_{i-1}); that this is the same for all parts gives
    b_i / length = (1 - q^i) / (1 - q^parts) with q = 1 - CARRIED.
    """
    q = 1 - CARRIED
    ideal = [length * (1 - q**i) / (1 - q**parts) for i in range(parts + 1)]
    bounds = [round(b) for b in ideal]
    for i in range(1, parts):  # rounding leaves no part empty
        bounds[i] = min(max(bounds[i], bounds[i - 1] + 1), length - (parts - i))
    return bounds


def _evenly(lengths: Sequence[int], world: int) -> list[tuple[Stretch, ...]]:
    total, dealt = sum(lengths), list[tuple[Stretch, ...]]()
    for rank in range(world):
        low, high, begin, mine = total * rank // world, total * (rank + 1) // world, 0, []
        for c, length in enumerate(lengths):
            first, last = max(low - begin, 0), min(high - begin, length)
            if first < last:
                mine.append(Stretch(c, first, last))
            begin += length
        dealt.append(tuple(mine))
    return dealt


def _whole(lengths: Sequence[int], world: int) -> list[tuple[Stretch, ...]]:
    dealt: list[list[Stretch]] = [[] for _ in range(world)]
    busy = [0] * world
    for c in sorted(range(len(lengths)), key=lambda c: -lengths[c]):
        rank = busy.index(min(busy))
        dealt[rank].append(Stretch(c, 0, lengths[c]))
        busy[rank] += lengths[c]
    return [tuple(sorted(mine, key=lambda s: s.clip)) for mine in dealt]

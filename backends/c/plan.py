"""The static memory plan: where every arena tensor lies, computed once when the program is compiled.

Three steps. `remove_copies` places a tensor that is only copied somewhere right at its destination (a part of a
concatenation, an output, a state). `share` lets a pointwise result take over its dying operand. `place` gives every
remaining buffer and scratch an offset, so that what is alive at once lies apart: the best of several orders.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from vqc.backends.c.ir import Buffer, Call, Lowered, align


@dataclass
class Life:
    """A stretch of the arena: `size` bytes, alive from call `first` to call `last`, both included."""

    size: int
    first: int
    last: int
    offset: int = -1


@dataclass
class MemoryPlan:
    """Arena offsets by buffer (its own start, wherever it lives), scratch offsets by call, and the arena's size.

    `live`: the most bytes alive at once, scratch included, each life rounded up to 64: no plan is smaller.
    """

    offsets: dict[Buffer, int]
    scratch: dict[Call, int]
    size: int
    lives: list[Life]
    live: int = 0


def remove_copies(calls: Sequence[Call]) -> list[Call]:
    """Give sources of whole copies a home at the destination where that is safe; returns the calls that remain.

    Nothing writes a buffer after its first value, so a source may lie in its destination from the start, with one
    exception: a state still holds its old value, and must not be written before everybody has read that. The last
    reader may be the writer itself when it works element on element.
    """
    last_read: dict[Buffer, int] = {}
    first_write: dict[Buffer, int] = {}
    for i, c in enumerate(calls):
        for b in c.reads:
            last_read[b] = i
        for b in c.writes:
            first_write.setdefault(b, i)
    kept = []
    parts: dict[Buffer, list[Buffer]] = {}  # a buffer -> those that live in it, itself included
    for c in calls:
        if c.copies is None:
            kept.append(c)
            continue
        src, dst, offset = c.copies
        inside = parts.get(src, [src])
        begins = min(first_write[b] for b in inside if b in first_write)
        if src.home is not None or not _free(dst.root()[0], begins, last_read, calls):
            kept.append(c)
            continue
        src.home = (dst, offset)
        target = dst
        while True:  # everything in src is now in dst and in all that dst lives in
            parts.setdefault(target, [target]).extend(inside)
            if target.home is None:
                break
            target = target.home[0]
    return kept


def _free(target: Buffer, begins: int, last_read: dict[Buffer, int], calls: Sequence[Call]) -> bool:
    """Whether a target may be written from call `begins` on."""
    if target.kind != "state" or begins > last_read.get(target, -1):
        return True
    shared = calls[begins].inplace
    if begins < last_read[target] or shared is None:
        return False
    return target in shared[1] and shared[0].size == target.size  # not a part of it: that would be shifted


def _lives(calls: Sequence[Call]) -> dict[Buffer, tuple[int, int]]:
    """First and last call of every arena root, counting what lives in it."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for i, c in enumerate(calls):
        for b in (*c.reads, *c.writes):
            root = b.root()[0]
            if root.kind == "arena":
                lives[root] = (lives.get(root, (i, i))[0], i)
    return lives


def share(calls: Sequence[Call]) -> None:
    """Let an output live in its call's dying input (`Call.inplace`) where nothing else lives in either."""
    hosts = {b.home[0] for c in calls for b in (*c.reads, *c.writes) if b.home is not None}
    lives = _lives(calls)
    for i, c in enumerate(calls):
        if c.inplace is None:
            continue
        out, sources = c.inplace
        if out.home is not None or out.kind != "arena" or out in hosts or lives[out][0] != i:
            continue  # with an earlier call's results in it, it would lie where the source still stands
        for src in sources:
            root = src.root()[0]
            # Memory may pass on along a chain of buffers of one size; a part of a larger one stays its own.
            whole = src.home is None or root in _chains(src)
            if src.kind == "arena" == root.kind and src not in hosts and whole and lives[root][1] == i:
                out.home = (src, 0)
                lives[root] = (lives[root][0], lives[out][1])
                break


def _chains(buffer: Buffer) -> list[Buffer]:
    """The buffers above one that have exactly its size: it shares their memory whole."""
    found = []
    while buffer.home is not None and buffer.home[1] == 0 and buffer.home[0].size == buffer.size:
        buffer = buffer.home[0]
        found.append(buffer)
    return found


def place(lives: Iterable[Life]) -> int:
    """Set every life's offset, a multiple of 64; returns the arena's size in bytes.

    Interval colouring with sizes is hard in general, so several orders are tried, each life at the tightest gap that is
    free over its whole life, and then orders near the best one, drawn from a fixed seed. It ends as soon as a placement
    needs no more than is alive at once; the same lives always give the same offsets.
    """
    items = list(lives)
    bound = most_alive(items)
    best: tuple[int, list[int]] | None = None
    for order in _orders(items):
        offsets = _fit(items, order)
        size = max((offsets[i] + align(x.size) for i, x in enumerate(items)), default=0)
        if best is None or size < best[0]:
            best = size, offsets
        if size == bound:
            break
    if best is None:
        return 0
    if best[0] > bound:
        best = _climb(items, best, bound)
    for x, offset in zip(items, best[1], strict=True):
        x.offset = offset
    return best[0]


CLIMBS = 400  # placements the search near the best order may try
CLIMB_WORK = 200_000_000  # and the pairs of lives it may look at


def _orders(items: Sequence[Life]) -> Iterator[list[int]]:
    """Orders of placing: by size, by size times length of life, by length of life, by first use."""
    keys: tuple[Callable[[Life], tuple[int, ...]], ...] = (
        lambda x: (-x.size, x.first, x.last),
        lambda x: (-x.size * (x.last - x.first + 1), x.first),
        lambda x: (x.first - x.last, -x.size, x.first),
        lambda x: (x.first, -x.size, x.last),
    )
    for key in keys:
        yield sorted(range(len(items)), key=lambda i: (key(items[i]), i))


def _fit(items: Sequence[Life], order: Sequence[int]) -> list[int]:
    """Offsets when lives are placed in this order, each in the tightest gap that is free over its whole life."""
    offsets = [0] * len(items)
    placed: list[int] = []
    for i in order:
        life = items[i]
        taken = sorted(
            (offsets[j], offsets[j] + align(items[j].size)) for j in placed
            if items[j].first <= life.last and life.first <= items[j].last
        )  # fmt: skip
        at, size, best, room = 0, align(life.size), -1, -1
        for start, end in taken:
            if start - at >= size and (best < 0 or start - at < room):
                best, room = at, start - at
            at = max(at, end)
        offsets[i] = best if best >= 0 else at
        placed.append(i)
    return offsets


def _climb(items: Sequence[Life], best: tuple[int, list[int]], bound: int) -> tuple[int, list[int]]:
    """Move what stands highest to the front of the order, or swap two lives at random, as long as it does not harm."""
    rng = random.Random(0)
    order = sorted(range(len(items)), key=lambda i: (best[1][i], i))
    size, offsets = best
    for _ in range(min(CLIMBS, CLIMB_WORK // max(1, len(items) ** 2))):
        tried = list(order)
        top = max(range(len(items)), key=lambda i: (offsets[i] + align(items[i].size), i))
        if rng.random() < 0.5:
            tried.remove(top)
            tried.insert(rng.randrange(len(tried) + 1), top)
        else:
            a, b = rng.randrange(len(tried)), rng.randrange(len(tried))
            tried[a], tried[b] = tried[b], tried[a]
        found = _fit(items, tried)
        new = max(found[i] + align(x.size) for i, x in enumerate(items))
        if new <= size:
            size, offsets, order = new, found, tried
        if size == bound:
            break
    return size, offsets


def most_alive(lives: Sequence[Life]) -> int:
    """The most bytes alive at once."""
    change: dict[int, int] = {}
    for x in lives:
        change[x.first] = change.get(x.first, 0) + align(x.size)
        change[x.last + 1] = change.get(x.last + 1, 0) - align(x.size)
    alive = most = 0
    for at in sorted(change):
        alive += change[at]
        most = max(most, alive)
    return most


def make_plan(lowered: Lowered) -> MemoryPlan:
    """Plan a lowered program; its list of calls loses the copies that are not needed any more."""
    lowered.calls = remove_copies(lowered.calls)
    share(lowered.calls)
    roots = {b: Life(b.size, first, last) for b, (first, last) in _lives(lowered.calls).items()}
    scratch = {c: Life(c.scratch * lowered.workers, i, i) for i, c in enumerate(lowered.calls) if c.scratch}
    size = place([*roots.values(), *scratch.values()])
    offsets = {}
    for c in lowered.calls:
        for b in (*c.reads, *c.writes):
            root, offset = b.root()
            if root.kind == "arena":
                offsets[b] = roots[root].offset + offset
    lives = [*roots.values(), *scratch.values()]
    return MemoryPlan(offsets, {c: s.offset for c, s in scratch.items()}, size, lives, most_alive(lives))

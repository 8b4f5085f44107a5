"""The program after every pass of a recipe, and what its nodes stand for in the float twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vqc
from vqc.pipeline import Exact, Lossy, Pass, Pipeline
from vqc.program import Program
from vqc.report.twins import Links, follow, own_links, unmatched


@dataclass(frozen=True)
class Version:
    """A program after one pass.

    `name`: the pass as text. `promise`: "exact", "close" or "lossy". `links`: by node, what it stands for in the twin;
    empty before the twin. `measured`: False where it equals the version before it, because the pass changed nothing or
    promises equal bits, so that running it again would show nothing new.
    """

    name: str
    promise: str
    program: Program
    links: Links
    measured: bool


@dataclass(frozen=True)
class Versions:
    """All versions in order, with the program they began with and the float twin (as before the first lossy pass)."""

    start: Program
    twin: Program
    passes: tuple[Version, ...]

    @property
    def last(self) -> Version:
        return self.passes[-1]

    @property
    def unmatched(self) -> list[str]:
        """Layers of the twin that nothing in the last program could be matched with."""
        return unmatched(self.twin, self.last.links)


def collect(program: Program, recipe: str | Pipeline, *, calibration: Any = None, seed: int = 0,
            progress: Callable[[str, int, int], None] | None = None, workdir: Path | None = None
            ) -> Versions:  # fmt: skip
    """Apply a recipe and keep the program after every pass. Raises what `vqc.apply` raises."""
    seen: list[tuple[Pass, Program, Program]] = []
    vqc.apply(program, recipe, calibration=calibration, seed=seed, progress=progress, workdir=workdir,
              callback=lambda p, before, after, _: seen.append((p, before, after)))  # fmt: skip
    return versions_of(program, seen)


def versions_of(start: Program, seen: list[tuple[Pass, Program, Program]]) -> Versions:
    """Versions from what a pipeline's callback was given: (pass, before, after) in order."""
    lossy = [i for i, (p, _, _) in enumerate(seen) if isinstance(p.numerics, Lossy)]
    first = lossy[0] if lossy else len(seen)
    twin = seen[first][1] if lossy else (seen[-1][2] if seen else start)
    links: Links = {}
    made = []
    for i, (p, before, after) in enumerate(seen):
        if i >= first:
            links = follow(before, after, own_links(twin) if i == first else links)
        same = isinstance(p.numerics, Exact) or _equal(before, after)
        measured = not same or i == len(seen) - 1
        made.append(Version(str(p), type(p.numerics).__name__.lower(), after, links, measured))
    if not made or not lossy:
        made.append(Version("(no lossy pass)", "exact", twin, own_links(twin), measured=True))
    return Versions(start, twin, tuple(made))


def _equal(a: Program, b: Program) -> bool:
    """Whether two programs are the same text over the same tensors."""
    if a.constants.keys() != b.constants.keys() or str(a) != str(b):
        return False
    return all(x is y or (isinstance(x, torch.Tensor) and torch.equal(x, y))
               for x, y in zip(a.constants.values(), (b.constants[k] for k in a.constants), strict=True))  # fmt: skip

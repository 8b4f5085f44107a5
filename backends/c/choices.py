"""What lowering may choose freely, since the results are equal: how many output rows a task of a convolution takes.

A rule asks `Lowering.rows(geometry)`. It gets what tuning found for that geometry, else the geometry's own estimate.
tune.py lowers a program once for every candidate and keeps the fastest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125)  # candidates, as parts of the estimate; the estimate is the first


class Sized(Protocol):
    """A convolution's sizes: a frozen dataclass, whose text tells it from all others."""

    @property
    def out(self) -> tuple[int, ...]: ...

    @property
    def stride(self) -> tuple[int, ...]: ...

    def rows(self, workers: int) -> int: ...


@dataclass(frozen=True)
class Asked:
    """A question of a lowering rule: its key, and the candidates, the estimate first."""

    key: str
    candidates: tuple[int, ...]


def candidates(geometry: Sized, workers: int) -> tuple[int, ...]:
    """Numbers of rows to try, different ones, the estimate first."""
    most = geometry.out[-2]
    if getattr(geometry, "transposed", False):  # rows of one phase
        most = -(-most // geometry.stride[-2])
    estimate = geometry.rows(workers)
    return tuple(dict.fromkeys([estimate, *(max(1, min(most, round(estimate * f))) for f in FACTORS)]))


@dataclass
class Choices:
    """Answers for one lowering, and what was asked.

    `known`: rows by key, from tuning. `turn`: while tuning, the candidate that everything gets (the last one where
    there are fewer). `asked`: by the name of the node.
    """

    known: dict[str, int] = field(default_factory=dict)
    turn: int | None = None
    asked: dict[str, Asked] = field(default_factory=dict)

    def rows(self, geometry: Any, workers: int, node: str) -> int:
        """Output rows of one task of the convolution of a node."""
        found = Asked(f"{geometry!r} workers={workers}", candidates(geometry, workers))
        self.asked[node] = found
        if self.turn is not None:
            return found.candidates[min(self.turn, len(found.candidates) - 1)]
        rows = self.known.get(found.key, found.candidates[0])
        return rows if rows in found.candidates else found.candidates[0]

"""What the door did with each graph, kept for `vqc.backend.reports()` and said to the log."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("vqc")

_KEPT = 256  # reports of the most recent graphs


@dataclass
class PartReport:
    """One Dynamo graph: which engine runs it and how, and every later change of mind.

    `engine` is a target's name; `route` says how the graph is compiled; `calls` counts its operators, `constants` the
    weights bound into the code, `states` the tensors it writes; `compilations` counts what was compiled for it.
    """

    number: int
    engine: str
    route: str = ""
    calls: int = 0
    constants: int = 0
    states: int = 0
    compilations: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    details: Any = None  # the backend's own CompileReport, when a Program was compiled
    listener: Callable[[PartReport], None] | None = field(default=None, repr=False)

    def note(self, text: str) -> None:
        """Say something to the log, once."""
        if text not in self.notes:
            self.notes.append(text)
            logger.info("graph %d: %s", self.number, text)

    def publish(self) -> None:
        """Tell the user's listener how things stand."""
        logger.info("%s", self)
        if self.listener is not None:
            self.listener(self)

    def __str__(self) -> str:
        head = (
            f"graph {self.number}: {self.engine}, {self.route}; {self.calls} operators, "
            f"{self.constants} weights bound, {self.states} states, "
            f"{self.compilations} compilations in {self.seconds:.1f} s"
        )
        return "\n".join([head, *(f"  {n}" for n in self.notes)])


_reports: deque[PartReport] = deque(maxlen=_KEPT)
_count = 0


def new_report(engine: str, listener: Callable[[PartReport], None] | None) -> PartReport:
    global _count
    _count += 1
    report = PartReport(_count, engine, listener=listener)
    _reports.append(report)
    return report


def reports() -> list[PartReport]:
    """The reports of the graphs compiled last, oldest first."""
    return list(_reports)


def forget() -> None:
    """Drop all reports and count from one again."""
    global _count
    _reports.clear()
    _count = 0

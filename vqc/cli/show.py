"""What the commands print: errors, tables, and progress as a bar on a terminal or as plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from vqc import distributed
from vqc.errors import VqcError
from vqc.report.tables import columns

LOG_WIDTH = 140  # columns of a table that no terminal bounds
LAYER_WIDTH = 200  # and of one that lists layers
EVERY = 10.0  # seconds between two lines of one stage in a log


def out() -> Console:
    """The console of results (made anew each time, so that redirection is seen); only the first process prints."""
    console = Console(soft_wrap=True, highlight=False, quiet=not distributed.current().first)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def err(quiet: bool = False) -> Console:
    """The console of errors and progress."""
    return Console(stderr=True, soft_wrap=True, highlight=False, quiet=quiet)


def show_error(error: VqcError) -> None:
    """Print what, where, why and the way out."""
    console = err()
    shard = distributed.current()
    who = f"process {shard.rank}: " if shard.world > 1 else ""
    console.print(f"{who}[bold red]error:[/] {escape(error.what)}")
    for label, text in (("where", error.where), ("why", error.why), ("way out", error.way_out)):
        if text:
            console.print(f"  [bold]{label}:[/] {escape(text)}")


def table(rows: Sequence[dict[str, str]], title: str | None = None) -> None:
    """Print rows as a table; the first column is text, the others are numbers."""
    made = Table(title=title)
    names = columns(rows)
    for i, name in enumerate(names):
        made.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(escape(row.get(name, "–")) for name in names))
    console = out()
    console.print(made, soft_wrap=False)


def show_layers(rows: Sequence[dict[str, str]], title: str) -> None:
    """Print the rows of layers as a table that is as wide as it needs to be when no terminal bounds it."""
    made = Table(title=title, pad_edge=False)
    names = columns(rows)
    for name in names:
        text = name in ("node", "operator", "kernel", "result")
        made.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        made.add_row(*(escape(row.get(name, "–")) for name in names))
    console = out()
    if not console.is_terminal:
        console.width = LAYER_WIDTH
    console.print(made, soft_wrap=False)


class Reporter:
    """A progress callback `(text, done, total)`: a bar a stage on a terminal, else a line at its begin and end."""

    def __init__(self) -> None:
        self.console = err(quiet=not distributed.current().first)
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.said: dict[str, float] = {}
        if self.console.is_terminal:
            self.bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                                 TimeRemainingColumn(), console=self.console)  # fmt: skip

    def __enter__(self) -> Reporter:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
                 ) -> None:  # fmt: skip
        if self.bars is not None:
            self.bars.stop()

    def say(self, text: str) -> None:
        """One line about what happens now."""
        self.console.print(escape(text))

    def __call__(self, text: str, done: int, total: int) -> None:
        if self.bars is not None:
            if text not in self.tasks:
                self.tasks[text] = self.bars.add_task(escape(text), total=total)
            self.bars.update(self.tasks[text], completed=done, total=total)
            return
        now = time.monotonic()
        if text not in self.said or done == total or now - self.said[text] >= EVERY:
            self.said[text] = now
            self.console.print(f"{escape(text)}: {done} of {total}")

"""What the commands print: errors, tables, one JSON document, and progress as bars or as plain lines in a log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import vqc
from vqc import distributed
from vqc.errors import VqcError
from vqc.report.tables import columns

LOG_WIDTH = 140  # columns of a table that no terminal bounds
LAYER_WIDTH = 200  # and of one that lists layers
EVERY = 10.0  # seconds between two lines of one stage in a log

Rows = Sequence[dict[str, str]]


def out() -> Console:
    """The console of results (made anew each time, so that redirection is seen); only the first process prints."""
    console = Console(soft_wrap=True, highlight=False, quiet=not distributed.current().first)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def err(quiet: bool = False) -> Console:
    """The console of errors and progress."""
    return Console(stderr=True, soft_wrap=True, highlight=False, quiet=quiet)


def show_error(error: VqcError, of: str = "") -> None:
    """Print what, where, why and the way out; `of`: the one thing among many that it is about."""
    console = err()
    shard = distributed.current()
    who = f"process {shard.rank}: " if shard.world > 1 else ""
    about = f"{of}: " if of else ""
    console.print(f"{who}[bold red]error:[/] {escape(about + error.what)}")
    for label, text in (("where", error.where), ("why", error.why), ("way out", error.way_out)):
        if text:
            console.print(f"  [bold]{label}:[/] {escape(text)}")


def error_data(error: VqcError) -> dict[str, str]:
    """An error in a JSON document."""
    return {"kind": type(error).__name__, "what": error.what, "where": error.where, "why": error.why,
            "way_out": error.way_out}  # fmt: skip


def plain(value: Any) -> Any:
    """A value as JSON has it: paths as text, tuples as lists; numbers that are not finite as "inf", "-inf", "nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value) if isinstance(value, Path) else repr(value)


def print_json(command: str, ok: bool, data: Mapping[str, Any]) -> None:
    """Print the one document of a command: `vqc` (the version), `command`, `ok`, and what the command says."""
    if distributed.current().first:
        document = {"vqc": vqc.__version__, "command": command, "ok": ok} | plain(data)
        print(json.dumps(document, indent=2, allow_nan=False), flush=True)


class Answer:
    """What a command says on stdout: lines and tables as they come or, with `json`, one document at the end."""

    def __init__(self, command: str, json: bool):
        self.command, self.json = command, json

    def line(self, text: str = "", style: str | None = None) -> None:
        """A line of text, taken as it stands."""
        if not self.json:
            out().print(text, style=style, markup=False)

    def table(self, rows: Rows, title: str | None = None) -> None:
        """Rows as a table; the first column is text, the others are numbers."""
        if not self.json:
            _table(rows, title)

    def layers(self, rows: Rows, title: str) -> None:
        """Rows of layers as a table that is as wide as it needs to be when no terminal bounds it."""
        if not self.json:
            _layers(rows, title)

    def wrote(self, paths: Sequence[Path]) -> None:
        """A line for every file written."""
        for path in paths:
            self.line(f"wrote {path}")

    def give(self, ok: bool = True, **data: Any) -> None:
        """Print the document, if it was asked for."""
        if self.json:
            print_json(self.command, ok, data)


def _table(rows: Rows, title: str | None) -> None:
    made = Table(title=title)
    names = columns(rows)
    for i, name in enumerate(names):
        made.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(escape(row.get(name, "–")) for name in names))
    out().print(made, soft_wrap=False)


def _layers(rows: Rows, title: str) -> None:
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
    """A progress callback `(text, done, total)` on stderr: a bar a stage on a terminal, else plain lines now and then.

    A total of 0 means that nobody knows it. `warnings`: all that was warned of, for the command's document.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []
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

    def warn(self, texts: Sequence[str]) -> None:
        """A line for everything that is no error and that the user should know."""
        self.warnings += texts
        for text in texts:
            self.console.print(f"[bold yellow]warning:[/] {escape(text)}")

    def __call__(self, text: str, done: int, total: int) -> None:
        if self.bars is not None:
            if text not in self.tasks:
                self.tasks[text] = self.bars.add_task(escape(text), total=total or None)
            self.bars.update(self.tasks[text], completed=done, total=total or None)
            return
        now = time.monotonic()
        if text not in self.said or done == total or now - self.said[text] >= EVERY:
            self.said[text] = now
            self.console.print(f"{escape(text)}: {done}" + (f" of {total}" if total else " so far"))

    def forget(self) -> None:
        """The stages so far are over: their bars go, and stages of the same names begin anew."""
        if self.bars is not None:
            for task in self.tasks.values():
                self.bars.remove_task(task)
            self.bars.refresh()  # what is printed next then stands where they were
        self.tasks, self.said = {}, {}

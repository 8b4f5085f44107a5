"""The wild networks of the tests in C: which are lowered whole, how close they are, how fast beside eager PyTorch.

    python -m benchmarks.wild_c [NAME ...] [--target portable] [--time]

One row a network: calls of its program, operators without a kernel, the largest error relative to the largest value
(PyTorch's result on numbers capture has not seen), and with --time milliseconds of both on one thread, the least of
several runs.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vqc
from vqc.backends.c.backend import unsupported
from vqc.errors import VqcError
from vqc.program import op_text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "wild"))

TOLERANCE = 1e-4


@dataclass
class Row:
    """What became of one network; `error` is relative, times are milliseconds, None where not taken."""

    name: str
    calls: int
    missing: dict[str, int]
    error: float | None = None
    eager_ms: float | None = None
    c_ms: float | None = None
    note: str = ""

    @property
    def whole(self) -> bool:
        return not self.missing and not self.note and self.error is not None and self.error <= TOLERANCE


def difference(got: Any, want: Any) -> float:
    """The largest error of any tensor relative to its largest value (1 at least)."""
    from torch.utils import _pytree as pytree

    worst = 0.0
    for g, w in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        if isinstance(w, torch.Tensor) and w.numel():
            g, w = (torch.view_as_real(x) if x.is_complex() else x for x in (g, w))
            off = float((g.double() - w.double()).abs().max())
            worst = max(worst, off / max(1.0, float(w.double().abs().max())))
    return worst


def least(run: Callable[[], Any], seconds: float = 1.0) -> float:
    """The least time of a call in milliseconds, over some repeats."""
    run()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best * 1e3


def survey(name: str, target: str, timed: bool) -> Row:
    """Capture, simplify, compile and run one network."""
    import test_wild_capture as wild

    model, example = wild.make(name)
    second = wild.again(example)
    want = wild.eager(model, second)
    program = vqc.apply(wild.captured(model, example), "float")
    missing = Counter(op_text(program.node(d.node).target) for d in unsupported(program, target))
    row = Row(name, len(program.calls), dict(missing))
    if missing:
        return row
    exe = vqc.compile(program, target=target, fallback="none")
    row.error = difference(vqc.Stream(exe)(*wild.clones(second)), want)
    if timed:
        inputs, state = program.flatten_inputs(wild.clones(second)), program.initial_state()
        row.c_ms = least(lambda: exe.trace(inputs, state))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row.eager_ms = least(lambda: model(*wild.clones(second)))
    return row


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| network | calls | without a kernel | error | eager ms | C ms | C / eager |",
             "|---|---:|---|---:|---:|---:|---:|"]  # fmt: skip
    for r in rows:
        missing = r.note or ", ".join(f"{n} x{c}" if c > 1 else n for n, c in r.missing.items()) or "-"
        error = "-" if r.error is None else f"{r.error:.1e}"
        times = ["-"] * 3
        if r.eager_ms is not None and r.c_ms is not None:
            times = [f"{r.eager_ms:.2f}", f"{r.c_ms:.2f}", f"{r.c_ms / r.eager_ms:.2f}"]
        lines.append(f"| {r.name} | {r.calls} | {missing} | {error} | " + " | ".join(times) + " |")
    return "\n".join([*lines, "", f"{sum(r.whole for r in rows)} of {len(rows)} whole"])


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    import test_wild_capture as wild

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks, all if none is named")
    parser.add_argument("--target", default="native")
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for name in options.names or wild.CASES:
        try:
            rows.append(survey(name, options.target, options.time))
        except VqcError as e:
            rows.append(Row(name, 0, {}, note=f"{type(e).__name__}: {str(e).splitlines()[0]}"))
    print(table(rows))


if __name__ == "__main__":
    main()

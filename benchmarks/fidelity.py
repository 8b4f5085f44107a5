"""How faithful every recipe is, beside rounding to nearest and the peers: on the calibration clip, on clips it never
saw, on composites whose matte is known; the state carried.

    python -m benchmarks.fidelity [--models rvm rife srvgg] [--only ROW ...] [--frames 48] [--quick]
                                  [--pipeline NAME=TEXT] [--scenes] [--speeds] [--limit SECONDS]
                                  [-o FOLDER]

Each row runs in a process of its own (benchmarks/fidelity_rows.py). Results go to
benchmarks/results/<processor>/fidelity.json, row by row: one that is run again takes its old place. Pictures (frame,
float, quantized, ten times the difference) go to out/fidelity/ and stay out of the repository: they show people.
--scenes calibrates a matting network on several scenes made of its clip (`vqc.learning.scenes`) instead of stretches of
it; such a row is called ROW@scenes. --speeds calibrates on stretches at several speeds (`vqc.calibration.at_speeds`):
such a row is called ROW@speeds.
--quick plays 8 frames of the held-out clip and keeps nothing unless told where (-o).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.fidelity_rows import Row, rows
from benchmarks.machine import Record, folder, machine, write
from benchmarks.networks import CASES

TOPIC = "fidelity"
QUICK = 8  # frames


def run(command: Sequence[str], answer: Path, limit: float) -> Record:
    """The record that a process writes to `answer`, or {"status": why there is none}. It is stopped after `limit` s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"status": f"stopped after {limit:.0f} s"}
    if done.returncode == 0 and answer.exists():
        return json.loads(answer.read_text(encoding="utf-8"))
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
    print(done.stderr[-4000:], file=sys.stderr)
    ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
    return {"status": f"failed ({ended}): {said[-1][:300]}"}


def missing(row: Row) -> list[str]:
    """The packages that a row needs and that are not installed."""
    return [n for n in row.packages if find_spec(n) is None]


def merged(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """Records in the order of networks and rows; of one network and row the new one."""
    by_key = {(r["model"], r["row"]): r for r in [*old, *new]}
    models, names = [c.model for c in CASES], list(rows())

    def place(key: tuple[str, str]) -> tuple[int, int, str]:
        return models.index(key[0]), names.index(key[1]) if key[1] in names else len(names), key[1]

    return [by_key[k] for k in sorted(by_key, key=place)]


def keep(record: Record, began: Record, where: Path) -> None:
    """Put a record into the file of results at once: a later row that hangs loses nothing."""
    file = where / f"{TOPIC}.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"results": [], "note": ""}
    write(TOPIC, merged(old["results"], [record]), began, where, old["note"])


def shown(record: Record) -> str:
    """A record in one line."""
    head = f"{record['model']} {record['row']}"
    if record["status"] != "ok":
        return f"{head}: {record['status']}"
    parts = [f"{t['clip']}: " + " ".join(f"{k} {v:.4g}" for k, v in t["metrics"].items() if v is not None)
             + "".join(f" (true {k} {v:.4g}, float {t['float_truth'][k]:.4g})" for k, v in t["truth"].items()
                       if v is not None) for t in record["trials"]]  # fmt: skip
    return f"{head}: {record['seconds']} s, {record['peak_mb']} MB; " + "; ".join(parts)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    models = [c.model for c in CASES]
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--only", nargs="+", choices=list(rows()), default=[], metavar="ROW",
                        help=f"these rows alone: {', '.join(rows())}")  # fmt: skip
    parser.add_argument("--pipeline", action="append", default=[], metavar="NAME=TEXT", help="a row of your own")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--scenes", action="store_true", help="calibrate on scenes made of the clip (matting)")
    how.add_argument("--speeds", action="store_true", help="calibrate on the clips at several speeds")
    parser.add_argument("--frames", type=int, default=48, help="of a clip at most")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} frames of the held-out clip; kept only with -o")
    parser.add_argument("--limit", type=float, default=3600, help="seconds a row may take")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--strips", type=Path, default=Path("out/fidelity"), help="folder of the pictures")
    parser.add_argument("-o", "--output", type=Path, help="folder of the results, instead of benchmarks/results/")
    given = parser.parse_args(argv)
    for text in given.pipeline:
        name, equals, pipeline = text.partition("=")
        if not (name and equals and pipeline) or name in rows():
            parser.error(f"--pipeline {text}: expected NAME=TEXT, with a name that is not taken")
    if given.scenes and given.models != ["rvm"]:
        parser.error("--scenes are of people: use --models rvm")
    return given


def wanted(given: argparse.Namespace) -> list[Row]:
    """The rows that the command line asks for: all, if it names none."""
    own = [Row(name, "recipe", text) for name, _, text in (p.partition("=") for p in given.pipeline)]
    chosen = [rows()[n] for n in given.only] if given.only or own else list(rows().values())
    return [*chosen, *own]


def main(argv: list[str] | None = None) -> None:
    """Measure the chosen rows of the chosen networks and keep each when it is done."""
    given = arguments(argv)
    where = given.output or (None if given.quick else folder())
    own = {name: text for name, _, text in (p.partition("=") for p in given.pipeline)}
    with tempfile.TemporaryDirectory() as place:
        for model in given.models:
            for row in wanted(given):
                began, start = machine(), time.perf_counter()
                answer = Path(place) / f"{model}-{row.name}.json"
                command = [sys.executable, "-m", "benchmarks.fidelity_rows", model, row.name, "--cache", place,
                           "--frames", str(QUICK if given.quick else given.frames), "--threads", str(given.threads),
                           "--answer", str(answer), "--strips", str(given.strips.absolute())]  # fmt: skip
                command += [flag for flag in ("--quick", "--scenes", "--speeds") if getattr(given, flag[2:])]
                command += ["--pipeline", own[row.name]] if row.name in own else []
                if absent := missing(row):
                    record = {"status": f"not installed: {', '.join(absent)}"}
                else:
                    record = run(command, answer, given.limit)
                record = {"model": model, "row": row.name, "kind": row.kind} | record
                record["row"] += "@scenes" if given.scenes else "@speeds" if given.speeds else ""
                print(f"[{time.perf_counter() - start:.0f} s] {shown(record)}", flush=True)
                if where is not None:
                    keep(record, began, where)


if __name__ == "__main__":
    main()

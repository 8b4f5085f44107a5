"""A learned recipe at full size: its time and memory, and whether it ends with the same bits when it is killed.

    python -m benchmarks.resume [--recipe ptq4vm-w4a8] [--kills 2] [-o FOLDER]

`vqc apply` runs once undisturbed. Then it runs with another work folder and is killed (SIGKILL) `--kills` times, after
equal parts of the first run's time, before it may end. Writes benchmarks/results/<processor>/resume.json;
`python -m benchmarks.tables` puts the figures into the documents.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import Record, folder, machine, write


def command(model: str, recipe: str, calibration: str, work: Path, out: Path) -> list[str]:
    """The command line of one run."""
    return [sys.executable, "-m", "vqc", "apply", model, "--recipe", recipe, "--calibration", calibration,
            "--workdir", str(work), "-o", str(out)]  # fmt: skip


def measure(model: str, recipe: str, calibration: str, kills: int) -> list[Record]:
    """One record: seconds, memory, kills that met a running program, and whether the files are equal to the byte."""
    with tempfile.TemporaryDirectory() as place:
        whole, broken = Path(place) / "whole.vqc", Path(place) / "broken.vqc"
        began, cpu = time.perf_counter(), _cpu()
        subprocess.run(command(model, recipe, calibration, Path(place) / "a", whole), check=True)
        seconds, cpu = time.perf_counter() - began, _cpu() - cpu
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"undisturbed: {seconds:.0f} s, {cpu:.0f} s of the processor, {peak:.0f} MB", flush=True)
        run, met = command(model, recipe, calibration, Path(place) / "b", broken), []
        for i in range(kills):
            began = time.perf_counter()
            try:
                subprocess.run(run, check=True, timeout=seconds / (kills + 1))
            except subprocess.TimeoutExpired:  # run() has killed it
                met.append(round(time.perf_counter() - began))
                assert not broken.exists(), "a file was there before the run had ended"
            print(f"killed {i + 1}: the work folder has {_files(Path(place) / 'b')} files", flush=True)
        began = time.perf_counter()
        subprocess.run(run, check=True)
        rest = time.perf_counter() - began
        return [{
            "model": model, "recipe": recipe, "calibration": calibration, "s": round(seconds), "cpu_s": round(cpu),
            "peak_mb": round(peak), "killed_after_s": met, "last_run_s": round(rest),
            "same": _digest(whole) == _digest(broken), "bytes": whole.stat().st_size, "threads": 1,
        }]  # fmt: skip


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _files(work: Path) -> int:
    return sum(p.is_file() for p in work.rglob("*"))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="rvm")
    parser.add_argument("--recipe", default="ptq4vm-w4a8")
    parser.add_argument("--calibration", default="pexels")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--note", default="", help="A sentence for the table, such as what else ran.")
    given = parser.parse_args()
    began = machine()
    records = measure(given.model, given.recipe, given.calibration, given.kills)
    print(json.dumps(records[0]))
    print("wrote", write("resume", records, began, given.output or folder(), given.note))


if __name__ == "__main__":
    main()

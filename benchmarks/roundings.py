"""Roundings learned as whole numbers beside soft ones, on a small recurrent network: what is left of the error of
nearest rounding on a clip that nothing was learned from, 4-bit weights, few iterations.

    python -m benchmarks.roundings [--seeds 3] [--iterations 100] [-o FOLDER]

Writes benchmarks/results/<processor>/roundings.json; `python -m benchmarks.tables` puts it into docs/learning.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import vqc
from benchmarks.command import begin, command
from benchmarks.machine import Record, write

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / room) for room in ("", "learning")]

FORWARD = {"soft (`rounding=soft`)": ",rounding=soft", "whole numbers (default)": ""}


def measure(seeds: int, iterations: int) -> list[Record]:
    """A record for each form and seed: the mean squared error left, as a share of that of nearest rounding."""
    from networks import clip, error, low_bits, recurrent

    twin, clips, unseen = recurrent(), [clip(6, seed=s) for s in range(4)], clip(12, seed=99)
    nearest = low_bits(twin, clips)
    before = error(nearest, twin, unseen)
    found = []
    for name, option in FORWARD.items():
        for seed in range(seeds):
            text = f"reconstruct{{iterations={iterations}{option}}}"
            learned = vqc.apply(nearest, text, calibration=clips, twin=twin, seed=seed)
            share = error(learned, twin, unseen) / before
            found.append({"forward": name, "seed": seed, "iterations": iterations, "share": round(share, 4)})
            print(f"{name}, seed {seed}: {share:.3f}", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = command(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=100)
    given, began = begin(parser, argv)
    write("roundings", measure(given.seeds, given.iterations), began, given.output)


if __name__ == "__main__":
    main()

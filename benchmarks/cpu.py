"""vqc beside what a user would pick instead, on this CPU, in one run: networks, layers, the build.

    python -m benchmarks.cpu [--quick] [--only networks layers binary masked build] [--models rvm rife srvgg]
                             [--threads 1 2]

Writes benchmarks/results/<processor>/<topic>.json; `python -m benchmarks.tables` puts the figures into the README.
--quick plays a few frames and a few repeats, to see that everything works, and writes nothing unless told where (-o).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import build, layers, networks
from benchmarks.machine import Record, folder, machine, write
from benchmarks.peers import installed

TOPICS = ("networks", "layers", "binary", "masked", "build")


def _networks(given: argparse.Namespace) -> list[Record]:
    cases = [c for c in networks.CASES if c.model in given.models]
    frames = 2 * networks.TURN if given.quick else given.frames
    return [r for c in cases for r in networks.measure(c, given.threads, frames, peers=given.peers)]


def _layers(given: argparse.Namespace) -> list[Record]:
    shapes = layers.SHAPES[3:4] if given.quick else layers.SHAPES
    return layers.measure(shapes, rounds=3 if given.quick else 40, peers=given.peers)


def _binary(given: argparse.Namespace) -> list[Record]:
    if not given.peers or not installed("openvino"):
        print("binary layers: they are timed beside OpenVINO's")
        return []
    from benchmarks import binary_layers

    few: dict[str, Any] = {"isas": ("full",), "shapes": binary_layers.SHAPES[3:4], "rounds": 5} if given.quick else {}
    return binary_layers.measure(**few)


def _masked(given: argparse.Namespace) -> list[Record]:
    from benchmarks import masked_layers

    few: dict[str, Any] = {"layers": masked_layers.LAYERS[:1], "repeats": 3} if given.quick else {}
    return masked_layers.measure(**few)


def _build(given: argparse.Namespace) -> list[Record]:
    return build.measure()


JOBS: dict[str, Callable[[argparse.Namespace], list[Record]]] = {
    "networks": _networks, "layers": _layers, "binary": _binary, "masked": _masked, "build": _build,
}  # fmt: skip


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    models = [c.model for c in networks.CASES]
    parser.add_argument("--quick", action="store_true", help="a few frames and repeats; kept only with -o")
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=list(TOPICS), help="these topics alone")
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--frames", type=int, default=48, help="of a clip at most")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="vqc and PyTorch alone")
    parser.add_argument("-o", "--output", type=Path, help="folder of the results, instead of benchmarks/results/")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure the chosen topics, one after the other, and write each when it is done."""
    given = arguments(argv)
    for topic in given.only:
        began, start = machine(), time.perf_counter()
        records = JOBS[topic](given)
        print(f"{topic}: {time.perf_counter() - start:.0f} s", flush=True)
        if records and (given.output or not given.quick):
            print("wrote", write(topic, records, began, given.output or folder()))


if __name__ == "__main__":
    main()

"""How a benchmark begins that measures on one thread and writes one file of results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import Record, folder, machine


def command(about: str | None) -> argparse.ArgumentParser:
    """A command line that shows `about`, a module's own text, and has -o, the folder of the results."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=folder(), metavar="FOLDER", help="of the results")
    return parser


def begin(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Record]:
    """The options, and the machine as it is before the work; PyTorch has one thread from here on."""
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    return given, machine()

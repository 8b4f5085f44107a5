"""The wild networks of the tests through `.vqc` files: how many come back, with the same text and the same C.

    python -m benchmarks.wild_files [NAME ...] [-o FOLDER]

Each is captured, put through recipe `float`, saved and loaded; the Program's text and the C that is generated for
target `portable` are compared. Nothing is compiled or timed. Writes benchmarks/results/<processor>/wild-files.json;
`python -m benchmarks.tables` puts the counts into docs/files.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import vqc
from benchmarks.command import begin, command
from benchmarks.machine import Record, write
from vqc.backends.c.backend import generate_model
from vqc.errors import VqcError

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / room) for room in ("", "wild")]


def survey(name: str, place: Path) -> Record:
    """One network's record: whether it was taken, has the same text, and gives the same C; the reason where not."""
    import test_wild_capture as wild

    program = vqc.apply(wild.captured(*wild.make(name)), "float")
    record: Record = {"network": name, "calls": len(program.calls)}
    try:
        vqc.save(program, place / "net.vqc")
        loaded = vqc.load(place / "net.vqc")
    except VqcError as e:
        return record | {"taken": False, "reason": str(e).splitlines()[0]}
    want, got = (generate_model(p, "portable") for p in (program, loaded))
    return record | {"taken": True, "same_text": str(program) == str(loaded),
                     "same_c": (want.sources, want.weights) == (got.sources, got.weights)}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Survey all networks, or the ones named, and write the file."""
    import test_wild_capture as wild

    parser = command(__doc__)
    parser.add_argument("names", nargs="*", help="networks, all if none is named")
    (given, began), found = begin(parser, argv), []
    with tempfile.TemporaryDirectory() as place:
        for name in given.names or wild.CASES:
            found.append(survey(name, Path(place)))
            print(found[-1], flush=True)
    write("wild-files", found, began, given.output)


if __name__ == "__main__":
    main()

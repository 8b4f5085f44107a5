"""Fuzz the reader of `.vqc` files with atheris, guided by which lines of it run.

    pip install atheris; python -m benchmarks.fuzz_files [folder of seeds] [-max_total_time=600] [libFuzzer's options]

An input is a file as it stands, or, behind one byte that says so, a header or a payload that gets a right preamble and
hash, so that what is behind the hash is reached. Every one has to be refused with an ArtifactError or be a valid
Program; any other error, and any import, execution, process or write while it is read, ends the run with the
input in a file `crash-*`. Without a folder of seeds, one with parts of a small program is made.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import corrupt_files
from vqc import spec
from vqc.files import container, inside, operators, read, values


def seeds(folder: Path, data: bytes) -> None:
    """The whole file, its header and its payload, each behind its first byte."""
    header, payload = container.unpack(data, "original")
    parts = {"whole": b"w" + data, "header": b"h" + container.canonical(header), "payload": b"p" + bytes(payload),
             "nothing": b"", "magic": b"w" + data[:80]}  # fmt: skip
    for name, content in parts.items():
        (folder / name).write_bytes(content)


def file_of(data: bytes, original: bytes) -> bytes:
    """The bytes of a file out of an input."""
    kind, rest = data[:1], data[1:]
    if kind not in (b"h", b"p"):
        return rest
    header, payload = container.unpack(original, "original")
    if kind == b"h":
        return corrupt_files.rehashed(rest, bytes(payload))
    return corrupt_files.rehashed(container.canonical(header), rest)


def instrument() -> int:
    """Have atheris watch the lines of the reader's own functions; how many there are."""
    import atheris

    count = 0
    for module in (container, inside, operators, read, values, spec):
        holders = [
            module,
            *(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__),
        ]
        for f in (f for holder in holders for f in vars(holder).values() if inspect.isfunction(f)):
            if f.__module__ == module.__name__:
                atheris.instrument_func(f)
                count += 1
    return count


def main() -> None:
    import atheris

    torch.set_num_threads(1)
    original = corrupt_files.original()
    print(f"{instrument()} functions are watched", flush=True)
    for _ in range(2):  # what PyTorch imports on first use
        read.program_of(original, "original.vqc")
    sys.addaudithook(corrupt_files.hook)
    arguments = sys.argv[1:]
    if all(a.startswith("-") for a in arguments):
        folder = Path(tempfile.mkdtemp(prefix="vqc-seeds-"))
        seeds(folder, original)
        arguments = [str(folder), *arguments]

    def one(data: bytes) -> None:
        corrupt_files.outcome(file_of(data, original))

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

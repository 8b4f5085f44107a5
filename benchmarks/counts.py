"""Counts that the pages tell of: what BiVM costs as papers count it, and how many launches a step has on a GPU.

    python -m benchmarks.counts [-o FOLDER]

Nothing is timed and nothing runs on a GPU. Writes benchmarks/results/<processor>/counts.json;
`python -m benchmarks.tables` puts it into docs/binary.md and docs/triton.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from benchmarks.command import begin, command
from benchmarks.gpu import launches_of
from benchmarks.machine import Record, write
from vqc import video
from vqc.accounting import account
from vqc.backends.triton.lowering import Lowerer
from vqc.backends.triton.spread import spread
from vqc.models._bivm_weights import BIVM_FILE
from vqc.program import Program, op_text
from vqc.report.network import network
from vqc.report.session import recipe_program

SIZE = (288, 512)
DENSITIES = (1.0, 0.5)


def few_bits(name: str) -> Program:
    """The network's program: BiVM in one bit, others in 8, calibrated on the first frames of a clip."""
    net = network(name, SIZE)
    recipe = "xnor" if name == "bivm" else "int8"
    clip = None if name == "bivm" else video.read_clip(video.clip("pexels"), 4, SIZE)
    return recipe_program(net, recipe, clip)


def costs(program: Program) -> list[Record]:
    """Multiply-adds by kind, operations and bytes of a one-bit program, a record for each density of its masks."""
    found = []
    for density in DENSITIES:
        made = account(program, density)
        found.append({"what": "cost", "network": program.name, "density": density, "binary": made.macs("binary"),
                      "float": made.macs("float"), "operations": round(made.operations), "bytes": made.bytes,
                      "file_bytes": BIVM_FILE.stat().st_size})  # fmt: skip
    return found


def launches(name: str, program: Program) -> Record:
    """How many calls become how many launches, and which operators are left to PyTorch."""
    parts, _ = spread(program)
    lowered = Lowerer(parts, torch.device("cpu")).lower()
    left = [op_text(parts.node(d.node).target) for d in lowered.fallbacks]
    made = Counter(m.kernel.partition(".")[2] for _, m in launches_of(program))
    return {"what": "launches", "network": name, "calls": len(program.calls), "launches": sum(made.values()),
            "kernels": dict(made), "left": left}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Count and write."""
    given, began = begin(command(__doc__), argv)
    bivm, rvm = few_bits("bivm"), few_bits("rvm")
    records = [*costs(bivm), launches("bivm", bivm), launches("rvm", rvm)]
    for r in records:
        print(r, flush=True)
    write("counts", records, began, given.output)


if __name__ == "__main__":
    main()

"""Count the instructions of kernels on 64-bit Arm, under qemu: python -m benchmarks.neon_count [--functions] [--write]

No Arm machine is needed: zig cross-compiles neon_count.c with the kernels in it, qemu's user-mode emulator says which
blocks of code run, and what an exit of the block costs is the number of instructions in it. A figure is what one more
repetition of a kernel adds (the second run's count less the first's), so that start-up does not count. The count is the
same in every run and on every machine: it depends on the sources and the pinned compiler alone. It is no time: how many
instructions a core starts together, and what its caches hold, it does not say. `--write` keeps the figures in
results/aarch64-qemu/.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vqc.backends.c.build import find_compiler
from vqc.backends.c.emit import KERNELS
from vqc.report.tables import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "aarch64-qemu" / "instructions.json"
EMULATOR = "qemu-aarch64-static"
FLAGS = ("-target", "aarch64-linux-musl", "-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=off", "-fno-sanitize=all")  # fmt: skip
NAMES = (
    "bconv2d",
    "masked_bconv2d",
    "masked_bconv2d_rows",
    "bconv2d_threshold",
    "binarize",
    "bits_pack",
    "bits_unpack",
)
TWIN = ("-DVQC_GENERIC", *(f"-Dvqc_{name}=plain_{name}" for name in NAMES))


@dataclass(frozen=True)
class Case:
    """A layer to count: what neon_count.c is told (what, channels in and out, rows, columns, kernel).

    `bar`: the most a step of 128 bits (of an output, 128 multiplications of one bit) or an element may cost.
    `function`: count one function alone, for each output; else the whole kernel, for each step.
    """

    what: str
    c: int
    o: int
    h: int
    w: int
    k: int
    bar: float | None = None
    function: str | None = None

    @property
    def units(self) -> float:
        """Steps of 128 bits, elements, or multiplications: what the count is divided by."""
        outputs = self.o * self.h * self.w
        if self.function:
            return outputs
        return outputs * self.c * self.k**2 / (128 if self.what in ("decide", "float") else 1)

    @property
    def name(self) -> str:
        unit = "element" if self.function else "128 bits" if self.what in ("decide", "float") else "product"
        names = {"decide": "binary conv, bits out", "float": "binary conv, fused float epilogue"}
        what = self.function or names.get(self.what, self.what)
        return f"{what} {self.c}->{self.o} @{self.h}x{self.w} k{self.k}, per {unit}"


CASES = (
    Case("decide", 64, 64, 72, 128, 3, 3.6),
    Case("decide", 128, 128, 36, 64, 3, 3.6),
    Case("decide", 256, 256, 18, 32, 3, 3.6),
    Case("decide", 128, 128, 18, 32, 3, 3.6),
    Case("decide", 1024, 128, 18, 32, 1, 3.6),
    Case("decide", 32, 32, 144, 256, 3, 3.6),
    Case("float", 64, 64, 72, 128, 3),
    Case("float", 256, 256, 18, 32, 3),
    Case("float", 64, 64, 72, 128, 3, 5.0, "bc_float"),
    Case("float", 256, 256, 18, 32, 3, 5.0, "bc_float"),
    Case("conv_f32", 32, 32, 36, 64, 3),
)


def build(folder: Path, cpu: str = "generic", conv: bool = False) -> Path:
    """Compile neon_count.c, the kernels and their generic twins into a static program for `cpu` (as zig calls it)."""
    command = [*find_compiler("zig").command, *FLAGS, f"-I{KERNELS}"]
    more = ["-DWITH_CONV"] if conv else []

    def compile_one(source: Path, *flags: str) -> str:
        made = folder / f"{source.stem}{len(flags)}.o"
        _run([*command, *flags, "-c", str(source), "-o", str(made)])
        return str(made)

    kernels = Path(str(KERNELS))
    objects = [compile_one(HERE / "neon_count.c", f"-mcpu={cpu}", *more),
               compile_one(kernels / "vqc_bconv.c", *TWIN), compile_one(kernels / "vqc_common.c")]  # fmt: skip
    if conv:
        objects.append(compile_one(kernels / "vqc_conv_f32.c", f"-mcpu={cpu}", "-ffp-contract=fast"))
    program = folder / f"neon_count_{cpu}"
    _run([*command, *objects, "-o", str(program)])
    return program


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")


def instructions(program: Path, *arguments: str) -> Counter[str]:
    """How many instructions a run of a static aarch64 program executes, by function."""
    command = [EMULATOR, "-d", "in_asm,exec,nochain", "-D", "/dev/stderr", str(program), *arguments]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    length: Counter[str] = Counter()  # of the block that starts at an address
    executed: Counter[str] = Counter()
    function: dict[str, str] = {}
    name, start = "", ""
    for line in run.stderr:
        if line.startswith("Trace"):  # Trace 0: host [flags/address/flags/flags] name
            executed[line.split("/", 2)[1]] += 1
        elif line.startswith("IN:"):  # a block is translated, and listed
            name, start = line[3:].strip(), ""
        elif line.startswith("0x"):
            if not start:
                start = f"{int(line[2 : line.index(':')], 16):016x}"
                function[start], length[start] = name, 0
            length[start] += 1
        elif not line.strip() and start:  # the list has ended; the same block may be translated again
            name, start = "", ""
    if run.wait() != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}")
    counts: Counter[str] = Counter()
    for address, times in executed.items():
        counts[function[address]] += times * length[address]
    return counts


def count(program: Path, case: Case) -> Counter[str]:
    """What one more repetition of a case executes, by function."""
    size = [str(n) for n in (case.c, case.o, case.h, case.w, case.k)]
    return instructions(program, "2", case.what, *size) - instructions(program, "1", case.what, *size)


def figure(program: Path, case: Case) -> float:
    """Instructions for each step, element or product of a case."""
    counts = count(program, case)
    return (counts[case.function] if case.function else counts.total()) / case.units


def main(arguments: Iterable[str] = ()) -> None:
    arguments = tuple(arguments)
    functions = "--functions" in arguments
    found = []
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), conv=True)
        print(f"| {'kernel':<64} | instructions |  bar |\n|{'-' * 66}|{'-' * 14}|{'-' * 6}|")
        for case in CASES:
            counts = count(program, case)
            value = (counts[case.function] if case.function else counts.total()) / case.units
            found.append({"kernel": case.name, "instructions": round(value, 2), "bar": case.bar})
            bar = "" if case.bar is None else f"{case.bar:.1f}"
            print(f"| {case.name:<64} | {value:12.2f} | {bar:>4} |", flush=True)
            for name, n in counts.most_common(5) if functions else []:
                print(f"|   {name:<62} | {n / case.units:12.2f} |      |")
    if "--write" in arguments:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        write_text(RESULTS, json.dumps({"compiler": find_compiler("zig").version, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

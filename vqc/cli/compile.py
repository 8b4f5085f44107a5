"""`vqc compile`: a network made ready to run on this machine, what became of each operator, and its library."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import vqc
from vqc.backends import C_TARGETS
from vqc.backends.c.emit import kernel_files
from vqc.backends.c.runtime import CExecutable
from vqc.backends.c.targets import THREAD_POOL
from vqc.backends.folder import MARKER, check_folder, write_folder
from vqc.cli import figures
from vqc.cli.exits import Misuse
from vqc.cli.inspect import kernel_rows
from vqc.cli.options import (
    Calibration,
    CalibrationFrames,
    Config,
    Json,
    MaybeRecipe,
    Model,
    Size,
    Target,
    Threads,
    Winograd,
    Workdir,
)
from vqc.cli.show import Answer, Reporter
from vqc.cli.work import Job, recipe_for
from vqc.errors import TargetError
from vqc.executable import Executable
from vqc.program import op_text
from vqc.report.network import Network
from vqc.report.session import constant_bytes, use_threads


@dataclass
class Compiled:
    """A network compiled, and the seconds that the recipe (capture and calibration included) and compiling took."""

    net: Network
    executable: Executable
    recipe_s: float
    compile_s: float


def compile(
    model: Model, recipe: MaybeRecipe = None, calibration: Calibration = None, target: Target = "native",
    size: Size = None, calibration_frames: CalibrationFrames = 48, threads: Threads = 1, workdir: Workdir = None,
    tune: Annotated[bool, typer.Option("--tune", help="C: time the variants of each kernel, keep the fastest."
                                       )] = False,
    fallback: Annotated[bool, typer.Option("--fallback/--no-fallback", help="C: run what it cannot take in PyTorch, or "
                                           "fail.")] = True,
    winograd: Winograd = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FOLDER", show_default=False,
                                                help="C: write the library, its header and the weights here.")] = None,
    config: Config = None, json: Json = False,
) -> None:  # fmt: skip
    """Compile a network for this machine: which kernel each operator got, what runs in PyTorch and why, sizes, time.

    What C makes is kept in the cache, so that `vqc run` and the others find it. With -o it is written as a library for
    C programs on machines like this one; for others there is `vqc export`.
    """
    job = Job(model, "", recipe_for(model, recipe), target, calibration, size, calibration_frames=calibration_frames,
              threads=threads, workdir=workdir)  # fmt: skip
    job.check()
    options = _options(target, tune, fallback, output, winograd)
    if output is not None:
        check_folder(output)
    answer = Answer("compile", json)
    with Reporter() as report:
        made = compile_job(job, report, options)
    compiled = made.executable.report
    answer.line(f"{made.net.name}: recipe {job.recipe or 'as stored'} took {made.recipe_s:.1f} s, compiling "
                f"{made.compile_s:.1f} s")  # fmt: skip
    answer.line(str(compiled))
    answer.table(kernel_rows(compiled))
    program = made.executable.program
    eager = [{"node": d.node, "operator": op_text(program.node(d.node).target)} for d in compiled.fallbacks]
    answer.table(eager, "operators that run in PyTorch") if eager else None
    files = [] if output is None else write_library(made, output)
    answer.wrote(files)
    answer.give(network=made.net.name, recipe=job.recipe, recipe_s=made.recipe_s, compile_s=made.compile_s,
                constant_bytes=constant_bytes(program), warnings=report.warnings,
                compiled=figures.compiled(compiled), files=files)  # fmt: skip


def _options(target: str, tune: bool, fallback: bool, output: Path | None, winograd: bool) -> dict[str, Any]:
    """Options for `vqc.compile`. Raises a Misuse for one that only C targets have."""
    given = {"--tune": tune, "--no-fallback": not fallback, "-o": output is not None, "--winograd": winograd}
    wrong = [name for name, used in given.items() if used]
    if target not in C_TARGETS and wrong:
        raise Misuse(TargetError(f"target {target} has no {wrong[0]}", why="it is for C targets",
                                 way_out="leave it out; `vqc apply` keeps a program and `vqc export` writes one for "
                                 "elsewhere"))  # fmt: skip
    chosen = {name: True for name, used in (("tune", tune), ("winograd", winograd)) if used}
    return chosen | ({} if fallback else {"fallback": "none"})


def compile_job(job: Job, report: Reporter, options: dict[str, Any]) -> Compiled:
    """Put a job's network through its recipe and compile it. Raises what capture, passes and `vqc.compile` raise."""
    threads = use_threads(job.threads, job.target)
    began = time.perf_counter()
    net = job.network()
    program = job.program(net, report)
    ready = time.perf_counter()
    report.say(f"compile {net.name}: target {job.target}")
    executable = vqc.compile(program, job.target, **threads, **options)
    return Compiled(net, executable, ready - began, time.perf_counter() - ready)


def write_library(made: Compiled, folder: Path) -> list[Path]:
    """Write the library of a C executable with what a C program needs to use it; the files.

    Raises TargetError for a program of which a part runs in PyTorch, ArtifactError when the folder cannot be written.
    """
    executable = made.executable
    if not isinstance(executable, CExecutable):
        raise TargetError(f"{made.net.name} cannot be written as a library",
                          why=f"{len(executable.report.fallbacks)} of its operators run in PyTorch",
                          way_out="leave -o out, or keep the program with `vqc apply`")  # fmt: skip
    model = executable.model.model
    library = Path(executable.model.library._name)
    heads = {name: text for name, text in model.sources.items() if name in (f"{model.name}.h", "vqc_common.h")}
    if executable.model.threads > 1:
        heads |= {name: text for name, text in kernel_files([THREAD_POOL]).items() if name == "vqc_pool_threads.h"}
    files = {name: text.encode() for name, text in heads.items()}
    files |= {f"lib{model.name}{library.suffix}": library.read_bytes(), f"{model.name}.weights.bin": model.weights}
    files["README.txt"] = _readme(model.name, made.net.licence, sorted(files)).encode()
    files[MARKER] = f"compiled by vqc: {model.name} for {executable.report.target}\n".encode()
    written = write_folder(folder, files)
    return [written / name for name in sorted(files) if name != MARKER]


def _readme(name: str, licence: str, files: list[str]) -> str:
    return (
        f"{name}: one step of a video network as a library for machines like the one that made it.\n\n"
        f"Licence of the weights: {licence or 'unknown: ask who gave you the weights'}\n\n"
        f"Files: {', '.join(files)}\n\n"
        f"{name}.h is the interface; {name}.weights.bin is what {name}_init takes, at a multiple of 64 bytes.\n\n"
        f"    cc -std=c99 -I. main.c -L. -l{name} -Wl,-rpath,. -lm\n"
    )

"""`vqc export`: a network written for elsewhere: C sources, compiled there or, with zig, here; ONNX; others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import vqc
from vqc.backends import C_TARGETS
from vqc.backends.c.cross import build_export
from vqc.backends.c.targets import target_called
from vqc.backends.folder import check_folder
from vqc.cli.exits import Misuse, misuse
from vqc.cli.options import (
    Calibration,
    CalibrationFrames,
    Config,
    Json,
    MaybeRecipe,
    Model,
    Size,
    Target,
    Winograd,
    Workdir,
)
from vqc.cli.show import Answer, Reporter
from vqc.cli.work import Job, recipe_for
from vqc.errors import TargetError
from vqc.report.session import use_threads


def export(
    model: Model, recipe: MaybeRecipe = None, calibration: Calibration = None, target: Target = "native",
    size: Size = None, calibration_frames: CalibrationFrames = 48, workdir: Workdir = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="C: threads it has scratch memory for.")] = 1,
    build: Annotated[bool, typer.Option("--build", help="C: compile it too, with zig.")] = False,
    variant: Annotated[str | None, typer.Option(show_default=False, help="C: with --build, on Arm: the instruction set."
                                                )] = None,
    winograd: Winograd = False,
    sequence: Annotated[bool, typer.Option("--sequence", help="ONNX: a whole clip in one call (Scan), not one step."
                                           )] = False,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the results; a new or "
                                         "empty one, or that of an earlier export.")] = Path("out/export"),
    config: Config = None, json: Json = False,
) -> None:  # fmt: skip
    """Write a network for a target: as C with weights, self-test, build files and README; as ONNX; others."""
    job = Job(model, "", recipe_for(model, recipe), target, calibration, size, calibration_frames=calibration_frames,
              threads=threads, workdir=workdir)  # fmt: skip
    answer = Answer("export", json)
    with Reporter() as report:
        paths = write(job, output, report, build=build, variant=variant, sequence=sequence, winograd=winograd)
    readme = paths[0] / "README.txt"
    answer.wrote(paths)
    answer.line(f"{readme} says how to build and call it" if target in C_TARGETS else f"{readme} says how to use it")
    answer.give(folder=paths[0], files=sorted(p.name for p in paths[0].iterdir() if p.is_file()), programs=paths[1:],
                warnings=report.warnings)  # fmt: skip


def write(job: Job, folder: Path, report: Reporter, *, build: bool = False, variant: str | None = None,
          sequence: bool = False, winograd: bool = False) -> list[Path]:  # fmt: skip
    """Export a job's network, and compile it with zig if asked to; returns the folder and the programs made.

    Raises a Misuse for options that the target does not have, before anything slow begins, ArtifactError then for a
    folder that is no export, and what vqc.export does.
    """
    job.check("export")
    _check_options(job.target, build, variant, sequence, job.threads, winograd)
    check_folder(folder)
    use_threads(job.threads, job.target)
    net = job.network()
    program = job.program(net, report)
    options: dict[str, Any] = {"licence": net.licence}
    if job.target in C_TARGETS:
        options |= {"threads": job.threads, "winograd": winograd}
    if sequence:
        options["sequence"] = True
    report.say(f"export {net.name}: target {job.target}")
    made = vqc.export(program, folder, job.target, **options)
    programs = build_export(made, job.target, variant) if build else {}
    return [made, *programs.values()]


def _check_options(target: str, build: bool, variant: str | None, sequence: bool, threads: int,
                   winograd: bool) -> None:  # fmt: skip
    if build and target in C_TARGETS:
        with misuse(TargetError):
            target_called(target).variant(variant)
    only_c = (("--build", build), ("--variant", variant), ("--winograd", winograd))
    wrong = [name for name, given in only_c if given and target not in C_TARGETS]
    if sequence and target.split(":")[0] != "onnx":
        wrong.append("--sequence")
    if wrong:
        kind = "ONNX (onnx, onnx:exact)" if wrong[0] == "--sequence" else "C"
        raise Misuse(TargetError(f"target {target} has no {wrong[0]}", why=f"it is for targets of {kind}",
                                 way_out="leave it out, or choose another target (`vqc targets`)"))  # fmt: skip
    if threads != 1 and target not in C_TARGETS:
        raise Misuse(TargetError(f"target {target} has no --threads", why="what is written says nothing of threads: "
                                 "the program that reads it chooses them", way_out="leave it out (in a configuration "
                                 f"file: threads = 1 under [export]); to calibrate by {threads} threads, write a file "
                                 "with `vqc apply --threads` and export that"))  # fmt: skip
    if variant and not build:
        raise Misuse(TargetError("--variant does nothing without --build", way_out="add --build, or choose it in the "
                                 "Makefile: make VQC_VARIANT=..."))  # fmt: skip

"""`vqc apply`: a network put through a recipe, as a `.vqc` file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import vqc
from vqc.accounting import Account, account
from vqc.cli.exits import misuse
from vqc.cli.options import Calibration, CalibrationFrames, Config, Json, MaybeRecipe, Model, Size, Threads, Workdir
from vqc.cli.show import Answer, Reporter
from vqc.cli.work import Job, parse_speeds, recipe_for
from vqc.errors import InputError
from vqc.files import about
from vqc.files.write import summary_of
from vqc.program import Program
from vqc.report.network import Network
from vqc.report.session import use_threads
from vqc.report.stored import ENDING, is_stored, notes_of
from vqc.report.tables import folder


def apply(
    model: Model, recipe: MaybeRecipe = None, calibration: Calibration = None, size: Size = None,
    calibration_frames: CalibrationFrames = 48,
    calibration_speeds: Annotated[str | None, typer.Option(
        metavar="1,2,...", show_default=False,
        help="Take the frames of calibration clips at these speeds (2: every second one), the first speed first: for "
        "networks that read motion.")] = None,
    threads: Threads = 1, workdir: Workdir = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.vqc", help="The file to write."
                                         )] = Path("out.vqc"),
    config: Config = None, json: Json = False,
) -> None:  # fmt: skip
    """Put a network through a recipe and write the program as a .vqc file, which every command takes as a model."""
    with misuse(InputError):
        check_name(output)
        speeds = parse_speeds(calibration_speeds)
    job = Job(model, "", recipe_for(model, recipe), "reference", calibration, size,
              calibration_frames=calibration_frames, calibration_speeds=speeds, threads=threads,
              workdir=workdir)  # fmt: skip
    job.check()
    folder(output.parent)
    answer = Answer("apply", json)
    with Reporter() as report:
        use_threads(threads, job.target)
        net = job.network()
        program = job.program(net, report)
    path = save_program(job, net, program, output)
    answer.line(f"wrote {path}, {path.stat().st_size / 1e6:.2f} MB")
    made = account(program)
    answer.line(kinds_line(made, path))
    answer.give(file=path, bytes=path.stat().st_size, about=about(path), warnings=report.warnings,
                multiply_adds={kind: made.macs(kind) for kind in made.bytes_of})  # fmt: skip


def kinds_line(made: Account, path: Path) -> str:
    """How much of a program computes with which numbers, and where it is told why no more has few bits."""
    every = sum(w.macs for w in made.layers)
    shares = [f"{100 * made.macs(kind) / every:.1f} % {kind}" for kind in made.bytes_of if made.macs(kind)]
    if not shares:
        return "no convolutions or linear layers"
    more = f"; vqc inspect {path} says why" if made.macs("float") else ""
    return f"multiply-adds: {', '.join(shares)}{more}"


def check_name(path: Path) -> None:
    """Raise InputError for a name that is not that of a program's file."""
    if path.suffix != ENDING:
        raise InputError(f"the result cannot be called {path.name}", why=f"a program's file ends in {ENDING}",
                         way_out=f"write -o {path.with_suffix(ENDING)}")  # fmt: skip


def save_program(job: Job, net: Network, program: Program, path: Path) -> Path:
    """Write a program with what it was made from. Raises ArtifactError."""
    calibration: dict[str, Any] = {}
    before = about(job.model) if is_stored(job.model) else None
    clips = job.calibration_clips(net)
    if clips is not None:
        calibration = {
            "names": [Path(n).name for n in job.calibration_names],
            **summary_of(program, [net.steps(c) for c in clips]),
            **({"speeds": list(job.calibration_speeds)} if job.calibration_speeds else {}),
        }
    elif before is not None:
        calibration = before["calibration"]
    recipe = ",".join(filter(None, (before["recipe"] if before else "", job.recipe)))
    return vqc.save(program, path, recipe=recipe, calibration=calibration, licence=net.licence, network=notes_of(net))


def file_lines(path: str) -> list[str]:
    """What a file says of itself, for people."""
    said = about(path)
    lines = [f"file {path}, written by vqc {said['vqc']} with PyTorch {said['torch']}", f"  recipe: {said['recipe']}"]
    if said["licence"]:
        lines.append(f"  licence of the weights: {said['licence']}")
    c = said["calibration"]
    if c:
        names = ", ".join(Path(str(n)).name for n in c.get("names", []))
        speeds = ", ".join(f"{s}" for s in c.get("speeds", []))
        lines.append(f"  calibrated on {c.get('steps')} steps{f' of {names}' if names else ''}"
                     f"{f' at speeds {speeds}' if speeds else ''}")  # fmt: skip
    return lines

"""`vqc report`: where, when and why a quantized network differs from its float self."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vqc.calibration.thin import warnings
from vqc.cli.exits import Misuse
from vqc.cli.options import (
    Calibration,
    CalibrationFrames,
    Clip,
    Config,
    Frames,
    Json,
    Model,
    Recipe,
    Size,
    Start,
    TargetOrNone,
    Threads,
    Workdir,
)
from vqc.cli.show import Answer, Reporter
from vqc.cli.work import Job
from vqc.errors import InputError
from vqc.program import Program, op_text
from vqc.report import text
from vqc.report.bisect import bisect
from vqc.report.gather import quantization_report
from vqc.report.html import page
from vqc.report.network import Network
from vqc.report.quantization import QuantizationReport
from vqc.report.session import captured, use_threads
from vqc.report.stored import is_stored
from vqc.report.tables import folder, write_text
from vqc.report.versions import collect


def report(
    model: Model, clip: Clip, recipe: Recipe = "int8", calibration: Calibration = None, target: TargetOrNone = "none",
    frames: Frames = 24, size: Size = None, start: Start = 0, calibration_frames: CalibrationFrames = 48,
    threads: Threads = 1, workdir: Workdir = None,
    bound: Annotated[float, typer.Option(help="SQNR in dB whose first fall is sought.")] = 20,
    only_bisect: Annotated[bool, typer.Option("--bisect", help="Only seek that fall.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.html", show_default=False,
                                                help="Write a page of HTML.")] = None,
    config: Config = None, json: Json = False,
) -> None:  # fmt: skip
    """Report where, when and why a quantized network differs from float: by layer, frame and pass; text or HTML."""
    job = Job(model, clip, recipe, target, calibration, size, frames, start, calibration_frames, threads, workdir)
    run_report(job, output, bound, json=json, only_bisect=only_bisect)


def run_report(job: Job, output: Path | None, bound: float, *, json: bool, only_bisect: bool) -> None:
    """The command: the report as text or JSON, and as a page into `output`; or the bisect alone.

    Raises Misuse, VideoError and ArtifactError before anything slow begins.
    """
    compiled = None if job.target == "none" else job.target
    if only_bisect and output is not None:
        raise Misuse(InputError("--bisect writes no page", why="it only seeks the first fall",
                                way_out="leave out --bisect or -o"))  # fmt: skip
    replace(job, target=compiled or "reference").check()
    if output is not None:
        folder(output.parent)
    answer = Answer("report", json)
    with Reporter() as progress:
        net = job.network()
        if is_stored(job.model) and any(op_text(n.target).startswith("vqc.q") for n in net.program.calls):
            raise Misuse(InputError(f"the program in {job.model} is quantized already",
                                    why="the file holds no float network to compare it with",
                                    way_out="report on the network that it was made from, with --recipe"))  # fmt: skip
        steps = net.steps(job.read(net, net.reach))
        read = job.calibration_clips(net)
        clips = None if read is None else [net.steps(clip) for clip in read]
        use_threads(job.threads, job.target)
        program = named(net)
        if only_bisect:
            versions = collect(program, job.recipe, calibration=clips, progress=progress, workdir=job.workdir)
            first = bisect(versions, steps, bound, progress)
            progress.warn(warnings(versions.last.program))
        else:
            made = quantization_report(
                program, job.recipe, steps, calibration=clips, picture=net.picture, bound=bound, target=compiled,
                clip=Path(job.clip).stem, calibration_name=job.calibration_name, progress=progress, workdir=job.workdir,
            )  # fmt: skip
            progress.warn(made.notes)
    if only_bisect:
        for line in text.first_lines(first, bound):
            answer.line(line)
        answer.give(bound=bound, first=None if first is None else dataclasses.asdict(first), warnings=progress.warnings)
        return
    if json:
        typer.echo(made.to_json())
    else:
        show(made, answer)
    if output is not None:
        write_text(output, page(made))
        answer.wrote([output])


def named(net: Network) -> Program:
    """The network's program; results of a network of the registry have its names for them."""
    program = captured(net)
    if net.entry is not None:
        names = list(program.outputs)
        for leaf, name in zip(program.signature.out_leaves, net.entry.outputs, strict=False):
            if leaf.kind == "output":
                names[leaf.index] = name
        program.outputs = tuple(names)
    return program


def show(report: QuantizationReport, answer: Answer) -> None:
    """Print the report."""
    for line in text.sentences(report):
        answer.line(line)
    answer.table(text.pass_rows(report), "SQNR in dB after each pass: mean over frames (worst frame)")
    answer.table(text.drift_rows(report), "drift since reset")
    answer.table(text.layer_rows(report), "the layers that do most")
    answer.table(text.range_rows(report), "quantizers that cut off most")
    kept = text.kept_rows(report)
    if kept:
        answer.table(kept, "kept in float")
    for line in text.first_lines(report.first, report.bound):
        answer.line(line)
    if report.unmatched:
        answer.line("not matched: " + ", ".join(report.unmatched))

"""`vqc report`: where, when and why a quantized network differs from its float self."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from vqc.cli.show import Reporter, out, table
from vqc.cli.work import Job, parse_size
from vqc.program import Program
from vqc.report import text
from vqc.report.bisect import bisect
from vqc.report.gather import quantization_report
from vqc.report.html import page
from vqc.report.network import Network, network
from vqc.report.quantization import QuantizationReport
from vqc.report.session import captured, use_threads
from vqc.report.tables import folder, write_text
from vqc.report.versions import collect


def run_report(job: Job, output: Path | None, bound: float, *, json: bool, only_bisect: bool) -> None:
    """The command: the report as text or JSON, and as a page into `output`; or the bisect alone.

    Raises InputError, CalibrationError, PipelineError, TargetError and ArtifactError before anything slow begins.
    """
    compiled = None if job.target == "none" else job.target
    replace(job, target=compiled or "reference").check()
    if output is not None:
        folder(output.parent)
    with Reporter() as progress:
        net = network(job.model, parse_size(job.size))
        steps = net.steps(job.read(job.clip, job.frames + net.reach if job.frames else 0, net.size, job.start))
        read = job.calibration_clips(net)
        clips = None if read is None else [net.steps(clip) for clip in read]
        use_threads(job.threads, job.target)
        program = named(net)
        if only_bisect:
            versions = collect(program, job.recipe, calibration=clips, progress=progress, workdir=job.workdir)
            first = bisect(versions, steps, bound, progress)
        else:
            report = quantization_report(
                program, job.recipe, steps, calibration=clips, picture=net.picture, bound=bound, target=compiled,
                clip=Path(job.clip).stem, calibration_name=job.calibration_name, progress=progress, workdir=job.workdir,
            )  # fmt: skip
    if only_bisect:
        for line in text.first_lines(first, bound):
            out().print(line, markup=False)
        return
    if json:
        typer.echo(report.to_json())
    else:
        show(report)
    if output is not None:
        write_text(output, page(report))
        if not json:
            out().print(f"wrote {output}", markup=False)


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


def show(report: QuantizationReport) -> None:
    """Print the report."""
    for line in text.sentences(report):
        out().print(line, markup=False)
    table(text.pass_rows(report), "SQNR in dB after each pass: mean over frames (worst frame)")
    table(text.drift_rows(report), "drift since reset")
    table(text.layer_rows(report), "the layers that do most")
    table(text.range_rows(report), "quantizers that cut off most")
    kept = text.kept_rows(report)
    if kept:
        table(kept, "kept in float")
    for line in text.first_lines(report.first, report.bound):
        out().print(line, markup=False)
    if report.unmatched:
        out().print("not matched: " + ", ".join(report.unmatched), markup=False)

"""`vqc export`: a network as C sources for another machine, compiled there or, with zig, here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

import vqc
from vqc.backends import C_TARGETS, TARGETS
from vqc.backends.c.cross import build_export
from vqc.backends.c.targets import TARGETS as C_TABLE
from vqc.backends.c.targets import target_called
from vqc.cli.show import Reporter, out, table
from vqc.cli.work import Job, parse_size
from vqc.report.network import network

_HERE = "PyTorch on this machine"
_OTHERS = {
    "triton": "Triton kernels on this machine's GPU",
    "cuda": "the same; cuda:sm_90 names an architecture, which export needs",
    "onnx": "an ONNX model with QuantizeLinear; onnx:exact has the reference's integers",
    "hip": "AMD GPUs: hip:gfx942 (compiled, never run)",
}


def target_rows() -> list[dict[str, str]]:
    """Every target: what it is, and the instruction sets a program for it has or can be compiled for."""
    rows = []
    for name in TARGETS:
        t = C_TABLE.get(name)
        sets = ", ".join(v.name for v in t.variants) if t else ""
        rows.append({"target": name, "what": t.about if t else _OTHERS.get(name, _HERE), "instruction sets": sets})
    return rows


def listed(value: str) -> str:
    """The callback of --target: `list` prints the table and ends."""
    if value == "list":
        table(target_rows())
        raise typer.Exit
    return value


def export(job: Job, folder: Path, report: Reporter, *, build: bool, variant: str | None) -> list[Path]:
    """Export a job's network, and compile it with zig if asked to; returns the folder and the programs made.

    Raises TargetError for a target or variant that is not known before anything slow begins, and what vqc.export does.
    """
    job.check()
    if build:
        target_called(job.target).variant(variant)
    net = network(job.model, parse_size(job.size))
    program = job.program(net, report)
    options: dict[str, Any] = {}
    if job.target in C_TARGETS:
        options = {"threads": job.threads, "licence": net.licence}
    elif job.target.startswith(("cuda", "hip", "onnx")):
        options = {"licence": net.licence}
    made = vqc.export(program, folder, job.target, **options)
    programs = build_export(made, job.target, variant) if build else {}
    return [made, *programs.values()]


def run_export(job: Job, folder: Path, build: bool, variant: str | None) -> None:
    """The command: progress on the way, then what was written."""
    with Reporter() as report:
        paths = export(job, folder, report, build=build, variant=variant)
    for p in paths:
        out().print(f"wrote {p}", markup=False)
    readme = paths[0] / "README.txt"
    out().print(f"{readme} says how to build and call it", markup=False)

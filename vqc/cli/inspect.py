"""`vqc inspect`: a network as vqc sees it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

import vqc
from vqc.accounting import account
from vqc.cli import figures
from vqc.cli.files import file_lines
from vqc.cli.options import Calibration, CalibrationFrames, Json, MaybeRecipe, Model, Size, TargetOrNone, Workdir
from vqc.cli.show import Answer, Reporter
from vqc.cli.work import Job, recipe_for
from vqc.executable import CompileReport
from vqc.files import about
from vqc.program import Program, op_text
from vqc.report.session import constant_bytes
from vqc.report.stored import is_stored


def inspect(
    model: Model, recipe: MaybeRecipe = None, calibration: Calibration = None, size: Size = None,
    target: TargetOrNone = "native", calibration_frames: CalibrationFrames = 8, workdir: Workdir = None,
    text: Annotated[bool, typer.Option("--text", help="Print the program too.")] = False, json: Json = False,
) -> None:  # fmt: skip
    """Show a network as vqc sees it: inputs, states, operators, what each pass did and why not more, kernels."""
    job = Job(model, "", recipe_for(model, recipe), "reference" if target == "none" else target, calibration, size,
              calibration_frames=calibration_frames, workdir=workdir)  # fmt: skip
    job.check()
    answer = Answer("inspect", json)
    with Reporter() as report:
        program = job.program(job.network(), report, warn=False)  # the history tells
    for line in file_lines(model) if is_stored(model) else ():
        answer.line(line)
    _summary(program, answer)
    if text:
        answer.line(str(program))
    answer.line("\nhistory", style="bold")
    for record in program.history:
        answer.line(str(record))
    compiled = None if target == "none" else vqc.compile(program, target).report
    if compiled is not None:
        answer.line("\n" + str(compiled))
        answer.table(kernel_rows(compiled))
    said = {"file": about(model)} if is_stored(model) else {}
    answer.give(**said, **_data(program, text), compiled=None if compiled is None else figures.compiled(compiled))


def kernel_rows(compiled: CompileReport) -> list[dict[str, str]]:
    """A row a kernel: how many nodes it computes."""
    kinds: dict[str, int] = {}
    for kernel in compiled.kernels.values():
        kinds[kernel] = kinds.get(kernel, 0) + 1
    return [{"kernel": k, "nodes": str(n)} for k, n in sorted(kinds.items(), key=lambda item: -item[1])]


def _operators(program: Program) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in program.calls:
        counts[op_text(node.target)] = counts.get(op_text(node.target), 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _summary(program: Program, answer: Answer) -> None:
    answer.line(f"program {program.name}: {len(program.calls)} operators, {len(program.inputs)} inputs, "
                f"{len(program.states)} states, {constant_bytes(program) / 1e6:.2f} MB of constants")  # fmt: skip
    for i in program.inputs:
        known = f", in [{i.known_range[0]:g}, {i.known_range[1]:g}]" if i.known_range else ""
        answer.line(f"  input {i.name} {list(i.shape)}{known}")
    for s in program.states:
        answer.line(f"  state {s.name} {list(s.shape)}, {s.origin}")
    for a in program.assumptions:
        answer.line(f"  assumes {a.text} is {a.expected} ({a.where})")
    answer.table([{"operator": name, "count": str(count)} for name, count in _operators(program).items()])
    answer.table(account(program).rows(), "layers, masks taken as full")


def _data(program: Program, text: bool) -> dict[str, Any]:
    found = {
        "program": program.name, "constant_bytes": constant_bytes(program), "operators": _operators(program),
        "inputs": [{"name": i.name, "shape": list(i.shape), "dtype": str(i.dtype), "known_range": i.known_range}
                   for i in program.inputs],
        "outputs": list(program.outputs),
        "states": [{"name": s.name, "shape": list(s.shape), "origin": s.origin} for s in program.states],
        "assumptions": [dataclasses.asdict(a) for a in program.assumptions],
        "layers": [dataclasses.asdict(layer) for layer in account(program).layers],
        "history": [dataclasses.asdict(record) for record in program.history],
    }  # fmt: skip
    return found | ({"text": str(program)} if text else {})

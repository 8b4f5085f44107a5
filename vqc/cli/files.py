"""`vqc apply`: a network put through a recipe, as a `.vqc` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vqc
from vqc.cli.show import Reporter, out
from vqc.cli.work import Job, parse_size
from vqc.errors import InputError
from vqc.files import about
from vqc.files.write import summary_of
from vqc.report.network import network
from vqc.report.stored import ENDING, is_stored, notes_of
from vqc.report.tables import folder


def run_apply(job: Job, output: Path) -> None:
    """The command. Raises InputError for a name that is no file's, and what capture, passes and `vqc.save` raise."""
    if output.suffix != ENDING:
        raise InputError(f"the result cannot be called {output.name}", why=f"a program's file ends in {ENDING}",
                         way_out=f"write -o {output.with_suffix(ENDING)}")  # fmt: skip
    job.check()
    folder(output.parent)
    with Reporter() as report:
        net = network(job.model, parse_size(job.size))
        clips = job.calibration_clips(net)
        program = job.program(net, report)
    calibration: dict[str, Any] = {}
    before = about(job.model) if is_stored(job.model) else None
    if clips is not None:
        calibration = {"names": job.calibration_names, **summary_of(program, [net.steps(c) for c in clips])}
    elif before is not None:
        calibration = before["calibration"]
    recipe = ",".join(filter(None, (before["recipe"] if before else "", job.recipe)))
    path = vqc.save(program, output, recipe=recipe, calibration=calibration, licence=net.licence, network=notes_of(net))
    out().print(f"wrote {path}, {path.stat().st_size / 1e6:.2f} MB", markup=False)


def file_lines(path: str) -> list[str]:
    """What a file says of itself, for people."""
    said = about(path)
    lines = [f"file {path}, written by vqc {said['vqc']} with PyTorch {said['torch']}", f"  recipe: {said['recipe']}"]
    if said["licence"]:
        lines.append(f"  licence of the weights: {said['licence']}")
    c = said["calibration"]
    if c:
        names = ", ".join(Path(str(n)).name for n in c.get("names", []))
        lines.append(f"  calibrated on {c.get('steps')} steps{f' of {names}' if names else ''}")
    return lines

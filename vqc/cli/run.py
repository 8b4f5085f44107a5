"""`vqc run`: clips through a compiled network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vqc.cli import figures
from vqc.cli.batch import Batch, Outcome
from vqc.cli.clips import expand
from vqc.cli.exits import Exit, Misuse, misuse
from vqc.cli.options import (
    Calibration,
    CalibrationFrames,
    Clips,
    Config,
    Frames,
    Json,
    MaybeRecipe,
    Model,
    Size,
    Start,
    Target,
    Threads,
    Workdir,
)
from vqc.cli.show import Answer, Reporter, error_data, show_error
from vqc.cli.work import Job, recipe_for
from vqc.errors import InputError
from vqc.report.tables import folder


def run(
    context: typer.Context, model: Model, clips: Clips = None, recipe: MaybeRecipe = None,
    calibration: Calibration = None, target: Target = "native", frames: Frames = 0, size: Size = None,
    start: Start = 0, calibration_frames: CalibrationFrames = 48, threads: Threads = 1, workdir: Workdir = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the results."
                                         )] = Path("out"),
    beside: Annotated[bool, typer.Option("--float/--no-float", help="Run the float network beside it, for a strip and "
                                         "a table. Without it, memory does not grow with the clip.")] = True,
    again: Annotated[bool, typer.Option("--again", help="Run clips that are done, too.")] = False,
    config: Config = None, json: Json = False,
) -> None:  # fmt: skip
    """Run clips through a compiled network; of each a video, beside the float network a strip and a table, a record.

    A clip whose results are there, made from the same network, recipe, options and bytes, is not run again: the same
    call goes on where it was killed. A clip that cannot be run is told, the others are run, and the exit code is 1.
    """
    job = Job(model, "", recipe_for(model, recipe), target, calibration, size, frames, start, calibration_frames,
              threads, workdir)  # fmt: skip
    job.check()
    named = clips or (context.default_map or {}).get("clips", [])  # click before 8.3 does not look there by itself
    if not named:
        raise Misuse(InputError("no clip is named", way_out="name video files or folders after the model"))
    with misuse(InputError):
        found = expand(named)
    _check_places(named, output)
    answer, outcomes = Answer("run", json), []
    with Reporter() as report:
        batch = Batch(job, folder(output), report, beside=beside, again=again)
        for outcome in batch.run(found):
            outcomes.append(outcome)
            _show(answer, outcome, batch)
    if len(found) > 1:
        answer.table([_row(o) for o in outcomes], f"{len(found)} clips into {output}")
    compiled = batch.engines[-1].report if "engines" in vars(batch) else None
    for declined in compiled.fallbacks if compiled is not None else ():
        answer.line(f"fallback {declined.node}: {declined.reason}")
    failed = [o for o in outcomes if o.error is not None]
    answer.give(not failed, clips=[_data(o) for o in outcomes], output=output, warnings=report.warnings,
                fallbacks=[{"node": d.node, "reason": d.reason} for d in (compiled.fallbacks if compiled else ())]
                )  # fmt: skip
    if failed:
        raise typer.Exit(Exit.WORK)


def _check_places(clips: list[str], output: Path) -> None:
    """Results in a folder of clips would be clips of the next call."""
    for name in clips:
        if Path(name).is_dir() and Path(name).resolve() == output.resolve():
            raise Misuse(InputError(f"the results cannot go into {output}", why="it is the folder of the clips",
                                    way_out="choose another folder with -o"))  # fmt: skip


def _show(answer: Answer, outcome: Outcome, batch: Batch) -> None:
    name = Path(outcome.clip).name
    if outcome.error is not None:
        show_error(outcome.error, name)
    elif outcome.status == "kept":
        answer.line(f"{name} is done: {outcome.files[-1]} says from what; --again runs it again")
    else:
        size = "x".join(map(str, outcome.result["size"]))
        answer.table(outcome.table, f"{batch.net.name} on {name}, {outcome.result['frames']} steps at {size}")
        answer.wrote(outcome.files)


def _row(outcome: Outcome) -> dict[str, str]:
    row = {"clip": Path(outcome.clip).name, "status": outcome.status}
    if outcome.error is None:
        row["frames"] = str(outcome.result["frames"])
        last = {k: float(v) for k, v in outcome.engines[-1].items() if k != "engine"}  # a record has "inf" as text
        row |= {name: f"{last[key]:.4g}" for name, key in figures.NAMES.items() if key in last}
    return row


def _data(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = {"clip": outcome.clip, "status": outcome.status}
    if outcome.error is not None:
        return found | {"error": error_data(outcome.error)}
    return (
        found | outcome.result | {"engines": outcome.engines, "files": outcome.files, "run_again_because": outcome.why}
    )

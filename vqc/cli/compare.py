"""`vqc compare`: a compiled network beside the float one, and whether they differ by more than is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vqc import metrics
from vqc.cli import figures
from vqc.cli.exits import Exit, Misuse
from vqc.cli.options import (
    Calibration,
    CalibrationFrames,
    Clip,
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
from vqc.cli.show import Answer, Reporter, err
from vqc.cli.work import Job, announce, recipe_for
from vqc.errors import InputError
from vqc.report.network import Network
from vqc.report.session import Playback, eager_engine, frame_rows, is_matte, play, program_engine, rows, use_threads

# Option -> (figure, whether more is worse, what has it).
BOUNDS = {"--max-mad": ("mad_x1e3", True, "a matte"), "--max-dtssd": ("dtssd_x1e2", True, "a matte"),
          "--min-psnr": ("psnr_db", False, "a picture"), "--min-ssim": ("ssim", False, "a picture"),
          "--min-sqnr": ("worst_sqnr_db", False, "")}  # fmt: skip
Bound = float | None


def compare(
    model: Model, clip: Clip, recipe: MaybeRecipe = None, calibration: Calibration = None, target: Target = "native",
    frames: Frames = 48, size: Size = None, start: Start = 0, calibration_frames: CalibrationFrames = 48,
    threads: Threads = 1, workdir: Workdir = None,
    max_mad: Annotated[Bound, typer.Option(show_default=False, help="Exit with 3 if a matte's MAD x1e3 is above."
                                           )] = None,
    max_dtssd: Annotated[Bound, typer.Option(show_default=False, help="The same for its dtSSD x1e2 (flicker).")] = None,
    min_psnr: Annotated[Bound, typer.Option(show_default=False, help="Exit with 3 if a picture's PSNR in dB is below."
                                            )] = None,
    min_ssim: Annotated[Bound, typer.Option(show_default=False, help="The same for its SSIM.")] = None,
    min_sqnr: Annotated[Bound, typer.Option(show_default=False, help="Exit with 3 if any frame's SQNR in dB is below."
                                            )] = None,
    config: Config = None, json: Json = False,
) -> None:  # fmt: skip
    """Compare a compiled network with the float one, frame by frame; nothing is written.

    A .vqc file is compared with its own program run by PyTorch, quantized as it is: it holds no other network.

    With a bound (--max-mad and the like) the exit code says whether it holds: 0, or 3 if it does not.
    """
    job = Job(model, clip, recipe_for(model, recipe), target, calibration, size, frames, start, calibration_frames,
              threads, workdir)  # fmt: skip
    given = {"--max-mad": max_mad, "--max-dtssd": max_dtssd, "--min-psnr": min_psnr, "--min-ssim": min_ssim,
             "--min-sqnr": min_sqnr}  # fmt: skip
    bounds = {name: value for name, value in given.items() if value is not None}
    job.check()
    answer = Answer("compare", json)
    with Reporter() as report:
        net, compiled, played = _play(job, report, bounds)
    reference, shown = played
    answer.table(frame_rows(shown, reference), f"{shown.engine} beside {reference.engine}")
    answer.table(rows(played, reference), f"{net.name} on {Path(clip).name}")
    found = figures.distances(shown, reference)
    slope = found["drift_db_per_frame"]
    answer.line(f"drift: SQNR changes by {slope:+.3f} dB a frame" + ("; errors pile up in the state" if slope < -0.5
                                                                    else ""))  # fmt: skip
    for declined in compiled.fallbacks:
        answer.line(f"fallback {declined.node}: {declined.reason}")
    found["worst_sqnr_db"] = worst_sqnr(shown, reference)
    exceeded = _exceeded(bounds, found)
    for text in exceeded:
        err().print(f"[bold red]bound:[/] {text}")
    answer.give(not exceeded, network=net.name, clip=clip, engines=figures.engines(played),
                frames=figures.frames(shown, reference), distances=found, bounds=bounds, exceeded=exceeded,
                warnings=report.warnings, compiled=figures.compiled(compiled))  # fmt: skip
    if exceeded:
        raise typer.Exit(Exit.BOUND)


def _play(job: Job, report: Reporter, bounds: Mapping[str, float]) -> tuple[Network, Any, list[Playback]]:
    """The network, the report of its compiled program, and both playbacks, the float one first."""
    net = job.network()
    announce(net, report)
    clip = job.read(net)
    options = use_threads(job.threads, job.target)
    reference = play(eager_engine(net), net, clip, report)
    _check_bounds(bounds, reference)
    report.say(f"compile {net.name}: recipe {job.recipe or 'none'}, target {job.target}")
    engine = program_engine(job.program(net, report), job.engine_name, job.target, **options)
    return net, engine.report, [reference, play(engine, net, clip, report)]


def _check_bounds(bounds: Mapping[str, float], reference: Playback) -> None:
    """Raise a Misuse for a bound of what this network's picture does not have."""
    kind = "a matte" if is_matte(reference) else "a picture"
    small = kind == "a picture" and min(reference.clip.shape[-2:]) < 11
    for name in bounds:
        of = BOUNDS[name][2]
        if of and of != kind:
            raise Misuse(InputError(f"{name} cannot be judged", why=f"it is about {of}, and the network makes {kind}",
                                    way_out="use " + ", ".join(n for n, b in BOUNDS.items() if b[2] in ("", kind))
                                    ))  # fmt: skip
        if name == "--min-ssim" and small:
            raise Misuse(InputError(f"{name} cannot be judged", why="SSIM looks at 11x11 pixels, and the picture is "
                                    "smaller", way_out="use --min-psnr"))  # fmt: skip


def worst_sqnr(shown: Playback, reference: Playback) -> float:
    """The lowest SQNR (dB) of a frame; nan if any frame has none, which Python's own `min` may pass over."""
    values = [metrics.sqnr_db(a.clamp(0, 1), b.clamp(0, 1))
              for a, b in zip(shown.pictures, reference.pictures, strict=True)]  # fmt: skip
    return next((v for v in values if math.isnan(v)), min(values))


def _exceeded(bounds: Mapping[str, float], found: Mapping[str, float]) -> Sequence[str]:
    """A line for every bound that does not hold; a figure that is no number holds none."""
    lines = []
    for name, bound in bounds.items():
        figure, above, _ = BOUNDS[name]
        value = found[figure]
        if not (value <= bound if above else value >= bound):
            lines.append(f"{name} {bound:g} does not hold: {figure} is {value:.4g}")
    return lines

"""`vqc bench`: how long a step takes, and where in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor

import vqc
from vqc.backends import C_TARGETS
from vqc.backends.c.build import find_compiler
from vqc.backends.c.compare import slower_than_float
from vqc.cli import complete, figures
from vqc.cli.exits import Misuse
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
from vqc.layers import by_kernel
from vqc.report.session import use_threads


@dataclass
class Timed:
    """A compiled network with the times of its steps in ms; `compile_s`: seconds that compiling took."""

    network: str
    executable: Executable
    times: list[float]
    compile_s: float


def bench(
    model: Model, recipe: MaybeRecipe = None, calibration: Calibration = None, target: Target = "native",
    clip: Annotated[str | None, typer.Option(metavar="CLIP", show_default=False, autocompletion=complete.clips,
                                             help="The clip to run; none: the network's example.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 8, size: Size = None,
    calibration_frames: CalibrationFrames = 8, threads: Threads = 1, workdir: Workdir = None,
    layers: Annotated[bool, typer.Option("--layers", help="A row for every call, not every kernel.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="Time the variants of each kernel first.")] = False,
    winograd: Winograd = False,
    compare_float: Annotated[bool, typer.Option("--compare-float", help="Name integer layers that do not pay."
                                                )] = False,
    config: Config = None, json: Json = False,
) -> None:  # fmt: skip
    """Time a compiled network: ms a step, and what each layer's kernel takes of it."""
    job = Job(model, clip or "", recipe_for(model, recipe), target, calibration, size, frames, 0, calibration_frames,
              threads, workdir)  # fmt: skip
    _check_options(target, tune=tune, compare_float=compare_float, winograd=winograd)
    answer = Answer("bench", json)
    with Reporter() as report:
        timed = measure(job, report, tune=tune, compare=compare_float, winograd=winograd)
    compiled, times = timed.executable.report, timed.times
    if compiled.layers:
        rows = [x.row() for x in compiled.layers] if layers else by_kernel(compiled.layers)
        answer.layers(rows, "every call" if layers else "every kernel")
    answer.line(str(compiled))
    answer.table([{"network": timed.network, "ms a step": f"{statistics.median(times):.2f}",
                   "least": f"{min(times):.2f}", "steps": str(len(times)), "threads": str(threads),
                   "compiled in s": f"{timed.compile_s:.1f}"}])  # fmt: skip
    answer.give(network=timed.network, threads=threads, steps=len(times), ms_a_step=statistics.median(times),
                least_ms=min(times), ms=times, compile_s=timed.compile_s,
                compiled=figures.compiled(compiled, layers=True))  # fmt: skip


def _check_options(target: str, **given: bool) -> None:
    """Raise a Misuse for an option that only C targets have."""
    wrong = [f"--{name.replace('_', '-')}" for name, used in given.items() if used]
    if wrong and target not in C_TARGETS:
        raise Misuse(TargetError(f"target {target} has no {wrong[0]}", why="it is for C targets",
                                 way_out="leave it out, or choose another target (`vqc targets`)"))  # fmt: skip


def measure(job: Job, report: Reporter, *, tune: bool = False, compare: bool = False, winograd: bool = False
            ) -> Timed:  # fmt: skip
    """Compile a job's network and time its steps; the report of a C executable then holds every layer measured.

    `tune`: the fastest variants of kernels are chosen. `compare`: every integer convolution is timed beside its float
    kernel, and those that do not pay are in the report's notes. `winograd`: the C backend's option. Steps are those of
    the job's clip, or the network's example when the clip is "". Raises what `vqc.compile` raises.
    """
    job.check()
    net = job.network()
    steps: Sequence[Sequence[Tensor]] = net.steps(job.read(net, net.reach)) if job.clip else [net.example] * job.frames
    program = job.program(net, report, warn=False)  # no time hangs on a range
    chosen = {name: True for name, given in (("tune", tune), ("winograd", winograd)) if given}
    options = dict(use_threads(job.threads, job.target)) | chosen
    began = time.perf_counter()
    executable = vqc.compile(program, job.target, **options)
    compiled = time.perf_counter() - began
    times = []
    state: list[torch.Tensor] | None = None
    for inputs in (steps[0], *steps):
        began = time.perf_counter()
        _, state = executable.step(inputs, state)
        times.append((time.perf_counter() - began) * 1e3)
    if executable.report.layers:
        executable.report = executable.profile(steps)
        if compare:
            slower = slower_than_float(program, executable.report.layers, job.target, find_compiler(), job.threads)
            executable.report.notes += [str(s) for s in slower] or ["no integer layer is slower than in float"]
    return Timed(net.name, executable, times[1:], compiled)

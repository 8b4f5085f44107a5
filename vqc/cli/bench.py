"""`vqc bench`: how long a step takes, and where in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

import vqc
from vqc.backends.c.build import find_compiler
from vqc.backends.c.compare import slower_than_float
from vqc.cli.show import Reporter
from vqc.cli.work import Job, parse_size
from vqc.executable import Executable
from vqc.layers import by_kernel
from vqc.report.network import network
from vqc.report.session import use_threads

Rows = list[dict[str, str]]


def bench(job: Job, report: Reporter, *, tune: bool = False, compare: bool = False
          ) -> tuple[Executable, dict[str, str]]:  # fmt: skip
    """Compile a job's network and time its steps; the report of a C executable then holds every layer measured.

    `tune`: the fastest variants of kernels are chosen. `compare`: every integer convolution is timed beside its float
    kernel, and those that do not pay are in the report's notes. Steps are those of the job's clip, or the network's
    example when the clip is "". Raises what `vqc.compile` raises.
    """
    job.check()
    net = network(job.model, parse_size(job.size))
    program = job.program(net, report)
    options = dict(use_threads(job.threads, job.target)) | ({"tune": True} if tune else {})
    began = time.perf_counter()
    executable = vqc.compile(program, job.target, **options)
    compiled = time.perf_counter() - began
    steps: Sequence[Sequence[Tensor]] = [net.example] * job.frames
    if job.clip:
        steps = net.steps(job.read(job.clip, job.frames + net.reach, net.size, job.start))
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
    row = {"network": net.name, "ms a step": f"{statistics.median(times[1:]):.2f}", "least": f"{min(times[1:]):.2f}",
           "steps": str(len(steps)), "threads": str(job.threads), "compiled in s": f"{compiled:.1f}"}  # fmt: skip
    return executable, row


def layer_rows(executable: Executable, *, each: bool) -> Rows:
    """The rows of a profiled executable: every call, or one row a kernel."""
    found = executable.report.layers
    return [x.row() for x in found] if each else by_kernel(found)

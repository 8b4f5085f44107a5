"""A quantized program and its float twin side by side on calibration clips, each with its own state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from vqc.calibration import Split
from vqc.errors import CalibrationError, PipelineError
from vqc.pipeline import PassContext, PassResult
from vqc.program import Program, evaluate

T = TypeVar("T")


def twin_of(context: PassContext, name: str) -> Program:
    """The float program that pass `name` imitates; PipelineError when the context holds none."""
    if context.twin is None:
        raise PipelineError(f"{name} has no float program to compare with",
                            why="it imitates the program as it was before its first lossy pass",
                            way_out="run it in one pipeline with quantize, or give PassContext(twin=...)")  # fmt: skip
    return context.twin


def waves(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Items in order, cut into at most `count` runs whose lengths differ by one at most; no run is empty."""
    count = max(1, min(count, len(items)))
    edges = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a]


def side_by_side(program: Program, twin: Program | None, parts: Split, pairs: Mapping[fx.Node, fx.Node | None],
                 visit: Callable[[fx.Node, Tensor, Tensor | None, int, int], None],
                 report: Callable[[int, int], None] | None = None) -> None:  # fmt: skip
    """Run every clip through both programs, states carried from their reset; show the values of `pairs`.

    `pairs`: node of the program -> node of the twin, or None. `visit(node, value, the twin's value or None, clip
    number, steps since reset)`. Without a twin only the program runs. Raises CalibrationError when a value is NaN or
    infinite.
    """
    wanted = {t for t in pairs.values() if t is not None}
    done = 0
    for c, clip in enumerate(parts.clips):
        state, twin_state = program.initial_state(), twin.initial_state() if twin is not None else []
        for t, step in enumerate(clip):
            floats: dict[fx.Node, Tensor] = {}

            def keep(n: fx.Node, value: Any, floats: dict[fx.Node, Tensor] = floats) -> None:
                if n in wanted:
                    floats[n] = value

            def show(n: fx.Node, value: Any, floats: dict[fx.Node, Tensor] = floats, c: int = c, t: int = t) -> None:
                if n in pairs:
                    if not bool(torch.isfinite(value).all()):
                        raise CalibrationError(f"{n} holds NaN or infinity during calibration",
                                               where=f"clip {c}, step {t} since reset",
                                               way_out="look at the clip, or at the ranges of quantize")  # fmt: skip
                    other = pairs[n]
                    visit(n, value, floats[other] if other is not None else None, c, t)

            if twin is not None and wanted:
                out = evaluate(twin, step, twin_state, keep)
                twin_state = [out[s.output] for s in twin.states]
            out = evaluate(program, step, state, show)
            state = [out[s.output] for s in program.states]
            done += 1
            if report is not None:
                report(done, parts.clips.frames)


def outputs_of(program: Program) -> set[fx.Node]:
    """The nodes whose values one step gives: results, next states, assumptions."""
    return set(program.result_nodes)


def result_errors(programs: Sequence[Program], twin: Program, parts: Split) -> list[float]:
    """For each program: how far its results are from the twin's on held-out frames, every state its own.

    The mean over results of |difference|^2 / |twin's result|^2, both summed over all held-out frames.
    """
    everyone = [twin, *programs]
    count = len(twin.outputs)
    lost = torch.zeros(len(programs), count, dtype=torch.float64)
    power = torch.zeros(count, dtype=torch.float64)
    for c, clip in enumerate(parts.clips):
        states = [p.initial_state() for p in everyone]
        for t, step in enumerate(clip):
            outs = [evaluate(p, step, s) for p, s in zip(everyone, states, strict=True)]
            states = [[out[s.output] for s in p.states] for p, out in zip(everyone, outs, strict=True)]
            if parts.learns(c, t):
                continue
            for r, real in enumerate(outs[0][:count]):
                power[r] += real.double().square().sum()
                for i, out in enumerate(outs[1:]):
                    lost[i, r] += (out[r].double() - real.double()).square().sum()
    return (lost / power.clamp_min(1e-30)).mean(1).tolist()


def keep_better(result: PassResult, before: Program, twin: Program, parts: Split) -> None:
    """Note the error of the results on held-out frames before and after; if it has not fallen, undo everything."""
    old, new = result_errors([before, result.program], twin, parts)
    if new < old:
        result.notes.append(f"the results' error on {parts.held} held-out frames falls from {old:.3g} to {new:.3g} "
                            "(of their mean square)")  # fmt: skip
        return
    result.program, result.rewrites = before, {}
    result.decline("results", f"their error on {parts.held} held-out frames would be {new:.3g}, it is {old:.3g} (of "
                   "their mean square): everything stays as it was")  # fmt: skip

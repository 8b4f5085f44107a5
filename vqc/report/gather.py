"""Runs the float twin and every program of a recipe over one clip, side by side, and fills the report.

Of every frame the twin's values at its layers are held while the programs are compared with them, and sums are kept:
memory does not grow with the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vqc
from vqc.calibration.thin import warnings
from vqc.errors import InputError
from vqc.pipeline import Pipeline
from vqc.program import Program, op_text, tensor_text
from vqc.report.bisect import First, lowest, take_apart
from vqc.report.measure import EQUAL, alone, compare, forward, layers_of, next_state, output_keys, output_sums, truths
from vqc.report.pictures import PictureWatch, find_picture
from vqc.report.quantization import Layer, LeftAlone, QuantizationReport, Stage, Table
from vqc.report.ranges import RangeWatch, Weights, bits_text, is_quantize, weights_of
from vqc.report.versions import Version, Versions, collect

Steps = Sequence[Sequence[Tensor]]
Progress = Callable[[str, int, int], None]


def quantization_report(
    program: Program, recipe: str | Pipeline, steps: Steps, *, calibration: Any = None, picture: int | None = None,
    bound: float = 20.0, target: str | None = None, clip: str = "", calibration_name: str = "", worst: int = 3,
    each_alone: bool = True, seed: int = 0, progress: Progress | None = None, workdir: Path | None = None,
) -> QuantizationReport:  # fmt: skip
    """Apply a recipe and compare the program after every pass with the float network on one clip.

    Parameters: `program` - as captured. `steps` - the flat inputs of every step of the clip (`Network.steps`), which
    begins at a reset. `calibration`, `seed`, `workdir` - as for `vqc.apply`. `picture` - the leaf of the user's result
    that is judged as a picture, None: the first of one or three channels. `bound` - the SQNR in dB whose first fall is
    looked for. `target` - compile for it and name the kernels. `worst` - how many frames are kept as pictures.
    `each_alone` - try every layer's error by itself (one run of the float network for each).
    Raises InputError when there are no steps or the float network gives what is not finite, and what `vqc.apply` and
    `vqc.compile` raise.
    """
    if not steps:
        raise InputError("a report needs a clip", why="there is no step", way_out="give at least one frame")
    for step in steps:
        program.check_inputs(step)
    versions = collect(program, recipe, calibration=calibration, seed=seed, progress=progress, workdir=workdir)
    run = _Run(versions, find_picture(program, picture), worst)
    for t, step in enumerate(steps):
        run.frame(t, step)
        if progress is not None:
            progress("compare", t + 1, len(steps))
    stages = run.stages()
    first = _first(versions, run, stages, steps, bound)
    shown = next((k for k, i in output_keys(program).items() if i == run.picture), "")
    alone_of = shown or next(iter(output_keys(program)), "")
    single = run.alone(steps, output_keys(program)[alone_of], progress) if each_alone and alone_of else {}
    weights = weights_of(run.quantized.program, run.quantized.links)
    return QuantizationReport(
        network=program.name, recipe=str(recipe), clip=clip, calibration=calibration_name, frames=len(steps),
        bound=float(bound), target=target or "", stages=stages, fresh=_table(run.fresh), own=_table(run.own),
        alone=single, alone_of=alone_of, alone_frame=run.worst_frame, layers=_layers(versions, run, weights, target),
        unmatched=tuple(versions.unmatched), quantizers=tuple(run.ranges.quantizers()), weights=tuple(weights),
        left_alone=tuple(LeftAlone(r.name, d.node, d.reason)
                         for r in versions.last.program.history[len(program.history) :] for d in r.declined),
        picture=shown, picture_range=run.pictures.range, pictures=tuple(run.pictures.frames),
        worst=run.pictures.worst_frames(), first=first, notes=tuple(warnings(versions.last.program)),
    )  # fmt: skip


class _Run:
    """All programs of a recipe on their way through one clip."""

    def __init__(self, versions: Versions, picture: int | None, worst: int):
        self.versions, self.picture = versions, picture
        self.live = [v for v in versions.passes if v.measured]
        self.names = [n.name for n in layers_of(versions.twin)]
        self.state = {id(v): v.program.initial_state() for v in self.live}
        self.true_state = versions.start.initial_state()
        self.twin_state = versions.twin.initial_state()
        self.outputs: dict[int, dict[str, list[float]]] = {id(v): {} for v in self.live}
        self.layers: dict[int, dict[str, list[float]]] = {id(v): {} for v in self.live}
        self.fresh: dict[str, list[float]] = {}
        self.own: dict[str, list[float]] = {}
        self.pictures = PictureWatch(worst)
        self.quantized = _most_quantizers(self.live)
        self.ranges = RangeWatch(self.quantized.program, self.quantized.links)
        self.worst_frame, self._lowest = 0, float("inf")
        self._worst_state: list[Tensor] = self.twin_state

    def frame(self, t: int, step: Sequence[Tensor]) -> None:
        """One step of every program."""
        start, twin, last = self.versions.start, self.versions.twin, self.versions.last
        true, true_next = forward(start, step, self.true_state)
        _finite(start, true, t)
        twin_out, truth = truths(twin, step, self.twin_state, self.names)
        self.ranges.begin(t)
        for v in self.live:
            look = self.ranges.look if v is self.quantized else None
            out, found = compare(v.program, v.links, step, self.state[id(v)], truth, look=look)
            self.state[id(v)] = next_state(v.program, out)
            _add(self.layers[id(v)], found)
            made = output_sums(v.program, out, start, true)
            _add(self.outputs[id(v)], made)
            if v is last:
                self._judge(t, out, true, {k: s.db for k, s in made.items()})
        out, found = compare(last.program, last.links, step, self.twin_state, truth)
        _add(self.fresh, found | output_sums(last.program, out, start, true))
        _, found = compare(last.program, last.links, step, self.twin_state, truth, force=True)
        _add(self.own, found)
        self.true_state, self.twin_state = true_next, next_state(twin, twin_out)

    def _judge(self, t: int, out: Sequence[Any], true: Sequence[Any], made: dict[str, float]) -> None:
        """Note the picture, and whether this is the worst frame: by the picture's mean error, else by SQNR."""
        if self.picture is not None:
            self.pictures.take(t, true[self.picture], out[self.picture])
            value = -self.pictures.frames[-1].error
        else:
            value = min(made.values(), default=EQUAL)
        if value < self._lowest:
            self._lowest, self.worst_frame, self._worst_state = value, t, self.twin_state

    def alone(self, steps: Steps, index: int, progress: Progress | None) -> dict[str, float]:
        """What each layer of the last program does by itself, in the worst frame."""
        twin, last, step = self.versions.twin, self.versions.last, steps[self.worst_frame]
        _, truth = truths(twin, step, self._worst_state, self.names)
        report = None if progress is None else (lambda done, total: progress("each layer alone", done, total))
        return alone(last.program, last.links, twin, step, self._worst_state, truth, index, report)

    def stages(self) -> tuple[Stage, ...]:
        """The tables of every pass; a pass that was not run has those of the pass before."""
        made: list[Stage] = []
        history = self.versions.last.program.history[len(self.versions.start.history) :]
        for i, v in enumerate(self.versions.passes):
            did = ", ".join(f"{k} x{n}" for k, n in history[i].rewrites.items()) if i < len(history) else ""
            if v.measured:
                tables = _table(self.outputs[id(v)]), _table(self.layers[id(v)])
            elif made:
                tables = made[-1].outputs, made[-1].layers
            else:
                tables = {k: (EQUAL,) * len(next(iter(self.fresh.values()))) for k in output_keys(v.program)}, {}
            made.append(Stage(v.name, v.promise, did or "nothing", v.measured, *tables))
        return tuple(made)


def _add(to: dict[str, list[float]], found: dict[str, Any]) -> None:
    for key, s in found.items():
        to.setdefault(key, []).append(s.db)


def _table(found: dict[str, list[float]]) -> Table:
    return {k: tuple(v) for k, v in found.items()}


def _finite(program: Program, outputs: Sequence[Any], t: int) -> None:
    for key, index in output_keys(program).items():
        if outputs[index].is_floating_point() and not bool(torch.isfinite(outputs[index]).all()):
            raise InputError(
                f"{key} of the float network holds NaN or infinity",
                where=f"step {t} since reset",
                why="nothing can be compared with it",
                way_out="look at the clip or the weights",
            )


def _most_quantizers(live: Sequence[Version]) -> Version:
    """The last version with the most quantized weights and activations in its graph: later ones have them inside
    integer operators."""

    def rank(i: int) -> tuple[int, int, int]:
        v = live[i]
        return len(weights_of(v.program, v.links)), sum(is_quantize(n) for n in v.program.calls), i

    return live[max(range(len(live)), key=rank)]


def _first(versions: Versions, run: _Run, stages: Sequence[Stage], steps: Steps, bound: float) -> First | None:
    """As `vqc.report.bisect.bisect`, out of the tables: the very first pass that falls."""
    for i, stage in enumerate(stages):
        if not stage.measured:
            continue
        for t in range(len(steps)):
            fall = lowest({k: v[t] for k, v in stage.outputs.items()}, t, bound)
            if fall is not None:
                return take_apart(versions, i, fall, steps, bound)
    return None


def _layers(versions: Versions, run: _Run, weights: Sequence[Weights], target: str | None) -> tuple[Layer, ...]:
    quantized = {w.layer: w for w in weights}
    inputs = {name: q for q in run.ranges.quantizers() for name in q.layers}
    kernels = _kernels(versions.last, target) if target else {}
    reasons: dict[str, list[str]] = {}
    records = versions.last.program.history[len(versions.start.history) :]
    for version, record in zip(versions.passes, records, strict=False):
        for d in record.declined if version.promise == "lossy" else ():  # others keep nothing in float
            reasons.setdefault(d.node, []).append(d.reason)
    found = []
    for n in layers_of(versions.twin):
        w, q = quantized.get(n.name), inputs.get(n.name)
        kept = ""
        if w is None:
            kept = "; ".join(dict.fromkeys(reasons.get(n.name, []))) or "no pass of this recipe quantizes it"
        found.append(Layer(n.name, str(n.meta.get("module", "")), op_text(n.target), tensor_text(n.meta["val"]),
                           bits_text(w.levels) if w else "", bits_text(q.levels) if w and q else "",
                           w.granularity if w else "", kernels.get(n.name, ""), kept))  # fmt: skip
    return tuple(found)


def _kernels(version: Version, target: str) -> dict[str, str]:
    """The kernel of each of the twin's layers."""
    report = vqc.compile(version.program, target).report
    found = {}
    fallbacks = {d.node: d.reason for d in report.fallbacks}
    for node, link in version.links.items():
        if node in fallbacks:
            found[link.twin] = f"PyTorch: {fallbacks[node]}"
        elif node in report.kernels:
            found[link.twin] = report.kernels[node]
    return found

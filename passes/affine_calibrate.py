"""affine-calibrate: a factor and a shift for each quantized layer's result, fitted, then learned through time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, fx

from vqc.calibration import as_clips
from vqc.calibration.split import split
from vqc.errors import PipelineError
from vqc.learning.affine import Affine, Granularity
from vqc.learning.checkpoint import Checkpoint
from vqc.learning.labels import as_labels
from vqc.learning.moments import ChannelStats
from vqc.learning.motion import FLOWS, Motions, Target, flow_named
from vqc.learning.rehearsal import Rehearsal, Weights, Window
from vqc.learning.rollouts import twin_of
from vqc.learning.store import Store
from vqc.learning.student import Student
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program

aten = torch.ops.aten


@register
@dataclass(frozen=True)
class AffineCalibrate(Pass):
    """affine-calibrate: give every quantized layer's result a factor and a shift so that the network's results, frame
    after frame, come close to the float network's; both fold into the layer's scales and bias.

    Stage 2 of PTQ4VM (arXiv 2506.10840): global affine calibration and optical-flow assistance. First the mean and the
    variance of each channel are matched to the float network's, in closed form; then factors, shifts and the steps of
    activations are learned together, from windows of consecutive frames that begin with the state the quantized
    network itself carries there. The best of all that, judged on held-out frames with the state carried, is kept.

    Preconditions: (1) `quantize` was run, `lower-integer` was not; (2) the context holds calibration clips of at least
    two frames and the float twin. `context.labels` (`vqc.learning.labels`) may say what a result should be, and how
    pictures move. Valid before: quantize/dequantize pairs. Valid after: the same graph, new constants; a layer
    without a bias gets one.

    Options: `start` - "closed": match moments first, from the first layer to the last, in `sweeps` rounds, each with
    the states that the one before leads to; "none". `granularity` of factors and shifts: "channel", or "layer" as in
    the paper. `iterations` of Adam (0: closed form alone), each on `batch` windows of `frames` steps; `rate` of factors
    and shifts, `grid_rate` of the steps of activations (0: they stay); both fall along a cosine. `decay`: each
    iteration pulls factors and shifts back to where learning began by the share rate x decay of the way. `results`:
    names of those that count ([]: all). `state`: weight of the error of next states. `flow` - "none", "still" (nothing
    moves: an error may not change where it stands, which is what dtSSD measures), "dense" (classical), "rife"
    (learned, fetches weights): whence motion comes where the labels do not say; `flow_weight` of flicker along it;
    `flow_target` - "twin": changes that the float network does not have; "absolute": all changes, as in the paper.
    `refresh`: every so many iterations states are carried anew, what was learned is judged, and a checkpoint is
    written. `held`: the share of clips that is held out. `memory` in MB for what is kept of frames, more goes to
    disk; `recompute`: hold the values of one step at a time, which takes a third longer.
    """

    name: ClassVar[str] = "affine-calibrate"
    numerics: ClassVar[Numerics] = Lossy(5.0)
    start: Literal["closed", "none"] = "closed"
    sweeps: int = 2
    granularity: Granularity = "channel"
    iterations: int = 80
    batch: int = 1
    frames: int = 4
    rate: float = 0.002
    decay: float = 0.0
    grid_rate: float = 0.002
    results: tuple[str, ...] = ()
    state: float = 0.0
    flow: Literal["none", "still", "dense", "rife"] = "none"
    flow_weight: float = 0.1
    flow_target: Target = "twin"
    refresh: int = 20
    held: float = 0.25
    memory: int = 2048
    recompute: bool = False

    def apply(self, program: Program, context: PassContext) -> PassResult:
        self._check()
        result = PassResult(program)
        clips = as_clips(context.calibration, program)
        frames = split(clips, self.held)
        labels = as_labels(context.labels, program, clips)
        twin = twin_of(context, self.name)
        student = Student(program, twin)
        key = (program, twin, clips, labels, str(self), context.seed, torch.get_num_threads(), context.shard.world)
        checkpoint = Checkpoint(context.workdir, self.name, key)
        with Store(self.memory << 20, context.workdir) as store:
            motions = Motions(program, clips, labels, flow_named(self.flow), store)
            flow_weight = self.flow_weight if motions.known else 0.0
            rehearsal = Rehearsal(program, twin, frames, labels, motions, self._results(program),
                                  Weights(self.state, flow_weight, self.flow_target), store)  # fmt: skip
            axes = {n: n.meta["val"].ndim - 1 if n.target is aten.linear.default else 1 for n in student.layers}
            rehearsal.watch_twin({n.name: axis for n, axis in axes.items()},
                                 lambda done, total: context.report(f"{self.name} float", done, total))  # fmt: skip
            affine = Affine(student, {n: rehearsal.moments[n.name] for n in axes}, self.granularity)
            course = _Course(self, rehearsal, affine, axes, context, checkpoint)
            course.run()
        self._tell(course, result)
        result.notes.append(f"{frames.learned} frames learned from, {frames.held} held out, {len(clips.clips)} clips"
                            + (f", {sum(x is not None for c in labels.truth for x in c)} with labels" if labels.truth
                               else ""))  # fmt: skip
        return result

    def _check(self) -> None:
        choices = {"start": ("closed", "none"), "granularity": get_args(Granularity), "flow": FLOWS,
                   "flow_target": get_args(Target)}  # fmt: skip
        for option, allowed in choices.items():
            if getattr(self, option) not in allowed:
                raise PipelineError(f"{self.name} has no {option} {getattr(self, option)!r}",
                                    way_out="use " + " or ".join(allowed))  # fmt: skip
        for option, least in (("sweeps", 1), ("iterations", 0), ("batch", 1), ("frames", 1), ("refresh", 1)):
            if getattr(self, option) < least:
                raise PipelineError(f"option {option} of {self.name} is {getattr(self, option)}",
                                    way_out=f"give {least} or more")  # fmt: skip

    def _results(self, program: Program) -> list[int]:
        for name in self.results:
            if name not in program.outputs:
                raise PipelineError(f"program {program.name} has no result {name!r}",
                                    way_out="use some of " + ", ".join(program.outputs))  # fmt: skip
        values = [n.meta["val"] for n in program.result_nodes]
        return [i for i, name in enumerate(program.outputs)
                if (not self.results or name in self.results) and values[i].is_floating_point()]  # fmt: skip

    def _tell(self, course: _Course, result: PassResult) -> None:
        told = [f"{score:.4g} {label}" for label, score in course.told.items()]
        result.notes.append("error on held-out frames, before being 1: " + ", ".join(told))
        if course.ended:
            result.notes.append(course.ended)
        if course.label == BEFORE:
            result.decline("all layers", "they stay as they were: "
                           + (course.ended or "their error on held-out frames does not fall"))  # fmt: skip
            return
        course.affine.bake()
        result.count("layer", len(course.affine.layers))
        if course.label != CLOSED:
            result.count("activation", len(course.affine.activations))
        result.notes.append(f"kept is what stood {course.label}")


BEFORE, CLOSED = "before", "after the closed form"


@dataclass
class _Course:
    """One run of the pass: the closed form, learning, and the best so far by the held-out steps.

    `best` is what `affine` was when it scored `score`; `told` the scores of all that was judged; `ended` why learning
    ended early.
    """

    options: AffineCalibrate
    rehearsal: Rehearsal
    affine: Affine
    axes: dict[fx.Node, int]
    context: PassContext
    checkpoint: Checkpoint
    label: str = BEFORE
    score: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    ended: str = ""

    def run(self) -> None:
        """At the end the affine holds the best."""
        first, adam = self._load()
        if not self.best:
            self._closed()
            self.affine.restore(self.best)
        if first < self.options.iterations:
            self._learn(first, adam)
        self.affine.restore(self.best)

    def _judge(self, label: str) -> None:
        """Carry the state through all clips; what stands now is the best if its held-out error is the lowest."""
        total = self.rehearsal.rollout(self.affine.overrides()).total(self.rehearsal.weights.flow)
        self.told[label] = min(total, self.told.get(label, total))
        if not self.best or total < self.score:
            self.label, self.score, self.best = label, total, self.affine.tensors()

    def _closed(self) -> None:
        """Layers first to last, each fitted to inputs that those before it have mended; then again from new states."""
        self._judge(BEFORE)
        for i in range(self.options.sweeps if self.options.start == "closed" else 0):
            self.rehearsal.sweep(self.affine.overrides(), self.axes, self._fit)
            self._judge(CLOSED)
            self.context.report(f"{self.options.name} closed form", i + 1, self.options.sweeps)

    def _fit(self, n: fx.Node, student: ChannelStats, count: int) -> tuple[Tensor, Tensor]:
        return self.affine.match(n, student, self.rehearsal.moments[n.name], count)

    # ---- learning --------------------------------------------------------------------------------------------------

    def _learn(self, first: int, adam: Mapping[str, Tensor]) -> None:
        o, shard = self.options, self.context.shard
        windows = self.rehearsal.windows(o.frames)
        params = self.affine.parameters_by_name()
        groups = [{"params": [p for k, p in params.items() if k.startswith("scale ") == grid], "lr": rate, "top": rate}
                  for grid, rate in ((False, o.rate), (True, o.grid_rate)) if rate]  # fmt: skip
        learning = [p for g in groups for p in g["params"]]  # type: ignore[attr-defined]
        optimiser = torch.optim.Adam(groups, eps=1e-12)  # gradients of steps are small
        _resume(optimiser, params, adam)
        for i in range(first, o.iterations):
            if i % o.refresh == 0:
                self._judge(f"after {i} iterations" if i else self.label)
                self._save(i, _state(optimiser, params))
            for g in optimiser.param_groups:
                g["lr"] = g["top"] * 0.5 * (1 + math.cos(math.pi * i / o.iterations))
            optimiser.zero_grad(set_to_none=True)
            mine = shard.share(_drawn(windows, i, o.batch, self.context.seed))
            loss = 0.0
            for window in mine:
                lost = self.rehearsal.loss(self.affine.overrides(), window, o.recompute) / len(mine)
                lost.backward()
                loss += float(lost.detach())
            loss = shard.mean(loss, len(mine))
            shard.average(learning, len(mine))
            if not math.isfinite(loss) or not all(_finite(p.grad) for p in learning):
                self.ended = f"learning diverged: the loss or its gradient is not finite at iteration {i + 1}"
                break
            optimiser.step()
            self._pull(params, optimiser.param_groups[0]["lr"] * o.decay)
            self.context.report(f"{o.name} learning", i + 1, o.iterations)
        if not self.ended:
            self._judge(f"after {o.iterations} iterations")
        self._save(o.iterations, {})

    @staticmethod
    def _pull(params: Mapping[str, Tensor], share: float) -> None:
        """Factors and shifts back towards where learning began, by a share of the way; decoupled from Adam, which would
        make every pull as strong as any other."""
        with torch.no_grad():
            for k, p in params.items():
                if share and not k.startswith("scale "):
                    p.lerp_(torch.full_like(p, 1.0 if k.startswith("gamma ") else 0.0), min(1.0, share))

    # ---- on disk ---------------------------------------------------------------------------------------------------

    def _save(self, step: int, adam: Mapping[str, Tensor]) -> None:
        told = {"label": self.label, "score": self.score, "told": self.told, "ended": self.ended,
                "units": self.rehearsal.units}  # fmt: skip
        tensors = {f"now {k}": v for k, v in self.affine.tensors().items()} | dict(adam)
        tensors |= {f"best {k}": v for k, v in self.best.items()}
        tensors["told"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
        self.checkpoint.save(step, tensors)

    def _load(self) -> tuple[int, dict[str, Tensor]]:
        """(iterations done, the optimiser's state) of an earlier run of the same work, (0, {}) without one."""
        found = self.checkpoint.load()
        known = self.context.shard.gather(str(found[0] if found else -1).encode(), "looking for a checkpoint")
        if found is None or len(set(known)) > 1:  # processes killed at different steps begin anew together
            return 0, {}
        step, tensors = found
        told = json.loads(bytes(tensors.pop("told").tolist()))
        self.label, self.score, self.told, self.ended = told["label"], told["score"], told["told"], told["ended"]
        self.rehearsal.units = told["units"]
        self.best = {k.removeprefix("best "): v for k, v in tensors.items() if k.startswith("best ")}
        self.affine.restore({k.removeprefix("now "): v for k, v in tensors.items() if k.startswith("now ")})
        return step, {k: v for k, v in tensors.items() if k.startswith("adam ")}


def _drawn(windows: Sequence[Window], iteration: int, batch: int, seed: int) -> list[Window]:
    """The windows of an iteration: all of them once, in an order drawn anew, before any comes again. What is drawn
    depends on the seed and the iteration alone, so a run that goes on elsewhere draws the same."""
    found = []
    for k in range(iteration * batch, (iteration + 1) * batch):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + k // len(windows))
        found.append(windows[int(torch.randperm(len(windows), generator=generator)[k % len(windows)])])
    return found


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())


ADAM = ("step", "exp_avg", "exp_avg_sq")


def _state(optimiser: torch.optim.Adam, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"adam {what} {k}": optimiser.state[p][what] for k, p in params.items() if p in optimiser.state
            for what in ADAM}  # fmt: skip


def _resume(optimiser: torch.optim.Adam, params: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for k, p in params.items():
        if f"adam step {k}" in saved:
            optimiser.state[p] = {what: saved[f"adam {what} {k}"] for what in ADAM}

"""distill: learn a low-bit network's bounds from its float self and from students of more bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from vqc.calibration import Clips, as_clips
from vqc.calibration.split import Split, split
from vqc.errors import PipelineError
from vqc.learning.checkpoint import Checkpoint
from vqc.learning.distillation import Lesson, Pupil, Targets, WeightLearning, windows
from vqc.learning.regions import partition
from vqc.learning.rollouts import twin_of
from vqc.learning.store import Store
from vqc.learning.student import Student
from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, parse, register, run_pass
from vqc.program import Program


@register
@dataclass(frozen=True)
class Distill(Pass):
    """distill: move the bounds of all activations together until the network gives what its teachers give (PMQ-VE).

    Teachers are the float twin and, for each of `teachers`, a student of so many bits: made from the twin by the same
    `observe` and `quantize` as this program, and taught itself, in order, by those before it. The loss is
    (L_INT + a L_FP) / (1 + a), each the distance of the results + `feature_weight` * the squared one of the blocks'
    results, a rising from 0 to 1 over the first `warm_up` of the steps. What was learned is kept only if the error of
    the results on held-out frames falls; the best of several looks is. A program with a state is unrolled over `window`
    frames, and its own state goes on from window to window.

    Preconditions: (1) `quantize` was run, `lower-integer` was not; (2) the context holds the float twin and calibration
    clips of at least two frames. Valid before: quantize/dequantize pairs. Valid after: the same graph, new constants.
    Scales that were folded into a weight stay as they are.

    Options: `teachers`: bits, falling, each more than this program has; `steps` of Adam, and `teacher_steps` for each
    teacher; `rate`: of the logarithm of a scale, falling as a cosine; `train_weights`: "none", "scales" (and biases),
    "rounding" (as well, AdaRound's); `looks`: how often the held-out frames are looked at; `held`: the share of every
    clip that is held out; `layers`: how many a block may hold; `memory` for teachers' values in MB, more goes to disk.
    """

    name: ClassVar[str] = "distill"
    numerics: ClassVar[Numerics] = Lossy(5.0)
    teachers: tuple[int, ...] = ()
    steps: int = 200
    teacher_steps: int = 50
    rate: float = 0.01
    feature_weight: float = 5.0
    warm_up: float = 0.1
    window: int = 2
    train_weights: WeightLearning = "none"
    looks: int = 4
    held: float = 0.25
    layers: int = 6
    memory: int = 2048

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        self._check()
        clips = as_clips(context.calibration, program)
        frames = split(clips, self.held)
        twin = twin_of(context, self.name)
        student = Student(program, twin)
        made = _teachers(program, twin, self.teachers, context)
        names = {n.name for n in twin.graph.nodes}
        blocks = partition(program, student.layers, self.layers).blocks
        taps = [n.name for b in blocks for n in _pictures(b.outputs) if n.name in names]
        with Store(self.memory << 20, context.workdir) as store:
            targets = Targets(twin, taps, frames, store)
            for bits, teacher in zip(self.teachers, made, strict=True):
                taught = Student(teacher, twin)
                who = f"{bits}-bit teacher"
                if self._teach(taught, targets, who, self.teacher_steps, clips, frames, context, result):
                    taught.bake()
                targets.learn_from(str(bits), teacher)
            if self._teach(student, targets, "student", self.steps, clips, frames, context, result):
                result.count("activation", sum(q.learns for q in student.activations.values()))
                if self.train_weights != "none":
                    result.count("layer", len(student.layers))
                student.bake()
        folded = sum(not q.learns for q in student.activations.values())
        if folded:
            result.notes.append(f"{folded} activations have channel scales, which stay as they are")
        result.notes.append(
            f"{frames.learned} frames learned from, {frames.held} held out, {len(targets.taps)} features"
        )
        return result

    def _check(self) -> None:
        if list(self.teachers) != sorted(set(self.teachers), reverse=True):
            raise PipelineError(f"the teachers {list(self.teachers)} of distill do not fall in bits",
                                why="each is taught by those before it", way_out="write teachers=[8,4]")  # fmt: skip
        if min(self.steps, self.looks, self.window) < 1 or self.teacher_steps < 0:
            raise PipelineError("distill needs at least one step, one look and a window of one frame")

    def _teach(self, student: Student, targets: Targets, who: str, steps: int, clips: Clips, frames: Split,
               context: PassContext, result: PassResult) -> bool:  # fmt: skip
        """Teach a student; whether anything better than what it was is found. It holds the best on return."""
        if steps == 0:
            return False
        program = student.program
        lesson = Lesson(steps, self.rate, self.feature_weight, self.warm_up, self.window, self.train_weights)
        pupil = Pupil(student, targets, lesson)
        if not pupil.params:
            result.decline(who, "all its scales are folded into weights: there is nothing to learn")
            return False
        given = pupil.snapshot()
        key = (program, student.twin, clips, str(self), who, context.seed, torch.get_num_threads(), context.shard.world)
        notes = Checkpoint(context.workdir, self.name, key)
        begun = _begun(notes.load(), context)
        if begun is None:
            pupil.leave_roundings()
            course = _Course(0, start := pupil.held_out_error(), start, given, False)
            pupil.restore(given)
            self._learn_roundings(student)
        else:
            course = begun
            pupil.from_tensors(course.rest)
        shard, every = context.shard, max(1, steps // self.looks)
        order = windows(frames, bool(program.states), self.window, context.seed * 1_000_003 + shard.rank)
        for at, window in enumerate(islice(order, steps)):
            if at < course.at or course.diverged:
                continue
            loss = pupil.learn(window, at, course.start, shard.average)
            loss = shard.mean(loss)
            course.diverged = not math.isfinite(loss)
            if not course.diverged and ((at + 1) % every == 0 or at + 1 == steps):
                error = pupil.held_out_error()
                course.diverged = not math.isfinite(error)
                if error < course.best:
                    course.best, course.kept, course.better = error, pupil.snapshot(), True
                course.at = at + 1
                notes.save(course.at, course.tensors(pupil))
            context.report(f"{self.name} {who}", at + 1, steps)
        pupil.restore(course.kept)
        if not course.better:
            pupil.leave_roundings()
        course.tell(who, result)
        return course.better

    def _learn_roundings(self, student: Student) -> None:
        for layer in student.layers.values():
            layer.quantizer.learned = self.train_weights == "rounding"


@dataclass
class _Course:
    """How far a student is: steps done, held-out errors at the start and at best, the parameters of the best."""

    at: int
    start: float
    best: float
    kept: dict[str, Tensor]
    better: bool
    diverged: bool = False
    rest: dict[str, Tensor] | None = None

    def tensors(self, pupil: Pupil) -> dict[str, Tensor]:
        numbers = torch.tensor([self.start, self.best, self.better, self.diverged], dtype=torch.float64)
        return pupil.to_tensors() | {f"best {k}": v for k, v in self.kept.items()} | {"numbers": numbers}

    @staticmethod
    def of(step: int, tensors: dict[str, Tensor]) -> _Course:
        start, best, better, diverged = tensors["numbers"].tolist()
        kept = {k.removeprefix("best "): v for k, v in tensors.items() if k.startswith("best ")}
        return _Course(step, start, best, kept, bool(better), bool(diverged), tensors)

    def tell(self, who: str, result: PassResult) -> None:
        if self.better:
            gain = 10 * math.log10(self.start / max(self.best, 1e-30))
            result.notes.append(f"{who}: {gain:+.2f} dB on held-out frames"
                                + (", the best before learning diverged" if self.diverged else ""))  # fmt: skip
        elif self.diverged:
            result.decline(who, "it stays as it was: learning diverged")
        else:
            result.decline(who, "it stays as it was: no look at the held-out frames found less error than "
                           f"{self.start:.3g}")  # fmt: skip


def _begun(found: tuple[int, dict[str, Tensor]] | None, context: PassContext) -> _Course | None:
    """The course a killed run left; None when not all processes have it from the same step."""
    at = str(found[0] if found is not None else -1).encode()
    steps = set(context.shard.gather(at, "looking for a checkpoint"))
    return _Course.of(*found) if found is not None and len(steps) == 1 else None


def _pictures(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes whose values can be measured; for one that gives several tensors (a split) those who take them."""
    found = [m for n in nodes for m in (n.users if isinstance(n.meta["val"], (list, tuple)) else [n])]
    return [n for n in found if isinstance(n.meta["val"], Tensor) and n.meta["val"].is_floating_point()]


def _teachers(program: Program, twin: Program, bits: Sequence[int], context: PassContext) -> list[Program]:
    """The twin, quantized as `program` was but with more bits, once for each of `bits`."""
    if not bits:
        return []
    observe, quantize = _last(program, Observe), _last(program, Quantize)
    few = min(quantize.weight_bits, quantize.activation_bits)
    if min(bits) <= few or max(bits) > 8:
        raise PipelineError(f"teachers of {list(bits)} bits cannot teach a student of {few}",
                            why="a teacher has more bits than its student, and 8 at most",
                            way_out="leave some out of teachers")  # fmt: skip
    observed = run_pass(observe, twin, context)
    return [
        run_pass(replace(quantize, weight_bits=max(b, quantize.weight_bits),
                         activation_bits=max(b, quantize.activation_bits)), observed, context)
        for b in bits
    ]  # fmt: skip


def _last(program: Program, kind: type[Any]) -> Any:
    """The last pass of a kind in a program's history, with its options."""
    for record in reversed(program.history):
        if record.name.partition("{")[0] == kind.name:
            return parse(record.name).passes[0]
    raise PipelineError(f"distill cannot make teachers: the program's history has no {kind.name}",
                        why="they are made as the program was", way_out="leave teachers out, or run it in one "
                        "pipeline with observe and quantize")  # fmt: skip

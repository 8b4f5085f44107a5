"""reconstruct: learn roundings and grids, block by block, on real frames with the state carried."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from vqc.calibration import as_clips
from vqc.calibration.split import Split, split
from vqc.distributed import Shard
from vqc.learning.block import BlockLearner, Learning, Weights
from vqc.learning.checkpoint import Checkpoint
from vqc.learning.fisher import fisher_weights
from vqc.learning.frontier import Frontier
from vqc.learning.regions import Block, partition
from vqc.learning.rollouts import twin_of
from vqc.learning.store import Store
from vqc.learning.student import Student
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program

Outcome = dict[str, Any]  # "kept": why what was before is kept; or "gain" in dB, "undecided" roundings


@register
@dataclass(frozen=True)
class Reconstruct(Pass):
    """reconstruct: for every block of quantized layers, learn how to round its weights (and where its grids lie), so
    that it gives what the float network gives on calibration frames.

    Blocks are found in the graph (`vqc.learning.regions`). Each reads what the blocks before it, already low-bit, give;
    one with a state is rolled out over `frames` steps from states in the middle of a clip, and its next state is
    matched as well. What was learned is kept only if the block's error on held-out frames falls.

    Preconditions: (1) `quantize` was run, `lower-integer` was not; (2) the context holds calibration clips of at least
    two frames and the float twin. Valid before: quantize/dequantize pairs. Valid after: the same graph, new constants.

    Options: `method` - "adaround": one layer at a time, roundings alone, activations in float (arXiv 2004.10568);
    "brecq": blocks, roundings first, then grids (arXiv 2102.05426); "qdrop": both together while half of the
    activations stay float (arXiv 2203.05740). `loss` - "mse", or "fisher": squared gradients of the network's error
    weigh channels. `iterations` of Adam for each block, each on `batch` windows of `frames` steps; `rate`, `grid_rate`
    of roundings and grids; `rounding` - "straight": whole numbers forward, the gradient of AdaRound's soft rounding
    backward; "soft": AdaRound's own, which takes many thousand iterations to come to whole numbers; `start` of the
    roundings: from the float weight, or near the integers that are there (after `gptq`); `drop`: the share of
    activations that qdrop leaves float; `strength` of the pull towards whole numbers, against the block's first error,
    after a share `warm_up` of the iterations; `layers` a block may hold; `held`: the share of clips that is held
    out; `memory` for activations in MB, more goes to disk.
    """

    name: ClassVar[str] = "reconstruct"
    numerics: ClassVar[Numerics] = Lossy(5.0)
    method: Literal["adaround", "brecq", "qdrop"] = "qdrop"
    loss: Literal["mse", "fisher"] = "mse"
    iterations: int = 300
    batch: int = 1
    frames: int = 2
    rate: float = 0.05
    grid_rate: float = 0.003
    drop: float = 0.5
    rounding: Literal["straight", "soft"] = "straight"
    start: Literal["float", "given"] = "float"
    strength: float = 1.0
    warm_up: float = 0.2
    layers: int = 6
    held: float = 0.25
    memory: int = 2048

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        clips = as_clips(context.calibration, program)
        frames = split(clips, self.held)
        twin = twin_of(context, self.name)
        student = Student(program, twin)
        if self.start == "given":
            for layer in student.layers.values():
                layer.quantizer.start_from(layer.quantizer.given)
        parts = partition(program, student.layers, 1 if self.method == "adaround" else self.layers)
        result.notes += parts.notes
        weights: dict[fx.Node, Tensor] = {}
        if self.loss == "fisher":
            weights = fisher_weights(student, parts.blocks, clips, frames)
        key = (program, twin, clips, str(self), context.seed, torch.get_num_threads(), context.shard.world)
        done = _Done(Checkpoint(context.workdir, self.name, key), context.shard)
        with Store(self.memory << 20, context.workdir) as store:
            frontier = Frontier(student, clips, parts.blocks, store)
            for i, block in enumerate(parts.blocks):
                self._block(i, len(parts.blocks), block, frontier, frames, weights, context, done)
        for block, outcome in zip(parts.blocks, done.outcomes, strict=True):
            _tell(outcome, block, result)
        student.bake()
        result.notes.append(f"{frames.learned} frames learned from, {frames.held} held out, {len(clips.clips)} clips")
        return result

    def _block(self, i: int, count: int, block: Block, frontier: Frontier, frames: Split, weights: Weights,
               context: PassContext, done: _Done) -> None:  # fmt: skip
        student = frontier.student
        frontier.advance("float", block)
        if i < len(done.outcomes):  # by an earlier run of the same work, killed after this block
            done.restore(i, block, student)
        frontier.advance("low", block, student.overrides(block.nodes))
        if block.layers and i >= len(done.outcomes):
            generator = torch.Generator().manual_seed(context.seed * 1_000_003 + i)
            learner = BlockLearner(frontier, block, frames, weights, generator)

            def report(step: int, steps: int) -> None:
                context.report(f"{self.name} {block.name}", i * steps + step, count * steps)

            done.add(block, student, self._learn(learner, report, context.shard))
        elif i >= len(done.outcomes):
            done.add(block, student, {"kept": "nothing to learn"})
        frontier.done(block)

    def _learn(self, learner: BlockLearner, report: Callable[[int, int], None], shard: Shard) -> Outcome:
        """Learn, and keep it or put back what was: the student and the frontier are as the outcome says."""
        block, student, frontier = learner.block, learner.student, learner.frontier
        start, before = learner.error(held=False), learner.error(held=True)
        if start == 0:
            return {"kept": "the block has no error to lower on these frames"}
        given = _snapshot(student, block)
        phases = self._phases()
        steps = sum(how.iterations for how in phases)
        gone = 0
        for how in phases:
            if not learner.learn(how, start, lambda d, _n, gone=gone: report(gone + d, steps), shard):  # type: ignore[misc]
                _restore(student, block, given, learned=False)
                return {"kept": "learning diverged"}
            gone += how.iterations
        undecided = learner.undecided()
        frontier.advance("low", block, student.overrides(block.nodes), tag=" new")
        after = learner.error(True, " new")
        if not after < before:  # or it is NaN
            _restore(student, block, given, learned=False)
            frontier.forget(block, " new")
            return {"kept": f"its error on held-out frames would go from {before:.3g} to {after:.3g}"}
        frontier.settle(block, " new")
        return {"gain": 10 * math.log10(before / max(after, 1e-30)), "undecided": undecided}

    def _phases(self) -> list[Learning]:
        def phase(iterations: int, drop: float, rounding: bool, grids: bool, real: bool) -> Learning:
            return Learning(iterations, self.batch, self.frames, drop, rounding, grids, self.rate, self.grid_rate,
                            self.strength, self.warm_up, self.rounding == "straight", real)  # fmt: skip

        if self.method == "qdrop":
            return [phase(self.iterations, self.drop, True, True, False)]
        rounding = phase(self.iterations, 0.0, True, False, True)
        if self.method == "adaround":
            return [rounding]
        return [rounding, phase(max(1, self.iterations // 4), 0.0, False, True, False)]


class _Done:
    """The outcomes of the blocks so far, with what they learned, on disk after every block."""

    def __init__(self, checkpoint: Checkpoint, shard: Shard):
        self.checkpoint = checkpoint
        self.outcomes: list[Outcome] = []
        self.tensors: dict[str, Tensor] = {}
        found = checkpoint.load()
        if found is not None:
            self.tensors = found[1]
            self.outcomes = json.loads(bytes(self.tensors.pop("outcomes").tolist()))
        everywhere = min(int(n) for n in shard.gather(str(len(self.outcomes)).encode(), "looking for a checkpoint"))
        del self.outcomes[everywhere:]  # a machine without the file begins anew, and the others with it

    def add(self, block: Block, student: Student, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if "gain" in outcome:
            self.tensors |= _snapshot(student, block)
        text = torch.tensor(list(json.dumps(self.outcomes).encode()), dtype=torch.uint8)
        self.checkpoint.save(len(self.outcomes), self.tensors | {"outcomes": text})

    def restore(self, i: int, block: Block, student: Student) -> None:
        if "gain" in self.outcomes[i]:
            _restore(student, block, self.tensors, learned=True)


def _tell(outcome: Outcome, block: Block, result: PassResult) -> None:
    if "gain" in outcome:
        result.count("block")
        result.count("layer", len(block.layers))
        result.notes.append(f"{block.name}: {outcome['gain']:+.1f} dB on held-out frames, "
                            f"{100 * outcome['undecided']:.1f} % of its roundings undecided at the end")  # fmt: skip
    elif block.layers:
        result.decline(block.layers[0], f"block {block.name} stays as it was: {outcome['kept']}")


def _parameters(student: Student, block: Block) -> dict[str, Tensor]:
    """The block's parameters by the names of their nodes."""
    found: dict[str, Tensor] = {f"{n.name}.v": student.layers[n].quantizer.v for n in block.layers}
    for n in block.nodes:
        if n in student.activations:
            found[f"{n.name}.log_scale"] = student.activations[n].log_scale
            found[f"{n.name}.zero"] = student.activations[n].zero
    return found


def _snapshot(student: Student, block: Block) -> dict[str, Tensor]:
    """What the block's parameters are; a rounding is up or down."""
    now = _parameters(student, block)
    return {k: p.detach() >= 0 if k.endswith(".v") else p.detach().clone() for k, p in now.items()}


def _restore(student: Student, block: Block, snapshot: dict[str, Tensor], learned: bool) -> None:
    with torch.no_grad():
        for k, p in _parameters(student, block).items():
            p.copy_(snapshot[k].float() - 0.5 if k.endswith(".v") else snapshot[k])
    for n in block.layers:
        student.layers[n].quantizer.learned = learned

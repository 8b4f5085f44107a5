"""What an error in a channel of a block's output costs the network (BRECQ, arXiv 2102.05426, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from vqc.calibration import Clips
from vqc.calibration.split import Split
from vqc.learning.execute import execute, whole
from vqc.learning.regions import Block
from vqc.learning.student import Student
from vqc.program import evaluate

FRAMES = 8  # at most, spread over what may be learned from


def fisher_weights(student: Student, blocks: Sequence[Block], clips: Clips, split: Split) -> dict[fx.Node, Tensor]:
    """For every float output of a block, [1,C,1,1,..] of mean 1: the mean squared gradient of the network's error.

    The error is the mean squared distance of all results and next states of the student to the twin's, each divided by
    the twin's power. At the twin itself its gradient is zero, so it is taken where the student stands, at steps spread
    over the clips, with the state carried.
    """
    program = student.program
    outputs = [n for b in blocks for n in b.outputs if isinstance(n.meta["val"], torch.Tensor)
               and n.meta["val"].is_floating_point()]  # fmt: skip
    learned = [(c, t) for c, clip in enumerate(clips) for t in range(len(clip)) if split.learns(c, t)]
    chosen = set(learned[:: max(1, len(learned) // FRAMES)])
    sums = {n: torch.zeros(()) for n in outputs}
    for c, clip in enumerate(clips):
        low, real = program.initial_state(), student.twin.initial_state()
        for t, step in enumerate(clip):
            target = evaluate(student.twin, step, real)
            if (c, t) in chosen:
                _add_gradients(student, whole(program, step, low), target, outputs, sums)
            found = evaluate(program, step, low)
            low, real = ([x[s.output] for s in program.states] for x in (found, target))
    return {n: s / s.mean() for n, s in sums.items() if s.ndim and float(s.mean()) > 0}


def _add_gradients(student: Student, feeds: dict[fx.Node, Tensor], target: Sequence[Tensor], outputs: Sequence[fx.Node],
                   sums: dict[fx.Node, Tensor]) -> None:  # fmt: skip
    program = student.program
    results = [n for n in program.result_nodes if n.meta["val"].is_floating_point()]
    wanted = dict.fromkeys([*outputs, *results])
    calls = program.calls
    found = execute(program, calls, feeds, wanted, student.overrides())
    loss = torch.zeros(())
    for n, y in zip(program.result_nodes, target, strict=True):
        if n in found and y.is_floating_point():
            loss = loss + (found[n] - y).square().mean() / y.square().mean().clamp_min(1e-12)
    linked = [n for n in outputs if found[n].requires_grad]
    grads = torch.autograd.grad(loss, [found[n] for n in linked], allow_unused=True)
    for n, g in zip(linked, grads, strict=True):
        if g is not None and g.ndim > 1:
            dims = [d for d in range(g.ndim) if d != 1]
            sums[n] = sums[n] + g.square().mean(dims, keepdim=True)

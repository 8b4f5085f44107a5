"""How far results may move on another machine: what functions without one exact meaning do to roundings and choices.

Engines differ in the last bits of a softmax or of a long sum. Where such a value is rounded to an integer, compared, or
picked as the largest, the last bit can be a whole step, and a state carries it on. `exact-float` names those functions
in a Program's history. How much they move the results depends on the network, so it is measured, in the reference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from vqc.ops.exact import is_exact
from vqc.passes.exact_float import makes_integers
from vqc.pipeline import probe_steps
from vqc.program import Program, evaluate, infer

aten = torch.ops.aten

LEAST = 1e-4  # of a float tensor's largest value: another compiler may contract differently
LEAST_SHARE = 1e-4  # of a tensor's elements, where they hang on last bits
TRIALS = 3
SHIFT = 2.0**-21  # relative: a few last bits of float32, as long sums in another order move
MARGIN = 4.0  # what a trial does not show

_CHOICES = {getattr(aten, name) for name in ("floor", "ceil", "round", "trunc", "sign", "topk", "sort")}


def wavers(program: Program) -> bool:
    """Whether a rounding, a comparison or a choice hangs on a float that engines do not agree on to the last bit."""
    results = program.result_nodes
    loose: set[fx.Node] = set()
    size = -1
    while size != len(loose):  # until states carry nothing new
        size = len(loose)
        loose |= {program.node(s.input) for s in program.states if results[s.output] in loose}
        for n in program.calls:
            if any(a in loose for a in n.all_input_nodes) or not is_exact(n):
                loose.add(n)
    return any(_decides(n) and any(a in loose and _floats(a) for a in n.all_input_nodes) for n in program.calls)


@dataclass(frozen=True)
class Bound:
    """How far one tensor of the self-test may be off: `share` of its elements by more than `slack`, none by more than
    `distance`. `span`: how far its expected values lie apart, over all steps. `slack` is 0 but of floats.
    """

    share: float
    slack: float
    distance: float
    span: float

    @property
    def judges(self) -> bool:
        """Whether the bound refuses what is plainly wrong.

        Not where half of the elements may be off by half the span: a constant in the middle would nearly pass.
        """
        return self.share < 0.5 or self.distance <= self.slack or 2 * self.distance < self.span

    def __str__(self) -> str:
        share, apart = f"{100 * self.share:.3g} % of the values may be", f"they lie {self.span:.2g} apart"
        if not self.judges:
            return (f"not judged: by last bits, which engines do not share, {share} off by {self.distance:.2g}, and "
                    f"{apart}; only NaN, infinities and what is further off fail")  # fmt: skip
        if self.slack == 0:
            return f"{share} others" if self.share else "equal"
        if self.share == 1:
            return f"no value off by more than {self.distance:.2g}; {apart}"
        return f"{share} off by more than {self.slack:.2g}, none by more than {self.distance:.2g}; {apart}"


def bounds(program: Program, want: Sequence[Sequence[torch.Tensor]]) -> list[Bound]:
    """What the self-test of a Program allows each result, then each next state, as the vectors hold them.

    `want`: what evaluation gives at every probe step, from the reset state. Floats may be off by LEAST of the largest
    value, and other tensors not at all, unless the Program `wavers`: then TRIALS of the reference, in which every
    function without one exact meaning is off by SHIFT, show how many elements move and how far, and MARGIN times that
    is allowed. What any element may be off has an end in any case: beyond the span by no more than a trial showed.
    """
    states = [s.output for s in program.states]
    order = [i for i in range(len(program.result_nodes)) if i not in set(states)] + states
    loose = wavers(program)
    trials = [step_results(_shifted(program, seed), len(want)) for seed in range(TRIALS if loose else 0)]
    return [_bound([w[i] for w in want], [[t[i] for t in trial] for trial in trials]) for i in order]


def _bound(want: Sequence[torch.Tensor], trials: Sequence[Sequence[torch.Tensor]]) -> Bound:
    """The bound of one tensor, from its values at every step and those of every trial."""
    real = want[0].is_floating_point() or want[0].is_complex()
    values = torch.cat([_numbers(w) for w in want])
    values = values[values.isfinite()]
    largest, span = (float(values.abs().max()), float(values.max() - values.min())) if len(values) else (0.0, 0.0)
    slack = LEAST * largest + 1e-6 if real else 0.0
    if not trials:
        return Bound(1.0 if real else 0.0, slack, slack, span)
    share = distance = 0.0
    for trial in trials:
        for a, b in zip(want, trial, strict=True):
            off = (_numbers(a) - _numbers(b)).abs()
            off = off[off.isfinite()]
            if len(off):
                share = max(share, float((MARGIN * off > slack).double().mean()))
                distance = max(distance, float(off.max()))
    end = span + distance
    # A label or an index that moves can become any other.
    distance = min(MARGIN * distance, end) if real else max(end, 1.0)
    if distance <= slack:
        return Bound(1.0, slack, slack, span)
    return Bound(min(max(MARGIN * share, LEAST_SHARE), 1.0), slack, distance, span)


def _numbers(x: torch.Tensor) -> torch.Tensor:
    """The elements in a row, as numbers that can be subtracted; a complex one is two."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1).double()


def step_results(program: Program, steps: int) -> list[tuple[torch.Tensor, ...]]:
    """What evaluation gives at every probe step, from the reset state: results, then next states."""
    state, found = program.initial_state(), []
    for inputs in probe_steps(program, steps):
        found.append(evaluate(program, inputs, state))
        state = [found[-1][s.output] for s in program.states]
    return found


def _floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _decides(node: fx.Node) -> bool:
    value = node.meta.get("val")
    whole = isinstance(value, torch.Tensor) and not _floats(node)
    return whole or makes_integers(node) or getattr(node.target, "overloadpacket", None) in _CHOICES


def _shifted(program: Program, seed: int) -> Program:
    """The same with every result of a function without one exact meaning times 1 + SHIFT or 1 - SHIFT."""
    signs = random.Random(seed)
    moved = program.clone()
    for n in moved.calls:
        if is_exact(n) or not _floats(n) or n.meta["val"].dtype != torch.float32:
            continue
        users = list(n.users)
        with moved.graph.inserting_after(n):
            shifted = moved.graph.call_function(aten.mul.Tensor, (n, 1.0 + signs.choice((-SHIFT, SHIFT))))
        for user in users:
            user.replace_input_with(n, shifted)
        infer(moved, shifted)
    return moved

"""How far results may move on another machine: what functions without one exact meaning do to roundings and choices.

Engines differ in the last bits of a softmax or of a long sum. Where such a value is rounded to an integer, compared, or
picked as the largest, the last bit can be a whole step, and a state carries it on. `exact-float` names those functions
in a Program's history. How much they move the results depends on the network, so it is measured, in the reference.
"""

from __future__ import annotations

import random

import torch
from torch import fx

from vqc.ops.exact import is_exact
from vqc.passes.exact_float import makes_integers
from vqc.pipeline import probe_steps
from vqc.program import Program, evaluate, infer

aten = torch.ops.aten

LEAST = 1e-4  # of a float tensor's largest value: another compiler may contract differently
LEAST_SHARE = 1e-4  # of an integer tensor's elements, where they hang on last bits
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


def bounds(program: Program, steps: int) -> list[float]:
    """What the self-test of a Program allows each result, then each next state, as the vectors hold them.

    Of floats the largest difference, as a share of the tensor's largest value; of other tensors the share of elements
    that may differ. LEAST and 0, unless the Program `wavers`: then MARGIN times what TRIALS of the reference show in
    which every function without one exact meaning is off by SHIFT.
    """
    states = [s.output for s in program.states]
    order = [i for i in range(len(program.result_nodes)) if i not in set(states)] + states
    real = [_floats(program.result_nodes[i]) for i in order]
    least = [LEAST if f else 0.0 for f in real]
    if not wavers(program):
        return least
    want = _results(program, steps)
    seen = [0.0] * len(order)
    for seed in range(TRIALS):
        for a, b in zip(want, _results(_shifted(program, seed), steps), strict=True):
            seen = [max(s, _moved(a[i], b[i])) for s, i in zip(seen, order, strict=True)]
    return [max(LEAST if f else LEAST_SHARE, min(MARGIN * s, 1.0)) for f, s in zip(real, seen, strict=True)]


def _results(program: Program, steps: int) -> list[tuple[torch.Tensor, ...]]:
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


def _moved(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float((a != b).double().mean())
    finite = a.isfinite() & b.isfinite()
    largest = float(a[finite].abs().max()) if bool(finite.any()) else 0.0
    return float((a - b)[finite].abs().max()) / largest if largest > 0 else 0.0

"""The check at the end of capture: the Program gives what the network gives, over several steps and on other data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from vqc.errors import CaptureError
from vqc.frontend.session import Session
from vqc.frontend.states import StatePlan
from vqc.program import Program, evaluate

_RTOL = 1e-4
_RTOL_OTHER = 2e-3  # on data derived from the example, where decisions may lie closer to their thresholds


def other_data(x: Any, step: int) -> Any:
    """The example for a later step: a mixture of a float tensor and its mirror image, so it stays in its range."""
    if step == 0 or not isinstance(x, torch.Tensor) or not (x.is_floating_point() or x.is_complex()) or x.ndim == 0:
        return x
    part = 0.15 * step
    return x * (1 - part) + x.flip(-1) * part


@dataclass
class _Mismatch(Exception):
    """Result `leaf` differs at `step`: by `amount` (largest difference, or number of elements), `problem` in words."""

    step: int
    leaf: int
    problem: str
    amount: float


def verify(session: Session, program: Program, plan: StatePlan) -> list[str]:
    """Compare the Program with the network. Returns notes; raises CaptureError on a difference.

    With states, or when a call leaves other Python values in the model: both are started afresh and run three steps, on
    the example and then on other data. Otherwise: on other data, and on the example when that says nothing. A network
    that amplifies a change of its input by 1e-6 to the size of the difference is let through with a note.
    """
    if program.states or session.python_changes:
        return _judged(session, program, plan, [0, 1, 2])
    try:
        notes = _run(session, program, plan, [1], _RTOL)
    except _Mismatch:
        return _judged(session, program, plan, [0]) + _judged(session, program, plan, [1])
    return notes + (_judged(session, program, plan, [0]) if notes else [])


def _judged(session: Session, program: Program, plan: StatePlan, steps: list[int]) -> list[str]:
    try:
        return _run(session, program, plan, steps, _RTOL_OTHER)
    except _Mismatch as m:
        upto = steps[: steps.index(m.step) + 1]
        clean, shaken = (_eager_result(session, plan, upto, m.leaf, noise) for noise in (0.0, 1e-6))
        own = amount(clean, shaken)
        if own > 0 and m.amount <= 20 * own:
            return [f"the network amplifies rounding: a change of 1e-6 in its input moves result {m.leaf} by {own:.2g}"]
        raise CaptureError(
            _what(m.leaf, m.step), why=f"{m.problem}; {_why(program, m.step, plan)}",
            way_out=_way_out(program, m.step, plan),
        ) from None  # fmt: skip


def _inputs(plan: StatePlan, carried: dict[int, Any], step: int, noise: float = 0.0) -> list[Any]:
    leaves = [carried.get(i, other_data(x, step)) for i, x in enumerate(plan.start_leaves)]
    if not noise:
        return leaves
    g = torch.Generator().manual_seed(step)
    return [
        x + (torch.rand(x.shape, generator=g) - 0.5).to(x) * (2 * noise * float(x.abs().max()))
        if i not in carried and isinstance(x, torch.Tensor) and x.is_floating_point() and x.numel() else x
        for i, x in enumerate(leaves)
    ]  # fmt: skip


def _eager_result(session: Session, plan: StatePlan, steps: list[int], leaf: int, noise: float) -> torch.Tensor:
    carried: dict[int, Any] = {}
    with session.restored():
        for step in steps:
            want = pytree.tree_leaves(session.eager(_inputs(plan, carried, step, noise)))
            carried = {d.leaf: want[d.spec.output] for d in plan.declared}
    result: torch.Tensor = want[leaf]
    return result


def _run(session: Session, program: Program, plan: StatePlan, steps: list[int], rtol: float) -> list[str]:
    state = program.initial_state()
    carried: dict[int, Any] = {}
    with session.restored():
        for step in steps:
            try:
                want = pytree.tree_leaves(session.eager(_inputs(plan, carried, step)))
            except Exception as e:  # the user's own check of its input may refuse the other data: that is no fault
                if step == 0:
                    raise
                return [f"not compared on other data: the network raises {type(e).__name__} there"]
            feeds = [other_data(x, step) for x in program.example]
            got = evaluate(program, feeds, state)
            broken = next((a for a in program.assumptions if bool(got[a.output]) != a.expected), None)
            if broken is not None:
                return [f"not compared on other data: there {broken.text} does not hold"]
            state = [got[s.output] for s in program.states]
            _compare(want, _leaves(program, got, feeds), step, _RTOL if step == 0 else rtol)
            carried = {d.leaf: want[d.spec.output] for d in plan.declared}
    return []


def _leaves(program: Program, got: Sequence[Any], feeds: Sequence[torch.Tensor]) -> list[Any]:
    after = [got[s.output] for s in program.states]
    sources: dict[str, Sequence[Any]] = {"output": got, "state": after, "input": feeds}
    return [x.value if x.kind == "constant" else sources[x.kind][x.index] for x in program.signature.out_leaves]


def _compare(want: list[Any], got: list[Any], step: int, rtol: float) -> None:
    if len(want) != len(got):
        raise CaptureError(f"the network returns {len(want)} values at step {step + 1}, and {len(got)} when captured",
                           way_out="keep the structure of the result the same at every step")  # fmt: skip
    for i, (a, b) in enumerate(zip(want, got, strict=True)):
        if not isinstance(a, torch.Tensor):
            if isinstance(b, torch.Tensor) or (repr(a) != repr(b) and step == 0):
                raise CaptureError(f"result {i} is {a!r} at step {step + 1}, it was captured as {b!r}")
        elif problem := difference(a, b, rtol):
            raise _Mismatch(step, i, problem, amount(a, b))


def amount(a: torch.Tensor, b: Any) -> float:
    """The largest difference of two tensors, the number of elements that differ when they are integers."""
    if not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not (a.is_floating_point() or a.is_complex()):
        return float((a != b).sum())
    difference = (a - b).abs().double()
    return float(difference.nan_to_num(float("inf")).max()) if difference.numel() else 0.0


def _what(i: int, step: int) -> str:
    where = "on the example" if step == 0 else f"at step {step + 1}"
    return f"result {i} of the captured graph is not the network's {where}"


def _why(program: Program, step: int, plan: StatePlan) -> str:
    if step == 0 and any(d.none_first for d in plan.declared):
        return "the first call with None is not the same as one with zeros"
    if step == 0 and any(s.origin != "argument" for s in program.states):
        return "the first call does something else than later ones (an attribute that is None or unset before it)"
    if step == 0:
        return "something computes outside PyTorch's view, or writes memory through a raw pointer"
    return "the network does something else at a later call, or values of the data reached Python unseen"


def _way_out(program: Program, step: int, plan: StatePlan) -> str:
    if step == 0 and program.states:
        return "pass an explicit initial state, or run the network once and capture it after its first frame"
    return ("make what changes between calls an explicit argument or a tensor buffer; register code outside PyTorch "
            "with torch.library.custom_op")  # fmt: skip


def difference(want: torch.Tensor, got: Any, rtol: float) -> str:
    """ "" when two tensors agree within rtol of the largest value (and NaN where NaN is), else what is wrong."""
    if not isinstance(got, torch.Tensor) or want.shape != got.shape or want.dtype != got.dtype:
        return f"{_text(want)} became {_text(got)}"
    if want.numel() == 0:
        return ""
    if not (want.is_floating_point() or want.is_complex()):
        wrong = int((want != got).sum())
        return (
            "" if wrong <= want.numel() * (rtol if rtol > 1e-3 else 0) else f"{wrong} of {want.numel()} elements differ"
        )
    a, b = (torch.view_as_real(t) if t.is_complex() else t for t in (want, got))
    a, b = a.double(), b.double()
    if not torch.equal(a.isnan(), b.isnan()):
        return f"NaN in {int((a.isnan() != b.isnan()).sum())} places of one and not of the other"
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(0), b[~finite].nan_to_num(0)):
        return "infinite values in different places"
    if not bool(finite.any()):
        return ""
    diff = float((a[finite] - b[finite]).abs().max())
    low = want.dtype in (torch.float16, torch.bfloat16)
    bound = max(rtol, 2e-2 if low else 0) * float(a[finite].abs().max()) + 1e-6
    return "" if diff <= bound else f"largest difference {diff:.3g}, allowed {bound:.3g}"


def _text(x: Any) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__

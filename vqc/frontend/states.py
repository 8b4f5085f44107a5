"""Which tensors are recurrent: declared arguments, and what the model is seen to keep in itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from vqc.errors import CaptureError
from vqc.frontend.decisions import Plan
from vqc.frontend.session import Change, Recording, Session, SlotState
from vqc.frontend.snapshot import MISSING
from vqc.frontend.target import Target, identifier

_ROUNDS = 5


@dataclass(frozen=True)
class StateSpec:
    """A recurrent argument: its name (or a leaf's, "rec_0"), the output leaf that is its next value, and, when they
    are not the example's, its value at the first frame and a range that holds by mathematics."""

    input: str
    output: int
    reset: torch.Tensor | None = None
    known_range: tuple[float, float] | None = None


@dataclass
class DeclaredState:
    """A StateSpec matched with the arguments: `leaf` is its number among the session's leaves."""

    name: str
    spec: StateSpec
    leaf: int
    reset: torch.Tensor
    none_first: bool


@dataclass
class StatePlan:
    """All states of a capture, and how the user's own call looks (without arguments added for states)."""

    declared: list[DeclaredState]
    user_spec: pytree.TreeSpec
    user_leaves: list[Any]
    user_names: list[str]
    start_leaves: list[Any]  # the session's leaves as the user gives them at the first frame (None included)
    notes: list[str] = field(default_factory=list)


def _specs(states: Mapping[str, Any] | None) -> dict[str, StateSpec]:
    specs = {}
    for name, given in (states or {}).items():
        if isinstance(given, StateSpec):
            specs[name] = given
        elif isinstance(given, (tuple, list)):
            specs[name] = StateSpec(str(given[0]), int(given[1]))
        else:
            specs[name] = StateSpec(str(name), int(given))
    return specs


def declare(target: Target, args: tuple, kwargs: dict, states: Mapping[str, Any] | None) -> tuple[Session, StatePlan]:
    """Match the declared states with the arguments; the shapes of those given as None come from one eager run.

    Raises CaptureError when a name or an output does not exist or the shapes do not fit.
    """
    specs = _specs(states)
    user_leaves, user_spec = pytree.tree_flatten((args, kwargs))
    user_names = target.leaf_names(args, kwargs)
    full = dict(kwargs)
    for s in specs.values():
        if s.input not in user_names:
            if not target.accepts(s.input) or any(n.startswith(f"{s.input}_") for n in user_names):
                raise CaptureError(f"there is no argument {s.input!r} to be a state",
                                   way_out="use one of " + ", ".join(user_names))  # fmt: skip
            full[s.input] = None
    session = Session(target, args, full)
    start_leaves = list(session.leaves)
    plan = StatePlan([], user_spec, user_leaves, user_names, start_leaves)
    if not specs:
        return session, plan
    results = None
    for name, s in specs.items():
        leaf = session.names.index(s.input)
        given = start_leaves[leaf]
        reset = s.reset if s.reset is not None else given
        none_first = not isinstance(given, torch.Tensor) and s.reset is None
        if not isinstance(reset, torch.Tensor):
            if results is None:
                with session.restored():
                    results = pytree.tree_leaves(session.eager(start_leaves))
            if not 0 <= s.output < len(results):
                raise CaptureError(f"state {name} is said to be output {s.output}",
                                   why=f"the network returns {len(results)} values")  # fmt: skip
            after = results[s.output]
            if not isinstance(after, torch.Tensor):
                raise CaptureError(f"output {s.output}, the next value of state {name}, is a {type(after).__name__}")
            reset = torch.zeros_like(after)
        plan.declared.append(DeclaredState(identifier(name), s, leaf, reset.detach().clone(), none_first))
        session.leaves[leaf] = plan.declared[-1].reset
    session.state_leaves = [d.leaf for d in plan.declared]
    return session, plan


def discover(session: Session) -> tuple[Recording, Plan]:
    """Find what the model keeps in itself from step to step: record until nothing new depends on the data.

    Returns the last recording and what was asked of the data in it.
    """
    for _ in range(_ROUNDS):
        reads = Plan()
        recording = session.record(reads)
        fresh = False
        for change in recording.changes.values():
            session.slot_states = [s for s in session.slot_states if s.slot.path != change.slot.path]
            found = _slot_state(session, change)
            known = [t for s in session.slot_states for t in s.live if t is not None]
            if not any(t is o for t in found.live for o in known):  # not the same tensor in two attributes
                session.slot_states.append(found)
                fresh = True
        if not fresh:
            return recording, reads
    raise CaptureError("the network keeps new tensors at every step", where=", ".join(recording.changes),
                       way_out="capture the whole clip at once, or keep a memory of fixed size")  # fmt: skip


def _slot_state(session: Session, change: Change) -> SlotState:
    """An attribute that was seen to change becomes a state: from its value before capture, else from zeros."""
    before = session.start[change.slot.path].get() if change.slot.path in session.start else MISSING
    leaves, spec = change.leaves, change.spec
    old, old_spec = pytree.tree_flatten(before)
    same = before is not MISSING and spec == old_spec
    resets: list[torch.Tensor] = []
    live: list[torch.Tensor | None] = []
    names: list[str] = []
    taken = {n for s in session.slot_states for n in s.names} | set(session.names)
    for i in change.which:
        start = old[i] if same else None
        fits = isinstance(start, torch.Tensor) and start.shape == leaves[i].shape and start.dtype == leaves[i].dtype
        if isinstance(start, torch.Tensor) and not fits:
            raise CaptureError(
                f"{change.slot.origin} does not keep its shape from one step to the next",
                why=f"it is {tuple(start.shape)} before a step and {tuple(leaves[i].shape)} after it",
                way_out="set it to None or to zeros of its final shape before capture",
            )
        live.append(start if fits else None)
        resets.append(start.detach().clone() if fits else torch.zeros_like(leaves[i]))
        name = identifier(change.slot.path if len(change.which) == 1 else f"{change.slot.path}_{len(names)}")
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    kept = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in leaves]
    if same:
        kept = [o if i not in change.which else k for i, (o, k) in enumerate(zip(old, kept, strict=True))]
    return SlotState(change.slot, spec, kept, list(change.which), names, resets, live)

"""Which tensors are recurrent: declared arguments, and what the model is seen to keep in itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from vqc.errors import CaptureError
from vqc.frontend import compat
from vqc.frontend.decisions import Plan
from vqc.frontend.session import Change, Recording, Session, SlotState
from vqc.frontend.snapshot import MISSING
from vqc.frontend.target import Target, identifier

_ROUNDS = 5


@dataclass(frozen=True)
class StateSpec:
    """A recurrent argument: its name (or a leaf's, "rec_0"), the output leaf that is its next value, and, when they
    are not the example's, its value at the first frame and a range that holds by mathematics. The name of a tuple, list
    or dictionary stands for all tensors in it, and `output` for the first leaf of their next values."""

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
    user_leaves, user_spec = pytree.tree_flatten((args, kwargs))
    user_names = target.leaf_names(args, kwargs)
    given_specs = _specs(states)
    full = kwargs | target.containers([s.input for s in given_specs.values()], args, kwargs)
    specs = _spread(given_specs, target, args, full)
    known, added = target.leaf_names(args, full), []
    for s in specs.values():
        if s.input not in known:
            if not target.accepts(s.input) or any(n.startswith(f"{s.input}_") for n in known):
                raise CaptureError(f"there is no argument {s.input!r} to be a state",
                                   way_out="use one of " + ", ".join(known))  # fmt: skip
            full[s.input] = None
            added.append(s.input)
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
                results = _first_results(session, start_leaves, [s.input for s in specs.values() if s.input in added])
            if not 0 <= s.output < len(results):
                raise CaptureError(f"state {name} is said to be output {s.output}",
                                   why=f"the network returns {len(results)} values")  # fmt: skip
            after = results[s.output][1]
            if not isinstance(after, torch.Tensor):
                raise CaptureError(f"output {s.output}, the next value of state {name}, is no tensor but of type "
                                   f"{type(after).__name__}", way_out="give and return it as a tensor of one element, "
                                   "such as torch.zeros((), dtype=torch.long), and index with that")  # fmt: skip
            reset = torch.zeros_like(after)
            _check_alone(session, specs, s, leaf, reset, results)
        plan.declared.append(DeclaredState(identifier(name), s, leaf, reset.detach().clone(), none_first))
        session.leaves[leaf] = plan.declared[-1].reset
    session.state_leaves = [d.leaf for d in plan.declared]
    return session, plan


def _spread(specs: dict[str, StateSpec], target: Target, args: tuple, kwargs: dict) -> dict[str, StateSpec]:
    """Every spec of a tuple, list, dictionary or `*arguments` as one for each tensor in it.

    The next value of a tensor is what stands at its place in the container whose first leaf is the spec's output, in
    whatever order the network fills a dictionary; for `*arguments`, and where the results have no such container, one
    result after another.
    """
    names = target.leaf_names(args, kwargs)
    if all(s.input in names for s in specs.values()):
        return specs
    inputs = pytree.tree_flatten_with_path((args, kwargs))[0]
    results: list[Any] | None = None
    spread = {}
    for name, s in specs.items():
        mine = [] if s.input in names else target.leaves_of(s.input, args, kwargs)
        if not mine:
            spread[name] = s
            continue
        if s.reset is not None or not all(isinstance(inputs[i][1], (torch.Tensor, type(None))) for i in mine):
            raise CaptureError(f"state {name} is not made of tensors alone, or has one reset value for all of them",
                               way_out="declare each of " + ", ".join(names[i] for i in mine))  # fmt: skip
        if results is None:
            session = Session(target, args, kwargs)
            with session.restored():
                results = compat.flatten_with_path(session.eager(session.leaves))[0]
        for i, output in zip(mine, _places(name, s, [inputs[i][0] for i in mine], results), strict=True):
            spread[names[i]] = StateSpec(names[i], output, None, s.known_range)
    return spread


def _places(name: str, s: StateSpec, paths: list[Any], results: list[Any]) -> list[int]:
    """The outputs that are the next values of the tensors at these paths of the arguments."""
    found = [list(path) for path, _ in results]
    if len({path[:2] for path in paths}) > 1:  # several arguments: *arguments
        if 0 <= s.output <= len(found) - len(paths):
            return list(range(s.output, s.output + len(paths)))
    elif 0 <= s.output < len(found):
        wanted = [list(path[2:]) for path in paths]
        for depth in range(len(found[s.output])):
            root = found[s.output][:depth]
            under = [i for i, path in enumerate(found) if path[:depth] == root]
            if under[0] == s.output and len(under) == len(wanted):
                places = {str(found[i][depth:]): i for i in under}
                if all(str(w) in places for w in wanted):
                    return [places[str(w)] for w in wanted]
        after = found[s.output : s.output + len(wanted)]
        if len(after) == len(wanted) and all(len(path) == 1 for path in [*after, *wanted]):  # (picture, *states)
            return list(range(s.output, s.output + len(wanted)))
    raise CaptureError(f"state {name} is made of {len(paths)} tensors, and its next value, from output {s.output} on, "
                       "is not", why=f"the network returns {len(found)} values",
                       way_out="name the tensors one by one, as in {'state_0': 1, 'state_1': 2}")  # fmt: skip


def _first_results(session: Session, leaves: list[Any], none: list[str]) -> list[Any]:
    """What the network returns at the first frame, with None for the arguments `none`, which the user did not give."""
    with session.restored():
        try:
            return compat.flatten_with_path(session.eager(leaves))[0]
        except Exception as e:  # the user's own code, given what it may not take; the cause is kept
            if not none:
                raise
            raise CaptureError(
                f"the network does not take None as {', '.join(none)}", why=f"{type(e).__name__}: {e}",
                way_out="give its value at the first frame in the example: a tensor, or a tuple, list or dictionary of "
                        "tensors as forward takes it; or let forward make it where it is None",
            ) from e  # fmt: skip


def _check_alone(session: Session, specs: Mapping[str, StateSpec], s: StateSpec, leaf: int, reset: torch.Tensor,
                 results: list[Any]) -> None:  # fmt: skip
    """Raise CaptureError when an argument given as None takes more than the one tensor its spec names."""
    path = results[s.output][0]
    beside = [i for i, (p, _) in enumerate(results) if len(path) > 1 and p[:1] == path[:1] and i != s.output]
    if not beside or any(o.output in beside for o in specs.values()):
        return
    leaves = list(session.leaves)
    leaves[leaf] = reset
    with session.restored():
        try:
            session.eager(leaves)
        except Exception as e:  # the user's own code, given what it may not take; the cause is kept
            raise CaptureError(
                f"the network does not take output {s.output} alone as {s.input}", why=f"{type(e).__name__}: {e}",
                way_out=f"it seems to be part of a tuple, list or dictionary of {len(beside) + 1}: give the whole of "
                        f"it in the example, with its value at the first frame, and states={{{s.input!r}: {s.output}}}",
            ) from e  # fmt: skip


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

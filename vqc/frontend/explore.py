"""Settling what Python asked the data: run the other branch too, and compare what was computed."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from vqc.errors import CaptureError, VqcError
from vqc.frontend.canonical import Constants, content_key
from vqc.frontend.decisions import (
    INDEX_WAY_OUT,
    OTHER_NUMBERS,
    WAYS_OUT,
    Decision,
    Plan,
    Site,
    TooLong,
    tests_exact_equality,
)
from vqc.frontend.session import Recording, Session


@dataclass
class Settled:
    """Decisions that became run-time checks (`assumed`), and notes on all."""

    assumed: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)

    def text(self, decision: Decision) -> str:
        return f"{decision.operator} is {decision.value} ({self.reasons[id(decision)]})"

    def assume(self, decisions: list[Decision], why: str) -> None:
        self.assumed += decisions
        self.reasons.update({id(d): why for d in decisions})
        self.notes.append(f"assumed, and checked at every step: {decisions[0].place} is {decisions[0].value}; {why}")


def settle(session: Session, recording: Recording, plan: Plan) -> Settled:
    """Settle every place where Python read a value of the data in a recording.

    Reads at one line of code are flipped together, so there is one more run for each such line (three when it reads a
    number). A read that changes
    nothing (a logger) is dropped. One that tests floats for exact equality, and one whose other branch only raises,
    become assumptions. Raises CaptureError for all others.
    """
    settled = Settled()
    if not plan.made:
        return settled
    keys: dict[Any, int] = {}
    mine = summary(recording, keys)
    limit = 4 * recording.recorder.count + 2000
    sites: dict[Site, list[Decision]] = {}
    for d in plan.made:
        sites.setdefault(d.site, []).append(d)
    free: list[Site] = []
    for site, decisions in sites.items():
        variants = range(1 if all(d.is_bool for d in decisions) else len(OTHER_NUMBERS))
        plans = (Plan(frozenset([site]), v, limit) for v in variants)
        outcome = next((o for p in plans if (o := _other(session, p, keys, mine))), "")
        if outcome == "":
            free.append(site)
        else:
            _judge(settled, decisions, outcome)
    if len(free) > 1 and _other(session, Plan(frozenset(free), 0, limit), keys, mine) != "":
        for site in free:
            _judge_joint(settled, sites[site])
    else:
        settled.notes += [f"a look at the data without effect on the result: {sites[s][0].place}" for s in free]
    return settled


def _other(session: Session, plan: Plan, keys: dict[Any, int], mine: Any) -> str:
    """ "" when the other branch computes the same, "raises NAME: text", or "differs"."""
    try:
        with _silent():
            other = session.record(plan)
    except (TooLong, VqcError):
        return "differs"
    except Exception as e:  # whatever the user's code raises in a branch that was forced is an answer, not a failure
        return f"raises {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
    return "" if summary(other, keys) == mine else "differs"


_FLAG_WAY_OUT = (
    "run the network once and capture it after its first frame, or keep None where a state is not yet there and ask "
    "for that (`if self.h is None`)"
)
_COUNTER_WAY_OUT = (
    "keep it in a buffer, as a tensor that forward computes and indexes with: register_buffer('pos', torch.zeros((), "
    "dtype=torch.long)), ring[:, self.pos % 4] = x; or use torch.compile(model, backend='vqc'), which compiles anew "
    "for other numbers"
)


def check_second_call(session: Session, recording: Recording) -> list[str]:
    """Raise CaptureError when numbers that Python keeps make the second call compute something else than the first.

    A verification of a few steps may not see it: a position in a ring buffer shows when the ring is full.
    Returns notes.
    """
    if not session.python_changes:
        return []
    keys: dict[Any, int] = {}
    mine = summary(recording, keys)
    try:
        with _silent():
            second = session.record(second=True)
            numbers = session.moved_numbers
    except Exception as e:  # a second call on the same data may be refused by the user's code: verification goes on
        return [f"the second call was not compared with the first: it raises {type(e).__name__}"]
    if numbers and summary(second, keys) != mine:
        path, first, then = numbers[0]
        raise CaptureError(
            "the network computes something else at its second call",
            where=f"{path}, which is {first!r} at the first call and {then!r} at the second",
            why="what Python keeps is fixed at capture",
            way_out=_FLAG_WAY_OUT if isinstance(first, bool) else _COUNTER_WAY_OUT,
        )
    return []


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """A branch that is only tried must not tell the user that it ran."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _judge(settled: Settled, decisions: list[Decision], outcome: str) -> None:
    first = decisions[0]
    if all(d.is_bool for d in decisions):
        if outcome.startswith("raises"):
            settled.assume(decisions, f"otherwise the network {outcome}")
            return
        if all(tests_exact_equality(d.node) for d in decisions):
            settled.assume(decisions, "a test of floats for exact equality; the other case is another network")
            return
    raise CaptureError(
        f"{first.operator} reads a value that depends on the input, and it decides what is computed",
        where=str(first.place or ""),
        why=f"it was {first.value!r}; with another value the network computes something else",
        way_out=(INDEX_WAY_OUT if type(first.value) is int else "") + WAYS_OUT,
    )


def _judge_joint(settled: Settled, decisions: list[Decision]) -> None:
    if not all(d.is_bool for d in decisions):
        _judge(settled, decisions, "differs")
    settled.assume(decisions, "together with other tests it decides what is computed")


def summary(recording: Recording, keys: dict[Any, int]) -> Any:
    """A value that is equal for recordings which compute the same results and next states from the same inputs."""
    constants = recording.recorder.em.constants
    weights = set(recording.recorder.names.values())
    number: dict[fx.Node, int] = {}
    fixed = Constants(recording.recorder.em.graph, constants, set(recording.recorder.random))

    def key_of(node: fx.Node) -> Any:
        if node.op == "placeholder":
            return ("input", node.name)
        if node.op == "get_attr":
            name = str(node.target)
            if name in weights or not isinstance(constants[name], torch.Tensor):
                return ("weight", name)
        if node in fixed.nodes and isinstance(node.meta["val"], torch.Tensor):
            return ("constant", content_key(fixed.value(node)))  # made now or taken from a cache: the same
        return (node.target, _text(node.args, number), _text(node.kwargs, number))

    live: list[fx.Node] = [n for n in [*recording.results, *recording.nexts] if isinstance(n, fx.Node)]
    seen = set(live)
    for n in live:  # grows while it is walked
        for a in () if n in fixed.nodes else n.all_input_nodes:
            if a not in seen:
                seen.add(a)
                live.append(a)
    for n in recording.recorder.em.graph.nodes:
        if n in seen:
            number[n] = keys.setdefault(key_of(n), len(keys))
    return (
        [number[x] if isinstance(x, fx.Node) else ("value", repr(x)) for x in recording.results],
        [number[n] for n in recording.nexts],
        str(recording.out_spec),
    )


def _text(value: Any, number: dict[fx.Node, int]) -> str:
    """Arguments as text, nodes by their numbers."""
    if isinstance(value, fx.Node):
        return f"%{number[value]}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_text(v, number) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_text(v, number)}" for k, v in value.items()) + "}"
    return repr(value)

"""From a recording to a Program: outputs, states, assumptions, signature."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from vqc.errors import CaptureError
from vqc.frontend.canonical import canonicalize
from vqc.frontend.explore import Settled
from vqc.frontend.ranges import convex_update_range
from vqc.frontend.session import Recording, Session
from vqc.frontend.states import StatePlan
from vqc.frontend.target import identifier
from vqc.program import Assumption, Input, Leaf, Program, Signature, State


def build(session: Session, recording: Recording, settled: Settled, plan: StatePlan, name: str
          ) -> tuple[Program, list[str]]:  # fmt: skip
    """The Program of a recording, and notes on what was left out."""
    notes = list(settled.notes)
    states = _states(session, plan, recording)
    outputs, out_leaves = _outputs(session, plan, recording, states)
    states, unread = _read_states(recording, states, outputs, settled)
    if unread:  # the numbers of the states that stay have changed
        outputs, out_leaves = _outputs(session, plan, recording, states)
        notes.append("kept but never read, so no state: " + ", ".join(sorted(unread)))
    if recording.mutated_inputs:
        notes.append("the network writes into its arguments " + ", ".join(recording.mutated_inputs) + ": not captured")
    rec = recording.recorder
    graph = rec.em.graph
    nodes = [*(n for _, n in outputs), *(s[1] for s in states), *(d.node for d in settled.assumed)]
    graph.output(tuple(nodes))
    for n in list(graph.nodes):
        if n.op == "placeholder" and n.name in unread:
            _erase_dead(graph, n)
    check_live(rec)
    final, constants = canonicalize(graph, dict(rec.em.constants), set(rec.random))
    constants = {k: _own(v) for k, v in constants.items()}
    input_nodes = [session.names[i] for i in session.input_leaves()]
    inputs = [Input(n, tuple(x.shape), x.dtype) for n, x in zip(input_nodes, _tensors(session), strict=True)]
    first = len(outputs)
    program = Program(
        name, final, constants, inputs, [n for n, _ in outputs],
        [_numbered(s[0], first + i) for i, s in enumerate(states)],
        [Assumption(first + len(states) + i, d.value, str(d.place or ""), settled.text(d))
         for i, d in enumerate(settled.assumed)],
        _signature(session, plan, recording, out_leaves),
        example=[x.detach().clone() for x in _tensors(session)],
    )  # fmt: skip
    program.states = tuple(convex_update_range(program, s) for s in program.states)
    return program, [*notes, *plan.notes]


def _tensors(session: Session) -> list[torch.Tensor]:
    return [session.leaves[i] for i in session.input_leaves()]


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _numbered(state: State, output: int) -> State:
    from dataclasses import replace

    return replace(state, output=output)


def _states(session: Session, plan: StatePlan, recording: Recording) -> list[tuple[State, fx.Node]]:
    """Every state with the node of its next value; output numbers are set later."""
    found = []
    for d in plan.declared:
        nxt = recording.results[d.spec.output] if d.spec.output < len(recording.results) else None
        if not isinstance(nxt, fx.Node):
            raise CaptureError(f"output {d.spec.output}, the next value of state {d.name}, is no tensor",
                               why=f"the network returns {len(recording.results)} values")  # fmt: skip
        val = nxt.meta["val"]
        if val.shape != d.reset.shape or val.dtype != d.reset.dtype:
            raise CaptureError(
                f"state {d.name} does not keep its shape: {tuple(d.reset.shape)} {d.reset.dtype} becomes "
                f"{tuple(val.shape)} {val.dtype}",
                way_out="check the number of the output, or capture a step in which the state keeps its size",
            )
        placeholder = session.names[d.leaf]
        found.append((State(d.name, placeholder, -1, d.reset, d.spec.known_range, "argument"), nxt))
    nexts = iter(recording.nexts)
    for s in session.slot_states:
        for n, reset in zip(s.names, s.resets, strict=True):
            found.append((State(n, n, -1, reset, None, s.slot.origin), next(nexts)))
    return found


def _outputs(session: Session, plan: StatePlan, recording: Recording, states: list[tuple[State, fx.Node]]
             ) -> tuple[list[tuple[str, fx.Node]], list[Leaf]]:  # fmt: skip
    """The program's results, each node once, and what stands at every leaf of the user's result."""
    declared = {d.spec.output: i for i, d in enumerate(plan.declared)}
    inputs = {session.names[i]: k for k, i in enumerate(session.input_leaves())}
    numbers: dict[fx.Node, int] = {}
    outputs: list[tuple[str, fx.Node]] = []
    leaves: list[Leaf] = []
    single = len(recording.results) == 1
    for i, x in enumerate(recording.results):
        if not isinstance(x, fx.Node):
            leaves.append(Leaf("constant", value=x))
        elif i in declared:
            leaves.append(Leaf("state", declared[i]))
        elif x.op == "placeholder" and x.name in inputs:
            leaves.append(Leaf("input", inputs[x.name]))
        else:
            if x not in numbers:
                numbers[x] = len(outputs)
                path = recording.out_paths[i]
                text = "out" if single or not path else (path if not path[0].isdigit() else f"out_{path}")
                outputs.append((_free(identifier(text), [n for n, _ in outputs]), x))
            leaves.append(Leaf("output", numbers[x]))
    return outputs, leaves


def _free(name: str, taken: list[str]) -> str:
    unique, i = name, 1
    while unique in taken:
        unique, i = f"{name}_{i}", i + 1
    return unique


def _read_states(recording: Recording, states: list[tuple[State, fx.Node]], outputs: list[tuple[str, fx.Node]],
                 settled: Settled) -> tuple[list[tuple[State, fx.Node]], set[str]]:  # fmt: skip
    """Drop states found in the model that no result depends on (a counter for a logger, a kept feature map)."""
    alive: set[fx.Node] = set()
    stack = [n for _, n in outputs] + [d.node for d in settled.assumed]
    stack += [n for s, n in states if s.origin == "argument"]
    by_name = {s.input: n for s, n in states}
    while stack:
        n = stack.pop()
        if n in alive:
            continue
        alive.add(n)
        stack += n.all_input_nodes
        if n.op == "placeholder" and n.name in by_name:
            stack.append(by_name[n.name])
    live_inputs = {n.name for n in alive if n.op == "placeholder"}
    kept = [(s, n) for s, n in states if s.origin == "argument" or s.input in live_inputs]
    return kept, {s.input for s, _ in states} - {s.input for s, _ in kept}


def _erase_dead(graph: fx.Graph, placeholder: fx.Node) -> None:
    """Erase a placeholder nothing live reads, and the dead calls that read it."""
    from vqc.frontend.canonical import drop_dead

    drop_dead(graph)
    graph.erase_node(placeholder)


def check_live(rec: Any) -> None:
    """Raise CaptureError when a result depends on random numbers or on a shape taken from the data."""
    live: set[fx.Node] = set()
    stack = [next(n for n in reversed(rec.em.graph.nodes) if n.op == "output")]
    while stack:
        n = stack.pop()
        if n not in live:
            live.add(n)
            stack += n.all_input_nodes
    for n, where in rec.random.items():
        if n in live:
            raise CaptureError(
                "the result depends on random numbers", where=where, why="it is not a function of the inputs",
                way_out="draw the numbers outside and pass them as an argument, or register a fixed buffer",
            )  # fmt: skip
    for where in rec.dynamic.values():
        raise CaptureError(
            "nonzero (torch.where with one argument) cannot be captured", where=where,
            why="its result's shape depends on the values in the data",
            way_out="use torch.where with three arguments, a mask, or topk with a fixed k",
        )  # fmt: skip


def _signature(session: Session, plan: StatePlan, recording: Recording, out_leaves: list[Leaf]) -> Signature:
    inputs = {session.names[i]: k for k, i in enumerate(session.input_leaves())}
    states = {session.names[d.leaf]: k for k, d in enumerate(plan.declared)}
    leaves = []
    for name, x in zip(plan.user_names, plan.user_leaves, strict=True):
        if name in states:
            leaves.append(Leaf("state", states[name]))
        elif name in inputs:
            leaves.append(Leaf("input", inputs[name]))
        else:
            leaves.append(Leaf("constant", value=x))
    return Signature(plan.user_spec, tuple(leaves), recording.out_spec, tuple(out_leaves))

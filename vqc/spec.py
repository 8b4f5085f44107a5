"""What a valid Program is, as a table of rules; run after every pass.

A rule takes a Program and yields one line for each thing that is wrong. Adding a rule is adding a function.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

import torch
from torch import fx

from vqc.errors import SpecError
from vqc.program import Program, dtype_of, shape_of

Rule = Callable[[Program], Iterator[str]]
RULES: list[Rule] = []


def rule(f: Rule) -> Rule:
    RULES.append(f)
    return f


@rule
def graph_is_well_formed(p: Program) -> Iterator[str]:
    try:
        p.graph.lint()
    except (RuntimeError, ValueError) as e:  # what fx raises for a node used before it is made, or a name used twice
        yield str(e)


@rule
def placeholders_are_inputs_then_states(p: Program) -> Iterator[str]:
    have = [n.name for n in p.graph.nodes if n.op == "placeholder"]
    want = [i.name for i in p.inputs] + [s.input for s in p.states]
    if have != want:
        yield f"placeholders {have} are not the inputs and states {want}"


@rule
def states_survive(p: Program) -> Iterator[str]:
    results = p.result_nodes
    for s in p.states:
        if s.output >= len(results):
            yield f"state {s.name} has lost its next value"
            continue
        node = results[s.output]
        if not isinstance(node, fx.Node):
            yield f"the next value of state {s.name} is {node!r}"
        elif (shape_of(node), dtype_of(node)) != (s.shape, s.dtype):
            became = f"{node.name} is {dtype_of(node)} {shape_of(node)}"
            yield f"state {s.name} is {s.dtype} {s.shape}, its next value {became}"


@rule
def results_are_all_there(p: Program) -> Iterator[str]:
    want = len(p.outputs) + len(p.states) + len(p.assumptions)
    if len(p.result_nodes) < want:
        yield f"{len(p.result_nodes)} graph outputs for {want} results, states and assumptions"


@rule
def only_functions(p: Program) -> Iterator[str]:
    for n in p.graph.nodes:
        if n.op in ("call_method", "call_module"):
            yield f"{n.name} is a {n.op}"
        if n.op == "call_function" and not (
            isinstance(n.target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator))
            or n.target is operator.getitem
        ):
            yield f"{n.name} calls {n.target}, which is no operator"


@rule
def functional(p: Program) -> Iterator[str]:
    for n in p.calls:
        if isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable:
            yield f"{n.name} writes in place ({n.target})"


@rule
def values_are_known(p: Program) -> Iterator[str]:
    for n in p.graph.nodes:
        if n.op != "output" and "val" not in n.meta:
            is_tensor = n.op != "get_attr" or isinstance(p.constants.get(str(n.target)), torch.Tensor)
            if is_tensor:
                yield f"{n.name} has no shape and dtype"


@rule
def constants_are_there(p: Program) -> Iterator[str]:
    for n in p.graph.nodes:
        if n.op == "get_attr" and str(n.target) not in p.constants:
            yield f"constant {n.target} is missing"


def violations(program: Program) -> list[str]:
    """Every rule a Program breaks, as `rule: what is wrong`."""
    return [f"{r.__name__}: {text}" for r in RULES for text in r(program)]


def check(program: Program, after: str) -> None:
    """Raise SpecError naming the pass `after` which the program is broken."""
    wrong = violations(program)
    if wrong:
        raise SpecError(f"program {program.name} is not valid after {after}", why="; ".join(wrong[:5]),
                        way_out="this is a defect of the pass: report it with the program's text")  # fmt: skip

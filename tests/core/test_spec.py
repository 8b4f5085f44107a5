"""The rules of a valid Program: each broken once, and the message that says so."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from handmade import Hand, aten

from vqc import spec
from vqc.errors import SpecError
from vqc.program import Program, State


def good() -> Program:
    h = Hand("good")
    x = h.input("x", 1, 2)
    s = h.state("s", torch.zeros(1, 2))
    c = h.const("c", torch.ones(2))
    y = h(aten.add.Tensor, h(aten.mul.Tensor, x, c), s)
    return h.done(h(aten.relu, y), states=[h(aten.tanh, y)])


def used_before_made(p: Program) -> None:
    p.node("x").append(p.node("relu"))


def swapped_placeholders(p: Program) -> None:
    p.node("s").append(p.node("x"))


def a_state_more(p: Program) -> None:
    p.states = (*p.states, State("t", "t", 2, torch.zeros(1)))


def next_value_lost(p: Program) -> None:
    p.output_node.args = ((p.result_nodes[0],),)


def next_value_constant(p: Program) -> None:
    p.output_node.args = ((p.result_nodes[0], 0.0),)  # type: ignore[assignment]


def next_value_of_another_shape(p: Program) -> None:
    with p.graph.inserting_before(p.output_node):
        flat = p.call(aten.reshape.default, (p.node("tanh"), [2]))
    p.output_node.args = ((p.result_nodes[0], flat),)


def next_value_of_another_type(p: Program) -> None:
    with p.graph.inserting_before(p.output_node):
        wide = p.call(aten.to.dtype, (p.node("tanh"), torch.float64))
    p.output_node.args = ((p.result_nodes[0], wide),)


def a_result_missing(p: Program) -> None:
    p.outputs = ("y", "z")


def a_method(p: Program) -> None:
    with p.graph.inserting_before(p.output_node):
        n = p.graph.call_method("sigmoid", (p.node("relu"),))
    n.meta["val"] = p.node("relu").meta["val"]


def a_python_function(p: Program) -> None:
    p.node("relu").target = torch.relu


def in_place(p: Program) -> None:
    p.node("relu").target = aten.relu_.default


def unknown_shape(p: Program) -> None:
    del p.node("relu").meta["val"]


def constant_gone(p: Program) -> None:
    del p.constants["c"]


BROKEN: dict[Callable[[Program], None], str] = {
    used_before_made: "graph_is_well_formed",
    swapped_placeholders: "placeholders_are_inputs_then_states: placeholders ['s', 'x'] are not the inputs and states",
    a_state_more: "states_survive: state t has lost its next value",
    next_value_lost: "states_survive: state s has lost its next value",
    next_value_constant: "states_survive: the next value of state s is 0.0",
    next_value_of_another_shape: "states_survive: state s is torch.float32 (1, 2), its next value",
    next_value_of_another_type: "states_survive: state s is torch.float32 (1, 2), its next value",
    a_result_missing: "results_are_all_there: 2 graph outputs for 3 results, states and assumptions",
    a_method: "only_functions: sigmoid is a call_method",
    a_python_function: "only_functions: relu calls <built-in method relu",
    in_place: "functional: relu writes in place (aten.relu_.default)",
    unknown_shape: "values_are_known: relu has no shape and dtype",
    constant_gone: "constants_are_there: constant c is missing",
}


def test_a_good_program_breaks_no_rule():
    assert spec.violations(good()) == []


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_every_rule_is_broken_by_something(damage: Callable[[Program], None]):
    program = good()
    damage(program)
    found = spec.violations(program)
    assert any(text.startswith(BROKEN[damage]) for text in found), found


def test_every_rule_has_a_program_that_breaks_it():
    tested = {text.split(":")[0] for text in BROKEN.values()}
    assert {r.__name__ for r in spec.RULES} == tested


def test_the_error_names_the_pass_and_what_is_wrong():
    program = good()
    constant_gone(program)
    with pytest.raises(SpecError, match="program good is not valid after fold-bn") as e:
        spec.check(program, "fold-bn")
    assert "constants_are_there: constant c is missing" in e.value.why


def test_getitem_and_tuples_are_fine():
    h = Hand()
    x = h.input("x", 4)
    h.done(h(operator.getitem, h(aten.split.Tensor, x, 2), 1))

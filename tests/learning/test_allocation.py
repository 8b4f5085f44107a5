"""Bits by an integer programme: against every choice there is, against the Lagrangian bound; swaps keep the budget."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.errors import PipelineError
from vqc.learning.allocation import least, lower_bound, solve, swaps, total


@st.composite
def problems(draw):
    """Errors of very different size, some missing; whole costs; a budget that can be met."""
    layers, options = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    exponents = draw(st.lists(st.floats(-9, 1), min_size=layers * options, max_size=layers * options))
    errors = 10.0 ** np.array(exponents).reshape(layers, options)
    for layer in range(layers):
        for option in range(1, options):
            if draw(st.integers(0, 5)) == 0:
                errors[layer, option] = np.inf
    costs = draw(st.lists(st.integers(0, 1000), min_size=layers * options, max_size=layers * options))
    table = np.array(costs, dtype=float).reshape(layers, options)
    return errors, table, float(least(errors, table) + draw(st.integers(0, 2000)))


def every_choice(errors, costs, budget):
    """The least sum of errors within the budget, of all choices."""
    choices = itertools.product(range(errors.shape[1]), repeat=len(errors))
    return min(total(errors, c) for c in choices if total(costs, c) <= budget)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_answer_is_the_best_of_all_choices(problem):
    errors, costs, budget = problem
    chosen = solve(errors, costs, budget)
    assert total(costs, chosen) <= budget
    best, bound = every_choice(errors, costs, budget), lower_bound(errors, costs, budget)
    assert best * (1 - 1e-9) <= total(errors, chosen) <= best * (1 + 2e-6)
    assert bound <= best * (1 + 1e-9) + 1e-14 * errors[np.isfinite(errors)].max()


def test_the_bound_is_near_where_one_layer_is_little_of_the_whole():
    """The gap between an integer choice and its relaxation is at most what one layer brings."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 50, 60)
    errors = np.stack([sizes * 0.01, sizes * 0.3, sizes * 1.0], 1) * generator.random((60, 1))
    costs = np.stack([sizes * 8.0, sizes * 6.0, sizes * 4.0], 1)
    budget = float(costs[:, 1].sum())
    found, bound = total(errors, solve(errors, costs, budget)), lower_bound(errors, costs, budget)
    assert bound * (1 - 1e-9) <= found <= bound + errors.max() and found < 1.05 * bound
    assert lower_bound(errors, costs, 1e9) == pytest.approx(errors[:, 0].sum())  # no budget to speak of


@settings(max_examples=60, deadline=None)
@given(problems())
def test_swaps_keep_the_budget_and_give_one_layer_more(problem):
    errors, costs, budget = problem
    start = solve(errors, costs, budget)
    seen = []
    for trial in swaps(errors, costs, budget, start):
        assert total(costs, trial) <= budget and np.isfinite(total(errors, trial))
        raised = [i for i, (a, b) in enumerate(zip(start, trial, strict=True)) if costs[i, b] > costs[i, a]]
        assert len(raised) == 1 and errors[raised[0], trial[raised[0]]] < errors[raised[0], start[raised[0]]]
        seen += raised
    assert len(seen) == len(set(seen))


def test_swaps_begin_with_what_promises_most_and_take_from_who_loses_least():
    errors = np.array([[1.0, 5.0], [1.0, 9.0], [1.0, 1.5], [1.0, 2.0]])
    costs = np.array([[8.0, 4.0]] * 4)
    assert list(swaps(errors, costs, 24.0, [1, 1, 0, 0])) == [[1, 0, 1, 0], [0, 1, 1, 0]]
    assert list(swaps(errors, costs, 28.0, [1, 1, 0, 0])) == [[1, 0, 0, 0], [0, 1, 0, 0]]  # there is room
    assert list(swaps(errors, costs, 16.0, [1, 1, 1, 1])) == []


def test_what_cannot_be_solved_says_why(monkeypatch):
    errors, costs = np.array([[1.0, 2.0], [1.0, 3.0]]), np.array([[8.0, 4.0], [8.0, 4.0]])
    with pytest.raises(PipelineError, match="least that can be reached is 8"):
        solve(errors, costs, 7.9)
    with pytest.raises(PipelineError, match="layer number 1 has no option"):
        solve(np.array([[1.0, 2.0], [np.inf, np.inf]]), costs, 16.0)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(PipelineError, match=r"vqc\[allocate\]"):
        solve(errors, costs, 16.0)

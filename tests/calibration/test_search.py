"""Range rules by search: backtracking against the exhaustive optimum, 2DQuant's search, data with nothing to search."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.calibration import Statistics, find_range
from vqc.calibration.search import Box, backtrack, btbi, dobi, errors, exhaustive, quantiles
from vqc.errors import CalibrationError

KINDS = ("normal", "laplace", "relu", "negative", "away", "tail")
samples = st.tuples(st.integers(0, 2**31 - 1), st.sampled_from(KINDS), st.floats(1e-3, 1e3))


def seen(x: torch.Tensor) -> Statistics:
    s = Statistics()
    s.update(x)
    return s


def drawn(seed: int, kind: str, scale: float) -> Statistics:
    x = torch.randn(1, 2, 20, 25, generator=torch.Generator().manual_seed(seed))
    made = {"normal": x, "laplace": x.sign() * x.square(), "relu": x.relu(), "negative": -x.abs(), "away": x.abs() + 2,
            "tail": torch.cat([x, 30 * x[..., :1]], -1)}[kind]  # fmt: skip
    return seen(made * scale)


def error_of(s: Statistics, bounds: tuple[float, float], bits: int) -> float:
    return float(errors(s, np.array(bounds[0]), np.array(bounds[1]), bits))


def test_error_is_that_of_the_quantizer():
    """The histogram's error against quantize_per_tensor on the values themselves."""
    x = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    scale = 3.5 / 15
    zero = round(1.5 / scale)
    y = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 15)
    assert error_of(seen(x), (-1.5, 2.0), 4) == pytest.approx(float((x - y).square().mean()), rel=2e-3)


def test_quantiles_by_hand():
    s = seen(torch.arange(1000, dtype=torch.float32).view(1, 1, 10, 100))
    assert quantiles(s, (0.001, 0.1, 0.9, 0.999)) == pytest.approx([0.5, 99.5, 899.5, 998.5], abs=1)


@settings(max_examples=40, deadline=None)
@given(samples, st.sampled_from([2, 3, 4, 8]))
def test_backtracking_is_no_worse_than_its_start_and_judged_by_the_optimum(spec, bits):
    s = drawn(*spec)
    box = Box.of(s)
    table = box.table(s, bits)
    found, best = error_of(s, btbi(s, bits), bits), error_of(s, exhaustive(s, bits), bits)
    assert best == table.min() and best <= found <= table[box.start]
    assert error_of(s, btbi(s, bits, slack=math.inf), bits) == best
    assert found <= 1.25 * best  # measured: 1.00 in nearly all draws
    assert error_of(s, dobi(s, bits), bits) <= error_of(s, s.range, bits)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31 - 1), st.floats(0, 2))
def test_backtracking_on_any_table(rows, columns, seed, slack):
    """With endless slack it finds the least of all; with some, no node it went through is worse than it allows."""
    table = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)).double().numpy()
    start, asked = (seed % rows, seed % columns), []

    def error(i: int, j: int) -> float:
        asked.append((i, j))
        return float(table[i, j])

    assert table[backtrack(table.shape, start, error, math.inf)] == table.min()
    asked.clear()
    found = table[backtrack(table.shape, start, error, slack)]
    assert found <= table[start] and found == min(table[a] for a in asked)
    assert len(set(asked)) >= len(asked) - 1  # no node twice, but for the start, whose error sets the slack


def test_slack_carries_it_over_a_ridge_and_none_does_not():
    table = np.array([[4.0, 5.0, 0.0]])
    error = lambda i, j: float(table[i, j])  # noqa: E731
    assert backtrack(table.shape, (0, 0), error, 0.0) == (0, 0)
    assert backtrack(table.shape, (0, 0), error, 0.26) == (0, 2)


def test_sides():
    """One-sided data keep their bound, whichever side; data away from zero are widened to hold it."""
    x = torch.rand(1, 1, 50, 50, generator=torch.Generator().manual_seed(1))
    for rule in (btbi, exhaustive, dobi):
        assert rule(seen(x + 0.25), 4)[0] == float((x + 0.25).min())
        assert rule(seen(-x), 4)[1] == float((-x).max())
    for method in ("btbi", "exhaustive", "dobi"):
        low, high = find_range(seen(x + 2), method, 4)
        assert low == 0.0 and 2.8 < high < 3.1
    left, right = find_range(seen(torch.cat([x, 40 * x[..., :1].neg()], -1)), "btbi", 4)
    assert left > -40 and right > 0.8  # a tail on one side is given up there only


@pytest.mark.parametrize("method", ["btbi", "exhaustive", "dobi"])
def test_nothing_to_search(method):
    zero, high = find_range(seen(torch.full((1, 1, 4, 4), 5.0)), method, 4)
    assert zero == 0.0 and high == pytest.approx(5.0)
    assert find_range(seen(torch.zeros(1, 1, 4, 4)), method, 4) == (0.0, 0.0)
    assert find_range(Statistics(), method, 4) == (0.0, 0.0)
    two = torch.zeros(1, 1, 20, 20)
    two[..., :2] = 3.0
    s = seen(two)
    assert error_of(s, find_range(s, method, 2), 2) < 1e-6
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        seen(torch.full((1, 1, 2, 2), math.nan))

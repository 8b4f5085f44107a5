"""Statistics: exact merging in any order, histograms that hold what was seen, and the range rules on known data."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.calibration import Statistics, find_range
from vqc.calibration.statistics import BINS
from vqc.errors import PipelineError

frames = st.lists(
    st.tuples(st.integers(0, 2**31 - 1), st.floats(1e-4, 1e4), st.floats(-1e3, 1e3)), min_size=1, max_size=6
)


def tensor(seed: int, scale: float, shift: float) -> torch.Tensor:
    return torch.randn(1, 3, 5, 7, generator=torch.Generator().manual_seed(seed)) * scale + shift


def seen(tensors) -> Statistics:
    s = Statistics()
    for t in tensors:
        s.update(t)
    return s


def same(a: Statistics, b: Statistics) -> bool:
    return (
        np.array_equal(a.low, b.low) and np.array_equal(a.high, b.high) and a.sum_low == b.sum_low
        and (a.frames, a.values, a.exponent, a.first) == (b.frames, b.values, b.exponent, b.first)
        and np.array_equal(a.counts, b.counts)
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(frames, st.integers(0, 6), st.randoms())
def test_any_split_and_order_gives_the_same_ranges(specs, cut, random):
    tensors = [tensor(*s) for s in specs]
    whole = seen(tensors)
    parts = [seen(tensors[:cut]), seen(tensors[cut:])]
    random.shuffle(parts)
    merged = Statistics()
    for part in parts:
        merged.merge(part)
    assert np.array_equal(whole.low, merged.low) and whole.sum_high == merged.sum_high
    assert whole.counts.sum() == merged.counts.sum() == whole.values
    assert same(whole, merged)


def test_histogram_bins_hold_their_values():
    x = torch.linspace(-3, 5, 1000).view(1, 1, 20, 50)
    s = seen([x, x * 4])
    assert len(s.counts) <= BINS
    width = 2.0**s.exponent
    values = torch.cat([x.flatten(), x.flatten() * 4]).double().numpy()
    index = np.floor(values / width).astype(int) - s.first
    assert np.array_equal(np.bincount(index, minlength=len(s.counts)), s.counts)


def test_ranges_by_hand():
    x = torch.zeros(1, 1, 100, 100)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = -1.0, 1000.0
    x[0, 0, 1:] = torch.linspace(0, 10, 9900).view(99, 100)
    s = seen([x, torch.full((1, 1, 2, 2), 2.0)])
    assert find_range(s, "minmax", 8) == (-1.0, 1000.0)
    assert find_range(s, "moving-average", 8) == (0.0, 501.0)
    low, high = find_range(s, "percentile", 8)
    assert -1.0 <= low <= 0.0 and 9.5 < high < 11
    x[0, 0, 0, 1] = 20.0
    assert 9.0 < find_range(seen([x]), "mse", 4)[1] < 19.0  # one outlier is given up for the many


def test_mse_keeps_the_range_of_even_data():
    low, high = find_range(seen([torch.linspace(-1, 1, 4096).view(1, 1, 64, 64)]), "mse", 8)
    assert low == pytest.approx(-1, abs=0.03) and high == pytest.approx(1, abs=0.03)


def test_zero_is_always_inside():
    s = seen([torch.full((1, 2, 3, 3), 5.0)])
    for method in ("minmax", "moving-average", "percentile", "mse"):
        low, high = find_range(s, method, 8)
        assert low == 0.0 and high >= 4.9


def test_unknown_rule():
    with pytest.raises(PipelineError, match="no range rule called 'median'"):
        find_range(Statistics(), "median", 8)

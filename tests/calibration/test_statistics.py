"""Statistics: exact merging in any order, histograms that hold what was seen, and the range rules on known data."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.calibration import Observed, Statistics, find_range
from vqc.calibration.statistics import BINS, SAMPLES
from vqc.calibration.wire import from_bytes, to_bytes
from vqc.errors import CalibrationError, PipelineError

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


def plainly(tensors) -> dict:
    """The definitions of Statistics, value by value in exact arithmetic."""
    sampled = [x.reshape(-1)[:: max(1, x.numel() // SAMPLES)].tolist() for x in tensors]
    channels = [list(x.transpose(0, 1).reshape(x.shape[1], -1)) for x in tensors]
    bounds = [(Fraction(min(v)), Fraction(max(v))) for v in sampled]

    def bins(low: Fraction, high: Fraction, e: int) -> int:
        return math.floor(high / Fraction(2) ** e) - math.floor(low / Fraction(2) ** e) + 1

    def finest(low: Fraction, high: Fraction) -> int:
        span = max(high - low, abs(low) / 10**6, abs(high) / 10**6, Fraction(1, 10**30))
        e = math.floor(math.log2(span / BINS)) - 1
        while bins(low, high, e) > BINS:
            e += 1
        return e

    low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
    e = max(finest(*b) for b in bounds)
    while bins(low, high, e) > BINS:
        e += 1
    counts: dict[int, int] = {}
    for value in (v for values in sampled for v in values):
        index = math.floor(Fraction(value) / Fraction(2) ** e)
        counts[index] = counts.get(index, 0) + 1
    first = min(counts)
    return {
        "low": [min(float(frame[c].min()) for frame in channels) for c in range(len(channels[0]))],
        "high": [max(float(frame[c].max()) for frame in channels) for c in range(len(channels[0]))],
        "sum_low": sum(Fraction(float(x.min())) for x in tensors),
        "sum_high": sum(Fraction(float(x.max())) for x in tensors),
        "exponent": e, "first": first, "counts": [counts.get(i, 0) for i in range(first, max(counts) + 1)],
    }  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(frames, st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]), st.booleans())
def test_everything_is_what_its_definition_says(specs, dtype, ends_at_zero):
    tensors = [tensor(*s).clamp(-6e4, 6e4).to(dtype) for s in specs]
    if ends_at_zero:
        tensors = [x.relu() for x in tensors]
    s = seen(tensors)
    shown = {"low": s.low.tolist(), "high": s.high.tolist(), "sum_low": s.sum_low, "sum_high": s.sum_high,
             "exponent": s.exponent, "first": s.first, "counts": s.counts.tolist()}  # fmt: skip
    assert shown == plainly(tensors)


def test_a_tiny_negative_value_beside_large_ones_keeps_its_bin():
    x = torch.tensor([[[[-1e-44, 3e5, 0.0, 1e5]]]])
    s = seen([x])
    assert s.exponent > 0 and s.first == -1
    assert s.counts.tolist() == plainly([x])["counts"]


def test_samples_of_a_large_tensor():
    x = torch.randn(1, 2, 300, 301)
    s = seen([x, x * 3 - 2])
    assert s.values == 2 * x.reshape(-1)[:: x.numel() // SAMPLES].numel() < 2 * x.numel()
    assert s.counts.tolist() == plainly([x, x * 3 - 2])["counts"]
    step = x.numel() // SAMPLES
    flat = torch.stack([v.transpose(0, 1).reshape(2, -1)[:, ::step] for v in (x, x * 3 - 2)]).double()
    assert s.mean_square == pytest.approx(flat.square().mean((0, 2)).numpy(), rel=1e-9)


def test_signs_of_zero_depend_on_no_order():
    a, b = torch.full((1, 1, 2, 2), -0.0), torch.zeros(1, 1, 2, 2)
    for s in (seen([a, b]), seen([b, a])):
        assert not np.signbit(s.low).any() and not np.signbit(s.high).any()


def test_nan_and_infinity_are_refused_and_leave_no_trace():
    x = torch.ones(1, 1, 2, 2)
    s = seen([x])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(CalibrationError, match="NaN or infinity"):
            s.update(x * bad)
    assert same(s, seen([x]))


def test_bytes_give_back_every_bit_and_know_no_order():
    values = [tensor(i, 10.0 ** (3 * i - 3), 0.1) for i in range(3)]
    one, other = Observed("phase"), Observed("phase")
    for key in (1, 0):
        one.groups[key] = seen(values)
    for key in (0, 1):
        other.groups[key] = seen(values[::-1])
    data = to_bytes({"a": one, "b": Observed()})
    assert data == to_bytes({"b": Observed(), "a": other})
    back = from_bytes(data)
    assert to_bytes(back) == data and back["a"].policy == "phase" and list(back["a"].groups) == [0, 1]
    assert same(back["a"].groups[0], one.groups[0]) and list(back["a"].groups[0].power) == list(one.groups[0].power)
    assert all(type(p) is int for p in back["a"].groups[0].power)

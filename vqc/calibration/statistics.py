"""What an observer keeps of a tensor: ranges per tensor and per channel, and a histogram that merges exactly.

The histogram's bins are the multiples of a power of two, so two histograms of different ranges share their edges:
merging is exact, and the result does not depend on the order in which frames or processes are merged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch

from vqc.errors import CalibrationError

BINS = 2048
POWER_UNIT = 2.0**-40  # of the exact integer sums of mean squares
# Values of one frame that enter the histogram and the mean square at most; ranges always look at every value.
SAMPLES = 1 << 16


@dataclass
class Statistics:
    """Statistics of one observed tensor over all frames seen.

    `low`, `high`: float64 [C], smallest and largest value of each channel (axis 1; C = 1 for tensors of rank < 2).
    `sum_low`, `sum_high`: exact sums over frames of the frame's extremes (exact, so that no order of merges matters).
    `power`: Python integers [C], the sum over frames of a channel's mean square in units of 2**-40 (exact as well).
    `counts`: int64, how many values fell in bin i: [(first + i) * 2**exponent, (first + i + 1) * 2**exponent).
    """

    low: np.ndarray | None = None
    high: np.ndarray | None = None
    sum_low: Fraction = Fraction(0)
    sum_high: Fraction = Fraction(0)
    power: np.ndarray | None = None
    frames: int = 0
    values: int = 0
    exponent: int = -1074
    first: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def update(self, x: torch.Tensor) -> None:
        """Take in one frame's tensor (any shape; channel axis 1).

        Raises CalibrationError, and takes nothing in, when it holds NaN or infinity.
        """
        if x.numel() == 0:
            return
        x = x.detach()
        flat = x.reshape(1, -1) if x.ndim < 2 else x.transpose(0, 1).reshape(x.shape[1], -1)
        # Adding zero turns -0.0 into 0.0: which of two equal zeros a minimum keeps would depend on the order of merges.
        low, high = flat.amin(1).double().numpy() + 0.0, flat.amax(1).double().numpy() + 0.0
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CalibrationError("an observed tensor holds NaN or infinity", why="no range can be made of it")
        step = max(1, x.numel() // SAMPLES)
        values = x.reshape(-1)[::step].contiguous()
        squares = np.rint(flat[:, ::step].double().square().mean(1).numpy() / POWER_UNIT)
        self._merge_ranges(low, high)
        self._add_power(_integers(squares))
        self.sum_low += Fraction(float(low.min()))
        self.sum_high += Fraction(float(high.max()))
        self.frames += 1
        self.values += values.numel()
        self.add_counts(*_histogram(values))

    def merge(self, other: Statistics) -> None:
        """Take in what another observer saw; the order of merges does not matter.

        Parts of a tensor with different numbers of channels become one whole of one channel.
        """
        if other.frames == 0:
            return
        assert other.low is not None and other.high is not None
        assert other.power is not None
        low, high, power = other.low, other.high, other.power
        if self.low is not None and self.high is not None and self.power is not None and len(self.low) != len(low):
            self.low, self.high, self.power = _as_one(self.low, self.high, self.power)
            low, high, power = _as_one(low, high, power)
        self._merge_ranges(low, high)
        self._add_power(power)
        self.sum_low += other.sum_low
        self.sum_high += other.sum_high
        self.frames += other.frames
        self.values += other.values
        self.add_counts(other.exponent, other.first, other.counts)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value seen."""
        if self.low is None or self.high is None:
            return 0.0, 0.0
        return float(self.low.min()), float(self.high.max())

    @property
    def mean_square(self) -> np.ndarray:
        """float64 [C], the mean square of each channel over all frames."""
        assert self.power is not None
        return np.array([float(v) for v in self.power]) * POWER_UNIT / self.frames

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Bin centres (clipped to the range seen) and counts."""
        width = 2.0**self.exponent
        centres = (self.first + np.arange(len(self.counts)) + 0.5) * width
        return np.clip(centres, *self.range), self.counts

    def _merge_ranges(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def _add_power(self, power: np.ndarray) -> None:
        self.power = power if self.power is None else self.power + power

    def add_counts(self, exponent: int, first: int, counts: np.ndarray) -> None:
        """Take in a histogram alone: bins of width 2**exponent, the first one number `first`."""
        if len(self.counts) == 0:
            self.exponent, self.first, self.counts = exponent, first, counts.copy()
            return
        e = max(self.exponent, exponent)
        a, b = _coarsen(self.exponent, self.first, self.counts, e), _coarsen(exponent, first, counts, e)
        while True:
            lo, hi = min(a[0], b[0]), max(a[0] + len(a[1]), b[0] + len(b[1]))
            if hi - lo <= BINS:
                break
            a, b, e = _coarsen(0, a[0], a[1], 1), _coarsen(0, b[0], b[1], 1), e + 1
        merged = np.zeros(hi - lo, np.int64)
        merged[a[0] - lo : a[0] - lo + len(a[1])] += a[1]
        merged[b[0] - lo : b[0] - lo + len(b[1])] += b[1]
        self.exponent, self.first, self.counts = e, lo, merged


def _as_one(low: np.ndarray, high: np.ndarray, power: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return low.min(keepdims=True), high.max(keepdims=True), np.array([sum(power) // len(power)], object)


def _exponent_for(low: float, high: float) -> int:
    """The finest power of two whose multiples cover [low, high] in at most BINS bins."""
    span = max(high - low, abs(low) * 1e-6, abs(high) * 1e-6, 1e-30)
    e = math.floor(math.log2(span / BINS)) - 1
    while math.floor(high / 2.0**e) - math.floor(low / 2.0**e) + 1 > BINS:
        e += 1
    return e


def _integers(values: np.ndarray) -> np.ndarray:
    """Whole numbers in float64 as an array of Python integers, which have no largest value."""
    if values.max() < 2.0**62:
        return values.astype(np.int64).astype(object)
    return np.array([int(v) for v in values], dtype=object)


def _histogram(values: torch.Tensor) -> tuple[int, int, np.ndarray]:
    """(exponent, first bin, counts) of a flat tensor of finite values."""
    lowest, highest = values.aminmax()
    low, high = float(lowest), float(highest)
    e = _exponent_for(low, high)
    # float32 suffices where the factor is at least 1: multiplying by a power of two and the difference of two bins are
    # exact. A smaller factor could make a tiny negative value zero, which belongs to another bin.
    exact = values if values.dtype == torch.float32 and e <= 0 else values.double()
    first = math.floor(low * 2.0**-e)
    index = exact.mul(2.0**-e).floor_().sub_(first).to(torch.int32)
    return e, first, torch.bincount(index).numpy()


def _coarsen(exponent: int, first: int, counts: np.ndarray, to: int) -> tuple[int, np.ndarray]:
    """The histogram with bins of width 2**to, as (first bin, counts)."""
    shift = to - exponent
    if shift == 0:
        return first, counts
    index = (first + np.arange(len(counts))) >> shift
    new_first = int(index[0])
    result = np.zeros(int(index[-1]) - new_first + 1, np.int64)
    np.add.at(result, index - new_first, counts)
    return new_first, result

"""Range rules by search over both bounds: PMQ-VE's backtracking, the exhaustive optimum that judges it, 2DQuant's.

All of them minimise the mean square error of the quantizer as it will run (zero inside the range, a whole zero point)
on the histogram of what was observed. A search looks at bounds on a grid over a box of percentiles (PMQ-VE, equation
3): the lower bound between the 0.1st and the 10th percentile, the upper one between the 90th and the 99.9th.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vqc.calibration.statistics import Statistics

CELLS = 32  # steps of the grid from one end of a side of the box to the other
LOW, HIGH = (0.001, 0.1), (0.9, 0.999)  # the box
START = (0.01, 0.99)
SLACK = 1e-3  # how much worse than the best a node may be, in parts of the error at the start, to be gone on from

_NEIGHBOURS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j)
_BLOCK = 64  # candidates evaluated at once


def quantiles(s: Statistics, shares: Sequence[float]) -> np.ndarray:
    """float64, the values below which these shares of all values lie; exact to one histogram bin."""
    centres, counts = s.bins()
    below = np.cumsum(counts)
    return centres[np.minimum(np.searchsorted(below, np.asarray(shares) * below[-1]), len(centres) - 1)]


def errors(s: Statistics, low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    """float64, mean (x - Q(x))**2 on the histogram for each pair of bounds (float64, of one shape).

    Bounds are widened to hold zero, as `quantize` widens them.
    """
    centres, counts = s.bins()
    used = counts > 0
    x, weight = centres[used], counts[used] / counts.sum()
    top = 2**bits - 1
    lo, hi = np.minimum(low, 0.0).reshape(-1, 1), np.maximum(high, 0.0).reshape(-1, 1)
    scale = np.maximum((hi - lo) / top, 1e-12)
    zero = np.clip(np.rint(-lo / scale), 0, top)
    found = np.empty(len(scale))
    for a in range(0, len(scale), _BLOCK):
        k, z = scale[a : a + _BLOCK], zero[a : a + _BLOCK]
        q = (np.clip(np.rint(x / k) + z, 0, top) - z) * k
        found[a : a + _BLOCK] = (np.square(x - q) * weight).sum(1)  # a product of matrices would depend on the block
    return found.reshape(np.shape(low))


@dataclass(frozen=True)
class Box:
    """The grid over PMQ-VE's box for one tensor: candidates of both bounds, and the node where the search starts.

    Data of one side have their bound there fixed, at the smallest (or largest) value: after a ReLU or a softmax the
    percentiles of that side say nothing.
    """

    low: np.ndarray  # float64 [I]
    high: np.ndarray  # float64 [J]
    start: tuple[int, int]

    @staticmethod
    def of(s: Statistics) -> Box:
        smallest, largest = s.range
        l0, l1, h0, h1, sl, sh = quantiles(s, (*LOW, *HIGH, *START))
        low = np.array([smallest]) if smallest >= 0 else np.linspace(l0, max(l1, l0), CELLS + 1)
        high = np.array([largest]) if largest <= 0 else np.linspace(min(h0, h1), h1, CELLS + 1)
        return Box(low, high, (int(np.abs(low - sl).argmin()), int(np.abs(high - sh).argmin())))

    def table(self, s: Statistics, bits: int) -> np.ndarray:
        """float64 [I, J], the error at every node."""
        low, high = np.broadcast_arrays(self.low[:, None], self.high[None, :])
        return errors(s, low, high, bits)


def backtrack(shape: tuple[int, int], start: tuple[int, int], error: Callable[[int, int], float],
              slack: float = SLACK) -> tuple[int, int]:  # fmt: skip
    """BTBI (PMQ-VE, algorithm 1) on a grid of this shape: the best node that is reached from `start`.

    From a node it goes on to its neighbours unless its error is worse than the best so far by more than `slack` times
    the error at the start. Single-axis moves are taken beside the paper's diagonal ones, which reach only every other
    node; a stack of our own in place of recursion.
    """
    best, found = math.inf, start
    allowed = slack * error(*start) if math.isfinite(slack) else math.inf
    visited, stack = set(), [start]
    while stack:
        i, j = node = stack.pop()
        if node in visited or not (0 <= i < shape[0] and 0 <= j < shape[1]):
            continue
        visited.add(node)
        e = error(i, j)
        if e > best + allowed:
            continue
        if e < best:
            best, found = e, node
        stack.extend((i + di, j + dj) for di, dj in _NEIGHBOURS)
    return found


def btbi(s: Statistics, bits: int, slack: float = SLACK) -> tuple[float, float]:
    """The bounds that backtracking reaches in PMQ-VE's box from the 1st and 99th percentile."""
    if not len(s.counts):
        return 0.0, 0.0
    box = Box.of(s)

    @cache
    def error(i: int, j: int) -> float:
        return float(errors(s, box.low[i], box.high[j], bits))

    i, j = backtrack((len(box.low), len(box.high)), box.start, error, slack)
    return float(box.low[i]), float(box.high[j])


def exhaustive(s: Statistics, bits: int) -> tuple[float, float]:
    """The best bounds of all on the grid over PMQ-VE's box."""
    if not len(s.counts):
        return 0.0, 0.0
    box = Box.of(s)
    table = box.table(s, bits)
    i, j = np.unravel_index(int(table.argmin()), table.shape)
    return float(box.low[i]), float(box.high[j])


def dobi(s: Statistics, bits: int) -> tuple[float, float]:
    """Distribution-oriented bounds (2DQuant, NeurIPS 2024, arXiv 2406.06649, algorithm 1): both ends move in alike.

    Two-sided data: low + i (high - low) / 200 and high - i (high - low) / 200, i = 0..99. Data of one side keep that
    bound, and the other one moves by hundredths.
    """
    low, high = s.range
    if not len(s.counts) or high <= low:
        return low, high
    steps = np.arange(100) / (100 if low >= 0 or high <= 0 else 200)
    lows = low + (high - low) * steps * (low < 0)
    highs = high - (high - low) * steps * (high > 0)
    i = int(errors(s, lows, highs, bits).argmin())
    return float(lows[i]), float(highs[i])

"""Range rules: from what an observer saw to the interval that quantization covers (methods of `docs/quantization.md`).

Each rule takes Statistics and gives (low, high) with low <= 0 <= high, so that zero (padding, ReLU) is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vqc.calibration.clipping import aciq, dbdc
from vqc.calibration.search import btbi, dobi, exhaustive
from vqc.calibration.statistics import Statistics
from vqc.errors import PipelineError


def min_max(s: Statistics, bits: int) -> tuple[float, float]:
    """The smallest and largest value seen."""
    return s.range


def moving_average(s: Statistics, bits: int) -> tuple[float, float]:
    """The mean over frames of every frame's smallest and largest value (order-free form of a moving average)."""
    return (float(s.sum_low / s.frames), float(s.sum_high / s.frames)) if s.frames else (0.0, 0.0)


def percentile(s: Statistics, bits: int, p: float = 0.9999) -> tuple[float, float]:
    """The values that a share (1 - p) of all values lies below and above; exact to one histogram bin."""
    centres, counts = s.bins()
    if not len(counts):
        return 0.0, 0.0
    share = np.cumsum(counts) / counts.sum()
    low = centres[min(int(np.searchsorted(share, 1 - p, side="right")), len(centres) - 1)]
    high = centres[min(int(np.searchsorted(share, p, side="left")), len(centres) - 1)]
    return float(low), float(high)


def mse(s: Statistics, bits: int, power: float = 2.4) -> tuple[float, float]:
    """The shrunk range f * (min, max), f = 1, 0.99 .. 0.21, with the least mean |x - Q(x)|**2.4 on the histogram.

    The exponent and the candidates are BRECQ's (ICLR 2021, arXiv 2102.05426, section 4).
    """
    centres, counts = s.bins()
    low, high = min(s.range[0], 0.0), max(s.range[1], 0.0)
    if not len(counts) or high - low <= 0:
        return low, high
    best, levels = (np.inf, low, high), 2**bits - 1
    for i in range(80):
        lo, hi = low * (1 - 0.01 * i), high * (1 - 0.01 * i)
        scale = (hi - lo) / levels
        zero = np.rint(-lo / scale)
        q = (np.clip(np.rint(centres / scale) + zero, 0, levels) - zero) * scale
        error = float((np.abs(centres - q) ** power * counts).sum())
        if error < best[0]:
            best = (error, lo, hi)
    return best[1], best[2]


def omse(s: Statistics, bits: int) -> tuple[float, float]:
    """As `mse`, with squares (OMSE: Choukroun et al., ICCV workshops 2019, arXiv 1902.06822)."""
    return mse(s, bits, power=2.0)


RULES: dict[str, Callable[[Statistics, int], tuple[float, float]]] = {
    "minmax": min_max, "moving-average": moving_average, "percentile": percentile, "mse": mse, "omse": omse,
    "aciq": aciq, "dbdc": dbdc, "btbi": btbi, "exhaustive": exhaustive, "dobi": dobi,
}  # fmt: skip


def find_range(s: Statistics, method: str, bits: int) -> tuple[float, float]:
    """(low, high) with low <= 0 <= high by the rule `method`; PipelineError when there is no such rule."""
    if method not in RULES:
        raise PipelineError(f"there is no range rule called {method!r}", way_out="use one of " + ", ".join(RULES))
    low, high = RULES[method](s, bits)
    return min(low, 0.0), max(high, 0.0)

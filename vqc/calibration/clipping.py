"""Range rules that clip: where a fitted density says it pays (ACIQ), or where the histogram thins out (DBDC)."""

from __future__ import annotations

import numpy as np

from vqc.calibration.search import errors
from vqc.calibration.statistics import Statistics

# Clipping at this many b = E|x - mean| (Laplace) or standard deviations (Gauss) has the least mean square error with
# 1, 2 .. 9 bits. They minimise 2 e^-a + a^2 / (3 4^bits) and, for Gauss,
# (a^2 + 1) (1 - erf(a / sqrt 2)) - sqrt(2 / pi) a e^(-a^2 / 2) + a^2 / (3 4^bits)
# (ACIQ: Banner et al., NeurIPS 2019, arXiv 1810.05723, section 3).
LAPLACE = (1.8628, 2.8307, 3.8972, 5.0286, 6.2048, 7.4131, 8.6456, 9.8968, 11.1627)
GAUSS = (1.2399, 1.7106, 2.1516, 2.5591, 2.9362, 3.2869, 3.6151, 3.9240, 4.2163)


def aciq(s: Statistics, bits: int) -> tuple[float, float]:
    """The best range for a Laplace or a Gauss density of the same spread, whichever does better on the histogram.

    Around the mean, never wider than what was seen. Values that are never negative (after ReLU) are taken for the upper
    half of a density around zero: all levels go to that half, so its constant is that of one bit more, and zeros, which
    stand for the lower half, do not count for the spread.
    """
    centres, counts = s.bins()
    low, high = s.range
    one_sided = low >= 0
    used = counts > 0
    if one_sided:
        used &= np.floor(centres / 2.0**s.exponent) > 0  # the bin of zero
    if not used.any():
        return low, high
    x, share = centres[used], counts[used] / counts[used].sum()
    middle = 0.0 if one_sided else float((x * share).sum())
    column = bits if one_sided else bits - 1
    reach = np.array([LAPLACE[column] * float((np.abs(x - middle) * share).sum()),
                      GAUSS[column] * float((np.square(x - middle) * share).sum()) ** 0.5])  # fmt: skip
    lows = np.full(2, low) if one_sided else np.maximum(middle - reach, low)
    highs = np.minimum(middle + reach, high)
    best = int(np.argmin(errors(s, lows, highs, bits)))
    return float(lows[best]), float(highs[best])


def dbdc(s: Statistics, bits: int) -> tuple[float, float]:
    """Drop the end bin that holds fewer values, again and again, while enough values are kept.

    Density-based dual clipping (Tu et al., CVPR 2023, "Toward Accurate Post-Training Quantization for Image Super
    Resolution", section 3.2), with its shares of values given up: 5e-4 up to 4 bits, 1e-5 from 8, 1e-4 between. Its
    bounds are means over batches; here all frames share one histogram.
    """
    centres, counts = s.bins()
    if not len(counts):
        return s.range
    width, total = 2.0**s.exponent, int(counts.sum())
    given_up = 5e-4 if bits <= 4 else 1e-4 if bits < 8 else 1e-5
    first, last, kept = 0, len(counts) - 1, total
    while first < last:
        smaller = first if counts[first] <= counts[last] else last
        if kept - int(counts[smaller]) < (1 - given_up) * total:
            break
        kept -= int(counts[smaller])
        first, last = (first + 1, last) if smaller == first else (first, last - 1)
    low, high = (s.first + first) * width, (s.first + last + 1) * width
    return max(low, s.range[0]), min(high, s.range[1])

"""Signal to quantization noise, at a point and along a clip."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor

from ..errors import InputError
from ._checks import same_shape
from .picture import decibel


def sqnr_db(pred: Tensor, true: Tensor) -> float:
    """Signal to quantization noise ratio in dB: 10 log10(sum true^2 / sum (pred - true)^2), any one shape.

    inf where they are equal, -inf where the truth is all zero and the prediction is not. Raises InputError.
    """
    return decibel(*_energies(pred, true, "sqnr_db"))


@dataclass(frozen=True)
class Drift:
    """How the noise of a recurrent program grows: SQNR (dB) at 0, 1, 2, ... frames since a reset, and its trend.

    `slope` is in dB a frame, by least squares over the finite values; below 0 means that errors pile up in the state.
    """

    sqnr: list[float]
    slope: float


def drift(pred: Iterable[Tensor], true: Iterable[Tensor], reset_every: int | None = None) -> Drift:
    """The drift of one output along a clip: a tensor [T,...], or one tensor a frame, of prediction and truth each.

    `reset_every` tells that the state was reset each so many frames (None: at the first only); frames equally far from
    a reset are pooled by their energies.
    Raises InputError if there are no frames, unequally many, or shapes differ.
    """
    if reset_every is not None and reset_every < 1:
        raise InputError(f"drift got reset_every={reset_every}", way_out="one or more frames, or None")
    signal: list[float] = []
    noise: list[float] = []
    for index, (a, b) in enumerate(zip_longest(pred, true)):
        if a is None or b is None:
            raise InputError("drift got clips of different length", why=f"one ends after {index} frames")
        since = index if reset_every is None else index % reset_every
        s, n = _energies(a, b, "drift")
        if since == len(signal):
            signal.append(0.0)
            noise.append(0.0)
        signal[since] += s
        noise[since] += n
    if not signal:
        raise InputError("drift got no frames")
    sqnr = [decibel(s, n) for s, n in zip(signal, noise, strict=True)]
    return Drift(sqnr, _trend(sqnr))


def _energies(pred: Tensor, true: Tensor, metric: str) -> tuple[float, float]:
    same_shape(pred, true, metric)
    a, b = pred.detach().double(), true.detach().double()
    return float(b.square().sum()), float((a - b).square().sum())


def _trend(values: list[float]) -> float:
    points = [(x, y) for x, y in enumerate(values) if math.isfinite(y)]
    if len(points) < 2:
        return 0.0
    mx = sum(x for x, _ in points) / len(points)
    my = sum(y for _, y in points) / len(points)
    return sum((x - mx) * (y - my) for x, y in points) / sum((x - mx) ** 2 for x, _ in points)

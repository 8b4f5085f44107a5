"""Connectivity error of a matte: are its parts joined to the body as in the truth?

Source: Rhemann et al., "A Perceptually Motivated Online Benchmark for Image Matting", CVPR 2009, with the thresholds
0.1, 0.2, ..., 1.0 and the cut at 0.15 of the usual evaluation.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ._checks import mattes

_CUT = 0.15


def conn(pred: Tensor, true: Tensor) -> float:
    """Connectivity error / 1000, mean over frames, of mattes in [0,1]: [H,W], [T,H,W] or [T,1,H,W].

    Raises InputError.
    """
    a, b = mattes(pred, true, "conn")
    return float(np.mean([_frame(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True)]))


def _frame(pred: np.ndarray, true: np.ndarray) -> float:
    level = np.ones_like(pred)
    inside = np.ones(pred.shape, bool)  # not yet cut off from the body
    for step in range(1, 11):
        body = largest_component((pred >= step / 10) & (true >= step / 10))
        level[inside & ~body] = (step - 1) / 10
        inside &= body
    return float(np.abs(_joined(true, level) - _joined(pred, level)).sum() / 1e3)


def _joined(alpha: np.ndarray, level: np.ndarray) -> np.ndarray:
    distance = alpha - level
    return 1 - distance * (distance >= _CUT)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected part of a bool mask [H,W], as a mask; of equal ones, the first from the top left.

    Rows are cut into runs, runs that touch across rows are edges, and every run takes the smallest number that reaches
    it: a few numpy passes in place of a walk over the pixels.
    """
    starts = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    count = int(starts.sum())
    if count == 0:
        return np.zeros_like(mask)
    run = starts.ravel().cumsum().reshape(mask.shape) - 1  # of each pixel that is set, the number of its run
    touching = mask[:-1] & mask[1:]
    upper, lower = run[:-1][touching], run[1:][touching]
    label = np.arange(count)
    while True:
        old = label.copy()
        low = np.minimum(label[upper], label[lower])
        # Hook the roots, not the runs, so that whole parts move at once; then follow the labels to their ends.
        np.minimum.at(label, label[upper], low)
        np.minimum.at(label, label[lower], low)
        while not np.array_equal(label, label[label]):
            label = label[label]
        if np.array_equal(label, old):
            break
    sizes = np.bincount(label[run[mask]], minlength=count)
    return mask & (label[run] == sizes.argmax())

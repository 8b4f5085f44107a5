"""Scales of weights: symmetric, one for each output channel."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from vqc.errors import PipelineError

WeightMethod = Literal["minmax", "mse", "omse"]

# The exponent of the error that the search minimises: BRECQ's, and that of OMSE.
_POWERS = {"mse": 2.4, "omse": 2.0}
SHRINKS = 80  # candidates: 1, 0.99 .. 0.21 of the largest magnitude


def weight_scales(rows: torch.Tensor, top: int, method: WeightMethod = "minmax") -> torch.Tensor:
    """The step of each row: float64 [R, K] -> float64 [R], for integers -top..top.

    "minmax": max|w| / top. "mse": the shrunk one of 80 with the least mean |w - Q(w)|**2.4 (BRECQ, ICLR 2021, arXiv
    2102.05426, section 4). "omse": the same with squares (OMSE, ICCV workshops 2019, arXiv 1902.06822). Ties take the
    larger step. A row of zeros gets a step of 1e-20. Raises PipelineError for another method.
    """
    if method not in get_args(WeightMethod):
        raise PipelineError(f"there is no weight method called {method!r}",
                            way_out="use one of " + ", ".join(get_args(WeightMethod)))  # fmt: skip
    largest = (rows.abs().amax(1) / top).clamp_min(1e-20)
    if method == "minmax":
        return largest
    best, found = torch.full_like(largest, torch.inf), largest
    for i in range(SHRINKS):
        scale = largest * (1 - 0.01 * i)
        q = torch.round(rows / scale[:, None]).clamp(-top, top) * scale[:, None]
        error = (rows - q).abs().pow(_POWERS[method]).sum(1)
        found = torch.where(error < best, scale, found)
        best = torch.minimum(error, best)
    return found

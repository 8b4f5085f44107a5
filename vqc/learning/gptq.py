"""Rounding with second-order compensation: what one column loses, the columns after it make up for.

GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323, algorithm 1); GPTAQ (Li et al., ICML 2025, arXiv 2504.02692), which
aims at the full-precision layer on full-precision inputs; FOEM (Zheng et al., AAAI 2026, arXiv 2507.11017, algorithm
1), which pulls a column towards its full-precision value just before it is rounded. Everything is float64 and batched
over groups g: a grouped convolution is g problems side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vqc.errors import CalibrationError

Order = Literal["natural", "act"]
BLOCK = 128  # columns between two updates of all the columns after them
RETRIES = 6  # of the Cholesky factor, each with ten times the damping


@dataclass(frozen=True)
class Rounded:
    """`integers` float64 [g, R, K] of whole numbers; `saturated`: how many of them the grid's end cut off; `damp`: the
    damping that the Cholesky factor needed."""

    integers: Tensor
    saturated: int
    damp: float


def nearest(weight: Tensor, scale: Tensor, top: int) -> Tensor:
    """round(weight / scale) within -top..top, of the weight's shape."""
    return torch.round(weight / scale).clamp(-top, top)


def compensate(weight: Tensor, hessian: Tensor, scale: Tensor, top: int, *, order: Order = "natural", beta: float = 0.0,
               alpha: float = 0.0, shift: Tensor | None = None, damp: float = 0.01,
               block: int = BLOCK) -> Rounded:  # fmt: skip
    """Integers -top..top whose product with `scale` stands for `weight` with little error of the layer's results.

    weight [g, R, K]: R rows of K inputs; hessian [g, K, K]: mean of x x^T over columns x of the quantized inputs; scale
    [g, R, 1], or [g, R, K] where groups of columns have their own. All float64. `order`: the columns as they are, or
    those of most energy first ("act"). `beta`: FOEM's pull; 0 is GPTQ, to the bit. `alpha` with `shift` [g, K, K], the
    mean of (x_float - x) x^T: GPTAQ's share of the asymmetric term (0.25). `damp`: what is added to the diagonal, in
    parts of its mean; ten times that, and again, while H has no Cholesky factor.

    An input that is never anything but zero has no say in the others: its column is rounded to nearest. (Published code
    puts zeros there, which is worse if the input wakes up later.) Raises CalibrationError when H is not finite.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise CalibrationError("the inputs of a layer hold NaN or infinity",
                               way_out="look at the clip, or at the weights (vqc compare)")  # fmt: skip
    inputs = hessian.shape[-1]
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    columns = torch.argsort(diagonal, stable=True, dim=-1, descending=True)
    if order == "natural":
        columns = torch.arange(inputs).expand_as(columns)
    by_column = columns[:, None, :]
    original = weight.gather(2, by_column.expand_as(weight))
    scale = scale.expand_as(weight).gather(2, by_column.expand_as(weight))
    upper, used = _factor(_permuted(hessian, columns), damp)
    pull = None
    if alpha and shift is not None:
        # P of GPTAQ, equation 13: what the mismatch of column j asks of the columns after it
        moved = _permuted(shift, columns)
        pull = alpha * torch.triu(moved @ upper.mT, diagonal=1) @ upper

    latent, integers = original.clone(), torch.empty_like(original)
    saturated = 0
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        errors, before = torch.zeros_like(latent[..., start:end]), torch.zeros_like(latent[..., start:end])
        for j in range(start, end):
            w = latent[..., j] - beta * (latent[..., j] - original[..., j])
            steps = torch.round(w / scale[..., j])
            q = steps.clamp(-top, top)
            saturated += int((steps != q).sum())
            integers[..., j] = q
            e = ((w - q * scale[..., j]) - beta * (w - original[..., j])) / upper[:, None, j, j]
            errors[..., j - start], before[..., j - start] = e, w
            rest = slice(j + 1, end)
            latent[..., rest] -= e[..., None] * upper[:, None, j, rest]
            if pull is not None:
                latent[..., rest] += w[..., None] * pull[:, None, j, rest]
        latent[..., end:] -= errors @ upper[:, start:end, end:]
        if pull is not None:
            latent[..., end:] += before @ pull[:, start:end, end:]
    back = torch.argsort(columns, dim=-1)[:, None, :].expand_as(integers)
    return Rounded(integers.gather(2, back), saturated, used)


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """Mean over columns x of |difference x|^2, summed over rows: [g, R, K] and [g, K, K] to [g]."""
    return ((difference @ hessian) * difference).sum((1, 2))


def _permuted(matrix: Tensor, columns: Tensor) -> Tensor:
    rows = matrix.gather(1, columns[:, :, None].expand_as(matrix))
    return rows.gather(2, columns[:, None, :].expand_as(matrix))


def _factor(hessian: Tensor, damp: float) -> tuple[Tensor, float]:
    """(T, damping used): T [g, K, K] upper triangular with H^-1 = T^T T."""
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    dead = diagonal <= 0
    mean = diagonal.mean(-1, keepdim=True)
    for _ in range(RETRIES):
        added = torch.where(dead, torch.ones_like(diagonal), (damp * mean).expand_as(diagonal))
        lower, failed = torch.linalg.cholesky_ex(hessian + torch.diag_embed(added))
        if not bool(failed.any()):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not bool(failed.any()) and bool(torch.isfinite(upper).all()):
                return upper, damp
        damp = max(damp, 1e-6) * 10
    raise CalibrationError("the second moments of a layer's inputs have no Cholesky factor",
                           why=f"even with {damp / 10:g} of their mean added to the diagonal",
                           way_out="give more frames, or keep the layer in float")  # fmt: skip

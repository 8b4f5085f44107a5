"""How far a matte is from the truth, with the scales and conventions of the video matting literature.

Source: Lin et al., "Robust High-Resolution Video Matting with Temporal Guidance" (2022), its evaluation; dtSSD from
Erofeev et al., "Perceptually Motivated Benchmark for Video Matting", BMVC 2015. The published figures read predictions
back from 8-bit files; `eight_bit` does that to a tensor. All arithmetic is in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ._checks import mattes, same_shape


def eight_bit(x: Tensor) -> Tensor:
    """`x`, in [0,1], as it comes back from an 8-bit file: clamped, rounded to a multiple of 1/255."""
    return (x.clamp(0, 1) * 255).round() / 255


def mad(pred: Tensor, true: Tensor) -> float:
    """Mean absolute difference x 1000 of two mattes in [0,1] ([H,W], [T,H,W] or [T,1,H,W]). Raises InputError."""
    a, b = mattes(pred, true, "mad")
    return float((a - b).abs().mean() * 1e3)


def mse(pred: Tensor, true: Tensor) -> float:
    """Mean squared difference x 1000 of two mattes in [0,1] ([H,W], [T,H,W] or [T,1,H,W]). Raises InputError."""
    a, b = mattes(pred, true, "mse")
    return float((a - b).square().mean() * 1e3)


def dtssd(pred: Tensor, true: Tensor) -> float:
    """Flicker: root mean square difference of the changes between frames, x 100, of mattes [T,H,W] or [T,1,H,W].

    A first frame has no change and counts as 0 in the mean over frames, as published: one frame gives 0.
    Raises InputError.
    """
    a, b = mattes(pred, true, "dtssd")
    change = (a[1:] - a[:-1]) - (b[1:] - b[:-1])
    return float(change.square().mean((1, 2)).sqrt().sum() / a.shape[0] * 1e2)


def fg_mad(pred: Tensor, true: Tensor, true_alpha: Tensor) -> float:
    """Mean absolute difference x 1000 of foregrounds [T,3,H,W] where `true_alpha` [T,1,H,W] is above 0.

    Not weighted by alpha. Averaged per frame, then over the frames that have such pixels; 0 if none has.
    Raises InputError.
    """
    return _foreground((pred.detach().double() - true.detach().double()).abs(), pred, true, true_alpha, "fg_mad")


def fg_mse(pred: Tensor, true: Tensor, true_alpha: Tensor) -> float:
    """Mean squared difference x 1000 of foregrounds [T,3,H,W] where `true_alpha` [T,1,H,W] is above 0; see `fg_mad`."""
    return _foreground((pred.detach().double() - true.detach().double()).square(), pred, true, true_alpha, "fg_mse")


def _foreground(error: Tensor, pred: Tensor, true: Tensor, alpha: Tensor, metric: str) -> float:
    same_shape(pred, true, metric)
    if pred.ndim != 4 or alpha.shape != (pred.shape[0], 1, *pred.shape[2:]):
        raise InputError(
            f"{metric} got foregrounds {tuple(pred.shape)} and a matte {tuple(alpha.shape)}",
            why="expected [T,3,H,W] and [T,1,H,W]",
        )
    inside = (alpha > 0).to(error)
    pixels = inside.sum((1, 2, 3))
    per_frame = (error.mean(1, keepdim=True) * inside).sum((1, 2, 3))[pixels > 0] / pixels[pixels > 0]
    return float(per_frame.mean() * 1e3) if per_frame.numel() else 0.0


def grad(pred: Tensor, true: Tensor, normalise: bool = True) -> float:
    """Squared difference of gradient magnitudes, summed over the picture, / 1000, mean over frames.

    Mattes in [0,1]: [H,W], [T,H,W] or [T,1,H,W]. First derivatives of a Gaussian, sigma 1.4, 9x9, unit L2 norm,
    borders repeated (Rhemann et al., CVPR 2009). `normalise` stretches every frame of both to [0,1] first, as the
    low-resolution evaluation does; the HD evaluation does not. Raises InputError.
    """
    a, b = mattes(pred, true, "grad")
    if normalise:
        a, b = _stretch(a), _stretch(b)
    return float((_slope(b) - _slope(a)).square().sum((1, 2)).mean() / 1e3)


def _stretch(x: Tensor) -> Tensor:
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, (x - low) / span.where(span > 0, 1.0), 0.0)  # a flat frame becomes black


def _slope(x: Tensor, sigma: float = 1.4, half: int = 4) -> Tensor:
    """Magnitude of the Gaussian gradient of [T,H,W]. `half` = ceil(sigma sqrt(-2 ln(sqrt(2 pi) sigma 0.01)))."""
    t = torch.arange(-half, half + 1, dtype=x.dtype)
    bell = torch.exp(-t.square() / (2 * sigma**2))
    derivative = -t * bell / sigma**2
    kernel = bell[:, None] * derivative[None, :]
    kernel = kernel / kernel.square().sum().sqrt()
    bank = torch.stack((kernel, kernel.T))[:, None]
    padded = torch.nn.functional.pad(x[:, None], (half,) * 4, mode="replicate")
    return torch.nn.functional.conv2d(padded, bank).square().sum(1).sqrt()

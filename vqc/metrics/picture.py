"""How far a picture is from the truth: PSNR and SSIM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ._checks import pictures


def luma(x: Tensor) -> Tensor:
    """Luma of RGB in [0,1], [...,3,H,W] -> [...,1,H,W], as ITU-R BT.601 codes it: 16/255 black to 235/255 white.

    This is the Y of the super-resolution literature (MATLAB's rgb2ycbcr).
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=x.dtype, device=x.device).view(3, 1, 1)
    return ((x * weights).sum(-3, keepdim=True) + 16) / 255


def psnr(pred: Tensor, true: Tensor, on: str = "rgb") -> float:
    """Peak signal to noise ratio in dB, peak 1, per frame, mean over frames; inf if any frame is equal.

    Pictures in [0,1]: [C,H,W] or [T,C,H,W], C = 1 or 3. `on` is "rgb" (every channel counts alike) or "y" (`luma`
    first; a picture of one channel is taken as it is). Raises InputError.
    """
    a, b = _on(*pictures(pred, true, "psnr"), on)
    error = (a - b).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def ssim(pred: Tensor, true: Tensor, on: str = "y") -> float:
    """Structural similarity, mean over the picture, the channels and the frames; 1 if equal.

    Pictures in [0,1]: [C,H,W] or [T,C,H,W], C = 1 or 3, sides of 11 or more; `on` as for `psnr`.
    Source: Wang et al., "Image Quality Assessment", IEEE TIP 2004: Gaussian window 11x11, sigma 1.5, K1 = 0.01,
    K2 = 0.03, range 1, variances without Bessel's correction, and only where the window lies inside the picture.
    Raises InputError.
    """
    a, b = _on(*pictures(pred, true, "ssim"), on)
    if min(a.shape[-2:]) < 11:
        raise InputError("ssim needs sides of 11 or more", why=f"got {tuple(a.shape[-2:])}", way_out="use psnr")
    t = torch.arange(-5, 6, dtype=a.dtype)
    bell = torch.exp(-t.square() / (2 * 1.5**2))
    bell = bell / bell.sum()
    shape = a.shape[0] * a.shape[1], 1, *a.shape[2:]
    a, b = a.reshape(shape), b.reshape(shape)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, bell.view(1, 1, 11, 1)), bell.view(1, 1, 1, 11))

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean())


def _on(a: Tensor, b: Tensor, on: str) -> tuple[Tensor, Tensor]:
    if on not in ("rgb", "y"):
        raise InputError(f'on="{on}" is unknown', way_out='"rgb" or "y"')
    if on == "y" and a.shape[1] == 3:
        return luma(a), luma(b)
    return a, b


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies: inf without noise, -inf with noise alone."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf

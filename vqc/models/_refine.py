"""Guided-filter refiners: a matte found at low size, brought to full size along the edges of the full picture.

Source: Wu et al., "Fast End-to-End Trainable Guided Filter", CVPR 2018, as Robust Video Matting uses it; the
training-free one is He & Sun, "Fast Guided Filter", 2015, with radius 1 and eps 1e-5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _with_gray(x: Tensor) -> Tensor:
    """RGB and its mean: [N,3,H,W] -> [N,4,H,W]."""
    return torch.cat((x, x.mean(1, keepdim=True)), 1)


def _grow(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class FastGuidedFilter(nn.Module):
    """Local linear model in closed form: A = cov / (var + eps), b = mean(y) - A mean(x). No weights.

    Called with the picture [N,3,H,W], the small picture [N,3,h,w], and at small size the foreground residual (3), the
    matte (1) and the decoder's features (16, unused here); gives residual and matte at full size.
    """

    def __init__(self, eps: float = 1e-5):
        super().__init__()
        self.eps = eps

    def _box(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1)  # counts the zero padding, as the published filter does

    def _slope(self, cov: Tensor, var: Tensor, hidden: Tensor) -> Tensor:
        return cov / (var + self.eps)

    def forward(self, src: Tensor, small: Tensor, fgr: Tensor, pha: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        guide = _with_gray(src)
        x, y = _with_gray(small), torch.cat((fgr, pha), 1)
        mean_x, mean_y = self._box(x), self._box(y)
        cov = self._box(x * y) - mean_x * mean_y
        var = self._box(x * x) - mean_x * mean_x
        slope = self._slope(cov, var, hidden)
        offset = mean_y - slope * mean_x
        out = _grow(slope, guide) * guide + _grow(offset, guide)
        return out[:, :3], out[:, 3:]


class DeepGuidedFilter(FastGuidedFilter):
    """The same filter with a learned box and the slope predicted by three 1x1 convolutions."""

    def __init__(self, hidden: int = 16):
        super().__init__()
        self.box_filter = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        nn.init.constant_(self.box_filter.weight, 1 / 9)
        self.conv = nn.Sequential(
            nn.Conv2d(8 + hidden, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 4, 1),
        )

    def _box(self, x: Tensor) -> Tensor:
        return self.box_filter(x)

    def _slope(self, cov: Tensor, var: Tensor, hidden: Tensor) -> Tensor:
        return self.conv(torch.cat((cov, var, hidden), 1))

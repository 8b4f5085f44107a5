"""Losses of matting over clips: what RVM, BiMatting and BiVM are trained with.

Sources: Lin et al., WACV 2022 (matting loss and Laplacian pyramid); BiVM (TPAMI 2025, eq. 13 and 18 to 21). Clips are
[B,T,C,H,W]; alpha has one channel, foreground three, both in [0,1]. Means are over all elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPORAL = 5.0  # weight of the temporal terms


def matting_loss(pred_fgr: Tensor, pred_pha: Tensor, true_fgr: Tensor, true_pha: Tensor) -> dict[str, Tensor]:
    """L1(a) + Lap(a) + 5 Ltc(a) + L1(F) + 5 Ltc(F), term by term under the names they have in logs, and their "total".

    The foreground counts where the true alpha is above 0. One frame has no temporal terms.
    """
    seen = (true_pha > 0).to(true_pha.dtype)
    pred_fgr, true_fgr = pred_fgr * seen, true_fgr * seen
    terms = {
        "pha_l1": F.l1_loss(pred_pha, true_pha),
        "pha_laplacian": laplacian_loss(pred_pha.flatten(0, 1), true_pha.flatten(0, 1)),
        "pha_coherence": TEMPORAL * coherence_loss(pred_pha, true_pha),
        "fgr_l1": F.l1_loss(pred_fgr, true_fgr),
        "fgr_coherence": TEMPORAL * coherence_loss(pred_fgr, true_fgr),
    }
    terms["total"] = torch.stack(list(terms.values())).sum()
    return terms


def coherence_loss(pred: Tensor, true: Tensor) -> Tensor:
    """Mean squared difference of the changes between frames; 0 for one frame."""
    if pred.shape[1] < 2:
        return pred.new_zeros(())
    return F.mse_loss(pred[:, 1:] - pred[:, :-1], true[:, 1:] - true[:, :-1])


def laplacian_loss(pred: Tensor, true: Tensor, levels: int = 5) -> Tensor:
    """(1 / levels) sum 2^i mean |Lap_i(pred) - Lap_i(true)| of pictures [N,1,H,W]; fewer levels for small pictures."""
    kernel = _kernel(pred)
    total = pred.new_zeros(())
    difference = pred - true  # the pyramid is linear
    for level in range(levels):
        h, w = difference.shape[-2] // 2 * 2, difference.shape[-1] // 2 * 2
        difference = difference[..., :h, :w]
        if min(h, w) < 4:
            break
        down = _blur(difference, kernel)[..., ::2, ::2]
        total = total + 2**level / levels * (difference - _grown(down, kernel)).abs().mean()
        difference = down
    return total


def _kernel(like: Tensor) -> Tensor:
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=like.dtype, device=like.device) / 16
    return torch.outer(row, row)[None, None]


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel)


def _grown(x: Tensor, kernel: Tensor) -> Tensor:
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, 2 * h, 2 * w)
    spread[..., ::2, ::2] = x * 4
    return _blur(spread, kernel)


def mimicking_loss(taught: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """BiVM's localized binarization-aware mimicking (eq. 20): the distance of features whose direction is compared.

    Pairs of features [N,C,h,w] of any scales; each position's channels have length 1 first. `mask` [N,1,h',w'], where
    the matte is uncertain, is brought to each scale; None counts every position. The sum of the squares is divided by
    the number of frames, so that a batch's size does not matter.
    """
    total = taught[0].new_zeros(())
    for mine, true in zip(taught, teacher, strict=True):
        distance = (F.normalize(mine.float(), dim=1) - F.normalize(true.float(), dim=1)).square().sum(1, keepdim=True)
        if mask is not None:
            distance = distance * F.interpolate(mask.float(), mine.shape[-2:], mode="bilinear", align_corners=False)
        total = total + distance.sum() / mine.shape[0]
    return total

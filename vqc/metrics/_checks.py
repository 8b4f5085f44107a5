"""What every metric asks of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError


def same_shape(pred: Tensor, true: Tensor, metric: str) -> None:
    """Raises InputError unless both tensors have one shape and hold something."""
    if pred.shape != true.shape or pred.numel() == 0:
        raise InputError(
            f"{metric} got tensors of shape {tuple(pred.shape)} and {tuple(true.shape)}",
            why="prediction and truth must have one shape, and hold something",
            way_out="crop or resize one of them first",
        )


def mattes(pred: Tensor, true: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Both mattes as float64 [T,H,W], from [H,W], [T,H,W] or [T,1,H,W]."""
    same_shape(pred, true, metric)
    shape = pred.shape
    if pred.ndim == 4 and shape[1] == 1:
        shape = shape[:1] + shape[2:]
    elif pred.ndim == 2:
        shape = torch.Size((1, *shape))
    if len(shape) != 3:
        raise InputError(
            f"{metric} got mattes of shape {tuple(pred.shape)}",
            why="expected [H,W], [T,H,W] or [T,1,H,W]",
            way_out="call it once for every clip of a batch",
        )
    return pred.detach().double().cpu().reshape(shape), true.detach().double().cpu().reshape(shape)


def pictures(pred: Tensor, true: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Both clips as float64 [T,C,H,W], C = 1 or 3, from [C,H,W] or [T,C,H,W]."""
    same_shape(pred, true, metric)
    if pred.ndim == 3:
        pred, true = pred[None], true[None]
    if pred.ndim != 4 or pred.shape[1] not in (1, 3):
        raise InputError(
            f"{metric} got pictures of shape {tuple(pred.shape)}",
            why="expected [C,H,W] or [T,C,H,W] with 1 or 3 channels",
            way_out="call it once for every clip of a batch",
        )
    return pred.detach().double().cpu(), true.detach().double().cpu()

"""How good a matting network is on a clip: its matte against a true one, frame by frame, the state carried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import metrics


@dataclass(frozen=True)
class Score:
    """Of a clip's alpha: `mad` and `mse` x 1000, `dtssd` x 100; `density`: the mean share of a picture that is masked
    in (nan for a dense decoder)."""

    mad: float
    mse: float
    dtssd: float
    density: float

    def __str__(self) -> str:
        return f"MAD {self.mad:.2f}, MSE {self.mse:.2f}, dtSSD {self.dtssd:.2f}, density {self.density:.3f}"


@torch.no_grad()
def mattes(net: Any, frames: Tensor) -> tuple[Tensor, float]:
    """Alpha [T,1,H,W] of a network with `details` (`BiVM`) or of one like `RVM`, and the mask's mean density.

    frames: [T,3,H,W] in [0,1]. The network is run in eval mode, one frame after the other, from an empty state.
    """
    was = net.training
    net.eval()
    state: tuple[Tensor | None, ...] = (None,) * 4
    found, densities = [], []
    for frame in frames:
        if hasattr(net, "details"):
            d = net.details(frame[None], state)
            pha, state = d.pha, d.states
            if d.mask is not None:
                densities.append(float(d.mask.mean()))
        else:
            _, pha, *rest = net(frame[None], *state)
            state = tuple(rest)
        found.append(pha.clamp(0, 1))
    net.train(was)
    return torch.cat(found), sum(densities) / len(densities) if densities else float("nan")


def score(net: Any, frames: Tensor, truth: Tensor) -> Score:
    """Of the network's mattes of `frames` [T,3,H,W] against `truth` [T,1,H,W]. Raises InputError as the metrics do."""
    alpha, density = mattes(net, frames)
    return Score(metrics.mad(alpha, truth), metrics.mse(alpha, truth), metrics.dtssd(alpha, truth), density)

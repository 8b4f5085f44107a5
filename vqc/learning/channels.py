"""Values per input channel, as they meet a weight."""

from __future__ import annotations

import torch
from torch import fx


def channel_view(values: torch.Tensor, n: fx.Node, weight: torch.Tensor) -> torch.Tensor:
    """Values per input channel of a conv2d, shaped to broadcast with its weight [O, C/groups, kh, kw]."""
    groups = int(n.args[6]) if len(n.args) > 6 else 1
    if groups == 1:
        return values.view(1, -1, 1, 1)
    per_group = values.view(groups, weight.shape[1])
    return per_group.repeat_interleave(weight.shape[0] // groups, 0).view(weight.shape[0], weight.shape[1], 1, 1)

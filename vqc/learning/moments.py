"""First and second moments per channel of a layer's results, quantized and float, and the affine map between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChannelStats:
    """Mean and (population) variance of each channel, float64 [C]."""

    mean: Tensor
    var: Tensor


def match_moments(y_fp_stats: ChannelStats, y_q_stats: ChannelStats) -> tuple[Tensor, Tensor]:
    """(gamma, beta), float64 [C]: gamma y_q + beta has the mean and variance of y_fp.

    gamma = sd_fp / sd_q, beta = mean_fp - gamma mean_q. This is batch-norm re-estimation in its folded form, and the
    closed-form start of a global affine calibration (PTQ4VM, arXiv 2506.10840). A channel that does not vary in one of
    the two keeps gamma = 1.
    """
    tiny = 1e-12 * torch.maximum(y_fp_stats.var, y_q_stats.mean.square()) + 1e-30
    alive = (y_q_stats.var > tiny) & (y_fp_stats.var > tiny)
    ratio = y_fp_stats.var / torch.where(alive, y_q_stats.var, torch.ones_like(y_q_stats.var))
    gamma = torch.where(alive, ratio.sqrt(), torch.ones_like(ratio))
    return gamma, y_fp_stats.mean - gamma * y_q_stats.mean


@dataclass
class PairedMoments:
    """Sums over the same positions of a float result f and a quantized one q, by channel: float64 [C] each."""

    axis: int = 1
    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def update(self, f: Tensor, q: Tensor) -> None:
        """Take in one step's results, both of one shape, channels at dimension `axis`."""
        a, b = (v.transpose(0, self.axis).flatten(1).double() for v in (f, q))
        self.count += a.shape[1]
        new = {"f": a.sum(1), "q": b.sum(1), "ff": (a * a).sum(1), "qq": (b * b).sum(1), "fq": (a * b).sum(1)}
        self.sums = {k: v + self.sums[k] if self.sums else v for k, v in new.items()}

    def mean(self, what: str) -> Tensor:
        """The mean of "f", "q", "ff", "qq" or "fq"."""
        return self.sums[what] / self.count

    def stats(self, what: str) -> ChannelStats:
        """Of "f" or "q"."""
        mean = self.mean(what)
        return ChannelStats(mean, (self.mean(what * 2) - mean.square()).clamp_min(0))

    def error(self, gamma: Tensor | float = 1.0, beta: Tensor | float = 0.0) -> Tensor:
        """float64 [C], the mean of (f - gamma q - beta)^2."""
        m = self.mean
        squares = m("ff") + gamma * gamma * m("qq") + beta * beta
        return (squares - 2 * gamma * m("fq") - 2 * beta * m("f") + 2 * gamma * beta * m("q")).clamp_min(0)

"""Channel scales of an activation, folded into the weight: when they lower the noise of a layer's result.

A convolution sums over its input channels, so channel scales of the input can move into its weight and cost nothing at
run time. They help where channels differ widely (a concat of pictures and optical flow, a depthwise convolution), and
hurt elsewhere, because the weight then has to span them. `balance` predicts both kinds of noise and decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from vqc.calibration import Statistics
from vqc.learning.channels import channel_view
from vqc.program import Program, shape_of

EXPONENTS = (0.25, 0.5, 0.75, 1.0)  # scale_c ~ range_c ** exponent; 0 is one scale for the tensor
QUIET = 1.0  # of what the louder channels' range promises is the least that any channel gets
GAIN = 0.5  # channel scales are taken when they leave at most this share of the noise


@dataclass(frozen=True)
class ActivationQuant:
    """How one tensor is quantized: float64 `scale` and int64 `zero` of one value or [C], levels 0..levels-1 in uint8.

    `offset`: float64 [C], what dequantization adds to the true value because `zero` is rounded (pixel grids only).
    `axis`: the dimension along which the values run when they cannot move into the weight (frames of a batch).
    `slots`: how many frame slots have bounds of their own, 0 when the scales are no slots'.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    levels: int
    offset: torch.Tensor | None = None
    axis: int | None = None
    slots: int = 0

    @property
    def per_channel(self) -> bool:
        """Whether each input channel has a scale of its own, which the weight takes over."""
        return self.scale.numel() > 1 and self.axis is None


def balance(program: Program, n: fx.Node, seen: Statistics, levels: int, weight_bits: int,
            always: bool = False, headroom: float = 0.0,
            reach: torch.Tensor | None = None) -> ActivationQuant | None:  # fmt: skip
    """Channel scales for the input of conv2d `n`, or None when one scale for the tensor is as good.

    The noise of a result is the sum over taps of (step of x)^2 / 12 * w^2 + (step of w)^2 / 12 * mean x^2, both steps
    uniform roundings; `seen` gives ranges and mean squares per channel. `headroom`: ranges are wider by this share.
    `reach`: float64 [C], `vqc.passes.channel_reach` of the input (None: all channels reach equally far).
    """
    weight = program.constant(n.args[1])
    if weight is None or seen.low is None or seen.high is None:
        return None
    low, high = torch.from_numpy(seen.low).clamp(max=0), torch.from_numpy(seen.high).clamp(min=0)
    if len(low) < 2:
        return None
    low, high = _speaking(low, high, torch.ones_like(low) if reach is None else reach, channel_groups(n.args[0]))
    low, high = low * (1 + headroom), high * (1 + headroom)
    power = torch.from_numpy(seen.mean_square)
    w = weight.double()
    plain = _noise(w, n, *_scales(low, high, 0.0, levels)[:1], power, weight_bits)
    choices = []
    for exponent in (1.0,) if always else EXPONENTS:
        scale, zero = _scales(low, high, exponent, levels)
        choices.append((_noise(w, n, scale, power, weight_bits), scale, zero))
    best = min(choices, key=lambda c: c[0])
    if not always and best[0] > GAIN * plain:
        return None
    return ActivationQuant(best[1], best[2].to(torch.int64), levels)


def channel_groups(x: Any) -> list[int]:
    """How many channels each operand of a (nested) concat brings to `x`, in order; one number for any other tensor."""
    if isinstance(x, fx.Node) and x.target is torch.ops.aten.cat.default and len(x.args) > 1 and x.args[1] == 1:
        return [count for part in x.args[0] for count in channel_groups(part)]
    return [shape_of(x)[1]]


def _speaking(low: torch.Tensor, high: torch.Tensor, reach: torch.Tensor, groups: list[int]
              ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Ranges in which a channel that calibration hardly heard may still speak on another clip.

    A channel gets at least a share of what the louder quarter of its group would give it by their reach. Operands of a
    concat are groups of their own: a picture says nothing about a flow.
    """
    lows, highs = [], []
    for lo, hi, r in zip(low.split(groups), high.split(groups), reach.split(groups), strict=True):
        r = r.clamp_min(1e-6)
        lows.append(torch.minimum(lo, r * (lo / r).quantile(0.25) * QUIET))
        highs.append(torch.maximum(hi, r * (hi / r).quantile(0.75) * QUIET))
    return torch.cat(lows), torch.cat(highs)


def expected_noise(program: Program, n: fx.Node, seen: Statistics, quant: ActivationQuant, weight_bits: int) -> float:
    """The noise of conv2d `n` with its input quantized so, as `balance` predicts it."""
    weight = program.constant(n.args[1])
    assert weight is not None
    power = torch.from_numpy(seen.mean_square)
    return _noise(weight.double(), n, quant.scale.expand(len(power)), power, weight_bits)


def _scales(low: torch.Tensor, high: torch.Tensor, exponent: float, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, zero point) per channel; below exponent 1 the channels share the zero point."""
    spread = (high - low).clamp_min(1e-12)
    if exponent == 1.0:
        scale = spread / (levels - 1)
        return scale, torch.round(-low / scale).clamp(0, levels - 1)
    factor = (spread / spread.max()).clamp_min(1e-6) ** exponent
    bottom, top = (low / factor).min(), (high / factor).max()
    unit = (top - bottom).clamp_min(1e-12) / (levels - 1)
    return factor * unit, torch.round(-bottom / unit).clamp(0, levels - 1).expand_as(factor).clone()


def _noise(w: torch.Tensor, n: fx.Node, scale: torch.Tensor, power: torch.Tensor, weight_bits: int) -> float:
    s = channel_view(scale, n, w)
    in_steps = w * s
    weight_step = in_steps.abs().amax((1, 2, 3), keepdim=True) / (2 ** (weight_bits - 1) - 1)
    from_x = (s.square() * w.square()).sum()
    taps = w.shape[2] * w.shape[3]
    from_w = (weight_step.square() * (channel_view(power, n, w) / s.square())).sum() * taps
    return float(from_x + from_w) / 12

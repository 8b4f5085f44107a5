"""Quantizers that learn: how a weight is rounded, and where the grid of an activation lies.

Weights: AdaRound (Nagel et al., ICML 2020, arXiv 2004.10568). Activations: LSQ and LSQ+ step sizes and zero points
(Esser et al., ICLR 2020, arXiv 1902.08153; Bhalgat et al., arXiv 2004.09576).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

ZETA, GAMMA = 1.1, -0.1  # the stretch of the rectified sigmoid (AdaRound, section 3.2)


def soft_round(v: Tensor) -> Tensor:
    """h(V) in [0, 1], of the shape of `v`: how much of a step is added to the integer below (AdaRound, equation 23)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_soft_round(share: Tensor) -> Tensor:
    """V with h(V) = share, for shares in [0, 1]."""
    return -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)


def rounding_regulariser(v: Tensor, b: float) -> Tensor:
    """Sum of 1 - |2 h(V) - 1|**b: zero when every h is 0 or 1 (AdaRound, equation 24)."""
    return (1 - (2 * soft_round(v) - 1).abs().clamp_min(1e-6).pow(b)).sum()


def annealed(step: int, steps: int, warm_up: float, first: float = 20.0, last: float = 2.0) -> float:
    """The regulariser's exponent: `first` during the warm-up (a share of the steps), then in a line to `last`."""
    start = warm_up * steps
    if step < start:
        return first
    return last + (first - last) * max(0.0, 1 - (step - start) / max(1.0, steps - start))


class WeightQuantizer(nn.Module):
    """The integers of one layer's weight, with the direction of every rounding learned.

    `latent`: float32, the weight in steps of its scale (of the shape of the weight), from which the integers are
    rounded. `scale`: float32, one for each output channel; `axis`: the dimension they run along; `top`: integers lie in
    -top..top. `rounding`: int tensor of the shape of the weight, the integers to start from.
    """

    def __init__(self, latent: Tensor, scale: Tensor, axis: int, top: int, rounding: Tensor):
        super().__init__()
        self.axis, self.top = axis, top
        self.below: Tensor
        self.latent: Tensor
        self.scale: Tensor
        self.given: Tensor
        self.register_buffer("latent", latent)
        self.register_buffer("below", torch.floor(latent).clamp(-top, top - 1))
        self.register_buffer("scale", scale)
        self.register_buffer("given", rounding.to(torch.float32))
        share = (latent - self.below).clamp(0.01, 0.99)
        self.v = nn.Parameter(inverse_soft_round(share))
        self.gain = nn.Parameter(torch.ones_like(scale))  # of affine calibration: a factor of every scale
        self.learned = False  # whether v, not `given`, says how to round

    def view(self, values: Tensor) -> Tensor:
        """Values per output channel, shaped to broadcast with the weight."""
        shape = [1] * self.below.ndim
        shape[self.axis] = -1
        return values.view(shape)

    def start_from(self, given: Tensor, confidence: float = 0.75) -> None:
        """Begin at other integers (of GPTQ, say): h lies `confidence` towards them.

        The choice is then between each of them and its neighbour on the side of the float weight.
        """
        with torch.no_grad():
            given = given.float()
            self.below.copy_(torch.where(given > self.latent, given - 1, given).clamp(-self.top, self.top - 1))
            up = (given - self.below).clamp(0, 1)
            self.v.copy_(inverse_soft_round(0.5 + (up - 0.5) * confidence))

    def integers(self) -> Tensor:
        """int8, as they are now."""
        value = self.below + (self.v >= 0) if self.learned else self.given
        return value.to(torch.int8)

    def forward(self, soft: bool = True, straight: bool = False) -> Tensor:
        """The dequantized weight, float32.

        `soft`: with h(V) between the integers (AdaRound); `straight`: with the integers as they are now, and the
        gradient of h(V) (a straight-through estimate, arXiv 1308.3432).
        """
        if soft and self.learned:
            h = soft_round(self.v)
            if straight:
                h = h + ((self.v >= 0).float() - h).detach()
            steps = self.below + h
        else:
            steps = self.integers().float()
        return steps * self.view(self.scale * self.gain)


class _FakeQuantize(torch.autograd.Function):
    """(clamp(round(x / s) + z, 0, n) - z) * s with the straight-through gradient of LSQ and LSQ+."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, z: Tensor, n: int, gradient_scale: float) -> Tensor:
        q = torch.round(x * (1 / s)) + z  # as quantize_per_tensor does
        inside = (q >= 0) & (q <= n)
        y = (q.clamp(0, n) - z) * s
        ctx.save_for_backward(x, s, y, inside)
        ctx.gradient_scale = gradient_scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, s, y, inside = ctx.saved_tensors
        (g,) = grads
        gx = g * inside
        gs = gz = None
        if ctx.needs_input_grad[1]:
            # inside: (y - x) / s is round(x/s) - x/s; outside: y / s is the end of the grid, less the zero point
            gs = (g * torch.where(inside, y - x, y)).sum_to_size(s.shape) / s * ctx.gradient_scale
        if ctx.needs_input_grad[2]:
            gz = (gx - g).sum_to_size(s.shape) * s * ctx.gradient_scale
        return gx, gs, gz, None, None


class ActivationQuantizer(nn.Module):
    """The grid of one activation: codes 0..top, a scale and a zero point.

    `scale` float32 and `zero` integers of one value, or of one for each entry of dimension `axis`. Scales that are
    folded into the next weight (axis 1, the channels) are not learned; a single scale and its zero point, or those of
    each frame (another axis), are parameters, and which of them an optimiser gets is the pass's choice.
    """

    def __init__(self, scale: Tensor, zero: Tensor, top: int, axis: int | None = None):
        super().__init__()
        self.top, self.axis = top, axis
        self.base: Tensor
        self.register_buffer("base", scale.clone().float())
        start = torch.zeros(()) if axis is None else torch.zeros_like(self.base)
        self.log_scale = nn.Parameter(start, requires_grad=self.learns)  # positive whatever is learned
        self.zero = nn.Parameter(zero.clone().float(), requires_grad=self.learns)

    @property
    def learns(self) -> bool:
        return self.axis != 1

    @property
    def scale(self) -> Tensor:
        """float32, the step."""
        return self.base * torch.exp(self.log_scale) if self.learns else self.base

    def zero_point(self) -> Tensor:
        """float32 whole numbers, in 0..top where they are learned; straight-through."""
        if not self.learns:
            return self.zero
        rounded = torch.round(self.zero.detach()).clamp(0, self.top)
        return self.zero + (rounded - self.zero).detach()

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x float32 of any shape, on the grid; `keep`: bool of x's shape, where x stays as it is (QDrop)."""
        scale, zero = self.scale, self.zero_point()
        if self.axis is not None:
            shape = [1] * x.ndim
            shape[self.axis] = -1
            scale, zero = scale.view(shape), zero.view(shape)
        y = _FakeQuantize.apply(x, scale, zero, self.top, 1 / math.sqrt(x.numel() * self.top))
        return y if keep is None else torch.where(keep, x, y)

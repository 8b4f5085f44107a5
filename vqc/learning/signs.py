"""Fitting layers of signs by least squares: thresholds that lose little, signs of weights, factors and shifts.

A unit with a mask is two layers added: one 1x1 everywhere, and one 3x3 that makes up for what the first leaves, where
the mask is above zero (BiVM, eq. 17). Both are fitted to what the float layer gives at sampled positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

import vqc.ops  # noqa: F401  (registers the operators)
from vqc.ops.fake_binary import WEIGHT_FORMS

v = torch.ops.vqc

_RIDGE = 1e-2  # share of the mean square of inputs: signs of neighbouring pixels are nearly alike
_LATENT = 0.05  # mean |w| of a fitted weight: how far a step of training is from turning its sign


def thresholds(x: Tensor, levels: int) -> Tensor:
    """Where to cut each channel: [levels, C] for samples [n, C], by Lloyd's and Max's quantizer of levels + 1 values.

    A channel of one value is cut right above it (all its signs are -1).
    """
    x = x.double()
    at = (torch.arange(levels + 1, dtype=torch.float64) + 0.5) / (levels + 1)
    values = torch.quantile(x, at, 0)
    spread = x.std(0, unbiased=False)
    # quantiles of a channel that is mostly zero are equal: start apart
    values = values + spread * torch.linspace(-0.01, 0.01, levels + 1, dtype=torch.float64).view(-1, 1)
    for _ in range(12):
        cuts = (values[1:] + values[:-1]) / 2
        belongs = (x[None] >= cuts[:, None]).sum(0)  # [n, C]
        for k in range(levels + 1):
            mine = (belongs == k).double()
            count = mine.sum(0)
            values[k] = torch.where(count > 0, (x * mine).sum(0) / count.clamp(min=1), values[k])
        values = values.sort(0).values
    cuts = (values[1:] + values[:-1]) / 2
    flat = spread <= 1e-12
    above = torch.nextafter(x.amax(0).float(), torch.full_like(x[0], torch.inf, dtype=torch.float32))
    return torch.where(flat, above, cuts.float())


def patches(x: Tensor, at: Tensor, kernel: int) -> Tensor:
    """Inputs of a convolution of stride 1 that keeps the size: x [1,C,H,W], flat positions [n] -> [n, C*kernel^2].

    What lies outside of the picture is NaN.
    """
    if kernel == 1:
        return x[0].flatten(1)[:, at].T
    padded = F.pad(x, (1, 1, 1, 1), value=torch.nan)[0]
    width = x.shape[-1]
    rows, columns = at // width, at % width
    taps = [padded[:, rows + dy, columns + dx] for dy in range(3) for dx in range(3)]
    return torch.stack(taps, 2).permute(1, 0, 2).flatten(1)


@dataclass
class Layer:
    """y = S * conv(sign(x - tau), sign(weight)) + B, or conv(x, weight) + B of a float layer (tau and S None).

    weight [O,C,k,k], S, B [O,1,1], tau [C].
    """

    weight: Tensor
    tau: Tensor | None
    factor: Tensor | None
    shift: Tensor


@dataclass(frozen=True)
class Aim:
    """What a layer should give at sampled positions, [n,O]: `want`, less what another layer `gives` there already.

    `share` [n]: what the layer's result is multiplied by before it is added. `relu`: the sum goes through a ReLU, so
    where `want` is below zero any result below zero is as good.
    """

    want: Tensor
    gives: Tensor | None = None
    share: Tensor | None = None
    relu: bool = False

    def target(self, now: Tensor | None) -> Tensor:
        """What to aim at, seen from the layer's result (times the share) of now."""
        other = 0.0 if self.gives is None else self.gives
        if not self.relu or now is None:
            return self.want - other
        return torch.where(self.want > 0, self.want, (now + other).clamp(max=0.0)) - other


_LOOKS = 3  # how often a target behind a ReLU is taken anew
_STEP = 1.2  # a sign's size by the mean |w|: large weights leave errors that small ones make up for
_COLUMNS = 128  # rounded before the others hear of it


class Fitting:
    """Layers on inputs a [n,K], signs and zeros for padding; what they share is computed once.

    `share` [n]: what their results are multiplied by before they are added, None for 1.
    """

    def __init__(self, a: Tensor, share: Tensor | None):
        self.a = a
        self.lines = torch.ones(len(a), 1) if share is None else share[:, None].float()
        self.inputs = a if share is None else a * self.lines
        self.weight = float(self.lines.square().sum())
        self.middle = (self.inputs * self.lines).sum(0) / self.weight
        gram = _gram(self.inputs) - self.weight * torch.outer(self.middle, self.middle)  # the shift is free
        gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-6)
        self.upper = _inverse_root(gram)

    def real(self, aim: Aim) -> tuple[Tensor, Tensor, Tensor]:
        """The best real weights [K,O] and shift [O], and what they give, times the share."""
        now: Tensor | None = None
        for _ in range(_LOOKS if aim.relu else 1):
            target = aim.target(now)
            level = (target * self.lines).sum(0) / self.weight
            right = self.inputs.T @ target - self.weight * torch.outer(self.middle, level)
            best = self.upper.T @ (self.upper @ right)
            shift = level - self.middle @ best
            now = self.inputs @ best + self.lines * shift
        assert now is not None
        return best, shift, now

    def layer(self, aim: Aim, shape: tuple[int, ...], form: str | None) -> tuple[Layer, Tensor]:
        """A layer of weight [O,C,k,k] and what it gives [n,O], times the share. `form`: of its signs, None: float."""
        best, shift, now = self.real(aim)
        if form is None:
            return Layer(best.T.reshape(shape).contiguous(), None, None, shift.view(-1, 1, 1)), now
        weight = _rounded(best.T.contiguous(), self.upper, form)
        weight = (weight / weight.abs().mean(1, keepdim=True).clamp(min=1e-12) * _LATENT).reshape(shape)
        seen = (self.inputs @ v.fake_binarize_weight(weight, form).flatten(1).T).double()
        ones = self.lines.double()
        # the best factor and shift of each channel: two unknowns
        ss, s1, one = (seen * seen).sum(0), (seen * ones).sum(0), (ones * ones).sum()
        det = (ss * one - s1 * s1).clamp(min=1e-9 * one * one)
        for _ in range(_LOOKS if aim.relu else 1):
            wanted = aim.target(now).double()
            st, t1 = (seen * wanted).sum(0), (ones * wanted).sum(0)
            factor, shift = (st * one - s1 * t1) / det, (ss * t1 - s1 * st) / det
            now = (seen * factor + shift * ones).float()
        return Layer(weight, None, factor.view(-1, 1, 1).float(), shift.view(-1, 1, 1).float()), now


def _gram(x: Tensor) -> Tensor:
    """x^T x, of which half is computed."""
    size = x.shape[1]
    step = max(256, -(-size // 8))
    made = x.new_empty(size, size)
    for i in range(0, size, step):
        made[i : i + step, i:] = x[:, i : i + step].T @ x[:, i:]
        made[i + step :, i : i + step] = made[i : i + step, i + step :].T
    return made


def _inverse_root(gram: Tensor) -> Tensor:
    """U, upper triangular, with U^T U = gram^-1."""
    root = torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1)  # gram = R R^T, R upper triangular
    return torch.linalg.solve_triangular(root, torch.eye(len(gram)), upper=True)


def _rounded(weight: Tensor, upper: Tensor, form: str) -> Tensor:
    """Real weights [O,K] with signs chosen one input after the other, each making up for those before it (GPTQ, arXiv
    2210.17323, with one bit, and a little more than a channel's mean size as its step). Sizes stay, so that training
    knows which signs are undecided."""
    size = _STEP * weight.abs().mean(1)
    left = weight.clone()
    chosen = torch.empty_like(weight)
    for first in range(0, weight.shape[1], _COLUMNS):
        last = min(first + _COLUMNS, weight.shape[1])
        errors = torch.empty(len(weight), last - first)
        for j in range(first, last):
            chosen[:, j] = torch.where(left[:, j] < 0, -size, size)
            errors[:, j - first] = (left[:, j] - chosen[:, j]) / upper[j, j]
            left[:, j:last] -= errors[:, j - first, None] * upper[j, j:last]
        left[:, last:] -= errors @ upper[first:last, last:]
    kept = weight.abs().clamp(min=0.1 * float(size.mean())) * chosen.sign()
    if not WEIGHT_FORMS[form].centred:
        return kept
    # a centred form takes the mean off again: sizes that keep every sign
    for _ in range(20):
        mean = kept.mean(1, keepdim=True)
        kept = torch.where((kept - mean).sign() == chosen.sign(), kept, mean + chosen.sign() * 0.1 * size[:, None])
    return kept - kept.mean(1, keepdim=True)


def _signs(x: Tensor, cuts: Tensor, inputs: int) -> Tensor:
    """Signs [n, levels*inputs*k*k] of inputs [n, inputs*k*k] at `cuts` [levels, inputs]; padding (NaN) is 0."""
    per_tap = x.view(len(x), inputs, -1)
    signs = torch.cat([(per_tap >= c.view(1, -1, 1)).float().mul_(2).sub_(1) for c in cuts], 1)
    return signs.masked_fill_(per_tap.isnan().repeat(1, len(cuts), 1), 0.0).flatten(1)


def given_by(layers: Sequence[Layer], x: Tensor, inputs: int, form: str | None) -> Tensor:
    """What layers of `fit_layers` give together on sampled inputs, [n,O]."""
    tau = layers[0].tau
    if tau is None or form is None:
        return torch.nan_to_num(x) @ layers[0].weight.flatten(1).T + layers[0].shift.flatten()
    signs = _signs(x, tau.view(-1, inputs), inputs)
    total = layers[0].shift.flatten()
    for n in layers:
        assert n.factor is not None
        total = total + (signs @ v.fake_binarize_weight(n.weight, form).flatten(1).T) * n.factor.flatten()
    return total


def fit_layers(x: Tensor, cuts: Tensor | None, aim: Aim, inputs: int, form: str | None, bases: int = 1
               ) -> tuple[list[Layer], Tensor]:  # fmt: skip
    """Layers to be added, and what they give together, [n,O], times the share, on sampled inputs x [n, inputs*k*k]
    (padding is NaN), cut at `cuts` [levels, inputs]; without cuts one float layer.

    Each of `bases` is fitted to what those before it leave (ABC-Net, NeurIPS 2017, has them side by side). All read
    the same signs; the first holds the shift.
    """
    taps = x.shape[1] // inputs
    kernel = round(taps**0.5)
    outputs = aim.want.shape[1]
    if form is None or cuts is None:
        layer, given = Fitting(torch.nan_to_num(x), aim.share).layer(aim, (outputs, inputs, kernel, kernel), None)
        return [layer], given
    fitting = Fitting(_signs(x, cuts, inputs), aim.share)
    layers: list[Layer] = []
    there = aim.gives
    total = torch.zeros_like(aim.want)
    for _ in range(bases):
        layer, given = fitting.layer(replace(aim, gives=there), (outputs, inputs * len(cuts), kernel, kernel), form)
        layer.tau = cuts.flatten()
        layers.append(layer)
        total = total + given
        there = total if aim.gives is None else total + aim.gives
    layers[0].shift = sum((n.shift for n in layers[1:]), layers[0].shift)
    return layers, total


class _Sign(torch.autograd.Function):
    """`fake_binarize` whose gradient reaches as far as the input itself does: |x - tau| <= width."""

    @staticmethod
    def forward(ctx, x, tau, width, surrogate):
        ctx.save_for_backward(x, tau, width)
        ctx.surrogate = surrogate
        return v.fake_binarize(x, tau, surrogate)

    @staticmethod
    def backward(ctx, grad):
        x, tau, width = ctx.saved_tensors
        d = ((x - tau.view(1, -1, 1, 1)) / width.view(1, -1, 1, 1)).abs()
        slope = (d <= 1).to(x.dtype) if ctx.surrogate == "clip" else (2 - 2 * d).clamp(min=0)
        dx = grad * slope / width.view(1, -1, 1, 1)
        dtau = -dx.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
        return (dx if ctx.needs_input_grad[0] else None), dtau, None, None


def sign_within(x: Tensor, tau: Tensor, width: Tensor, surrogate: str) -> Tensor:
    """`vqc::fake_binarize` of a picture [N,C,H,W], in units of `width` [C] for its gradient; tau [C].

    The operator's own gradient ends at |x - tau| = 1, whatever the values' spread is. Here it ends at `width`, as if
    the network had been scaled; the decisions are the same.
    """
    return _Sign.apply(x, tau, width, surrogate)

"""Binarization in training form: float tensors of +1 and -1, with the gradients of straight-through estimators.

`fake_binarize` stands to `binarize` as a fake quantizer stands to a quantizer: the same decisions, kept as float32, so
that a network can be trained through them. The pass `lower-binary` turns one into the other. Forms of weights and their
scales are those of the published methods, told in `WEIGHT_FORMS`; surrogate gradients of activations in `SURROGATES`.

sign(0) = +1 everywhere. Sources: XNOR-Net (Rastegari et al., ECCV 2016), DoReFa-Net (Zhou et al., 2016), Bi-Real Net
(Liu et al., ECCV 2018), ReActNet (Liu et al., ECCV 2020), ReCU (Xu et al., ICCV 2021), BiMatting (Qin et al., NeurIPS
2023), BiVM (TPAMI 2025, eq. 1 to 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.library import custom_op

from vqc.ops._common import check, check_dtype

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class WeightForm:
    """How a real weight gives its signs and their scale.

    `centred`: the mean of an output channel is taken off first. `gradient` of the sign: "clip" lets it through where
    the (centred) weight lies within [-1, 1], "identity" everywhere. `scale`: "channel" is mean |w| of each output
    channel, "layer" of the whole layer, "one" is 1. `learns`: the scale has a gradient of its own. `dead`: quantile at
    which ReCU clamps the weights (0: none).
    """

    centred: bool
    gradient: Literal["clip", "identity"]
    scale: Literal["channel", "layer", "one"]
    learns: bool
    dead: float = 0.0


WEIGHT_FORMS = {
    "bnn": WeightForm(False, "clip", "one", False),
    "xnor": WeightForm(False, "clip", "channel", True),
    "dorefa": WeightForm(False, "identity", "layer", False),
    "reactnet": WeightForm(False, "clip", "channel", False),
    "recu": WeightForm(True, "identity", "one", False, 0.99),
    "bimatting": WeightForm(True, "clip", "channel", False),
}

# What stands for the derivative of the sign at x - tau.
SURROGATES = ("clip", "quadratic")


def _clip_gradient(grad: Tensor, d: Tensor) -> Tensor:
    """grad where -1 < d < 1, else 0: the gradient of clip(d, -1, 1)."""
    return torch.ops.aten.hardtanh_backward(grad, d, -1.0, 1.0)


def _quadratic(d: Tensor) -> Tensor:
    """Derivative of Bi-Real Net's piecewise quadratic, which is ReCU's max(0, 2 - 2 |x|) as well."""
    return (2 - 2 * d.abs()).clamp(min=0)


def _check_activation(x: Tensor, tau: Tensor, surrogate: str) -> None:
    check_dtype(x, FLOATS, "fake_binarize", "x")
    check_dtype(tau, FLOATS, "fake_binarize", "tau")
    check(x.ndim >= 2, f"vqc::fake_binarize: x has {x.ndim} axes, it must have 2 at least")
    check(tau.ndim == 1 and tau.shape[0] in (1, x.shape[1]),
          f"vqc::fake_binarize: tau is {list(tau.shape)}, it must hold 1 or {x.shape[1]} values")  # fmt: skip
    check(surrogate in SURROGATES, f"vqc::fake_binarize: surrogate {surrogate!r} is none of {', '.join(SURROGATES)}")


def _beside(tau: Tensor, x: Tensor) -> Tensor:
    return tau.reshape(1, -1, *[1] * (x.ndim - 2)).to(x.dtype)


@custom_op("vqc::fake_binarize", mutates_args=())
def fake_binarize(x: Tensor, tau: Tensor, surrogate: str) -> Tensor:
    """The sign of x - tau as a float: -1 where x < tau, else +1 (so +1 at equality, and for NaN).

    x: f32, bf16 or f16 [N,C,...]; tau: [1] or [C]; surrogate: what stands for the derivative, "clip" (1 where
    |x - tau| < 1) or "quadratic" (Bi-Real, ReCU). Returns x's shape and dtype. tau gets the gradient -dx, summed.
    Raises TypeError on a wrong dtype, ValueError on shapes that do not fit and an unknown surrogate.
    """
    _check_activation(x, tau, surrogate)
    # The sign bit of a difference: far faster on a CPU than a comparison and a choice. NaN counts as 0, as that of
    # inf - inf has to; adding 0 turns -0 into 0.
    return torch.copysign(x.new_ones(()), (x - _beside(tau, x)).nan_to_num_(0.0).add_(0.0))


@fake_binarize.register_fake
def _(x, tau, surrogate):
    _check_activation(x, tau, surrogate)
    return torch.empty_like(x)


def _keep_activation(ctx, inputs, output):
    x, tau, ctx.surrogate = inputs
    ctx.save_for_backward(x, tau)


def _activation_gradient(ctx, grad):
    x, tau = ctx.saved_tensors
    d = x - _beside(tau, x)
    dx = _clip_gradient(grad, d) if ctx.surrogate == "clip" else grad * _quadratic(d)
    dtau = None
    if ctx.needs_input_grad[1]:
        axes = [a for a in range(x.ndim) if a != 1]
        dtau = -dx.sum(axes)
        dtau = (dtau if tau.shape[0] > 1 else dtau.sum(0, keepdim=True)).to(tau.dtype)
    return dx, dtau, None


fake_binarize.register_autograd(_activation_gradient, setup_context=_keep_activation)


# ---- weights -------------------------------------------------------------------------------------------------------


def _form(weight: Tensor, form: str, op: str) -> WeightForm:
    check_dtype(weight, FLOATS, op, "weight")
    check(weight.ndim >= 2, f"vqc::{op}: weight has {weight.ndim} axes, it must have 2 at least")
    check(form in WEIGHT_FORMS, f"vqc::{op}: form {form!r} is none of {', '.join(WEIGHT_FORMS)}")
    return WEIGHT_FORMS[form]


def _centred(weight: Tensor, form: WeightForm) -> Tensor:
    return weight - weight.mean(list(range(1, weight.ndim)), keepdim=True) if form.centred else weight


@custom_op("vqc::fake_binarize_weight", mutates_args=())
def fake_binarize_weight(weight: Tensor, form: str) -> Tensor:
    """The signs of a weight, as floats of +1 and -1, in one of `WEIGHT_FORMS`.

    weight: f32, bf16 or f16 [O,...]. Returns its shape and dtype. A weight whose channel holds one value only is all +1
    when centred. Raises TypeError on a wrong dtype, ValueError on an unknown form.
    """
    return 1 - 2 * (_centred(weight, _form(weight, form, "fake_binarize_weight")) < 0).to(weight.dtype)


@fake_binarize_weight.register_fake
def _(weight, form):
    _form(weight, form, "fake_binarize_weight")
    return torch.empty_like(weight)


def _keep_weight(ctx, inputs, output):
    weight, ctx.form = inputs
    ctx.save_for_backward(weight)


def _weight_gradient(ctx, grad):
    (weight,) = ctx.saved_tensors
    form = WEIGHT_FORMS[ctx.form]
    axes = list(range(1, weight.ndim))
    centred = _centred(weight, form)
    if form.gradient == "clip":
        grad = grad * (centred.abs() <= 1)
    if form.dead:
        unit, limit = _unit(centred, form.dead)
        grad = grad * (unit.abs() <= limit)
    return (grad - grad.mean(axes, keepdim=True) if form.centred else grad), None


def _unit(centred: Tensor, dead: float) -> tuple[Tensor, Tensor]:
    """ReCU's weights at unit Laplace scale (about 2) and the quantile where they are clamped."""
    axes = list(range(1, centred.ndim))
    unit = centred * (2 * math.sqrt(2) / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt())
    return unit, -unit.abs().mean(axes, keepdim=True) * math.log(2 - 2 * dead)


fake_binarize_weight.register_autograd(_weight_gradient, setup_context=_keep_weight)


@custom_op("vqc::binary_scale", mutates_args=())
def binary_scale(weight: Tensor, form: str) -> Tensor:
    """What the signs of a weight are multiplied by: mean |w| as the form says (`WEIGHT_FORMS`), one value a channel.

    weight: f32, bf16 or f16 [O,...]. Returns f32 [O]. Raises as `fake_binarize_weight`.
    """
    how = _form(weight, form, "binary_scale")
    size = _centred(weight, how).float().abs()
    if how.scale == "one":
        return torch.ones(weight.shape[0], device=weight.device)
    if how.scale == "layer":
        return size.mean().expand(weight.shape[0]).contiguous()
    return size.mean(list(range(1, weight.ndim)))


@binary_scale.register_fake
def _(weight, form):
    _form(weight, form, "binary_scale")
    return weight.new_empty((weight.shape[0],), dtype=torch.float32)


def _scale_gradient(ctx, grad):
    (weight,) = ctx.saved_tensors
    form = WEIGHT_FORMS[ctx.form]
    if not form.learns:
        return None, None
    inner = weight[0].numel()
    beside = grad.reshape(-1, *[1] * (weight.ndim - 1))
    return (beside * weight.sign() / inner).to(weight.dtype), None


binary_scale.register_autograd(_scale_gradient, setup_context=_keep_weight)

"""Layers of one-bit networks, for training and for what is shipped: sign, binary convolution, norm.

In training a layer is sign - convolution of signs - scale - batch norm, through the operators of `vqc.ops.fake_binary`.
In eval mode scale and norm are one factor and one shift for each channel, in the order and with the roundings of
`vqc::bconv2d`: `lower-binary` changes no bit. A layer of 32 bits is the float twin: convolution and batch norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqc.ops  # noqa: F401  (registers the operators)

from ..errors import InputError
from ..ops.fake_binary import SURROGATES, WEIGHT_FORMS

v = torch.ops.vqc


@dataclass(frozen=True)
class Binarization:
    """How layers are binarized. Raises InputError for a name that is not known.

    `form`: of the weights, a key of `vqc.ops.fake_binary.WEIGHT_FORMS`; `surrogate`: gradient of an activation's sign;
    `threshold`: one tau for each channel, one for the layer, or "zero". `METHODS` has them by the names of papers; the
    norm's own factor stands for scales that are learned.
    """

    form: str = "bimatting"
    surrogate: str = "clip"
    threshold: Literal["channel", "layer", "zero"] = "channel"

    def __post_init__(self) -> None:
        for what, value, known in (("form", self.form, tuple(WEIGHT_FORMS)), ("surrogate", self.surrogate, SURROGATES),
                                   ("threshold", self.threshold, ("channel", "layer", "zero"))):  # fmt: skip
            if value not in known:
                raise InputError(f"unknown {what} of a binarization {value!r}", way_out="one of " + ", ".join(known))


METHODS: dict[str, Binarization] = {
    "bnn": Binarization("bnn", "clip", "zero"),
    "xnor": Binarization("xnor", "clip", "zero"),
    "dorefa": Binarization("dorefa", "clip", "zero"),
    "reactnet": Binarization("reactnet", "quadratic", "channel"),
    "recu": Binarization("recu", "quadratic", "zero"),
    "bimatting": Binarization("bimatting", "clip", "channel"),
}


class _PReLUFunction(torch.autograd.Function):
    """prelu with a gradient in whole-tensor operations: torch's own takes most of a step's time on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,), (x, slope) = grads, ctx.saved_tensors
        dslope = (grad * x.clamp(max=0)).sum((0, 2, 3), dtype=torch.float32)
        positive = torch.ops.aten.threshold_backward(grad, x, 0)
        return torch.addcmul(positive, grad - positive, slope.view(1, -1, 1, 1).to(grad.dtype)), dslope.to(slope.dtype)


class PReLU(nn.PReLU):
    """nn.PReLU with one slope a channel, for pictures [N,C,H,W]; faster to train, the same otherwise."""

    def __init__(self, channels: int):
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return _PReLUFunction.apply(x, self.weight.to(x.dtype)) if self.training else super().forward(x)


class BinaryConv2d(nn.Module):
    """y = BN(scale * conv(sign(x - tau), sign(w))), or BN(conv(x, w)) with `bits=32`; padding keeps the size.

    x f32 [N,cin,H,W] -> f32 [N,cout,ceil(H/stride),ceil(W/stride)]. Padding is a true zero: it comes after the sign.
    Without `norm`, for pictures of one pixel, a shift that is learned stands in its place.
    Source: BiVM, eq. 3 and 4. Raises InputError unless bits is 1 or 32.
    """

    def __init__(self, cin: int, cout: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1,
                 bits: int = 1, how: Binarization = METHODS["bimatting"], norm: bool = True):  # fmt: skip
        super().__init__()
        if bits not in (1, 32):
            raise InputError(f"a layer of {bits} bits", way_out="1, or 32 for its float twin")
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding = (kernel - 1) // 2 * dilation
        self.bits, self.how = bits, how
        self.weight = nn.Parameter(torch.empty(cout, cin // groups, kernel, kernel))
        nn.init.kaiming_normal_(self.weight)
        self.norm = nn.BatchNorm2d(cout) if norm else None
        self.shift = None if norm else nn.Parameter(torch.zeros(cout))
        self.tau: nn.Parameter | None = None
        if bits == 1 and how.threshold != "zero":
            self.tau = nn.Parameter(torch.zeros(cin if how.threshold == "channel" else 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.bits == 32:
            return self._normed(self._conv(x, self.weight))
        tau = self.tau if self.tau is not None else x.new_zeros(1)
        form = self.how.form
        signs, weight = v.fake_binarize(x, tau, self.how.surrogate), v.fake_binarize_weight(self.weight, form)
        if self.training:  # the scale goes into the weight, which is small, and not behind the convolution
            return self._normed(self._conv(signs, weight * v.binary_scale(self.weight, form).view(-1, 1, 1, 1)))
        factor, shift = self.affine()
        return self._conv(signs, weight) * factor.view(-1, 1, 1) + shift.view(-1, 1, 1)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and shift of each channel [cout] in eval mode: y = sums * factor + shift."""
        scale, norm = v.binary_scale(self.weight, self.how.form), self.norm
        if norm is None:
            assert self.shift is not None
            return scale, self.shift
        assert norm.running_var is not None and norm.running_mean is not None
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return scale * gain, norm.bias - norm.running_mean * gain

    def _normed(self, y: Tensor) -> Tensor:
        if self.norm is not None:
            return self.norm(y)
        assert self.shift is not None
        return y + self.shift.view(-1, 1, 1)

    def _conv(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

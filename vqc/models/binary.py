"""Layers of one-bit networks, for training and for what is shipped: sign, binary convolution, norm.

In training a layer is sign - convolution of signs - scale - batch norm, through the operators of `vqc.ops.fake_binary`.
In eval mode scale and norm are one factor and one shift for each channel, in the order and with the roundings of
`vqc::bconv2d`: `lower-binary` changes no bit. A layer of 32 bits is the float twin: convolution and batch norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        form, norm = self.how.form, self.norm
        signs, weight = v.fake_binarize(x, tau, self.how.surrogate), v.fake_binarize_weight(self.weight, form)
        scale = v.binary_scale(self.weight, form)
        if self.training:  # the factor in the weight, which is small, and not behind the convolution
            return self._normed(self._conv(signs, weight * scale.view(-1, 1, 1, 1)))
        sums = self._conv(signs, weight)
        if norm is None:
            return self._normed(sums * scale.view(-1, 1, 1))
        assert norm.running_var is not None and norm.running_mean is not None
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * gain
        return sums * (scale * gain).view(-1, 1, 1) + shift.view(-1, 1, 1)

    def _normed(self, y: Tensor) -> Tensor:
        if self.norm is not None:
            return self.norm(y)
        assert self.shift is not None
        return y + self.shift.view(-1, 1, 1)

    def _conv(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

"""Binary convolutions: pictures and weights of +1 and -1, exact int32 sums, and the sign that makes such pictures.

The idea and the scale per channel are those of XNOR-Net (Rastegari et al., "XNOR-Net: ImageNet Classification Using
Binary Convolutional Neural Networks", ECCV 2016); BiVM ("BiVM: Accurate Binarized Neural Network for Efficient Video
Matting", Qin et al., 2025) uses them in the encoder and decoder of a matting network. Three points are fixed here:

sign(0) = +1;  padding is a true zero, neither +1 nor -1;  acc is an integer, rounded to float32 at most once.

Groups, transposed binary convolutions and gradients are not there yet.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from vqc.ops._common import check, check_dtype, check_float, conv_shape, integer_sums, scale_and_shift
from vqc.ops._dtypes import F32, I32, I64, S8


def _check_binarize(x: Tensor, tau: Tensor) -> None:
    check_float(x, "binarize", 4)
    check_float(tau, "binarize", 1, "tau")
    check(tau.shape[0] in (1, x.shape[1]),
          f"vqc::binarize: tau is {list(tau.shape)}, it must hold 1 or {x.shape[1]} values")  # fmt: skip


@custom_op("vqc::binarize", mutates_args=())
def binarize(x: Tensor, tau: Tensor) -> Tensor:
    """The sign of x - tau: -1 where x < tau, else +1 (so +1 at equality, and for NaN).

    x: f32 [N,C,H,W]; tau: f32 [1] or [C]. Returns s8 [N,C,H,W].
    Raises TypeError on a wrong dtype, ValueError on shapes that do not fit.
    """
    _check_binarize(x, tau)
    below = x < tau.reshape(1, -1, 1, 1)
    return (1 - 2 * below.to(S8)).contiguous()


@binarize.register_fake
def _(x, tau):
    _check_binarize(x, tau)
    return x.new_empty(x.shape, dtype=S8)


def _shape(op: str, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
           ) -> tuple[int, ...]:  # fmt: skip
    check_dtype(x, (S8,), op, "x")
    check_dtype(weight, (S8,), op, "weight")
    if x.ndim == 4 and weight.ndim == 4:
        check(weight.shape[1] == x.shape[1],
              f"vqc::{op}: weight {list(weight.shape)} does not fit {x.shape[1]} channels (no groups)")  # fmt: skip
    return conv_shape(op, x, weight, stride, padding, dilation, 1)


def _check_channels(op: str, what: str, t: Tensor, dtypes: tuple[torch.dtype, ...], channels: int) -> None:
    check_dtype(t, dtypes, op, what)
    check(tuple(t.shape) == (channels,), f"vqc::{op}: {what} is {list(t.shape)}, not [{channels}]")


def _conv_shape(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
                dilation: list[int]) -> tuple[int, ...]:  # fmt: skip
    shape = _shape("bconv2d", x, weight, stride, padding, dilation)
    _check_channels("bconv2d", "scale", scale, (F32,), shape[1])
    if bias is not None:
        _check_channels("bconv2d", "bias", bias, (F32,), shape[1])
    return shape


def _threshold_shape(x: Tensor, weight: Tensor, threshold: Tensor, flip: Tensor, stride: list[int],
                     padding: list[int], dilation: list[int]) -> tuple[int, ...]:  # fmt: skip
    shape = _shape("bconv2d_threshold", x, weight, stride, padding, dilation)
    _check_channels("bconv2d_threshold", "threshold", threshold, (I32,), shape[1])
    _check_channels("bconv2d_threshold", "flip", flip, (torch.bool,), shape[1])
    return shape


def _sums(op: str, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """The integer sums, as float32 (exact below 2^24)."""
    for what, t in (("x", x), ("weight", weight)):
        check(bool((t.abs() == 1).all()), f"vqc::{op}: {what} holds something else than +1 and -1")
    reach = weight.to(I64).abs().sum((1, 2, 3))
    return integer_sums(lambda a, w: F.conv2d(a, w, None, stride, padding, dilation), x.to(I32), weight, reach, op)


@custom_op("vqc::bconv2d", mutates_args=())
def bconv2d(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
            dilation: list[int]) -> Tensor:  # fmt: skip
    """Binary convolution with a float result.

    acc = sum x * w over the taps inside the picture;  y = (float)acc * scale[o], rounded;  y = y + bias[o], rounded.
    x: s8 [N,C,H,W] and weight: s8 [O,C,kh,kw], all +1 or -1; scale: f32 [O]; bias: f32 [O] or None; stride, padding,
    dilation: two integers each. Returns f32 [N,O,Ho,Wo].
    Raises TypeError on a wrong dtype, ValueError on shapes that do not fit and on values other than +1 and -1.
    """
    _conv_shape(x, weight, scale, bias, stride, padding, dilation)
    return scale_and_shift(_sums("bconv2d", x, weight, stride, padding, dilation), scale, bias, 1)


@bconv2d.register_fake
def _(x, weight, scale, bias, stride, padding, dilation):
    return scale.new_empty(_conv_shape(x, weight, scale, bias, stride, padding, dilation))


@custom_op("vqc::bconv2d_threshold", mutates_args=())
def bconv2d_threshold(x: Tensor, weight: Tensor, threshold: Tensor, flip: Tensor, stride: list[int],
                      padding: list[int], dilation: list[int]) -> Tensor:  # fmt: skip
    """Binary convolution with a binary result: +1 where acc >= threshold[o], else -1; the other way where flip[o].

    x, weight, stride, padding, dilation and acc as for `bconv2d`; threshold: s32 [O]; flip: bool [O].
    Returns s8 [N,O,Ho,Wo]. A norm and a sign behind a convolution fold into such a test.
    Raises as `bconv2d` does.
    """
    _threshold_shape(x, weight, threshold, flip, stride, padding, dilation)
    acc = _sums("bconv2d_threshold", x, weight, stride, padding, dilation).to(I32)
    above = (acc >= threshold.reshape(1, -1, 1, 1)) ^ flip.reshape(1, -1, 1, 1)
    return 2 * above.to(S8) - 1


@bconv2d_threshold.register_fake
def _(x, weight, threshold, flip, stride, padding, dilation):
    return x.new_empty(_threshold_shape(x, weight, threshold, flip, stride, padding, dilation))

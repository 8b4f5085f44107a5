"""Integer convolutions: u8 or s8 pictures, s8 or s16 weights, exact int32 sums.

acc = sum (x - x_zero[c]) * w        a padded tap, or one without a sample, contributes 0
y   = (float)acc * scale[o]          rounded
y   = y + bias[o]                    rounded, when there is a bias
"""

from __future__ import annotations

from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from vqc.ops._common import (
    check_integer_op,
    check_requantize,
    conv_shape,
    conv_transpose_shape,
    integer_sums,
    requantize,
    scale_and_shift,
)
from vqc.ops._dtypes import CONV_WEIGHTS, I32, I64, U8


def _conv_shape(op: str, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor,
                stride: list[int], padding: list[int], dilation: list[int], groups: int
                ) -> tuple[int, ...]:  # fmt: skip
    shape = conv_shape(op, x, weight, stride, padding, dilation, groups)
    check_integer_op(op, x, weight, scale, bias, x_zero, weight.shape[0], (1, x.shape[1]), CONV_WEIGHTS)
    return shape


def _transpose_shape(op: str, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor,
                     stride: list[int], padding: list[int], output_padding: list[int], groups: int,
                     dilation: list[int]) -> tuple[int, ...]:  # fmt: skip
    shape = conv_transpose_shape(op, x, weight, stride, padding, output_padding, groups, dilation)
    check_integer_op(op, x, weight, scale, bias, x_zero, shape[1], (1, x.shape[1]), CONV_WEIGHTS)
    return shape


def _centred(x: Tensor, x_zero: Tensor) -> Tensor:
    """x - zero point as int32, so that padding is a true zero."""
    return x.to(I32) - x_zero.reshape(1, -1, 1, 1)


@custom_op("vqc::qconv2d", mutates_args=())
def qconv2d(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor, stride: list[int],
            padding: list[int], dilation: list[int], groups: int) -> Tensor:  # fmt: skip
    """Integer convolution with a float result.

    x: u8 or s8 [N,C,H,W]; weight: s8 or s16 [O,C/groups,kh,kw]; scale: f32 [O]; bias: f32 [O] or None; x_zero: s32 [1]
    or [C]; stride, padding, dilation: two integers each. Returns f32 [N,O,Ho,Wo].
    Raises TypeError on a wrong dtype, ValueError on shapes that do not fit and on a sum outside int32.
    """
    _conv_shape("qconv2d", x, weight, scale, bias, x_zero, stride, padding, dilation, groups)
    reach = weight.to(I64).abs().sum((1, 2, 3))
    acc = integer_sums(lambda a, w: F.conv2d(a, w, None, stride, padding, dilation, groups), _centred(x, x_zero),
                       weight, reach, "qconv2d")  # fmt: skip
    return scale_and_shift(acc, scale, bias, 1)


@qconv2d.register_fake
def _(x, weight, scale, bias, x_zero, stride, padding, dilation, groups):
    return scale.new_empty(_conv_shape("qconv2d", x, weight, scale, bias, x_zero, stride, padding, dilation, groups))


@custom_op("vqc::qconv2d_requantize", mutates_args=())
def qconv2d_requantize(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor,
                       stride: list[int], padding: list[int], dilation: list[int], groups: int, activation: str,
                       inv_scale: float, zero_point: int) -> Tensor:  # fmt: skip
    """`qconv2d`, an activation ("none" or "relu"), and quantization of the result to u8 [N,O,Ho,Wo].

    q = clamp(rint(act(y) * (float)inv_scale) + zero_point, 0, 255), ties to even.
    """
    check_requantize("qconv2d_requantize", activation, inv_scale, zero_point)
    y = qconv2d(x, weight, scale, bias, x_zero, stride, padding, dilation, groups)
    return requantize(y, activation, inv_scale, zero_point)


@qconv2d_requantize.register_fake
def _(x, weight, scale, bias, x_zero, stride, padding, dilation, groups, activation, inv_scale, zero_point):
    check_requantize("qconv2d_requantize", activation, inv_scale, zero_point)
    shape = _conv_shape("qconv2d_requantize", x, weight, scale, bias, x_zero, stride, padding, dilation, groups)
    return scale.new_empty(shape, dtype=U8)


@custom_op("vqc::qconv_transpose2d", mutates_args=())
def qconv_transpose2d(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor,
                      stride: list[int], padding: list[int], output_padding: list[int], groups: int,
                      dilation: list[int]) -> Tensor:  # fmt: skip
    """Integer transposed convolution with a float result; an output tap without an input sample contributes 0.

    x: u8 or s8 [N,C,H,W]; weight: s8 or s16 [C,O/groups,kh,kw]; scale: f32 [O]; bias: f32 [O] or None; x_zero: s32 [1]
    or [C]. Returns f32 [N,O,Ho,Wo]. Raises as `qconv2d` does.
    """
    _transpose_shape("qconv_transpose2d", x, weight, scale, bias, x_zero, stride, padding, output_padding, groups,
                     dilation)  # fmt: skip
    per_group = weight.to(I64).abs().reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    acc = integer_sums(
        lambda a, w: F.conv_transpose2d(a, w, None, stride, padding, output_padding, groups, dilation),
        _centred(x, x_zero), weight, per_group.sum((1, 3, 4)), "qconv_transpose2d",
    )  # fmt: skip
    return scale_and_shift(acc, scale, bias, 1)


@qconv_transpose2d.register_fake
def _(x, weight, scale, bias, x_zero, stride, padding, output_padding, groups, dilation):
    shape = _transpose_shape("qconv_transpose2d", x, weight, scale, bias, x_zero, stride, padding, output_padding,
                             groups, dilation)  # fmt: skip
    return scale.new_empty(shape)


@custom_op("vqc::qconv_transpose2d_requantize", mutates_args=())
def qconv_transpose2d_requantize(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor,
                                 stride: list[int], padding: list[int], output_padding: list[int], groups: int,
                                 dilation: list[int], activation: str, inv_scale: float, zero_point: int
                                 ) -> Tensor:  # fmt: skip
    """`qconv_transpose2d`, an activation, and quantization of the result to u8, as `qconv2d_requantize`."""
    check_requantize("qconv_transpose2d_requantize", activation, inv_scale, zero_point)
    y = qconv_transpose2d(x, weight, scale, bias, x_zero, stride, padding, output_padding, groups, dilation)
    return requantize(y, activation, inv_scale, zero_point)


@qconv_transpose2d_requantize.register_fake
def _(x, weight, scale, bias, x_zero, stride, padding, output_padding, groups, dilation, activation, inv_scale,
      zero_point):  # fmt: skip
    check_requantize("qconv_transpose2d_requantize", activation, inv_scale, zero_point)
    shape = _transpose_shape("qconv_transpose2d_requantize", x, weight, scale, bias, x_zero, stride, padding,
                             output_padding, groups, dilation)  # fmt: skip
    return scale.new_empty(shape, dtype=U8)

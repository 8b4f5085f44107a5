"""Float convolutions with one order of summing, for the few that stand before a quantizer.

acc = +0;  for ci in C/groups: for kh: for kw: acc = acc + x * w   (product rounded, then sum rounded)
y = acc + bias[o], when there is a bias
"""

from __future__ import annotations

from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from vqc.ops._common import check, check_float, conv_shape, conv_transpose_shape


def _check_floats(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int) -> None:
    check_float(x, op)
    check_float(weight, op, what="weight")
    if bias is not None:
        check_float(bias, op, what="bias")
        check(tuple(bias.shape) == (out_channels,), f"vqc::{op}: bias is {list(bias.shape)}, not [{out_channels}]")


def _conv_check(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
                dilation: list[int], groups: int) -> tuple[int, ...]:  # fmt: skip
    shape = conv_shape("conv2d", x, weight, stride, padding, dilation, groups)
    _check_floats("conv2d", x, weight, bias, shape[1])
    return shape


def _transpose_check(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
                     output_padding: list[int], groups: int, dilation: list[int]) -> tuple[int, ...]:  # fmt: skip
    shape = conv_transpose_shape("conv_transpose2d", x, weight, stride, padding, output_padding, groups, dilation)
    _check_floats("conv_transpose2d", x, weight, bias, shape[1])
    return shape


def _with_bias(acc: Tensor, bias: Tensor | None) -> Tensor:
    return acc if bias is None else acc + bias.view(1, -1, 1, 1)


@custom_op("vqc::conv2d", mutates_args=())
def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
           dilation: list[int], groups: int) -> Tensor:  # fmt: skip
    """Convolution of x f32 [N,C,H,W] with weight f32 [O,C/groups,kh,kw] in the module's order -> f32 [N,O,Ho,Wo].

    A padded tap is x = 0. Raises TypeError on a wrong dtype, ValueError on shapes that do not fit.
    """
    n, o, ho, wo = _conv_check(x, weight, bias, stride, padding, dilation, groups)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    x = x.reshape(n, groups, 1, x.shape[1] // groups, *x.shape[2:])
    taps = weight.reshape(1, groups, o // groups, *weight.shape[1:], 1, 1)
    acc = x.new_zeros((n, groups, o // groups, ho, wo))
    for ci in range(weight.shape[1]):
        for i in range(weight.shape[2]):
            rows = slice(i * dilation[0], i * dilation[0] + (ho - 1) * stride[0] + 1, stride[0])
            for j in range(weight.shape[3]):
                cols = slice(j * dilation[1], j * dilation[1] + (wo - 1) * stride[1] + 1, stride[1])
                acc += x[:, :, :, ci, rows, cols] * taps[:, :, :, ci, i, j]
    return _with_bias(acc.reshape(n, o, ho, wo), bias)


@conv2d.register_fake
def _(x, weight, bias, stride, padding, dilation, groups):
    return x.new_empty(_conv_check(x, weight, bias, stride, padding, dilation, groups))


@custom_op("vqc::conv_transpose2d", mutates_args=())
def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
                     output_padding: list[int], groups: int, dilation: list[int]) -> Tensor:  # fmt: skip
    """Transposed convolution of x f32 [N,C,H,W] with weight f32 [C,O/groups,kh,kw] -> f32 [N,O,Ho,Wo].

    Every output sums its taps in the module's order; a tap that hits no input sample is skipped.
    """
    n, o, ho, wo = _transpose_check(x, weight, bias, stride, padding, output_padding, groups, dilation)
    h, w = x.shape[2:]
    kh, kw = weight.shape[2:]
    x = x.reshape(n, groups, 1, x.shape[1] // groups, h, w)
    taps = weight.reshape(1, groups, weight.shape[0] // groups, o // groups, kh, kw, 1, 1)
    # Each tap adds at most once to an output, so scattering tap after tap keeps the order of gathering.
    full = x.new_zeros((n, groups, o // groups, ho + 2 * padding[0], wo + 2 * padding[1]))
    for ci in range(x.shape[3]):
        for i in range(kh):
            rows = slice(i * dilation[0], i * dilation[0] + (h - 1) * stride[0] + 1, stride[0])
            for j in range(kw):
                cols = slice(j * dilation[1], j * dilation[1] + (w - 1) * stride[1] + 1, stride[1])
                full[..., rows, cols] += x[:, :, :, ci] * taps[:, :, ci, :, i, j]
    acc = full[..., padding[0] : padding[0] + ho, padding[1] : padding[1] + wo]
    return _with_bias(acc.reshape(n, o, ho, wo), bias).contiguous()


@conv_transpose2d.register_fake
def _(x, weight, bias, stride, padding, output_padding, groups, dilation):
    return x.new_empty(_transpose_check(x, weight, bias, stride, padding, output_padding, groups, dilation))

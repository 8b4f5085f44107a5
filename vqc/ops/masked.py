"""Convolutions under a spatial mask: computed where the mask is true, a constant elsewhere.

The mask is one boolean plane for all output channels, [N,1,Ho,Wo], and speaks of outputs: a kept position has the value
it has without a mask, whatever the mask says of its neighbours. Such masks come from the network itself. BiVM (TPAMI
2025, arXiv 2507.04456, eq. 14 to 17; its ancestor BiMatting, NeurIPS 2023) finds the band around a matte's edges at the
lowest resolution and computes the 3x3 branches of its decoder there alone, beside dense 1x1 branches. SBNet (Ren et
al., CVPR 2018, arXiv 1801.02108) gathers active tiles, convolves them and scatters the result.

Integers are exact as everywhere. The float sums of `masked_conv2d` may be added in any order, as those of aten.conv2d.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from vqc.ops._common import check, check_dtype, check_float, check_integer_op, check_requantize, conv_shape
from vqc.ops._dtypes import CONV_WEIGHTS, U8
from vqc.ops.binary import bconv2d
from vqc.ops.conv import qconv2d, qconv2d_requantize


def check_mask(op: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless the mask is boolean and fits an output of this shape: TypeError or ValueError."""
    check_dtype(mask, (torch.bool,), op, "mask")
    want = (shape[0], 1, *shape[2:])
    check(tuple(mask.shape) == want, f"vqc::{op}: mask is {list(mask.shape)}, not {list(want)}")


def keep(y: Tensor, mask: Tensor, inactive: int = 0) -> Tensor:
    """`y` where the mask is true, the inactive value elsewhere."""
    return torch.where(mask, y, torch.full((), inactive, dtype=y.dtype, device=y.device)).contiguous()


def _float_shape(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, stride: list[int], padding: list[int],
                 dilation: list[int], groups: int) -> tuple[int, ...]:  # fmt: skip
    op = "masked_conv2d"
    shape = conv_shape(op, x, weight, stride, padding, dilation, groups)
    for what, t in (("x", x), ("weight", weight), ("bias", bias)):
        if t is not None:
            check_float(t, op, what=what)
    if bias is not None:
        check(tuple(bias.shape) == shape[1:2], f"vqc::{op}: bias is {list(bias.shape)}, not [{shape[1]}]")
    check_mask(op, mask, shape)
    return shape


@custom_op("vqc::masked_conv2d", mutates_args=())
def masked_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, stride: list[int], padding: list[int],
                  dilation: list[int], groups: int) -> Tensor:  # fmt: skip
    """aten.conv2d where `mask` is true, exactly +0 elsewhere.

    x: f32 [N,C,H,W]; weight: f32 [O,C/groups,kh,kw]; bias: f32 [O] or None; mask: bool [N,1,Ho,Wo]; stride, padding,
    dilation: two integers each. Returns f32 [N,O,Ho,Wo]. Backends may add the products in any order and contract them.
    Raises TypeError on a wrong dtype, ValueError on shapes that do not fit.
    """
    _float_shape(x, weight, bias, mask, stride, padding, dilation, groups)
    return keep(F.conv2d(x, weight, bias, stride, padding, dilation, groups), mask)


@masked_conv2d.register_fake
def _(x, weight, bias, mask, stride, padding, dilation, groups):
    return x.new_empty(_float_shape(x, weight, bias, mask, stride, padding, dilation, groups))


def _integer_shape(op: str, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor, mask: Tensor,
                   stride: list[int], padding: list[int], dilation: list[int], groups: int
                   ) -> tuple[int, ...]:  # fmt: skip
    shape = conv_shape(op, x, weight, stride, padding, dilation, groups)
    check_integer_op(op, x, weight, scale, bias, x_zero, weight.shape[0], (1, x.shape[1]), CONV_WEIGHTS)
    check_mask(op, mask, shape)
    return shape


@custom_op("vqc::masked_qconv2d", mutates_args=())
def masked_qconv2d(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor, mask: Tensor,
                   stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Tensor:  # fmt: skip
    """`qconv2d` where `mask` is true, exactly +0 elsewhere.

    mask: bool [N,1,Ho,Wo]; the other arguments, the result and the errors are those of `qconv2d`.
    """
    _integer_shape("masked_qconv2d", x, weight, scale, bias, x_zero, mask, stride, padding, dilation, groups)
    return keep(qconv2d(x, weight, scale, bias, x_zero, stride, padding, dilation, groups), mask)


@masked_qconv2d.register_fake
def _(x, weight, scale, bias, x_zero, mask, stride, padding, dilation, groups):
    shape = _integer_shape("masked_qconv2d", x, weight, scale, bias, x_zero, mask, stride, padding, dilation, groups)
    return scale.new_empty(shape)


@custom_op("vqc::masked_qconv2d_requantize", mutates_args=())
def masked_qconv2d_requantize(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor,
                              mask: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int,
                              activation: str, inv_scale: float, zero_point: int) -> Tensor:  # fmt: skip
    """`qconv2d_requantize` where `mask` is true, the zero point (which stands for 0) elsewhere.

    mask: bool [N,1,Ho,Wo]; the other arguments, the result and the errors are those of `qconv2d_requantize`.
    """
    op = "masked_qconv2d_requantize"
    _integer_shape(op, x, weight, scale, bias, x_zero, mask, stride, padding, dilation, groups)
    check_requantize(op, activation, inv_scale, zero_point)
    y = qconv2d_requantize(x, weight, scale, bias, x_zero, stride, padding, dilation, groups, activation, inv_scale,
                           zero_point)  # fmt: skip
    return keep(y, mask, zero_point)


@masked_qconv2d_requantize.register_fake
def _(x, weight, scale, bias, x_zero, mask, stride, padding, dilation, groups, activation, inv_scale, zero_point):
    op = "masked_qconv2d_requantize"
    shape = _integer_shape(op, x, weight, scale, bias, x_zero, mask, stride, padding, dilation, groups)
    check_requantize(op, activation, inv_scale, zero_point)
    return scale.new_empty(shape, dtype=U8)


def _binary_shape(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, stride: list[int],
                  padding: list[int], dilation: list[int]) -> tuple[int, ...]:  # fmt: skip
    """The dense operator's own checks and shape, from its meta form."""
    tensors = [None if t is None else t.to("meta") for t in (x, weight, scale, bias)]
    return tuple(bconv2d(*tensors, stride, padding, dilation).shape)


@custom_op("vqc::masked_bconv2d", mutates_args=())
def masked_bconv2d(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, mask: Tensor, stride: list[int],
                   padding: list[int], dilation: list[int]) -> Tensor:  # fmt: skip
    """`bconv2d` where `mask` is true, exactly +0 elsewhere.

    mask: bool [N,1,Ho,Wo]; the other arguments, the result and the errors are those of `bconv2d`.
    """
    check_mask("masked_bconv2d", mask, _binary_shape(x, weight, scale, bias, stride, padding, dilation))
    return keep(bconv2d(x, weight, scale, bias, stride, padding, dilation), mask)


@masked_bconv2d.register_fake
def _(x, weight, scale, bias, mask, stride, padding, dilation):
    shape = _binary_shape(x, weight, scale, bias, stride, padding, dilation)
    check_mask("masked_bconv2d", mask, shape)
    return scale.new_empty(shape)

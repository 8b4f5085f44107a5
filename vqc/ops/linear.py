"""Integer linear layers: acc = sum (x - x_zero) * w exact in int32, y = (float)acc * scale[o], then + bias[o]."""

from __future__ import annotations

from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from vqc.ops._common import check, check_integer_op, check_requantize, integer_sums, requantize, scale_and_shift
from vqc.ops._dtypes import I32, I64, LINEAR_WEIGHTS, U8


def _shape(op: str, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor) -> tuple[int, ...]:
    check(x.ndim >= 1 and weight.ndim == 2 and weight.shape[1] == x.shape[-1],
          f"vqc::{op}: weight {list(weight.shape)} does not fit x {list(x.shape)}")  # fmt: skip
    check_integer_op(op, x, weight, scale, bias, x_zero, weight.shape[0], (1,), LINEAR_WEIGHTS)
    return (*x.shape[:-1], weight.shape[0])


@custom_op("vqc::qlinear", mutates_args=())
def qlinear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor) -> Tensor:
    """Integer linear layer with a float result.

    x: u8 or s8 [...,K]; weight: s8 [O,K]; scale: f32 [O]; bias: f32 [O] or None; x_zero: s32 [1]. Returns f32 [...,O].
    Raises TypeError on a wrong dtype, ValueError on shapes that do not fit and on a sum outside int32.
    """
    shape = _shape("qlinear", x, weight, scale, bias, x_zero)
    rows = x.reshape(-1, x.shape[-1]).to(I32) - x_zero
    acc = integer_sums(F.linear, rows, weight, weight.to(I64).abs().sum(1), "qlinear")
    return scale_and_shift(acc, scale, bias, 1).reshape(shape)


@qlinear.register_fake
def _(x, weight, scale, bias, x_zero):
    return scale.new_empty(_shape("qlinear", x, weight, scale, bias, x_zero))


@custom_op("vqc::qlinear_requantize", mutates_args=())
def qlinear_requantize(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor,
                       activation: str, inv_scale: float, zero_point: int) -> Tensor:  # fmt: skip
    """`qlinear`, an activation ("none" or "relu"), and quantization of the result to u8 [...,O]."""
    check_requantize("qlinear_requantize", activation, inv_scale, zero_point)
    return requantize(qlinear(x, weight, scale, bias, x_zero), activation, inv_scale, zero_point)


@qlinear_requantize.register_fake
def _(x, weight, scale, bias, x_zero, activation, inv_scale, zero_point):
    check_requantize("qlinear_requantize", activation, inv_scale, zero_point)
    return scale.new_empty(_shape("qlinear_requantize", x, weight, scale, bias, x_zero), dtype=U8)

"""What the operators share: checks, output sizes, exact integer sums and the one requantization."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOAT_EXACT = 2**24  # integers below this have a float32 each
BF16_EXACT = 2**8  # ... and below this a bfloat16 each, so a matmul engine in a reduced mode still keeps them
ACC_LIMIT = 2**31
ACTIVATIONS = ("none", "relu")
X86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "i386")


def check(ok: bool, message: str) -> None:
    """Raise ValueError with this message unless `ok`."""
    if not ok:
        raise ValueError(message)


def check_dtype(x: Tensor, allowed: Sequence[torch.dtype], op: str, what: str) -> None:
    """Raise TypeError unless the tensor has one of these dtypes."""
    if x.dtype not in allowed:
        names = " or ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"vqc::{op}: {what} is {str(x.dtype).removeprefix('torch.')}, it must be {names}")


def check_float(x: Tensor, op: str, ndim: int | None = None, what: str = "x") -> None:
    """Raise unless the tensor is float32 (and has `ndim` axes)."""
    check_dtype(x, (torch.float32,), op, what)
    if ndim is not None:
        check(x.ndim == ndim, f"vqc::{op}: {what} has {x.ndim} axes, it must have {ndim}")


def check_pair(value: Sequence[int], op: str, what: str, least: int) -> None:
    """Raise ValueError unless `value` is two integers of at least `least`."""
    check(len(value) == 2 and all(v >= least for v in value),
          f"vqc::{op}: {what} is {list(value)}, it must be two integers of at least {least}")  # fmt: skip


def conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Output size of a convolution along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv_transpose_size(size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> int:
    """Output size of a transposed convolution along one axis."""
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1


def conv_shape(op: str, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
               dilation: Sequence[int], groups: int) -> tuple[int, ...]:  # fmt: skip
    """[N,O,Ho,Wo] of a convolution of x [N,C,H,W] with weight [O,C/groups,kh,kw]; ValueError when they do not fit."""
    check(x.ndim == 4 and weight.ndim == 4, f"vqc::{op}: x and weight must have 4 axes, not {x.ndim} and {weight.ndim}")
    for what, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        check_pair(value, op, what, least)
    check(groups >= 1 and weight.shape[1] * groups == x.shape[1] and weight.shape[0] % groups == 0,
          f"vqc::{op}: weight {list(weight.shape)} does not fit {x.shape[1]} channels in {groups} groups")  # fmt: skip
    h, w = (conv_size(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    check(h >= 1 and w >= 1, f"vqc::{op}: the kernel is larger than the padded picture {list(x.shape)}")
    return (x.shape[0], weight.shape[0], h, w)


def conv_transpose_shape(op: str, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
                         output_padding: Sequence[int], groups: int, dilation: Sequence[int]
                         ) -> tuple[int, ...]:  # fmt: skip
    """[N,O,Ho,Wo] of a transposed convolution of x [N,C,H,W] with weight [C,O/groups,kh,kw]."""
    check(x.ndim == 4 and weight.ndim == 4, f"vqc::{op}: x and weight must have 4 axes, not {x.ndim} and {weight.ndim}")
    for what, value, least in (("stride", stride, 1), ("padding", padding, 0), ("output_padding", output_padding, 0),
                               ("dilation", dilation, 1)):  # fmt: skip
        check_pair(value, op, what, least)
    check(all(output_padding[i] < max(stride[i], dilation[i]) for i in (0, 1)),
          f"vqc::{op}: output_padding {list(output_padding)} must be below stride or dilation")  # fmt: skip
    check(groups >= 1 and weight.shape[0] == x.shape[1] and weight.shape[0] % groups == 0,
          f"vqc::{op}: weight {list(weight.shape)} does not fit {x.shape[1]} channels in {groups} groups")  # fmt: skip
    h, w = (
        conv_transpose_size(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], output_padding[i], dilation[i])
        for i in (0, 1)
    )
    check(h >= 1 and w >= 1, f"vqc::{op}: the result of {list(x.shape)} would be empty")
    return (x.shape[0], weight.shape[1] * groups, h, w)


def check_integer_op(op: str, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor,
                     out_channels: int, zeros: Sequence[int], weights: Sequence[torch.dtype]) -> None:  # fmt: skip
    """Check dtypes and the small tensors of an integer operator; `zeros` are the lengths x_zero may have."""
    check_dtype(x, (torch.uint8, torch.int8), op, "x")
    check_dtype(weight, weights, op, "weight")
    check_dtype(scale, (torch.float32,), op, "scale")
    check_dtype(x_zero, (torch.int32,), op, "x_zero")
    check(tuple(scale.shape) == (out_channels,), f"vqc::{op}: scale is {list(scale.shape)}, not [{out_channels}]")
    check(x_zero.ndim == 1 and x_zero.shape[0] in zeros,
          f"vqc::{op}: x_zero is {list(x_zero.shape)}, it must hold {' or '.join(map(str, zeros))} values")  # fmt: skip
    if bias is not None:
        check_dtype(bias, (torch.float32,), op, "bias")
        check(tuple(bias.shape) == (out_channels,), f"vqc::{op}: bias is {list(bias.shape)}, not [{out_channels}]")


def integer_sums(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, reach: Tensor, op: str) -> Tensor:
    """`run(x, weight)` on integers, every sum exact, rounded once to float32.

    Parameters: `run`, a float convolution or product without bias; x int32, its zero point already taken off; weight
    s8 or s16; reach int64, for each output channel the sum of |weight| over its taps.
    Float32 engines are used only where no order of summing, and no reduced input precision, can round: small sums of
    small integers on a CPU whose convolutions are plain sums. Else float64, whose error stays far below 1/2.
    Raises ValueError when a sum leaves int32.
    """
    peak = int(x.abs().amax()) if x.numel() else 0
    bound = peak * (int(reach.amax()) if reach.numel() else 0)
    plain = x.device.type == "cpu" and X86 and weight.dtype == torch.int8
    dtype = torch.float32 if plain and peak <= BF16_EXACT and bound < FLOAT_EXACT else torch.float64
    with torch.autocast(x.device.type, enabled=False):  # a user's autocast must not reach in here
        acc = run(x.to(dtype), weight.to(dtype))
    if dtype == torch.float64:
        acc = acc.round()
        if bound >= ACC_LIMIT and acc.numel():
            check(float(acc.abs().amax()) < ACC_LIMIT, f"vqc::{op}: a sum leaves int32: use smaller weights")
    return acc.to(torch.float32).contiguous()


def scale_and_shift(acc: Tensor, scale: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """`acc * scale`, rounded, then `+ bias`, rounded; scale and bias run along `axis`."""
    shape = [1] * acc.ndim
    shape[axis] = -1
    y = acc * scale.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def check_requantize(op: str, activation: str, inv_scale: float, zero_point: int) -> None:
    """Raise ValueError on an unknown activation or parameters outside u8."""
    check(activation in ACTIVATIONS, f"vqc::{op}: activation is {activation!r}, it must be one of {ACTIVATIONS}")
    check(inv_scale > 0, f"vqc::{op}: inv_scale is {inv_scale}, it must be positive")
    check(0 <= zero_point <= 255, f"vqc::{op}: zero_point is {zero_point}, it must lie in 0..255")


def requantize(y: Tensor, activation: str, inv_scale: float, zero_point: int) -> Tensor:
    """f32 -> u8: clamp(rint(act(y) * inv_scale) + zero_point, 0, 255), ties to even; inv_scale as a float32."""
    if activation == "relu":
        y = y.clamp_min(0.0)
    return torch.clamp(torch.round(y * inv_scale) + zero_point, 0, 255).to(torch.uint8)

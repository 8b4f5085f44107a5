"""Averages with one order of summing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from vqc.ops._common import check, check_float, check_pair

LANES = 16  # partial sums of mean_hw: what one 512-bit or four 128-bit registers hold


@custom_op("vqc::mean_hw", mutates_args=())
def mean_hw(x: Tensor) -> Tensor:
    """The mean of every channel: f32 [N,C,H,W] -> [N,C,1,1].

    The H*W values in row-major order, padded with zeros to a multiple of 16, are added to 16 lanes one after another,
    starting from +0; the lanes are added as 8+8, 4+4, 2+2, 1+1; the sum is multiplied by (float)(1.0 / (H*W)).
    """
    _mean_check(x)
    n, c, h, w = x.shape
    values = F.pad(x.reshape(n * c, h * w), (0, -(h * w) % LANES))
    rows = values.view(n * c, -1, LANES).transpose(0, 1).contiguous()
    acc = torch.zeros_like(rows[0])
    for row in rows:
        acc += row
    width = LANES
    while width > 1:
        width //= 2
        acc = acc[:, :width] + acc[:, width:]
    return (acc * (1.0 / (h * w))).reshape(n, c, 1, 1)


def _mean_check(x: Tensor) -> None:
    check_float(x, "mean_hw", 4)
    check(x.shape[2] * x.shape[3] > 0, f"vqc::mean_hw: a channel of {list(x.shape)} is empty")


@mean_hw.register_fake
def _(x):
    _mean_check(x)
    return x.new_empty((x.shape[0], x.shape[1], 1, 1))


def pool_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Output size of a pooling along one axis; in ceil mode the last window must begin before the right padding."""
    span = size + 2 * padding - kernel
    out = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def pool_windows(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool,
                 count_include_pad: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(first, last, count) of every window along one axis, int32: taps first <= i < last are real samples.

    `count` is what this axis contributes to the divisor: the window's part inside the picture, or inside the padded
    picture when `count_include_pad`. The divisor of an output is the product of its two counts.
    """
    out = pool_size(size, kernel, stride, padding, ceil_mode)
    start = np.arange(out) * stride - padding
    end = np.minimum(start + kernel, size + padding)
    first, last = np.maximum(start, 0), np.minimum(end, size)
    count = (end - start) if count_include_pad else (last - first)
    return first.astype(np.int32), last.astype(np.int32), count.astype(np.int32)


def _pool_shape(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool
                ) -> tuple[int, ...]:  # fmt: skip
    check_float(x, "avg_pool2d", 4)
    for what, value, least in (("kernel", kernel, 1), ("stride", stride, 1), ("padding", padding, 0)):
        check_pair(value, "avg_pool2d", what, least)
    check(all(2 * padding[i] <= kernel[i] for i in (0, 1)),
          f"vqc::avg_pool2d: padding {list(padding)} is more than half of kernel {list(kernel)}")  # fmt: skip
    h, w = (pool_size(x.shape[2 + i], kernel[i], stride[i], padding[i], ceil_mode) for i in (0, 1))
    check(h >= 1 and w >= 1, f"vqc::avg_pool2d: the window is larger than the padded picture {list(x.shape)}")
    return (x.shape[0], x.shape[1], h, w)


@custom_op("vqc::avg_pool2d", mutates_args=())
def avg_pool2d(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool,
               count_include_pad: bool) -> Tensor:  # fmt: skip
    """Window averages: f32 [N,C,H,W] -> [N,C,Ho,Wo], sizes as `aten.avg_pool2d`.

    A window's real samples are added in row-major order, starting from the first; the sum is multiplied by
    (float)(1.0 / count), the count as `pool_windows` says.
    """
    n, c, ho, wo = _pool_shape(x, kernel, stride, padding, ceil_mode)
    # x + -0.0 is x for every x, so padding with -0.0 leaves a missing sample out of the sum, bit for bit.
    reach = [max(0, (o - 1) * stride[i] + kernel[i] - padding[i] - x.shape[2 + i]) for i, o in enumerate((ho, wo))]
    padded = F.pad(x, (padding[1], reach[1], padding[0], reach[0]), value=-0.0)
    acc = x.new_full((n, c, ho, wo), -0.0)
    for i in range(kernel[0]):
        rows = slice(i, i + (ho - 1) * stride[0] + 1, stride[0])
        for j in range(kernel[1]):
            acc += padded[:, :, rows, j : j + (wo - 1) * stride[1] + 1 : stride[1]]
    counts = [
        pool_windows(x.shape[2 + i], kernel[i], stride[i], padding[i], ceil_mode, count_include_pad)[2] for i in (0, 1)
    ]
    factors = (1.0 / np.outer(counts[0], counts[1])).astype(np.float32)
    return acc * torch.from_numpy(factors).to(x.device)


@avg_pool2d.register_fake
def _(x, kernel, stride, padding, ceil_mode, count_include_pad):
    return x.new_empty(_pool_shape(x, kernel, stride, padding, ceil_mode))

"""A layer as y = W x: its weight as a matrix, its input as columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from vqc.arguments import bind
from vqc.program import shape_of

aten = torch.ops.aten


class Columns:
    """conv2d, conv_transpose2d or linear as g products of a matrix [R, K] with columns of the input.

    g groups of R outputs; K = inputs of a group x taps. A column holds what one output position sees, zeros of the
    border included. A transposed convolution is the forward one with the kernel turned round over its input with zeros
    between; columns of different phases then have zeros in different places.
    """

    def __init__(self, node: fx.Node):
        self.node = node
        a = bind(node)
        self.transposed = node.target is aten.conv_transpose2d.input
        self.linear = node.target is aten.linear.default
        self.weight_shape = shape_of(a["weight"])
        self.groups = 1 if self.linear else int(a["groups"])
        if self.linear:
            self.outputs, self.inputs, self.taps = self.weight_shape[0], self.weight_shape[1], 1
            return
        kernel = self.weight_shape[2:]
        self.taps = kernel[0] * kernel[1]
        if self.transposed:
            self.outputs, self.inputs = self.weight_shape[1], self.weight_shape[0] // self.groups
        else:
            self.outputs, self.inputs = self.weight_shape[0] // self.groups, self.weight_shape[1]
        self.kernel = (kernel[0], kernel[1])
        self.stride, self.padding, self.dilation = (_pair(a[k]) for k in ("stride", "padding", "dilation"))

    @property
    def width(self) -> int:
        """K."""
        return self.inputs * self.taps

    @property
    def positions(self) -> int:
        """How many columns one step's input has."""
        shape = shape_of(self.node)
        if self.linear:
            return torch.Size(shape[:-1]).numel()
        return shape[-1] * shape[-2] * (shape[0] if len(shape) == 4 else 1)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, or anything of its shape, as [g, R, K]."""
        if self.linear:
            return weight[None]
        if not self.transposed:
            return weight.reshape(self.groups, self.outputs, self.width)
        parts = weight.flip(2, 3).reshape(self.groups, self.inputs, self.outputs, self.taps)
        return parts.transpose(1, 2).reshape(self.groups, self.outputs, self.width)

    def weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        if not self.transposed:
            return matrix.reshape(self.weight_shape)
        parts = matrix.reshape(self.groups, self.outputs, self.inputs, self.taps).transpose(1, 2)
        return parts.reshape(self.weight_shape).flip(2, 3)

    def per_input(self, values: Tensor) -> Tensor:
        """Values for each input channel [C] as [g, K]."""
        return values.view(self.groups, self.inputs).repeat_interleave(self.taps, 1)

    def __call__(self, x: Tensor, at: Tensor) -> Tensor:
        """The columns of input `x` at positions `at` (int64 [n], below `positions`): [g, K, n]."""
        if self.linear:
            return x.reshape(-1, self.width)[at].T[None]
        x = x if x.ndim == 4 else x[None]
        height, width = shape_of(self.node)[-2:]
        stride, (pad_y, pad_x), (gap_y, gap_x) = self.stride, self.padding, self.dilation
        reach_y, reach_x = gap_y * (self.kernel[0] - 1), gap_x * (self.kernel[1] - 1)
        if self.transposed:
            spread = x.new_zeros(*x.shape[:2], (x.shape[2] - 1) * stride[0] + 1, (x.shape[3] - 1) * stride[1] + 1)
            spread[:, :, :: stride[0], :: stride[1]] = x
            x, stride, pad_y, pad_x = spread, (1, 1), reach_y - pad_y, reach_x - pad_x
        below = max(0, (height - 1) * stride[0] + reach_y + 1 - pad_y - x.shape[2])
        right = max(0, (width - 1) * stride[1] + reach_x + 1 - pad_x - x.shape[3])
        x = F.pad(x, (pad_x, right, pad_y, below))
        batch, row, column = at // (height * width), at // width % height, at % width
        rows, line = x.shape[2], x.shape[3]
        corner = (batch * rows + row * stride[0]) * line + column * stride[1]
        taps = (torch.arange(self.kernel[0]) * gap_y * line)[:, None] + torch.arange(self.kernel[1]) * gap_x
        index = (taps.reshape(-1, 1) + corner).reshape(-1)
        found = x.transpose(0, 1).reshape(x.shape[1], -1).index_select(1, index)
        return found.view(self.groups, self.width, len(at))


def _pair(value: int | list[int]) -> tuple[int, int]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (values[0], values[-1])

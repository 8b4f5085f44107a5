"""Two Programs that many tests share: a tiny recurrent one, and one that touches most kernel families."""

from __future__ import annotations

import torch
from c_helpers import aten, chain

import vqc.ops  # noqa: F401  registers vqc::

vops, qd = torch.ops.vqc, torch.ops.quantized_decomposed


def tiny():
    """A recurrent step of two layers."""

    def build(b, x, h):
        y = b.call(aten.conv2d.default, x, torch.full((1, 1, 1, 1), 0.5), None, [1, 1], [0, 0], [1, 1], 1)
        new = b.call(aten.add.Tensor, b.call(aten.mul.Tensor, y, 0.25), h)
        return [b.call(aten.relu.default, new)], [new]

    return chain(build, torch.ones(1, 1, 2, 3), states=[torch.zeros(1, 1, 2, 3)], name="tiny")


def wide(scale: float = 1.0):
    """A program of many kernel families, with floats, integers and two states."""
    g = torch.Generator().manual_seed(1)

    def rand(*shape):
        return torch.randn(*shape, generator=g) * scale

    def build(b, x, h, count):
        y = b.call(
            aten.relu.default, b.call(aten.conv2d.default, x, rand(9, 3, 3, 3), rand(9), [2, 2], [1, 1], [1, 1], 1)
        )
        y = b.call(aten.group_norm.default, y, 3, rand(9), rand(9))
        up = b.call(aten.conv_transpose2d.input, y, rand(9, 4, 3, 3), None, [2, 2], [1, 1], [1, 1])
        q = b.call(qd.quantize_per_tensor.default, up, 0.05, 128, 0, 255, torch.uint8)
        w = torch.randint(-127, 128, (5, 4, 3, 3), generator=g).to(torch.int8)
        small = torch.full((5,), 2e-4)
        z = b.call(
            vops.qconv2d.default,
            q,
            w,
            small,
            rand(5),
            torch.tensor([128], dtype=torch.int32),
            [1, 1],
            [1, 1],
            [1, 1],
            1,
        )
        wt = torch.randint(-127, 128, (4, 2, 3, 3), generator=g).to(torch.int8)
        t = b.call(
            vops.qconv_transpose2d.default,
            q,
            wt,
            torch.full((2,), 1e-4),
            None,
            torch.tensor([128], dtype=torch.int32),
            [2, 2],
            [1, 1],
            [1, 1],
            1,
            [1, 1],
        )
        t = b.call(vops.resize_bilinear.default, t, 10, 14, False, None, None)
        both = b.call(aten.cat.default, [z, t, h], 1)
        e = b.call(vops.conv2d.default, both, rand(2, 8, 1, 3) * 0.1, rand(2), [1, 1], [0, 1], [1, 1], 1)
        grid = b.call(aten.tanh.default, b.call(aten.permute.default, e, [0, 2, 3, 1]))
        moved = b.call(aten.grid_sampler_2d.default, both, grid, 0, 1, False)
        pooled = b.call(
            aten.max_pool2d.default,
            b.call(vops.avg_pool2d.default, moved, [2, 2], [1, 1], [1, 1], True, False),
            [3, 3],
            [2, 2],
            [1, 1],
        )
        tokens = b.call(aten.permute.default, b.call(aten.reshape.default, pooled, [1, 8, -1]), [0, 2, 1])
        tokens = b.call(aten.linear.default, b.call(aten.layer_norm.default, tokens, [8]), rand(6, 8), rand(6))
        soft = b.call(aten.softmax.int, tokens, -1)
        table = b.call(vops.lut.default, q, torch.rand(256, generator=g))
        shuffled = b.call(aten.reflection_pad2d.default, b.call(aten.pixel_shuffle.default, table, 2), [1, 2, 3, 4])
        lin = b.call(vops.qlinear.default, q, torch.randint(-127, 128, (3, 14), generator=g).to(torch.int8),
                     torch.full((3,), 1e-4), None, torch.tensor([128], dtype=torch.int32))  # fmt: skip
        nxt = b.call(vops.sigmoid.default, b.call(aten.slice.Tensor, z, 1, 0, 1))
        return [soft, shuffled, lin, b.call(aten.sum.dim_IntList, moved, [1])], [nxt, b.call(aten.add.Tensor, count, 1)]

    x = torch.rand(1, 3, 10, 14, generator=g)
    return chain(build, x, states=[torch.full((1, 1, 10, 14), 0.5), torch.tensor([3])], name="wide")

"""A program that runs whole in kernels; imported by tests and by the processes that compile it."""

import torch
from handmade import Hand

import vqc.ops  # noqa: F401  registers vqc::

aten, vops, qd = torch.ops.aten, torch.ops.vqc, torch.ops.quantized_decomposed


def recurrent():
    """Two convolutions of a picture with two states: a sum, and what the picture was a step ago."""
    b = Hand("recurrent", seed=3)
    x, h, old = (
        b.input("x", 1, 5, 6, 8),
        b.state("h", torch.full((1, 16, 6, 8), 0.5)),
        b.state("old", torch.zeros(1, 5, 6, 8)),
    )
    w1 = b.const("w1", torch.randint(-128, 128, (16, 5, 3, 3), generator=b.generator).to(torch.int8))
    w2 = b.const("w2", torch.randint(-8, 8, (4, 16, 1, 1), generator=b.generator).to(torch.int8))
    s1, b1 = b.const("s1", torch.rand(16, generator=b.generator) * 1e-2), b.const("b1", b.rand(16))
    s2, z = b.const("s2", torch.rand(4, generator=b.generator)), b.const("z", torch.tensor([128], dtype=torch.int32))
    mix = b(aten.add.Tensor, b(aten.mul.Tensor, old, 0.5), x)
    q = b(qd.quantize_per_tensor, mix, 0.03, 128, 0, 255, torch.uint8)
    y = b(aten.relu, b(aten.add.Tensor, b(vops.qconv2d, q, w1, s1, b1, z, [1, 1], [1, 1], [1, 1], 1), h))
    u = b(qd.quantize_per_tensor, y, 0.05, 0, 0, 255, torch.uint8)
    zero = b.const("z0", torch.tensor([0], dtype=torch.int32))
    out = b(vops.qconv2d_requantize, u, w2, s2, None, zero, [1, 1], [0, 0], [1, 1], 1, "none", 0.1, 100)
    return b.done(out, states=[y, x])

"""A small network with every kind of layer that can be quantized, frames of clips, and how far programs are apart."""

import torch
from handmade import Hand, aten

from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize
from vqc.pipeline import PassContext
from vqc.program import evaluate, replace


def smooth(shape, count, seed=0):
    """Frames whose neighbours are alike, as those of a camera are."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, *shape[1:-2], shape[-2] // 4 + 2, shape[-1] // 4 + 2, generator=g)
    large = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    return [f[None, :, : shape[-2], : shape[-1]].contiguous() for f in large]


def layers():
    """A picture through a plain, a depthwise, a grouped, a transposed convolution and a linear layer, with a state."""
    h = Hand()
    x, s = h.input("x", 1, 3, 16, 16), h.state("s", torch.zeros(1, 8, 16, 16))
    mean = h.const("mean", torch.tensor([0.48, 0.45, 0.41]).view(1, 3, 1, 1))
    std = h.const("std", torch.tensor([0.23, 0.22, 0.26]).view(1, 3, 1, 1))
    n = h(aten.div.Tensor, h(aten.sub.Tensor, x, mean), std)
    a = h(aten.relu, h(aten.conv2d, n, h.const("w0", h.rand(8, 3, 3, 3)), h.const("b0", h.rand(8)), [1, 1], [1, 1]))
    state = h(aten.add.Tensor, h(aten.mul.Tensor, s, h.const("half", torch.tensor(0.5))), a)
    wide = h(aten.mul.Tensor, state, h.const("spread", torch.logspace(-2, 1, 8).view(1, 8, 1, 1)))
    d = h(aten.conv2d, wide, h.const("w1", h.rand(8, 1, 3, 3)), None, [1, 1], [1, 1], [1, 1], 8)
    g = h(aten.relu, h(aten.conv2d, d, h.const("w2", h.rand(8, 4, 3, 3)), None, [2, 2], [1, 1], [1, 1], 2))
    t = h(aten.relu, h(aten.conv_transpose2d.input, g, h.const("w3", h.rand(8, 24, 4, 4)), None, [2, 2], [1, 1]))
    y = h(aten.linear, h(aten.permute, t, [0, 2, 3, 1]), h.const("w4", h.rand(3, 24)), h.const("b4", h.rand(3)))
    program = h.done(y, states=[state])
    program.inputs = (replace(program.inputs[0], known_range=(0.0, 1.0)),)
    return program


CLIP = [smooth((1, 3, 16, 16), 8, seed=1), smooth((1, 3, 16, 16), 4, seed=2)]
UNSEEN = smooth((1, 3, 16, 16), 6, seed=3)
NAMES = ["conv2d", "conv2d_1", "conv2d_2", "conv_transpose2d", "linear"]


def quantized(bits=4, clip=CLIP, make=layers, **options):
    before = make()
    context = PassContext(calibration=clip, twin=before)
    return before, Quantize(weight_bits=bits, tail="quantized", **options)(Observe()(before, context)), context


def played(program, names=(), frames=UNSEEN):
    program = program.with_outputs(names) if names else program
    state, found = program.initial_state(), []
    for f in frames:
        out = evaluate(program, [f], state)
        state = [out[s.output] for s in program.states]
        found.append(torch.cat([v.flatten() for v in (out[-len(names) :] if names else out[:1])]))
    return torch.cat(found)


def off(program, want, *names):
    return float((played(program, names) - want).square().mean())

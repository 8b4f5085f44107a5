"""Small networks for tests of learning passes, as float Programs, and clips on which neighbours look alike."""

from __future__ import annotations

import torch
from handmade import Hand, aten

import vqc
from vqc.pipeline import rollout
from vqc.program import Program


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    """Pictures in [0, 1] whose neighbouring pixels and frames are alike, as those of a video."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g)
    for _ in range(2):
        x = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    return (x - x.amin()) / (x.amax() - x.amin())


def clip(frames: int, channels: int = 3, size: int = 16, seed: int = 0) -> list[torch.Tensor]:
    """A clip as a list of [1,C,H,W]: one picture that moves."""
    picture = smooth(1, channels, size, size + 2 * frames, seed=seed)
    return [picture[..., 2 * t : 2 * t + size].contiguous() for t in range(frames)]


def conv(h: Hand, name: str, x, outputs: int, inputs: int, kernel: int = 3, **options):
    # weights that differ much within a channel, so that 3 and 4 bits cost something
    w = h.rand(outputs, inputs, kernel, kernel) * (h.rand(outputs, inputs, 1, 1).abs() + 0.2) / (inputs * kernel) ** 0.5
    b = h.rand(outputs) * 0.1
    pad = kernel // 2
    return h(aten.conv2d, x, h.const(f"{name}.w", w), h.const(f"{name}.b", b), [1, 1], [pad, pad])


def recurrent(channels: int = 8, size: int = 16, seed: int = 0) -> Program:
    """conv, relu, a residual block, a gated update of a state, a head: 7 layers, one state."""
    h = Hand("recurrent", seed)
    x = h.input("x", 1, 3, size, size)
    state = h.state("r", torch.zeros(1, channels, size, size))
    a = h(aten.relu, conv(h, "first", x, channels, 3))
    b = conv(h, "second", h(aten.relu, conv(h, "res1", a, channels, channels)), channels, channels)
    a = h(aten.add.Tensor, a, b)
    both = h(aten.cat, [a, state], 1)
    z = h(aten.sigmoid, conv(h, "gate", both, channels, 2 * channels))
    c = h(aten.tanh, conv(h, "candidate", both, channels, 2 * channels))
    kept = h(aten.mul.Tensor, h(aten.rsub.Scalar, z, 1), state)
    new = h(aten.add.Tensor, kept, h(aten.mul.Tensor, z, c))
    d = h(aten.relu, conv(h, "after", new, channels, channels))
    y = conv(h, "head", d, 1, channels, 1)
    return h.done(y, states=[new])


def low_bits(program: Program, clips: list, text: str = "weight_bits=4,weight_method=mse") -> Program:
    """The program with quantize/dequantize pairs."""
    return vqc.apply(program, f"observe,quantize{{{text}}}", calibration=clips)


def error(program: Program, twin: Program, steps: list) -> float:
    """Mean squared error of results and next states over a clip, by the twin's power, each with its own state."""
    got, want = rollout(program, [[s] for s in steps]), rollout(twin, [[s] for s in steps])
    found = []
    for i in range(len(want[0])):
        lost = sum(float((a[i] - b[i]).square().mean()) for a, b in zip(got, want, strict=True))
        found.append(lost / sum(float(b[i].square().mean()) for b in want))
    return sum(found) / len(found)

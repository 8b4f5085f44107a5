"""A small matting network with a state, and clips of a bright disc that moves, for tests of passes of decoders."""

from __future__ import annotations

import torch
from handmade import Hand, aten

from vqc.program import Program

SIZE = 32


def conv(h: Hand, name: str, x, outputs: int, inputs: int, kernel: int = 3, stride: int = 1, groups: int = 1):
    w = h.rand(outputs, inputs // groups, kernel, kernel) * (1.6 / (inputs // groups * kernel * kernel)) ** 0.5
    pad = kernel // 2
    return h(aten.conv2d, x, h.const(f"{name}.weight", w), h.const(f"{name}.bias", h.rand(outputs) * 0.1),
             [stride, stride], [pad, pad], [1, 1], groups)  # fmt: skip


def resized(h: Hand, x, size: int):
    return h(aten.upsample_bilinear2d, x, [size, size], False, 2.0, 2.0)


def matting(seed: int = 0, size: int = SIZE, decoder: bool = True, matte: bool = True) -> Program:
    """Encoder at 1/2 and 1/4, a top at 1/4, then two steps up with the features; a gate with a state at 1/2.

    The matte tells bright from dark: its last layer is chosen for that, so that there is something to keep.
    """
    h = Hand("matting", seed)
    x = h.input("src", 1, 3, size, size)
    r = h.state("r", torch.zeros(1, 4, size // 2, size // 2))
    f1 = h(aten.relu, conv(h, "enc1", x, 8, 3, stride=2))
    top = h(aten.relu, conv(h, "enc2", f1, 12, 8, stride=2))
    if decoder:
        y = h(aten.cat, [resized(h, top, size // 2), f1], 1)
        y = h(aten.relu, conv(h, "up1", y, 8, 20))
        a, b = (h(aten.slice.Tensor, y, 1, 4 * i, 4 * i + 4) for i in range(2))
        both = h(aten.cat, [b, r], 1)
        z = h(aten.sigmoid, conv(h, "gate", both, 4, 8))
        c = h(aten.tanh, conv(h, "new", both, 4, 8))
        kept = h(aten.mul.Tensor, h(aten.rsub.Scalar, z, 1), r)
        state = h(aten.add.Tensor, kept, h(aten.mul.Tensor, z, c))
        y = h(aten.cat, [resized(h, h(aten.cat, [a, state], 1), size), x], 1)
        y = h(aten.relu, conv(h, "out1", y, 8, 11))
    else:
        y, state = conv(h, "out1", x, 8, 3), h(aten.neg, r)
    fgr = conv(h, "fgr", y, 3, 8, 1)
    bright = h(aten.mean.dim, x, [1], True)
    pha = h(aten.add.Tensor, conv(h, "pha", y, 1, 8, 1), h(aten.mul.Scalar, bright, 0.5))
    pha = h(aten.clamp, pha, 0.0, 1.0)
    return h.done(*((fgr, pha) if matte else (fgr,)), states=[state])


def discs(count: int = 2, frames: int = 6, size: int = SIZE, seed: int = 0) -> list[list[torch.Tensor]]:
    """Clips, each a list of [1,3,size,size] in [0,1]."""
    g = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    clips = []
    for _ in range(count):
        where, way, colour = (torch.rand(n, generator=g) for n in (2, 2, 3))
        back = torch.nn.functional.avg_pool2d(torch.rand(1, 3, size, size, generator=g), 5, 1, 2) * 0.5
        clip = []
        for t in range(frames):
            at = (0.3 + 0.4 * where) * size + (way - 0.5) * 3 * t
            far = ((rows - at[0]).square() + (columns - at[1]).square()).sqrt()
            alpha = ((0.28 * size - far) / 2).clamp(0, 1)
            clip.append(back * (1 - alpha) + alpha * (0.5 + 0.5 * colour.view(1, 3, 1, 1)))
        clips.append(clip)
    return clips

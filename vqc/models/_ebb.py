"""The encoder of BiVM: evolvable binarized blocks, whose shortcuts are scaled and span one convolution, a block half or
the whole block.

Source: BiVM (TPAMI 2025, arXiv 2507.04456), eq. 9 to 13 and table V. Its ancestor's encoder (BiMatting, NeurIPS 2023)
is the same with every scale fixed to 1, the cross-layer shortcut in strided blocks only, and no block-wise one.
The published activation is a shift, a PReLU and a shift. Both shifts can be said by what stands beside them (the norm's
own shift, the next threshold), so the PReLU stands alone: the same functions, fewer operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .binary import METHODS, Binarization, BinaryConv2d, PReLU


@dataclass(frozen=True)
class Shortcuts:
    """Which shortcuts an encoder has. `learned`: their scales are, else 1. `cross` and `block`: the ones over a half
    and over the whole of a block ("strided": in strided blocks only). `reach`: c of eq. 13, the scales of those start
    at c * rho, rho uniform in [0, 1]."""

    learned: bool = True
    cross: str = "all"
    block: str = "all"
    reach: float = 1.0


BIVM_SHORTCUTS = Shortcuts()
BIMATTING_SHORTCUTS = Shortcuts(learned=False, cross="strided", block="none")


def map_channels(x: Tensor, cout: int) -> Tensor:
    """M of eq. 10: [N,C,H,W] -> [N,cout,H,W]. Slices of gcd(C, cout) channels are averaged, the mean is repeated."""
    cin = x.shape[1]
    if cin == cout:
        return x
    width = gcd(cin, cout)
    slices = x.split(width, 1)
    mean = slices[0]
    for part in slices[1:]:
        mean = mean + part
    if len(slices) > 1:
        mean = mean * (1 / len(slices))
    return torch.cat([mean] * (cout // width), 1) if cout > width else mean


def halve(x: Tensor) -> Tensor:
    """Average of 2x2 windows; sides round up."""
    return F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)


def _scale(start: float, learned: bool) -> nn.Parameter | None:
    return nn.Parameter(torch.tensor(start)) if learned else None


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


class SubBlock(nn.Module):
    """A 3x3 and a 1x1 binary convolution, each with a shortcut around it (eq. 9)."""

    def __init__(self, cin: int, cout: int, stride: int, dilation: int, bits: int, how: Binarization, cuts: Shortcuts):
        super().__init__()
        self.stride, self.cout = stride, cout
        self.conv3 = BinaryConv2d(cin, cin, 3, stride=stride, dilation=dilation, bits=bits, how=how)
        self.conv1 = BinaryConv2d(cin, cout, 1, bits=bits, how=how)
        self.act3, self.act1 = PReLU(cin), PReLU(cout)
        self.alpha3, self.alpha1 = _scale(1.0, cuts.learned), _scale(1.0, cuts.learned)

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.stride == 1 else halve(x)
        u = self.act3(self.conv3(x) + _scaled(kept, self.alpha3))
        return self.act1(self.conv1(u) + _scaled(map_channels(u, self.cout), self.alpha1))


class Block(nn.Module):
    """Head, middle (it carries the stride) and tail, with the cross-layer and the block-wise shortcut (eq. 11, 12)."""

    def __init__(self, cin: int, wide: int, widest: int, cout: int, stride: int, dilation: int, bits: int,
                 how: Binarization, cuts: Shortcuts):  # fmt: skip
        super().__init__()
        self.stride, self.cout = stride, cout
        self.head = SubBlock(cin, wide, 1, dilation, bits, how, cuts)
        self.middle = SubBlock(wide, widest, stride, dilation, bits, how, cuts)
        self.tail = SubBlock(widest, cout, 1, dilation, bits, how, cuts)
        self.crosses = cuts.cross == "all" or (cuts.cross == "strided" and stride == 2)
        self.spans = cuts.block == "all"
        self.beta = _scale(cuts.reach * float(torch.rand(())), cuts.learned and self.crosses)
        self.gamma = _scale(cuts.reach * float(torch.rand(())), cuts.learned and self.spans)

    def forward(self, x: Tensor) -> Tensor:
        head = self.head(x)
        tail = self.tail(self.middle(head))
        if self.crosses:
            tail = tail + _scaled(self._pooled(map_channels(head, self.cout)), self.beta)
        if self.spans:
            tail = tail + _scaled(map_channels(self._pooled(x), self.cout), self.gamma)
        return tail

    def _pooled(self, x: Tensor) -> Tensor:
        return x if self.stride == 1 else halve(x)


# in, head, middle, tail channels; stride; dilation; whether the result is tapped (table V)
_BLOCKS = ((16, 32, 64, 32, 2, 1, True), (32, 64, 128, 64, 2, 1, False), (64, 64, 128, 64, 1, 1, True),
           (64, 128, 256, 128, 2, 1, False), (128, 128, 256, 128, 1, 2, False))  # fmt: skip
_LAST = ((128, 256), (256, 1024))


def scaled_width(channels: int, width: float) -> int:
    """Channels of a network `width` times as wide, in whole sixteens."""
    return max(16, round(channels * width / 16) * 16)


class EBBEncoder(nn.Module):
    """[N,3,H,W] RGB in [0,1] -> four features at 1/2, 1/4, 1/8, 1/16; `channels` holds their counts.

    At width 1: 16, 32, 64, 1024. The first convolution stays float.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, bits: int = 1, how: Binarization = METHODS["bimatting"], cuts: Shortcuts = BIVM_SHORTCUTS,
                 width: float = 1.0):  # fmt: skip
        super().__init__()
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1), persistent=False)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        stages, taps = [], [16]
        for *widths, stride, dilation, tapped in _BLOCKS:
            cin, wide, widest, cout = (scaled_width(w, width) for w in widths)
            stages.append(Block(cin, wide, widest, cout, stride, dilation, bits, how, cuts))
            if tapped:
                taps.append(cout)
        self.blocks = nn.ModuleList(stages)
        self.last = nn.Sequential(*(SubBlock(scaled_width(a, width), scaled_width(b, width), 1, 1, bits, how, cuts)
                                    for a, b in _LAST))  # fmt: skip
        self.channels = (*taps, scaled_width(_LAST[-1][1], width))

    def forward(self, src: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.stem((src - self.mean) / self.std)
        taps = [x]
        for block, spec in zip(self.blocks, _BLOCKS, strict=True):
            x = block(x)
            if spec[-1]:
                taps.append(x)
        f1, f2, f3 = taps
        return f1, f2, f3, self.last(x)

    def regularizer(self) -> Tensor:
        """Eq. 13: the sum of the squares of the scales of shortcuts that span several convolutions."""
        scales = [s for m in self.modules() if isinstance(m, Block) for s in (m.beta, m.gamma) if s is not None]
        return torch.stack([s.square() for s in scales]).sum() if scales else torch.zeros(())

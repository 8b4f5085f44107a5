"""RVM's own encoder with its convolutions binarized: what BiVM's tables call MBV3, and what its encoder replaces.

Depthwise convolutions are binarized as well. That is where it loses: nine signs make ten different sums.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .binary import Binarization, BinaryConv2d, PReLU
from .rvm import MOBILENET_BLOCKS, InvertedResidualSpec, SqueezeExcitation


class MobileBlock(nn.Module):
    """Expand, depthwise, gate, project, each convolution binary with norm and PReLU; the projection has no PReLU."""

    def __init__(self, spec: InvertedResidualSpec, bits: int, how: Binarization):
        super().__init__()
        stride = 1 if spec.dilation > 1 else spec.stride
        layers: list[nn.Module] = []
        if spec.expanded != spec.cin:
            layers += [BinaryConv2d(spec.cin, spec.expanded, 1, bits=bits, how=how), PReLU(spec.expanded)]
        layers += [BinaryConv2d(spec.expanded, spec.expanded, spec.kernel, stride=stride, dilation=spec.dilation,
                                groups=spec.expanded, bits=bits, how=how), PReLU(spec.expanded)]  # fmt: skip
        if spec.squeeze:
            layers.append(SqueezeExcitation(spec.expanded, spec.squeeze))
        layers.append(BinaryConv2d(spec.expanded, spec.cout, 1, bits=bits, how=how))
        self.block = nn.Sequential(*layers)
        self.residual = spec.stride == 1 and spec.cin == spec.cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class MobileEncoder(nn.Module):
    """[N,3,H,W] RGB in [0,1] -> 16, 24, 40, 960 channels at 1/2, 1/4, 1/8, 1/16. The first convolution stays float."""

    mean: Tensor
    std: Tensor
    channels = (16, 24, 40, 960)

    def __init__(self, bits: int, how: Binarization):
        super().__init__()
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1), persistent=False)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), PReLU(16))
        self.blocks = nn.ModuleList(MobileBlock(spec, bits, how) for spec in MOBILENET_BLOCKS)
        self.last = nn.Sequential(BinaryConv2d(160, 960, 1, bits=bits, how=how), PReLU(960))

    def forward(self, src: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.stem((src - self.mean) / self.std)
        taps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in (0, 2, 5):
                taps.append(x)
        f1, f2, f3 = taps
        return f1, f2, f3, self.last(x)

    def regularizer(self) -> Tensor:
        """Nothing: there are no scaled shortcuts."""
        return torch.zeros(())

"""Convolutions with three rows of taps by Winograd's minimal filtering, F(2, 3) along the height.

Two output rows share four products where a direct convolution makes six (Lavin and Gray, Fast Algorithms for
Convolutional Neural Networks, 2016). vqc_conv_winograd.c has the equations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vqc.backends.c.ir import align
from vqc.backends.c.packing import Geometry, pack_conv

PARTS = 4
LEAST = 8  # channels in and out of a group: below, what stands around the products costs what they save
# [part][row of taps]: what each part multiplies is a sum of rows of taps
TAPS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def suits(geo: Geometry) -> bool:
    """Whether a convolution can be made so, and gains."""
    fits = geo.kernel[0] == 1 and geo.kernel[1] == 3 and geo.stride == (1, 1, 1) and geo.dilation[1] == 1
    plain = not geo.transposed and not geo.pair and geo.size[0] == 1 and geo.padding[0] == 0
    return fits and plain and geo.out[1] >= 2 and min(geo.c, geo.o) // geo.groups >= LEAST


@dataclass(frozen=True)
class PairedRows(Geometry):
    """A convolution's sizes, its output rows taken in pairs."""

    @classmethod
    def of(cls, geo: Geometry) -> PairedRows:
        return cls(**{f.name: getattr(geo, f.name) for f in fields(geo)})

    def packed(self, rows: int) -> int:
        """Bytes of one plane's rows, and of the four parts of all planes."""
        pairs, pitch = -(-rows // 2), self.out[2] + (self.kernel[2] - 1) * self.dilation[2]
        return align(4 * (2 * pairs + 2) * pitch) + 4 * PARTS * self.planes * pairs * pitch

    def scratch(self, rows: int) -> int:
        """Bytes of scratch of one worker."""
        return align(4 * self.kernel[2]) + align(self.packed(rows))


def pack(geo: Geometry, weight: Tensor) -> Tensor:
    """Weights f32 [O,C/groups,1,3,kw] as vqc_conv_winograd.h has them; sums of rows are rounded once."""
    parts = torch.einsum("pk,ocdkx->pocdx", torch.tensor(TAPS, dtype=torch.float64), weight.double()).float()
    return torch.cat([pack_conv(p.unsqueeze(3), geo.groups) for p in parts])

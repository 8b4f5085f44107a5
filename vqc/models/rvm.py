"""Robust Video Matting, MobileNetV3 variant, in plain PyTorch.

Source: Lin, Yang, Saleemi, Sengupta, "Robust High-Resolution Video Matting with Temporal Guidance", WACV 2022.
Modules carry the attribute names of the published checkpoint, so its state dict loads as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ._recurrence import recur
from ._refine import DeepGuidedFilter, FastGuidedFilter

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class InvertedResidualSpec(NamedTuple):
    """One inverted residual of MobileNetV3-Large (Howard et al. 2019, table 1), its last stage dilated."""

    cin: int
    kernel: int
    expanded: int
    cout: int
    squeeze: int  # 0: no squeeze-and-excitation
    act: type[nn.Module]
    stride: int  # as configured; a strided dilated block runs at stride 1
    dilation: int


_RE, _HS = nn.ReLU, nn.Hardswish
MOBILENET_BLOCKS = (
    InvertedResidualSpec(16, 3, 16, 16, 0, _RE, 1, 1),
    InvertedResidualSpec(16, 3, 64, 24, 0, _RE, 2, 1),
    InvertedResidualSpec(24, 3, 72, 24, 0, _RE, 1, 1),
    InvertedResidualSpec(24, 5, 72, 40, 24, _RE, 2, 1),
    InvertedResidualSpec(40, 5, 120, 40, 32, _RE, 1, 1),
    InvertedResidualSpec(40, 5, 120, 40, 32, _RE, 1, 1),
    InvertedResidualSpec(40, 3, 240, 80, 0, _HS, 2, 1),
    InvertedResidualSpec(80, 3, 200, 80, 0, _HS, 1, 1),
    InvertedResidualSpec(80, 3, 184, 80, 0, _HS, 1, 1),
    InvertedResidualSpec(80, 3, 184, 80, 0, _HS, 1, 1),
    InvertedResidualSpec(80, 3, 480, 112, 120, _HS, 1, 1),
    InvertedResidualSpec(112, 3, 672, 112, 168, _HS, 1, 1),
    InvertedResidualSpec(112, 5, 672, 160, 168, _HS, 2, 2),
    InvertedResidualSpec(160, 5, 960, 160, 240, _HS, 1, 2),
    InvertedResidualSpec(160, 5, 960, 160, 240, _HS, 1, 2),
)


def _conv_bn(
    cin: int,
    cout: int,
    kernel: int,
    act: type[nn.Module] | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    eps: float = 1e-3,
    momentum: float = 0.01,
) -> nn.Sequential:
    pad = (kernel - 1) // 2 * dilation
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, pad, dilation, groups, bias=False),
        nn.BatchNorm2d(cout, eps=eps, momentum=momentum),
    ]
    if act is not None:
        layers.append(act())
    return nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Channel gate of MobileNetV3: mean over the picture, two 1x1 convolutions, hard sigmoid, product."""

    def __init__(self, channels: int, squeeze: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.fc2(gate))


class InvertedResidual(nn.Module):
    """Expand, depthwise, gate, project; added to the input where stride and width allow."""

    def __init__(self, spec: InvertedResidualSpec):
        super().__init__()
        stride = 1 if spec.dilation > 1 else spec.stride
        layers: list[nn.Module] = []
        if spec.expanded != spec.cin:
            layers.append(_conv_bn(spec.cin, spec.expanded, 1, spec.act))
        layers.append(
            _conv_bn(
                spec.expanded,
                spec.expanded,
                spec.kernel,
                spec.act,
                stride=stride,
                dilation=spec.dilation,
                groups=spec.expanded,
            )
        )
        if spec.squeeze:
            layers.append(SqueezeExcitation(spec.expanded, spec.squeeze))
        layers.append(_conv_bn(spec.expanded, spec.cout, 1, None))
        self.block = nn.Sequential(*layers)
        self.residual = spec.stride == 1 and spec.cin == spec.cout  # decided by the configured stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        return x + out if self.residual else out


class Encoder(nn.Module):
    """MobileNetV3-Large up to its last convolution: [N,3,H,W] -> 16, 24, 40, 960 channels at 1/2, 1/4, 1/8, 1/16."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        stem = _conv_bn(3, 16, 3, _HS, stride=2)
        last = _conv_bn(160, 960, 1, _HS)
        self.features = nn.Sequential(stem, *(InvertedResidual(spec) for spec in MOBILENET_BLOCKS), last)

    def forward(self, src: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = (src - self.mean) / self.std
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in (1, 3, 6, 16):
                taps.append(x)
        f1, f2, f3, f4 = taps
        return f1, f2, f3, f4


class LRASPP(nn.Module):
    """Lite reduced atrous pyramid (MobileNetV3 paper, section 6.4): one 1x1 branch, gated by the picture's mean."""

    def __init__(self, cin: int = 960, cout: int = 128):
        super().__init__()
        self.aspp1 = _conv_bn(cin, cout, 1, nn.ReLU, eps=1e-5, momentum=0.1)
        self.aspp2 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(cin, cout, 1, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.aspp1(x) * self.aspp2(x)


class ConvGRU(nn.Module):
    """Convolutional gated recurrent unit; the state is a convex mix of tanh values, so it never leaves (-1, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.ih = nn.Sequential(nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), nn.Sigmoid())
        self.hh = nn.Sequential(nn.Conv2d(2 * channels, channels, 3, padding=1), nn.Tanh())

    def step(self, h: Tensor, x: Tensor) -> Tensor:
        """One frame: state and input [B,C,h,w] -> next state."""
        reset, update = self.ih(torch.cat((x, h), 1)).split(self.channels, 1)
        candidate = self.hh(torch.cat((x, reset * h), 1))
        return (1 - update) * h + update * candidate

    def forward(self, x: Tensor, h: Tensor | None, frames: int | None) -> tuple[Tensor, Tensor]:
        """Input [B*T,C,h,w] and state [B,C,h,w] -> (every state, folded as the input; the last one).

        `frames` is T, or None for one frame. No state means zeros.
        """
        if frames is None:
            h = self.step(torch.zeros_like(x) if h is None else h, x)
            return h, h
        clip = x.unflatten(0, (-1, frames))
        if h is None:
            h = torch.zeros_like(clip[:, 0])
        states, last = recur(self.step, h, clip)
        return states.flatten(0, 1), last


class Bottleneck(nn.Module):
    """The recurrence at 1/16: the second half of the channels goes through a ConvGRU."""

    def __init__(self, channels: int):
        super().__init__()
        self.width = channels // 2
        self.gru = ConvGRU(self.width)

    def forward(self, x: Tensor, h: Tensor | None, frames: int | None) -> tuple[Tensor, Tensor]:
        kept, seen = x.split(self.width, 1)
        seen, h = self.gru(seen, h, frames)
        return torch.cat((kept, seen), 1), h


def _double(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear x2, cut to the size of `like` (one less where that side is odd)."""
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return x[..., : like.shape[-2], : like.shape[-1]]


class UpBlock(nn.Module):
    """One scale of the decoder: up x2, joined by feature and small picture, convolution, half through a ConvGRU."""

    def __init__(self, cin: int, skip: int, cout: int):
        super().__init__()
        self.width = cout // 2
        self.conv = _conv_bn(cin + skip + 3, cout, 3, nn.ReLU, eps=1e-5, momentum=0.1)
        self.gru = ConvGRU(self.width)

    def forward(
        self, x: Tensor, skip: Tensor, image: Tensor, h: Tensor | None, frames: int | None
    ) -> tuple[Tensor, Tensor]:
        x = self.conv(torch.cat((_double(x, image), skip, image), 1))
        kept, seen = x.split(self.width, 1)
        seen, h = self.gru(seen, h, frames)
        return torch.cat((kept, seen), 1), h


class OutBlock(nn.Module):
    """Back to full size: up x2, joined by the picture, two convolutions."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        first = _conv_bn(cin + 3, cout, 3, nn.ReLU, eps=1e-5, momentum=0.1)
        second = _conv_bn(cout, cout, 3, nn.ReLU, eps=1e-5, momentum=0.1)
        self.conv = nn.Sequential(*first, *second)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return self.conv(torch.cat((_double(x, image), image), 1))


class Decoder(nn.Module):
    """The recurrent decoder, from 1/16 back to full size."""

    def __init__(self) -> None:
        super().__init__()
        self.decode4 = Bottleneck(128)
        self.decode3 = UpBlock(128, 40, 80)
        self.decode2 = UpBlock(80, 24, 40)
        self.decode1 = UpBlock(40, 16, 32)
        self.decode0 = OutBlock(32, 16)

    def forward(
        self,
        image: Tensor,
        features: tuple[Tensor, Tensor, Tensor, Tensor],
        states: tuple[Tensor | None, ...],
        frames: int | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        f1, f2, f3, f4 = features
        s1 = _halve(image)
        s2 = _halve(s1)
        s3 = _halve(s2)
        x, r4 = self.decode4(f4, states[3], frames)
        x, r3 = self.decode3(x, f3, s3, states[2], frames)
        x, r2 = self.decode2(x, f2, s2, states[1], frames)
        x, r1 = self.decode1(x, f1, s1, states[0], frames)
        return self.decode0(x, image), r1, r2, r3, r4


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)


class Projection(nn.Module):
    """A 1x1 convolution under the name the checkpoint gives it."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class RVM(nn.Module):
    """Recurrent matting: picture and four states in, foreground, alpha and the next states out.

    `refiner` brings the result back to full size where `downsample_ratio` is not 1: "deep_guided_filter" (learned,
    740 convolution weights) or "fast_guided_filter" (no weights). `segmentation` adds the head that is used in training
    only. With both defaults the network has 3,748,633 parameters. Raises InputError for an unknown refiner.
    """

    def __init__(self, refiner: str = "deep_guided_filter", segmentation: bool = True):
        super().__init__()
        if refiner not in REFINERS:
            raise InputError(f"unknown refiner {refiner!r}", way_out="one of " + ", ".join(REFINERS))
        self.backbone = Encoder()
        self.aspp = LRASPP()
        self.decoder = Decoder()
        self.project_mat = Projection(16, 4)
        self.project_seg = Projection(16, 1) if segmentation else None
        self.refiner = REFINERS[refiner]()

    def _decode(
        self, src: Tensor, states: tuple[Tensor | None, ...], ratio: float
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """(folded picture, folded small picture, decoder features at its size, next states)."""
        if src.ndim not in (4, 5):
            raise InputError(
                f"RVM got a tensor of shape {tuple(src.shape)}",
                where="src",
                why="it takes one frame [B,3,H,W] or a clip [B,T,3,H,W]",
                way_out="add the missing axes with unsqueeze",
            )
        frames = src.shape[1] if src.ndim == 5 else None
        image = src if frames is None else src.flatten(0, 1)
        small = image
        if ratio != 1:
            small = F.interpolate(
                image, scale_factor=ratio, mode="bilinear", align_corners=False, recompute_scale_factor=False
            )
        f1, f2, f3, f4 = self.backbone(small)
        hidden, *new = self.decoder(small, (f1, f2, f3, self.aspp(f4)), states, frames)
        return image, small, hidden, tuple(new)

    def forward(
        self,
        src: Tensor,
        r1: Tensor | None = None,
        r2: Tensor | None = None,
        r3: Tensor | None = None,
        r4: Tensor | None = None,
        downsample_ratio: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`src` [B,3,H,W] or [B,T,3,H,W], RGB in [0,1] -> (fgr, pha, r1, r2, r3, r4).

        fgr (3 channels) and pha (1 channel) have the shape of `src`, in [0,1]. The states are [B,C,h,w] with 16, 20,
        40, 64 channels at 1/2, 1/4, 1/8, 1/16 of the size the network works at (sides round up), values in (-1,1);
        None means zeros. A clip gives the states after its last frame. The network works at `downsample_ratio` times
        the size of `src` (sides round down).
        Raises InputError if `src` has neither 4 nor 5 axes.
        """
        image, small, hidden, states = self._decode(src, (r1, r2, r3, r4), downsample_ratio)
        fgr, pha = self.project_mat(hidden).split((3, 1), 1)
        if downsample_ratio != 1:
            fgr, pha = self.refiner(image, small, fgr, pha, hidden)
        fgr = (fgr + image).clamp(0, 1)  # the network finds the foreground as a difference to the picture
        pha = pha.clamp(0, 1)
        if src.ndim == 5:
            fgr, pha = fgr.unflatten(0, src.shape[:2]), pha.unflatten(0, src.shape[:2])
        return fgr, pha, states[0], states[1], states[2], states[3]

    def segment(
        self,
        src: Tensor,
        r1: Tensor | None = None,
        r2: Tensor | None = None,
        r3: Tensor | None = None,
        r4: Tensor | None = None,
        downsample_ratio: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The training-only segmentation: (logits with 1 channel at working size, r1, r2, r3, r4)."""
        if self.project_seg is None:
            raise InputError(
                "this RVM has no segmentation head",
                why="it was built with segmentation=False; weights of the registry carry none",
                way_out="load the published checkpoint",
            )
        _, _, hidden, states = self._decode(src, (r1, r2, r3, r4), downsample_ratio)
        logits = self.project_seg(hidden)
        if src.ndim == 5:
            logits = logits.unflatten(0, src.shape[:2])
        return logits, states[0], states[1], states[2], states[3]


REFINERS: dict[str, type[nn.Module]] = {
    "deep_guided_filter": DeepGuidedFilter,
    "fast_guided_filter": FastGuidedFilter,
}

"""Matting: normalisation mixtures, library preprocessing with checks, recurrent decoders, background matting."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wild_kit import Case, Registry, registrar

CASES: Registry = {}
case = registrar(CASES)


class IBNorm(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.bnorm_channels = c // 2
        self.inorm_channels = c - self.bnorm_channels
        self.bnorm = nn.BatchNorm2d(self.bnorm_channels, affine=True)
        self.inorm = nn.InstanceNorm2d(self.inorm_channels, affine=False)

    def forward(self, x):
        bn_x = self.bnorm(x[:, : self.bnorm_channels, ...].contiguous())
        in_x = self.inorm(x[:, self.bnorm_channels :, ...].contiguous())
        return torch.cat((bn_x, in_x), 1)


def conv_ibn(i: int, o: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), *([IBNorm(o), nn.ReLU(inplace=True)] if relu else []))


class SEBlock(nn.Module):
    def __init__(self, c: int, reduction: int = 1) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(c, int(c // reduction), bias=False), nn.ReLU(inplace=True),
            nn.Linear(int(c // reduction), c, bias=False), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x):
        b, c, _, _ = x.size()
        w = self.pool(x).view(b, c)
        return x * self.fc(w).view(b, c, 1, 1).expand_as(x)


class Portrait(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc2x, self.enc4x, self.se = conv_ibn(3, 8, 2), conv_ibn(8, 8, 2), SEBlock(8, 4)
        self.lr, self.lr_out = conv_ibn(8, 6), conv_ibn(6, 1, relu=False)
        self.hr, self.hr_out, self.f = conv_ibn(8 + 6 + 3, 8), conv_ibn(8 + 3, 2, relu=False), conv_ibn(6 + 2, 4)
        self.f_out = nn.Conv2d(4, 1, 1)
        self._freeze()

    def _freeze(self) -> None:
        for m in self.modules():
            if isinstance(m, nn.InstanceNorm2d):
                m.track_running_stats = False

    def forward(self, img, inference):
        e2 = self.enc2x(img)
        lr8 = self.lr(F.interpolate(self.se(self.enc4x(e2)), scale_factor=2, mode="bilinear", align_corners=False))
        pred_semantic = None
        if not inference:
            pred_semantic = torch.sigmoid(self.lr_out(lr8))
        img2x = F.interpolate(img, scale_factor=1 / 2, mode="bilinear", align_corners=False)
        hr = self.hr(torch.cat((e2, lr8, img2x), dim=1))
        hr = F.interpolate(hr, scale_factor=2, mode="bilinear", align_corners=False)
        hr = self.hr_out(torch.cat((hr, img), dim=1))
        f = F.interpolate(lr8, scale_factor=2, mode="bilinear", align_corners=False)
        return pred_semantic, None, torch.sigmoid(self.f_out(self.f(torch.cat((f, hr), 1))))


@case
def portrait_inference() -> Case:
    return Portrait(), (torch.rand(1, 3, 16, 24), True)


@case
def portrait_all_outputs() -> Case:
    return Portrait(), (torch.rand(1, 3, 16, 24), False)


def normalize(tensor: Tensor, mean: list[float], std: list[float], inplace: bool = False) -> Tensor:
    """The checks of a library's preprocessing, among them one on a constant tensor."""
    if not tensor.is_floating_point():
        raise TypeError(f"Input tensor should be a float tensor. Got {tensor.dtype}.")
    if tensor.ndim < 3:
        raise ValueError(f"Expected an image. Got {tensor.size()}")
    if not inplace:
        tensor = tensor.clone()
    dtype = tensor.dtype
    mean_t = torch.as_tensor(mean, dtype=dtype, device=tensor.device)
    std_t = torch.as_tensor(std, dtype=dtype, device=tensor.device)
    if (std_t == 0).any():
        raise ValueError(f"std evaluated to zero after conversion to {dtype}, leading to division by zero.")
    if mean_t.ndim == 1:
        mean_t = mean_t.view(-1, 1, 1)
    if std_t.ndim == 1:
        std_t = std_t.view(-1, 1, 1)
    return tensor.sub_(mean_t).div_(std_t)


class GRU(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.channels = c
        self.ih = nn.Sequential(nn.Conv2d(2 * c, 2 * c, 3, padding=1), nn.Sigmoid())
        self.hh = nn.Sequential(nn.Conv2d(2 * c, c, 3, padding=1), nn.Tanh())

    def single(self, x, h):
        r, z = self.ih(torch.cat([x, h], dim=1)).split(self.channels, dim=1)
        c = self.hh(torch.cat([x, r * h], dim=1))
        h = (1 - z) * h + z * c
        return h, h

    def forward(self, x, h: Tensor | None):
        if h is None:
            h = torch.zeros((x.size(0), x.size(-3), x.size(-2), x.size(-1)), device=x.device, dtype=x.dtype)
        if x.ndim == 5:
            o = []
            for xt in x.unbind(dim=1):
                ot, h = self.single(xt, h)
                o.append(ot)
            return torch.stack(o, dim=1), h
        return self.single(x, h)


class RecurrentMatting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.Hardswish())
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Hardsigmoid()
        )
        self.gru, self.up = GRU(4), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.conv, self.project = nn.Conv2d(8 + 3, 4, 3, 1, 1, bias=False), nn.Conv2d(4, 4, 1)

    def forward(self, src: Tensor, r1: Tensor | None = None, segmentation_pass: bool = False):
        B, T, _, H, W = src.shape
        x = normalize(src.flatten(0, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        f1 = self.f1(x)
        f1 = (f1 * self.se(f1)).unflatten(0, (B, T))
        a, b = f1.split(4, dim=-3)
        b, r1 = self.gru(b, r1)
        y = self.up(torch.cat([a, b], dim=-3).flatten(0, 1))[:, :, :H, :W]
        y = F.relu(self.conv(torch.cat([y, src.flatten(0, 1)], 1)))
        fgr_residual, pha = self.project(y).unflatten(0, (B, T)).split([3, 1], dim=-3)
        fgr = (fgr_residual + src).clamp(0.0, 1.0)
        return [fgr, pha.clamp(0.0, 1.0), r1]


@case
def recurrent_matting_first_frame() -> Case:
    return RecurrentMatting(), (torch.rand(1, 1, 3, 16, 24),)


@case
def recurrent_matting_clip() -> Case:
    return RecurrentMatting(), (torch.rand(1, 3, 3, 16, 24), torch.rand(1, 4, 8, 12))


class Matted(NamedTuple):
    pha: Tensor
    fgr: Tensor
    extra: dict[str, Tensor | None]


class BackgroundMatting(nn.Module):
    """Source and background to alpha, coarse and then refined over the full picture; atrous pyramid with pooling."""

    def __init__(self, refine_mode: str = "full") -> None:
        super().__init__()
        self.refine_mode = refine_mode
        self.backbone = nn.ModuleList([nn.Conv2d(6, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)])
        self.aspp = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 4, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(4), nn.ReLU())
            for d in (1, 2, 3)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.decoder, self.bn = nn.Conv2d(16 + 6, 9, 3, padding=1), nn.BatchNorm2d(9)
        self.conv1, self.conv2 = nn.Conv2d(9 + 6, 6, 3, bias=False), nn.Conv2d(6 + 6, 4, 3)
        self.relu = nn.ReLU(True)

    def forward(self, src, bgr):
        assert src.size() == bgr.size(), "src and bgr must have the same shape"
        assert src.size(2) // 4 * 4 == src.size(2) and src.size(3) // 4 * 4 == src.size(3), "size"
        src_sm = F.interpolate(src, scale_factor=0.5, mode="bilinear", align_corners=False, recompute_scale_factor=True)
        bgr_sm = F.interpolate(bgr, scale_factor=0.5, mode="bilinear", align_corners=False, recompute_scale_factor=True)
        x, shortcuts = torch.cat([src_sm, bgr_sm], dim=1), []
        for m in self.backbone:
            shortcuts.append(x)
            x = F.relu(m(x))
        feats = [m(x) for m in self.aspp]
        feats.append(F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False))
        x = F.interpolate(torch.cat(feats, dim=1), size=shortcuts[0].shape[-2:], mode="bilinear", align_corners=False)
        x = self.relu(self.bn(self.decoder(torch.cat([x, shortcuts[0]], 1))))
        pha, fgr, err, hid = x[:, 0:1].clamp_(0.0, 1.0), x[:, 1:4], x[:, 4:5].clamp_(0.0, 1.0), x[:, 5:].relu_()
        if self.refine_mode == "full":
            x = torch.cat([hid, pha, fgr, err, src_sm, bgr_sm], dim=1)[:, :15]
            x = F.interpolate(x, size=src.shape[-2:], mode="bilinear", align_corners=False)
            x = F.relu(self.conv1(F.pad(x, (2, 2, 2, 2))))
            x = self.conv2(torch.cat([x, F.pad(torch.cat([src, bgr], 1), (1, 1, 1, 1))], 1))
            pha, fgr = x[:, :1].clamp(0, 1), x[:, 1:]
        return Matted(pha, fgr.add(src).clamp_(0, 1), {"err": err, "hid": hid, "ref": None})


@case
def background_matting() -> Case:
    return BackgroundMatting(), (torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24))


def make_layer(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, [1, 1, 1, 1], mode="reflect"), kernel.expand(x.size(1), 1, 3, 3), groups=x.size(1))


@torch.jit.script
def fused_gate(x: Tensor, y: Tensor, slope: float = 0.1) -> Tensor:
    if x.size(1) > 2:
        x = torch.where(x > 0, x, x * slope)
    for i in range(2):
        x = x * torch.sigmoid(y) + float(i)
    return x


class Odd(nn.Module):
    """Scripted helpers, weight and spectral norm, activation checkpoints, laplacian pyramids, binary weights."""

    def __init__(self) -> None:
        super().__init__()
        from torch.nn.utils import parametrizations, spectral_norm, weight_norm

        self.a = weight_norm(nn.Conv2d(3, 4, 3, padding=1))
        self.b = parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
        self.c = spectral_norm(nn.Conv2d(4, 4, 1))
        self.d = parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
        self.e = nn.Conv2d(4, 4, 3, padding=1)
        self.register_buffer("kernel", torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16)
        self.seen = None

    def binary(self, x):
        w = self.e.weight
        scale = w.abs().mean(dim=(1, 2, 3), keepdim=True).detach()
        b = torch.sign(w - w.mean(dim=(1, 2, 3), keepdim=True)) * scale
        clipped = torch.clamp(w, -1.0, 1.0)
        return F.conv2d(x, b.detach() - clipped.detach() + clipped, self.e.bias, padding=1)

    def block(self, x):
        self.seen = tuple(x.shape)
        return F.gelu(self.c(F.silu(self.b(x)))) + x

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        y = fused_gate(self.a(x), self.a(x).flip(-1))
        y = checkpoint(self.block, y, use_reentrant=False)
        y = checkpoint(self.block, y, use_reentrant=True)
        y = self.binary(self.d(F.softplus(y)))
        return y - F.interpolate(make_layer(y, self.kernel)[:, :, ::2, ::2], size=y.shape[2:], mode="bicubic")


@case
def odd_layers() -> Case:
    model = Odd()
    with torch.no_grad():
        model(torch.rand(1, 3, 8, 8))
    return model, (torch.rand(1, 3, 8, 8),)

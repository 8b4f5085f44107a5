"""Restoration and super-resolution, in the manner of public code: denoising, simple gates, dynamic filters, windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from wild_kit import Case, Registry, registrar

CASES: Registry = {}
case = registrar(CASES)


def conv_bn(i: int, o: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
    )


class Denoise(nn.Module):
    """Three frames and a noise map to the middle frame; the block is used for every triple and once more."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(12, 9, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(9), nn.ReLU())
        self.inc, self.down = conv_bn(9, 8), conv_bn(8, 16, 2)
        self.up = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.PixelShuffle(2))
        self.out = nn.Sequential(conv_bn(8, 8), nn.Conv2d(8, 3, 3, padding=1, bias=False))
        self.reset_params()

    @staticmethod
    def weight_init(m: nn.Module) -> None:
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")

    def reset_params(self) -> None:
        for _, m in enumerate(self.modules()):
            self.weight_init(m)

    def block(self, a, b, c, noise):
        x = self.inc(self.mix(torch.cat((a, noise, b, noise, c, noise), dim=1)))
        return b - self.out(x + self.up(self.down(x)))

    def forward(self, x, noise_map):
        frames = tuple(x[:, 3 * m : 3 * m + 3, :, :] for m in range(5))
        triples = [self.block(*frames[i : i + 3], noise_map) for i in range(3)]
        return self.block(*triples, noise_map)


@case
def denoise_in_two_steps() -> Case:
    return Denoise(), (torch.rand(1, 15, 8, 12), torch.full((1, 1, 8, 12), 0.1))


class NormFunction(torch.autograd.Function):
    """Layer norm over channels with its own backward, as restoration code writes it."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.eps = eps
        n, c, h, w = x.size()
        mu = x.mean(1, keepdim=True)
        var = (x - mu).pow(2).mean(1, keepdim=True)
        y = (x - mu) / (var + eps).sqrt()
        ctx.save_for_backward(y, var, weight)
        return weight.view(1, c, 1, 1) * y + bias.view(1, c, 1, 1)

    @staticmethod
    def backward(ctx, grad):
        y, var, weight = ctx.saved_tensors
        g = grad * weight.view(1, -1, 1, 1)
        gx = (g - y * (g * y).mean(1, keepdim=True) - g.mean(1, keepdim=True)) / torch.sqrt(var + ctx.eps)
        return gx, (grad * y).sum((0, 2, 3)), grad.sum((0, 2, 3)), None


class LayerNorm2d(nn.Module):
    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.rand(channels) + 0.5))
        self.register_parameter("bias", nn.Parameter(torch.rand(channels)))
        self.eps = eps

    def forward(self, x):
        return NormFunction.apply(x, self.weight, self.bias, self.eps)


class SimpleGate(nn.Module):
    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        return a * b


class GateBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.sg = LayerNorm2d(c), LayerNorm2d(c), SimpleGate()
        self.conv1, self.conv2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.conv3, self.conv4, self.conv5 = nn.Conv2d(c, c, 1), nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.dropout = nn.Dropout(0.1) if c > 4 else nn.Identity()
        self.beta = nn.Parameter(torch.rand((1, c, 1, 1)), requires_grad=True)
        self.gamma = nn.Parameter(torch.rand((1, c, 1, 1)), requires_grad=True)

    def forward(self, inp):
        x = self.sg(self.conv2(self.conv1(self.norm1(inp))))
        x = self.dropout(self.conv3(x * self.sca(x)))
        y = inp + x * self.beta
        return y + self.dropout(self.conv5(self.sg(self.conv4(self.norm2(y))))) * self.gamma


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.intro, self.ending = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.encoders = nn.ModuleList([GateBlock(4), GateBlock(8)])
        self.downs = nn.ModuleList([nn.Conv2d(4, 8, 2, 2), nn.Conv2d(8, 16, 2, 2)])
        self.middle = nn.Sequential(GateBlock(16))
        self.ups = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2)) for c in (16, 8))
        self.decoders = nn.ModuleList([GateBlock(8), GateBlock(4)])
        self.padder_size = 2 ** len(self.encoders)

    def check_image_size(self, x):
        _, _, h, w = x.size()
        pad_h = (self.padder_size - h % self.padder_size) % self.padder_size
        pad_w = (self.padder_size - w % self.padder_size) % self.padder_size
        return F.pad(x, (0, pad_w, 0, pad_h))

    def forward(self, inp):
        B, C, H, W = inp.shape
        inp = self.check_image_size(inp)
        x, encs = self.intro(inp), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            encs.append(x)
            x = down(x)
        x = self.middle(x)
        for decoder, up, skip in zip(self.decoders, self.ups, encs[::-1], strict=True):
            x = decoder(up(x) + skip)
        return (self.ending(x) + inp)[:, :, :H, :W]


@case
def simple_gates() -> Case:
    return Gated(), (torch.rand(1, 3, 10, 13),)


class DynamicFilters(nn.Module):
    """Upsampling filters per pixel: batch norm before 3-d convs, softmax over taps, pixel shuffle of three colours."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.scale, f = scale, 4
        self.conv3d1 = nn.Conv3d(3, f, (1, 3, 3), 1, (0, 1, 1))
        self.dense = nn.ModuleList()
        for i in range(2):
            self.dense.append(
                nn.Sequential(
                    nn.BatchNorm3d(f + 3 * i), nn.ReLU(), nn.Conv3d(f + 3 * i, 4, 1),
                    nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 3, 1, (int(i == 0), 1, 1)),
                )
            )  # fmt: skip
        self.bn, self.conv2 = nn.BatchNorm3d(f + 6), nn.Conv3d(f + 6, 8, (1, 3, 3), padding=(0, 1, 1))
        self.res = nn.Conv3d(8, 3 * scale**2, 1)
        self.filt = nn.Conv3d(8, 9 * scale**2, 1)
        self.register_buffer("taps", torch.eye(9).view(9, 1, 3, 3), persistent=False)

    def forward(self, x):
        n, t, c, h, w = x.size()
        center = x[:, t // 2]
        x = self.conv3d1(x.permute(0, 2, 1, 3, 4))
        x = torch.cat((x, self.dense[0](x)), 1)
        x = torch.cat((x[:, :, 1:-1], self.dense[1](x)), 1)
        x = F.relu(self.conv2(F.relu(self.bn(x))), inplace=True)
        filt = F.softmax(self.filt(x).view(n, 9, self.scale**2, h, w), dim=1)
        out = []
        for i in range(3):
            taps = F.conv2d(center[:, i : i + 1], self.taps, padding=1)
            taps = taps.view(n, 1, 9, h * w).permute(0, 3, 1, 2)
            weights = filt.permute(0, 3, 4, 1, 2).reshape(n, h * w, 9, self.scale**2)
            out.append(torch.matmul(taps, weights).squeeze(2).view(n, h, w, self.scale**2).permute(0, 3, 1, 2))
        out = F.pixel_shuffle(torch.cat(out, dim=1), self.scale)
        return out + F.pixel_shuffle(self.res(x).squeeze(2).view(n, -1, h, w), self.scale)


@case
def dynamic_filters() -> Case:
    return DynamicFilters(), (torch.rand(1, 3, 3, 6, 8),)


class WindowRestore(nn.Module):
    """Frame windows of a restoration transformer: masks filled by scalars in loops, trilinear skip to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.qkv, self.proj, self.norm = nn.Linear(8, 24, bias=False), nn.Linear(8, 8), nn.LayerNorm(8)
        self.last, self.act = nn.Conv2d(8, 12, 3, 1, 1), nn.LeakyReLU(0.1, inplace=True)

    def mask(self, h, w, ws, shift, device):
        img = torch.zeros((1, h, w, 1), device=device)
        spans = (slice(0, -ws), slice(-ws, -shift), slice(-shift, None))
        count = 0
        for a in spans:
            for b in spans:
                img[:, a, b, :] = count
                count += 1
        win = img.view(1, h // ws, ws, w // ws, ws, 1).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, ws * ws)
        diff = win.unsqueeze(1) - win.unsqueeze(2)
        return diff.masked_fill(diff != 0, (-100.0)).masked_fill(diff == 0, 0.0)

    def attend(self, x, ws=4, shift=2):
        b, h, w, c = x.shape
        mask = self.mask(h, w, ws, shift, x.device)
        x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        x = x.view(b, h // ws, ws, w // ws, ws, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, ws * ws, c)
        qkv = self.qkv(x).reshape(x.shape[0], -1, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * (c // 2) ** -0.5) @ k.transpose(-2, -1)
        attn = attn.view(b, mask.shape[0], 2, ws * ws, ws * ws) + mask.unsqueeze(1).unsqueeze(0)
        attn = attn.view(-1, 2, ws * ws, ws * ws).softmax(dim=-1)
        x = self.proj((attn @ v).transpose(1, 2).reshape(-1, ws * ws, c))
        x = x.view(b, h // ws, w // ws, ws, ws, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, shifts=(shift, shift), dims=(1, 2))

    def forward(self, x):
        b, t, c, h, w = x.shape
        up = F.interpolate(x.transpose(1, 2), (2 * t - 1, 2 * h, 2 * w), mode="trilinear", align_corners=False)
        f = self.act(self.first(x.view(-1, c, h, w)))
        f = f + self.attend(self.norm(f.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        f = f.view(b, t, -1, h, w)
        frames = []
        for i in range(2 * t - 1):
            frames.append(f[:, i // 2] if i % 2 == 0 else (f[:, i // 2] + f[:, i // 2 + 1]) / 2)
        y = F.pixel_shuffle(self.last(torch.stack(frames, 1).flatten(0, 1)), 2)
        return y.view(b, 2 * t - 1, 3, 2 * h, 2 * w) + up.transpose(1, 2)


@case
def window_restore() -> Case:
    return WindowRestore(), (torch.rand(1, 2, 3, 8, 12),)

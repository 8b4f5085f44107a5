"""Tokens: shifted windows in 3-d, pooled attention, diffusion blocks, 3-d convolutions for recognition."""

# ruff: noqa: E501 - a layer a line reads better here

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from wild_kit import Case, Registry, registrar

CASES: Registry = {}
case = registrar(CASES)


class Window3d(nn.Module):
    def __init__(self, dim: int, window: list[int], shift: list[int], heads: int = 2) -> None:
        super().__init__()
        self.window_size, self.shift_size, self.num_heads = window, shift, heads
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        size = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(size, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.5)
        coords = torch.stack(torch.meshgrid(*[torch.arange(w) for w in window], indexing="ij")).flatten(1)
        rel = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0).contiguous()
        for i in range(3):
            rel[:, :, i] += window[i] - 1
        rel[:, :, 0] *= (2 * window[1] - 1) * (2 * window[2] - 1)
        rel[:, :, 1] *= 2 * window[2] - 1
        self.register_buffer("relative_position_index", rel.sum(-1).flatten())

    def mask(self, x, pad, ws, ss):
        img = x.new_zeros(*pad)
        count = 0
        spans = [((0, -ws[i]), (-ws[i], -ss[i]), (-ss[i], None)) for i in range(3)]
        for d in spans[0]:
            for h in spans[1]:
                for w in spans[2]:
                    img[d[0] : d[1], h[0] : h[1], w[0] : w[1]] = count
                    count += 1
        n = ws[0] * ws[1] * ws[2]
        img = img.view(pad[0] // ws[0], ws[0], pad[1] // ws[1], ws[1], pad[2] // ws[2], ws[2])
        img = img.permute(0, 2, 4, 1, 3, 5).reshape(-1, n)
        m = img.unsqueeze(1) - img.unsqueeze(2)
        return m.masked_fill(m != 0, (-100.0)).masked_fill(m == 0, 0.0)

    def forward(self, x):
        b, t, h, w, c = x.shape
        ws, ss = self.window_size.copy(), self.shift_size.copy()
        for i, size in enumerate((t, h, w)):
            if ws[i] >= size:
                ws[i], ss[i] = size, 0
        pads = [(ws[i] - s % ws[i]) % ws[i] for i, s in enumerate((t, h, w))]
        x = F.pad(x, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
        _, tp, hp, wp, _ = x.shape
        if sum(ss) > 0:
            x = torch.roll(x, shifts=(-ss[0], -ss[1], -ss[2]), dims=(1, 2, 3))
        n = ws[0] * ws[1] * ws[2]
        nw = (tp // ws[0]) * (hp // ws[1]) * (wp // ws[2])
        x = x.view(b, tp // ws[0], ws[0], hp // ws[1], ws[1], wp // ws[2], ws[2], c)
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b * nw, n, c)
        qkv = self.qkv(x).reshape(b * nw, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (c // self.num_heads) ** -0.5, qkv[1], qkv[2]
        index = self.relative_position_index.view(8, -1)[:n, :n].reshape(-1) if n < 8 else self.relative_position_index
        bias = self.relative_position_bias_table[index].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
        attn = q.matmul(k.transpose(2, 3)) + bias
        if sum(ss) > 0:
            mask = self.mask(x, (tp, hp, wp), ws, ss)
            attn = attn.view(b, nw, self.num_heads, n, n)
            attn += mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.num_heads, n, n)
        attn = F.dropout(F.softmax(attn, dim=-1), p=0.1, training=self.training)
        x = self.proj(attn.matmul(v).transpose(1, 2).reshape(b * nw, n, c))
        x = x.view(b, tp // ws[0], hp // ws[1], wp // ws[2], *ws, c)
        x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, tp, hp, wp, c)
        if sum(ss) > 0:
            x = torch.roll(x, shifts=tuple(ss), dims=(1, 2, 3))
        return x[:, :t, :h, :w, :].contiguous()


class Swin3d(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv3d(3, dim, (2, 4, 4), (2, 4, 4))
        self.norms = nn.ModuleList([partial(nn.LayerNorm, eps=1e-5)(dim) for _ in range(2)])
        self.attns = nn.ModuleList([Window3d(dim, [2, 2, 2], s) for s in ([0, 0, 0], [1, 1, 1])])
        self.reduction, self.norm, self.head = (
            nn.Linear(4 * dim, 2 * dim, bias=False),
            nn.LayerNorm(4 * dim),
            nn.Linear(16, 5),
        )
        self.mlp = nn.Sequential(nn.Linear(dim, 16), nn.GELU(), nn.Linear(16, dim), nn.Dropout(0.0))

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 4, 1)
        for norm, attn in zip(self.norms, self.attns, strict=True):
            x = x + attn(norm(x))
            x = x + self.mlp(x)
        H, W = x.shape[-3:-1]
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        x = torch.cat([x[..., a::2, b::2, :] for b in (0, 1) for a in (0, 1)], -1)
        x = self.reduction(self.norm(x)).permute(0, 4, 1, 2, 3)
        return self.head(torch.flatten(F.adaptive_avg_pool3d(x, 1), 1))


@case
def shifted_windows_3d() -> Case:
    return Swin3d(), (torch.rand(1, 3, 8, 20, 12),)


class Pooled(nn.Module):
    """Queries, keys and values pooled by depthwise 3-d convolutions; decomposed relative positions by einsum."""

    def __init__(self, dim: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.d = heads, dim // heads
        self.patch = nn.Conv3d(3, dim, (3, 3, 3), (2, 4, 4), (1, 1, 1))
        self.class_token, self.qkv = nn.Parameter(torch.randn(dim)), nn.Linear(dim, 3 * dim)
        self.pools = nn.ModuleList(
            nn.Conv3d(self.d, self.d, 3, stride=(1, s, s), padding=1, groups=self.d, bias=False) for s in (1, 2, 2)
        )
        self.norms = nn.ModuleList(nn.Sequential(nn.LayerNorm(self.d), nn.GELU()) for _ in range(3))
        self.rel_pos_h, self.rel_pos_t = nn.Parameter(torch.randn(9, self.d)), nn.Parameter(torch.randn(5, self.d))
        self.project, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(dim, 5))

    def pool(self, x, thw, i):
        ndim = x.dim()
        if ndim == 3:
            x = x.unsqueeze(1)
        token, x = torch.tensor_split(x, indices=(1,), dim=2)
        B, N, L, C = x.shape
        x = self.pools[i](x.reshape((B * N, C) + thw).contiguous() if N else x.reshape((B * N,) + thw + (C,)))
        thw = tuple(x.shape[2:])
        x = torch.cat((token, x.reshape(B, N, C, -1).transpose(2, 3)), dim=2)
        return self.norms[i](x), thw

    @staticmethod
    def interpolate(table, d):
        if table.shape[0] == d:
            return table
        return F.interpolate(table.permute(1, 0).unsqueeze(0), size=d, mode="linear").squeeze(0).permute(1, 0)

    def forward(self, x):
        x = self.patch(x)
        thw = tuple(x.shape[2:])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.size(0), -1).unsqueeze(1), x), dim=1)
        B, N, C = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, N, 3, self.heads, self.d).transpose(1, 3).unbind(dim=2)
        k, k_thw = self.pool(k, thw, 1)
        v, _ = self.pool(v, thw, 2)
        q, q_thw = self.pool(q, thw, 0)
        attn = torch.matmul(q * self.d**-0.5, k.transpose(2, 3))
        q_t, q_h, q_w = q_thw
        k_t, k_h, k_w = k_thw
        ratio = max(k_h / q_h, 1.0), max(q_h / k_h, 1.0)
        dist = torch.arange(q_h)[:, None] * ratio[0] - (torch.arange(k_h)[None, :] + (1 - k_h)) * ratio[1]
        rel_h = self.interpolate(self.rel_pos_h, 2 * max(q_h, k_h) - 1)[dist.long()]
        rel_t = self.interpolate(self.rel_pos_t, 2 * max(q_t, k_t) - 1)[
            (torch.arange(q_t)[:, None] - torch.arange(k_t)[None]) + (k_t - 1)
        ]
        r_q = q[:, :, 1:].reshape(B, self.heads, q_t, q_h, q_w, self.d)
        h_q = torch.einsum("bythwc,hkc->bythwk", r_q, rel_h)
        t_q = torch.einsum("bythwc,tkc->bythwk", r_q, rel_t)
        rel = h_q[:, :, :, :, :, None, :, None] + t_q[:, :, :, :, :, :, None, None]
        rel = rel.expand(-1, -1, -1, -1, -1, -1, -1, k_w).reshape(B, self.heads, q_t * q_h * q_w, k_t * k_h * k_w)
        attn[:, :, 1:, 1:].add_(rel)
        x = torch.matmul(attn.softmax(dim=-1), v)
        x[:, :, 1:, :].add_(q[:, :, 1:, :])
        x = self.project(x.transpose(1, 2).reshape(B, -1, C))
        return self.head(self.norm(x)[:, 0])


@case
def pooled_attention() -> Case:
    return Pooled(), (torch.rand(1, 3, 4, 16, 16),)


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def freqs_cis(dim, end, theta=10000.0):
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: (dim // 2)].float() / dim))
    freqs = torch.outer(torch.arange(end, dtype=torch.float32), freqs)
    return torch.polar(torch.ones_like(freqs), freqs)


class Diffusion(nn.Module):
    """Two diffusion blocks on video patches: sinusoid time, adaptive norms, rotary positions in complex numbers."""

    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.x_embed, self.t_embed = (
            nn.Conv3d(4, dim, (1, 2, 2), (1, 2, 2)),
            nn.Sequential(nn.Linear(dim, dim), nn.SiLU()),
        )
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = nn.RMSNorm(dim // heads, eps=1e-6), nn.RMSNorm(dim // heads, eps=1e-6)
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.ada = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim)) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(dim, 32), nn.GELU(approximate="tanh"), nn.Linear(32, dim))
        self.cross, self.final = nn.MultiheadAttention(dim, heads, batch_first=True), nn.Linear(dim, 16)
        self.register_buffer("freqs", freqs_cis(dim // heads, 64), persistent=False)

    def timestep(self, t, max_period=10000):
        half = self.dim // 2
        freqs = torch.exp(-math.log(max_period) * torch.arange(start=0, end=half, dtype=torch.float32) / half).to(
            t.device
        )
        args = t[:, None].float() * freqs[None]
        return self.t_embed(torch.cat([torch.cos(args), torch.sin(args)], dim=-1))

    def rotate(self, x):
        z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(z * self.freqs[: x.shape[2]]).flatten(3).type_as(x)

    def forward(self, x, t, y):
        N, C, T, H, W = x.shape
        x = self.x_embed(x).flatten(2).transpose(1, 2)
        c = self.timestep(t)
        for ada in self.ada:
            a, b, g, a2, b2, g2 = ada(c).chunk(6, dim=1)
            q, k, v = (
                self.qkv(modulate(self.norm1(x), a, b))
                .reshape(N, -1, 3, self.heads, self.dim // self.heads)
                .permute(2, 0, 3, 1, 4)
            )
            q, k = self.rotate(self.q_norm(q)), self.rotate(self.k_norm(k))
            z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, -1, self.dim)
            x = x + g.unsqueeze(1) * self.out(z)
            x = x + self.cross(x, y, y, need_weights=False)[0]
            x = x + g2.unsqueeze(1) * self.mlp(modulate(self.norm1(x), a2, b2))
        x = self.final(F.rms_norm(x, (self.dim,))).reshape(N, T, H // 2, W // 2, 2, 2, 4)
        return torch.einsum("nthwpqc->ncthpwq", x).reshape(N, C, T, H, W)


@case
def diffusion_block() -> Case:
    return Diffusion(), (torch.rand(1, 4, 2, 6, 8), torch.rand(1) * 100, torch.rand(1, 5, 16))


class SE3d(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        width = int(np.ceil(c * 0.25 / 8) * 8)
        self.avg_pool = nn.AdaptiveAvgPool3d((1, 1, 1))
        self.fc1, self.fc2 = nn.Conv3d(c, width, 1, bias=True), nn.Conv3d(width, c, 1, bias=True)

    def forward(self, x):
        x_in = x
        for module in (self.avg_pool, self.fc1, nn.ReLU(), self.fc2, nn.Sigmoid()):
            x = module(x)
        return x_in * x


class TwoPathways(nn.Module):
    """A slow and a fast pathway in a list that the network overwrites; numpy integers as kernel and pool sizes."""

    def __init__(self) -> None:
        super().__init__()
        t = np.ceil(4 / 1).astype(int)
        self.stems = nn.ModuleList(
            [
                nn.Conv3d(3, 8, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
                nn.Conv3d(3, 4, (5, 7, 7), (1, 2, 2), (2, 3, 3)),
            ]
        )
        self.bns = nn.ModuleList([nn.BatchNorm3d(8), nn.BatchNorm3d(4)])
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.fuse = nn.Conv3d(4, 8, [5, 1, 1], stride=[2, 1, 1], padding=[2, 0, 0], bias=False)
        self.res = nn.ModuleList(
            [nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1), groups=16), nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0))]
        )
        self.se, self.swish = SE3d(16), nn.SiLU()
        self.head_pools = nn.ModuleList(
            [nn.AvgPool3d((2, 4, 4), stride=1), nn.AvgPool3d([t, np.int64(4), 4], stride=1)]
        )
        self.projection, self.act = nn.Linear(20, 5), nn.Softmax(dim=4)

    def forward(self, x, bboxes=None):
        x = x[:]
        for i in range(2):
            x[i] = self.pool(F.relu(self.bns[i](self.stems[i](x[i]))))
        x[0] = torch.cat([x[0], self.fuse(x[1])], 1)
        for i in range(2):
            x[i] = x[i] + self.res[i](x[i])
        x[0] = self.swish(self.se(x[0]))
        pooled = [self.head_pools[i](x[i]) for i in range(2)]
        y = self.projection(torch.cat(pooled, 1).permute((0, 2, 3, 4, 1)))
        y = self.act(y).mean([1, 2, 3])
        return y.view(y.shape[0], -1)


class Overwriting(TwoPathways):
    def forward(self, x, bboxes=None):
        for i in range(2):
            x[i] = x[i] * 2 - 1
        return super().forward(x, bboxes)


@case
def two_pathways() -> Case:
    return TwoPathways(), ([torch.rand(1, 3, 2, 16, 16), torch.rand(1, 3, 4, 16, 16)],)


@case
def two_pathways_overwriting() -> Case:
    return Overwriting(), ([torch.rand(1, 3, 2, 16, 16), torch.rand(1, 3, 4, 16, 16)],)


class Factorised(nn.Module):
    """Space and time apart (r2plus1d), residual with a strided shortcut, a pool to one value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 6, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False), nn.BatchNorm3d(6), nn.ReLU(True),
                                  nn.Conv3d(6, 8, (3, 1, 1), 1, (1, 0, 0), bias=False), nn.BatchNorm3d(8), nn.ReLU(True))  # fmt: skip
        self.conv1 = nn.Sequential(nn.Conv3d(8, 10, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.BatchNorm3d(10), nn.ReLU(True),
                                   nn.Conv3d(10, 12, (3, 1, 1), (2, 1, 1), (1, 0, 0)), nn.BatchNorm3d(12))  # fmt: skip
        self.down = nn.Sequential(nn.Conv3d(8, 12, 1, 2, bias=False), nn.BatchNorm3d(12))
        self.branch = nn.ModuleList([nn.Conv3d(12, 4, 1), nn.MaxPool3d(3, 1, 1)])
        self.avgpool, self.fc = nn.AdaptiveAvgPool3d((1, 1, 1)), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.conv1(x) + self.down(x), inplace=True)
        x = torch.cat([b(x) for b in self.branch], 1)
        return self.fc(self.avgpool(x).flatten(1))


@case
def factorised_3d() -> Case:
    return Factorised(), (torch.rand(1, 3, 4, 16, 16),)

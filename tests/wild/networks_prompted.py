"""Prompted tracking: rotary attention over a memory bank, the best of several masks, structured results."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree
from wild_kit import Case, Registry, registrar

CASES: Registry = {}
case = registrar(CASES)


@dataclass
class Tracked:
    masks: torch.Tensor
    scores: list[torch.Tensor]
    name: str = "frame"


pytree.register_dataclass(Tracked)


def axial_cis(dim: int, ex: int, ey: int, theta: float = 10000.0):
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 4)[: (dim // 4)].float() / dim))
    t = torch.arange(ex * ey, dtype=torch.float32)
    fx, fy = torch.outer((t % ex).float(), freqs), torch.outer(torch.div(t, ex, rounding_mode="floor").float(), freqs)
    return torch.cat([torch.polar(torch.ones_like(f), f) for f in (fx, fy)], dim=-1)


class RoPEAttention(nn.Module):
    def __init__(self, c: int, heads: int, kv: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(c, c),
            nn.Linear(kv, c),
            nn.Linear(kv, c),
            nn.Linear(c, c),
        )
        self.freqs_cis = axial_cis(c // heads, 6, 4)

    def apply_rotary(self, x, freqs):
        x_ = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        shape = [d if i >= x_.ndim - 2 else 1 for i, d in enumerate(x_.shape)]
        r = x_.shape[-2] // freqs.shape[0]
        if r > 1:
            freqs = freqs.repeat(r, 1)
        return torch.view_as_real(x_ * freqs.view(*shape)).flatten(3).type_as(x).to(x.device)

    def forward(self, q, k, v, num_k_exclude_rope: int = 0):
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        q, k, v = (x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        num = k.size(-2) - num_k_exclude_rope
        self.freqs_cis = self.freqs_cis.to(q.device)
        q = self.apply_rotary(q, self.freqs_cis)
        k[:, :, :num] = self.apply_rotary(k[:, :, :num], self.freqs_cis)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class SinePosition(nn.Module):
    def __init__(self, feats: int) -> None:
        super().__init__()
        self.num_pos_feats, self.cache = feats // 2, {}

    @torch.no_grad()
    def forward(self, x):
        key = (x.shape[-2], x.shape[-1])
        if key in self.cache:
            return self.cache[key][None].repeat(x.shape[0], 1, 1, 1)
        y_embed = (
            torch.arange(1, x.shape[-2] + 1, dtype=torch.float32).view(1, -1, 1).repeat(x.shape[0], 1, x.shape[-1])
        )
        x_embed = (
            torch.arange(1, x.shape[-1] + 1, dtype=torch.float32).view(1, 1, -1).repeat(x.shape[0], x.shape[-2], 1)
        )
        dim_t = 100 ** (2 * (torch.arange(self.num_pos_feats, dtype=torch.float32) // 2) / self.num_pos_feats)
        px, py = x_embed[:, :, :, None] / dim_t, y_embed[:, :, :, None] / dim_t
        px = torch.stack((px[:, :, :, 0::2].sin(), px[:, :, :, 1::2].cos()), dim=4).flatten(3)
        py = torch.stack((py[:, :, :, 0::2].sin(), py[:, :, :, 1::2].cos()), dim=4).flatten(3)
        pos = torch.cat((py, px), dim=3).permute(0, 3, 1, 2)
        self.cache[key] = pos[0]
        return pos


class Tracker(nn.Module):
    """Prompted tracking: memory bank in dictionaries, rotary attention, several masks of which the best is taken."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.trunk, self.pos = nn.Conv2d(3, c, 4, 4), SinePosition(c)
        self.self_attn, self.cross_attn, self.norm = RoPEAttention(c, 1, c), RoPEAttention(c, 1, 4), nn.LayerNorm(c)
        self.mem, self.tpos = nn.Conv2d(c + 1, 4, 3, padding=1), nn.Parameter(torch.randn(3, 1, 1, 4) * 0.1)
        self.no_mem_embed, self.ptr = nn.Parameter(torch.randn(1, 1, c) * 0.1), nn.Linear(c, 4)
        self.mask_tokens, self.hyper, self.up = (
            nn.Embedding(3, c),
            nn.Linear(c, c // 2),
            nn.ConvTranspose2d(c, c // 2, 2, 2),
        )
        self.iou, self.score = nn.Linear(c, 3), nn.Linear(c, 1)
        self.pos_embed, self.no_obj_ptr = nn.Parameter(torch.randn(1, c, 3, 3)), nn.Parameter(torch.randn(1, 4))

    def decode(self, feat):
        tokens = self.mask_tokens.weight[None] + feat.flatten(2).mean(-1)[:, None]
        up = self.up(feat)
        b, c, h, w = up.shape
        masks = (self.hyper(tokens) @ up.view(b, c, h * w)).view(b, -1, h, w)
        ious, score = torch.sigmoid(self.iou(tokens[:, 0])), self.score(tokens[:, 0])
        is_obj = score > 0
        masks = torch.where(is_obj[:, None, None], masks, -1024.0)
        best, rows = torch.argmax(ious, dim=-1), torch.arange(b, device=masks.device)
        pointer = self.ptr(tokens[rows, best])
        lam = is_obj.float()
        pointer = lam * pointer + (1 - lam) * self.no_obj_ptr
        return masks[rows, best].unsqueeze(1), ious, pointer, score

    def forward(self, frames):
        outputs: dict[str, dict[int, Any]] = {"cond": {}, "non_cond": {}}
        for t in range(frames.shape[0]):
            feat = self.trunk(frames[t : t + 1])
            feat = feat + F.interpolate(self.pos_embed, size=feat.shape[-2:], mode="bicubic")
            seq, pos = feat.flatten(2).permute(0, 2, 1), self.pos(feat).flatten(2).permute(0, 2, 1)
            bank = {**outputs["cond"], **outputs["non_cond"]}
            if not bank:
                seq = seq + self.no_mem_embed
            else:
                memories, pointers = [], []
                for back in range(1, 3):
                    prev = bank.get(t - back)
                    if prev is None:
                        continue
                    memories.append(prev["maskmem"].flatten(2).permute(0, 2, 1) + self.tpos[back - 1])
                    pointers.append(prev["obj_ptr"].unsqueeze(1))
                memory = torch.cat(memories + pointers, dim=1)
                seq = seq + self.self_attn(self.norm(seq) + pos, seq + pos, seq)
                seq = seq + self.cross_attn(self.norm(seq), memory, memory, num_k_exclude_rope=len(pointers))
            feat = seq.permute(0, 2, 1).view_as(feat)
            low, ious, pointer, score = self.decode(feat)
            mask = F.interpolate(low, size=feat.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
            mask_for_mem = torch.sigmoid(mask) * 20.0 - 10.0 if t else (mask > 0).float()
            current = {
                "maskmem": self.mem(torch.cat([feat, mask_for_mem], 1)),
                "obj_ptr": pointer,
                "pred": low,
                "ious": ious,
                "prompt": None,
            }
            outputs["cond" if t == 0 else "non_cond"][t] = current
        ordered = OrderedDict((f"f{t}", v["pred"]) for k in outputs for t, v in outputs[k].items())
        return ordered, Tracked(low, [score, ious]), outputs


@case
def prompted_tracker() -> Case:
    return Tracker(), (torch.rand(3, 3, 16, 24),)

"""Object segmentation with memories: banks that grow, top-k reads, object managers, structured results."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from wild_kit import Case, Registry, registrar

CASES: Registry = {}
case = registrar(CASES)


class KeyValueMemory:
    def __init__(self) -> None:
        self._keys: list[Any] = []
        self.k = self.s = self.obj_groups = None
        self.values: list[torch.Tensor] = []

    def add(self, key, value, shrinkage, objects):
        new_count = 0
        if self.k is None:
            self.k, self.s = key, shrinkage
        else:
            self.k, self.s = torch.cat([self.k, key], -1), torch.cat([self.s, shrinkage], -1)
        for gi in range(value.shape[0]):
            if gi < len(self.values):
                self.values[gi] = torch.cat([self.values[gi], value[gi]], -1)
            else:
                self.values.append(value[gi])
                new_count += 1
        return new_count

    def remove_old(self, max_size):
        if self.size > max_size:
            self.k, self.s = self.k[:, :, -max_size:], self.s[:, :, -max_size:]
            self.values = [v[:, -max_size:] for v in self.values]

    @property
    def size(self):
        return 0 if self.k is None else self.k.shape[-1]


def get_similarity(mk, ms, qk, qe):
    CK = mk.shape[1]
    mk, ms = mk.flatten(start_dim=2), ms.flatten(start_dim=1).unsqueeze(2) if ms is not None else None
    qk, qe = qk.flatten(start_dim=2), qe.flatten(start_dim=2) if qe is not None else None
    mk = mk.transpose(1, 2)
    a_sq, two_ab = (mk.pow(2) @ qe), 2 * (mk @ (qk * qe))
    b_sq = (qe * qk.pow(2)).sum(1, keepdim=True)
    similarity = -a_sq + two_ab - b_sq
    return similarity * ms / math.sqrt(CK) if ms is not None else similarity / math.sqrt(CK)


def do_softmax(similarity, top_k=None, inplace=False, return_usage=False):
    if top_k is not None:
        values, indices = torch.topk(similarity, k=top_k, dim=1)
        x_exp = values.exp_()
        x_exp /= torch.sum(x_exp, dim=1, keepdim=True)
        if inplace:
            similarity.zero_().scatter_(1, indices, x_exp)
            affinity = similarity
        else:
            affinity = torch.zeros_like(similarity).scatter_(1, indices, x_exp)
    else:
        maxes = torch.max(similarity, dim=1, keepdim=True)[0]
        x_exp = torch.exp(similarity - maxes)
        affinity = x_exp / torch.sum(x_exp, dim=1, keepdim=True)
    return (affinity, affinity.sum(dim=2)) if return_usage else affinity


def aggregate(prob, dim, return_logits=False):
    new_prob = torch.cat([torch.prod(1 - prob, dim=dim, keepdim=True), prob], dim).clamp(1e-7, 1 - 1e-7)
    logits = torch.log(new_prob / (1 - new_prob))
    prob = F.softmax(logits, dim=dim)
    return (logits, prob) if return_logits else prob


def interpolate_groups(g, ratio, mode, align_corners):
    b, n = g.shape[:2]
    g = F.interpolate(g.flatten(start_dim=0, end_dim=1), scale_factor=ratio, mode=mode, align_corners=align_corners)
    return g.view(b, n, *g.shape[1:])


class TopK(nn.Module):
    """A clip with a first mask: keys, shrinkage and selection, hidden state per object, memory every other frame."""

    def __init__(self, c: int = 4, mem_every: int = 2) -> None:
        super().__init__()
        self.hidden_dim, self.mem_every = c, mem_every
        self.f16, self.f8 = (
            nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(True)),
            nn.Conv2d(3, c, 3, 2, 1),
        )
        self.key_proj, self.d_proj, self.e_proj = (
            nn.Conv2d(8, c, 3, padding=1),
            nn.Conv2d(8, 1, 3, padding=1),
            nn.Conv2d(8, c, 3, padding=1),
        )
        nn.init.orthogonal_(self.key_proj.weight.data)
        self.value = nn.Conv2d(5, c, 3, 4, 1)
        self.transform, self.pred = nn.Conv2d(2 * c, 3 * c, 3, padding=1), nn.Conv2d(c, 1, 3, padding=1)
        self.fuser = nn.Conv2d(2 * c + 8, c, 3, padding=1)

    def encode_key(self, frame, need_sk=True, need_ek=True):
        f16 = self.f16(frame)
        shrinkage = self.d_proj(f16) ** 2 + 1 if need_sk else None
        selection = torch.sigmoid(self.e_proj(f16)) if need_ek else None
        return self.key_proj(f16), shrinkage, selection, f16, self.f8(frame)

    def encode_value(self, frame, masks):
        num_objects = masks.shape[1]
        if num_objects != 1:
            others = torch.cat([torch.sum(masks[:, [j for j in range(num_objects) if i != j]], dim=1, keepdim=True)
                                for i in range(num_objects)], 1)  # fmt: skip
        else:
            others = torch.zeros_like(masks)
        g = torch.stack([masks, others], 2)
        frame = frame.unsqueeze(1).expand(-1, num_objects, -1, -1, -1)
        b, n = g.shape[:2]
        g = self.value(torch.cat([frame, g], 2).flatten(0, 1))
        return g.view(b, n, *g.shape[1:])

    def segment(self, f16, f8, readout, hidden):
        b, n = readout.shape[:2]
        g = torch.cat([readout, hidden], 2)
        x = torch.cat([f16.unsqueeze(1).expand(-1, n, -1, -1, -1), g], 2).flatten(0, 1)
        x = self.fuser(x).view(b, n, -1, *x.shape[-2:])
        vals = self.transform(torch.cat([x, hidden], 2).flatten(0, 1)).view(b, n, -1, *x.shape[-2:])
        forget = torch.sigmoid(vals[:, :, : self.hidden_dim])
        update = torch.sigmoid(vals[:, :, self.hidden_dim : self.hidden_dim * 2])
        new = torch.tanh(vals[:, :, self.hidden_dim * 2 :])
        hidden = forget * hidden * (1 - update) + update * new
        x = interpolate_groups(x, 2, "bilinear", False) + f8.unsqueeze(1)
        logits = self.pred(F.relu(x.flatten(0, 1))).view(b, n, *x.shape[-2:])
        prob = torch.sigmoid(F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False))
        return hidden, *aggregate(prob, dim=1, return_logits=True)

    def forward(self, frames, first_mask):
        memory, hidden, results = KeyValueMemory(), None, []
        for ti in range(frames.shape[1]):
            frame = frames[:, ti]
            key, shrinkage, selection, f16, f8 = self.encode_key(frame)
            if ti == 0:
                prob = aggregate(first_mask, dim=1)
                hidden = torch.zeros((1, first_mask.shape[1], self.hidden_dim, *key.shape[-2:]), device=key.device)
            else:
                similarity = get_similarity(memory.k, memory.s, key, selection)
                affinity, usage = do_softmax(similarity, top_k=6, inplace=True, return_usage=True)
                read = torch.stack([v @ affinity[0] for v in memory.values], 0)
                hidden, _, prob = self.segment(f16, f8, read.view(1, *read.shape[:2], *key.shape[-2:]), hidden)
            results.append(torch.argmax(prob[0], 0) if ti == 0 else prob[0])
            if ti % self.mem_every == 0:
                value = self.encode_value(frame, prob[:, 1:])
                memory.add(key.flatten(2), value[0].flatten(2), shrinkage.flatten(2)[:, 0][:, None], [1, 2])
                memory.remove_old(30)
        return results


@case
def topk_memory() -> Case:
    return TopK(), (torch.rand(1, 5, 3, 16, 16), (torch.rand(1, 2, 16, 16) > 0.5).float())


class ObjectInfo:
    def __init__(self, id: int) -> None:
        self.id = id
        self.poke_count = 0

    def __hash__(self):
        return hash(self.id)

    def __eq__(self, other):
        if type(other) is int:
            return self.id == other
        return self.id == other.id

    def __repr__(self):
        return f"(ID: {self.id})"


class ObjectManager:
    def __init__(self) -> None:
        self.obj_to_tmp_id: dict[ObjectInfo, int] = {}
        self.tmp_id_to_obj: dict[int, ObjectInfo] = {}
        self.all_historical_object_ids: list[int] = []

    def add_new_objects(self, objects):
        corresponding = []
        for obj in objects:
            if isinstance(obj, int):
                obj = ObjectInfo(id=obj)
            if obj not in self.obj_to_tmp_id:
                self.obj_to_tmp_id[obj] = len(self.obj_to_tmp_id) + 1
                self.tmp_id_to_obj[len(self.obj_to_tmp_id)] = obj
            corresponding.append(self.obj_to_tmp_id[obj])
        return corresponding, [o.id for o in self.obj_to_tmp_id]

    def realize_dict(self, obj_dict, dim=1):
        return torch.stack([obj_dict[obj.id] for obj in self.tmp_id_to_obj.values()], dim=dim)

    @property
    def num_obj(self):
        return len(self.obj_to_tmp_id)


@contextmanager
def safe_autocast(enabled=True):
    if torch.cuda.is_available():
        with torch.amp.autocast("cuda", enabled=enabled):
            yield
    elif torch.backends.mps.is_built() and torch.backends.mps.is_available():
        with torch.amp.autocast("mps", enabled=False):
            yield
    else:
        yield


class ChannelAttention(nn.Module):
    def __init__(self, c: int, gamma: int = 2, b: int = 1) -> None:
        super().__init__()
        t = int(abs((math.log2(c) + b) / gamma))
        k = t if t % 2 else t + 1
        self.avg_pool, self.conv, self.relu = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv1d(1, 1, k, padding=int(k / 2), bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2))
        return x * self.relu(y.transpose(-1, -2).unsqueeze(-1)).expand_as(x)


class Sensory(nn.Module):
    """Objects in dictionaries keyed by hashed objects; masked queries; sensory state; buffers set again each call."""

    def __init__(self, c: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.c, self.heads = c, heads
        self.pixel_encoder, self.mask_encoder = nn.Conv2d(3, c, 3, 2, 1), nn.Conv2d(4, c, 3, 2, 1)
        self.attn, self.ca = nn.MultiheadAttention(c, heads, batch_first=True, add_bias_kv=False), ChannelAttention(c)
        self.query, self.mask_pred = nn.Embedding(4, c), nn.Linear(c, 1)
        self.summary, self.decoder = nn.Linear(c, 5), nn.Conv2d(c, 1, 3, 1, 1)
        self.register_buffer("pixel_mean", torch.Tensor([0.4, 0.4, 0.4]).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.Tensor([0.2, 0.2, 0.2]).view(-1, 1, 1), False)
        self.device_probe = None

    def get_mask(self, logits):
        """Foreground keys for half of the queries, background for the rest; rows with nothing left are opened."""
        prob = torch.sigmoid(logits)
        fg = (prob >= 0.5).flatten(1)
        inv = torch.logical_not(fg)
        mask = torch.stack([fg, fg, inv, inv], 1)[:, None].repeat(1, self.heads, 1, 1).flatten(0, 1)
        mask = torch.logical_not(mask)
        mask[torch.where(mask.sum(-1) == mask.shape[-1])] = False
        return mask

    def step(self, feat, sensory, last_mask):
        bs, n = sensory.shape[:2]
        pix = (feat.unsqueeze(1) + sensory).flatten(0, 1)
        tokens = self.ca(pix).flatten(2).transpose(1, 2)
        with torch.amp.autocast(device_type="cpu", enabled=False):
            logits = self.mask_pred(tokens.float()).squeeze(-1)
        q = self.query.weight.unsqueeze(0).expand(bs * n, -1, -1)
        out, weights = self.attn(
            q, tokens, tokens, attn_mask=self.get_mask(logits), need_weights=True, average_attn_weights=False
        )
        gate = torch.sigmoid(out.sum(1))[:, :, None, None]
        sensory = (pix * gate + torch.tanh(pix)).view(bs, n, *pix.shape[1:]) * 0.5
        logits = F.interpolate(self.decoder(sensory.flatten(0, 1)), scale_factor=2, mode="bilinear").view(
            bs, n, *last_mask.shape[-2:]
        )
        return sensory, logits, weights

    def forward(self, frames, mask):
        manager, sensory, outputs = ObjectManager(), {}, {}
        self.pixel_mean, self.pixel_std = self.pixel_mean.to(frames.device), self.pixel_std.to(frames.device)
        tmp_ids, _ = manager.add_new_objects([1, 7])
        for obj in [1, 7]:
            if obj not in sensory:
                sensory[obj] = torch.zeros((1, self.c, *(s // 2 for s in mask.shape[-2:])), device=mask.device)
        last, msk_value = mask, defaultdict(list)
        for ti in range(frames.shape[0]):
            image = (frames[ti : ti + 1] - self.pixel_mean) / self.pixel_std
            with safe_autocast(enabled=False):
                feat = self.pixel_encoder(image)
                if ti % 2 == 0:
                    for tmp_id, obj in manager.tmp_id_to_obj.items():
                        g = self.mask_encoder(torch.cat([image, last[:, tmp_id - 1 : tmp_id]], 1))
                        msk_value[obj.id].append(g)
                        sensory[obj.id] = sensory[obj.id] + g
                new, logits, w = self.step(feat, manager.realize_dict(sensory), last)
            for i, obj in enumerate(manager.tmp_id_to_obj):
                sensory[manager.tmp_id_to_obj[obj].id] = new[:, i]
            last = torch.sigmoid(logits)
            area = F.interpolate(last, size=feat.shape[-2:], mode="area")
            outputs[ti] = {
                "prob": last,
                "area": area,
                "weights": w,
                "objects": [o.id for o in manager.tmp_id_to_obj.values()],
            }
        return outputs


@case
def object_manager() -> Case:
    return Sensory(), (torch.rand(3, 3, 8, 12), torch.rand(1, 2, 8, 12))

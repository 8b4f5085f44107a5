"""Frame interpolation by feature pyramids and by attention between frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from wild_kit import Case, Registry, registrar

CASES: Registry = {}
case = registrar(CASES)


class Pyramids(nn.Module):
    """Feature pyramids without batch norm, `same` padding around even kernels, flow synthesis from coarse to fine."""

    def __init__(self, levels: int = 3, c: int = 4) -> None:
        super().__init__()
        self.levels = levels
        self.convs = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3 if i == 0 else c << (i - 1), c << i, 3, padding="same"), nn.LeakyReLU(0.2))
                for i in range(2)
            ]
        )
        self.predict = nn.Sequential(
            nn.Conv2d(2 * c, c, 2, padding="same"), nn.LeakyReLU(0.2), nn.Conv2d(c, 2, 1, padding="same")
        )
        self.fuse = nn.ModuleList(
            [nn.Conv2d(2 * c + 6, 8, 2, padding="same"), nn.Conv2d(8 + 6 + 2 * c, 3, 3, padding="same")]
        )

    def image_pyramid(self, image):
        pyramid = []
        for i in range(self.levels):
            pyramid.append(image)
            if i < self.levels - 1:
                image = F.avg_pool2d(image, 2, 2)
        return pyramid

    @staticmethod
    def warp(image, flow):
        flow = -flow.flip(1)
        ls1 = 1 - 1 / flow.shape[3]
        ls2 = 1 - 1 / flow.shape[2]
        normalized = (
            flow.permute(0, 2, 3, 1) / torch.tensor([flow.shape[2] * 0.5, flow.shape[3] * 0.5])[None, None, None]
        )
        normalized = torch.flip(normalized, dims=[-1])
        grid = torch.stack(
            torch.meshgrid(
                torch.linspace(-ls1, ls1, flow.shape[3]), torch.linspace(-ls2, ls2, flow.shape[2]), indexing="xy"
            ),
            dim=-1,
        )
        grid = grid.unsqueeze(0) - normalized
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def forward(self, x0, x1, batch_dt):
        pyr0, pyr1 = self.image_pyramid(x0), self.image_pyramid(x1)
        feats0, feats1 = [self.convs[0](p) for p in pyr0], [self.convs[0](p) for p in pyr1]
        flows, v = [], None
        for i in reversed(range(self.levels)):
            if v is None:
                v = self.predict(torch.cat([feats0[i], feats1[i]], dim=1))
            else:
                v = F.interpolate(2 * v, size=[feats0[i].shape[2], feats0[i].shape[3]], mode="bilinear")
                v = v + self.predict(torch.cat([feats0[i], self.warp(feats1[i], v)], dim=1))
            flows.insert(0, v)
        net = None
        for i in reversed(range(2)):
            m = self.warp(torch.cat([pyr0[i], feats0[i]], 1), flows[i] * batch_dt[..., None, None])
            n = self.warp(torch.cat([pyr1[i], feats1[i]], 1), flows[i] * (1 - batch_dt)[..., None, None])
            both = torch.cat([m, n], 1)
            if net is None:
                net = self.fuse[0](both)
            else:
                net = F.interpolate(net, size=both.shape[-2:], mode="nearest")
                net = self.fuse[1](torch.cat([both, net], dim=1))
        return net, {"flow": flows, "dt": batch_dt}


@case
def feature_pyramids() -> Case:
    return Pyramids(), (torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24), torch.full((1, 1), 0.5))


def window_partition(x, ws):
    B, H, W, C = x.shape
    return (
        x.view(B, H // ws[0], ws[0], W // ws[1], ws[1], C)
        .permute(0, 1, 3, 2, 4, 5)
        .contiguous()
        .view(-1, ws[0] * ws[1], C)
    )


class InterFrame(nn.Module):
    """Attention of one frame's windows on the other's; masks and sizes become buffers while the network runs."""

    def __init__(self, dim: int = 8, heads: int = 2, shift: int = 2, ws: int = 4) -> None:
        super().__init__()
        self.dim, self.heads, self.shift, self.ws = dim, heads, shift, (ws, ws)
        self.stem, self.norm = nn.Conv2d(3, dim, 3, 2, 1), nn.LayerNorm(dim)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.cor_embed, self.motion_proj, self.head = nn.Linear(2, 4), nn.Linear(4, 4), nn.Conv2d(dim + 4, 6, 1)
        self.stars, self.scale = {}, (dim // heads) ** -0.5
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def get_cor(self, shape):
        k = str(shape)
        if k not in self.stars:
            hor = torch.linspace(-1.0, 1.0, shape[2]).view(1, 1, 1, shape[2]).expand(shape[0], -1, shape[1], -1)
            ver = torch.linspace(-1.0, 1.0, shape[1]).view(1, 1, shape[1], 1).expand(shape[0], -1, -1, shape[2])
            self.stars[k] = torch.cat([hor, ver], 1).permute(0, 2, 3, 1)
        return self.stars[k]

    def get_mask(self, H, W):
        if hasattr(self, "HW") and self.HW.item() == H * W:
            return self.attn_mask
        img = torch.zeros((1, H, W, 1))
        cnt = 0
        for h in (slice(0, -4), slice(-4, -self.shift), slice(-self.shift, None)):
            for w in (slice(0, -4), slice(-4, -self.shift), slice(-self.shift, None)):
                img[:, h, w, :] = cnt
                cnt += 1
        m = window_partition(img, self.ws).squeeze(-1)
        m = m.unsqueeze(1) - m.unsqueeze(2)
        m = m.masked_fill(m != 0, (-100.0)).masked_fill(m == 0, 0.0)
        self.register_buffer("attn_mask", m)
        self.register_buffer("HW", torch.Tensor([H * W]))
        return m

    def forward(self, x):
        x = self.stem(torch.cat([x[:, :3], x[:, 3:]], 0)).permute(0, 2, 3, 1)
        B, H, W, C = x.shape
        mask, cor = self.get_mask(H, W), self.get_cor((B, H, W))
        y = torch.roll(self.norm(x), shifts=(-self.shift, -self.shift), dims=(1, 2))
        rev = torch.cat([y[B // 2 :], y[: B // 2]])
        win, rwin, cwin = (window_partition(v, self.ws) for v in (y, rev, cor))
        nw, n = win.shape[0], win.shape[1]
        q = self.q(win).reshape(nw, n, self.heads, C // self.heads).permute(0, 2, 1, 3)
        kv = self.kv(rwin).reshape(nw, n, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        emb = self.cor_embed(cwin).reshape(nw, n, self.heads, 2).permute(0, 2, 1, 3)
        attn = (q @ kv[0].transpose(-2, -1)) * self.scale
        attn = attn.view(nw // mask.shape[0], mask.shape[0], self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
        attn = attn.view(nw, self.heads, n, n).softmax(dim=-1)
        out = self.proj((attn @ kv[1]).transpose(1, 2).reshape(nw, n, C))
        c = (attn @ emb).transpose(1, 2).reshape(nw, n, -1) - self.cor_embed(cwin)
        both = torch.cat([out * self.gamma, self.motion_proj(c)], -1)
        both = both.view(B, H // 4, W // 4, 4, 4, C + 4).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C + 4)
        both = torch.roll(both, shifts=(self.shift, self.shift), dims=(1, 2)).permute(0, 3, 1, 2)
        a, b = self.head(both).split(B // 2, dim=0)
        return [a, b], {"motion": both[:, C:]}


@case
def inter_frame_attention_cold() -> Case:
    return InterFrame(), (torch.rand(1, 6, 16, 16),)


@case
def inter_frame_attention_warm() -> Case:
    model = InterFrame()
    with torch.no_grad():
        model(torch.rand(1, 6, 16, 16))
    return model, (torch.rand(1, 6, 16, 16),)

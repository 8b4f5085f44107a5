"""Optical flow and frame interpolation: correlation pyramids, recurrent updates, warps with cached grids, pyramids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from wild_kit import Case, Registry, registrar

CASES: Registry = {}
case = registrar(CASES)


def bilinear_sampler(img, coords, mode="bilinear", mask=False):
    H, W = img.shape[-2:]
    xgrid, ygrid = coords.split([1, 1], dim=-1)
    xgrid, ygrid = 2 * xgrid / (W - 1) - 1, 2 * ygrid / (H - 1) - 1
    img = F.grid_sample(img, torch.cat([xgrid, ygrid], dim=-1), align_corners=True)
    if mask:
        mask = (xgrid > -1) & (ygrid > -1) & (xgrid < 1) & (ygrid < 1)
        return img, mask.float()
    return img


def coords_grid(batch, ht, wd, device):
    coords = torch.meshgrid(torch.arange(ht, device=device), torch.arange(wd, device=device), indexing="ij")
    return torch.stack(coords[::-1], dim=0).float()[None].repeat(batch, 1, 1, 1)


class CorrBlock:
    def __init__(self, fmap1, fmap2, num_levels=2, radius=2) -> None:
        self.num_levels, self.radius, self.corr_pyramid = num_levels, radius, []
        corr = CorrBlock.corr(fmap1, fmap2)
        batch, h1, w1, dim, h2, w2 = corr.shape
        corr = corr.reshape(batch * h1 * w1, dim, h2, w2)
        self.corr_pyramid.append(corr)
        for _ in range(self.num_levels - 1):
            corr = F.avg_pool2d(corr, 2, stride=2)
            self.corr_pyramid.append(corr)

    def __call__(self, coords):
        r = self.radius
        coords = coords.permute(0, 2, 3, 1)
        batch, h1, w1, _ = coords.shape
        out_pyramid = []
        for i in range(self.num_levels):
            d = torch.linspace(-r, r, 2 * r + 1, device=coords.device)
            delta = torch.stack(torch.meshgrid(d, d, indexing="ij"), axis=-1)
            centroid = coords.reshape(batch * h1 * w1, 1, 1, 2) / 2**i
            lookup = centroid + delta.view(1, 2 * r + 1, 2 * r + 1, 2)
            out_pyramid.append(bilinear_sampler(self.corr_pyramid[i], lookup).view(batch, h1, w1, -1))
        return torch.cat(out_pyramid, dim=-1).permute(0, 3, 1, 2).contiguous().float()

    @staticmethod
    def corr(fmap1, fmap2):
        batch, dim, ht, wd = fmap1.shape
        a, b = fmap1.view(batch, dim, ht * wd), fmap2.view(batch, dim, ht * wd)
        corr = torch.matmul(a.transpose(1, 2), b).view(batch, ht, wd, 1, ht, wd)
        return corr / torch.sqrt(torch.tensor(dim).float())


class ConvGRU(nn.Module):
    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        self.convz, self.convr, self.convq = (nn.Conv2d(hidden + inputs, hidden, 3, padding=1) for _ in range(3))

    def forward(self, h, x):
        hx = torch.cat([h, x], dim=1)
        z, r = torch.sigmoid(self.convz(hx)), torch.sigmoid(self.convr(hx))
        q = torch.tanh(self.convq(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * q


def encoder(out: int, norm: str) -> nn.Sequential:
    make = nn.InstanceNorm2d if norm == "instance" else nn.BatchNorm2d if norm == "batch" else lambda _: nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), make(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2, 1), make(8), nn.ReLU(True),
        nn.Conv2d(8, out, 3, 2, 1),
    )  # fmt: skip


class RecurrentFlow(nn.Module):
    """All-pairs correlation, refined by a GRU; convex upsampling through unfold; autocast contexts that are off."""

    def __init__(self, args) -> None:
        super().__init__()
        self.args = args
        self.fnet, self.cnet = encoder(8, "instance"), encoder(12, "none")
        self.convf, self.convc = nn.Conv2d(2, 4, 7, padding=3), nn.Conv2d(50, 6, 1)
        self.gru, self.flow_head = ConvGRU(6, 6 + 10), nn.Conv2d(6, 2, 3, padding=1)
        self.mask = nn.Conv2d(6, 9 * 64, 1)

    def upsample_flow(self, flow, mask):
        N, _, H, W = flow.shape
        mask = torch.softmax(mask.view(N, 1, 9, 8, 8, H, W), dim=2)
        up = F.unfold(8 * flow, [3, 3], padding=1).view(N, 2, 9, 1, 1, H, W)
        up = torch.sum(mask * up, dim=2).permute(0, 1, 4, 2, 5, 3)
        return up.reshape(N, 2, 8 * H, 8 * W)

    def forward(self, image1, image2, iters=2, flow_init=None, test_mode=False):
        image1, image2 = 2 * (image1 / 255.0) - 1.0, 2 * (image2 / 255.0) - 1.0
        image1, image2 = image1.contiguous(), image2.contiguous()
        with torch.amp.autocast("cuda", enabled=self.args["mixed_precision"]):
            fmap1, fmap2 = torch.split(self.fnet(torch.cat([image1, image2], dim=0)), [1, 1], dim=0)
        corr_fn = CorrBlock(fmap1.float(), fmap2.float())
        with torch.autocast(device_type="cpu", enabled=self.args["mixed_precision"]):
            net, inp = torch.split(self.cnet(image1), [6, 6], dim=1)
            net, inp = torch.tanh(net), torch.relu(inp)
        N, _, H, W = image1.shape
        coords0, coords1 = (coords_grid(N, H // 8, W // 8, device=image1.device) for _ in range(2))
        if flow_init is not None:
            coords1 = coords1 + flow_init
        flow_predictions = []
        for _ in range(iters):
            coords1 = coords1.detach()
            corr, flow = corr_fn(coords1), coords1 - coords0
            motion = torch.cat([F.relu(self.convc(corr)), F.relu(self.convf(flow))], dim=1)
            net = self.gru(net, torch.cat([inp, motion], dim=1))
            coords1 = coords1 + self.flow_head(net)
            flow_predictions.append(self.upsample_flow(coords1 - coords0, 0.25 * self.mask(net)))
        if test_mode:
            return coords1 - coords0, flow_predictions[-1]
        return flow_predictions


@case
def recurrent_flow() -> Case:
    return RecurrentFlow({"mixed_precision": False}), (255 * torch.rand(1, 3, 32, 40), 255 * torch.rand(1, 3, 32, 40))


backwarp_tenGrid: dict = {}


def cached_warp(tenInput, tenFlow):
    k = (str(tenFlow.device), str(tenFlow.size()))
    if k not in backwarp_tenGrid:
        hor = (
            torch.linspace(-1.0, 1.0, tenFlow.shape[3])
            .view(1, 1, 1, -1)
            .expand(tenFlow.shape[0], -1, tenFlow.shape[2], -1)
        )
        ver = (
            torch.linspace(-1.0, 1.0, tenFlow.shape[2])
            .view(1, 1, -1, 1)
            .expand(tenFlow.shape[0], -1, -1, tenFlow.shape[3])
        )
        backwarp_tenGrid[k] = torch.cat([hor, ver], 1).to(tenFlow.device)
    tenFlow = torch.cat(
        [
            tenFlow[:, 0:1] / ((tenInput.shape[3] - 1.0) / 2.0),
            tenFlow[:, 1:2] / ((tenInput.shape[2] - 1.0) / 2.0),
        ],
        1,
    )
    g = (backwarp_tenGrid[k] + tenFlow).permute(0, 2, 3, 1)
    return F.grid_sample(input=tenInput, grid=g, mode="bilinear", padding_mode="border", align_corners=True)


def conv_prelu(i: int, o: int, s: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=True), nn.PReLU(o))


class FlowBlock(nn.Module):
    def __init__(self, i: int, c: int = 6) -> None:
        super().__init__()
        self.conv0, self.convblock = nn.Sequential(conv_prelu(i, c, 2), conv_prelu(c, c, 2)), conv_prelu(c, c)
        self.lastconv = nn.ConvTranspose2d(c, 5, 4, 2, 1)

    def forward(self, x, flow, scale):
        if scale != 1:
            x = F.interpolate(x, scale_factor=1.0 / scale, mode="bilinear", align_corners=False)
        if flow is not None:
            flow = F.interpolate(flow, scale_factor=1.0 / scale, mode="bilinear", align_corners=False) * 1.0 / scale
            x = torch.cat((x, flow), 1)
        x = self.conv0(x)
        x = self.convblock(x) + x
        tmp = F.interpolate(self.lastconv(x), scale_factor=scale * 2, mode="bilinear", align_corners=False)
        return tmp[:, :4] * scale * 2, tmp[:, 4:5]


class CachedWarps(nn.Module):
    """Coarse-to-fine intermediate flow; grids live in a dictionary of the Python module; lists of every stage out."""

    def __init__(self) -> None:
        super().__init__()
        self.block0, self.block1, self.block_tea = FlowBlock(6), FlowBlock(13 + 4), FlowBlock(16 + 4)

    def forward(self, x, scale=(2, 1), timestep=0.5):
        channel = x.shape[1] // 2
        img0, img1, gt = x[:, :channel], x[:, channel:], x[:, 6:]
        flow_list, merged, mask_list, warped0, warped1, flow = [], [], [], img0, img1, None
        for i, block in enumerate([self.block0, self.block1]):
            if flow is not None:
                d, m = block(torch.cat((img0, img1, warped0, warped1, mask), 1), flow, scale=scale[i])  # noqa: F821
                flow, mask = flow + d, mask + m  # noqa: F821
            else:
                flow, mask = block(torch.cat((img0, img1), 1), None, scale=scale[i])
            mask_list.append(torch.sigmoid(mask))
            flow_list.append(flow)
            warped0, warped1 = cached_warp(img0, flow[:, :2]), cached_warp(img1, flow[:, 2:4])
            merged.append((warped0, warped1))
        flow_teacher = merged_teacher = None
        if gt.shape[1] == 3:
            flow_teacher, _ = self.block_tea(torch.cat((img0, img1, warped0, warped1, gt), 1), flow, scale=1)
        for i in range(2):
            merged[i] = merged[i][0] * mask_list[i] + merged[i][1] * (1 - mask_list[i])
        return flow_list, mask_list[1], merged, flow_teacher, merged_teacher, 0


@case
def cached_warps() -> Case:
    return CachedWarps(), (torch.rand(1, 6, 16, 24),)


class ResBlock(nn.Module):
    """Convolutions of which some see only the side channels, written back in place."""

    def __init__(self, c: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv1, self.conv2 = conv_prelu(c, c), conv_prelu(side, side)
        self.conv3, self.prelu = nn.Conv2d(c, c, 3, 1, 1), nn.PReLU(c)

    def forward(self, x):
        out = self.conv1(x)
        out[:, -self.side :, :, :] = self.conv2(out[:, -self.side :, :, :].clone())
        return self.prelu(x + self.conv3(out))


def resize(x, scale_factor):
    return F.interpolate(x, scale_factor=scale_factor, mode="bilinear", align_corners=False)


def warp(img, flow):
    B, _, H, W = flow.shape
    xx = torch.linspace(-1.0, 1.0, W).view(1, 1, 1, W).expand(B, -1, H, -1)
    yy = torch.linspace(-1.0, 1.0, H).view(1, 1, H, 1).expand(B, -1, -1, W)
    grid = torch.cat([xx, yy], 1).to(img)
    flow_ = torch.cat([flow[:, 0:1] / ((W - 1.0) / 2.0), flow[:, 1:2] / ((H - 1.0) / 2.0)], 1)
    grid_ = (grid + flow_).permute(0, 2, 3, 1)
    return F.grid_sample(input=img, grid=grid_, mode="bilinear", padding_mode="border", align_corners=True)


class Intermediate(nn.Module):
    """Features refined together with the flow; time as a tensor argument; mean of both frames taken away."""

    def __init__(self, c: int = 6) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_prelu(3, c, 2), conv_prelu(c, c))
        self.decoder2 = nn.Sequential(
            conv_prelu(2 * c + 1, 2 * c), ResBlock(2 * c, 4), nn.ConvTranspose2d(2 * c, 4 + c, 4, 2, 1, bias=True)
        )
        self.decoder1 = nn.Sequential(conv_prelu(2 * c + c + 4, 2 * c), nn.ConvTranspose2d(2 * c, 8, 4, 2, 1))

    def forward(self, img0, img1, embt, scale_factor=0.5):
        mean_ = torch.cat([img0, img1], 2).mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        img0, img1 = img0 - mean_, img1 - mean_
        a, b = resize(img0, scale_factor), resize(img1, scale_factor)
        f0, f1 = self.encoder(a), self.encoder(b)
        t = embt.repeat(1, 1, f0.shape[2], f0.shape[3])
        out = self.decoder2(torch.cat([f0, f1, t], 1))
        up0, up1, ft = out[:, 0:2], out[:, 2:4], out[:, 4:]
        g0, g1 = F.interpolate(f0, scale_factor=2.0), F.interpolate(f1, scale_factor=2.0)
        f0, f1 = warp(g0, up0), warp(g1, up1)
        out = self.decoder1(torch.cat([ft, f0, f1, up0, up1], 1)[:, :22])
        up = 2.0 * resize(up0, scale_factor=2.0)
        flow0 = resize(out[:, 0:2] + up, scale_factor=1.0 / scale_factor / 2) * (1.0 / scale_factor)
        flow1 = resize(out[:, 2:4] + up, scale_factor=1.0 / scale_factor / 2) * (1.0 / scale_factor)
        mask, res = torch.sigmoid(out[:, 4:5]), out[:, 5:]
        merged = mask * warp(img0, flow0) + (1 - mask) * warp(img1, flow1) + mean_
        return {"imgt_pred": torch.clamp(merged + res, 0, 1), "flow0_pred": [flow0, up0], "mask": mask, "loss": None}


@case
def intermediate_features() -> Case:
    example = (torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24), torch.tensor(0.5).view(1, 1, 1, 1))
    return Intermediate(), example

"""Video super-resolution that aligns: optical flow pyramids, propagation over lists, deformable convolutions."""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F
from torch import nn
from wild_kit import Case, Registry, registrar

CASES: Registry = {}
case = registrar(CASES)
logger = logging.getLogger("wild")


DEFORM = (
    "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask) -> Tensor"
)


def _deform_conv2d(x, weight, offset, mask, bias, sh, sw, ph, pw, dh, dw, groups, offset_groups, use_mask):
    """Modulated deformable convolution: every tap of every output pixel samples at its own offset (y, x)."""
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    oh, ow = offset.shape[-2:]
    ys = torch.arange(oh, dtype=x.dtype)[:, None] * sh - ph
    xs = torch.arange(ow, dtype=x.dtype)[None] * sw - pw
    off, cols = offset.view(n, offset_groups, kh * kw, 2, oh, ow), []
    each = c // offset_groups
    for k in range(kh * kw):
        gy, gx = ys + k // kw * dh + off[:, :, k, 0], xs + k % kw * dw + off[:, :, k, 1]
        grid = torch.stack((gx * 2 / (w - 1) - 1, gy * 2 / (h - 1) - 1), -1).flatten(0, 1)
        tap = F.grid_sample(x.reshape(n * offset_groups, each, h, w), grid, align_corners=True).view(n, c, oh, ow)
        if use_mask:
            tap = tap * mask.view(n, offset_groups, -1, oh, ow)[:, :, k].repeat_interleave(each, 1)
        cols.append(tap.view(n, groups, c // groups, oh, ow))
    y = torch.einsum("ngckhw,gock->ngohw", torch.stack(cols, 3), weight.view(groups, o // groups, -1, kh * kw))
    return y.reshape(n, o, oh, ow) + bias.view(1, o, 1, 1)


def _deform_shape(x, weight, offset, *_):
    return x.new_empty(x.shape[0], weight.shape[0], *offset.shape[-2:])


if not hasattr(torch.ops.torchvision, "deform_conv2d"):  # under its real name: compilers know it by that
    torch.library.define("torchvision::deform_conv2d", DEFORM)
    torch.library.impl("torchvision::deform_conv2d", "CPU", _deform_conv2d)
    torch.library.register_fake("torchvision::deform_conv2d", _deform_shape)


def deform_conv2d(x, weight, offset, mask, bias, stride, pad, groups):
    return torch.ops.torchvision.deform_conv2d(
        x, weight, offset, mask, bias, stride, stride, pad, pad, 1, 1, 1, groups, True
    )


def flow_warp(x, flow, interp_mode="bilinear", padding_mode="zeros", align_corners=True):
    if x.size()[-2:] != flow.size()[1:3]:
        raise ValueError(f"sizes of input ({x.size()[-2:]}) and flow ({flow.size()[1:3]}) differ")
    _, _, h, w = x.size()
    grid_y, grid_x = torch.meshgrid(torch.arange(0, h).type_as(x), torch.arange(0, w).type_as(x), indexing="ij")
    grid = torch.stack((grid_x, grid_y), 2).float()
    grid.requires_grad = False
    vgrid = grid + flow
    gx = 2.0 * vgrid[:, :, :, 0] / max(w - 1, 1) - 1.0
    gy = 2.0 * vgrid[:, :, :, 1] / max(h - 1, 1) - 1.0
    scaled = torch.stack((gx, gy), dim=3)
    return F.grid_sample(x, scaled, mode=interp_mode, padding_mode=padding_mode, align_corners=align_corners)


class ResBlock(nn.Module):
    def __init__(self, c: int, res_scale: float = 1) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = x
        return identity + self.conv2(self.relu(self.conv1(x))) * self.res_scale


class Trunk(nn.Module):
    def __init__(self, i: int, o: int, blocks: int = 1) -> None:
        super().__init__()
        main = [nn.Conv2d(i, o, 3, 1, 1, bias=True), nn.LeakyReLU(negative_slope=0.1, inplace=True)]
        self.main = nn.Sequential(*main, nn.Sequential(*[ResBlock(o) for _ in range(blocks)]))

    def forward(self, x):
        return self.main(x)


class SpyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 6, 7, 1, 3), nn.ReLU(inplace=False), nn.Conv2d(6, 2, 7, 1, 3)) for _ in range(3)
        )
        self.register_buffer("mean", torch.Tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.Tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def preprocess(self, x):
        return (x - self.mean) / self.std

    def process(self, ref, supp):
        flow, ref, supp = [], [self.preprocess(ref)], [self.preprocess(supp)]
        for _ in range(2):
            ref.insert(0, F.avg_pool2d(input=ref[0], kernel_size=2, stride=2, count_include_pad=False))
            supp.insert(0, F.avg_pool2d(input=supp[0], kernel_size=2, stride=2, count_include_pad=False))
        flow = ref[0].new_zeros([ref[0].size(0), 2, ref[0].size(2) // 2, ref[0].size(3) // 2])
        for level in range(len(ref)):
            up = F.interpolate(input=flow, scale_factor=2, mode="bilinear", align_corners=True) * 2.0
            if up.size(2) != ref[level].size(2):
                up = F.pad(input=up, pad=[0, 0, 0, 1], mode="replicate")
            if up.size(3) != ref[level].size(3):
                up = F.pad(input=up, pad=[0, 1, 0, 0], mode="replicate")
            warped = flow_warp(supp[level], up.permute(0, 2, 3, 1), padding_mode="border")
            flow = self.basic_module[level](torch.cat([ref[level], warped, up], 1)) + up
        return flow

    def forward(self, ref, supp):
        assert ref.size() == supp.size()
        h, w = ref.size(2), ref.size(3)
        w_floor, h_floor = math.floor(math.ceil(w / 8) * 8), math.floor(math.ceil(h / 8) * 8)
        ref = F.interpolate(input=ref, size=(h_floor, w_floor), mode="bilinear", align_corners=False)
        supp = F.interpolate(input=supp, size=(h_floor, w_floor), mode="bilinear", align_corners=False)
        flow = F.interpolate(input=self.process(ref, supp), size=(h, w), mode="bilinear", align_corners=False)
        flow[:, 0, :, :] *= float(w) / float(w_floor)
        flow[:, 1, :, :] *= float(h) / float(h_floor)
        return flow


class Propagate(nn.Module):
    def __init__(self, c: int = 6) -> None:
        super().__init__()
        self.c, self.spynet = c, SpyNet()
        self.backward_trunk, self.forward_trunk = Trunk(c + 3, c), Trunk(c + 3, c)
        self.fusion, self.upconv1 = nn.Conv2d(2 * c, c, 1), nn.Conv2d(c, 4 * c, 3, 1, 1)
        self.conv_last, self.pixel_shuffle = nn.Conv2d(c, 3, 3, 1, 1), nn.PixelShuffle(2)
        self.lrelu = nn.LeakyReLU(negative_slope=0.1, inplace=True)

    def get_flow(self, x):
        b, n, c, h, w = x.size()
        x_1, x_2 = x[:, :-1].reshape(-1, c, h, w), x[:, 1:].reshape(-1, c, h, w)
        backward = self.spynet(x_1, x_2).view(b, n - 1, 2, h, w)
        return self.spynet(x_2, x_1).view(b, n - 1, 2, h, w), backward

    def forward(self, x):
        flows_forward, flows_backward = self.get_flow(x)
        b, n, _, h, w = x.size()
        out_l, feat = [], x.new_zeros(b, self.c, h, w)
        for i in range(n - 1, -1, -1):
            x_i = x[:, i, :, :, :]
            if i < n - 1:
                feat = flow_warp(feat, flows_backward[:, i].permute(0, 2, 3, 1))
            feat = self.backward_trunk(torch.cat([x_i, feat], dim=1))
            out_l.insert(0, feat)
        feat = torch.zeros_like(feat)
        for i in range(n):
            x_i = x[:, i, :, :, :]
            if i > 0:
                feat = flow_warp(feat, flows_forward[:, i - 1].permute(0, 2, 3, 1))
            feat = self.forward_trunk(torch.cat([x_i, feat], dim=1))
            out = self.lrelu(self.fusion(torch.cat([out_l[i], feat], dim=1)))
            out = self.conv_last(self.lrelu(self.pixel_shuffle(self.upconv1(out))))
            base = F.interpolate(x_i, scale_factor=2, mode="bilinear", align_corners=False)
            out += base
            out_l[i] = out
        return torch.stack(out_l, dim=1)


@case
def propagation() -> Case:
    return Propagate(), (torch.rand(1, 3, 3, 8, 12),)


class Deform(nn.Module):
    """First- and second-order aligned deformable convolution; the offsets start from the flow."""

    def __init__(self, c: int, groups: int = 2) -> None:
        super().__init__()
        self.groups, self.max_residue = groups, 3
        self.weight, self.bias = nn.Parameter(torch.randn(c, 2 * c, 3, 3) / 8), nn.Parameter(torch.zeros(c))
        self.conv_offset = nn.Sequential(
            nn.Conv2d(3 * c + 4, c, 3, 1, 1), nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(c, 27 * groups, 3, 1, 1)
        )

    def forward(self, x, extra_feat, flow_1, flow_2):
        out = self.conv_offset(torch.cat([extra_feat, flow_1, flow_2], dim=1))
        o1, o2, mask = torch.chunk(out, 3, dim=1)
        offset = self.max_residue * torch.tanh(torch.cat((o1, o2), dim=1))
        offset_1, offset_2 = torch.chunk(offset, 2, dim=1)
        offset_1 = offset_1 + flow_1.flip(1).repeat(1, offset_1.size(1) // 2, 1, 1)
        offset_2 = offset_2 + flow_2.flip(1).repeat(1, offset_2.size(1) // 2, 1, 1)
        offset = torch.cat([offset_1, offset_2], dim=1)
        return deform_conv2d(x, self.weight, offset, torch.sigmoid(mask), self.bias, 1, 1, self.groups)


class SecondOrder(nn.Module):
    def __init__(self, c: int = 4) -> None:
        super().__init__()
        self.c, self.is_mirror, self.cpu_cache = c, False, False
        self.spynet, self.feat_extract = SpyNet(), Trunk(3, c)
        self.deform_align, self.backbone = nn.ModuleDict(), nn.ModuleDict()
        for i, module in enumerate(["backward_1", "forward_1"]):
            self.deform_align[module] = Deform(c)
            self.backbone[module] = Trunk((2 + i) * c, c)
        self.reconstruction, self.conv_last = Trunk(3 * c, c), nn.Conv2d(c, 12, 3, 1, 1)

    def check_if_mirror_extended(self, lqs):
        if lqs.size(1) % 2 == 0:
            a, b = torch.chunk(lqs, 2, dim=1)
            if torch.norm(a - b.flip(1)) == 0:
                self.is_mirror = True

    def propagate(self, feats, flows, module_name):
        n, t, _, h, w = flows.size()
        frame_idx, flow_idx = range(t + 1), range(-1, t)
        mapping = list(range(len(feats["spatial"])))
        mapping += mapping[::-1]
        if "backward" in module_name:
            frame_idx = frame_idx[::-1]
            flow_idx = frame_idx
        feat_prop = flows.new_zeros(n, self.c, h, w)
        for i, idx in enumerate(frame_idx):
            feat_current = feats["spatial"][mapping[idx]]
            if i > 0:
                flow_n1 = flows[:, flow_idx[i], :, :, :]
                cond_n1 = flow_warp(feat_prop, flow_n1.permute(0, 2, 3, 1))
                feat_n2, flow_n2 = torch.zeros_like(feat_prop), torch.zeros_like(flow_n1)
                cond_n2 = torch.zeros_like(cond_n1)
                if i > 1:
                    feat_n2 = feats[module_name][-2]
                    flow_n2 = flows[:, flow_idx[i - 1], :, :, :]
                    flow_n2 = flow_n1 + flow_warp(flow_n2, flow_n1.permute(0, 2, 3, 1))
                    cond_n2 = flow_warp(feat_n2, flow_n2.permute(0, 2, 3, 1))
                cond = torch.cat([cond_n1, feat_current, cond_n2], dim=1)
                feat_prop = self.deform_align[module_name](torch.cat([feat_prop, feat_n2], 1), cond, flow_n1, flow_n2)
            others = [feats[k][idx] for k in feats if k not in ["spatial", module_name]]
            feat_prop = feat_prop + self.backbone[module_name](torch.cat([feat_current] + others + [feat_prop], dim=1))
            feats[module_name].append(feat_prop)
        if "backward" in module_name:
            feats[module_name] = feats[module_name][::-1]
        return feats

    def forward(self, lqs):
        n, t, c, h, w = lqs.size()
        self.check_if_mirror_extended(lqs)
        feats = {}
        feats_ = self.feat_extract(lqs.view(-1, c, h, w)).view(n, t, -1, h, w)
        feats["spatial"] = [feats_[:, i, :, :, :] for i in range(t)]
        assert lqs.size(3) >= 8 and lqs.size(4) >= 8, "too small"
        a, b = lqs[:, :-1].reshape(-1, c, h, w), lqs[:, 1:].reshape(-1, c, h, w)
        backward = self.spynet(a, b).view(n, t - 1, 2, h, w)
        forward = backward.flip(1) if self.is_mirror else self.spynet(b, a).view(n, t - 1, 2, h, w)
        for direction, flows in (("backward", backward), ("forward", forward)):
            module = f"{direction}_1"
            feats[module] = []
            feats = self.propagate(feats, flows, module)
        outputs = []
        num = len(feats["spatial"])
        mapping_idx = list(range(num)) + list(range(num))[::-1]
        for i in range(t):
            hr = [feats[k].pop(0) for k in feats if k != "spatial"]
            hr.insert(0, feats["spatial"][mapping_idx[i]])
            hr = F.pixel_shuffle(self.conv_last(self.reconstruction(torch.cat(hr, dim=1))), 2)
            outputs.append(hr + F.interpolate(lqs[:, i], scale_factor=2, mode="bilinear"))
        return torch.stack(outputs, dim=1)


@case
def second_order() -> Case:
    return SecondOrder(), (torch.rand(1, 4, 3, 8, 8),)


class Attended(nn.Module):
    """Alignment by a deformable layer that warns about wild offsets, then attention over time and space."""

    def __init__(self, c: int = 4, frames: int = 3) -> None:
        super().__init__()
        self.center, self.c, self.frames = frames // 2, c, frames
        self.first, self.conv_offset = nn.Conv2d(3, c, 3, 1, 1), nn.Conv2d(2 * c, 27, 3, 1, 1)
        self.weight, self.bias = nn.Parameter(torch.randn(c, c, 3, 3) / 6), nn.Parameter(torch.zeros(c))
        self.emb1, self.emb2 = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 3, 1, 1)
        self.fuse, self.attn1 = nn.Conv2d(frames * c, c, 1), nn.Conv2d(frames * c, c, 1)
        self.max_pool, self.avg_pool = nn.MaxPool2d(3, stride=2, padding=1), nn.AvgPool2d(3, stride=2, padding=1)
        self.attn2, self.attn3, self.add1 = nn.Conv2d(2 * c, c, 1), nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, c, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.last, self.lrelu = nn.Conv2d(c, 3, 3, 1, 1), nn.LeakyReLU(0.1, inplace=True)

    def align(self, x, feat):
        o1, o2, mask = torch.chunk(self.conv_offset(feat), 3, dim=1)
        offset = torch.cat((o1, o2), dim=1)
        offset_absmean = torch.mean(torch.abs(offset))
        if offset_absmean > 50:
            logger.warning("offset abs mean is %s, larger than 50", offset_absmean)
        return deform_conv2d(x, self.weight, offset, torch.sigmoid(mask), self.bias, 1, 1, 1)

    def fusion(self, aligned):
        b, t, c, h, w = aligned.size()
        ref = self.emb1(aligned[:, self.center].clone())
        embedding = self.emb2(aligned.view(-1, c, h, w)).view(b, t, -1, h, w)
        corr_l = []
        for i in range(t):
            corr = torch.sum(embedding[:, i] * ref, 1)
            corr_l.append(corr.unsqueeze(1))
        prob = torch.sigmoid(torch.cat(corr_l, dim=1)).unsqueeze(2).expand(b, t, c, h, w)
        aligned = aligned.view(b, -1, h, w) * prob.contiguous().view(b, -1, h, w)
        feat, attn = self.lrelu(self.fuse(aligned)), self.lrelu(self.attn1(aligned))
        attn = self.lrelu(self.attn2(torch.cat([self.max_pool(attn), self.avg_pool(attn)], dim=1)))
        attn = self.attn3(self.upsample(attn))
        return feat * torch.sigmoid(attn) * 2 + self.add1(attn)

    def forward(self, x):
        b, t, c, h, w = x.size()
        assert h % 4 == 0 and w % 4 == 0, "The height and width must be multiple of 4."
        x_center = x[:, self.center, :, :, :].contiguous()
        feat = self.lrelu(self.first(x.view(-1, c, h, w))).view(b, t, -1, h, w)
        ref = feat[:, self.center].clone()
        aligned = [self.align(feat[:, i].clone(), torch.cat([feat[:, i], ref], 1)) for i in range(t)]
        out = self.last(self.fusion(torch.stack(aligned, dim=1)))
        out += x_center
        return out


@case
def attention_fusion() -> Case:
    return Attended(), (torch.rand(1, 3, 3, 8, 12),)


class TemporalShift(nn.Module):
    def __init__(self, net: nn.Module, n_segment: int = 3, n_div: int = 4, inplace: bool = False) -> None:
        super().__init__()
        self.net, self.n_segment, self.fold_div, self.inplace = net, n_segment, n_div, inplace

    def forward(self, x):
        return self.net(self.shift(x, self.n_segment, self.fold_div, self.inplace))

    @staticmethod
    def shift(x, n_segment, fold_div=3, inplace=False):
        nt, c, h, w = x.size()
        x = x.view(nt // n_segment, n_segment, c, h, w)
        fold = c // fold_div
        out = torch.zeros_like(x)
        out[:, :-1, :fold] = x[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return out.view(nt, c, h, w)


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True))
        self.blocks = nn.Sequential(
            *[
                nn.Sequential(TemporalShift(nn.Conv2d(8, 8, 3, 1, 1)), nn.BatchNorm2d(8), nn.ReLU(True))
                for _ in range(2)
            ]
        )
        self.new_fc, self.drop = nn.Linear(8, 5), nn.Dropout(p=0.5)

    def forward(self, inp, no_reshape=False):
        sample_len = 3
        x = self.blocks(self.stem(inp.view((-1, sample_len) + inp.size()[-2:])))
        x = self.new_fc(self.drop(x.mean(3).mean(2)))
        x = x.view((-1, 3) + x.size()[1:])
        return x.mean(dim=1, keepdim=True).squeeze(1)


@case
def temporal_shift() -> Case:
    return Shifted(), (torch.rand(1, 9, 8, 8),)

"""Integer convolutions and linear layers as calls: weights packed once, launches made for the tensors of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vqc.backends.triton import packing, tiles
from vqc.backends.triton.epilogue import Epilogue, Results, finishing, pixels
from vqc.backends.triton.launch import Launch, run
from vqc.backends.triton.tiles import TILE, Tile

SUM_LIMIT = 2**31


@dataclass(frozen=True)
class Geometry:
    """A convolution's numbers: x [N,C,H,W], out (Ho, Wo), and whether it is transposed."""

    shape: tuple[int, int, int, int]
    out: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    transposed: bool = False


@dataclass(frozen=True)
class _Part:
    """One launch: its phase, its weights in the kernel's order, and what takes the zero point off."""

    phase: packing.Phase
    weight: Tensor
    corr: Tensor
    tile: Tile
    aligned: bool


class Convolution:
    """A layer `vqc::qconv2d`, `qconv_transpose2d`, one of their masked and requantizing forms, or `qlinear`.

    Parameters: weight s8 as the operator takes it; scale f32 [O]; bias f32 [O] or None; x_zero s32 [1] or [C];
    unsigned, whether x is u8; masked; the epilogue; a device; `tile`, if not the default. Weights that all fit 4 bits
    are stored as such (`four_bits` False: not).
    """

    def __init__(self, geometry: Geometry, weight: Tensor, scale: Tensor, bias: Tensor | None, x_zero: Tensor,
                 unsigned: bool, epilogue: Epilogue, device: torch.device, *, masked: bool = False,
                 four_bits: bool | None = None, tile: Tile | None = None):  # fmt: skip
        g = geometry
        self.geometry, self.unsigned, self.masked, self.device = g, unsigned, masked, device
        self.outputs = scale.shape[0]
        self.depthwise = g.groups == g.shape[1] and g.groups > 1
        self.epilogue = epilogue.to(device)
        self.scale = scale.to(device)
        self.bias = None if bias is None else bias.to(device)
        zeros = x_zero.reshape(-1)
        self.zero = int(zeros[0])
        self.channel_zeros = bool((zeros != zeros[0]).any())
        self.zeros = zeros.to(torch.uint8 if unsigned else torch.int8).to(device) if self.channel_zeros else None
        self.four_bits = not self.depthwise and (packing.fits_four_bits(weight) if four_bits is None else four_bits)
        if g.transposed:
            phases = packing.transposed(weight, g.out, g.stride, g.pad, g.dilation, g.groups)
        else:
            phases = [packing.Phase(weight, g.out, g.stride, g.pad, g.dilation)]
        self.parts = [self._part(p, zeros, tile) for p in phases]

    @property
    def kernel(self) -> str:
        """What a report calls it."""
        return "depthwise_i8" if self.depthwise else ("conv_w4a8" if self.four_bits else "conv_i8")

    def _part(self, phase: packing.Phase, zeros: Tensor, tile: Tile | None) -> _Part:
        o, c, kh, kw = phase.weight.shape
        n = self.geometry.shape[0]
        bits = self.epilogue.signs is not None
        if self.depthwise:
            chosen = tile or tiles.depthwise(o, self.masked, bits)
            weight = phase.weight.reshape(o, kh * kw).t().contiguous()
            return _Part(phase, weight.to(self.device), torch.empty(0), chosen, False)
        positions = n * phase.size[0] * phase.size[1]
        og = o // self.geometry.groups
        chosen, aligned = tiles.dense(positions, og, c, kh * kw, w4=self.four_bits, masked=self.masked, bits=bits)
        if tile is not None:
            chosen = replace(tile, bk=chosen.bk)  # the weights' order depends on bk
        shift = 128 if self.unsigned else 0
        own = (zeros.to(torch.int64) - shift).expand(self.geometry.shape[1])
        per_group = own.reshape(self.geometry.groups, 1, c, 1, 1)
        grouped = phase.weight.to(torch.int64).reshape(self.geometry.groups, og, c, kh, kw)
        corr = (grouped * per_group).sum((2, 3, 4)).reshape(o).to(torch.int32)
        flat = packing.rows(phase.weight, chosen.bk)
        packed = packing.halves(flat, chosen.bk) if self.four_bits and flat.numel() else flat
        return _Part(phase, packed.to(self.device), corr.to(self.device), chosen, aligned)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are stored."""
        return sum(p.weight.numel() for p in self.parts)

    def launches(self, x: Tensor, operands: Sequence[Tensor] = (), mask: Tensor | None = None,
                 tiles_of_mask: tuple[Tensor, Tensor] | None = None,
                 into: Mapping[str, Tensor] | None = None) -> tuple[list[Launch], Results]:  # fmt: skip
        """The launches of one step and where their results will be.

        x: u8 or s8 of logical shape [N,C,H,W]; operands: those of the epilogue; mask: u8 [N,Ho,Wo] with its list of
        tiles and their number (`masks.find`), for a masked layer.
        """
        g, e = self.geometry, self.epilogue
        n, c, h, w = g.shape
        memory, how, results = finishing(e, operands, n, *g.out, self.outputs, self.device, into)
        laid, wide = pixels(x)
        listed, count = tiles_of_mask or (None, None)
        common = {
            "x_ptr": laid, "scale_ptr": self.scale, "bias_ptr": self.bias, "zeros_ptr": self.zeros,
            "zero": self.zero, "mask_ptr": mask,
            "tiles_ptr": listed, "count_ptr": count, **memory,
            "N": n, "H": h, "W": w, "CT": wide, "HO": g.out[0], "WO": g.out[1], "O": self.outputs,
        }  # fmt: skip
        meta = {"ZEROS": self.channel_zeros, "BIAS": self.bias is not None, "MASKED": self.masked, "TW": TILE[1],
                **how}  # fmt: skip
        return [self._launch(p, dict(common), dict(meta)) for p in self.parts], results

    def _launch(self, part: _Part, args: dict, meta: dict) -> Launch:
        g, phase, tile = self.geometry, part.phase, part.tile
        o, c, kh, kw = phase.weight.shape
        hp, wp = phase.size
        for name, pair in (("stride", phase.stride), ("pad", phase.pad), ("dil", phase.dilation), ("step", phase.step),
                           ("at", phase.at)):  # fmt: skip
            args |= {f"{name}_h": pair[0], f"{name}_w": pair[1]}
        args |= {"w_ptr": part.weight, "HP": hp, "WP": wp}
        meta |= {"KH": max(1, kh), "KW": max(1, kw), "BM": tile.bm, "BN": tile.bn}
        if self.masked:
            blocks = g.shape[0] * -(-hp // TILE[0]) * -(-wp // TILE[1])
        else:
            blocks = -(-g.shape[0] * hp * wp // tile.bm)
        if self.depthwise:
            if not kh * kw:
                meta |= {"KH": 0}
            meta |= {"EACH": o // g.groups}
            return Launch("conv.depthwise_i8", (blocks, -(-o // tile.bn)), args, meta, tile.warps, tile.stages)
        og = o // g.groups
        args |= {"corr_ptr": part.corr, "OG": og, "KPAD": part.weight.shape[1] * (2 if self.four_bits else 1)}
        meta |= {"C": c, "U8": self.unsigned, "W4": self.four_bits, "ALIGNED": part.aligned, "BK": tile.bk}
        grid = (blocks, g.groups * -(-og // tile.bn))
        return Launch("conv.conv_i8", grid, args, meta, tile.warps, tile.stages)

    def __call__(self, x: Tensor, operands: Sequence[Tensor] = (), mask: Tensor | None = None,
                 tiles_of_mask: tuple[Tensor, Tensor] | None = None,
                 into: Mapping[str, Tensor] | None = None) -> Results:  # fmt: skip
        """Run it; arguments as `launches`."""
        made, results = self.launches(x, operands, mask, tiles_of_mask, into)
        for launch in made:
            run(launch)
        return results


def why_not_integers(weight: Tensor, x_zero: Tensor, unsigned: bool, groups: int, transposed: bool) -> str | None:
    """Why the kernels cannot take a layer's numbers, or None. The weight is as its operator takes it."""
    if weight.dtype != torch.int8:
        return "its weights are s16; tensor cores multiply s8"
    low, high = (0, 255) if unsigned else (-128, 127)
    if int(x_zero.min()) < low or int(x_zero.max()) > high:
        return f"a zero point lies outside {low}..{high}"
    size = weight.to(torch.int64).abs()
    reach = size.reshape(groups, -1, *size.shape[1:]).sum((1, 3, 4)) if transposed else size.flatten(1).sum(1)
    if int(reach.max()) * 256 >= SUM_LIMIT:
        return "a sum might leave int32"
    return None

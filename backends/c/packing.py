"""Weights in the order the convolution kernels read them (vqc_conv.h), and the kernels' rows and scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from vqc.backends.c.ir import align
from vqc.ops.exact import argument
from vqc.program import shape_of

BLOCK = 8  # output channels of a register tile
BAND_BYTES = 384 << 10  # packed input a task aims at: with the weights it should stay in a second-level cache
DIRECT_BYTES = 512 << 10  # the same for a 1x1 convolution, which reads its input in place


def _blocks(channels: int) -> list[int]:
    """Sizes of the blocks of output channels: 8 each, the last one 8, 4 or 1."""
    full, rest = divmod(channels, BLOCK)
    return [BLOCK] * full + ([BLOCK if rest > 4 else 4 if rest > 1 else 1] if rest else [])


def _pack_group(w: Tensor, pair: bool) -> Tensor:
    """w [O, C, taps] -> flat [block][C][taps][block size], with pairs of channels innermost for integer kernels."""
    o, c, taps = w.shape
    if pair and c % 2:
        w = torch.cat((w, w.new_zeros(o, 1, taps)), 1)
        c += 1
    parts, at = [], 0
    for size in _blocks(o):
        block = w[at : at + size]
        if block.shape[0] < size:
            block = torch.cat((block, w.new_zeros(size - block.shape[0], c, taps)))
        at += size
        if pair:
            parts.append(block.reshape(size, c // 2, 2, taps).permute(1, 3, 0, 2).reshape(-1))
        else:
            parts.append(block.permute(1, 2, 0).reshape(-1))
    return torch.cat(parts) if parts else w.new_zeros(0)


def pack_conv(weight: Tensor, groups: int, pair: bool = False) -> Tensor:
    """Convolution weights [O, C/groups, kd, kh, kw], packed group by group."""
    o, cg, kd = weight.shape[:3]
    flat = weight.reshape(groups, o // groups, cg * kd, -1)
    return torch.cat([_pack_group(g, pair) for g in flat])


def phase_taps(phase: int, kernel: int, stride: int, padding: int, dilation: int) -> list[int]:
    """Which taps of a transposed convolution reach the outputs of one phase along one axis."""
    return [k for k in range(kernel) if (phase + padding - k * dilation) % stride == 0]


def phase_reach(kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    """How far the taps of all phases of a transposed convolution reach before and after a position, along one axis."""
    taps = [(a, i) for a in range(stride) for i in phase_taps(a, kernel, stride, padding, dilation)]
    at = [(a + padding - i * dilation) // stride for a, i in taps]
    return -min(0, *at), max(0, *at)


def pack_transposed(weight: Tensor, groups: int, stride: Sequence[int], padding: Sequence[int],
                    dilation: Sequence[int], pair: bool = False) -> Tensor:  # fmt: skip
    """Transposed convolution weights [C, O/groups, kh, kw], packed phase by phase, then group by group."""
    c, og, kh, kw = weight.shape
    w = weight.reshape(groups, c // groups, og, kh, kw).transpose(1, 2)
    parts = []
    for a in range(stride[0]):
        rows = phase_taps(a, kh, stride[0], padding[0], dilation[0])
        for e in range(stride[1]):
            cols = phase_taps(e, kw, stride[1], padding[1], dilation[1])
            taps = w[..., rows, :][..., cols].flatten(3)
            if taps.shape[3]:
                parts += [_pack_group(g, pair) for g in taps]
    return torch.cat(parts) if parts else w.new_zeros(1)


@dataclass(frozen=True)
class Geometry:
    """A convolution's sizes, every axis triple as (depth, height, width); depth 1 for pictures."""

    n: int
    c: int
    o: int
    groups: int
    size: tuple[int, int, int]
    out: tuple[int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]
    transposed: bool = False
    pair: bool = False

    @property
    def direct(self) -> bool:
        """Whether the kernel reads its input in place (cv_direct)."""
        plain = self.kernel == (1, 1, 1) and self.stride == (1, 1, 1) and self.padding == (0, 0, 0)
        return plain and not self.pair and not self.transposed

    @property
    def planes(self) -> int:
        """Packed planes of one group."""
        c = self.c // self.groups * (1 if self.transposed else self.kernel[0])
        return -(-c // 2) if self.pair else c

    def packed(self, rows: int) -> int:
        """Bytes of the packed input of a task with this many output rows."""
        if self.direct:
            return 0
        (_, kh, kw), (_, sh, sw), (_, dh, dw) = self.kernel, self.stride, self.dilation
        reach_h, reach_w = (kh - 1) * dh, (kw - 1) * dw
        if self.transposed:
            (up, down), (left, right) = self.reach(1), self.reach(2)
            return 4 * self.planes * (rows + up + down) * (-(-self.out[2] // sw) + left + right)
        phases = min(sh, reach_h + 1) * min(sw, reach_w + 1)
        return 4 * self.planes * phases * (rows + reach_h // sh) * (self.out[2] + reach_w // sw)

    def reach(self, axis: int) -> tuple[int, int]:
        """How far a transposed convolution reads before and after the position of a phase along one axis."""
        return phase_reach(self.kernel[axis], self.stride[axis], self.padding[axis], self.dilation[axis])

    def rows(self, workers: int) -> int:
        """Output rows of one task (of every phase): as many as the cache holds, and work for every worker."""
        most = -(-self.out[1] // self.stride[1]) if self.transposed else self.out[1]
        tasks = self.n * self.groups * (1 if self.transposed else self.out[0])
        if workers > 1 and tasks < 2 * workers:
            most = max(1, -(-most * tasks // (2 * workers)))
        if self.direct:
            return max(1, min(most, DIRECT_BYTES // (4 * self.size[2] * self.planes)))
        while most > 1 and self.packed(most) > BAND_BYTES:
            most = most // 2 if self.packed(most // 2) > BAND_BYTES else most - 1
        return most

    def scratch(self, rows: int) -> int:
        """Bytes of scratch of one worker, as cv_scratch divides them."""
        taps = self.kernel[1] * self.kernel[2]
        offsets = align(4 * (taps + (sum(self.kernel[1:]) if self.transposed else 0)))
        expanded = align(4 * self.planes * taps * BLOCK) if self.pair else 0
        return offsets + expanded + align(self.packed(rows))

    def fields(self, rows: int) -> dict[str, Any]:
        """The fields of vqc_conv_params."""
        (d, h, w), (od, oh, ow) = self.size, self.out
        named = {"k": self.kernel, "s": self.stride, "p": self.padding, "d": self.dilation}
        steps = {f"{k}{axis}": v[i] for k, v in named.items() for i, axis in enumerate("dhw")}
        return {"n": self.n, "c": self.c, "d": d, "h": h, "w": w, "o": self.o, "od": od, "oh": oh, "ow": ow,
                "groups": self.groups, **steps, "rows": rows}  # fmt: skip


# ---- the layout c4 -------------------------------------------------------------------------------------------------


def _pair(value: Any) -> tuple[int, int]:
    items = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    return (items[0], items[-1])


@dataclass(frozen=True)
class C4Geometry:
    """An integer convolution's sizes, for the kernels of the layout c4 (vqc_c4.h)."""

    n: int
    c: int
    o: int
    groups: int
    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    transposed: bool = False

    @staticmethod
    def of(node: fx.Node, weight: Tensor, *, transposed: bool = False) -> C4Geometry:
        """The sizes of a qconv2d or qconv_transpose2d node."""
        x, out = shape_of(node.args[0]), shape_of(node)
        return C4Geometry(
            x[0], x[1], out[1], int(argument(node, "groups", 1)), (x[2], x[3]), (out[2], out[3]),
            (weight.shape[2], weight.shape[3]), _pair(argument(node, "stride", 1)), _pair(argument(node, "padding", 0)),
            _pair(argument(node, "dilation", 1)), transposed,
        )  # fmt: skip

    @property
    def depthwise(self) -> bool:
        return self.groups == self.c == self.o and self.groups > 1 and not self.transposed

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.n, self.o, *self.out)

    @property
    def planes(self) -> int:
        """Words of channels that one task reads."""
        return 1 if self.depthwise else -(-(self.c // self.groups) // 4)

    def packed(self, rows: int) -> int:
        """Bytes of the packed band of a task with this many output rows; 0 when the input is read in place."""
        if self.transposed:
            (up, down), (left, right) = self.reach(0), self.reach(1)
            return 4 * self.planes * (rows + up + down) * (-(-self.out[1] // self.stride[1]) + left + right)
        if (self.kernel, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0)):
            return 0
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        reach_h, reach_w = (kh - 1) * dh, (kw - 1) * dw
        phases = min(sh, reach_h + 1) * min(sw, reach_w + 1)
        return 4 * self.planes * phases * (rows + reach_h // sh) * (self.out[1] + reach_w // sw)

    def reach(self, axis: int) -> tuple[int, int]:
        """How far a transposed convolution reads before and after the position of a phase along one axis."""
        return phase_reach(self.kernel[axis], self.stride[axis], self.padding[axis], self.dilation[axis])

    def rows(self, workers: int) -> int:
        """Output rows (of a phase) of one task: as many as the cache holds, and work for every worker."""
        most = -(-self.out[0] // self.stride[0]) if self.transposed else self.out[0]
        tasks = self.n * (-(-self.c // 4) if self.depthwise else self.groups)
        if workers > 1 and tasks < 2 * workers:
            most = max(1, -(-most * tasks // (2 * workers)))
        limit = C4_DEPTHWISE_BYTES if self.depthwise else BAND_BYTES
        if self.packed(1) == 0:
            return max(1, min(most, limit // (4 * self.size[1] * self.planes)))
        while most > 1 and self.packed(most) > limit:
            most = most // 2 if self.packed(most // 2) > limit else most - 1
        return most

    def scratch(self, rows: int) -> int:
        """Bytes of scratch of one worker, as the kernels divide them."""
        taps = self.kernel[0] * self.kernel[1]
        widened = 0 if self.depthwise else align(64 * self.planes * taps)
        axes = sum(self.kernel) if self.transposed else 0
        return align(4 * (taps + axes)) + widened + align(self.packed(rows))

    def fields(self, rows: int) -> dict[str, Any]:
        """The fields of vqc_qconv_c4_params but for the row program."""
        named = {"k": self.kernel, "s": self.stride, "p": self.padding, "d": self.dilation}
        steps = {f"{k}{axis}": v[i] for k, v in named.items() for i, axis in enumerate("hw")}
        return {"n": self.n, "c": self.c, "h": self.size[0], "w": self.size[1], "o": self.o, "oh": self.out[0],
                "ow": self.out[1], "groups": self.groups, **steps, "rows": rows}  # fmt: skip


C4_DEPTHWISE_BYTES = 32 << 10  # a band of one word of channels stays in a first-level cache


def _c4_corrections(w: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """What the sums are too large by for unsigned and for signed inputs, [2,O], and the zero points as words.

    w [O, C/groups, taps] as int64; zero [1 or C].
    """
    o, cg, _ = w.shape
    full = zero.to(torch.int64).reshape(-1)
    c = full.numel()
    per_output = full.reshape(1, 1) if c == 1 else full.reshape(-1, cg).repeat_interleave(o * cg // c, 0)
    sums = w.sum(2)
    offset = torch.stack(((sums * per_output).sum(1), (sums * (per_output - 128)).sum(1)))
    return offset.to(torch.int32), full


def _zero_words(full: Tensor, c: int) -> Tensor:
    """Zero points of four channels side by side, u8 [ceil(C/4) * 4]."""
    padded = torch.zeros(-(-c // 4) * 4, dtype=torch.uint8)
    padded[:c] = full.to(torch.uint8)
    return padded


def pack_c4(weight: Tensor, zero: Tensor, geo: C4Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [O, C/groups, kh, kw], corrections [2,O] and zero points (bytes), as vqc_qconv_c4 reads them."""
    w = weight.flatten(2)
    offset, full = _c4_corrections(w.to(torch.int64), zero)
    return pack_words(w, geo.groups), offset, _zero_words(full, geo.c)


def pack_words(w: Tensor, groups: int, smallest: int = 4) -> Tensor:
    """w [O, C/groups, taps] -> group after group, block after block: [C/4][taps][block][4], flat.

    `smallest`: channels of the smallest block, 4 or 1.
    """
    o, cg, taps = w.shape
    quads, og = -(-cg // 4), o // groups
    sizes = [max(smallest, size) for size in _blocks(og)]
    padded = w.new_zeros(groups, sum(sizes), quads * 4, taps)
    padded[:, :og, :cg] = w.reshape(groups, og, cg, taps)
    blocks = (b for group in padded for b in group.split(sizes))
    return torch.cat([b.reshape(len(b), quads, 4, taps).permute(1, 3, 0, 2).reshape(-1) for b in blocks])


def fits_4_bits(weight: Tensor) -> bool:
    """Whether weights can be kept in 4 bits."""
    return int(weight.min()) >= -8 and int(weight.max()) <= 7


def pack_4_bits(packed: Tensor) -> Tensor:
    """int8 weights in [-8, 7] two in a byte, the first one in the low half."""
    pairs = packed.reshape(-1, 2).to(torch.int16)
    return ((pairs[:, 0] & 15) | (pairs[:, 1] & 15) << 4).to(torch.uint8)


def pack_transposed_c4(weight: Tensor, zero: Tensor, geo: C4Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [C, O/groups, kh, kw], corrections [phase][2][O], zero points, as vqc_qconv_transpose_c4 reads them."""
    c, og, kh, kw = weight.shape
    w = weight.reshape(geo.groups, c // geo.groups, og, kh, kw).transpose(1, 2).reshape(geo.o, -1, kh, kw)
    parts, offsets = [], []
    for a in range(geo.stride[0]):
        rows = phase_taps(a, kh, geo.stride[0], geo.padding[0], geo.dilation[0])
        for e in range(geo.stride[1]):
            cols = phase_taps(e, kw, geo.stride[1], geo.padding[1], geo.dilation[1])
            taps = w[:, :, rows][..., cols].flatten(2)
            parts.append(pack_words(taps, geo.groups))
            offsets.append(_c4_corrections(taps.to(torch.int64), zero)[0])
    full = zero.to(torch.int64).reshape(-1)
    return torch.cat(parts), torch.stack(offsets), _zero_words(full, geo.c)


def pack_depthwise_c4(weight: Tensor, zero: Tensor, geo: C4Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [C, 1, kh, kw], corrections and zero points, as vqc_qconv_dw_c4 reads them."""
    w = weight.reshape(geo.c, 1, -1)
    offset, full = _c4_corrections(w.to(torch.int64), zero)
    quads, taps = -(-geo.c // 4), w.shape[2]
    padded = w.new_zeros(quads * 4, -(-taps // 4) * 4)
    padded[: geo.c, :taps] = w[:, 0]
    return padded.reshape(quads, 4, -1, 4).permute(0, 2, 1, 3).reshape(-1), offset, _zero_words(full, geo.c)

"""Weights in the order the convolution kernels read them (vqc_conv.h), and the kernels' rows and scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqc.backends.c.ir import align

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
            pitch = -(-self.out[2] // sw) + reach_w // sw + 1
            return 4 * self.planes * (rows + reach_h // sh + 1) * pitch
        phases = min(sh, reach_h + 1) * min(sw, reach_w + 1)
        return 4 * self.planes * phases * (rows + reach_h // sh) * (self.out[2] + reach_w // sw)

    def rows(self, workers: int) -> int:
        """Output rows of one task (of one phase): as many as the cache holds, and work for every worker."""
        most = -(-self.out[1] // self.stride[1]) if self.transposed else self.out[1]
        tasks = self.n * self.groups * (self.stride[1] * self.stride[2] if self.transposed else self.out[0])
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
        offsets = align(4 * taps * (2 if self.transposed else 1))
        expanded = align(4 * self.planes * taps * BLOCK) if self.pair else 0
        return offsets + expanded + align(self.packed(rows))

    def fields(self, rows: int) -> dict[str, Any]:
        """The fields of vqc_conv_params."""
        (d, h, w), (od, oh, ow) = self.size, self.out
        named = {"k": self.kernel, "s": self.stride, "p": self.padding, "d": self.dilation}
        steps = {f"{k}{axis}": v[i] for k, v in named.items() for i, axis in enumerate("dhw")}
        return {"n": self.n, "c": self.c, "d": d, "h": h, "w": w, "o": self.o, "od": od, "oh": oh, "ow": ow,
                "groups": self.groups, **steps, "rows": rows}  # fmt: skip

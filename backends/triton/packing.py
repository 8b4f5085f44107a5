"""Weights in the order the kernels read them; all on the CPU, once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Phase:
    """An ordinary convolution of a layer: one of a transposed convolution's stride * stride, or the only one.

    `weight` [O,C/groups,kh,kw]; output rows are i * step + at for i < size, input rows i * stride - pad + tap *
    dilation. Pairs are (rows, columns).
    """

    weight: Tensor
    size: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    step: tuple[int, int] = (1, 1)
    at: tuple[int, int] = (0, 0)


def _axis(kernel: int, size: int, stride: int, pad: int, dilation: int, at: int) -> tuple[list[int], int, int, int]:
    """Along one axis of a transposed convolution, output rows at, at + stride, ..: taps, pad, dilation, how many rows.

    Row i * stride + at reads input row i + (at + pad - tap * dilation) / stride, where that is whole.
    """
    found = [t for t in reversed(range(kernel)) if (at + pad - t * dilation) % stride == 0]
    offsets = [(at + pad - t * dilation) // stride for t in found]
    rows = max(0, -(-(size - at) // stride))
    if not found:
        return [], 0, 1, rows
    return found, -offsets[0], offsets[1] - offsets[0] if len(offsets) > 1 else 1, rows


def transposed(weight: Tensor, out: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int],
               dilation: tuple[int, int], groups: int) -> list[Phase]:  # fmt: skip
    """The ordinary convolutions of a transposed one; weight [C,O/groups,kh,kw]; a phase may have no taps."""
    c, og, kh, kw = weight.shape
    turned = weight.reshape(groups, c // groups, og, kh, kw).transpose(1, 2).reshape(groups * og, c // groups, kh, kw)
    phases = []
    for a in range(stride[0]):
        rows, pad_h, dil_h, size_h = _axis(kh, out[0], stride[0], pad[0], dilation[0], a)
        for b in range(stride[1]):
            cols, pad_w, dil_w, size_w = _axis(kw, out[1], stride[1], pad[1], dilation[1], b)
            if size_h and size_w:
                part = turned[:, :, rows][:, :, :, cols].contiguous()
                phases.append(Phase(part, (size_h, size_w), (1, 1), (pad_h, pad_w), (dil_h, dil_w), stride, (a, b)))
    return phases


def rows(weight: Tensor, multiple: int) -> Tensor:
    """[O,C,kh,kw] as [O,K], taps before channels, zeros up to a multiple."""
    flat = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
    return torch.nn.functional.pad(flat, (0, -flat.shape[1] % multiple)).contiguous()


def halves(flat: Tensor, block: int) -> Tensor:
    """s8 [O,K] of -8..7 as u8 [O,K/2]: in each block, tap j in the low half of byte j, tap j + block/2 in the high."""
    parts = flat.reshape(flat.shape[0], -1, 2, block // 2).to(torch.int32) & 15
    return (parts[:, :, 0] | parts[:, :, 1] << 4).to(torch.uint8).reshape(flat.shape[0], -1).contiguous()


def fits_four_bits(weight: Tensor) -> bool:
    """Whether every weight is one of -8 .. 7."""
    return weight.numel() > 0 and int(weight.min()) >= -8 and int(weight.max()) <= 7


def words(bits: Tensor) -> Tensor:
    """bool [..., C] as int32 words [..., ceil(C / 32)]: bit b of word j is channel 32 * j + b."""
    padded = torch.nn.functional.pad(bits.to(torch.int64), (0, -bits.shape[-1] % 32))
    parts = padded.reshape(*padded.shape[:-1], -1, 32) << torch.arange(32, device=bits.device)
    total = parts.sum(-1)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32).contiguous()


def unpacked(packed: Tensor, channels: int) -> Tensor:
    """int32 words [N,H,W,ceil(C/32)] as s8 +1 and -1, [N,C,H,W] in the channels_last format."""
    bits = (packed.unsqueeze(-1) >> torch.arange(32, device=packed.device, dtype=torch.int32)) & 1
    flat = bits.flatten(-2)[..., :channels]
    return (2 * flat - 1).to(torch.int8).permute(0, 3, 1, 2)


def binary_rows(weight: Tensor, group: int) -> Tensor:
    """s8 +1 and -1 [O,C,kh,kw] as [O, kh*kw * C'], C' = C up to a multiple of 32 * group words, zeros there."""
    o, c = weight.shape[:2]
    flat = torch.nn.functional.pad(weight.permute(0, 2, 3, 1), (0, -c % (32 * group)))
    return flat.reshape(o, -1).contiguous()


def binary_words(weight: Tensor) -> Tensor:
    """s8 +1 and -1 [O,C,kh,kw] as int32 words [kh*kw*ceil(C/32), O]."""
    packed = words(weight.permute(0, 2, 3, 1) > 0)
    return packed.reshape(weight.shape[0], -1).t().contiguous()

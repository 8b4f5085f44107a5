"""How large a piece of a layer one program computes: a default by shape, and the candidates a tuner may try."""

from __future__ import annotations

from dataclasses import dataclass

TILE = (8, 16)  # rows and columns of a masked tile: 128 positions


@dataclass(frozen=True)
class Tile:
    """BM positions times BN channels, BK taps (or words) at a time; warps and stages of the pipeline."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int


def power_above(n: int, least: int, most: int) -> int:
    """The smallest power of two that is at least n, held in [least, most]."""
    p = least
    while p < n and p < most:
        p *= 2
    return p


def reduction(channels: int, taps: int, w4: bool) -> tuple[int, bool]:
    """(BK, aligned): as many taps as one step of the sum takes, and whether a step stays within one tap's channels."""
    parts = 2 if w4 else 1  # two weights a byte: both halves of BK are operands of their own
    for bk in (128, 64, 32):
        if bk // parts >= 32 and channels % (bk // parts) == 0:
            return bk, True
    return power_above(channels * taps, 32 * parts, 64), False


def dense(positions: int, outputs: int, channels: int, taps: int, *, w4: bool = False, masked: bool = False,
          bits: bool = False) -> tuple[Tile, bool]:  # fmt: skip
    """The default of `conv_i8`, and whether a step of the sum stays within one tap's channels.

    128 positions fill a warp group's wgmma of 64 rows twice; small pictures take fewer so that more programs run. Four
    bits that are unpacked take registers, and so do masks: twice the warps.
    """
    bk, aligned = reduction(channels, taps, w4)
    bn = power_above(outputs, 32 if bits else 16, 128)
    bm = 128 if masked or positions >= 8192 else 64
    return Tile(bm, bn, bk, 8 if bm * bn >= 128 * (64 if w4 or masked else 128) else 4, 3), aligned


def depthwise(channels: int, masked: bool, bits: bool) -> Tile:
    """The default of `depthwise_i8`."""
    bn = power_above(channels, 32 if bits else 16, 64)
    return Tile(128 if masked else max(16, 2048 // bn), bn, 0, 4, 2)


def binary_dot(positions: int, outputs: int, words: int, masked: bool, bits: bool) -> Tile:
    """The default of `bconv_dot`; BK in words. Expanded bits take registers: twice the warps where 128 positions do."""
    bm = 128 if masked or positions >= 8192 else 64
    bn = power_above(outputs, 32 if bits else 16, 128)
    return Tile(bm, bn, power_above(words, 1, 2), 8 if bm * bn >= 128 * 64 else 4, 3)


def binary_popcount(outputs: int, masked: bool, bits: bool) -> Tile:
    """The default of `bconv_popcount`."""
    return Tile(128 if masked else 64, power_above(outputs, 32 if bits else 16, 32), 1, 4, 3)


def pointwise(channels: int, bits: bool) -> Tile:
    """The default of `pointwise`."""
    bn = power_above(channels, 32 if bits else 8, 128)
    return Tile(max(8, 2048 // bn), bn, 0, 4, 1)

"""From a mask to the list of tiles that have something to compute."""

import triton
import triton.language as tl


@triton.jit
def active_tiles(mask_ptr, tiles_ptr, count_ptr, N, HO, WO, TH: tl.constexpr, TW: tl.constexpr, BT: tl.constexpr):
    """All tiles of TH x TW outputs, those with a true mask first, both parts in the order of their numbers.

    mask u8 [N,HO,WO]; tiles int32 [N * ceil(HO / TH) * ceil(WO / TW)]; count int32 [1]: how many are active. One
    program; the number stays on the device, so that a launch over all tiles can be part of a CUDA graph.
    """
    across = tl.cdiv(WO, TW)
    down = tl.cdiv(HO, TH)
    total = N * across * down
    place = tl.arange(0, TH * TW)
    busy = 0
    for start in range(0, total, BT):  # how many there are: where the idle ones begin
        busy += tl.sum(_any(mask_ptr, start + tl.arange(0, BT), place, total, across, down, HO, WO, TH, TW), axis=0)
    tl.store(count_ptr, busy)
    done = 0
    idle = busy
    for start in range(0, total, BT):
        tile = start + tl.arange(0, BT)
        found = _any(mask_ptr, tile, place, total, across, down, HO, WO, TH, TW)
        rest = (tile < total).to(tl.int32) - found
        to = tl.where(found != 0, done + tl.cumsum(found, 0) - 1, idle + tl.cumsum(rest, 0) - 1)
        tl.store(tiles_ptr + to, tile, mask=tile < total)
        done += tl.sum(found, axis=0)
        idle += tl.sum(rest, axis=0)


@triton.jit
def _any(mask_ptr, tile, place, total, across, down, HO, WO, TH: tl.constexpr, TW: tl.constexpr):
    """1 for every tile [BT] in which the mask is true somewhere, else 0, int32."""
    image = tile // (across * down)
    rest = tile % (across * down)
    row = (rest // across * TH)[:, None] + (place // TW)[None, :]
    column = (rest % across * TW)[:, None] + (place % TW)[None, :]
    live = (tile < total)[:, None] & (row < HO) & (column < WO)
    value = tl.load(mask_ptr + (image[:, None] * HO + row) * WO + column, mask=live, other=0)
    return tl.max((value != 0).to(tl.int32), axis=1)

"""Which output positions a program computes: BM in a row of all pictures, or one tile of TH x TW under a mask."""

import triton
import triton.language as tl


@triton.jit
def position(block, N, HP, WP, tiles_ptr, count_ptr, MASKED: tl.constexpr, BM: tl.constexpr, TW: tl.constexpr):
    """(image, row, column, live) of a program's BM positions, each [BM], and whether any of them is to be computed.

    The grid of positions is N pictures of HP x WP. MASKED: `tiles_ptr` holds the numbers of all tiles, the active ones
    first, and `count_ptr` how many are active; a tile has BM // TW rows of TW columns. Else the positions are
    consecutive.
    """
    lane = tl.arange(0, BM)
    if MASKED:
        tile = tl.load(tiles_ptr + block)
        active = block < tl.load(count_ptr)
        across = tl.cdiv(WP, TW)
        down = tl.cdiv(HP, BM // TW)
        image = tl.full((BM,), 0, tl.int32) + tile // (across * down)
        rest = tile % (across * down)
        row = (rest // across) * (BM // TW) + lane // TW
        column = (rest % across) * TW + lane % TW
        live = (row < HP) & (column < WP)
    else:
        at = block * BM + lane
        active = True
        image = at // (HP * WP)
        rest = at - image * (HP * WP)
        row = rest // WP
        column = rest - row * WP
        live = at < N * HP * WP
    return image, row, column, live, active

"""Bilinear samples of f32 pictures: on a regular grid, and at given positions."""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.epilogue import finish
from vqc.backends.triton.kernels.exact import as_float, at_least, at_most
from vqc.backends.triton.kernels.positions import position


@triton.jit
def resize_bilinear(x_ptr, rows_ptr, row_weights_ptr, columns_ptr, column_weights_ptr, OPS, OUT, N, H, W, XS, HO, WO, O,
                    HOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """`vqc::resize_bilinear` of x [N,H,W,XS], its first O channels, then an epilogue.

    rows s32 [2,HO] and row_weights f32 [2,HO]: the two source rows of every output row and what they weigh; columns
    alike [2,WO]. First along the width, then along the height. Grid: (ceil(N*HO*WO / BM), ceil(O / BN)).
    """
    image, i, j, live, _ = position(tl.program_id(0), N, HO, WO, x_ptr, x_ptr, False, BM, 1)
    first = tl.program_id(1) * BN
    channel = first + tl.arange(0, BN)
    mask = live[:, None] & (channel < O)[None, :]
    x0 = tl.load(columns_ptr + j, mask=live, other=0)
    x1 = tl.load(columns_ptr + WO + j, mask=live, other=0)
    u0 = tl.load(column_weights_ptr + j, mask=live, other=0.0)[:, None]
    u1 = tl.load(column_weights_ptr + WO + j, mask=live, other=0.0)[:, None]
    y0 = tl.load(rows_ptr + i, mask=live, other=0)
    y1 = tl.load(rows_ptr + HO + i, mask=live, other=0)
    v0 = tl.load(row_weights_ptr + i, mask=live, other=0.0)[:, None]
    v1 = tl.load(row_weights_ptr + HO + i, mask=live, other=0.0)[:, None]
    top = image * (H * W) + y0 * W
    bottom = image * (H * W) + y1 * W
    a = as_float(tl.load(x_ptr + (top + x0)[:, None] * XS + channel[None, :], mask=mask, other=0)) * u0
    a = a + as_float(tl.load(x_ptr + (top + x1)[:, None] * XS + channel[None, :], mask=mask, other=0)) * u1
    b = as_float(tl.load(x_ptr + (bottom + x0)[:, None] * XS + channel[None, :], mask=mask, other=0)) * u0
    b = b + as_float(tl.load(x_ptr + (bottom + x1)[:, None] * XS + channel[None, :], mask=mask, other=0)) * u1
    y = a * v0 + b * v1
    finish(y, OPS, OUT, HOW, (image * HO + i) * WO + j, image, first, O, live, O, BM, BN)


@triton.jit
def _at(g, size, ALIGN: tl.constexpr, BORDER: tl.constexpr):
    """Where a coordinate in [-1, 1] lies among `size` samples (a float), and the sample before it."""
    if ALIGN:
        p = ((g + 1.0) * 0.5) * (size - 1.0)
    else:
        p = ((g + 1.0) * size - 1.0) * 0.5
    if BORDER:
        p = at_most(at_least(p, 0.0), size - 1.0)
    return p, tl.floor(p)


@triton.jit
def _tap(x_ptr, origin, y, x, W, XS, high, wide, channel, mask, BORDER: tl.constexpr):
    """Samples at whole positions (floats), outside of the picture the nearest ones or (not BORDER) zeros."""
    row = tl.minimum(tl.maximum(y, 0.0), high - 1.0).to(tl.int32)
    column = tl.minimum(tl.maximum(x, 0.0), wide - 1.0).to(tl.int32)
    v = as_float(tl.load(x_ptr + (origin + row * W + column)[:, None] * XS + channel[None, :], mask=mask, other=0))
    if not BORDER:
        inside = (y >= 0.0) & (y <= high - 1.0) & (x >= 0.0) & (x <= wide - 1.0)
        v = tl.where(inside[:, None], v, 0.0)
    return v


@triton.jit
def grid_sample(x_ptr, grid_ptr, OPS, OUT, N, H, W, XS, HO, WO, O, size_h, size_w, ALIGN: tl.constexpr,
                BORDER: tl.constexpr, HOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """`vqc::grid_sample` of x [N,H,W,XS] (O channels) at grid f32 [N,HO,WO,2] (x, then y), then an epilogue.

    size_h, size_w: H and W as floats. Grid: (ceil(N*HO*WO / BM), ceil(O / BN)).
    """
    image, i, j, live, _ = position(tl.program_id(0), N, HO, WO, x_ptr, x_ptr, False, BM, 1)
    first = tl.program_id(1) * BN
    channel = first + tl.arange(0, BN)
    mask = live[:, None] & (channel < O)[None, :]
    pixel = (image * HO + i) * WO + j
    gx = tl.load(grid_ptr + pixel * 2, mask=live, other=0.0)
    gy = tl.load(grid_ptr + pixel * 2 + 1, mask=live, other=0.0)
    px, x0 = _at(gx, size_w, ALIGN, BORDER)
    py, y0 = _at(gy, size_h, ALIGN, BORDER)
    wx = (px - x0)[:, None]
    wy = (py - y0)[:, None]
    origin = image * (H * W)
    a = _tap(x_ptr, origin, y0, x0, W, XS, size_h, size_w, channel, mask, BORDER) * (1.0 - wx)
    a = a + _tap(x_ptr, origin, y0, x0 + 1.0, W, XS, size_h, size_w, channel, mask, BORDER) * wx
    b = _tap(x_ptr, origin, y0 + 1.0, x0, W, XS, size_h, size_w, channel, mask, BORDER) * (1.0 - wx)
    b = b + _tap(x_ptr, origin, y0 + 1.0, x0 + 1.0, W, XS, size_h, size_w, channel, mask, BORDER) * wx
    y = a * (1.0 - wy) + b * wy
    finish(y, OPS, OUT, HOW, pixel, image, first, O, live, O, BM, BN)

"""Channels moved from one picture into another: slices, crops, and the parts of a concatenation."""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.exact import as_float, stored_as


@triton.jit
def move_channels(x_ptr, y_ptr, P, H, W, HO, WO, top, left, count, x_from, x_channels, y_from, y_channels,
                  CROP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """y[n, i, j, y_from + c] = x[n, top + i, left + j, x_from + c] for c < count, rounded to y's dtype.

    x [N,H,W,x_channels], y [N,HO,WO,y_channels], P = N*HO*WO. CROP: whether the pictures differ in size.
    Grid: (ceil(P / BM), ceil(count / BN)).
    """
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (pixel < P)[:, None] & (c < count)[None, :]
    source = pixel
    if CROP:
        rest = pixel % (HO * WO)
        source = (pixel // (HO * WO) * H + top + rest // WO) * W + left + rest % WO
    value = tl.load(x_ptr + source[:, None] * x_channels + (x_from + c)[None, :], mask=mask, other=0)
    to = y_ptr + pixel[:, None] * y_channels + (y_from + c)[None, :]
    if x_ptr.dtype.element_ty != y_ptr.dtype.element_ty:
        value = stored_as(as_float(value), y_ptr.dtype.element_ty)
    tl.store(to, value, mask=mask)

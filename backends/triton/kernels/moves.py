"""Channels moved from one picture into another: slices, and the parts of a concatenation."""

import triton
import triton.language as tl


@triton.jit
def move_channels(x_ptr, y_ptr, P, count, x_from, x_channels, y_from, y_channels, BM: tl.constexpr, BN: tl.constexpr):
    """y[p, y_from + c] = x[p, x_from + c] for c < count; x [P,x_channels] and y [P,y_channels] of one dtype.

    Grid: (ceil(P / BM), ceil(count / BN)).
    """
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (pixel < P)[:, None] & (c < count)[None, :]
    value = tl.load(x_ptr + pixel[:, None] * x_channels + (x_from + c)[None, :], mask=mask, other=0)
    tl.store(y_ptr + pixel[:, None] * y_channels + (y_from + c)[None, :], value, mask=mask)

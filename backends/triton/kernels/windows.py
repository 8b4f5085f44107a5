"""Float sums in one order: window averages, the mean of a picture, convolutions that stand before a quantizer."""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.epilogue import finish, shifted
from vqc.backends.triton.kernels.exact import as_float
from vqc.backends.triton.kernels.positions import position


@triton.jit
def avg_pool2d(x_ptr, factors_ptr, OPS, OUT, N, H, W, XS, HO, WO, O, stride_h, stride_w, pad_h, pad_w, KH: tl.constexpr,
               KW: tl.constexpr, HOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """`vqc::avg_pool2d` of x f32 [N,H,W,XS], O channels: samples added in row-major order, times factors f32 [HO,WO].

    Grid: (ceil(N*HO*WO / BM), ceil(O / BN)).
    """
    image, i, j, live, _ = position(tl.program_id(0), N, HO, WO, x_ptr, x_ptr, False, BM, 1)
    first = tl.program_id(1) * BN
    channel = first + tl.arange(0, BN)
    used = channel < O
    acc = tl.full((BM, BN), -0.0, tl.float32)  # -0 + x is x for every x
    for tap in range(KH * KW):
        y = i * stride_h - pad_h + tap // KW
        x = j * stride_w - pad_w + tap % KW
        inside = (y >= 0) & (y < H) & (x >= 0) & (x < W) & live
        at = (image * (H * W) + y * W + x)[:, None] * XS + channel[None, :]
        mask = inside[:, None] & used[None, :]
        if x_ptr.dtype.element_ty == tl.int16:  # bfloat16's bits of -0
            acc += as_float(tl.load(x_ptr + at, mask=mask, other=-32768))
        else:
            acc += as_float(tl.load(x_ptr + at, mask=mask, other=-0.0))
    value = acc * tl.load(factors_ptr + i * WO + j, mask=live, other=0.0)[:, None]
    finish(value, OPS, OUT, HOW, (image * HO + i) * WO + j, image, first, O, live, O, BM, BN)


@triton.jit
def mean_hw(x_ptr, y_ptr, HW, XS, O, factor, BN: tl.constexpr):
    """`vqc::mean_hw` of x [N,HW,XS] to [N,O]: 16 lanes, then 8 + 8, 4 + 4, 2 + 2, 1 + 1. Grid: (N, ceil(O / BN))."""
    image = tl.program_id(0)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    used = channel < O
    lane = tl.arange(0, 16)
    acc = tl.zeros((16, BN), tl.float32)
    for start in range(0, HW, 16):
        pixel = start + lane
        at = (image * HW + pixel)[:, None] * XS + channel[None, :]
        acc += as_float(tl.load(x_ptr + at, mask=(pixel < HW)[:, None] & used[None, :], other=0))
    half = tl.sum(tl.reshape(acc, (2, 8, BN)), axis=0)
    half = tl.sum(tl.reshape(half, (2, 4, BN)), axis=0)
    half = tl.sum(tl.reshape(half, (2, 2, BN)), axis=0)
    tl.store(y_ptr + image * O + channel, tl.sum(half, axis=0) * factor, mask=used)


@triton.jit
def conv_f32(x_ptr, w_ptr, bias_ptr, mask_ptr, tiles_ptr, count_ptr, OPS, OUT, N, H, W, CT, HO, WO, O, OG, stride_h,
             stride_w, pad_h, pad_w, dil_h, dil_w, C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
             BIAS: tl.constexpr, MASKED: tl.constexpr, HOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
             TW: tl.constexpr):  # fmt: skip
    """`vqc::conv2d` of x [N,H,W,CT]: taps in the order channel, row, column; each product and each sum rounded.

    w: f32 [C*KH*KW,O], C channels and OG outputs a group. MASKED: as `conv.conv_i8`.
    Grid: (blocks of positions, groups * ceil(OG / BN)).
    """
    image, i, j, live, active = position(tl.program_id(0), N, HO, WO, tiles_ptr, count_ptr, MASKED, BM, TW)
    blocks = tl.cdiv(OG, BN)
    group = tl.program_id(1) // blocks
    first = group * OG + (tl.program_id(1) % blocks) * BN
    last = (group + 1) * OG
    channel = first + tl.arange(0, BN)
    used = channel < last
    taps = C * KH * KW
    if MASKED:
        taps = tl.where(active, taps, 0)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(taps):
        c = k // (KH * KW)
        tap = k % (KH * KW)
        y = i * stride_h - pad_h + (tap // KW) * dil_h
        x = j * stride_w - pad_w + (tap % KW) * dil_w
        inside = (y >= 0) & (y < H) & (x >= 0) & (x < W) & live
        a = as_float(tl.load(x_ptr + (image * (H * W) + y * W + x) * CT + group * C + c, mask=inside, other=0))
        acc += a[:, None] * tl.load(w_ptr + k * O + channel, mask=used, other=0.0)[None, :]
    pixel = (image * HO + i) * WO + j
    acc = shifted(acc, bias_ptr, mask_ptr, pixel, channel, used, live, BIAS, MASKED)
    finish(acc, OPS, OUT, HOW, pixel, image, first, last, live, O, BM, BN)

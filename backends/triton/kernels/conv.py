"""Integer convolution as an implicit matrix product on tensor cores, and channel by channel without them.

x u8 or s8 [N,H,W,CT], w s8, exact int32 sums, then scale, bias and an epilogue. Tensor cores multiply s8 with s8: a u8
becomes s8 by turning its top bit, which takes 128 off it and off its zero point. A tap outside the picture is read as
the zero point, so that  sum (x - zero) * w = sum x * w - corr[o]  holds at borders too, corr[o] = sum zero * w over all
taps and channels, known beforehand.

A launch computes output rows i * step + at (i < HP) from input rows  i * stride - pad + tap * dilation, columns alike.
A convolution is one launch with step 1; a transposed one of stride s is s * s launches, each an ordinary convolution
with the taps that meet its rows and columns.
"""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.epilogue import finish, scaled
from vqc.backends.triton.kernels.positions import position


@triton.jit
def _inside(y, x, H, W):
    return (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def _to_s8(x, U8: tl.constexpr):
    """Levels as s8: u8 with its top bit turned."""
    if U8:
        y = (x ^ 128).to(tl.int8, bitcast=True)
    else:
        y = x
    return y


@triton.jit
def taps_of(x_ptr, k0, top, left, origin, live, group, H, W, CT, dil_h, dil_w, zero, zeros_ptr, C: tl.constexpr,
          KH: tl.constexpr, KW: tl.constexpr, U8: tl.constexpr, ZEROS: tl.constexpr, ALIGNED: tl.constexpr,
          BK: tl.constexpr):  # fmt: skip
    """The s8 operand [BM,BK] of taps k0 .. k0+BK-1, k = (tap row * KW + tap column) * C + channel."""
    if ALIGNED:  # BK channels of one tap
        tap = k0 // C
        c = group * C + k0 - tap * C + tl.arange(0, BK)
        y = top + (tap // KW) * dil_h
        x = left + (tap % KW) * dil_w
        mask = (_inside(y, x, H, W) & live)[:, None]
        at = (origin + y * W + x)[:, None] * CT + c[None, :]
    else:
        k = k0 + tl.arange(0, BK)
        tap = k // C
        c = group * C + k - tap * C
        y = top[:, None] + (tap // KW)[None, :] * dil_h
        x = left[:, None] + (tap % KW)[None, :] * dil_w
        mask = _inside(y, x, H, W) & live[:, None] & (k < KH * KW * C)[None, :]
        at = (origin[:, None] + y * W + x) * CT + c[None, :]
    if ZEROS:
        other = tl.load(zeros_ptr + c, mask=c < CT, other=0)[None, :]
    else:
        other = tl.full((1, 1), zero, x_ptr.dtype.element_ty)
    return _to_s8(tl.load(x_ptr + at, mask=mask, other=other), U8)


@triton.jit
def conv_i8(x_ptr, w_ptr, scale_ptr, bias_ptr, corr_ptr, zeros_ptr, zero, mask_ptr, tiles_ptr, count_ptr, OPS, OUT, N,
            H, W, CT, HP, WP, HO, WO, O, OG, KPAD, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, step_h, step_w,
            at_h, at_w, C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, U8: tl.constexpr, ZEROS: tl.constexpr,
            BIAS: tl.constexpr, W4: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr, HOW: tl.constexpr,
            BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TW: tl.constexpr):  # fmt: skip
    """Dense, grouped, masked convolution and linear layers (a linear layer is a 1x1 convolution of 1x1 pictures).

    w: s8 [O,KPAD], a filter's taps in the order of `taps_of`, zeros from KH*KW*C on. W4: two weights of 4 bits a byte,
    u8 [O,KPAD/2]: byte j of a block of BK/2 bytes has tap j in its low half and tap j + BK/2 in its high one.
    scale, bias f32 [O]; corr s32 [O]; zero: the zero point, or (ZEROS) zeros_ptr in x's dtype [CT]. O output channels
    in groups of OG. MASKED: mask_ptr u8 [N,Ho,Wo]; the sums are 0 where it is 0, tiles without any are not computed.
    Grid: (blocks of positions, groups * ceil(OG / BN)). Steps and results: see `epilogue.finish`.
    """
    image, i, j, live, active = position(tl.program_id(0), N, HP, WP, tiles_ptr, count_ptr, MASKED, BM, TW)
    blocks = tl.cdiv(OG, BN)
    group = tl.program_id(1) // blocks
    first = group * OG + (tl.program_id(1) % blocks) * BN
    last = (group + 1) * OG
    channel = first + tl.arange(0, BN)
    used = channel < last
    top = i * stride_h - pad_h
    left = j * stride_w - pad_w
    origin = image * (H * W)
    acc = tl.zeros((BM, BN), tl.int32)
    taps = KPAD
    if MASKED:
        taps = tl.where(active, KPAD, 0)
    for k0 in range(0, taps, BK):
        if W4:
            HALF: tl.constexpr = BK // 2
            half = k0 // 2 + tl.arange(0, HALF)
            both = tl.load(w_ptr + channel[None, :] * (KPAD // 2) + half[:, None], mask=used[None, :], other=0)
            both = both.to(tl.int8, bitcast=True)
            a = taps_of(x_ptr, k0, top, left, origin, live, group, H, W, CT, dil_h, dil_w, zero, zeros_ptr, C, KH, KW,
                      U8, ZEROS, ALIGNED, HALF)  # fmt: skip
            acc = tl.dot(a, (both << 4) >> 4, acc, out_dtype=tl.int32)
            a = taps_of(x_ptr, k0 + HALF, top, left, origin, live, group, H, W, CT, dil_h, dil_w, zero, zeros_ptr, C,
                      KH, KW, U8, ZEROS, ALIGNED, HALF)  # fmt: skip
            acc = tl.dot(a, both >> 4, acc, out_dtype=tl.int32)
        else:
            k = k0 + tl.arange(0, BK)
            w = tl.load(w_ptr + channel[None, :] * KPAD + k[:, None], mask=used[None, :], other=0)
            a = taps_of(x_ptr, k0, top, left, origin, live, group, H, W, CT, dil_h, dil_w, zero, zeros_ptr, C, KH, KW,
                      U8, ZEROS, ALIGNED, BK)  # fmt: skip
            acc = tl.dot(a, w, acc, out_dtype=tl.int32)
    acc -= tl.load(corr_ptr + channel, mask=used, other=0)[None, :]
    pixel = (image * HO + i * step_h + at_h) * WO + j * step_w + at_w
    y = scaled(acc, scale_ptr, bias_ptr, mask_ptr, pixel, channel, used, live, BIAS, MASKED)
    finish(y, OPS, OUT, HOW, pixel, image, first, last, live, O, BM, BN)


@triton.jit
def depthwise_i8(x_ptr, w_ptr, scale_ptr, bias_ptr, zeros_ptr, zero, mask_ptr, tiles_ptr, count_ptr, OPS, OUT, N, H,
                 W, CT, HP, WP, HO, WO, O, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, step_h, step_w, at_h, at_w,
                 EACH: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ZEROS: tl.constexpr, BIAS: tl.constexpr,
                 MASKED: tl.constexpr, HOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                 TW: tl.constexpr):  # fmt: skip
    """Convolution of one input channel an output channel, EACH outputs of every input: no matrix product.

    w: s8 [KH*KW,O]. The other arguments are those of `conv_i8`; grid: (blocks of positions, ceil(O / BN)).
    """
    image, i, j, live, active = position(tl.program_id(0), N, HP, WP, tiles_ptr, count_ptr, MASKED, BM, TW)
    first = tl.program_id(1) * BN
    channel = first + tl.arange(0, BN)
    used = channel < O
    source = channel // EACH
    origin = image * (H * W)
    if ZEROS:
        z = tl.load(zeros_ptr + source, mask=used, other=0).to(tl.int32)[None, :]
    else:
        z = zero
    acc = tl.zeros((BM, BN), tl.int32)
    taps = KH * KW
    if MASKED:
        taps = tl.where(active, KH * KW, 0)
    for tap in range(taps):
        y = i * stride_h - pad_h + (tap // KW) * dil_h
        x = j * stride_w - pad_w + (tap % KW) * dil_w
        inside = _inside(y, x, H, W) & live
        mask = inside[:, None] & used[None, :]
        a = tl.load(x_ptr + (origin + y * W + x)[:, None] * CT + source[None, :], mask=mask, other=0).to(tl.int32)
        w = tl.load(w_ptr + tap * O + channel, mask=used, other=0).to(tl.int32)
        acc += tl.where(inside[:, None], (a - z) * w[None, :], 0)
    pixel = (image * HO + i * step_h + at_h) * WO + j * step_w + at_w
    v = scaled(acc, scale_ptr, bias_ptr, mask_ptr, pixel, channel, used, live, BIAS, MASKED)
    finish(v, OPS, OUT, HOW, pixel, image, first, O, live, O, BM, BN)

"""Binary convolution: bits in memory, a word of 32 channels a position; sums by tensor cores or by counting bits.

x: int32 words [N,H,W,WC], bit b of word j is channel 32 * j + b: 1 for +1, 0 for -1, 0 where there is no such channel.
A tap outside the picture contributes 0.
"""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.epilogue import finish, scaled
from vqc.backends.triton.kernels.positions import position


@triton.jit
def count_bits(x):
    """Ones in each uint32. The compiler knows this form: `popc.b32` on NVIDIA, `v_bcnt` on AMD; signed it does not."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101) >> 24


@triton.jit
def _tested(acc, threshold_ptr, flip_ptr, channel, used):
    """1.0 where a sum reaches its channel's threshold, else -1.0; the other way where flip is set."""
    above = acc >= tl.load(threshold_ptr + channel, mask=used, other=0)[None, :]
    flip = tl.load(flip_ptr + channel, mask=used, other=0)[None, :] != 0
    return tl.where(above ^ flip, 1.0, -1.0)


@triton.jit
def bconv_dot(x_ptr, w_ptr, scale_ptr, bias_ptr, mask_ptr, tiles_ptr, count_ptr, OPS, OUT, N, H, W, WC, HP, WP, O,
              stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, KH: tl.constexpr, KW: tl.constexpr, BIAS: tl.constexpr,
              THRESHOLD: tl.constexpr, MASKED: tl.constexpr, HOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
              BW: tl.constexpr, TW: tl.constexpr):  # fmt: skip
    """Bits turned into s8 +1 and -1 in registers, BW words of a tap at a time, then a matrix product.

    w: s8 [O, KH*KW*WP32] of +1, -1, and 0 where there is no channel; WP32 = 32 * BW * ceil(WC / BW). scale, bias f32
    [O]. THRESHOLD: scale is the threshold s32 [O] and bias says where the test is turned, u8 [O]; the value is 1 or -1.
    Grid: (blocks of positions, ceil(O / BN)). Mask, steps and results as `conv.conv_i8`.
    """
    image, i, j, live, active = position(tl.program_id(0), N, HP, WP, tiles_ptr, count_ptr, MASKED, BM, TW)
    first = tl.program_id(1) * BN
    channel = first + tl.arange(0, BN)
    used = channel < O
    parts = tl.cdiv(WC, BW)
    total = KH * KW * parts
    stop = total
    if MASKED:
        stop = tl.where(active, total, 0)
    acc = tl.zeros((BM, BN), tl.int32)
    for part in range(stop):
        tap = part // parts
        word = (part - tap * parts) * BW + tl.arange(0, BW)
        y = i * stride_h - pad_h + (tap // KW) * dil_h
        x = j * stride_w - pad_w + (tap % KW) * dil_w
        inside = (y >= 0) & (y < H) & (x >= 0) & (x < W) & live
        at = (image * (H * W) + y * W + x)[:, None] * WC + word[None, :]
        bits = tl.load(x_ptr + at, mask=inside[:, None] & (word < WC)[None, :], other=0)
        ones = (bits[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
        a = tl.where(inside[:, None, None], 2 * ones - 1, 0).to(tl.int8)
        a = tl.reshape(a, (BM, BW * 32))
        k = part * (BW * 32) + tl.arange(0, BW * 32)
        w = tl.load(w_ptr + channel[None, :] * (total * BW * 32) + k[:, None], mask=used[None, :], other=0)
        acc = tl.dot(a, w, acc, out_dtype=tl.int32)
    pixel = (image * HP + i) * WP + j
    if THRESHOLD:
        v = _tested(acc, scale_ptr, bias_ptr, channel, used)
    else:
        v = scaled(acc, scale_ptr, bias_ptr, mask_ptr, pixel, channel, used, live, BIAS, MASKED)
    finish(v, OPS, OUT, HOW, pixel, image, first, O, live, O, BM, BN)


@triton.jit
def bconv_popcount(x_ptr, w_ptr, scale_ptr, bias_ptr, mask_ptr, tiles_ptr, count_ptr, OPS, OUT, N, H, W, C, WC, HP,
                   WP, O, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, KH: tl.constexpr, KW: tl.constexpr,
                   BIAS: tl.constexpr, THRESHOLD: tl.constexpr, MASKED: tl.constexpr, HOW: tl.constexpr,
                   BM: tl.constexpr, BN: tl.constexpr, TW: tl.constexpr):  # fmt: skip
    """sum x * w = C * (taps inside) - 2 * (bits in which x and w differ), on ordinary cores.

    w: int32 words [KH*KW*WC, O], no bit set where there is no channel. The rest as `bconv_dot`.
    """
    image, i, j, live, active = position(tl.program_id(0), N, HP, WP, tiles_ptr, count_ptr, MASKED, BM, TW)
    first = tl.program_id(1) * BN
    channel = first + tl.arange(0, BN)
    used = channel < O
    stop = KH * KW * WC
    if MASKED:
        stop = tl.where(active, stop, 0)
    differ = tl.zeros((BM, BN), tl.int32)
    inside_words = tl.zeros((BM,), tl.int32)
    for part in range(stop):
        tap = part // WC
        word = part - tap * WC
        y = i * stride_h - pad_h + (tap // KW) * dil_h
        x = j * stride_w - pad_w + (tap % KW) * dil_w
        inside = (y >= 0) & (y < H) & (x >= 0) & (x < W) & live
        bits = tl.load(x_ptr + (image * (H * W) + y * W + x) * WC + word, mask=inside, other=0)
        w = tl.load(w_ptr + part * O + channel, mask=used, other=0)
        both = bits[:, None].to(tl.uint32, bitcast=True) ^ w[None, :].to(tl.uint32, bitcast=True)
        differ += tl.where(inside[:, None], count_bits(both).to(tl.int32), 0)
        inside_words += inside.to(tl.int32)
    acc = (inside_words // WC * C)[:, None] - 2 * differ
    pixel = (image * HP + i) * WP + j
    if THRESHOLD:
        v = _tested(acc, scale_ptr, bias_ptr, channel, used)
    else:
        v = scaled(acc, scale_ptr, bias_ptr, mask_ptr, pixel, channel, used, live, BIAS, MASKED)
    finish(v, OPS, OUT, HOW, pixel, image, first, O, live, O, BM, BN)

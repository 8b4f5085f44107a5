"""Quantized products of two run-time matrices (attention), and layers of 4-bit weights beside float16 pictures."""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.conv import taps_of
from vqc.backends.triton.kernels.epilogue import finish, scaled
from vqc.backends.triton.kernels.positions import position


@triton.jit
def _block(ptr, line, live, k, inside, stride_line, stride_k, OTHER: tl.constexpr):
    """Levels [len(line), len(k)] at ptr + line * stride_line + k * stride_k; 0 where there is none."""
    at = line[:, None] * stride_line + k[None, :] * stride_k
    return tl.load(ptr + at, mask=live[:, None] & inside[None, :], other=OTHER)


@triton.jit
def _half(ptr, line, live, byte, stride_line, HIGH: tl.constexpr):
    """4-bit levels as s8: the low or the high half of each byte."""
    both = tl.load(ptr + line[:, None] * stride_line + byte[None, :], mask=live[:, None], other=0)
    both = both.to(tl.int8, bitcast=True)
    if HIGH:
        value = both >> 4
    else:
        value = (both << 4) >> 4
    return value


@triton.jit
def _operand(ptr, line, live, k0, at, size, stride_line, stride_k, kpad, FRAME, FOUR: tl.constexpr, U8: tl.constexpr,
             HIGH: tl.constexpr, BK: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """s8 [len(line), HALF]: taps at .. at+HALF-1 of frame FRAME, of a block that begins with tap k0."""
    if FOUR:
        x = _half(ptr, line, live, FRAME * (kpad // 2) + k0 // 2 + tl.arange(0, HALF), stride_line, HIGH)
    else:
        k = at + tl.arange(0, HALF)
        if U8:  # its top bit is turned: 128 stands for 0, which is what taps that do not exist are
            x = _block(ptr, line, live, FRAME * size + k, k < size, stride_line, stride_k, 128)
            x = (x ^ 128).to(tl.int8, bitcast=True)
        else:
            x = _block(ptr, line, live, FRAME * size + k, k < size, stride_line, stride_k, 0)
    return x


@triton.jit
def matmul_i8(a_ptr, b_ptr, rows_ptr, columns_ptr, steps_ptr, y_ptr, M, N, size, kpad, frames, row_frames, row_size,
              column_frames, column_size, a_batch, a_line, b_batch, b_line, b_step, A4: tl.constexpr, B4: tl.constexpr,
              U8: tl.constexpr, SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
              BK: tl.constexpr):  # fmt: skip
    """y[z,m,n] of a [Z,M,K] and b [Z,N,K] in levels, with a scale for each frame; exact sums.

    K = frames * size. SPLIT: y = part of frame 0, plus part of frame 1, ..: part f = (float)(sum over frame f's taps) *
    steps[z,f], each product and sum rounded. Else y = (float)(sum over all taps). Then y * rows[z, m // row_size], then
    * columns[z, n // column_size], each rounded. rows f32 [Z,row_frames], columns f32 [Z,column_frames], steps f32
    [Z,frames]. A4, B4: two levels of 4 bits a byte, frame by frame up to kpad taps, in blocks of BK as `conv.conv_i8`.
    U8: a is u8 with zero point 0. a_line: from one line of a to the next, b_line and b_step: of b's lines and taps.
    Grid: (ceil(M / BM), ceil(N / BN), Z).
    """
    z = tl.program_id(2)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    live, used = m < M, n < N
    a_ptr += z * a_batch
    b_ptr += z * b_batch
    y = tl.zeros((BM, BN), tl.float32)
    acc = tl.zeros((BM, BN), tl.int32)
    HALF: tl.constexpr = BK // 2 if A4 or B4 else BK
    for frame in range(frames):
        if SPLIT:
            acc = tl.zeros((BM, BN), tl.int32)
        for k0 in range(0, kpad, BK):
            a = _operand(a_ptr, m, live, k0, k0, size, a_line, 1, kpad, frame, A4, U8, False, BK, HALF)
            b = _operand(b_ptr, n, used, k0, k0, size, b_line, b_step, kpad, frame, B4, False, False, BK, HALF)
            acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)
            if U8:
                acc += 128 * tl.sum(b.to(tl.int32), axis=1)[None, :]
            if A4 or B4:
                a = _operand(a_ptr, m, live, k0, k0 + HALF, size, a_line, 1, kpad, frame, A4, U8, True, BK, HALF)
                b = _operand(b_ptr, n, used, k0, k0 + HALF, size, b_line, b_step, kpad, frame, B4, False, True, BK,
                             HALF)  # fmt: skip
                acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)
                if U8:
                    acc += 128 * tl.sum(b.to(tl.int32), axis=1)[None, :]
        if SPLIT:
            y += acc.to(tl.float32) * tl.load(steps_ptr + z * frames + frame)
    if not SPLIT:
        y = acc.to(tl.float32)
    y = y * tl.load(rows_ptr + z * row_frames + m // row_size, mask=live, other=0.0)[:, None]
    y = y * tl.load(columns_ptr + z * column_frames + n // column_size, mask=used, other=0.0)[None, :]
    at = (z * M + m)[:, None].to(tl.int64) * N + n[None, :]
    tl.store(y_ptr + at, y, mask=live[:, None] & used[None, :])


@triton.jit
def conv_w4a16(x_ptr, w_ptr, scale_ptr, bias_ptr, OPS, OUT, N, H, W, CT, HP, WP, O, OG, KPAD, parts, stride_h, stride_w,
               pad_h, pad_w, dil_h, dil_w, C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BIAS: tl.constexpr,
               ALIGNED: tl.constexpr, SPLIT: tl.constexpr, HOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
               BK: tl.constexpr):  # fmt: skip
    """Convolution of a float16 picture [N,H,W,CT] with 4-bit weights that become float16 in registers; float32 sums.

    w as `conv.conv_i8` with W4. scale f32 [parts,O]: of each part of KPAD / parts taps (SPLIT; a multiple of BK), each
    part's sum times its scale; parts = 1 without. Sums have no order. Grid as `conv.conv_i8`; an epilogue follows.
    """
    image, i, j, live, _ = position(tl.program_id(0), N, HP, WP, x_ptr, x_ptr, False, BM, 1)
    blocks = tl.cdiv(OG, BN)
    group = tl.program_id(1) // blocks
    first = group * OG + (tl.program_id(1) % blocks) * BN
    last = (group + 1) * OG
    channel = first + tl.arange(0, BN)
    used = channel < last
    top = i * stride_h - pad_h
    left = j * stride_w - pad_w
    origin = image * (H * W)
    HALF: tl.constexpr = BK // 2
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, KPAD, BK):
        half = k0 // 2 + tl.arange(0, HALF)
        both = tl.load(w_ptr + channel[None, :] * (KPAD // 2) + half[:, None], mask=used[None, :], other=0)
        both = both.to(tl.int8, bitcast=True)
        low = ((both << 4) >> 4).to(tl.float16)
        high = (both >> 4).to(tl.float16)
        a = taps_of(x_ptr, k0, top, left, origin, live, group, H, W, CT, dil_h, dil_w, 0.0, x_ptr, C, KH, KW, False,
                    False, ALIGNED, HALF)  # fmt: skip
        b = taps_of(x_ptr, k0 + HALF, top, left, origin, live, group, H, W, CT, dil_h, dil_w, 0.0, x_ptr, C, KH, KW,
                    False, False, ALIGNED, HALF)  # fmt: skip
        if SPLIT:
            part = tl.dot(a, low, out_dtype=tl.float32)
            part = tl.dot(b, high, part, out_dtype=tl.float32)
            row = k0 // (KPAD // parts)
            acc += part * tl.load(scale_ptr + row * O + channel, mask=used, other=0.0)[None, :]
        else:
            acc = tl.dot(a, low, acc, out_dtype=tl.float32)
            acc = tl.dot(b, high, acc, out_dtype=tl.float32)
    pixel = (image * HP + i) * WP + j
    if SPLIT:
        y = acc
        if BIAS:
            y = y + tl.load(bias_ptr + channel, mask=used, other=0.0)[None, :]
    else:
        y = scaled(acc, scale_ptr, bias_ptr, x_ptr, pixel, channel, used, live, BIAS, False)
    finish(y, OPS, OUT, HOW, pixel, image, first, last, live, O, BM, BN)

"""Chains of pointwise steps that follow no convolution: quantizers, packed signs, gates."""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.epilogue import finish


@triton.jit
def pointwise(
    x_ptr,
    OPS,
    y_ptr,
    q_ptr,
    inv_ptr,
    zero_ptr,
    low,
    high,
    bits_ptr,
    tau_ptr,
    P,
    HW,
    O,
    WORDS,
    KINDS: tl.constexpr,
    PLACES: tl.constexpr,
    FLOAT: tl.constexpr,
    LEVELS: tl.constexpr,
    BITS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Steps on x f32 [P,O], P positions of pictures of HW each; results as `epilogue.finish`.

    Grid: (ceil(P / BM), ceil(O / BN)).
    """
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    first = tl.program_id(1) * BN
    channel = first + tl.arange(0, BN)
    live = pixel < P
    x = tl.load(x_ptr + pixel[:, None] * O + channel[None, :], mask=live[:, None] & (channel < O)[None, :], other=0.0)
    finish(
        x,
        OPS,
        KINDS,
        PLACES,
        y_ptr,
        q_ptr,
        inv_ptr,
        zero_ptr,
        low,
        high,
        bits_ptr,
        tau_ptr,
        pixel,
        pixel // HW,
        first,
        O,
        live,
        O,
        WORDS,
        FLOAT,
        LEVELS,
        BITS,
        BM,
        BN,
    )

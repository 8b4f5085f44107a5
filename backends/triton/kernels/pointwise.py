"""Chains of pointwise steps that follow no convolution: quantizers, packed signs, gates."""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.epilogue import finish
from vqc.backends.triton.kernels.exact import as_float


@triton.jit
def pointwise(x_ptr, OPS, OUT, P, HW, XS, O, HOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Steps on x [P,XS], O channels of it as f32, P positions of pictures of HW each; results as `epilogue.finish`.

    Grid: (ceil(P / BM), ceil(O / BN)).
    """
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    first = tl.program_id(1) * BN
    channel = first + tl.arange(0, BN)
    live = pixel < P
    x = tl.load(x_ptr + pixel[:, None] * XS + channel[None, :], mask=live[:, None] & (channel < O)[None, :], other=0)
    finish(as_float(x), OPS, OUT, HOW, pixel, pixel // HW, first, O, live, O, BM, BN)

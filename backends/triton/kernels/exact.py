"""Float functions of one exact meaning: the operations of `vqc/ops/exact.py`, in their order."""

import triton
import triton.language as tl

from vqc.ops import exact

_LOW = tl.constexpr(exact.EXP_LOW)
_HIGH = tl.constexpr(exact.EXP_HIGH)
_LOG2E = tl.constexpr(exact.LOG2E)
_LN2_HI = tl.constexpr(exact.LN2_HI)
_LN2_LO = tl.constexpr(exact.LN2_LO)
_C0 = tl.constexpr(exact.EXP_COEFFICIENTS[0])
_C1 = tl.constexpr(exact.EXP_COEFFICIENTS[1])
_C2 = tl.constexpr(exact.EXP_COEFFICIENTS[2])
_C3 = tl.constexpr(exact.EXP_COEFFICIENTS[3])
_C4 = tl.constexpr(exact.EXP_COEFFICIENTS[4])
_C5 = tl.constexpr(exact.EXP_COEFFICIENTS[5])
_C6 = tl.constexpr(exact.EXP_COEFFICIENTS[6])
_SIXTH = tl.constexpr(exact.SIXTH)
# 1.5 * 2^23: adding it leaves no bit below 1, so the sum is rounded to a whole number, ties to even. Right for
# |x| < 2^22; what is larger stays larger than that, and every caller clamps to less.
_WHOLE = tl.constexpr(12582912.0)


@triton.jit
def as_float(x):
    """Values of a picture as f32; int16 holds the bits of bfloat16 (`stored_as`)."""
    if x.dtype == tl.int16:
        y = (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        y = x.to(tl.float32)
    return y


@triton.jit
def stored_as(y, DTYPE: tl.constexpr):
    """f32 rounded once, ties to even, to a dtype; int16: to bfloat16's bits.

    By whole numbers, since the interpreter's own bfloat16 is not rounded right.
    """
    if DTYPE == tl.int16:  # noqa: SIM300
        bits = y.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        made = tl.where(y != y, 0x7FC0, bits.to(tl.int32)).to(tl.int16)
    else:
        made = y.to(DTYPE)
    return made


@triton.jit
def at_least(x, low):
    """max(x, low), NaN where x is NaN, as torch.clamp_min."""
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, high):
    """min(x, high), NaN where x is NaN, as torch.clamp_max."""
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def whole(x):
    """x rounded to a whole number, ties to even; exact where |x| < 2^22, else only still that large."""
    return (x + _WHOLE) - _WHOLE


@triton.jit
def exact_exp(x):
    """`vqc::exp`."""
    x = at_most(at_least(x, _LOW), _HIGH)
    k = whole(x * _LOG2E)
    r = (x - k * _LN2_HI) - k * _LN2_LO
    p = r * _C0
    p = (p + _C1) * r
    p = (p + _C2) * r
    p = (p + _C3) * r
    p = (p + _C4) * r
    p = (p + _C5) * r
    p = p + _C6
    return p * ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exact_sigmoid(x):
    """`vqc::sigmoid`: a true division, which `/` is not."""
    below = exact_exp(-x) + 1.0
    return tl.math.div_rn(tl.full(below.shape, 1.0, tl.float32), below)


@triton.jit
def exact_tanh(x):
    """`vqc::tanh`."""
    below = exact_exp(x * 2.0) + 1.0
    return 1.0 - tl.math.div_rn(tl.full(below.shape, 2.0, tl.float32), below)


@triton.jit
def exact_hardsigmoid(x):
    """`vqc::hardsigmoid`."""
    return at_most(at_least(x + 3.0, 0.0), 6.0) * _SIXTH

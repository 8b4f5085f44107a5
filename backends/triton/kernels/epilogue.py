"""What follows the sums: steps on one value, in order, then where it goes.

A step has a kind, what is done, and a place, how the other operand lies; both are known when the kernel is compiled.
OPS holds the operands' pointers, None for steps that have none.

    kind: relu hardsigmoid hardswish sigmoid tanh silu abs of the value alone
          add mul sub rsub div                             of the value and an operand (rsub: operand - value)
          prelu least most                                 the operand is the slope, the lower bound, the upper one
          gt ge lt le                                      1 where the value compares so with the operand, else 0
          sign                                             -1 where the value is below the operand, else 1
    place: "full" [N,Ho,Wo,O]; "plane" [N,Ho,Wo]; "image" [N,O]; "channel" [O]; "one" [1]; "" no operand

Every kernel that ends in `finish` takes three arguments for it and hands them on as they are (`epilogue.Epilogue` makes
them): OPS; OUT = (y, q, inv, zero, low, high, bits, tau), where results go and what quantizers need; and, known when
it is compiled, HOW = (FLOAT, LEVELS, BITS, YS, QS, kind, place, stride, kind, place, stride, ..), flat as Triton 3.7
wants it. A stride says how far positions lie apart, in elements, where that is not the number of channels (then it is
0): YS in y, QS in q, and one for each step's operand ("full" and "plane").
"""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.exact import (
    as_float,
    at_least,
    at_most,
    exact_hardsigmoid,
    exact_sigmoid,
    exact_tanh,
    stored_as,
    whole,
)


@triton.jit
def _step(y, r, KIND: tl.constexpr):
    if KIND == "relu":
        y = at_least(y, 0.0)
    elif KIND == "least":
        y = at_least(y, r)
    elif KIND == "most":
        y = at_most(y, r)
    elif KIND == "hardsigmoid":
        y = exact_hardsigmoid(y)
    elif KIND == "hardswish":
        y = y * exact_hardsigmoid(y)
    elif KIND == "sigmoid":
        y = exact_sigmoid(y)
    elif KIND == "tanh":
        y = exact_tanh(y)
    elif KIND == "silu":
        y = y * exact_sigmoid(y)
    elif KIND == "add":
        y = y + r
    elif KIND == "sub":
        y = y - r
    elif KIND == "rsub":
        y = r - y
    elif KIND == "mul":
        y = y * r
    elif KIND == "div":
        y, r = tl.broadcast(y, r)
        y = tl.math.div_rn(y, r)
    elif KIND == "abs":
        y = tl.abs(y)
    elif KIND == "gt":
        y = tl.where(y > r, 1.0, 0.0)
    elif KIND == "ge":
        y = tl.where(y >= r, 1.0, 0.0)
    elif KIND == "lt":
        y = tl.where(y < r, 1.0, 0.0)
    elif KIND == "le":
        y = tl.where(y <= r, 1.0, 0.0)
    elif KIND == "sign":
        y = tl.where(y < r, -1.0, 1.0)
    else:
        tl.static_assert(KIND == "prelu")
        y = tl.where(y > 0.0, y, y * r)
    return y


@triton.jit
def apart(channels, STRIDE: tl.constexpr):
    """Elements from one position to the next: STRIDE, or where that is 0 the number of channels."""
    if STRIDE == 0:
        step = channels
    else:
        step = STRIDE
    return step


@triton.jit
def apply_steps(y, OPS, HOW: tl.constexpr, pixel, image, channel, live, used, O):
    """All steps on y f32 [BM,BN]. pixel, image: [BM] numbers of the output position and of its picture; channel: [BN];
    live [BM], used [BN]: which of them exist; O: channels of the output."""
    mask = live[:, None] & used[None, :]
    for i in tl.static_range((len(HOW) - 5) // 3):
        if HOW[6 + 3 * i] == "full":
            at = pixel[:, None] * apart(O, HOW[7 + 3 * i]) + channel[None, :]
            r = as_float(tl.load(OPS[i] + at, mask=mask, other=0))
            y = _step(y, r, HOW[5 + 3 * i])
        elif HOW[6 + 3 * i] == "plane":
            r = as_float(tl.load(OPS[i] + pixel * apart(1, HOW[7 + 3 * i]), mask=live, other=0))
            y = _step(y, r[:, None], HOW[5 + 3 * i])
        elif HOW[6 + 3 * i] == "image":
            r = as_float(tl.load(OPS[i] + image[:, None] * O + channel[None, :], mask=mask, other=0))
            y = _step(y, r, HOW[5 + 3 * i])
        elif HOW[6 + 3 * i] == "channel":
            r = as_float(tl.load(OPS[i] + channel, mask=used, other=0))
            y = _step(y, r[None, :], HOW[5 + 3 * i])
        elif HOW[6 + 3 * i] == "one":
            y = _step(y, as_float(tl.load(OPS[i])), HOW[5 + 3 * i])
        else:
            y = _step(y, 0.0, HOW[5 + 3 * i])
    return y


@triton.jit
def store_float(y, y_ptr, pixel, channel, mask, stride):
    """y f32 [BM,BN] to [N,Ho,Wo,O], rounded once to what is stored there."""
    tl.store(y_ptr + pixel[:, None] * stride + channel[None, :], stored_as(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_levels(y, q_ptr, inv_ptr, zero_ptr, low, high, pixel, channel, used, mask, stride, CHANNELS: tl.constexpr):
    """clamp(rint(y * inv) + zero, low, high) in q_ptr's dtype; inv and zero f32 [1], or [O] where CHANNELS."""
    if CHANNELS:
        inv = tl.load(inv_ptr + channel, mask=used, other=0.0)[None, :]
        zero = tl.load(zero_ptr + channel, mask=used, other=0.0)[None, :]
    else:
        inv = tl.load(inv_ptr)
        zero = tl.load(zero_ptr)
    q = tl.minimum(tl.maximum(whole(y * inv) + zero, low), high).to(tl.int32)
    tl.store(q_ptr + pixel[:, None] * stride + channel[None, :], q.to(q_ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_bits(y, bits_ptr, tau_ptr, pixel, first, live, O, CHANNELS: tl.constexpr, BM: tl.constexpr,
               BN: tl.constexpr):  # fmt: skip
    """The signs of y - tau, 32 channels in one int32 word, [N,Ho,Wo,ceil(O/32)]: bit 0 where y < tau, else 1.

    `first`: the first channel, a multiple of 32; bits of channels that do not exist are 0. tau f32 [1], or [O].
    """
    channel = first + tl.arange(0, BN)
    used = channel < O
    if CHANNELS:
        tau = tl.load(tau_ptr + channel, mask=used, other=0.0)[None, :]
    else:
        tau = tl.load(tau_ptr)
    bit = tl.where((y < tau) | (channel >= O)[None, :], 0, 1).to(tl.uint32)
    place = tl.arange(0, 32).to(tl.uint32)
    total = (O + 31) // 32
    words = tl.sum(tl.reshape(bit, (BM, BN // 32, 32)) << place[None, None, :], axis=2).to(tl.uint32)
    word = first // 32 + tl.arange(0, BN // 32)
    mask = live[:, None] & (word < total)[None, :]
    tl.store(bits_ptr + pixel[:, None] * total + word[None, :], words.to(tl.int32, bitcast=True), mask=mask)


@triton.jit
def scaled(acc, scale_ptr, bias_ptr, mask_ptr, pixel, channel, used, live, BIAS: tl.constexpr, MASKED: tl.constexpr):
    """Integer sums [BM,BN] as floats: times scale f32 [O], plus bias f32 [O], 0 where mask u8 [N,Ho,Wo] is 0."""
    y = acc.to(tl.float32) * tl.load(scale_ptr + channel, mask=used, other=0.0)[None, :]
    return shifted(y, bias_ptr, mask_ptr, pixel, channel, used, live, BIAS, MASKED)


@triton.jit
def shifted(y, bias_ptr, mask_ptr, pixel, channel, used, live, BIAS: tl.constexpr, MASKED: tl.constexpr):
    """Float sums [BM,BN] plus bias f32 [O], 0 where mask u8 [N,Ho,Wo] is 0."""
    if BIAS:
        y = y + tl.load(bias_ptr + channel, mask=used, other=0.0)[None, :]
    if MASKED:
        keep = tl.load(mask_ptr + pixel, mask=live, other=0)
        y = tl.where((keep != 0)[:, None], y, 0.0)
    return y


@triton.jit
def finish(y, OPS, OUT, HOW: tl.constexpr, pixel, image, first, last, live, O, BM: tl.constexpr,
           BN: tl.constexpr):  # fmt: skip
    """Steps, then every result that is asked for.

    first: the first channel; last: one past the last one of this group. FLOAT: the value to y. LEVELS: "", "tensor" or
    "channel", quantized to q. BITS: the same for signs to bits.
    """
    FLOAT: tl.constexpr = HOW[0]
    LEVELS: tl.constexpr = HOW[1]
    BITS: tl.constexpr = HOW[2]
    channel = first + tl.arange(0, BN)
    used = channel < last
    mask = live[:, None] & used[None, :]
    y = apply_steps(y, OPS, HOW, pixel, image, channel, live, used, O)
    if FLOAT:
        store_float(y, OUT[0], pixel, channel, mask, apart(O, HOW[3]))
    if LEVELS != "":
        store_levels(y, OUT[1], OUT[2], OUT[3], OUT[4], OUT[5], pixel, channel, used, mask, apart(O, HOW[4]),
                     LEVELS == "channel")  # fmt: skip
    if BITS != "":
        store_bits(y, OUT[6], OUT[7], pixel, first, live, O, BITS == "channel", BM, BN)

"""What follows the sums: steps on one value, in order, then where it goes.

Steps are named by two tuples of equal length known when the kernel is compiled: KINDS, what is done, and PLACES, how
the other operand lies. OPS holds the operands' pointers, None for steps that have none.

    kind: relu hardsigmoid hardswish sigmoid tanh silu     of the value alone
          add mul sub rsub div                             of the value and an operand, f32 (rsub: operand - value)
          prelu least most                                 the operand is the slope, the lower bound, the upper one
    place: "full" [N,Ho,Wo,O]; "plane" [N,Ho,Wo]; "image" [N,O]; "channel" [O]; "one" [1]; "" no operand
"""

import triton
import triton.language as tl

from vqc.backends.triton.kernels.exact import (
    at_least,
    at_most,
    exact_hardsigmoid,
    exact_sigmoid,
    exact_tanh,
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
    else:
        tl.static_assert(KIND == "prelu")
        y = tl.where(y > 0.0, y, y * r)
    return y


@triton.jit
def apply_steps(y, OPS, KINDS: tl.constexpr, PLACES: tl.constexpr, pixel, image, channel, live, used, O):
    """All steps on y f32 [BM,BN]. pixel, image: [BM] numbers of the output position and of its picture; channel: [BN];
    live [BM], used [BN]: which of them exist; O: channels of the output."""
    mask = live[:, None] & used[None, :]
    for i in tl.static_range(len(KINDS)):
        if PLACES[i] == "full":
            r = tl.load(OPS[i] + pixel[:, None] * O + channel[None, :], mask=mask, other=0.0)
            y = _step(y, r, KINDS[i])
        elif PLACES[i] == "plane":
            r = tl.load(OPS[i] + pixel, mask=live, other=0.0)
            y = _step(y, r[:, None], KINDS[i])
        elif PLACES[i] == "image":
            r = tl.load(OPS[i] + image[:, None] * O + channel[None, :], mask=mask, other=0.0)
            y = _step(y, r, KINDS[i])
        elif PLACES[i] == "channel":
            r = tl.load(OPS[i] + channel, mask=used, other=0.0)
            y = _step(y, r[None, :], KINDS[i])
        elif PLACES[i] == "one":
            y = _step(y, tl.load(OPS[i]), KINDS[i])
        else:
            y = _step(y, 0.0, KINDS[i])
    return y


@triton.jit
def store_float(y, y_ptr, pixel, channel, mask, O):
    """y f32 [BM,BN] to [N,Ho,Wo,O]."""
    tl.store(y_ptr + pixel[:, None] * O + channel[None, :], y, mask=mask)


@triton.jit
def store_levels(y, q_ptr, inv_ptr, zero_ptr, low, high, pixel, channel, used, mask, O, CHANNELS: tl.constexpr):
    """clamp(rint(y * inv) + zero, low, high) in q_ptr's dtype; inv and zero f32 [1], or [O] where CHANNELS."""
    if CHANNELS:
        inv = tl.load(inv_ptr + channel, mask=used, other=0.0)[None, :]
        zero = tl.load(zero_ptr + channel, mask=used, other=0.0)[None, :]
    else:
        inv = tl.load(inv_ptr)
        zero = tl.load(zero_ptr)
    q = tl.minimum(tl.maximum(whole(y * inv) + zero, low), high).to(tl.int32)
    tl.store(q_ptr + pixel[:, None] * O + channel[None, :], q.to(q_ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_bits(
    y, bits_ptr, tau_ptr, pixel, first, live, O, WORDS, CHANNELS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """The signs of y - tau, 32 channels in one int32 word, [N,Ho,Wo,WORDS]: bit 0 where y < tau, else 1.

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
    words = tl.sum(tl.reshape(bit, (BM, BN // 32, 32)) << place[None, None, :], axis=2).to(tl.uint32)
    word = first // 32 + tl.arange(0, BN // 32)
    mask = live[:, None] & (word < WORDS)[None, :]
    tl.store(bits_ptr + pixel[:, None] * WORDS + word[None, :], words.to(tl.int32, bitcast=True), mask=mask)


@triton.jit
def finish(
    y,
    OPS,
    KINDS: tl.constexpr,
    PLACES: tl.constexpr,
    y_ptr,
    q_ptr,
    inv_ptr,
    zero_ptr,
    low,
    high,
    bits_ptr,
    tau_ptr,
    pixel,
    image,
    first,
    last,
    live,
    O,
    WORDS,
    FLOAT: tl.constexpr,
    LEVELS: tl.constexpr,
    BITS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Steps, then every result that is asked for.

    first: the first channel; last: one past the last one of this group. FLOAT: the value to y_ptr. LEVELS: "",
    "tensor" or "channel", quantized to q_ptr. BITS: the same for signs to bits_ptr.
    """
    channel = first + tl.arange(0, BN)
    used = channel < last
    mask = live[:, None] & used[None, :]
    y = apply_steps(y, OPS, KINDS, PLACES, pixel, image, channel, live, used, O)
    if FLOAT:
        store_float(y, y_ptr, pixel, channel, mask, O)
    if LEVELS != "":
        store_levels(y, q_ptr, inv_ptr, zero_ptr, low, high, pixel, channel, used, mask, O, LEVELS == "channel")
    if BITS != "":
        store_bits(y, bits_ptr, tau_ptr, pixel, first, live, O, WORDS, BITS == "channel", BM, BN)

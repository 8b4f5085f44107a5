"""Convolutions under a mask in C: float close to the reference and exactly 0 outside, integers bit for bit."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from c_helpers import In, aten, chain, check, compiled, single
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.backends.c import CBackend
from vqc.ops._common import conv_size

vops = torch.ops.vqc
MASKS = ("empty", "full", "point", "last", "checkers", "blob", "noise", "rows", "hole")


def mask_of(kind: str, shape: tuple[int, ...], g: torch.Generator) -> torch.Tensor:
    """A mask [N,1,H,W] of one kind."""
    n, _, h, w = shape
    y, x = torch.arange(h).view(1, 1, h, 1), torch.arange(w).view(1, 1, 1, w)
    at = torch.randint(0, h * w, (n, 1, 1, 1), generator=g)
    place = y * w + x
    match kind:
        case "empty":
            mask = place < 0
        case "full":
            mask = place >= 0
        case "point":
            mask = place == at
        case "last":
            mask = place == h * w - 1
        case "checkers":
            mask = (y + x) % 2 == 0
        case "blob":
            mask = (4 * (y - at // w)) ** 2 + (x - at % w) ** 2 < w * w // 9
        case "noise":
            mask = torch.rand(n, 1, h, w, generator=g) < 0.2
        case "rows":
            mask = (y % 3 == 1) & (x >= w // 4)
        case _:
            mask = place != at
    return mask.expand(n, 1, h, w).contiguous()


@st.composite
def cases(draw):
    """Sizes, strides, paddings, dilations, groups and the mask of one convolution."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel = [draw(st.integers(1, 4)), draw(st.integers(1, 5))]
    dilation, stride = ([draw(st.integers(1, 2)), draw(st.integers(1, 3))] for _ in range(2))
    padding = [draw(st.integers(0, 3)) for _ in range(2)]
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(max(1, r + 1 - 2 * p), r + 14)) for r, p in zip(reach, padding, strict=True)]
    size[1] += draw(st.sampled_from([0, 9, 40, 120]))
    cin = draw(st.integers(1, 5))
    cout = draw(st.sampled_from([1, 2, 4, 5, 7, 8, 9, 17, 33, 38, 64]))  # from 32 on inputs may be gathered
    return {
        "n": draw(st.integers(1, 2)), "c": cin, "o": cout * groups, "groups": groups, "size": size,
        "kernel": kernel, "tail": [stride, padding, dilation, groups], "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 9)), "per_channel": draw(st.booleans()), "mask": draw(st.sampled_from(MASKS)),
        "act": draw(st.sampled_from(["none", "relu", None])),
    }  # fmt: skip


def _mask(c, g):
    stride, padding, dilation, _ = c["tail"]
    h, w = (conv_size(c["size"][i], c["kernel"][i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    return mask_of(c["mask"], (c["n"], 1, h, w), g)


def _float(c):
    g = torch.Generator().manual_seed(c["seed"])
    x = torch.randn(c["n"], c["c"] * c["groups"], *c["size"], generator=g)
    w = torch.randn(c["o"], c["c"], *c["kernel"], generator=g)
    b = torch.randn(c["o"], generator=g) if c["bias"] else None
    return vops.masked_conv2d.default, x, _mask(c, g), [w, b], c["tail"]


def _integer(c):
    g = torch.Generator().manual_seed(c["seed"])
    per_group = c["c"] if c["groups"] == 1 else 4 * c["c"]  # words of four channels are not shared by groups
    channels = per_group * c["groups"]
    x = torch.randint(0, 256, (c["n"], channels, *c["size"]), generator=g).to(torch.uint8)
    w = torch.randint(-128, 128, (c["o"], per_group, *c["kernel"]), generator=g).to(torch.int8)
    scale = torch.rand(c["o"], generator=g) * 1e-3 + 1e-5
    b = torch.randn(c["o"], generator=g) if c["bias"] else None
    zero = torch.randint(0, 256, (channels if c["per_channel"] else 1,), generator=g).to(torch.int32)
    if c["act"] is None:
        return vops.masked_qconv2d.default, x, _mask(c, g), [w, scale, b, zero], c["tail"]
    return vops.masked_qconv2d_requantize.default, x, _mask(c, g), [w, scale, b, zero], [*c["tail"], c["act"], 17.3, 31]


def _binary(c):
    g = torch.Generator().manual_seed(c["seed"])
    channels = c["c"] * 11
    x = 1 - 2 * torch.randint(0, 2, (c["n"], channels, *c["size"]), generator=g).to(torch.int8)
    w = 1 - 2 * torch.randint(0, 2, (c["o"], channels, *c["kernel"]), generator=g).to(torch.int8)
    scale = torch.rand(c["o"], generator=g)
    b = torch.randn(c["o"], generator=g) if c["bias"] else None
    return vops.masked_bconv2d.default, x, _mask(c, g), [w, scale, b], c["tail"][:3]


def _program(makers):
    """One Program with a convolution for each maker: one compilation instead of many."""
    made = list(makers)

    def build(b, *xs):
        return tuple(b.call(op, xs[2 * i], *head, xs[2 * i + 1], *tail)
                     for i, (op, _, _, head, tail) in enumerate(made))  # fmt: skip

    return chain(build, *[t for _, x, mask, _, _ in made for t in (x, mask)])


@settings(max_examples=8, deadline=None)
@given(st.lists(cases(), min_size=4, max_size=9), st.sampled_from(["native", "native", "portable"]))
def test_float_is_close_and_exactly_zero_outside(drawn, target):
    program = _program(map(_float, drawn))
    exe = check(program, rtol=1e-5, atol=2e-5, target=target)
    for y, mask in zip(exe.trace(program.example, []), program.example[1::2], strict=True):
        outside = y[(~mask).expand_as(y)]
        assert torch.equal(outside.view(torch.int32), torch.zeros_like(outside, dtype=torch.int32))


@settings(max_examples=10, deadline=None)
@given(st.lists(cases(), min_size=4, max_size=9), st.sampled_from(["native", "native", "portable", "x86-64-v3"]))
def test_integers_equal_bit_for_bit(drawn, target):
    check(_program(map(_integer, drawn)), exact=True, target=target)


@settings(max_examples=3, deadline=None)
@given(st.lists(cases(), min_size=3, max_size=5), st.sampled_from(["native", "portable"]))
def test_binary_ones_equal_bit_for_bit(drawn, target):
    check(_program(map(_binary, drawn)), exact=True, target=target)


@pytest.mark.parametrize("channels", [20, 70])
@pytest.mark.parametrize("kind", MASKS)
def test_picture_sized_layer_keeps_the_bits_of_the_dense_one(kind, channels):
    """Over several bands, every kept position has what the kernel without a mask gives."""
    g = torch.Generator().manual_seed(3)
    mask = mask_of(kind, (1, 1, 70, 131), g)
    args = (torch.randn(channels, 24, 3, 3, generator=g), torch.randn(channels, generator=g))
    tail = ([1, 1], [1, 1], [1, 1], 1)

    def build(b, x, m):
        return b.call(aten.conv2d.default, x, *args, *tail), b.call(vops.masked_conv2d.default, x, *args, m, *tail)

    program = chain(build, torch.randn(1, 24, 70, 131, generator=g), mask)
    dense, masked = compiled(program).trace(program.example, [])
    assert torch.equal(masked, torch.where(mask, dense, torch.zeros(())))


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_binary_layer_of_a_picture_equals_the_reference(target):
    """Over several bands and chunks, 33 channels of 70 and 9 of 70, every kind of mask and of class of rows."""
    g = torch.Generator().manual_seed(5)
    x = (2 * torch.randint(0, 2, (1, 70, 41, 150), generator=g) - 1).to(torch.int8)
    masks = [mask_of(kind, (1, 1, 41, 150), g) for kind in MASKS]

    def build(b, x, *masks):
        y = []
        for out, m in product((33, 9), masks):
            w = (2 * torch.randint(0, 2, (out, 70, 3, 3), generator=g) - 1).to(torch.int8)
            head = (w, torch.rand(out, generator=g), torch.randn(out, generator=g))
            y.append(b.call(vops.masked_bconv2d.default, x, *head, m, [1, 1], [1, 1], [1, 1]))
        return tuple(y)

    check(chain(build, x, *masks), exact=True, target=target)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_make_no_difference(threads):
    g = torch.Generator().manual_seed(4)
    x, w = torch.randn(2, 12, 40, 90, generator=g), torch.randn(12, 6, 3, 3, generator=g)
    mask = mask_of("blob", (2, 1, 40, 90), g)
    check(single(vops.masked_conv2d.default, In(x), w, None, In(mask), [1, 1], [1, 1], [1, 1], 2), atol=2e-5,
          threads=threads)  # fmt: skip


def test_a_mask_that_the_program_computes():
    """The mask comes from the picture itself and lies in the arena, between other tensors."""
    w = torch.randn(6, 4, 3, 3)

    def build(b, x):
        mask = b.call(aten.gt.Scalar, b.call(aten.slice.Tensor, x, 1, 0, 1), 0.5)
        y = b.call(vops.masked_conv2d.default, x, w, None, mask, [1, 1], [1, 1], [1, 1], 1)
        return b.call(aten.relu.default, y)

    exe = check(chain(build, torch.randn(1, 4, 33, 47)), atol=2e-5)
    assert "vqc_masked_conv_f32" in [c.kernel for c in exe.model.model.lowered.calls]


def test_what_the_kernels_do_not_take_is_declined_with_the_reason():
    def why(x, w, *more):
        fixed = (torch.ones(4), None, torch.zeros(1, dtype=torch.int32))
        mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
        p = single(vops.masked_qconv2d.default, In(x), w, *fixed, In(mask), [1, 1], [0, 0], [1, 1], *more)
        return CBackend().supports(p, p.calls[0], "native") or ""

    w = torch.ones(4, 4, 3, 3, dtype=torch.int8)
    x = torch.ones(1, 4, 5, 5, dtype=torch.uint8)
    assert why(x, w, 1) == ""
    assert "pictures of uint8" in why(x.to(torch.int8), w, 1)
    assert "weights of int8" in why(x, w.to(torch.int16), 1)
    assert "groups of 4" in why(x, w[:, :2].contiguous(), 2)

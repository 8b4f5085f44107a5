"""Convolutions in C against PyTorch's, and the exact and integer ones bit for bit."""

from __future__ import annotations

import pytest
import torch
from c_helpers import In, aten, chain, check, single
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401  registers vqc::

vops = torch.ops.vqc


@st.composite
def cases(draw, transposed=False):
    """Sizes, strides, paddings, dilations and groups of one convolution, small but of every kind."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel = [draw(st.integers(1, 4)), draw(st.integers(1, 5))]
    dilation = [draw(st.integers(1, 2)), draw(st.integers(1, 3))]
    stride = [draw(st.integers(1, 3)), draw(st.integers(1, 3))]
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    if transposed:
        padding = [draw(st.integers(0, min(r, 2))) for r in reach]
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        size = [draw(st.integers(1 + (2 * p) // s, 9 + (2 * p) // s)) for p, s in zip(padding, stride, strict=True)]
        if any(
            (h - 1) * s - 2 * p + r + e < 0 for h, s, p, r, e in zip(size, stride, padding, reach, extra, strict=True)
        ):
            extra, padding = [0, 0], [0, 0]
    else:
        padding = [draw(st.integers(0, 3)) for _ in range(2)]
        extra = [0, 0]
        size = [draw(st.integers(max(1, r + 1 - 2 * p), r + 14)) for r, p in zip(reach, padding, strict=True)]
    if draw(st.booleans()):
        size[1] += 40  # wide enough for the large tiles
    cin, cout = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 4, 5, 7, 8, 9, 17]))
    return {
        "n": draw(st.integers(1, 2)), "c": cin * groups, "o": cout * groups, "groups": groups, "size": size,
        "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "extra": extra,
        "bias": draw(st.booleans()), "seed": draw(st.integers(0, 9)), "per_channel": draw(st.booleans()),
        "wide": draw(st.booleans()), "signed": draw(st.booleans()), "act": draw(st.sampled_from(["none", "relu"])),
    }  # fmt: skip


def _weight_shape(c, transposed):
    lead = (c["c"], c["o"] // c["groups"]) if transposed else (c["o"], c["c"] // c["groups"])
    return (*lead, *c["kernel"])


def _options(c, transposed):
    plain = [c["stride"], c["padding"], c["dilation"], c["groups"]]
    return [c["stride"], c["padding"], c["extra"], c["groups"], c["dilation"]] if transposed else plain


def _floats(c, transposed, exact):
    g = torch.Generator().manual_seed(c["seed"])
    x = torch.randn(c["n"], c["c"], *c["size"], generator=g)
    w = torch.randn(_weight_shape(c, transposed), generator=g)
    b = torch.randn(c["o"], generator=g) if c["bias"] else None
    if exact:
        op = vops.conv_transpose2d.default if transposed else vops.conv2d.default
    else:
        op = aten.conv_transpose2d.input if transposed else aten.conv2d.default
    return op, x, [w, b, *_options(c, transposed)]


def _program(makers):
    """One Program with a convolution for each maker: one compilation instead of many."""
    made = list(makers)
    return chain(lambda b, *xs: tuple(b.call(op, x, *args) for x, (op, _, args) in zip(xs, made, strict=True)),
                 *[x for _, x, _ in made])  # fmt: skip


@settings(max_examples=9, deadline=None)
@given(st.lists(cases(), min_size=3, max_size=5), st.lists(cases(transposed=True), min_size=2, max_size=4))
def test_float_convolutions_equal_pytorchs(plain, transposed):
    makers = [_floats(c, False, False) for c in plain] + [_floats(c, True, False) for c in transposed]
    check(_program(makers), rtol=1e-5, atol=2e-5)


@settings(max_examples=9, deadline=None)
@given(st.lists(cases(), min_size=3, max_size=5), st.lists(cases(transposed=True), min_size=2, max_size=4),
       st.sampled_from(["native", "native", "portable"]))  # fmt: skip
def test_exact_convolutions_equal_bit_for_bit(plain, transposed, target):
    makers = [_floats(c, False, True) for c in plain] + [_floats(c, True, True) for c in transposed]
    check(_program(makers), exact=True, target=target)


def _integers(c, transposed, requantize):
    g = torch.Generator().manual_seed(c["seed"])
    low, high, kind = (-128, 128, torch.int8) if c["signed"] else (0, 256, torch.uint8)
    x = torch.randint(low, high, (c["n"], c["c"], *c["size"]), generator=g).to(kind)
    top = 3000 if c["wide"] else 127
    w = torch.randint(-top - 1, top + 1, _weight_shape(c, transposed), generator=g)
    w = w.to(torch.int16 if c["wide"] else torch.int8)
    scale = torch.rand(c["o"], generator=g) * 1e-3 + 1e-5
    b = torch.randn(c["o"], generator=g) if c["bias"] else None
    zero = torch.randint(low, high, (c["c"] if c["per_channel"] else 1,), generator=g).to(torch.int32)
    args = [w, scale, b, zero, *_options(c, transposed)]
    name = "qconv_transpose2d" if transposed else "qconv2d"
    if requantize:
        return getattr(vops, name + "_requantize").default, x, [*args, c["act"], 0.7 if c["wide"] else 17.3, 31]
    return getattr(vops, name).default, x, args


@settings(max_examples=10, deadline=None)
@given(st.lists(cases(), min_size=3, max_size=6), st.lists(cases(transposed=True), min_size=2, max_size=4),
       st.booleans(), st.sampled_from(["native", "native", "portable"]))  # fmt: skip
def test_integer_convolutions_equal_bit_for_bit(plain, transposed, requantize, target):
    makers = [_integers(c, False, requantize) for c in plain] + [_integers(c, True, requantize) for c in transposed]
    check(_program(makers), exact=True, target=target)


def test_one_and_three_axes():
    check(
        single(aten.conv1d.default, In(torch.randn(2, 4, 37)), torch.randn(6, 2, 5), torch.randn(6), [2], [3], [1], 2)
    )
    check(single(aten.conv3d.default, In(torch.randn(1, 4, 5, 7, 9)), torch.randn(6, 2, 3, 3, 2), torch.randn(6),
                 [2, 1, 2], [1, 1, 0], [1, 2, 1], 2), atol=1e-5)  # fmt: skip
    check(
        single(
            aten.conv_transpose1d.default,
            In(torch.randn(2, 4, 11)),
            torch.randn(4, 3, 4),
            torch.randn(6),
            [2],
            [1],
            [1],
            2,
        )
    )


def test_picture_sized_convolution_goes_over_several_bands():
    check(
        single(
            aten.conv2d.default,
            In(torch.randn(1, 24, 70, 130)),
            torch.randn(20, 24, 3, 3),
            torch.randn(20),
            [1, 1],
            [1, 1],
            [1, 1],
            1,
        ),
        atol=1e-4,
    )
    check(
        single(
            aten.conv2d.default,
            In(torch.randn(1, 32, 90, 160)),
            torch.randn(20, 32, 1, 1),
            torch.randn(20),
            [1, 1],
            [0, 0],
            [1, 1],
            1,
        ),
        atol=1e-4,
    )
    check(single(aten.conv2d.default, In(torch.randn(1, 20, 70, 131)), torch.randn(20, 1, 5, 5), None, [2, 2], [2, 2],
                 [1, 1], 20), atol=1e-4)  # fmt: skip


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("relu", ()), ("relu6", ()), ("hardtanh", (-0.5, 0.75)), ("clamp", (-0.3, None)), ("leaky_relu", (0.1,)),
        ("prelu", (torch.linspace(-0.5, 0.5, 6),)), ("prelu", (torch.tensor([0.25]),)), ("hardswish", ()),
        ("hardsigmoid", ()),
    ],
)  # fmt: skip
def test_activation_goes_into_the_convolution(op, args):
    def build(b, x):
        y = b.call(aten.conv2d.default, x, torch.randn(6, 4, 3, 3), torch.randn(6), [1, 1], [1, 1], [1, 1], 1)
        return b.call(getattr(aten, op).default, y, *args)

    exe = check(chain(build, torch.randn(1, 4, 9, 50)))
    assert [c.kernel for c in exe.model.model.lowered.calls] == ["vqc_conv_f32"]
    assert len(exe.report.kernels) == 2


def test_activation_of_a_convolution_others_read_stays_apart():
    def build(b, x):
        y = b.call(aten.conv2d.default, x, torch.randn(6, 4, 3, 3), None, [1, 1], [1, 1], [1, 1], 1)
        return b.call(aten.relu.default, y), y

    exe = check(chain(build, torch.randn(1, 4, 9, 10)))
    assert sorted(c.kernel for c in exe.model.model.lowered.calls) == ["vqc_conv_f32", "vqc_pointwise_f32"]


def test_kernel_of_one_voxel_reads_every_depth_in_place():
    check(single(aten.conv3d.default, In(torch.randn(2, 4, 3, 7, 9)), torch.randn(6, 2, 1, 1, 1), None, [1, 1, 1],
                 [0, 0, 0], [1, 1, 1], 2))  # fmt: skip

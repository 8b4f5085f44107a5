"""lower-binary: the same values as the training form, bit for bit, and a reason for what is left."""

from __future__ import annotations

import pytest
import torch
from handmade import Hand, reasons, run

import vqc.passes  # noqa: F401
from vqc import testing
from vqc.pipeline import PassContext, parse
from vqc.program import Program, evaluate

aten, v = torch.ops.aten, torch.ops.vqc


def lower(program: Program, text: str = "lower-binary") -> Program:
    return parse(text).run(program, PassContext())


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.int32) if t.dtype == torch.float32 else t


def assert_bits(before: Program, after: Program) -> None:
    for a, b in zip(run(before), run(after), strict=True):
        assert torch.equal(bits(a), bits(b))


def signs(h: Hand, *shape: int) -> torch.Tensor:
    return 1 - 2 * (h.rand(*shape) < 0).float()


def layer(h: Hand, weight: torch.Tensor, *geometry, factor=True, shift=True, x=None, bias=None):
    """conv2d(sign(x - tau), weight) * factor + shift."""
    x = x if x is not None else h.input("x", 2, weight.shape[1], 9, 7)
    s = h(v.fake_binarize, x, h.const("tau", h.rand(weight.shape[1])), "clip")
    y = h(aten.conv2d, s, h.const("w", weight), None if bias is None else h.const("b", bias), *geometry)
    if factor:
        y = h(aten.mul.Tensor, y, h.const("factor", h.rand(len(weight), 1, 1)))
    if shift:
        y = h(aten.add.Tensor, y, h.const("shift", h.rand(1, len(weight), 1, 1)))
    return y


@pytest.mark.parametrize(
    "geometry", [(), ([1, 1], [1, 1]), ([2, 2], [1, 1]), ([1, 1], [2, 2], [2, 2]), ([1, 2], [0, 2])]
)
@pytest.mark.parametrize("factor, shift", [(True, True), (True, False), (False, True), (False, False)])
def test_a_layer_keeps_its_bits(geometry, factor, shift):
    h = Hand()
    before = h.done(layer(h, signs(h, 5, 6, 3, 3), *geometry, factor=factor, shift=shift))
    after = lower(before)
    assert after.history[-1].rewrites == {"sign": 1, "layer": 1}
    testing.assert_ops(after, {"vqc.binarize": 1, "vqc.bconv2d": 1, "aten.*": 0, "vqc.fake*": 0})
    assert_bits(before, after)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_weights_all_of_one_sign(sign):
    h = Hand()
    before = h.done(layer(h, torch.full((4, 3, 3, 3), sign), [1, 1], [1, 1]))
    assert_bits(before, lower(before))


def test_one_sign_serves_two_layers_and_stays_where_somebody_else_reads_it():
    h = Hand()
    s = h(v.fake_binarize, h.input("x", 1, 4, 6, 6), h.const("tau", torch.zeros(1)), "quadratic")
    a = h(aten.conv2d, s, h.const("w", signs(h, 4, 4, 3, 3)), None, [1, 1], [1, 1])
    b = h(aten.conv2d, s, h.const("u", signs(h, 4, 4, 1, 1)))
    before = h.done(a, b, h(aten.add.Tensor, s, b))
    after = lower(before)
    testing.assert_ops(after, {"vqc.binarize": 1, "vqc.bconv2d": 2, "vqc.fake_binarize": 1})
    assert_bits(before, after)


def test_factors_stay_outside_when_somebody_reads_the_sums():
    h = Hand()
    s = h(v.fake_binarize, h.input("x", 1, 4, 6, 6), h.const("tau", torch.zeros(1)), "clip")
    y = h(aten.conv2d, s, h.const("w", signs(h, 4, 4, 3, 3)))
    before = h.done(y, h(aten.mul.Tensor, y, h.const("f", h.rand(4, 1, 1))))
    after = lower(before)
    testing.assert_ops(after, {"vqc.bconv2d": 1, "aten.mul.Tensor": 1})
    assert_bits(before, after)


@pytest.mark.parametrize("wrong", ["row", "input", "scaled sum"])
def test_what_is_no_constant_of_channels_stays_outside(wrong):
    h = Hand()
    x = h.input("x", 1, 4, 6, 6)
    y = layer(h, signs(h, 4, 4, 1, 1), x=x, factor=False, shift=False)
    other = x if wrong == "input" else h.const("c", h.rand(4, 1, 6) if wrong == "row" else h.rand(4, 1, 1))
    before = h.done(h(aten.add.Tensor, y, other, **({"alpha": 2} if wrong == "scaled sum" else {})))
    after = lower(before)
    testing.assert_ops(after, {"vqc.bconv2d": 1, "aten.add.Tensor": 1})
    assert_bits(before, after)


def test_a_magnitude_of_each_channel_becomes_the_scale():
    h = Hand()
    size = torch.tensor([0.5, 0.3, 2.0]).view(3, 1, 1, 1)
    y = layer(h, signs(h, 3, 4, 3, 3) * size, [1, 1], [1, 1], factor=False, shift=False, bias=h.rand(3))
    before = h.done(y)
    after = lower(before)
    (node,) = [n for n in after.calls if n.target is v.bconv2d.default]
    assert torch.equal(after.constant(node.args[2]), size.view(3))
    torch.testing.assert_close(run(after), run(before), rtol=1e-6, atol=1e-5)


def test_a_norm_behind_a_layer_goes_in():
    h = Hand()
    y = layer(h, signs(h, 3, 4, 3, 3))
    stats = [
        h.const(k, t) for k, t in (("g", h.rand(3)), ("b", h.rand(3)), ("m", h.rand(3)), ("s", h.rand(3).abs() + 1))
    ]
    before = h.done(h(aten.batch_norm, y, *stats, False, 0.1, 1e-5, False))
    after = lower(before)
    testing.assert_ops(after, {"vqc.bconv2d": 1, "aten.*": 0})
    torch.testing.assert_close(run(after), run(before), rtol=1e-5, atol=1e-5)


def test_linear():
    h = Hand()
    s = h(v.fake_binarize, h.input("x", 5, 12), h.const("tau", h.rand(12)), "clip")
    y = h(aten.linear, s, h.const("w", signs(h, 7, 12)))
    before = h.done(h(aten.add.Tensor, h(aten.mul.Tensor, y, h.const("f", h.rand(7))), h.const("b", h.rand(7))))
    after = lower(before)
    assert after.history[-1].rewrites == {"sign": 1, "linear": 1}
    testing.assert_ops(after, {"vqc.bconv2d": 1, "aten.linear": 0, "aten.mul*": 0, "aten.add*": 0})
    assert_bits(before, after)


@pytest.mark.parametrize(
    "weight, groups, reason",
    [
        (torch.ones(4, 1, 3, 3), 4, "4 groups, bconv2d has none"),
        (torch.tensor([1.0, 2.0, -1.0, 1.0]).view(1, 4, 1, 1), 1, "more than one magnitude"),
        (torch.zeros(2, 4, 1, 1), 1, "more than one magnitude"),
    ],
)
def test_declines(weight, groups, reason):
    h = Hand()
    s = h(v.fake_binarize, h.input("x", 1, 4, 6, 6), h.const("tau", torch.zeros(1)), "clip")
    y = h(aten.conv2d, s, h.const("w", weight), None, [1, 1], [0, 0], [1, 1], groups)
    before = h.done(y)
    after = lower(before)
    assert reason in reasons(after)["conv2d"] and not after.history[-1].rewrites
    assert_bits(before, after)


def test_declines_an_input_of_floats_and_a_weight_of_run_time():
    h = Hand()
    x, u = h.input("x", 1, 4, 6, 6), h.input("u", 3, 4, 1, 1)
    s = h(v.fake_binarize, x, h.const("tau", torch.zeros(1)), "clip")
    before = h.done(h(aten.conv2d, x, h.const("w", signs(h, 3, 4, 3, 3))), h(aten.conv2d, s, u),
                    h(aten.conv_transpose2d.input, s, u))  # fmt: skip
    said = reasons(lower(before))
    assert "its weight is binary, its input x is not" in said["conv2d"]
    assert "its weight is computed" in said["conv2d_1"]
    assert "no binary operator for aten.conv_transpose2d" in said["conv_transpose2d"]


# ---- masks -----------------------------------------------------------------------------------------------------------


def mask_of(h: Hand, at: float, size=(8, 12)):
    """A mask of fractions: where a picture of a quarter is above `at`, resized."""
    small = h(aten.gt.Scalar, h.input("m", 1, 1, 2, 3), at)
    return h(aten.upsample_bilinear2d, h(aten._to_copy, small, dtype=torch.float32), list(size), False, 4, 4)


def masked(h: Hand, mask, *, weight=None, binary=True, act=True, swap=False):
    x = h.input("x", 1, 4, 8, 12)
    weight = signs(h, 5, 4, 3, 3) if weight is None else weight
    if binary:
        y = layer(h, weight, [1, 1], [1, 1], x=x)
    else:
        y = h(aten.conv2d, x, h.const("w", weight), h.const("b", h.rand(5)), [1, 1], [1, 1])
    if act:
        y = h(aten.prelu, y, h.const("slope", h.rand(5)))
    y = h(aten.mul.Tensor, *((mask, y) if swap else (y, mask)))
    return x, h(aten.add.Tensor, y, h.const("rest", h.rand(1, 5, 8, 12)))


@pytest.mark.parametrize("at", [0.0, 1e9, -1e9])  # fractions, an empty mask, a full one
@pytest.mark.parametrize("act", [True, False])
def test_a_product_with_a_mask_skips_zeros(at, act):
    h = Hand()
    x, y = masked(h, mask_of(h, at), act=act, swap=act)
    before = h.done(y)
    after = lower(before)
    assert after.history[-1].rewrites == {"sign": 1, "layer": 1, "mask": 1}
    testing.assert_ops(after, {"vqc.masked_bconv2d": 1, "vqc.bconv2d": 0, "aten.gt.Scalar": 2, "aten.mul.Tensor": 1})
    assert_bits(before, after)


def test_a_negative_value_under_a_zero_is_still_zero():
    h = Hand()
    x = h.input("x", 1, 4, 8, 12)
    y = layer(h, signs(h, 5, 4, 3, 3), [1, 1], [1, 1], x=x, shift=False)
    before = h.done(h(aten.mul.Tensor, h(aten.sub.Tensor, y, 100.0), mask_of(h, 0.0)))
    (a,), (b,) = run(before), run(lower(before))
    assert torch.equal(a, b) and bool((a == 0).any()) and bool((a < 0).any())


def test_float_layers_under_a_mask():
    h = Hand()
    x, y = masked(h, mask_of(h, 0.0), weight=h.rand(5, 4, 3, 3), binary=False)
    before = h.done(y)
    after = lower(before)
    assert after.history[-1].rewrites == {"float mask": 1}
    torch.testing.assert_close(run(after), run(before), rtol=1e-6, atol=1e-6)


def test_masks_share_their_comparison_and_can_be_left():
    h = Hand()
    mask = mask_of(h, 0.0)
    x, y = masked(h, mask)
    s = h(v.fake_binarize, y, h.const("tau2", torch.zeros(1)), "clip")
    z = h(aten.mul.Tensor, h(aten.conv2d, s, h.const("w2", signs(h, 5, 5, 1, 1))), mask)
    before = h.done(z)
    testing.assert_ops(lower(before), {"vqc.masked_bconv2d": 2, "aten.gt.Scalar": 2})
    testing.assert_ops(lower(before, "lower-binary{masks=false}"), {"vqc.masked_bconv2d": 0, "aten.gt.Scalar": 1})
    assert torch.equal(run(before)[0], run(lower(before))[0])


@pytest.mark.parametrize("kind", ["signed", "sigmoid", "channels", "read elsewhere"])
def test_what_is_no_mask_stays(kind):
    h = Hand()
    mask = mask_of(h, 0.0)
    if kind == "signed":
        mask = h(aten.sub.Tensor, mask, 0.5)
    if kind == "sigmoid":
        mask = h(aten.sigmoid, h.input("z", 1, 1, 8, 12))
    if kind == "channels":
        mask = h(aten._to_copy, h(aten.gt.Scalar, h.input("z", 1, 5, 8, 12), 0), dtype=torch.float32)
    y = layer(h, signs(h, 5, 4, 3, 3), [1, 1], [1, 1], x=h.input("x", 1, 4, 8, 12))
    product = h(aten.mul.Tensor, y, mask)
    before = h.done(product, y) if kind == "read elsewhere" else h.done(product)
    after = lower(before)
    testing.assert_ops(after, {"vqc.masked*": 0, "vqc.bconv2d": 1})
    if kind == "channels":
        assert "no plane of its size" in reasons(after)["bconv2d"]
    assert_bits(before, after)


def test_a_mask_that_comes_later_is_declined():
    h = Hand()
    y = layer(h, signs(h, 5, 4, 3, 3), [1, 1], [1, 1], x=h.input("x", 1, 4, 8, 12))
    seen = h.input("m", 1, 1, 2, 3)
    act = h(aten.relu, y)
    late = h(aten.upsample_nearest2d, h(aten._to_copy, h(aten.gt.Scalar, seen, 0), dtype=torch.float32), [8, 12])
    before = h.done(h(aten.mul.Tensor, act, late))
    after = lower(before)
    assert "is computed later" in reasons(after)["bconv2d"]
    assert_bits(before, after)


def test_the_state_is_carried_through_a_masked_recurrence():
    """Many steps: a lowered program and its training form give the same state."""
    h = Hand()
    x, mask = h.input("x", 1, 4, 8, 12), mask_of(h, 0.3)
    state = h.state("s", torch.zeros(1, 4, 8, 12))
    both = h(aten.cat, [x, state], 1)
    s = h(v.fake_binarize, both, h.const("tau", h.rand(8)), "clip")
    y = h(aten.mul.Tensor, h(aten.conv2d, s, h.const("w", signs(h, 4, 8, 3, 3)), None, [1, 1], [1, 1]), 0.1)
    new = h(aten.tanh, h(aten.add.Tensor, h(aten.mul.Tensor, y, mask), state))
    before = h.done(h(aten.relu, new), states=[new])
    after = lower(before)
    assert after.history[-1].rewrites["mask"] == 1
    a = b = before.initial_state()
    g = torch.Generator().manual_seed(3)
    for _ in range(6):
        step = [torch.randn(i.shape, generator=g) for i in before.inputs]
        want, got = evaluate(before, step, a), evaluate(after, step, b)
        assert torch.equal(want[0], got[0]) and torch.equal(want[1], got[1])
        a, b = [want[1]], [got[1]]
    assert bool(a[0].any())

"""exact-float: what it rewrites, what it leaves alone and why, and that nothing outside the integer cone moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from handmade import Hand, aten, reasons, run

from vqc import testing
from vqc.ops import is_exact
from vqc.passes.exact_float import ExactFloat, integer_cone
from vqc.pipeline import PassContext, make_pass

qd = torch.ops.quantized_decomposed
U8 = (0.02, 128, 0, 255, torch.uint8)
DEBUG = PassContext(debug=True)


def quantize(h: Hand, x):
    return h(qd.quantize_per_tensor, x, *U8)


def test_before_and_after():
    """The gate feeds a quantizer, so it and its mean are made exact; the second sigmoid and the tanh feed results."""
    h = Hand("gate")
    x = h.input("x", 1, 2, 4, 4)
    gate = h(aten.sigmoid, x)
    pooled = h(aten.mean.dim, gate, [-1, -2])
    q = quantize(h, h(aten.hardswish, pooled))
    before = h.done(q, h(aten.tanh, h(aten.sigmoid, x)))
    after = ExactFloat()(before, DEBUG)
    testing.assert_text(before, """
        program gate
          input x: f32[1,2,4,4]
          sigmoid: f32[1,2,4,4] = aten.sigmoid(x)
          mean: f32[1,2] = aten.mean.dim(sigmoid, [-1,-2])
          hardswish: f32[1,2] = aten.hardswish(mean)
          quantize_per_tensor: u8[1,2] = quantized_decomposed.quantize_per_tensor(hardswish, 0.02, 128, 0, 255, u8)
          sigmoid_1: f32[1,2,4,4] = aten.sigmoid(x)
          tanh: f32[1,2,4,4] = aten.tanh(sigmoid_1)
          return y0 = quantize_per_tensor
          return y1 = tanh
    """)  # fmt: skip
    testing.assert_text(after, """
        program gate
          input x: f32[1,2,4,4]
          sigmoid: f32[1,2,4,4] = vqc.sigmoid(x)
          mean_hw: f32[1,2,1,1] = vqc.mean_hw(sigmoid)
          mean: f32[1,2] = aten.view(mean_hw, [1,2])
          hardswish: f32[1,2] = vqc.hardswish(mean)
          quantize_per_tensor: u8[1,2] = quantized_decomposed.quantize_per_tensor(hardswish, 0.02, 128, 0, 255, u8)
          sigmoid_1: f32[1,2,4,4] = aten.sigmoid(x)
          tanh: f32[1,2,4,4] = aten.tanh(sigmoid_1)
          return y0 = quantize_per_tensor
          return y1 = tanh
    """)  # fmt: skip
    assert after.history[-1].rewrites == {"aten.sigmoid": 1, "aten.mean.dim": 1, "aten.hardswish": 1}
    assert not after.history[-1].declined
    assert str(ExactFloat()(after)) == str(after) and not ExactFloat()(after).history[-1].rewrites


def test_the_cone_goes_through_states():
    """r2 is quantized; r1 moves into r2 one step later; the gate that fills r1 is two steps from an integer."""
    h = Hand()
    x = h.input("x", 1, 2)
    r1, r2, r3 = (h.state(f"r{i}", torch.zeros(1, 2)) for i in (1, 2, 3))
    gate, moved, alone = h(aten.tanh, x), h(aten.sigmoid, r1), h(aten.sigmoid, r3)
    program = h.done(quantize(h, r2), states=[gate, moved, alone])
    cone = {n.name for n in integer_cone(program)}
    assert {gate.name, moved.name, "x", "r1", "r2"} <= cone and not cone & {alone.name, "r3"}
    after = ExactFloat()(program, DEBUG)
    testing.assert_change(program, after, {"aten.tanh": -1, "vqc.tanh": 1, "aten.sigmoid": -1, "vqc.sigmoid": 1})
    assert testing.match(after, ("aten.sigmoid", "placeholder"))[0].node.name == alone.name


def test_integer_operators_pull_the_cone_too():
    """What feeds the integers of a lowered layer counts, what only reads its float result does not."""
    h = Hand()
    x = h.input("x", 1, 2, 4, 4)
    q = h(qd.quantize_per_tensor, h(aten.sigmoid, x), *U8)
    w, scale = h.const("w", torch.ones(1, 2, 1, 1, dtype=torch.int8)), h.const("s", torch.ones(1))
    zero = h.const("z", torch.zeros(1, dtype=torch.int32))
    y = h(torch.ops.vqc.qconv2d, q, w, scale, None, zero, [1, 1], [0, 0], [1, 1], 1)
    program = h.done(h(aten.tanh, y))
    testing.assert_change(program, ExactFloat()(program), {"aten.sigmoid": -1, "vqc.sigmoid": 1})


def test_a_program_without_integers_is_left_alone():
    h = Hand()
    program = h.done(h(aten.sigmoid, h.input("x", 2, 3)))
    after = ExactFloat()(program)
    assert str(after) == str(program) and not after.history[-1].rewrites and not after.history[-1].declined


# ---- every rewrite ---------------------------------------------------------------------------------------------------


def one(build, *shape):
    """A program: `build(h, x)` between an input and a quantizer; the float value is its second result."""
    h = Hand()
    y = build(h, h.input("x", *(shape or (1, 4, 6, 8))))
    return h.done(quantize(h, y), y)


def const(h, *shape):
    return h.const(f"c{len(h.program.constants)}", h.rand(*shape))


def batch_norm(h, x, affine=True):
    weight, bias = (const(h, 4), const(h, 4)) if affine else (None, None)
    var = h.const("var", h.rand(4).abs() + 0.1)
    return h(aten.batch_norm, x, weight, bias, const(h, 4), var, False, 0.1, 1e-3, True)


CASES: dict[str, tuple[Any, dict[str, int]]] = {
    **{
        n: (lambda h, x, n=n: h(getattr(aten, n), x), {f"vqc.{n}": 1})
        for n in ("exp", "sigmoid", "tanh", "hardsigmoid", "hardswish", "silu")
    },
    "mean": (lambda h, x: h(aten.mean.dim, x, [2, 3], True), {"vqc.mean_hw": 1}),
    "global pool": (lambda h, x: h(aten.adaptive_avg_pool2d, x, [1, 1]), {"vqc.mean_hw": 1}),
    "even pool": (lambda h, x: h(aten.adaptive_avg_pool2d, x, [3, 2]), {"vqc.avg_pool2d": 1}),
    "avg pool": (lambda h, x: h(aten.avg_pool2d, x, [3], [2], [1], True, False), {"vqc.avg_pool2d": 1}),
    "avg pool, no stride": (lambda h, x: h(aten.avg_pool2d, x, [2, 3]), {"vqc.avg_pool2d": 1}),
    "resize": (lambda h, x: h(aten.upsample_bilinear2d, x, [9, 5], False), {"vqc.resize_bilinear": 1}),
    "resize by scale": (
        lambda h, x: h(aten.upsample_bilinear2d, x, [15, 20], False, 2.5, 2.5),
        {"vqc.resize_bilinear": 1},
    ),
    "resize aligned": (lambda h, x: h(aten.upsample_bilinear2d, x, [3, 17], True), {"vqc.resize_bilinear": 1}),
    "warp": (lambda h, x: h(aten.grid_sampler_2d, x, const(h, 1, 5, 4, 2), 0, 1, True), {"vqc.grid_sample": 1}),
    "warp, zeros": (lambda h, x: h(aten.grid_sampler_2d, x, const(h, 1, 5, 4, 2), 0, 0, False), {"vqc.grid_sample": 1}),
    "conv": (lambda h, x: h(aten.conv2d, x, const(h, 6, 2, 3, 3), const(h, 6), [2], [1, 0], [1], 2), {"vqc.conv2d": 1}),
    "conv, defaults": (lambda h, x: h(aten.conv2d, x, const(h, 2, 4, 1, 3)), {"vqc.conv2d": 1}),
    "transposed conv": (
        lambda h, x: h(aten.conv_transpose2d.input, x, const(h, 4, 3, 3, 3), None, [2, 2], [1], [1, 0], 2),
        {"vqc.conv_transpose2d": 1},
    ),
    "add alpha": (
        lambda h, x: h(aten.add.Tensor, x, const(h, 4, 1, 1), alpha=3),
        {"aten.mul.Tensor": 1, "aten.add.Tensor": 1},
    ),
    "sub alpha": (lambda h, x: h(aten.sub.Tensor, x, 0.3, alpha=2), {"aten.sub.Tensor": 1}),
    "rsub alpha": (lambda h, x: h(aten.rsub.Scalar, x, 1.0, 0.7), {"aten.mul.Tensor": 1, "aten.rsub.Scalar": 1}),
    "addcmul": (
        lambda h, x: h(aten.addcmul, x, x, const(h, 8), value=0.7),
        {"aten.mul.Tensor": 2, "aten.add.Tensor": 1},
    ),
    "addcdiv": (
        lambda h, x: h(aten.addcdiv, x, x, h.const("d", torch.full((8,), 3.0))),
        {"aten.div.Tensor": 1, "aten.add.Tensor": 1},
    ),
    "lerp": (
        lambda h, x: h(aten.lerp.Scalar, x, const(h, 8), 0.8),
        {"aten.mul.Tensor": 1, "aten.sub.Tensor": 1, "aten.add.Tensor": 1},
    ),
    "lerp by tensor": (
        lambda h, x: h(aten.lerp.Tensor, x, const(h, 8), const(h, 8)),
        {"aten.mul.Tensor": 1, "aten.sub.Tensor": 1, "aten.add.Tensor": 1},
    ),
    "square": (lambda h, x: h(aten.pow.Tensor_Scalar, x, 2), {"aten.mul.Tensor": 1}),
    "cube": (lambda h, x: h(aten.pow.Tensor_Scalar, x, 3), {"aten.mul.Tensor": 2}),
    "batch norm": (batch_norm, {"aten.mul.Tensor": 1, "aten.add.Tensor": 1}),
    "batch norm, plain": (lambda h, x: batch_norm(h, x, False), {"aten.mul.Tensor": 1, "aten.add.Tensor": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrite(name):
    build, want = CASES[name]
    before = one(build)
    after = ExactFloat()(before, DEBUG)
    assert dict(testing.count_ops(after)) == {**want, "quantized_decomposed.quantize_per_tensor": 1}
    assert sum(after.history[-1].rewrites.values()) == 1 and not after.history[-1].declined
    assert all(is_exact(n) for n in after.calls)
    torch.testing.assert_close(run(after)[1], run(before)[1], rtol=1e-5, atol=2e-6)
    old, new = before.result_nodes[1], after.result_nodes[1]
    assert new.name == old.name and new.meta["val"].shape == old.meta["val"].shape


def test_where_it_came_from_is_kept():
    program = one(lambda h, x: h(aten.mean.dim, x, [2, 3]))
    source = program.result_nodes[1].meta["source"] = "net.py:3 in forward: x.mean((2, 3))"
    after = ExactFloat()(program)
    assert all(n.meta["source"] == source for n in after.calls if not n.name.startswith("quantize"))


# ---- what is declined ------------------------------------------------------------------------------------------------

DECLINED = {
    "mean over channels": (lambda h, x: h(aten.mean.dim, x, [1], True), "aten.mean.dim is exact over height and width"),
    "mean of everything": (lambda h, x: h(aten.mean.dim, x, None), "aten.mean.dim is exact over height and width"),
    "odd pool": (lambda h, x: h(aten.adaptive_avg_pool2d, x, [4, 2]), "multiple of [4, 2]"),
    "own divisor": (lambda h, x: h(aten.avg_pool2d, x, [2, 2], [2, 2], [0, 0], False, True, 3), "a divisor of its own"),
    "nearest warp": (lambda h, x: h(aten.grid_sampler_2d, x, const(h, 1, 2, 2, 2), 1, 1, True), "bilinear mode only"),
    "reflecting warp": (lambda h, x: h(aten.grid_sampler_2d, x, const(h, 1, 2, 2, 2), 0, 2, True), "zero or border"),
    "softmax": (lambda h, x: h(aten.softmax.int, x, 1), "aten.softmax.int has no exact twin"),
    "linear": (lambda h, x: h(aten.linear, x, const(h, 3, 8)), "aten.linear has no exact twin"),
    "power": (lambda h, x: h(aten.pow.Tensor_Scalar, x, 4), "exponents 2 and 3"),
    "3 axes": (
        lambda h, x: h(aten.unsqueeze, h(aten.conv2d, h(aten.squeeze.dim, x, 0), const(h, 2, 4, 1, 1)), 0),
        "four axes",
    ),
    "unknown statistics": (
        lambda h, x: h(
            aten.batch_norm,
            x,
            None,
            None,
            h(aten.amax, x, [0, 2, 3]),
            h.const("var", torch.ones(4)),
            False,
            0.1,
            1e-3,
            True,
        ),
        "constant statistics",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_declined_with_a_reason(name):
    build, text = DECLINED[name]
    program = one(build)
    after = ExactFloat()(program, DEBUG)
    assert str(after) == str(program) and not after.history[-1].rewrites
    (reason,) = reasons(after).values()
    assert text in reason and reason.endswith("integers behind it may differ between backends by one step")


def test_other_precisions_are_declined():
    h = Hand()
    x = h.input("x", 1, 3, dtype=torch.float64)
    y = h(aten._to_copy, h(aten.sigmoid, x), dtype=torch.float32)
    after = ExactFloat()(h.done(quantize(h, y)))
    assert list(reasons(after)) == ["sigmoid"] and "float32 only" in reasons(after)["sigmoid"]


def test_it_is_a_pass_with_a_name():
    assert str(make_pass("exact-float")) == "exact-float"


def test_a_sign_in_training_form_is_a_decision_and_comparisons_are_exact():
    h = Hand()
    x = h.input("x", 1, 4, 6, 6)
    y = h(aten.sigmoid, h(aten.conv2d, x, h.const("w", h.rand(4, 4, 3, 3))))
    s = h(torch.ops.vqc.fake_binarize, y, h.const("tau", torch.zeros(1)), "clip")
    p = ExactFloat()(h.done(h(aten.sigmoid, s), h(aten.gt.Scalar, y, 0)), DEBUG)
    testing.assert_ops(p, {"vqc.conv2d": 1, "vqc.sigmoid": 1, "aten.sigmoid": 1})
    assert not p.history[-1].declined


def test_of_a_masked_float_convolution_only_the_mask_decides():
    h = Hand()
    x, m = h.input("x", 1, 4, 6, 6), h.input("m", 1, 1, 6, 6)
    mask = h(aten.gt.Scalar, h(aten.sigmoid, m), 0.5)
    y = h(torch.ops.vqc.masked_conv2d, h(aten.sigmoid, x), h.const("w", h.rand(4, 4, 3, 3)), None, mask, [1, 1], [1, 1],
          [1, 1], 1)  # fmt: skip
    p = ExactFloat()(h.done(y), DEBUG)
    testing.assert_ops(p, {"vqc.sigmoid": 1, "aten.sigmoid": 1})
    assert not p.history[-1].declined

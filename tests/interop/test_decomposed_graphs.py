"""quantized_decomposed graphs: a Program is written as one, with the same integers, and comes back from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from handmade import Hand, run
from interop_nets import frames, matte, play

import vqc
from vqc.interop.decomposed import decompose, why_whole
from vqc.interop.forms import float_weight, for_xnnpack, spelled_out
from vqc.interop.signed import signed
from vqc.interop.symmetric import for_tensorrt
from vqc.program import Program, dtype_of, evaluate, op_text

v = torch.ops.vqc
qd = torch.ops.quantized_decomposed
TENSOR = "observe,quantize{granularity=tensor,pixels=0,tail=quantized},lower-integer,exact-float,canonicalize"
U8, S8 = torch.uint8, torch.int8


def operators(program: Program) -> set[str]:
    return {op_text(n.target) for n in program.calls}


def whole(program: Program) -> set[str]:
    return {name for name in operators(program) if name.startswith("vqc.")}


def integers(program: Program) -> dict[int, torch.Tensor]:
    """The int8 weights of a program by the sum of their absolute values."""
    return {int(v.to(torch.int64).abs().sum()): v for v in program.constants.values() if v.dtype == S8 and v.ndim > 1}


@pytest.mark.parametrize("recipe", ["int8", "int8-all"])
def test_a_quantized_program_has_the_same_integers_around_float_layers(recipe: str):
    before = matte(recipe)
    after = decompose(before)
    assert whole(before) and not whole(after) and after.history[-1].rewrites
    assert [s.name for s in after.states] == ["h"] and after.outputs == before.outputs
    assert set(integers(after)) == set(integers(before))
    for a, b in zip(play(after), play(before), strict=True):
        assert float((a - b).abs().max()) < 2e-3 and float((a - b).abs().mean()) < 2e-4  # a step here and there


def test_the_way_out_and_back_gives_integer_layers_again(tmp_path: Path):
    before = matte("int8-all")
    folder = vqc.export(before, tmp_path / "net", target="pt2:decomposed")
    exported = torch.export.load(folder / "matte.pt2")
    assert "import vqc.ops" not in (folder / "README.txt").read_text()
    module = exported.module()  # of torch alone
    found = module(*before.example, *before.initial_state())
    again = vqc.capture(exported, states={"h": 1}, known_ranges={"x": (0, 1)})
    assert torch.equal(evaluate(again, again.example)[0], found[0])
    lowered = vqc.apply(again, "adopt-integers,lower-integer,exact-float,canonicalize")
    assert whole(lowered) == whole(before)
    assert set(integers(lowered)) == set(integers(before))
    for a, b in zip(play(lowered), play(before), strict=True):
        assert float((a - b).abs().max()) < 2e-3


CASES = {
    "qconv2d": lambda h, x8, xf: h(v.qconv2d, x8, h.const("w", W8), h.const("s", S), h.const("b", S),
                                   h.const("z", torch.tensor([3, 4, 5, 400], dtype=torch.int32)), [1, 1], [1, 1],
                                   [1, 1], 1),
    "bconv2d": lambda h, x8, xf: h(v.bconv2d, h(v.binarize, xf, h.const("t", torch.zeros(4))), h.const("w", SIGNS),
                                   h.const("s", S), h.const("b", S), [1, 1], [1, 1], [1, 1]),
    "bconv2d_threshold": lambda h, x8, xf: h(
        v.bconv2d_threshold, h(v.binarize, xf, h.const("t", torch.linspace(-1, 1, 4))), h.const("w", SIGNS),
        h.const("l", torch.tensor([-2, 0, 3], dtype=torch.int32)), h.const("f", S > 0.15), [1, 1], [1, 1], [1, 1]),
    "masked_conv2d": lambda h, x8, xf: h(v.masked_conv2d, xf, h.const("w", W8.float()), None, h.const("m", MASK),
                                         [1, 1], [1, 1], [1, 1], 1),
    "masked_qconv2d_requantize": lambda h, x8, xf: h(
        v.masked_qconv2d_requantize, x8, h.const("w", W8), h.const("s", S / 1e3), h.const("b", S),
        h.const("z", torch.tensor([3], dtype=torch.int32)), h.const("m", MASK), [1, 1], [1, 1], [1, 1], 1, "relu", 20.0,
        5),
    "masked_bconv2d": lambda h, x8, xf: h(
        v.masked_bconv2d, h(v.binarize, xf, h.const("t", torch.zeros(1))), h.const("w", SIGNS), h.const("s", S), None,
        h.const("m", MASK), [1, 1], [1, 1], [1, 1]),
    "qconv_transpose2d": lambda h, x8, xf: h(
        v.qconv_transpose2d, x8, h.const("w", W8[:, :, :2, :2].transpose(0, 1).repeat(1, 1, 1, 1)[:, :2]),
        h.const("s", torch.tensor([0.1, 0.2, 0.3, 0.4])), h.const("b", torch.ones(4)),
        h.const("z", torch.tensor([7], dtype=torch.int32)), [2, 2], [0, 0], [0, 0], 2, [1, 1]),
    "lut": lambda h, x8, xf: h(v.lut, x8, h.const("t", torch.arange(256).flip(0).to(U8))),
    "avg_pool2d": lambda h, x8, xf: h(v.avg_pool2d, xf, [3, 2], [2, 2], [1, 1], True, False),
    "resize_bilinear": lambda h, x8, xf: h(v.resize_bilinear, xf, 9, 4, False, None, None),
    "grid_sample": lambda h, x8, xf: h(v.grid_sample, xf, h.const("g", torch.linspace(-1.2, 1.2, 36).view(1, 3, 6, 2)),
                                       "border", True),
    "mean_hw": lambda h, x8, xf: h(v.mean_hw, xf),
    "conv_transpose2d": lambda h, x8, xf: h(v.conv_transpose2d, xf, h.const("w", torch.ones(4, 2, 2, 2)), None,
                                            [2, 2], [1, 0], [0, 1], 2, [1, 1]),
    **{n: lambda h, x8, xf, n=n: h(getattr(v, n), xf) for n in ("exp", "sigmoid", "tanh", "hardsigmoid", "hardswish",
                                                               "silu")},
}  # fmt: skip
W8 = torch.arange(-54, 54).to(S8).view(3, 4, 3, 3)
SIGNS = 1 - 2 * (W8 & 1)
S = torch.tensor([0.1, 0.2, 0.3])
MASK = torch.arange(30).remainder(3).view(1, 1, 6, 5) > 0


@pytest.mark.parametrize("name", CASES)
def test_each_operator_means_the_same_in_plain_ones(name: str):
    h = Hand(name)
    x8, xf = h.input("x8", 1, 4, 6, 5, dtype=U8), h.input("xf", 1, 4, 6, 5)
    before = h.done(CASES[name](h, x8, xf))
    after = decompose(before)
    assert name in {n.removeprefix("vqc.") for n in whole(before)} and not whole(after)
    (a,), (b,) = evaluate(after, after.example), evaluate(before, before.example)
    assert a.dtype == b.dtype
    assert torch.allclose(a.double(), b.double(), rtol=2e-6, atol=2e-6)


def test_what_has_no_plain_form_stays_and_is_named():
    h = Hand()
    x = h.input("x", 1, 4, 6, 5)
    program = decompose(h.done(h(v.fake_binarize, x, h.const("t", torch.zeros(4)), "clip")))
    assert whole(program) == {"vqc.fake_binarize"} and "lower-binary" in program.history[-1].notes[0]
    assert [why_whole(n) is None for n in program.calls] == [False]


def test_a_layer_with_a_computed_scale_stays_and_is_named():
    h = Hand()
    x, s = h.input("x", 1, 4, 6, 5, dtype=U8), h.input("s", 3)
    before = h.done(h(v.qconv2d, x, h.const("w", W8), s, None, h.const("z", torch.tensor([3], dtype=torch.int32)),
                      [1, 1], [1, 1], [1, 1], 1))  # fmt: skip
    after = decompose(before)
    assert whole(after) == {"vqc.qconv2d"} and len(after.calls) == 1
    assert after.history[-1].notes == ("kept vqc.qconv2d: s of qconv2d is computed at every step",)
    assert torch.equal(evaluate(after, after.example)[0], evaluate(before, before.example)[0])


def test_signed_pictures_keep_every_float():
    before = decompose(matte(TENSOR))
    after = signed(before)
    assert after.history[-1].rewrites["signed"] > 2
    assert U8 not in {dtype_of(n) for n in after.calls if isinstance(n.meta["val"], torch.Tensor)}
    assert all(torch.equal(a, b) for a, b in zip(play(after), play(before), strict=True))


def test_integers_that_others_read_stay_unsigned():
    h = Hand()
    q = h(qd.quantize_per_tensor, h.input("x", 1, 4), 0.1, 128, 0, 255, U8)
    program = signed(h.done(h(qd.dequantize_per_tensor, q, 0.1, 128, 0, 255, U8), q))
    assert dtype_of(program.result_nodes[1]) == U8
    assert program.history[-1].rewrites == {"signed": 0} and "keeps its uint8" in program.history[-1].notes[0]


@pytest.mark.parametrize("zero", [-1, 0, 255, 256])
@pytest.mark.parametrize("channels", [False, True])
def test_a_zero_point_beyond_8_bits_stays_unsigned(zero: int, channels: bool):
    h = Hand()
    x, levels = h.input("x", 1, 4), (0, 255, U8)
    if channels:
        given = (h.const("s", torch.full((4,), 0.1)), h.const("z", torch.tensor([7, zero, 0, 255])), 1, *levels)
        q = h(qd.quantize_per_channel, x, *given)
        before = h.done(h(qd.dequantize_per_channel, q, *given))
    else:
        q = h(qd.quantize_per_tensor, x, 0.1, zero, *levels)
        before = h.done(h(qd.dequantize_per_tensor, q, 0.1, zero, *levels))
    after, fits = signed(before), 0 <= zero <= 255
    assert dtype_of(after.calls[0]) == (S8 if fits else U8) and after.history[-1].rewrites == {"signed": int(fits)}
    said = f"{before.calls[0].name} keeps its uint8: a zero point is beyond 8 bits"
    assert after.history[-1].notes == (() if fits else (said,))
    assert torch.equal(evaluate(after, after.example)[0], evaluate(before, before.example)[0])
    assert all(dtype_of(n) != S8 for n in for_xnnpack(before).calls) or fits


def test_computed_channel_scales_stay_and_are_named():
    h = Hand()
    x, s, levels = h.input("x", 1, 4, 6, 5), h.input("s", 4), (0, 255, U8)
    given = (h(torch.ops.aten.add.Scalar, h(torch.ops.aten.abs, s), 0.1),
             h(torch.ops.aten._to_copy, h(torch.ops.aten.abs, s), dtype=torch.int64), 1, *levels)  # fmt: skip
    q = h(qd.quantize_per_channel, x, *given)
    other = h(torch.ops.aten.slice.Tensor, given[0], 0, 0, 3)
    weight = h(qd.dequantize_per_channel, h.const("w", W8), other, h.const("z", torch.zeros(3, dtype=torch.int64)),
               0, -127, 127, S8)  # fmt: skip
    layer = h(torch.ops.aten.conv2d, h(qd.dequantize_per_channel, q, *given), weight, None)
    before = h.done(layer)
    for after in (for_xnnpack(before), for_tensorrt(before)):
        notes = {n for r in after.history for n in r.notes}
        assert f"{q.name} stays: its scales or zero points ({given[0].name}) are computed at every step" in notes
        assert f"{layer.name} stays: {other.name} of its weight is computed at every step" in notes
        assert operators(after) == operators(before)
        assert torch.equal(evaluate(after, after.example)[0], evaluate(before, before.example)[0])
    assert f"{q.name} keeps its uint8: its zero points ({given[1].name}) are computed at every step" in (
        for_xnnpack(before).history[-1].notes)  # fmt: skip


def test_pictures_with_channel_scales_are_spelled_out_to_the_bit():
    before = decompose(matte("int8"))
    assert "quantized_decomposed.quantize_per_channel" in operators(before)
    after = spelled_out(before)
    assert "quantized_decomposed.quantize_per_channel" not in operators(after)
    assert all(torch.equal(a, b) for a, b in zip(play(after), play(before), strict=True))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("zeros", [None, [3, 7]])
def test_a_dequantize_without_zero_points_is_spelled_out_to_the_bit(zeros: list[int] | None, named: bool):
    h = Hand()
    scales, low = h.const("scales", [0.01, 0.03]), h.const("zeros", torch.tensor([0, 0]))
    own = None if zeros is None else h.const("own", torch.tensor(zeros))
    q = h(qd.quantize_per_channel, h.input("x", 1, 2, 3, 4), scales, low, 1, 0, 255, U8)
    rest = {"zero_points": own, "axis": 1, "quant_min": 0, "quant_max": 255, "dtype": U8}
    y = h(qd.dequantize_per_channel, q, scales, **rest) if named else h(qd.dequantize_per_channel, q, scales,
                                                                         *rest.values())  # fmt: skip
    before = h.done(y)
    after = spelled_out(before)
    assert not any(name.startswith("quantized_decomposed") for name in operators(after))
    assert torch.equal(run(after)[0], run(before)[0]) and bool(run(after)[0].any())


def test_computed_zero_points_of_a_picture_stay_however_they_are_written():
    h = Hand()
    scales, zeros = h.const("scales", [0.01, 0.03]), h.const("zeros", torch.tensor([0, 0]))
    q = h(qd.quantize_per_channel, h.input("x", 1, 2, 3, 4), scales, zeros, 1, 0, 255, U8)
    own = h.input("own", 2, dtype=torch.int64)
    before = h.done(h(qd.dequantize_per_channel, q, scales, zero_points=own, axis=1, quant_min=0, quant_max=255,
                      dtype=U8))  # fmt: skip
    after = spelled_out(before)
    assert "(own) are computed at every step" in after.history[-1].notes[0]
    assert torch.equal(run(after)[0], run(before)[0])


def test_the_form_for_xnnpack():
    before = decompose(matte(TENSOR))
    after = for_xnnpack(matte(TENSOR))
    assert all(torch.equal(a, b) for a, b in zip(play(after), play(before), strict=True))
    record = next(r for r in after.history if r.name == "for-xnnpack")
    said = " ".join(record.notes)
    assert record.rewrites["float weight"] == len(record.notes) and "its result is not quantized" in said
    assert "transposed convolution with groups" in said
    for n in after.calls:  # a layer has integers on both sides, or none in its weight
        if op_text(n.target) == "aten.conv2d":
            quantized = {u.target for r in n.users for u in (list(r.users) if "relu" in r.name else [r])}
            integer = n.args[1].op == "call_function"
            assert integer == (quantized == {qd.quantize_per_tensor.default} and n.args[0].target
                               is qd.dequantize_per_tensor.default)  # fmt: skip
    assert not any(
        float_weight(after, n) for n in after.calls if n.args and n.args[1:] and n.name == "conv_transpose2d"
    )


def test_the_target_for_xnnpack(tmp_path: Path):
    folder = vqc.export(matte(TENSOR), tmp_path / "net", target="pt2:xnnpack")
    module = torch.export.load(folder / "matte.pt2").module()
    want = for_xnnpack(matte(TENSOR))
    found = module(frames(1), *want.initial_state())
    assert all(torch.equal(a, b) for a, b in zip(found, evaluate(want, [frames(1)]), strict=True))

"""lower-integer: the integer form equals the quantize/dequantize form, and every rewrite fires where it should."""

import torch
from handmade import Hand, aten, run
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.passes.lower_integer import LowerInteger
from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize
from vqc.pipeline import PassContext
from vqc.program import Program, op_text

qd = torch.ops.quantized_decomposed
U8 = (0, 255, torch.uint8)


def pipeline(program, frames, **options) -> tuple[Program, Program]:
    q = Quantize(tail="quantized", **options)(Observe()(program, PassContext(calibration=frames)))
    return q, LowerInteger()(q)


def ops(program):
    return [op_text(n.target) for n in program.calls]


@settings(max_examples=40, deadline=None)
@given(
    cin=st.sampled_from([1, 2, 4, 6]), cout=st.sampled_from([2, 4, 8]), k=st.integers(1, 4), stride=st.integers(1, 3),
    pad=st.integers(0, 2), dilation=st.integers(1, 2), groups=st.sampled_from([1, 2]), bias=st.booleans(),
    kind=st.sampled_from(["conv", "transposed"]), granularity=st.sampled_from(["tensor", "channel"]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_layers_equal_the_float_form(cin, cout, k, stride, pad, dilation, groups, bias, kind, granularity, seed):
    groups = groups if cin % groups == 0 else 1
    h = Hand(seed=seed)
    x = h.input("x", 2, cin, 9, 11)
    b = h.const("b", h.rand(cout)) if bias else None
    if kind == "conv":
        w = h.const("w", h.rand(cout, cin // groups, k, k))
        y = h(aten.conv2d, x, w, b, [stride] * 2, [pad] * 2, [dilation] * 2, groups)
    else:
        pad = min(pad, dilation * (k - 1))
        w = h.const("w", h.rand(cin, cout // groups, k, k))
        y = h(aten.conv_transpose2d.input, x, w, b, [stride] * 2, [pad] * 2, [0, 0], groups, [dilation] * 2)
    frames = [h.rand(2, cin, 9, 11) * 3 for _ in range(2)]
    before, after = pipeline(h.done(y), frames, granularity=granularity)
    assert after.history[-1].rewrites == {"layer": 1}
    a, c = run(before, [frames[0]])[0], run(after, [frames[0]])[0]
    assert torch.allclose(a, c, rtol=1e-4, atol=1e-5 * float(a.abs().max()))


def chain(relu: bool, groups: int):
    h = Hand()
    x = h.input("x", 1, 4, 8, 8)
    a = h(aten.conv2d, x, h.const("w0", h.rand(4, 4, 3, 3)), h.const("b0", h.rand(4)), [1, 1], [1, 1])
    a = h(aten.relu, a) if relu else a
    y = h(aten.conv2d, a, h.const("w1", h.rand(4, 4 // groups, 3, 3)), None, [1, 1], [1, 1], [1, 1], groups)
    return h.done(y), [h.rand(1, 4, 8, 8) for _ in range(3)]


def test_requantize_is_fused_and_equal():
    for relu in (False, True):
        for groups in (1, 4):  # 4: depthwise, whose input has channel scales
            program, frames = chain(relu, groups)
            before, after = pipeline(program, frames)
            assert ops(after) == ["quantized_decomposed.quantize_per_tensor", "vqc.qconv2d_requantize", "vqc.qconv2d"]
            assert after.history[-1].rewrites["requantize"] == 1
            a, b = run(before, [frames[0]])[0], run(after, [frames[0]])[0]
            assert float((a - b).abs().max()) < 0.03 * float(a.abs().max())
            assert float((a - b).abs().mean()) < 1e-3 * float(a.abs().mean())  # hardly any integer may flip


def test_value_read_twice_is_not_fused():
    h = Hand()
    x = h.input("x", 1, 4, 6, 6)
    a = h(aten.conv2d, x, h.const("w0", h.rand(4, 4, 1, 1)), None)
    y = h(aten.conv2d, a, h.const("w1", h.rand(4, 4, 1, 1)), None)
    _, after = pipeline(h.done(h(aten.add.Tensor, a, y)), [h.rand(1, 4, 6, 6)])
    assert "vqc.qconv2d_requantize" not in ops(after)


def test_pointwise_between_integers_is_a_table():
    h = Hand()
    x = h.input("x", 1, 2, 4, 4, dtype=torch.uint8)
    f = h(aten.hardswish, h(qd.dequantize_per_tensor, x, 0.05, 120, *U8))
    program = h.done(h(qd.quantize_per_tensor, f, 0.02, 10, *U8))
    after = LowerInteger()(program)
    assert ops(after) == ["vqc.lut"] and after.history[-1].rewrites == {"table": 1}
    every = torch.arange(256, dtype=torch.uint8).repeat(1).view(1, 2, 8, 16)[:, :, :4, :4].contiguous()
    assert torch.equal(run(program, [every])[0], run(after, [every])[0])


def test_quantize_moves_above_a_concat_bit_for_bit():
    h = Hand()
    x, y = h.input("x", 1, 2, 4, 4), h.input("y", 1, 3, 4, 4)
    cat = h(aten.cat, [x, y], 1)
    program = h.done(h(qd.quantize_per_tensor, h(aten.slice.Tensor, cat, 1, 1, 4), 0.03, 7, *U8))
    after = LowerInteger()(program)
    assert after.history[-1].rewrites == {"hoist": 2}
    assert ops(after)[-2:] == ["aten.cat", "aten.slice.Tensor"]
    assert torch.equal(run(program)[0], run(after)[0])


def test_what_is_left_in_float_is_told():
    h = Hand()
    x = h.input("x", 1, 2, 4, 4, dtype=torch.uint8)
    program = h.done(h(aten.log1p, h(qd.dequantize_per_tensor, x, 0.05, 0, *U8)))
    after = LowerInteger()(program)
    assert [d.reason for d in after.history[-1].declined] == ["log1p has no integer operator and reads floats"]

"""Every operator as ONNX, by ONNX Runtime and OpenVINO, beside the reference; integers with the right axes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from handmade import Hand, run
from onnx import TensorProto, numpy_helper
from onnx.inliner import inline_local_functions
from torch import fx

import vqc
from vqc.backends.onnx.model import model_of
from vqc.errors import TargetError, UnsupportedOp
from vqc.program import Program

aten, v, qd = torch.ops.aten, torch.ops.vqc, torch.ops.quantized_decomposed


def by_openvino(program: Program, exact: bool) -> list[torch.Tensor]:
    """The outputs of one step on the example, from the reset state. OpenVINO takes no functions, but their bodies."""
    inlined = inline_local_functions(model_of(program, exact=exact))
    model = openvino.Core().read_model(inlined.SerializeToString())
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = [*program.example, *program.initial_state()]
    found = compiled(dict(zip([i.get_any_name() for i in compiled.inputs], [x.numpy() for x in given], strict=True)))
    return [torch.from_numpy(np.array(found[o])) for o in compiled.outputs]


def close(program: Program, *, exact: bool = False, atol: float = 2e-5) -> None:
    """Both runtimes give the reference's results; with `exact`, ONNX Runtime gives its bits."""
    want = run(program)
    inputs, state = list(program.example), program.initial_state()
    got = vqc.compile(program, "onnx:exact" if exact else "onnx").trace(inputs, state)
    for other, bound in ((got, 0.0 if exact else atol), (by_openvino(program, exact), atol)):
        for a, b in zip(want, other, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            assert float((a.double() - b.double()).abs().max()) <= bound


Case = Callable[[Hand, fx.Node], fx.Node | tuple[fx.Node, ...]]
PLAIN: dict[str, Case] = {
    "arithmetic": lambda h, x: h(aten.rsub.Scalar, h(aten.sub.Tensor, h(aten.add.Tensor, x, 2.5, alpha=3), x), 1, 2.0),
    "division": lambda h, x: h(aten.div.Tensor, x, h.const("by", torch.tensor([2.0, 3.0, 4.0, 5.0]).view(1, 4, 1, 1))),
    "comparisons": lambda h, x: (h(aten.gt.Scalar, x, 0), h(aten.ne.Tensor, x, x), h(aten.le.Tensor, x, x)),
    "where": lambda h, x: h(aten.where.self, h(aten.ge.Scalar, x, 0.5), x, h.const("none", -1.0)),
    "clamp": lambda h, x: (h(aten.clamp, x, -0.5), h(aten.clamp, x, None, 0.5), h(aten.hardtanh, x, -0.2, 0.3)),
    "gates": lambda h, x: (h(aten.sigmoid, x), h(aten.tanh, x), h(aten.hardsigmoid, x), h(aten.hardswish, x)),
    "activations": lambda h, x: (h(aten.silu, x), h(aten.gelu, x), h(aten.leaky_relu, x, 0.2), h(aten.elu, x)),
    "prelu": lambda h, x: h(aten.prelu, x, h.const("slope", torch.tensor([0.1, -0.2, 0.3, 2.0]))),
    "softmax": lambda h, x: h(aten._softmax, x, -3, False),
    "casts": lambda h, x: h(aten._to_copy, h(aten.gt.Scalar, x, 0), dtype=torch.float32),
    "shapes": lambda h, x: h(aten.permute, h(aten.view, h(aten.unsqueeze, x, 1), [2, 4, 24]), [2, 0, -2]),
    "cat": lambda h, x: (h(aten.cat, [x, h(aten.neg, x), x], -3), h(aten.stack, [x, x], -1)),
    "slice": lambda h, x: (h(aten.slice.Tensor, x, -1, -4, 9223372036854775807, 2), h(aten.select.int, x, 1, -1)),
    "split": lambda h, x: (h(operator.getitem, h(aten.split.Tensor, x, 3, 1), 1),
                           h(operator.getitem, h(aten.unbind.int, x, -1), 2)),
    "flip and repeat": lambda h, x: (h(aten.flip, x, [1, -1]), h(aten.repeat, x, [2, 1, 1, 1, 3])),
    "pads": lambda h, x: (h(aten.constant_pad_nd, x, [1, 2, 0, 3], 0.5), h(aten.reflection_pad2d, x, [1, 2, 2, 1]),
                          h(aten.replication_pad2d, x, [3, 0, 0, 3])),
    "shuffles": lambda h, x: (h(aten.pixel_shuffle, x, 2), h(aten.pixel_unshuffle, x, 2)),
    "sums": lambda h, x: (h(aten.mean.dim, x, [-1, -2], True), h(aten.sum.dim_IntList, x, [1]),
                          h(aten.amax, x, [2, 3])),
    "mean": lambda h, x: h(v.mean_hw, x),
    "products": lambda h, x: h(aten.matmul, x, h(aten.transpose.int, x, -1, -2)),
    "linear": lambda h, x: h(aten.linear, x, h.const("w", h.rand(5, 6)), h.const("b", h.rand(5))),
    "norms": lambda h, x: (h(aten.layer_norm, x, [4, 6], h.const("g", h.rand(4, 6)), None, 1e-5),
                           h(aten.group_norm, x, 2, h.const("s", h.rand(4)), h.const("t", h.rand(4)), 1e-5)),
    "convolution": lambda h, x: h(aten.conv2d, x, h.const("w", h.rand(6, 2, 3, 2)), h.const("b", h.rand(6)),
                                  [1, 2], [1, 0], [1, 2], 2),
    "transposed": lambda h, x: h(aten.conv_transpose2d.input, x, h.const("w", h.rand(4, 3, 4, 3)), None, [2, 3], [1, 1],
                                 [0, 1], 2, [1, 1]),
    "pools": lambda h, x: (h(aten.avg_pool2d, x, [2, 3], [2, 2], [1, 1], True, False),
                           h(aten.max_pool2d, x, [3, 3], [2, 2], [1, 1]), h(aten.adaptive_avg_pool2d, x, [2, 3])),
    "bilinear": lambda h, x: (h(aten.upsample_bilinear2d, x, [7, 15], False),
                              h(aten.upsample_bilinear2d, x, [2, 9], True),
                              h(aten.upsample_bilinear2d, x, [9, 13], False, 2.4, 2.2)),
    "nearest": lambda h, x: (h(aten.upsample_nearest2d, x, [8, 18]), h(aten.upsample_nearest2d, x, [3, 4])),
    "sampling": lambda h, x: (h(aten.grid_sampler_2d, x, h.const("g", h.rand(2, 5, 7, 2)), 0, 0, False),
                              h(aten.grid_sampler_2d, x, h.const("k", h.rand(2, 5, 7, 2)), 0, 1, True)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name: str) -> None:
    h = Hand(name)
    made = PLAIN[name](h, h.input("x", 2, 4, 4, 6))
    close(h.done(*(made if isinstance(made, tuple) else (made,))))


def integers(h: Hand, name: str, top: int, *shape: int) -> fx.Node:
    return h.const(name, torch.randint(-top, top + 1, shape, generator=h.generator).to(torch.int8))


def scaled(h: Hand, count: int) -> tuple[fx.Node, fx.Node]:
    """A scale and a bias for each output channel, all different."""
    return h.const("scale", torch.linspace(0.001, 0.01, count)), h.const("bias", h.rand(count))


def zero(h: Hand, *values: int) -> fx.Node:
    return h.const("zero", torch.tensor(values, dtype=torch.int32))


def u8(h: Hand, x: fx.Node) -> fx.Node:
    return h(qd.quantize_per_tensor, x, 0.02, 131, 0, 255, torch.uint8)


def channels(h: Hand, x: fx.Node, *zeros: int) -> fx.Node:
    scales = h.const("scales", torch.linspace(0.01, 0.03, len(zeros)))
    return h(qd.quantize_per_channel, x, scales, h.const("zeros", torch.tensor(zeros)), 1, 0, 255, torch.uint8)


PAIR = ([2, 1], [1, 2], [1, 1])
QUANTIZED: dict[str, Case] = {
    "conv": lambda h, x: h(v.qconv2d, u8(h, x), integers(h, "w", 90, 6, 4, 3, 3), *scaled(h, 6), zero(h, 131),
                           *PAIR, 1),
    "conv, depthwise, four bits": lambda h, x: h(v.qconv2d, u8(h, x), integers(h, "w", 7, 4, 1, 3, 3), *scaled(h, 4),
                                                 zero(h, 131), *PAIR, 4),
    "conv, channels": lambda h, x: h(v.qconv2d, channels(h, x, 120, 0, 255, 7), integers(h, "w", 90, 6, 4, 3, 3),
                                     *scaled(h, 6), zero(h, 120, 0, 255, 7), *PAIR, 1),
    "conv, zero points outside": lambda h, x: h(v.qconv2d, channels(h, x, 300, -9, 255, 7),
                                                integers(h, "w", 9, 6, 4, 3, 3),
                                                *scaled(h, 6), zero(h, 300, -9, 255, 7), *PAIR, 1),
    "requantized": lambda h, x: h(v.qconv2d_requantize, u8(h, x), integers(h, "w", 90, 6, 4, 3, 3), *scaled(h, 6),
                                  zero(h, 131), *PAIR, 1, "relu", 17.5, 3),
    "transposed": lambda h, x: h(v.qconv_transpose2d, u8(h, x), integers(h, "w", 90, 4, 5, 4, 3), *scaled(h, 5),
                                 zero(h, 131), [2, 1], [1, 1], [1, 0], 1, [1, 1]),
    "transposed, groups of unlike scales": lambda h, x: h(
        v.qconv_transpose2d_requantize, u8(h, x), integers(h, "w", 90, 4, 3, 4, 3), *scaled(h, 6), zero(h, 131), [2, 2],
        [1, 1], [0, 0], 2, [1, 1], "none", 20.0, 100),
    "linear": lambda h, x: h(v.qlinear, u8(h, x), integers(h, "w", 90, 5, 6), *scaled(h, 5), zero(h, 131)),
    "four-bit picture": lambda h, x: h(qd.quantize_per_tensor, x, 0.3, 7, 0, 15, torch.uint8),
    "quantized and back": lambda h, x: h(qd.dequantize_per_tensor, u8(h, x), 0.02, 131, 0, 255, torch.uint8),
    "table": lambda h, x: h(v.lut, u8(h, x), h.const("table", torch.linspace(-1, 1, 256))),
    "moved": lambda h, x: h(v.qconv2d, h(aten.cat, [u8(h, x), u8(h, h(aten.neg, x))], 1),
                            integers(h, "w", 90, 6, 8, 1, 1), *scaled(h, 6), zero(h, 131), [1, 1], [0, 0], [1, 1], 1),
}  # fmt: skip
EXACT: dict[str, Case] = {
    **QUANTIZED,
    "functions": lambda h, x: tuple(h(op, h(aten.mul.Tensor, x, 20.0)) for op in (
        v.exp, v.sigmoid, v.tanh, v.hardsigmoid, v.hardswish, v.silu)),
    "resize": lambda h, x: (h(v.resize_bilinear, x, 7, 15, False, None, None),
                            h(v.resize_bilinear, x, 9, 6, True, None, None),
                            h(v.resize_bilinear, x, 9, 13, False, 2.4, 2.2)),
    "ordered sums": lambda h, x: (
        h(v.mean_hw, x), h(v.conv2d, x, h.const("w", h.rand(6, 4, 3, 2)), h.const("b", h.rand(6)), *PAIR, 1),
        h(v.conv2d, x, h.const("d", h.rand(4, 1, 3, 3)), None, [1, 2], [0, 1], [1, 2], 4)),
    "average": lambda h, x: (h(v.avg_pool2d, x, [2, 3], [2, 2], [1, 1], True, False),
                             h(v.avg_pool2d, x, [2, 2], [2, 2], [0, 0], False, True)),
    "masked": lambda h, x: h(v.masked_qconv2d_requantize, u8(h, x), integers(h, "w", 90, 6, 4, 3, 3), *scaled(h, 6),
                             zero(h, 131), h(aten.gt.Scalar, h(aten.slice.Tensor, x, 1, 0, 1), 0.2), [1, 1], [1, 1],
                             [1, 1], 1, "none", 17.5, 30),
}  # fmt: skip


@pytest.mark.parametrize("name", [*QUANTIZED, "functions", "resize", "ordered sums", "average", "masked"])
def test_standard_form(name: str) -> None:
    """Values are near enough that no integer falls on the other side."""
    h = Hand(name, seed=1)
    made = EXACT[name](h, h.input("x", 2, 4, 4, 6))
    relative = name == "functions"  # e^88 is large
    close(h.done(*(made if isinstance(made, tuple) else (made,))), atol=1e32 if relative else 1e-4)


@pytest.mark.parametrize("name", EXACT)
def test_exact_form_has_the_references_bits(name: str) -> None:
    h = Hand(name, seed=1)
    made = EXACT[name](h, h.input("x", 2, 4, 4, 6))
    close(
        h.done(*(made if isinstance(made, tuple) else (made,))), exact=True, atol=1e32 if name == "functions" else 1e-4
    )


def test_scales_of_a_transposed_weight_run_along_its_output_channels() -> None:
    h = Hand()
    y = QUANTIZED["transposed"](h, h.input("x", 1, 4, 4, 6))
    model = model_of(h.done(y))
    layer = next(n for n in model.graph.node if n.op_type == "ConvTranspose")
    made = {n.output[0]: n for n in model.graph.node}
    stored = {t.name: t for t in model.graph.initializer}
    weight = made[layer.input[1]]
    assert weight.op_type == "DequantizeLinear" and weight.attribute[0].i == 1
    assert list(stored[weight.input[0]].dims) == [4, 5, 4, 3]
    picture = made[layer.input[0]]
    scale = numpy_helper.to_array(stored[weight.input[1]]) * numpy_helper.to_array(stored[picture.input[1]])
    assert np.allclose(scale, torch.linspace(0.001, 0.01, 5).numpy())
    assert stored[weight.input[0]].data_type == TensorProto.INT8


def test_four_bits_are_stored_in_four() -> None:
    h = Hand()
    y = QUANTIZED["conv, depthwise, four bits"](h, h.input("x", 1, 4, 4, 6))
    program = h.done(y)
    model = model_of(program)
    weight = next(t for t in model.graph.initializer if list(t.dims) == [4, 1, 3, 3])
    assert weight.data_type == TensorProto.INT4 and len(weight.raw_data or weight.int32_data) <= 18
    assert (numpy_helper.to_array(weight).astype(np.int32) == program.constants["w"].numpy()).all()


def test_a_picture_keeps_the_scale_it_was_quantized_by() -> None:
    h = Hand()
    program = h.done(QUANTIZED["moved"](h, h.input("x", 1, 4, 4, 6)))
    model = model_of(program)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type != TensorProto.INT4}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear") and len(n.input) == 3]
    assert {float(stored[n.input[1]]) for n in pairs} == {float(np.float32(0.02))}
    assert {int(stored[n.input[2]]) for n in pairs} == {131}


def test_what_has_no_form_is_named_with_its_reason() -> None:
    h = Hand()
    x = h.input("x", 2, 4, 4, 6)
    with pytest.raises(
        UnsupportedOp, match=r"1 of 2 operators .*no form.*\n.*digamma \(aten.digamma\): there is no rule"
    ):
        model_of(h.done(h(aten.relu, h(aten.digamma, x))))
    h = Hand()
    x = h.input("x", 2, 4, 4, 6)
    with pytest.raises(UnsupportedOp, match="vector_norm .*a norm of order 3"):
        model_of(h.done(h(aten.linalg_vector_norm, x, 3, [1])))
    h = Hand()
    x = u8(h, h.input("x", 1, 600, 2, 2))
    weight = h.const("w", torch.full((1, 600, 3, 3), 127, dtype=torch.int8))
    program = h.done(h(v.qconv2d, x, weight, *scaled(h, 1), zero(h, 0), [1, 1], [1, 1], [1, 1], 1))
    with pytest.raises(UnsupportedOp, match=r"2\^24"):
        model_of(program, exact=True)
    model_of(program)


def test_targets_and_options_that_are_not_known() -> None:
    h = Hand()
    program = h.done(h(aten.relu, h.input("x", 2, 2)))
    for target, options in (("onnx:fast", {}), ("onnx", {"optimize": "most"}), ("onnx", {"tune": True})):
        with pytest.raises(TargetError, match="onnx|optimize|tune"):
            vqc.compile(program, target, **options)


@pytest.mark.parametrize(("name", "value"), [("threads", 4), ("optimize", "all")])
def test_what_only_a_run_has_is_no_option_of_a_file(tmp_path: Path, name: str, value: Any) -> None:
    h = Hand()
    program = h.done(h(aten.relu, h.input("x", 2, 2)))
    with pytest.raises(TargetError, match=f"(?s)no option {name}.*who loads the file"):
        vqc.export(program, tmp_path / "net", "onnx", **{name: value})
    assert not list(tmp_path.iterdir())


def test_models_pass_the_checker_with_shapes() -> None:
    h = Hand()
    program = h.done(h(aten.relu, h.input("x", 2, 2)))
    onnx.checker.check_model(model_of(program), full_check=True)
    assert [d.dim_value for d in model_of(program).graph.output[0].type.tensor_type.shape.dim] == [2, 2]

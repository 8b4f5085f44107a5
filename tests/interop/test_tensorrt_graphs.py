"""The graph that TensorRT gets: explicit int8 with zero point 0 next to layers, the reference's pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from handmade import Hand
from interop_nets import matte, play

import vqc
from vqc.arguments import bind
from vqc.backends.tensorrt import TensorRTBackend, report_of
from vqc.errors import TargetError
from vqc.interop.decomposed import decompose
from vqc.interop.symmetric import for_tensorrt, with_quantize_op
from vqc.program import Program, evaluate, op_text

v = torch.ops.vqc
qd = torch.ops.quantized_decomposed
TENSOR = "observe,quantize{granularity=tensor,pixels=0,tail=quantized},lower-integer,exact-float,canonicalize"


def pairs(program: Program) -> list:
    return [n for n in program.calls if op_text(n.target) == "quantized_decomposed.quantize_per_tensor"]


@pytest.mark.parametrize("recipe", ["int8-all", TENSOR])
def test_pictures_are_signed_with_zero_point_zero_beside_the_layers(recipe: str):
    before, after = decompose(matte(recipe)), for_tensorrt(matte(recipe))
    record = next(r for r in after.history if r.name == "for-tensorrt")
    assert record.rewrites["layer"] >= 4 and any("transposed" in n for n in record.notes)
    for q in pairs(after):
        b = bind(q)
        assert (b["zero_point"], b["quant_min"], b["quant_max"], b["dtype"]) == (0, -128, 127, torch.int8)
        (dq,) = q.users
        assert all(op_text(u.target) in ("aten.conv2d", "aten.linear") for u in dq.users)
    for n in after.calls:
        assert "vqc." not in op_text(n.target)
    assert [s.name for s in after.states] == ["h"]
    for a, b in zip(play(after), play(before), strict=True):
        assert float((a - b).abs().max()) < 4e-3 and float((a - b).abs().mean()) < 4e-4


def one_layer(zero: int, padding: int, bias: bool) -> Program:
    h = Hand()
    x = h.input("x", 1, 4, 6, 5)
    q = h(qd.quantize_per_tensor, x, 0.03125, zero, 0, 255, torch.uint8)  # a power of two: nothing is rounded
    w = torch.arange(-54, 54).to(torch.int8).view(3, 4, 3, 3)
    b = h.const("b", torch.tensor([0.5, -0.25, 2.0])) if bias else None
    y = h(v.qconv2d, h(torch.ops.aten.cat, [q, q], 1), h.const("w", torch.cat([w, w.flip(0)], 1)),
          h.const("s", torch.tensor([0.03125, 0.0625, 0.125])), b,
          h.const("z", torch.tensor([zero], dtype=torch.int32)), [1, 1], [padding, padding], [1, 1], 1)  # fmt: skip
    return h.done(y)


@pytest.mark.parametrize("zero", [0, 100, 128, 255])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_shift_padding_and_bias_make_up_for_each_other(zero: int, padding: int, bias: bool):
    before, after = one_layer(zero, padding, bias), for_tensorrt(one_layer(zero, padding, bias))
    (q,) = pairs(after)
    assert bind(q)["zero_point"] == 0
    x = torch.arange(120).remainder(251).view(1, 4, 6, 5) * 0.03125 - 2.0  # on the grid: no value is halfway
    assert torch.allclose(evaluate(after, [x])[0], evaluate(before, [x])[0], rtol=1e-6, atol=1e-4)
    conv = next(n for n in after.calls if op_text(n.target) == "aten.conv2d")
    assert ("constant_pad_nd" in {n.name.rsplit("_", 1)[0] for n in after.calls} | {n.name for n in after.calls}) == (
        padding > 0 and zero != 128)  # fmt: skip
    assert bind(conv)["padding"] == ([padding] * 2 if zero == 128 else [0, 0])


@pytest.mark.parametrize(("zero", "padding"), [(400, 0), (400, 1), (-30, 1)])
def test_a_zero_beyond_8_bits_that_is_padded_with_leaves_the_layer_float(zero: int, padding: int):
    before, after = one_layer(zero, padding, True), for_tensorrt(one_layer(zero, padding, True))
    assert len(pairs(after)) == (padding == 0)
    assert any("beyond 8 bits" in n for r in after.history for n in r.notes) == (padding > 0)
    x = torch.arange(120).remainder(251).view(1, 4, 6, 5) * 0.03125 - 2.0
    assert torch.allclose(evaluate(after, [x])[0], evaluate(before, [x])[0], rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize(("zero", "low", "scale"), [(-100, -128, 0.01), (0, -127, 0.01), (0, -128, 0.02)])
def test_signed_pictures_of_other_tools_keep_their_zero_range_and_scale(zero, low, scale, quantize_op):
    h = Hand()
    q = h(qd.quantize_per_tensor, h.input("x", 1, 40), 0.01, zero, low, 127, torch.int8)
    before = h.done(h(qd.dequantize_per_tensor, q, scale, zero, low, 127, torch.int8))
    x = torch.linspace(-3, 3, 40)[None]
    for after in (for_tensorrt(before), with_quantize_op(for_tensorrt(before), quantize_op)):
        assert torch.allclose(evaluate(after, [x])[0], evaluate(before, [x])[0], rtol=1e-6, atol=1e-6)


def test_a_computed_bias_is_not_lost():
    h = Hand()
    x, b = h.input("x", 1, 4, 6, 5), h.input("b", 3)
    q = h(qd.quantize_per_tensor, x, 0.03125, 100, 0, 255, torch.uint8)
    w = torch.arange(-54, 54).to(torch.int8).view(3, 4, 3, 3)
    before = h.done(h(v.qconv2d, q, h.const("w", w), h.const("s", torch.tensor([0.03125, 0.0625, 0.125])), b,
                      h.const("z", torch.tensor([100], dtype=torch.int32)), [1, 1], [1, 1], [1, 1], 1))  # fmt: skip
    after = for_tensorrt(before)
    assert any("its bias (b) is computed at every step" in n for r in after.history for n in r.notes)
    given = [torch.arange(120).remainder(251).view(1, 4, 6, 5) * 0.03125 - 2.0, torch.tensor([100.0, -50.0, 7.0])]
    assert torch.allclose(evaluate(after, given)[0], evaluate(before, given)[0], rtol=1e-6, atol=1e-3)


def test_pictures_that_others_read_become_arithmetic():
    h = Hand()
    q = h(qd.quantize_per_tensor, h.input("x", 1, 40), 0.05, 77, 0, 255, torch.uint8)
    before = h.done(h(qd.dequantize_per_tensor, q, 0.05, 77, 0, 255, torch.uint8))
    after = for_tensorrt(before)
    assert not pairs(after) and "quantized" not in str(after)
    assert torch.equal(evaluate(after, after.example)[0], evaluate(before, before.example)[0])


@pytest.fixture(scope="module")
def quantize_op():
    """`tensorrt::quantize_op` with the schema that NVIDIA's Model Optimizer registers, and what it means."""
    library = torch.library.Library("tensorrt", "FRAGMENT")
    library.define("quantize_op(Tensor input, Tensor amax, int num_bits, int exponent_bits, bool unsigned, "
                   "bool narrow_range) -> Tensor")  # fmt: skip

    def meaning(x: torch.Tensor, amax: torch.Tensor, bits: int, exponent: int, unsigned: bool, narrow: bool):
        assert (bits, exponent, unsigned) == (8, 0, False)
        scale = amax / 127
        return torch.clamp(torch.round(x / scale), -127 if narrow else -128, 127) * scale

    library.impl("quantize_op", meaning, "CompositeExplicitAutograd")
    yield torch.ops.tensorrt.quantize_op.default
    library._destroy()


def test_the_graph_that_is_handed_over(quantize_op):
    before = for_tensorrt(matte("int8-all"))
    after = with_quantize_op(before, quantize_op)
    assert "quantized_decomposed" not in str(after)
    calls = [n for n in after.calls if n.target is quantize_op]
    assert len(calls) == after.history[-1].rewrites["quantize_op"] >= 8
    for n in calls:  # weights have a scale for each of axis 0, pictures one
        amax = after.constant(n.args[1])
        assert amax.numel() == 1 or list(amax.shape).index(amax.numel()) == 0
    for a, b in zip(play(after), play(before), strict=True):
        assert float((a - b).abs().max()) < 4e-3 and float((a - b).abs().mean()) < 4e-4


def test_the_graph_as_a_file(tmp_path: Path):
    folder = vqc.export(matte("int8-all"), tmp_path / "net", target="pt2:tensorrt")
    want = for_tensorrt(matte("int8-all"))
    found = torch.export.load(folder / "matte.pt2").module()(*want.example, *want.initial_state())
    assert all(torch.equal(a, b) for a, b in zip(found, evaluate(want, want.example), strict=True))


def test_the_report_names_what_stays_in_pytorch():
    graph = for_tensorrt(matte("int8-all"))
    converters = {n: object() for n in graph.calls if op_text(n.target) != "aten.conv2d"}
    report = report_of(graph, converters, "0")
    left = {n.name for n in graph.calls if op_text(n.target) == "aten.conv2d"}
    assert left and {d.node for d in report.fallbacks} == left
    assert all("no converter for aten.conv2d" in d.reason for d in report.fallbacks)
    assert {n for n, k in report.kernels.items() if k.startswith("eager ")} == left


class Registry:
    """torch-tensorrt's registry of converters, for all operators but some."""

    def __init__(self, *lacking: str):
        self.lacking = lacking

    def get(self, node):
        return None if op_text(node.target) in self.lacking else object()


def stand_in(monkeypatch, **members) -> None:
    """Modules under the names of torch-tensorrt and the Model Optimizer; `members` are those of torch_tensorrt."""
    names = ("torch_tensorrt", "torch_tensorrt.dynamo", "torch_tensorrt.dynamo.conversion", "modelopt",
             "modelopt.torch", "modelopt.torch.quantization")  # fmt: skip
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    root = sys.modules["torch_tensorrt"]
    root.dynamo, root.__version__ = sys.modules["torch_tensorrt.dynamo"], "0"
    sys.modules["torch_tensorrt.dynamo.conversion"].DYNAMO_CONVERTERS = members["converters"]
    root.dynamo.compile = members.get("compile")


def test_converters_are_asked_about_what_a_call_becomes_and_no_gpu_is(quantize_op, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    program = one_layer(100, 1, True)
    asked = {n.name: n for n in program.calls}
    vqc_only = Registry("vqc.qconv2d", "quantized_decomposed.quantize_per_tensor", "aten.round")
    for converters, left in ((vqc_only, set()), (Registry("aten.conv2d"), {"qconv2d"}), (Registry("aten.cat"), {"cat"}),
                             (Registry("tensorrt.quantize_op"), {"qconv2d"})):  # fmt: skip
        stand_in(monkeypatch, converters=converters)
        said = {k: TensorRTBackend().supports(program, n, "tensorrt") for k, n in asked.items()}
        assert {k for k, why in said.items() if why is not None} == left, converters.lacking
        assert all("no converter for" in said[k] for k in left)
    assert all("module" not in n.meta for n in program.calls)


def test_a_single_call_is_an_engine_too(quantize_op, monkeypatch):
    seen = {}

    def compile(exported, arg_inputs, **options):
        seen.update(options)
        return exported.module()

    stand_in(monkeypatch, converters=Registry(), compile=compile)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda x: x)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda x: x)
    program = one_layer(128, 1, True)
    exe = vqc.compile(program, "tensorrt")
    assert seen == {"min_block_size": 1} and any("min_block_size=1" in n for n in exe.report.notes)


@pytest.mark.parametrize("installed", [False, True])
def test_without_a_gpu_or_the_package_the_way_out_is_told(installed: bool, tmp_path: Path, monkeypatch, quantize_op):
    stand_in(monkeypatch, converters=Registry())
    if not installed:
        monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = "finds none here" if installed else "torch-tensorrt cannot be imported"
    program = matte()
    for call in (lambda: vqc.export(program, tmp_path / "net", target="tensorrt"),
                 lambda: vqc.compile(program, "tensorrt")):  # fmt: skip
        with pytest.raises(TargetError, match=rf"{said}(.|\n)*pt2:tensorrt"):
            call()
    assert not (tmp_path / "net").exists()
    with pytest.raises(TargetError, match="tensorrt:half"):
        vqc.compile(program, "tensorrt:half")


def test_without_the_model_optimizer_the_way_out_is_told(monkeypatch):
    stand_in(monkeypatch, converters=Registry())
    for name in ("modelopt", "modelopt.torch", "modelopt.torch.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TargetError, match=r"Model Optimizer(.|\n)*pt2:tensorrt"):
        vqc.compile(one_layer(128, 0, True), "tensorrt")

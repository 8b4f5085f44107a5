"""Layers of a compiled program: what they compute and move, and the time they took."""

from __future__ import annotations

import pytest
import torch
from c_helpers import aten, chain, compiled

from vqc.backends.c.cost import Peaks, seconds
from vqc.errors import InputError, TargetError
from vqc.executable import CompileReport
from vqc.layers import Layer, by_kernel, measured, text


def network():
    def build(b, x):
        y = b.call(aten.conv2d.default, x, torch.randn(16, 4, 3, 3), torch.randn(16), [2, 2], [1, 1], [1, 1], 2)
        z = b.call(aten.conv_transpose2d.input, y, torch.randn(16, 5, 2, 2), None, [2, 2])
        return b.call(aten.mul.Tensor, b.call(aten.add.Tensor, z, z), b.call(aten.sigmoid.default, z))

    return chain(build, torch.randn(1, 8, 20, 30))


def test_every_call_is_a_layer_with_its_multiply_adds_and_bytes():
    report = compiled(network()).report
    conv, up, mul = (next(x for x in report.layers if x.kernel.startswith(k)) for k in
                     ("vqc_conv_f32", "vqc_conv_transpose_f32", "vqc_pointwise"))  # fmt: skip
    assert (conv.kind, conv.macs, conv.shape) == ("f32", 16 * 10 * 15 * 4 * 9, "f32[1,16,10,15]")
    assert conv.bytes == 4 * (8 * 20 * 30 + 16 * 10 * 15 + 16 * 4 * 9 + 16)
    assert up.macs == 16 * 10 * 15 * 5 * 4 and up.operator == "aten.conv_transpose2d.input"
    assert mul.kind == "" and mul.macs == 0 and mul.ops == 3 * 5 * 20 * 30  # add, sigmoid, mul
    assert mul.bytes == 2 * 4 * 5 * 20 * 30 and all(x.predicted_ms > 0 for x in report.layers)
    assert report.live_bytes <= report.arena_bytes <= 1.02 * report.live_bytes
    assert len(report.table().splitlines()) == 1 + len(report.layers) and "vqc_conv_f32" in report.table()
    assert "share" not in report.table() and len(str(report).splitlines()) < 6


def test_a_profile_measures_every_layer_and_leaves_the_results_alone():
    program = network()
    exe = compiled(program)
    before = exe.trace(program.example)
    report = exe.profile([program.example] * 2, rounds=2)
    assert exe.trace(program.example)[0].equal(before[0])
    assert all(x.measured_ms > 0 for x in report.layers) and sum(x.share for x in report.layers) == pytest.approx(1)
    assert all(x.measured_ms is None for x in exe.report.layers)
    assert "measured:" in str(report) and "GMAC/s" in report.table() and "vqc_pointwise_f32" in report.summary()
    with pytest.raises(InputError, match="nothing to profile"):
        exe.profile([])


def test_a_program_that_runs_partly_in_pytorch_profiles_what_runs_in_c():
    def build(b, x):
        y = b.call(aten.conv2d.default, x, torch.randn(4, 4, 3, 3))
        return b.call(aten.relu.default, b.call(aten.special_bessel_j0.default, y))

    program = chain(build, torch.randn(1, 4, 9, 9))
    exe = compiled(program, fallback="eager")
    report = exe.profile([program.example])
    assert report.fallbacks and {x.node for x in report.layers} >= {"conv2d_default", "relu_default"}
    assert all(x.measured_ms is not None for x in report.layers)


def test_a_backend_without_layers_says_so():
    import vqc

    program = network()
    with pytest.raises(TargetError, match="does not time its layers"):
        vqc.compile(program, "reference").profile([program.example])


def test_shares_speeds_and_parts_of_the_peak():
    layers = [Layer("a", "conv", "k1", "", "f32", macs=3_000_000), Layer("b", "add", "k2", "", ops=5), Layer(
        "c", "conv", "k1", "", "int8", macs=1_000_000)]  # fmt: skip
    found = measured(layers, [0.001, 0.002, 0.001], {"f32": 6.0})
    assert [x.share for x in found] == [0.25, 0.5, 0.25]
    assert found[0].speed == pytest.approx(3.0) and found[0].peak == pytest.approx(0.5)
    assert found[1].speed is None and found[2].peak is None
    first, second = by_kernel(found)
    assert {first["kernel"], second["kernel"]} == {"k1", "k2"} and first["ms"] == second["ms"] == "2.000"
    lines = text([x.row() for x in found]).splitlines()
    assert lines[0].split()[0] == "node" and lines[0].endswith("of peak") and lines[2].endswith("-")
    assert CompileReport("c", "native").table() == ""


def test_the_cost_of_a_call_grows_with_its_work_and_its_bytes():
    peaks = Peaks({"f32": 100.0, "int8": 400.0, "binary": 2000.0}, {"l1": 100.0, "l2": 50.0, "dram": 10.0})
    heavy = seconds("vqc_conv_f32", "f32", 10**8, 10**5, peaks)
    assert heavy == pytest.approx(10**8 / (0.7 * 100e9), rel=0.01)
    assert seconds("vqc_qconv_c4", "int8", 10**8, 10**5, peaks) < heavy
    assert seconds("vqc_copy", "", 10, 10**8, peaks) == pytest.approx(10**8 / 10e9, rel=0.01)
    assert seconds("vqc_copy", "", 10, 10**8, peaks) > seconds("vqc_copy", "", 10, 10**5, peaks) * 1000
    assert seconds("vqc_qconv_dw_c4", "int8", 10**8, 10, peaks) > 5 * seconds("vqc_qconv_c4", "int8", 10**8, 10, peaks)
    assert seconds("vqc_new", "f32", 10**8, 10, peaks) == seconds("another", "f32", 10**8, 10, peaks)

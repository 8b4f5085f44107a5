"""float-where-slower: what is put back, with which weights, and that nothing else changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from handmade import Hand, aten, reasons, run, texts

import vqc
from vqc.errors import PipelineError, UnsupportedOp
from vqc.layers import Layer
from vqc.passes.float_where_slower import FloatWhereSlower, changed_ms
from vqc.passes.lower_integer import LowerInteger
from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize
from vqc.pipeline import PassContext
from vqc.program import Program, op_text

QUANTIZE = "quantized_decomposed.quantize_per_tensor"


def small(shared: bool = False) -> tuple[Program, Program]:
    """A program in float and quantized: x -> first -> relu -> second -> state; `shared`: two layers read the relu."""
    h = Hand()
    x, s = h.input("x", 1, 3, 8, 8), h.state("s", torch.zeros(1, 4, 8, 8))
    a = h(aten.conv2d, x, h.const("w0", h.rand(4, 3, 3, 3)), h.const("b0", h.rand(4)), [1, 1], [1, 1])
    r = h(aten.relu, a)
    b = h(aten.conv2d, r, h.const("w1", h.rand(4, 4, 1, 1)), None)
    if shared:
        b = h(aten.add.Tensor, b, h(aten.conv2d, r, h.const("w2", h.rand(4, 4, 1, 1)), h.const("b2", h.rand(4))))
    total = h(aten.add.Tensor, b, s)
    twin = h.done(h(aten.sigmoid, total), states=[total])
    observed = Observe()(twin, PassContext(calibration=[h.rand(1, 3, 8, 8) for _ in range(3)]))
    return twin, Quantize(granularity="tensor", tail="quantized")(observed)


class Costs:
    """Times by what a call is: a ms for each integer layer, quantizer and float layer; others are free.

    `slow`: ms of the integer layers with these many weights.
    """

    def __init__(self, slow: dict[int, float] | None = None, quantizer: float = 0.0):
        self.slow, self.quantizer = slow or {}, quantizer
        self.asked: list[tuple[str, bool, int]] = []

    def __call__(self, program: Program, target: str, measured: bool, threads: int) -> list[Layer]:
        self.asked.append((target, measured, threads))
        found = []
        for n in program.calls:
            name, ms = op_text(n.target), 0.0
            if "conv2d" in name:
                weight = program.constant(n.args[1])
                assert weight is not None
                ms = 1.0 if weight.is_floating_point() else self.slow.get(weight.numel(), 0.5)
            elif ".quantize" in name:
                ms = self.quantizer
            shape = str(n.meta["val"].shape)
            found.append(Layer(n.name, name, name, shape, macs=int(ms * 1000), predicted_ms=None if measured else ms,
                               measured_ms=ms if measured else None))  # fmt: skip
        return found


FIRST, SECOND = 4 * 3 * 9, 4 * 4


def test_a_slow_layer_gets_its_float_weight_back_and_its_quantizer_goes():
    twin, quantized = small()
    costs = Costs({SECOND: 3.0}, quantizer=0.25)
    after = FloatWhereSlower(target="portable", threads=2)(quantized, PassContext(twin=twin, costs=costs))
    assert set(costs.asked) == {("portable", False, 2)}
    lines = [line for line in texts(after) if "weight" not in line]
    before = [line for line in texts(quantized) if "weight" not in line]
    kept = [line for line in before if "quantize_1" not in line and "conv2d_1" not in line.split(" ")[0]]
    assert [line for line in lines if line in before] == kept  # all other lines are as they were, in their order
    node = after.node("conv2d_1")
    assert node.args[0] is after.node("relu") and torch.equal(after.constant(node.args[1]), twin.constants["w1"])
    assert sum(QUANTIZE in op_text(n.target) for n in after.calls) == 1
    record = after.history[-1]
    assert record.rewrites == {"float": 1} and not record.declined
    # the first layer's result is no longer quantized in the same call: that call is another one, 0.5 ms on both sides
    assert record.notes == ("conv2d_1 is in float32: calls that change take 3.5000 ms in integers, 1.5000 ms in float "
                            "(predicted, portable)",)  # fmt: skip
    assert [s.name for s in after.states] == ["s"]
    exact = run(twin)
    assert (run(after)[1] - exact[1]).abs().max() < 0.05 * exact[1].abs().max()


def test_a_layer_that_pays_is_no_news():
    twin, quantized = small()
    after = FloatWhereSlower()(quantized, PassContext(twin=twin, costs=Costs()))
    record = after.history[-1]
    assert texts(after) == texts(quantized) and not record.rewrites and not record.notes and not record.declined


@pytest.mark.parametrize(("ms", "count"), [(1.04, 0), (1.06, 1)])
def test_noise_does_not_turn_a_layer_round(ms, count):
    """The margin is 5 %: between a layer's integers and its float must lie more than that."""
    twin, quantized = small()
    after = FloatWhereSlower(measure=True)(quantized, PassContext(twin=twin, costs=Costs({FIRST: ms})))
    assert after.history[-1].rewrites.get("float", 0) == count
    assert count == 0 or "(measured, native)" in after.history[-1].notes[0]
    wide = FloatWhereSlower(margin=0.1)(quantized, PassContext(twin=twin, costs=Costs({FIRST: ms})))
    assert not wide.history[-1].rewrites


def test_a_quantizer_that_another_layer_reads_stays_and_is_not_counted():
    """Both layers are faster in integers without the quantizer, and each alone would not get rid of it."""
    twin, quantized = small(shared=True)
    costs = Costs({SECOND: 0.9}, quantizer=0.4)
    after = FloatWhereSlower()(quantized, PassContext(twin=twin, costs=costs))
    assert not after.history[-1].rewrites
    costs = Costs({SECOND: 2.0}, quantizer=0.4)
    one = FloatWhereSlower(margin=10.0)(quantized, PassContext(twin=twin, costs=costs))
    assert not one.history[-1].rewrites
    both = FloatWhereSlower()(quantized, PassContext(twin=twin, costs=costs))
    assert both.history[-1].rewrites == {"float": 2}
    assert sum(QUANTIZE in op_text(n.target) for n in both.calls) == 1  # that of the first layer


def test_one_of_two_readers_is_put_back_the_other_keeps_the_quantizer():
    twin, quantized = small(shared=True)

    class OnlyOne(Costs):
        """The integer layer with a bias, of both that read the relu, takes 9 ms."""

        def __call__(self, program, target, measured, threads):
            slow = {n.name for n in program.calls if op_text(n.target) == "vqc.qconv2d" and n.args[3] is not None
                    and program.constant(n.args[1]).numel() == SECOND}  # fmt: skip
            rows = super().__call__(program, target, measured, threads)
            return [dataclasses.replace(r, macs=9, predicted_ms=9.0) if r.node in slow else r for r in rows]

    after = FloatWhereSlower()(quantized, PassContext(twin=twin, costs=OnlyOne()))
    assert after.history[-1].rewrites == {"float": 1}
    put_back, left = after.node("conv2d_2"), after.node("conv2d_1")
    assert put_back.args[0] is after.node("relu") and torch.equal(
        after.constant(put_back.args[2]), twin.constants["b2"]
    )
    assert "dequantize" in left.args[0].name and left.args[0].args[0].args[0] is after.node("relu")
    lowered = LowerInteger()(after)
    assert sum("qconv2d" in n.name for n in lowered.calls) == 2


def test_without_a_twin_the_weight_is_the_dequantized_one():
    twin, quantized = small()
    context = PassContext(costs=Costs({SECOND: 3.0}))
    after = FloatWhereSlower()(quantized, context)
    weight = after.constant(after.node("conv2d_1").args[1])
    assert weight is not None and 0 < (weight - twin.constants["w1"]).abs().max() < 0.02
    assert after.history[-1].notes[-1] == "no float twin is known: weights in float32 are the dequantized ones"
    per_channel = Quantize(granularity="channel", tail="quantized")(
        Observe()(twin, PassContext(calibration=[torch.rand(1, 3, 8, 8)]))
    )
    declined = FloatWhereSlower()(per_channel, context)
    assert set(reasons(declined).values()) == {"its float bias is not known without a float twin"}


def test_what_cannot_be_compared_is_said():
    twin, quantized = small()
    with pytest.raises(PipelineError, match="has no costs"):
        FloatWhereSlower()(quantized)

    def none(program, target, measured, threads):
        raise UnsupportedOp("the C backend cannot take fft")

    after = FloatWhereSlower()(quantized, PassContext(twin=twin, costs=none))
    assert texts(after) == texts(quantized)
    assert "nothing was compared on native" in after.history[-1].notes[0]


def test_calls_of_both_programs_cancel_whatever_their_noise():
    def row(node, ms, macs=1, kernel="k"):
        return Layer(node, "op", kernel, "f32[1]", macs=macs, measured_ms=ms)

    before = [row("a", 1.0), row("b", 2.0), row("q", 0.5, kernel="quantize")]
    after = [row("c", 3.0), row("d", 7.0, macs=2)]
    assert changed_ms(before, after) == (2.5, 7.0)  # of the three equal calls one went, at their mean
    assert changed_ms(before, before) == (0.0, 0.0)


@pytest.mark.parametrize("measure", ["false", "true"])
def test_through_a_pipeline_with_the_real_costs(measure):
    """vqc.apply gives the times of the C backend; what comes out compiles and agrees with the reference."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1)).eval()
    clip = [[(torch.rand(1, 3, 16, 16),) for _ in range(2)]]
    text = f"observe,quantize{{tail=quantized}},float-where-slower{{measure={measure},margin=-1.0}},lower-integer"
    program = vqc.apply(vqc.capture(net, clip[0][0]), text, calibration=clip)
    record = next(r for r in program.history if r.name.startswith("float-where-slower"))
    assert record.rewrites == {"float": len(record.notes)} and record.notes  # margin -1: all that look slow
    assert all(("measured" if measure == "true" else "predicted") in n for n in record.notes)
    got = vqc.compile(program).step(clip[0][0])[0][0]
    assert (got - net(clip[0][0][0])).abs().max() < 0.1

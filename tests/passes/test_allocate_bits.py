"""allocate-bits: budgets kept, bits obeyed, sensitivities near what is measured, an answer that is mended."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import pytest
import torch
from handmade import Hand, aten, reasons, texts
from layers_help import CLIP, NAMES, layers, off, played

import vqc
from vqc.calibration import as_clips, split
from vqc.distributed import Shard
from vqc.errors import PipelineError
from vqc.layers import Layer
from vqc.learning.sensitivity import Stage, held_stretches, learned_stretches, replacements
from vqc.passes.allocate_bits import AllocateBits, multiply_adds
from vqc.passes.observe import Observe, quantizable
from vqc.passes.quantize import Quantize
from vqc.pipeline import PassContext, parse
from vqc.program import Program, op_text, replace

TAKES_ALL = "quantize{tail=quantized}"
WEIGHTS = {"conv2d": 216, "conv2d_1": 72, "conv2d_2": 288, "conv_transpose2d": 3072, "linear": 72}
MB = sum(WEIGHTS.values()) / 1e6  # at 8 bits


def observed(make=layers) -> tuple[Program, PassContext]:
    context = PassContext(calibration=CLIP)
    return Observe()(make(), context), context


def bits(program: Program) -> dict[str, tuple[int, int]]:
    return {n.name: n.meta["bits"] for n in program.calls if "bits" in n.meta}


def stages(program: Program, frames: int = 8) -> tuple[Stage, Stage]:
    parts = split(as_clips(CLIP, program))
    return Stage(program, learned_stretches(parts, frames), True), Stage(program, held_stretches(parts, frames), False)


def tops(program: Program) -> dict[str, tuple[int, int]]:
    """Largest integers of every layer's weight and input."""
    found = {}
    for n in program.calls:
        if n.name in NAMES:
            w = n.args[1].args[0] if n.args[1].target is aten.mul.Tensor else n.args[1]
            dequantize = n.args[0]
            channels = "per_channel" in str(dequantize.target)
            found[n.name] = (w.args[5], dequantize.args[5 if channels else 4])
    return found


def test_quantize_obeys_and_the_budget_holds():
    before, context = observed()
    after = AllocateBits(size=0.7 * MB, like=TAKES_ALL, activations=(8, 6))(before, context)
    assert texts(after) == texts(before)  # annotations alone
    chosen = bits(after)
    assert set(chosen) == set(NAMES) and {w for w, _ in chosen.values()} <= {8, 6, 4}
    assert sum(WEIGHTS[n] * w for n, (w, _) in chosen.items()) <= 8e6 * 0.7 * MB
    assert sum(after.history[-1].rewrites.values()) == 5
    kept = after.clone()
    quantized = Quantize(tail="quantized", weight_bits=2, activation_bits=3, edge_bits=2)(kept, context)
    want = {n: (2 ** (w - 1) - 1, 2**a - 1) for n, (w, a) in chosen.items()}
    assert tops(quantized) == want
    lines = after.history[-1].notes
    assert any(line.endswith(f"MB, at most {0.7 * MB:.4g}") for line in lines)
    for name, (w, a) in chosen.items():
        line = next(n for n in lines if n.startswith(f"{name}: "))
        assert line.startswith(f"{name}: W{w}A{a}; error alone ") and line.endswith(f"{WEIGHTS[name] * w / 8e6:.4g} MB")


def test_a_whole_budget_gives_every_layer_the_most():
    before, context = observed()
    after = AllocateBits(size=MB, like=TAKES_ALL)(before, context)
    assert set(bits(after).values()) == {(8, 8)} and after.history[-1].rewrites == {"W8A8": 5}
    least = AllocateBits(size=MB / 2, like=TAKES_ALL)(before, context)
    assert set(bits(least).values()) == {(4, 8)}


def test_layers_that_quantize_leaves_alone_get_none_and_old_bits_go():
    before, context = observed()
    before.node("linear").meta["bits"] = (2, 2)
    after = AllocateBits(size=0.6 * MB, like="quantize{keep=[conv2d_1]}")(before, context)
    assert reasons(after) == {
        "linear": "it makes a result directly (tail=float)", "conv2d_1": "kept in float by 'conv2d_1'",
    }  # fmt: skip
    assert set(bits(after)) == {"conv2d", "conv2d_2", "conv_transpose2d"}


def test_replaced_layers_are_what_quantize_makes():
    """The float program with all layers replaced is the quantized program, states carried."""
    before, context = observed()
    quantized = Quantize(tail="quantized", weight_bits=4)(before, context)
    replaced = replacements(before, quantized)
    assert {n.name for n in replaced} == set(NAMES)
    learned, held = stages(before)
    assert (learned.steps, held.steps) == (4 + 3, 2 + 1)  # of clips of 8 and 4, a quarter of each held out
    _, held = stages(before, frames=2)
    frames = [step[0] for step in held.stretches[0].steps]
    want = played(before, frames=frames)[-3 * 16 * 16 :], played(quantized, frames=frames)[-3 * 16 * 16 :]
    one = Stage(before, [replace(held.stretches[0], first=len(frames) - 1)], states=False)
    expected = float((want[0] - want[1]).double().square().sum() / want[0].double().square().sum())
    assert one.error(replaced) == pytest.approx(expected, rel=1e-6) and expected > 1e-4
    assert one.error({}) == 0.0
    assert one.error({before.node("linear"): lambda *_: torch.full((1, 16, 16, 3), math.nan)}) == math.inf


def test_predicted_sensitivities_are_near_measured_ones():
    before, context = observed()
    options = [replacements(before, Quantize(tail="quantized", weight_bits=b)(before, context)) for b in (8, 4, 2)]
    del options[1][before.node("conv2d_2")]
    nodes = quantizable(before)
    learned, _ = stages(before)
    predicted = learned.predicted(options, nodes, 0, Shard(), lambda *_: None)
    for i, n in enumerate(nodes):
        for j, option in enumerate(options):
            if n not in option:
                assert predicted[i][j] == math.inf
                continue
            measured = learned.error({n: option[n]})
            assert 0.3 < predicted[i][j] / measured < 3, (n.name, j)
    assert predicted == learned.predicted(options, nodes, 0, Shard(), lambda *_: None)
    assert predicted != learned.predicted(options, nodes, 1, Shard(), lambda *_: None)


def branches() -> Program:
    """A picture through two convolutions of one size, of which the first counts a hundred times as much; a state."""
    h = Hand()
    x, s = h.input("x", 1, 3, 16, 16), h.state("s", torch.zeros(1, 4, 16, 16))
    loud = h(aten.conv2d, x, h.const("w0", h.rand(4, 3, 3, 3)), None, [1, 1], [1, 1])
    quiet = h(aten.conv2d, x, h.const("w1", h.rand(4, 3, 3, 3)), None, [1, 1], [1, 1])
    y = h(aten.add.Tensor, h(aten.mul.Tensor, loud, h.const("hundred", torch.tensor(100.0))), quiet)
    state = h(aten.add.Tensor, h(aten.mul.Tensor, s, h.const("half", torch.tensor(0.5))), y)
    return h.done(state, states=[state])


HALF = 2 * 108 * 6 / 8e6  # MB: one of the two at 8 bits, the other at 4


@pytest.mark.parametrize("sensitivity", ["fisher", "measured"])
def test_the_layer_that_counts_gets_the_bits(sensitivity):
    before, context = observed(branches)
    report = []
    context = replace(context, progress=lambda text, done, of: report.append((text, done, of)))
    step = AllocateBits(size=HALF, weights=(8, 4), sensitivity=sensitivity, like=TAKES_ALL)
    after = step(before, context)
    assert bits(after) == {"conv2d": (8, 8), "conv2d_1": (4, 8)}
    assert any(sensitivity in text and done == of for text, done, of in report)
    assert parse(str(step)).passes == (step,)


@dataclass
class Wrong:
    """Sensitivities turned round: what the integer programme makes of them is the worst there is."""

    table: list[list[float]] = field(default_factory=lambda: [[1e-6, 2e-6], [1e-6, 1.0]])

    def __call__(self, *_):
        return self.table


def test_a_wrong_prediction_is_mended_by_measuring(monkeypatch):
    before, context = observed(branches)
    monkeypatch.setattr(Stage, "predicted", Wrong())
    options = {"size": HALF, "weights": (8, 4), "like": TAKES_ALL}
    trusting = AllocateBits(repair=0, **options)(before, context)
    assert bits(trusting) == {"conv2d": (4, 8), "conv2d_1": (8, 8)}
    mended = AllocateBits(**options)(before, context)
    assert bits(mended) == {"conv2d": (8, 8), "conv2d_1": (4, 8)}
    note = mended.history[-1].notes[-4]
    assert note.startswith("1 swaps: the error on held-out steps falls from "), note
    want = played(before)
    quantize = Quantize(tail="quantized")
    assert off(quantize(mended, context), want) < 0.1 * off(quantize(trusting, context), want)


def test_a_swap_that_held_out_frames_do_not_like_is_left(monkeypatch):
    before, context = observed(branches)
    error = Stage.error
    monkeypatch.setattr(Stage, "predicted", Wrong())
    monkeypatch.setattr(Stage, "error", lambda self, o: error(self, o) if len(self.outputs) == 2 else 1.0)
    after = AllocateBits(size=HALF, weights=(8, 4), like=TAKES_ALL)(before, context)
    assert bits(after) == {"conv2d": (4, 8), "conv2d_1": (8, 8)}
    assert any("no swap of bits" in n for n in after.history[-1].notes)


def test_a_uniform_choice_that_is_better_takes_its_place(monkeypatch):
    """The prediction says that 3 bits are better than 4 in the layer that counts; 4 everywhere fit the budget too."""
    before, context = observed(branches)
    monkeypatch.setattr(Stage, "predicted", Wrong([[2.0, 2.0, 1.0], [1.0, 2.0, 2.0]]))
    after = AllocateBits(size=HALF * 2 / 3, weights=(5, 4, 3), repair=0, like=TAKES_ALL)(before, context)
    assert bits(after) == {"conv2d": (4, 8), "conv2d_1": (4, 8)}
    assert sum("held-out steps" in n and "W4A8 everywhere" in n for n in after.history[-1].notes) == 1


def test_operations_count_bits_of_both():
    before, context = observed()
    macs = {n.name: multiply_adds(before, n) for n in quantizable(before)}
    assert macs == {"conv2d": 8 * 256 * 27, "conv2d_1": 8 * 256 * 9, "conv2d_2": 8 * 64 * 36,
                    "conv_transpose2d": 8 * 64 * 24 * 16, "linear": 256 * 72}  # fmt: skip
    after = AllocateBits(bops=0.5, activations=(8, 4), like=TAKES_ALL)(before, context)
    spent = sum(macs[n] * w * a for n, (w, a) in bits(after).items())
    assert 0.4 < spent / (64 * sum(macs.values())) <= 0.5
    with pytest.raises(PipelineError, match=r"cannot reach 0.2 of the operations(.|\n)*can reach is 0.25"):
        AllocateBits(bops=0.2, activations=(8, 4), like=TAKES_ALL)(before, context)


class Costs:
    """A ms for every layer of 8-bit weights, `low` for one of fewer, a ms for each quantizer, 2 ms beside them."""

    def __init__(self, low: float = 0.5):
        self.low = low
        self.asked: set[tuple[str, bool, int]] = set()

    def __call__(self, program: Program, target: str, measured: bool, threads: int) -> list[Layer]:
        self.asked.add((target, measured, threads))
        rows = [Layer("other", "add", "add", "", predicted_ms=2.0)]
        for n in program.calls:
            name = op_text(n.target)
            if "qconv" in name or "qlinear" in name:
                weight = program.constant(n.args[1])
                assert weight is not None and not weight.is_floating_point()
                few = int(weight.abs().max()) < 8
                rows.append(Layer(n.name, name, name, "", predicted_ms=self.low if few else 1.0))
            elif ".quantize" in name:
                rows.append(Layer(n.name, name, name, "", predicted_ms=1.0))
        return rows


def test_latency_is_what_the_backend_predicts():
    before, context = observed()
    costs = Costs()
    with pytest.raises(PipelineError, match="has no costs"):
        AllocateBits(latency=0.9)(before, context)
    context = replace(context, costs=costs)
    step = AllocateBits(latency=0.9, weights=(8, 4), target="portable", threads=2, like=TAKES_ALL)
    after = step(before, context)
    whole = sum(r.predicted_ms or 0 for r in costs(lowered(before, context), "", False, 1))
    spent = sum(r.predicted_ms or 0 for r in costs(lowered(after, context), "", False, 1))
    few = sum(w == 4 for w, _ in bits(after).values())
    assert spent == whole - 0.5 * few and spent <= 0.9 * whole < spent + 0.5
    assert ("portable", False, 2) in costs.asked
    with pytest.raises(PipelineError, match=rf"the least that its choices can reach is {(whole - 2.5) / whole:.4g}"):
        AllocateBits(latency=0.5, weights=(8, 4), like=TAKES_ALL)(before, context)


def lowered(program: Program, context: PassContext) -> Program:
    return parse(f"{TAKES_ALL},lower-integer,exact-float,canonicalize").run(program, context)


def test_what_layers_share_counts_against_a_latency(monkeypatch):
    """Two layers of one input at different bits need two quantizers, which the sum over layers does not know.

    At 8 bits there are 5 ms: one quantizer, two layers, 2 ms beside them. Choices: W8A8, W8A7, W4A8, W4A7.
    """
    before, context = observed(branches)
    context = replace(context, costs=Costs(low=0.4))
    options, none = {"weights": (8, 4), "activations": (8, 7), "like": TAKES_ALL}, math.inf
    monkeypatch.setattr(Stage, "predicted", Wrong([[9.0, 0.1, 1.0, none], [9.0, 9.0, 1.0, none]]))
    after = AllocateBits(latency=0.88, **options)(before, context)  # W8A7 and W4A8 would take 5.4 ms of 4.4
    assert bits(after) == {"conv2d": (4, 8), "conv2d_1": (4, 8)}
    assert any("one width" in n for n in after.history[-1].notes)
    monkeypatch.setattr(Stage, "predicted", Wrong([[none, 0.1, none, none], [none, none, 1.0, none]]))
    with pytest.raises(PipelineError, match="found no choice of at most 0.88 of the time"):
        AllocateBits(latency=0.88, **options)(before, context)


def test_costs_that_do_not_add_up_leave_the_same_bits_everywhere():
    """5 ms more where layers have several widths of weights: nothing mixed fits."""

    class Uneven(Costs):
        def __call__(self, *args):
            rows = super().__call__(*args)
            mixed = len({r.predicted_ms for r in rows if "conv" in r.kernel}) > 1
            return [*rows, Layer("mixed", "mixed", "mixed", "", predicted_ms=5.0 * mixed)]

    before, context = observed(branches)
    context = replace(context, costs=Uneven(low=0.4))
    after = AllocateBits(latency=0.9, weights=(8, 4), like=TAKES_ALL)(before, context)
    assert bits(after) == {"conv2d": (4, 8), "conv2d_1": (4, 8)}


def test_the_real_costs_through_a_pipeline():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1)).eval()
    clip = [[(torch.rand(1, 3, 16, 16),) for _ in range(4)]]
    text = f"observe,allocate-bits{{latency=1.0,like={TAKES_ALL}}},{TAKES_ALL},lower-integer"
    program = vqc.apply(vqc.capture(net, clip[0][0]), text, calibration=clip)
    record = next(r for r in program.history if r.name.startswith("allocate-bits"))
    assert record.rewrites == {"W8A8": 2} and any("1 of the time, at most 1" in n for n in record.notes)


@pytest.mark.parametrize(("options", "message"), [
    ({}, "has 0 budgets"),
    ({"size": 1.0, "bops": 0.5}, "has 2 budgets: size, bops"),
    ({"size": 0.0}, "cannot use size=0"),
    ({"bops": math.inf}, "cannot use bops=inf"),
    ({"size": 1.0, "weights": (8, 9)}, "cannot choose from weights"),
    ({"size": 1.0, "activations": ()}, "cannot choose from weights"),
    ({"size": 1.0, "sensitivity": "guess"}, "no sensitivity 'guess'"),
    ({"size": 1.0, "frames": 0}, "frames=0"),
    ({"size": 1.0, "like": "observe"}, "cannot imitate 'observe'"),
    ({"size": 1.0, "like": "quantize,quantize"}, "cannot imitate"),
    ({"size": MB * 0.49, "like": TAKES_ALL}, f"least that its choices can reach is {MB / 2:.4g}"),
])  # fmt: skip
def test_what_is_asked_for_wrongly(options, message):
    before, context = observed()
    with pytest.raises(PipelineError, match=message):
        AllocateBits(**options)(before, context)


def ended(last) -> Program:
    """A layer, what `last(h, y)` makes of its result, and a layer after that."""
    h = Hand()
    y = h(aten.conv2d, h.input("x", 1, 3, 16, 16), h.const("w0", h.rand(4, 3, 3, 3)), None)
    return h.done(h(aten.conv2d, last(h, y), h.const("w1", h.rand(4, 4, 3, 3)), None))


def test_where_no_gradient_comes_through_the_error_is_measured():
    before, context = observed(lambda: ended(lambda h, y: h(aten.sign, y)))
    results = {}
    for sensitivity in ("fisher", "measured"):
        after = AllocateBits(size=(108 * 8 + 144 * 4) / 8e6, weights=(8, 4), sensitivity=sensitivity, like=TAKES_ALL)(
            before, context
        )
        line = next(n for n in after.history[-1].notes if n.startswith("conv2d: "))
        results[sensitivity] = line.split(";")[1]
    assert results["fisher"] == results["measured"] and " 0 at" not in results["fisher"]


def test_an_operator_without_a_gradient_is_an_error():
    before, context = observed(lambda: ended(lambda h, y: h(torch.ops.vqc.sigmoid, y)))
    with pytest.raises(PipelineError, match=r"has no gradient(.|\n)*sensitivity=measured"):
        AllocateBits(size=1.0, like=TAKES_ALL)(before, context)
    after = AllocateBits(size=1.0, like=TAKES_ALL, sensitivity="measured")(before, context)
    assert after.history[-1].rewrites == {"W8A8": 2}


def test_a_program_without_float_results_is_an_error():
    before, context = observed(integer_result)
    with pytest.raises(PipelineError, match="no float result"):
        AllocateBits(size=1.0, like=TAKES_ALL)(before, context)


def integer_result() -> Program:
    h = Hand()
    y = h(aten.conv2d, h.input("x", 1, 3, 16, 16), h.const("w0", h.rand(4, 3, 3, 3)), None)
    return h.done(h(torch.ops.vqc.binarize, y, h.const("tau", torch.zeros(4))))


class Together(Shard):
    """One of two processes that are threads of one, and meet at a barrier."""

    barrier = threading.Barrier(2, timeout=60)
    given: dict[int, bytes] = {}

    def gather(self, data, doing=""):
        self.given[self.rank] = data
        self.barrier.wait()
        parts = [self.given[r] for r in range(2)]
        self.barrier.wait()
        return parts


@pytest.mark.parametrize("sensitivity", ["fisher", "measured"])
def test_two_processes_choose_as_one(sensitivity, monkeypatch):
    before, context = observed()
    runs = []
    error = Stage.error
    monkeypatch.setattr(Stage, "error", lambda *a: runs.append(threading.get_ident()) or error(*a))
    step = AllocateBits(size=0.7 * MB, sensitivity=sensitivity, like=TAKES_ALL)
    alone = step(before, context)
    alone_runs, found = len(runs), {}
    runs.clear()

    def work(rank):
        found[rank] = step(before, replace(context, shard=Together(rank, 2)))

    threads = [threading.Thread(target=work, args=(r,)) for r in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for rank in range(2):
        assert bits(found[rank]) == bits(alone) and found[rank].history[-1] == alone.history[-1]
    assert len(runs) == alone_runs  # each does a part, none twice
    if sensitivity == "measured":
        assert max(runs.count(i) for i in set(runs)) <= len(runs) * 2 / 3

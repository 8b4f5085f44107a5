"""What the report gathers, as data, as text and as a page."""

from __future__ import annotations

import base64
import math
import re
import struct
from html.parser import HTMLParser

import pytest
import torch
from handmade import Hand, aten
from report_programs import Coarse, Nothing, Shift, clip, growing, numbers, pipeline, recurrent

from vqc.errors import InputError
from vqc.program import Program
from vqc.report import text
from vqc.report.gather import quantization_report
from vqc.report.html import page
from vqc.report.measure import BROKEN, EQUAL, sums
from vqc.report.quantization import QuantizationReport
from vqc.report.verdict import answers, judged, percent, shares, state_cost

TAIL = "observe,quantize{tail=quantized},lower-integer,exact-float,canonicalize"


@pytest.fixture(scope="module")
def report() -> QuantizationReport:
    program = recurrent()
    return quantization_report(
        program,
        TAIL,
        clip(program, 6),
        calibration=[clip(program, 4, seed=1)],
        target="portable",
        clip="a",
        calibration_name="b",
        bound=20,
    )


def test_integer_layers_are_found_again_and_read_right(report: QuantizationReport) -> None:
    assert report.unmatched == ()
    assert list(report.last.layers) == ["conv2d", "conv2d_1", "conv2d_2"]
    for name, line in report.last.layers.items():
        assert len(line) == 6 and min(line) > 25, name  # integers read with a wrong scale are at 0 dB
    assert [(x.weight_bits, x.activation_bits) for x in report.layers] == [("8", "8")] * 3
    assert all(x.kernel.startswith("vqc_qconv") for x in report.layers)
    assert all(0.9 * 37 < report.own["conv2d"][t] < 60 for t in range(6))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("relu", [False, True])
def test_fused_quantizers_are_undone(granularity: str, relu: bool) -> None:
    """conv -> (relu) -> conv, the quantizer between them inside the first integer layer; also transposed."""
    h = Hand("chain")
    x = h.input("x", 1, 3, 8, 8)
    y = h(aten.conv2d, x, h.const("w0", h.rand(4, 3, 3, 3)), h.const("b0", h.rand(4)))
    y = h(aten.relu, y) if relu else y
    y = h(aten.conv2d, y, h.const("w1", h.rand(5, 4, 1, 1)))
    y = h(aten.relu, y) if relu else y
    program = h.done(h(aten.conv_transpose2d.input, y, h.const("w2", h.rand(5, 3, 2, 2)), None, [2, 2]))
    recipe = f"observe,quantize{{tail=quantized,granularity={granularity}}},lower-integer"
    steps = clip(program, 2)
    made = quantization_report(program, recipe, steps, calibration=[steps])
    assert "requantize x" in made.last.did and made.unmatched == ()
    assert min(min(v) for v in made.last.layers.values()) > 28
    assert min(min(v) for v in made.own.values()) > 28  # the twin's values, put back as integers
    assert list(made.last.layers) == ["conv2d", "conv2d_1", "conv_transpose2d"]


def test_saturation_and_range_use_are_counted() -> None:
    """Calibrated on 0 .. 1/2; a quarter of the clip is 1, the rest 1/5 (level 102), from frame 2 on."""
    h = Hand("flat")
    x = h.input("x", 1, 3, 8, 8)
    program = h.done(h(aten.conv2d, x, h.const("w", h.rand(3, 3, 1, 1))))
    calm = torch.linspace(0, 0.5, 192).view(1, 3, 8, 8)
    bright = torch.full((1, 3, 8, 8), 0.2)
    bright[:, :, :2] = 1.0
    made = quantization_report(program, "observe,quantize{tail=quantized,pixels=0,granularity=tensor,headroom=0}",
                               [(calm,), (calm,), (bright,), (bright,)], calibration=[[(calm,)]])  # fmt: skip
    (q,) = made.quantizers
    assert q.layers == ("conv2d",) and (q.first, q.last, q.scales) == (0, 255, 1) and q.high == pytest.approx(0.5)
    early, _, late = q.uses
    assert (early.since, early.until, late.since, late.until) == (0, 0, 2, 3)
    assert (early.below, early.above, early.low, early.high) == (0, 0, 0, 255)
    assert early.used == pytest.approx(192 / 256, abs=1e-5)
    assert (late.below, late.above) == (0, 0.25) and (late.low, late.high) == (102, 255)
    assert late.used == pytest.approx(2 / 256, abs=1e-5) and late.channel == pytest.approx(154 / 256, abs=1e-4)
    assert q.clipped == 0.25 and q.used == early.used
    (w,) = made.weights
    assert (w.layer, w.levels, w.granularity) == ("conv2d", 255, "3 scales, per output channel")
    assert "25 %" in page(made) and text.range_rows(made)[0]["cut off"] == "25 %"


def test_values_that_do_not_lie_in_rows_are_counted() -> None:
    """A quantizer behind a transpose, as of tokens that become a picture: no view makes such values one row."""
    h = Hand("tokens")
    x = h.input("x", 1, 8, 3, 4)
    tokens = h(aten.linear, h(aten.permute, x, [0, 2, 3, 1]), h.const("w", h.rand(8, 8)))
    y = h(aten.conv2d, h(aten.permute, tokens, [0, 3, 1, 2]), h.const("v", h.rand(8, 8, 3, 3)), None, [1, 1], [1, 1])
    program = h.done(y)
    made = quantization_report(program, TAIL, clip(program, 2), calibration=[clip(program, 2, seed=1)])
    assert [q.layers for q in made.quantizers] == [("linear",), ("conv2d",)]
    assert all(u.used > 0.1 for q in made.quantizers for u in q.uses)


def test_what_one_layer_does_alone() -> None:
    program = recurrent()
    made = quantization_report(program, pipeline(Coarse("w1"), Shift("b0", 1e-4)), clip(program, 3))
    assert next(iter(shares(made))) == "conv2d_1" and shares(made)["conv2d_1"] > 0.99
    assert made.alone["conv2d_2"] == EQUAL and made.own["conv2d_2"] == (EQUAL,) * 3
    total = made.fresh[made.alone_of][made.alone_frame]
    assert made.alone["conv2d_1"] == pytest.approx(total, abs=0.5)  # one layer errs, so alone it does all of it
    assert answers(made)[2].short.startswith("conv2d_1, ")


def test_kept_layers_have_the_reason_of_the_pass() -> None:
    program = recurrent()
    made = quantization_report(program, "observe,quantize{keep=[conv2d_1]}", clip(program, 2),
                               calibration=[clip(program, 2)])  # fmt: skip
    kept = {x.name: x.kept for x in made.layers if x.kept}
    assert kept == {"conv2d_1": "kept in float by 'conv2d_1'", "conv2d_2": "it makes a result directly (tail=float)"}
    assert [x.weight_bits for x in made.layers] == ["8", "", ""] and made.layers[0].kernel == ""
    assert "kept in float by &#x27;conv2d_1&#x27;" in page(made) and "not compiled" in page(made)


def test_bits_are_read_where_weights_are_still_dequantized() -> None:
    """Nothing is fused here: the integer program has as many quantizers as the one before, but no weights to read."""
    h = Hand("two")
    x = h.input("x", 1, 3, 8, 8)
    y = h(aten.sigmoid, h(aten.conv2d, x, h.const("w0", h.rand(4, 3, 3, 3))))
    program = h.done(h(aten.conv2d, y, h.const("w1", h.rand(2, 4, 1, 1))))
    steps = clip(program, 2)
    made = quantization_report(program, "observe,quantize{tail=quantized,weight_bits=4},lower-integer", steps,
                               calibration=[steps])  # fmt: skip
    assert [(x.weight_bits, x.activation_bits, x.kept) for x in made.layers] == [("4", "8", "")] * 2
    assert [w.levels for w in made.weights] == [15, 15] and [q.levels for q in made.quantizers] == [256, 256]


def test_a_quiet_pass_is_taken_over_and_a_float_recipe_is_equal() -> None:
    program = recurrent()
    made = quantization_report(program, pipeline(Nothing(), Shift("b0", 0.01), Nothing(), Nothing()), clip(program, 2))
    assert [s.measured for s in made.stages] == [False, True, False, True]
    assert set(made.stages[0].outputs["result y"]) == {EQUAL} and made.stages[0].layers == {}
    assert made.stages[1].outputs == made.stages[2].outputs == made.stages[3].outputs
    same = quantization_report(program, pipeline(Nothing()), clip(program, 2))
    assert same.first is None and answers(same)[0].short == "yes, to the last 8-bit step"
    assert answers(same)[2].short == "none" and "equal" in page(same)


def test_pictures_are_judged_in_steps_and_kept_when_worst() -> None:
    """A picture that is h / 2 and drifts: its error is known, and the last frame is the worst."""
    program = growing()
    made = quantization_report(program, pipeline(Shift("b", 0.001)), clip(program, 9), worst=2)
    expected = [255 / 2 * (1.001 ** (t + 1) - 1) for t in range(9)]
    assert [p.error for p in made.pictures] == pytest.approx(expected, rel=1e-3)
    assert [p.peak for p in made.pictures] == pytest.approx(expected, rel=1e-3)
    assert [p.flicker for p in made.pictures][1:] == pytest.approx(
        [b - a for a, b in zip(expected, expected[1:], strict=False)], rel=1e-2)  # fmt: skip
    assert made.picture == judged(made) == "result y" and [w.frame for w in made.worst] == [8, 5]
    assert made.pictures[0].near == 1.0 and made.pictures[8].near in (0.0, 1.0)
    cost = state_cost(made, "result y")
    assert cost is not None and cost == pytest.approx(20 * math.log10((1.001**8.5 - 1) / 0.001), abs=0.1)
    assert "Errors pile up in the state" in " ".join(answers(made)[1].details)
    data = base64.b64decode(made.worst[0].pictures[2])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (6, 4)


def test_a_network_without_picture_or_state() -> None:
    program = numbers()
    steps = clip(program, 3)
    made = quantization_report(program, "observe,quantize{tail=quantized}", steps, calibration=[steps])
    assert made.picture == "" and made.pictures == () and made.worst == ()
    assert list(made.last.outputs) == ["result y"] and state_cost(made, "result y") is None
    assert "No result is a picture" in page(made) or "SQNR only" in page(made)
    assert answers(made)[0].question == "Is the result the same?" and made.alone["linear"] > 30


@pytest.mark.parametrize(("channels", "shown"), [(1, True), (3, True), (2, False)])
def test_pictures_have_one_or_three_channels(channels: int, shown: bool) -> None:
    h = Hand("picture")
    x = h.input("x", 1, 3, 6, 6)
    program = h.done(h(aten.conv2d, x, h.const("w", h.rand(channels, 3, 1, 1))))
    made = quantization_report(program, pipeline(Shift("w", 0.1)), clip(program, 2))
    assert bool(made.worst) is shown and bool(made.pictures) is shown
    if shown:
        assert made.picture_range != (0.0, 1.0)  # values outside of [0, 1] are shown from the first frame's range


def test_broken_values_are_told_and_a_broken_float_network_is_refused() -> None:
    program = recurrent()
    made = quantization_report(program, pipeline(Shift("b0", math.nan)), clip(program, 2))
    assert made.last.outputs["state h"] == (BROKEN, BROKEN) and made.first is not None
    assert made.first.layer == "conv2d" and QuantizationReport.from_json(made.to_json()) == made
    assert "broken" in page(made)
    bad = recurrent()
    bad.constants["b0"] = bad.constants["b0"] * math.inf
    with pytest.raises(InputError, match="NaN or infinity") as e:
        quantization_report(bad, pipeline(Nothing()), clip(bad, 2))
    assert "step 0" in str(e.value)
    with pytest.raises(InputError, match="needs a clip"):
        quantization_report(program, pipeline(Nothing()), [])


def test_json_gives_the_same_report(report: QuantizationReport) -> None:
    again = QuantizationReport.from_json(report.to_json())
    assert again == report and again.to_json() == report.to_json() and page(again) == page(report)
    for bad in ("no json", "[]", '{"form":0}', '{"form":1}'):
        with pytest.raises(InputError, match="cannot be read"):
            QuantizationReport.from_json(bad)


class Checker(HTMLParser):
    """Counts tags, and remembers those left open and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.addresses += [v or "" for k, v in attrs if k in ("href", "src")]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())


def test_the_page_stands_by_itself(report: QuantizationReport) -> None:
    made = page(report)
    checker = Checker()
    checker.feed(made)
    assert checker.open == [] and "script" not in checker.seen and "link" not in checker.seen
    assert checker.seen["img"] == 6 * len(report.worst) > 0
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in checker.addresses)
    plain = re.sub(r"base64,[A-Za-z0-9+/=]+", "", made)
    assert not re.search(r"https?:|url\(|@import|//", plain)
    assert not re.search(r"(?<![\w<])/(home|tmp|usr|work|root|var)/", plain)
    ids = set(re.findall(r'id="(\w+)"', made))
    assert {a[1:] for a in checker.addresses if a.startswith("#")} <= ids
    for name in ("worst", "drift", "layers", "first", "ranges", "bits", "float", "how"):
        assert name in ids
    # a cell for every result, state and layer in every frame, in every pass; one for own, one for alone
    rows, layers, passes = 2 + 3, 3, len(report.stages)
    assert made.count("<title>") - 1 >= rows * 6 + rows * passes - layers + 2 * layers


def test_the_page_is_the_same_to_the_byte(report: QuantizationReport) -> None:
    program = recurrent()
    again = quantization_report(
        program,
        TAIL,
        clip(program, 6),
        calibration=[clip(program, 4, seed=1)],
        target="portable",
        clip="a",
        calibration_name="b",
        bound=20,
    )
    assert page(again) == page(report) and again.to_json() == report.to_json()


def test_a_node_that_takes_an_old_name_is_not_taken_for_the_old_one() -> None:
    """`relu` of the twin vanishes with one pass; a later pass calls something else `relu`."""
    from dataclasses import dataclass
    from typing import ClassVar

    from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult
    from vqc.report.versions import collect

    @dataclass(frozen=True)
    class Drop(Pass):
        name: ClassVar[str] = "drop"
        numerics: ClassVar[Numerics] = Lossy(-100.0)

        def apply(self, program: Program, context: PassContext) -> PassResult:
            n = program.node("relu")
            n.replace_all_uses_with(n.args[0])
            program.graph.erase_node(n)
            return PassResult(program, {"relu": 1})

    @dataclass(frozen=True)
    class Put(Drop):
        name: ClassVar[str] = "put"

        def apply(self, program: Program, context: PassContext) -> PassResult:
            n = program.node("conv2d")
            with program.graph.inserting_after(n):
                new = program.call(aten.relu.default, (n,), name="relu")
            for user in [u for u in n.users if u is not new]:
                user.replace_input_with(n, new)
            return PassResult(program, {"relu": 1})

    versions = collect(recurrent(), pipeline(Drop(), Put()))
    assert [n.name for n in versions.last.program.calls].count("relu") == 1
    assert "relu" not in versions.last.links and "relu_1" in versions.last.links


def test_percent_never_rounds_up_to_all() -> None:
    shown = {1.0: "100 %", 0.99609: "99.6 %", 0.999994: "99.9994 %", 1 - 1e-9: "99.9999 %", 0.97888: "97.9 %",
             0.5: "50 %", 0.00012: "0.012 %", 1e-9: "< 0.001 %", 0.0: "0 %"}  # fmt: skip
    assert {x: percent(x) for x in shown} == shown
    assert sums(torch.zeros(3), torch.zeros(3)).db == EQUAL and sums(torch.ones(3), torch.zeros(3)).db == BROKEN


def test_text_says_the_same(report: QuantizationReport) -> None:
    said = "\n".join(text.sentences(report))
    for a in answers(report):
        assert a.short in said and a.short in page(report).replace("&#x27;", "'")
    assert [r["pass"] for r in text.pass_rows(report)] == [s.name for s in report.stages]
    assert [r["output"] for r in text.drift_rows(report)] == ["result y", "state h"]
    assert len(text.layer_rows(report)) == 3 and text.kept_rows(report) == []
    assert text.first_lines(None, 20) == ["no result falls under 20 dB"]

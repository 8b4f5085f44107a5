"""The first pass, frame and layer under a bound, where each is known beforehand."""

from __future__ import annotations

import math

import pytest
from report_programs import Coarse, Nothing, Shift, clip, growing, pipeline, recurrent

from vqc.report.bisect import OWN, STATE, bisect
from vqc.report.gather import quantization_report
from vqc.report.versions import collect


@pytest.mark.parametrize("place", [0, 4, 7])
@pytest.mark.parametrize(("constant", "layer"), [("w0", "conv2d"), ("w1", "conv2d_1"), ("w2", "conv2d_2")])
def test_a_coarse_layer_is_named_with_its_pass_and_frame(place: int, constant: str, layer: str) -> None:
    passes = [Shift(constant="b0", by=1e-6 * (i + 1)) for i in range(8)]
    passes[place] = Coarse(constant)
    program = recurrent()
    steps = clip(program, 3)
    versions = collect(program, pipeline(*passes))
    first = bisect(versions, steps, 25)
    assert first is not None
    assert (first.index, first.name, first.layer, first.cause, first.loudest) == (
        place, str(passes[place]), layer, OWN, layer)  # fmt: skip
    assert len(first.ran) <= 1 + math.log2(8)
    assert first.sqnr < 25 and first.layer_sqnr < 25 and first.own_sqnr == pytest.approx(first.layer_sqnr, abs=1.0)
    report = quantization_report(program, pipeline(*passes), steps, bound=25)
    assert report.first is not None  # the tables find the same
    assert (report.first.index, report.first.frame, report.first.layer) == (first.index, first.frame, first.layer)
    assert report.first.sqnr == first.sqnr


def test_no_fall_is_none_after_one_program() -> None:
    program = recurrent()
    assert bisect(collect(program, pipeline(*[Shift("b0", 1e-5)] * 8)), clip(program, 2), 20) is None


def test_passes_that_promise_equal_bits_are_not_run() -> None:
    program = recurrent()
    first = bisect(collect(program, pipeline(*[Nothing()] * 9, Coarse("w1"), *[Nothing()] * 9)), clip(program, 2), 25)
    assert first is not None and first.name == "coarse" and set(first.ran) == {"coarse", "nothing"}
    assert len(first.ran) == 2 and first.index == 9  # the last program, and the one that was changed


def test_a_drift_falls_at_the_frame_that_arithmetic_says_and_is_the_states() -> None:
    """(1.011)^n - 1 > 0.1 for the first time at n = 9, which is frame 8."""
    program = growing()
    steps = clip(program, 16)
    versions = collect(program, pipeline(Shift("b", 0.011)))
    first = bisect(versions, steps, 20)
    assert first is not None
    assert (first.frame, first.layer, first.cause) == (8, "mul", STATE)  # no convolution: those are at 39 dB
    assert first.sqnr == pytest.approx(-20 * math.log10(1.011**9 - 1), abs=0.01)
    assert first.fresh_sqnr == pytest.approx(-20 * math.log10(0.011), abs=0.01)
    assert first.loudest == "conv2d"
    report = quantization_report(program, pipeline(Shift("b", 0.011)), steps, bound=20)
    assert report.last.outputs["state h"] == pytest.approx(
        [-20 * math.log10(1.011 ** (t + 1) - 1) for t in range(16)], abs=0.01)  # fmt: skip
    assert report.fresh["state h"] == pytest.approx([-20 * math.log10(0.011)] * 16, abs=0.01)
    assert report.own["conv2d"] == pytest.approx([-20 * math.log10(0.011)] * 16, abs=0.01)

"""observe: who is watched, with what key, and what is refused."""

import pytest
import torch
from handmade import Hand, aten, reasons

from vqc.errors import CalibrationError, PipelineError
from vqc.passes.observe import Observe
from vqc.pipeline import PassContext


def cell():
    """conv(cat[x, h]) -> tanh -> next state; conv(sigmoid) -> result."""
    h = Hand()
    x, s = h.input("x", 1, 3, 6, 6), h.state("h", torch.zeros(1, 2, 6, 6))
    both = h(aten.cat, [x, s], 1)
    a = h(aten.conv2d, both, h.const("w0", h.rand(2, 5, 3, 3)), None, [1, 1], [1, 1])
    b = h(aten.conv2d, h(aten.sigmoid, a), h.const("w1", h.rand(1, 2, 1, 1)), None)
    return h.done(b, states=[h(aten.tanh, a)])


def watched(program):
    return {n.name: n.meta["observed"] for n in program.nodes if "observed" in n.meta}


def test_observes_what_has_no_known_range():
    clip = [torch.rand(1, 3, 6, 6) * 4 - 1 for _ in range(3)]
    program = Observe()(cell(), PassContext(calibration=clip))
    assert list(watched(program)) == ["cat"]
    assert reasons(program) == {"conv2d_1": "the range of its input sigmoid is known: [0, 1]"}
    total = watched(program)["cat"].total
    assert total.frames == 3
    assert total.range[1] == pytest.approx(float(torch.cat(clip).max()))
    assert total.low.shape == (5,)
    assert program.history[-1].rewrites == {"observer": 1}


def test_phase_policy_keeps_phases_apart():
    clip = [torch.full((1, 3, 6, 6), float(t)) for t in range(6)]
    groups = watched(Observe("phase")(cell(), PassContext(calibration=clip)))["cat"].groups
    assert {k: g.range[1] for k, g in groups.items()} == {0: 0.0, 1: 1.0, 2: 3.0, 3: 5.0}


def test_observers_merge_as_one_process_would_see():
    clips = [[torch.rand(1, 3, 6, 6) for _ in range(3)], [torch.rand(1, 3, 6, 6) * 2 for _ in range(2)]]
    whole = watched(Observe()(cell(), PassContext(calibration=clips)))["cat"]
    first, second = (watched(Observe()(cell(), PassContext(calibration=[c])))["cat"] for c in clips)
    second.merge(first)
    assert whole.total.range == second.total.range
    assert (whole.total.counts == second.total.counts).all()


def test_the_first_clips_alone():
    clips = [[torch.rand(1, 3, 6, 6) * top for _ in range(2)] for top in (1, 2, 9)]
    some = watched(Observe(clips=2)(cell(), PassContext(calibration=clips)))["cat"].total
    alone = watched(Observe()(cell(), PassContext(calibration=clips[:2])))["cat"].total
    assert some.frames == 4 and some.range == alone.range and (some.counts == alone.counts).all()
    for number in (4, -1):
        with pytest.raises(PipelineError, match="of 3 calibration clips"):
            Observe(clips=number)(cell(), PassContext(calibration=clips))


def test_nothing_of_the_clip_stays():
    before = cell()
    program = Observe()(before, PassContext(calibration=[torch.rand(1, 3, 6, 6)] * 2))
    assert torch.equal(program.states[0].reset, torch.zeros(1, 2, 6, 6))
    assert str(program) == str(before)
    assert not watched(before)


def test_nan_made_by_the_network_is_named():
    h = Hand()
    x = h.input("x", 1, 1, 4, 4)
    y = h.done(h(aten.conv2d, h(aten.log, x), h.const("w", h.rand(1, 1, 1, 1)), None))
    with pytest.raises(CalibrationError, match=r"log holds NaN[\s\S]*step 1 since reset"):
        Observe()(y, PassContext(calibration=[torch.ones(1, 1, 4, 4), -torch.ones(1, 1, 4, 4)]))


def test_refusals():
    with pytest.raises(CalibrationError, match="no calibration clip"):
        Observe()(cell())
    with pytest.raises(PipelineError, match="no policy 'window'"):
        Observe("window")(cell(), PassContext(calibration=[torch.rand(1, 3, 6, 6)]))

"""bias-correct: means come back, no shift is taken away twice, and nothing is kept that held-out frames do not want."""

import pytest
import torch
from handmade import reasons
from layers_help import CLIP, NAMES, layers, off, played, quantized, smooth

from vqc.calibration import as_clips, split
from vqc.errors import PipelineError
from vqc.learning.rollouts import result_errors
from vqc.passes.bias_correct import BiasCorrect
from vqc.pipeline import PassContext
from vqc.program import replace


def bent(program, by=0.03):
    """The quantized program with every integer weight's scale off: means are off everywhere."""
    program = program.clone()
    for name in [k for k in program.constants if k.endswith("_scale") and k.startswith("w")]:
        program.constants[name] = program.constants[name] * (1 + by)
    return program


def channel_shift(program, before, name, frames):
    """Mean difference of a layer's result from its float self, by channel."""
    shape = before.node(name).meta["val"].shape
    axis = -1 if name == "linear" else 1
    parts = []
    for clip in frames:
        a, b = (played(p, (name,), clip).view(len(clip), *shape).squeeze(1) for p in (program, before))
        parts.append((a - b).movedim(axis, 0).flatten(1))
    return torch.cat(parts, 1).mean(1)


def test_means_come_back_in_every_layer():
    before, nearest, context = quantized(3)
    frames = [clip[:n] for clip, n in zip(CLIP, split(as_clips(CLIP, before)).starts, strict=True)]
    after = BiasCorrect(rounds=3)(nearest, context)
    assert after.history[-1].rewrites["bias"] >= 4
    for name in NAMES:
        if after.node(name).meta.get("bias_corrected"):
            old, new = (channel_shift(p, before, name, frames).abs().max() for p in (nearest, after))
            assert new < 0.5 * old, name
    want = played(before)
    assert off(after, want) < off(nearest, want)
    assert "falls from" in after.history[-1].notes[0]


def test_a_shift_that_runs_through_layers_is_taken_away_once():
    """Each layer corrected for what it shows with none of the others corrected would overshoot by far."""
    before, nearest, context = quantized(8)
    wrong = bent(nearest)
    after = BiasCorrect()(wrong, context)
    twice = wrong.clone()
    for name in NAMES:  # the wrong way, by hand
        delta = -channel_shift(wrong, before, name, CLIP)
        n = twice.node(name)
        old = twice.constant(n.args[2]) if len(n.args) > 2 else None
        bias = twice.add_constant("moved", delta if old is None else old + delta)
        n.args = (*n.args[:2], bias, *n.args[3:])
    want = played(before)
    assert off(after, want) < min(off(twice, want), off(wrong, want))
    left = [channel_shift(p, before, "linear", CLIP).abs().max() for p in (after, twice)]
    assert left[0] < 0.3 * left[1]


def test_layers_without_a_bias_get_one_and_weights_stay():
    _, nearest, context = quantized(3)
    after = BiasCorrect()(nearest, context)
    assert nearest.node("conv2d_2").args[2] is None and after.constant(after.node("conv2d_2").args[2]) is not None
    for name in NAMES:
        assert str(after.node(name).args[1]) == str(nearest.node(name).args[1])
    assert torch.equal(played(after), played(BiasCorrect()(nearest, context)))


def test_layers_and_results_that_do_not_gain_are_kept():
    """What was learned on dark frames does not hold on the bright ones at the end of the clip."""
    clip = [[f * 0.1 for f in smooth((1, 3, 16, 16), 6)] + [1 - f * 0.1 for f in smooth((1, 3, 16, 16), 2, seed=4)]]
    before, nearest, context = quantized(3, clip=clip)
    after = BiasCorrect()(nearest, context)
    kept = reasons(after)
    assert "its error on held-out frames does not fall" in kept.values()
    parts = split(as_clips(clip, before))
    old, new = result_errors([nearest, after], before, parts)
    assert new <= old


def test_everything_is_undone_when_the_results_lose(monkeypatch):
    _, nearest, context = quantized(3)
    monkeypatch.setattr("vqc.learning.rollouts.result_errors", lambda *_: [1.0, 1.0])
    after = BiasCorrect()(nearest, context)
    assert str(after) == str(nearest) and "everything stays" in reasons(after)["results"]


def test_held_out_errors_by_hand():
    before, nearest, context = quantized(4, clip=CLIP[:1])
    parts = split(as_clips(CLIP[:1], before))
    (error,) = result_errors([nearest], before, parts)
    size = torch.Size(before.node("linear").meta["val"].shape).numel()
    a, b = (played(p, frames=CLIP[0])[size * parts.starts[0] :].double() for p in (nearest, before))
    assert error == pytest.approx(float((a - b).square().sum() / b.square().sum()), rel=1e-6)


def test_what_is_asked_for_wrongly():
    _, nearest, context = quantized()
    with pytest.raises(PipelineError, match="no float program"):
        BiasCorrect()(nearest, PassContext(calibration=CLIP))
    with pytest.raises(PipelineError, match="0 rounds"):
        BiasCorrect(rounds=0)(nearest, context)
    twin = layers()
    twin.node("conv2d").name = "other"
    assert "no layer of this name" in reasons(BiasCorrect()(nearest, replace(context, twin=twin)))["conv2d"]

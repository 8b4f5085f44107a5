"""reestimate-bn: mean and variance of every channel come back, folded into scales and biases, where it helps."""

import pytest
import torch
from handmade import Hand, aten, reasons
from layers_help import CLIP, NAMES, off, played, quantized, smooth

from vqc.errors import PipelineError
from vqc.learning.moments import PairedMoments
from vqc.passes.lower_integer import LowerInteger
from vqc.passes.reestimate_bn import GAMMA, ReestimateBN, held_match
from vqc.pipeline import PassContext


def bent(program):
    """The quantized program with every weight's scales wrong, by channel."""
    program = program.clone()
    g = torch.Generator().manual_seed(2)
    for name in [k for k in program.constants if k.endswith("_scale") and k.startswith("w")]:
        scale = program.constants[name]
        program.constants[name] = scale * (0.8 + 0.5 * torch.rand(scale.shape, generator=g))
    return program


def test_wrong_scales_are_found_again():
    """Scales off by up to 30 % in each channel: the right ones come back, whatever the layers before did."""
    before, nearest, context = quantized(8)
    wrong = bent(nearest)
    after = ReestimateBN()(wrong, context)
    assert after.history[-1].rewrites == {"layer": 5}
    for name in NAMES:
        w = [p.node(name).args[1] for p in (nearest, wrong, after)]
        w = [n if "per_channel" in str(n.target) else n.args[0] for n in w]
        right, off_by, mended = (p.constant(n.args[1]) for p, n in zip((nearest, wrong, after), w, strict=True))
        assert (mended / right - 1).abs().max() < 0.35 * (off_by / right - 1).abs().max(), name
        assert torch.equal(wrong.constant(w[1].args[0]), after.constant(w[2].args[0]))
    want = played(before)
    assert off(after, want) < 0.05 * off(wrong, want)


def test_few_bits_gain_and_the_integers_are_lowered():
    before, nearest, context = quantized(3)
    after = ReestimateBN()(nearest, context)
    want = played(before)
    assert off(after, want) < off(nearest, want)
    lowered = LowerInteger()(after)
    assert lowered.history[-1].rewrites["layer"] == 5
    a, b = played(after), played(lowered)
    assert (a - b).abs().max() < 0.02 * a.abs().max()


def test_nothing_is_kept_that_held_out_frames_do_not_want(monkeypatch):
    clip = [[f * 0.1 for f in smooth((1, 3, 16, 16), 6)] + [1 - f * 0.1 for f in smooth((1, 3, 16, 16), 2, seed=4)]]
    _, nearest, context = quantized(3, clip=clip)
    assert "its error on held-out frames does not fall" in reasons(ReestimateBN()(nearest, context)).values()
    _, nearest, context = quantized(3)
    monkeypatch.setattr("vqc.learning.rollouts.result_errors", lambda *_: [1.0, 1.0])
    after = ReestimateBN()(nearest, context)
    assert str(after) == str(nearest) and "everything stays" in reasons(after)["results"]


def test_shared_scales_are_declined():
    def grouped():
        h = Hand()
        x = h.input("x", 1, 6, 8, 8)
        w = h.const("w", h.rand(6, 2, 4, 4))
        return h.done(h(aten.conv_transpose2d.input, h(aten.relu, x), w, None, [2, 2], [1, 1], [0, 0], 3))

    clip = [smooth((1, 6, 8, 8), 4)]
    _, nearest, context = quantized(3, clip, grouped)
    kept = reasons(ReestimateBN()(nearest, context))
    assert kept == {"conv_transpose2d": "groups of its outputs share their weight scales"}


def test_lost_channels_are_not_amplified():
    seen, f = PairedMoments(), torch.randn(1, 2, 8, 8)
    seen.update(f, f * torch.tensor([0.01, 0.5]).view(1, 2, 1, 1))
    gamma, beta = held_match(seen)
    assert gamma.tolist() == pytest.approx([GAMMA[1], 2.0])
    assert (gamma * seen.mean("q") + beta).tolist() == pytest.approx(seen.mean("f").tolist())


def test_what_is_asked_for_wrongly():
    _, nearest, context = quantized()
    with pytest.raises(PipelineError, match="no float program"):
        ReestimateBN()(nearest, PassContext(calibration=CLIP))
    with pytest.raises(PipelineError, match="0 rounds"):
        ReestimateBN(rounds=0)(nearest, context)

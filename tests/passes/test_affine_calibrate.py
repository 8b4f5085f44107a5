"""affine-calibrate: what it repairs, what it keeps, and that nothing of it stays in the graph."""

import pytest
import torch
from handmade import Hand, aten, reasons, texts

from vqc.errors import CalibrationError, PipelineError
from vqc.learning.labels import Labels
from vqc.learning.motion import flicker
from vqc.passes.affine_calibrate import AffineCalibrate
from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize
from vqc.pipeline import PassContext, rollout


def recurrent(seed: int = 0):
    """conv(x) and a gated state: h' = (1 - z) h + z tanh(conv[a, h]); the result is a picture made from h'."""
    h = Hand(seed=seed)
    x, s = h.input("x", 1, 3, 12, 12), h.state("h", torch.zeros(1, 4, 12, 12))
    pad = ([1, 1], [1, 1])
    a = h(aten.relu, h(aten.conv2d, x, h.const("w0", h.rand(6, 3, 3, 3) * 0.5), h.const("b0", h.rand(6) * 0.2), *pad))
    both = h(aten.cat, [a, s], 1)
    z = h(aten.sigmoid, h(aten.conv2d, both, h.const("wz", h.rand(4, 10, 3, 3) * 0.2), h.const("bz", h.rand(4)), *pad))
    c = h(aten.tanh, h(aten.conv2d, both, h.const("wc", h.rand(4, 10, 3, 3) * 0.2), h.const("bc", h.rand(4)), *pad))
    new = h(aten.add.Tensor, s, h(aten.mul.Tensor, z, h(aten.sub.Tensor, c, s)))
    b = h(aten.relu, h(aten.conv2d, new, h.const("w1", h.rand(5, 4, 3, 3) * 0.4), h.const("b1", h.rand(5) * 0.1), *pad))
    y = h(aten.sigmoid, h(aten.conv2d, b, h.const("w2", h.rand(1, 5, 1, 1)), h.const("b2", h.rand(1))))
    return h.done(y, states=[new])


def moving(steps: int, seed: int = 3):
    """A smooth pattern that moves one pixel to the right a step."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 14, 14 + steps, generator=g), 3, 1)
    return [wide[..., steps - t : steps - t + 12].contiguous() for t in range(steps)]


def quantized(twin, clip, **bits):
    return Quantize(headroom=0.0, **bits)(Observe()(twin, PassContext(calibration=clip)))


def error(program, twin, clip, first: int = 0):
    steps = [[x] for x in clip]
    pairs = zip(rollout(program, steps), rollout(twin, steps), strict=True)
    return float(torch.stack([(a[0] - b[0]).square().mean() for a, b in pairs][first:]).mean())


def calibrated(program, twin, clip, seed: int = 0, workdir=None, labels=None, progress=None, **options):
    context = PassContext(calibration=clip, twin=twin, seed=seed, workdir=workdir, labels=labels, progress=progress)
    return AffineCalibrate(**options)(program, context)


LOW = {"weight_bits": 3, "activation_bits": 4}


def damaged(program, node: str, gain: torch.Tensor, shift: torch.Tensor):
    """A layer's weight scales and bias as they are when its result is gain y + shift."""
    program = program.clone()
    layer = program.node(node)
    scale, bias = layer.args[1].args[1].target, layer.args[2].target
    program.constants[scale] = program.constants[scale] * gain
    program.constants[bias] = program.constants[bias] * gain + shift
    return program


def test_closed_form_repairs_a_scale_and_shift_exactly():
    twin, clip = recurrent(), moving(8)
    good = quantized(twin, clip)
    gain, shift = torch.tensor([0.5, 2.0, 1.25, 0.8, 1.0, 1.5]), torch.tensor([0.3, -0.2, 0.0, 0.1, 0.05, -0.4])
    bad = damaged(good, "conv2d", gain, shift)
    after = calibrated(bad, twin, clip, iterations=0, sweeps=6)
    assert error(after, twin, clip, 6) < 1e-3 * error(bad, twin, clip, 6)
    assert error(after, twin, clip, 6) < 2 * error(good, twin, clip, 6)
    scale, bias = (good.node("conv2d").args[1].args[1].target, good.node("conv2d").args[2].target)
    assert torch.allclose(after.constants[scale], good.constants[scale], rtol=0.02)
    assert torch.allclose(after.constants[bias], good.constants[bias], atol=0.02)
    assert after.history[-1].rewrites == {"layer": 4}
    assert any("kept is what stood after the closed form" in n for n in after.history[-1].notes)


def test_learning_lowers_the_error_of_frames_it_never_saw():
    twin, clip = recurrent(), moving(12)
    before = quantized(twin, clip, **LOW)
    closed = calibrated(before, twin, clip, iterations=0)
    learned = calibrated(before, twin, clip, iterations=60, rate=0.01, grid_rate=0.01)
    errors = [error(p, twin, clip, 9) for p in (before, closed, learned)]
    assert errors[1] < errors[0] and errors[2] < 0.7 * errors[1]
    other = moving(10, seed=9)
    assert error(learned, twin, other) < error(before, twin, other)


def test_flow_assistance_lowers_flicker():
    """Against a program learned without it, on frames never seen; the motion is known: one pixel a step."""
    twin, clip, other = recurrent(), moving(12), moving(10, seed=8)
    flow = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 12, 12).contiguous()
    valid = (torch.arange(12) < 11).view(1, 1, 1, 12).expand(1, 1, 12, 12)
    known = Labels(motion=[[(flow, valid)] * 11])
    before = quantized(twin, clip, **LOW)

    def flickers(program):
        steps = [[x] for x in other]
        errors = [a[0] - b[0] for a, b in zip(rollout(program, steps), rollout(twin, steps), strict=True)]
        return sum(float(flicker(a, b, (flow, valid))) for a, b in zip(errors, errors[1:], strict=False))

    learning = {"iterations": 60, "rate": 0.01, "grid_rate": 0.01}
    plain = calibrated(before, twin, clip, **learning)
    steady = calibrated(before, twin, clip, labels=known, flow_weight=1.0, **learning)
    assert flickers(steady) < 0.92 * flickers(plain) < 0.92 * flickers(before)


def test_still_is_a_motion_of_zero():
    twin, clip = recurrent(), moving(10)
    before = quantized(twin, clip, **LOW)
    nowhere = Labels(motion=[[(torch.zeros(1, 2, 12, 12), torch.ones(1, 1, 12, 12, dtype=torch.bool))] * 9])
    learning = {"iterations": 10, "rate": 0.01, "flow_weight": 0.5}
    ways: list[dict] = [{"flow": "still"}, {"labels": nowhere}, {}]
    found = [calibrated(before, twin, clip, **learning, **way) for way in ways]
    same = [all(torch.equal(c, p.constants[k]) for k, c in found[0].constants.items()) for p in found]
    assert same == [True, True, False]


def test_decay_holds_factors_and_shifts_where_they_began():
    """Pulled back the whole way after every step, nothing is learned."""
    twin, clip = recurrent(), moving(10)
    before = quantized(twin, clip, **LOW)
    learning = {"iterations": 20, "start": "none", "rate": 0.01, "grid_rate": 0.0}
    free, held = (calibrated(before, twin, clip, **learning, decay=d) for d in (0.0, 1e6))
    assert free.history[-1].rewrites and not held.history[-1].rewrites
    part = calibrated(before, twin, clip, **learning, decay=10.0)

    def moved(program):
        return sum(float((program.constants[k] - before.constants[k]).abs().sum()) for k in ("b0", "b1"))

    assert 0 < moved(part) < 0.9 * moved(free)


def test_the_graph_is_as_it_was():
    """Nothing is left but other constants, and steps of activations."""
    twin, clip = recurrent(), moving(8)
    before = quantized(twin, clip, **LOW)
    after = calibrated(before, twin, clip, iterations=20, refresh=10, rate=0.01, grid_rate=0.01)
    assert [(n.name, n.op, n.target) for n in after.nodes] == [(n.name, n.op, n.target) for n in before.nodes]
    for a, b in zip(after.calls, before.calls, strict=True):
        assert [str(x) for x in a.args if not isinstance(x, float)] == [
            str(x) for x in b.args if not isinstance(x, float)
        ]
    changed = {k for k in after.constants if not torch.equal(after.constants[k], before.constants[k])}
    assert {k.rsplit("_", 1)[-1] for k in changed if "_" in k} == {"scale"} and "b0" in changed
    moved = [texts(after)[i] for i, line in enumerate(texts(before)) if line != texts(after)[i]]
    assert moved and all("quantize" in line for line in moved)


def test_what_was_judged_is_what_the_program_computes():
    """The note's held-out error, from quantizers that learn, is that of the program they were written into."""
    twin, clip = recurrent(), moving(8)
    before = quantized(twin, clip, **LOW)
    after = calibrated(before, twin, clip, iterations=10, refresh=5)
    told = min(float(part.split()[0]) for part in after.history[-1].notes[0].split(": ")[1].split(", "))
    assert error(after, twin, clip, 6) / error(before, twin, clip, 6) == pytest.approx(told, rel=1e-3)


def test_the_same_seed_gives_the_same_bits():
    twin, clip = recurrent(), moving(8)
    before = quantized(twin, clip, **LOW)
    a, b, c = (calibrated(before, twin, clip, seed=s, iterations=8, refresh=4, start="none") for s in (1, 1, 2))
    assert same_bits(a, b) and not same_bits(a, c)


def same_bits(a, b):
    lines = [str([(n.name, n.args) for n in p.nodes]) for p in (a, b)]
    return lines[0] == lines[1] and all(torch.equal(a.constants[k], b.constants[k]) for k in a.constants)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 7, 9, 12])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path, at):
    twin, clip = recurrent(), moving(8)
    before = quantized(twin, clip, **LOW)
    how = {"iterations": 12, "refresh": 4, "start": "none"}
    whole = calibrated(before, twin, clip, **how)
    learned = []

    def kill(text, done, total):
        if text.endswith("learning") and done == at:
            raise Killed

    with pytest.raises(Killed):
        calibrated(before, twin, clip, workdir=tmp_path, progress=kill, **how)
    resumed = calibrated(before, twin, clip, workdir=tmp_path, progress=lambda *a: learned.append(a), **how)
    assert same_bits(whole, resumed) and whole.history[-1] == resumed.history[-1]
    begun = [done for text, done, _ in learned if text.endswith("learning")]
    assert begun[0] == (at - 1) // 4 * 4 + 1
    learned.clear()
    again = calibrated(before, twin, clip, workdir=tmp_path, progress=lambda *a: learned.append(a), **how)
    assert same_bits(whole, again) and not any(text.endswith("learning") for text, *_ in learned)


def test_holding_one_step_at_a_time_changes_nothing():
    twin, clip = recurrent(), moving(8)
    before = quantized(twin, clip, **LOW)
    a, b = (calibrated(before, twin, clip, iterations=4, state=0.1, recompute=r) for r in (False, True))
    assert all(torch.allclose(a.constants[k], b.constants[k], atol=1e-6) for k in a.constants)


def test_nothing_is_kept_that_is_worse():
    twin, clip = recurrent(), moving(8)
    before = quantized(twin, clip)
    after = calibrated(before, twin, clip, start="none", iterations=4, rate=0.5, grid_rate=0.5, refresh=2)
    assert same_bits(before, after)
    assert "error on held-out frames does not fall" in reasons(after)["all layers"]


def test_divergence_keeps_what_was_and_says_so():
    twin, clip = recurrent(), moving(8)
    before = quantized(twin, clip)
    after = calibrated(before, twin, clip, start="none", iterations=6, grid_rate=1e30, refresh=10)
    assert same_bits(before, after)
    assert "learning diverged: the loss or its gradient is not finite at iteration" in reasons(after)["all layers"]


def test_labels_are_what_is_learned():
    """With a truth unlike the twin, the result moves towards the truth."""
    twin, clip, true = recurrent(), moving(12), recurrent()
    before = quantized(twin, clip)
    true.constants["b1"] = true.constants["b1"] - 0.3
    truth = [y[0] for y in rollout(true, [[x] for x in clip])]
    after = calibrated(before, twin, clip, labels=[truth], start="none", iterations=30, rate=0.05, refresh=30)
    results = [y[0] for y in rollout(after, [[x] for x in clip])]
    was = [y[0] for y in rollout(before, [[x] for x in clip])]

    def far(a):
        return float(torch.stack([(x - y).square().mean() for x, y in zip(a, truth, strict=True)][9:]).mean())

    assert far(results) < 0.2 * far(was)
    assert any("12 with labels" in n for n in after.history[-1].notes)


def test_windows_begin_in_the_middle_of_a_clip_and_clips_may_be_short():
    twin = recurrent()
    clips = [[x] for x in moving(1)], [[x] for x in moving(3)], [[x] for x in moving(9)]
    clips = [[x[0] for x in c] for c in clips]
    before = quantized(twin, clips, **LOW)
    after = calibrated(before, twin, clips, iterations=4, frames=4)
    assert "4 frames learned from, 9 held out, 3 clips" in after.history[-1].notes[-1]


def test_refusals():
    twin, clip = recurrent(), moving(4)
    before = quantized(twin, clip)
    with pytest.raises(PipelineError, match="no float program"):
        AffineCalibrate()(before, PassContext(calibration=clip))
    with pytest.raises(PipelineError, match="no quantized layer"):
        calibrated(twin, twin, clip)
    with pytest.raises(CalibrationError, match="1 frame"):
        calibrated(before, twin, clip[:1])
    for option in ({"start": "warm"}, {"flow": "best"}, {"flow_target": "x"}, {"granularity": "tensor"}):
        with pytest.raises(PipelineError, match="has no " + next(iter(option))):
            calibrated(before, twin, clip, **option)
    with pytest.raises(PipelineError, match="option frames of affine-calibrate is 0"):
        calibrated(before, twin, clip, frames=0)
    with pytest.raises(PipelineError, match="no result 'alpha'"):
        calibrated(before, twin, clip, results=("alpha",))
    with pytest.raises(CalibrationError, match="truth of result y is torch.float32"):
        calibrated(before, twin, clip, labels=Labels([[torch.zeros(1, 1, 3, 3)] * 4], result="y"))

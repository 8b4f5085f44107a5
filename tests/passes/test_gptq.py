"""gptq: every kind of layer, what is kept and why, what the next layers see, and the same seed's bits."""

import pytest
import torch
from handmade import Hand, aten, reasons, run
from layers_help import CLIP, NAMES, off, played, quantized, smooth

from vqc.errors import CalibrationError, PipelineError
from vqc.learning.rollouts import side_by_side
from vqc.passes.gptq import Gptq
from vqc.passes.lower_integer import LowerInteger
from vqc.pipeline import PassContext, parse
from vqc.program import replace


@pytest.mark.parametrize(("bits", "less"), [(4, 0.6), (3, 0.5)])
def test_every_kind_of_layer_comes_nearer_to_its_float_self(bits, less):
    before, nearest, context = quantized(bits, activation_bits=8)
    after = Gptq(waves=5)(nearest, context)
    assert after.history[-1].rewrites == {"layer": 5} and not reasons(after)
    for name in NAMES:
        want = played(before, (name,))
        assert off(after, want, name) < off(nearest, want, name), name
    want = played(before)
    assert off(after, want) < (1 - less) * off(nearest, want)
    for n in after.calls:
        if "int" in str(n.args[0]) and "dequantize" in str(n.target):
            w = after.constant(n.args[0])
            assert w is None or (w.dtype == torch.int8 and w.abs().max() < 2 ** (bits - 1))


def test_the_integers_are_lowered_like_any_others():
    _, nearest, context = quantized()
    after = Gptq()(nearest, context)
    lowered = LowerInteger()(after)
    assert lowered.history[-1].rewrites["layer"] == 5
    a, b = played(after), played(lowered)
    assert (a - b).abs().max() < 0.02 * a.abs().max()


def test_scales_and_activations_stay_and_the_picture_loses_nothing_more():
    """A picture's grid shifts the input; the bias that takes the shift away goes with the new integers."""
    before, nearest, context = quantized()
    assert nearest.node("conv2d").meta["offset"].abs().max() > 0
    after = Gptq()(nearest, context)
    for i, name in enumerate(NAMES):
        old, new = nearest.node(name), after.node(name)
        assert str(old.args[0].args) == str(new.args[0].args)
        w, v = (n.args[1] if "per_channel" in str(n.args[1].target) else n.args[1].args[0] for n in (old, new))
        assert torch.equal(nearest.constant(w.args[1]), after.constant(v.args[1]))
        assert not torch.equal(nearest.constant(w.args[0]), after.constant(v.args[0])), i
    flat = torch.full((1, 3, 16, 16), 77 / 255)
    inside = [run(p.with_outputs(["conv2d"]), [flat])[-1][..., 1:-1, 1:-1] for p in (before, after)]
    weight = after.node("conv2d").args[1]
    real = run(after.with_outputs([weight.name]), [flat])[-1]
    picture = run(before.with_outputs(["div"]), [flat])[-1][..., :3, :3]
    want = (real * picture).sum((1, 2, 3)) + before.constants["b0"]  # the new weight on the undisturbed picture
    torch.testing.assert_close(inside[1][0, :, 4, 4], want, rtol=1e-4, atol=1e-4)


def test_options_change_the_result_and_the_seed_repeats_it():
    before, nearest, context = quantized(3)
    texts = ["gptq", "gptq{order=natural}", "gptq{beta=0.1}", "gptq{alpha=0.25}", "gptq{damp=0.1}", "gptq{samples=50}",
             "gptq{waves=1}"]  # fmt: skip
    found = [played(parse(t).run(nearest, context)) for t in texts]
    for i, a in enumerate(found):
        assert all(not torch.equal(a, b) for b in found[i + 1 :]), texts[i]
    assert torch.equal(found[0], played(Gptq()(nearest, context)))
    assert torch.equal(found[0], played(parse("gptq{beta=0}").run(nearest, context)))
    assert not torch.equal(found[5], played(Gptq(samples=50)(nearest, replace(context, seed=1))))
    want = played(before)
    assert all(float((f - want).square().mean()) < off(nearest, want) for f in found)


def test_the_asymmetric_term_mends_what_the_layers_before_lost():
    before, nearest, context = quantized(3, activation_bits=4)
    want = played(before, ("linear",))
    assert off(Gptq(alpha=0.5, waves=5)(nearest, context), want, "linear") < off(
        Gptq(waves=5)(nearest, context), want, "linear"
    )


def test_layers_are_kept_when_held_out_frames_lose(monkeypatch):
    """Learned frames are flat, held-out ones noise: what helps on the former harms on the latter."""
    monkeypatch.setattr("vqc.learning.rollouts.result_errors", lambda *_: [1.0, 0.5])  # layers alone are judged
    noise = torch.Generator().manual_seed(5)
    flat = [torch.full((1, 3, 16, 16), 0.2 + 0.1 * i) for i in range(6)]
    clip = [[*flat, *(torch.rand(1, 3, 16, 16, generator=noise) for _ in range(2))]]
    _, nearest, context = quantized(clip=clip)
    after = Gptq(damp=1e-6)(nearest, context)
    kept = reasons(after)
    assert kept and all("its error on held-out frames would be" in r for r in kept.values())
    for name in kept:
        assert str(after.node(name).args) == str(nearest.node(name).args)
    assert after.history[-1].rewrites.get("layer", 0) + len(kept) == 5


def test_everything_is_undone_when_the_results_lose(monkeypatch):
    """Every layer is better on its own inputs, the results are not: what was there stays, with the reason."""
    _, nearest, context = quantized()
    monkeypatch.setattr("vqc.learning.rollouts.result_errors", lambda *_: [1.0, 1.5])
    after = Gptq()(nearest, context)
    assert str(after) == str(nearest) and after.history[-1].rewrites == {}
    assert "would be 1.5, it is 1 " in reasons(after)["results"]
    assert torch.equal(played(after), played(nearest))


def test_what_has_no_integers_or_shares_them():
    before, nearest, context = quantized(keep=("conv2d_1",))
    assert Gptq()(nearest, context).history[-1].rewrites == {"layer": 4}
    twin = before.clone()
    twin.node("linear").name = "other"
    kept = reasons(Gptq()(nearest, replace(context, twin=twin)))
    assert kept == {"linear": "the float program has no layer of this name with a weight of this shape"}


def test_groups_of_inputs():
    def wide():
        h = Hand()
        x = h.input("x", 1, 3, 8, 8)
        flat = h(aten.view, h(aten.sigmoid, x), [3, 64])
        return h.done(h(aten.linear, flat, h.const("w", h.rand(5, 64) * torch.logspace(0, 1, 64)), None))

    clip = smooth((1, 3, 8, 8), 40)
    before, nearest, context = quantized(3, clip, wide)
    frames = smooth((1, 3, 8, 8), 5, seed=9)
    want = played(before, frames=frames)
    whole, grouped = Gptq()(nearest, context), Gptq(group=16)(nearest, context)
    assert grouped.history[-1].rewrites == {"grouped layer": 1}
    errors = [float((played(p, frames=frames) - want).square().mean()) for p in (nearest, whole, grouped)]
    assert errors[2] < 0.7 * errors[0]
    assert "multiple of 24" in reasons(Gptq(group=24)(nearest, context))["linear"]
    _, conv, context = quantized()
    assert "linear layers only" in reasons(Gptq(group=2)(conv, context))["conv2d_1"]


def test_what_is_asked_for_wrongly():
    _, nearest, context = quantized()
    with pytest.raises(PipelineError, match="no float program"):
        Gptq()(nearest, PassContext(calibration=CLIP))
    with pytest.raises(CalibrationError, match="too few"):
        Gptq()(nearest, replace(context, calibration=CLIP[0][:1]))
    with pytest.raises(PipelineError, match="no order"):
        Gptq(order="best")(nearest, context)
    with pytest.raises(PipelineError, match="beta 1"):
        Gptq(beta=1.0)(nearest, context)


def test_layers_not_yet_done_multiply_their_float_weight(monkeypatch):
    """Errors of nearest rounding in front of a layer will be gone once it runs: it must not learn to mend them."""
    before, nearest, context = quantized(2)
    seen = []

    def spy(program, *rest):
        seen.append([program.node(name).args[1].op for name in NAMES])
        if len(seen) == 1:  # nothing is done: only activations are rounded
            want = played(before)
            assert off(program, want) < 0.05 * off(nearest, want)
        return side_by_side(program, *rest)

    monkeypatch.setattr("vqc.passes.gptq.side_by_side", spy)
    after = Gptq(waves=5)(nearest, context)
    assert seen == [["call_function"] * i + ["get_attr"] * (5 - i) for i in range(5)]
    assert all(after.node(name).args[1].op == "call_function" for name in NAMES)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("at", "group"), [(3, -1), (12, -1), (13, -1), (60, -1), (30, 24)])
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bits(tmp_path, at, group):
    """Five waves of 12 frames; group=24 fits the linear layer and no other."""
    _, nearest, context = quantized()
    how, seen, again = Gptq(waves=5, alpha=0.25, group=group), [], []

    def kill(text, done, total):
        seen.append(done)
        if len(seen) == at:
            raise Killed

    with pytest.raises(Killed):
        how(nearest, replace(context, workdir=tmp_path, progress=kill))
    resumed = how(nearest, replace(context, workdir=tmp_path, progress=lambda _t, done, _n: again.append(done)))
    whole = how(nearest, context)
    assert len(again) == 60 - (at - 1) // 12 * 12
    assert str(resumed) == str(whole) and resumed.history[-1] == whole.history[-1]
    assert resumed.constants.keys() == whole.constants.keys()
    assert all(torch.equal(resumed.constants[k], c) for k, c in whole.constants.items())
    assert whole.history[-1].rewrites == ({"layer": 5} if group < 0 else {"grouped layer": 1})


def test_another_seed_is_another_work(tmp_path):
    _, nearest, context = quantized()
    found = []
    for seed in (0, 1, 0):
        frames = []
        Gptq(waves=2)(nearest, replace(context, seed=seed, workdir=tmp_path, progress=lambda *_, f=frames: f.append(1)))
        found.append(len(frames))
    assert found == [24, 24, 0] and len(list(tmp_path.iterdir())) == 2

"""mimic: a program in training form learns what its twin gives, and keeps what held-out frames confirm."""

import dataclasses
import math

import pytest
import torch
from handmade import reasons
from matting_help import discs, matting

from vqc.calibration import as_clips
from vqc.errors import PipelineError
from vqc.learning import mimicking
from vqc.learning.augment import Augmented, moved, recoloured
from vqc.learning.mimicking import Apprentice, Weights, lesson_loss, live_start, prepare, results_loss, run_live
from vqc.learning.signs import sign_within
from vqc.passes.mimic import Mimic
from vqc.pipeline import PassContext, parse, rollout
from vqc.train.losses import matting_loss

CLIPS = discs(2, 8)
QUICK = {"steps": 24, "window": 2, "length": 4, "pool": 4, "looks": 3, "rate": 3e-3}


def begun(twin, text="levels=1,bases=1,sparse=0"):
    return parse(f"shb-decoder{{{text}}}").run(twin, PassContext(calibration=CLIPS))


def taught(twin, low, seed=0, **options):
    return Mimic(**(QUICK | options))(low, PassContext(calibration=CLIPS, twin=twin, seed=seed))


def same(a, b):
    return a.constants.keys() == b.constants.keys() and all(torch.equal(a.constants[k], b.constants[k])
                                                            for k in a.constants)  # fmt: skip


def mattes(program, clip):
    return torch.stack([out[1][0] for out in rollout(program, [(s,) for s in clip])])


def test_learns_where_it_is_judged():
    twin = matting()
    low = begun(twin)
    program = taught(twin, low, steps=120, rate=1e-3, other_rate=1e-3, augment=False)
    assert program.history[-1].rewrites["layer of signs"] == 4
    ends = [c[6:] for c in CLIPS]

    def lost(p):
        return sum(float((mattes(p, c)[6:] - mattes(twin, c)[6:]).abs().mean()) for c in CLIPS)

    assert ends and lost(program) < 0.9 * lost(low)
    assert any(not torch.equal(low.constants[k].sign(), program.constants[k].sign())
               for k in low.constants if k.endswith(".weight") and ".bin" in k)  # fmt: skip
    assert torch.equal(low.constants["enc1.weight"], program.constants["enc1.weight"])  # not behind a sign


@pytest.mark.parametrize("learn, moves", [("units", False), ("behind", True), ("all", True)])
def test_what_learns(learn, moves):
    twin = matting()
    low = begun(twin)
    who = Apprentice(low, twin, learn, as_clips(CLIPS, low), 1.5)
    assert ("pha.weight" in who.learnables) == moves
    assert ("enc1.weight" in who.learnables) == (learn == "all")
    latent = {k for k, p in who.learnables.items() if p.latent}
    assert latent == {f"{k}.bin3.weight" for k in ("up1", "gate", "new", "out1")}
    frozen = {n.name for n in who.frozen}
    assert ("conv2d" in frozen) == (learn != "all")


def test_frozen_and_live_together_are_the_program():
    twin = matting()
    low = begun(twin, "levels=1,bases=1")
    who = Apprentice(low, twin, "behind", as_clips(CLIPS, low), 1.5)
    lesson = prepare(who, [(s,) for s in CLIPS[0]], True)
    values, state = run_live(who, lesson, 0, len(CLIPS[0]), live_start(who))
    want = rollout(low, [(s,) for s in CLIPS[0]])
    for found, step in zip(values, want, strict=True):
        for n, w in zip(who.results, step, strict=False):
            torch.testing.assert_close(found[n].detach(), w)
    first, second = run_live(who, lesson, 0, 3, live_start(who)), None
    second, end = run_live(who, lesson, 3, len(CLIPS[0]), [s.detach() for s in first[1]])
    torch.testing.assert_close(end[0], state[0])
    twins = rollout(twin, [(s,) for s in CLIPS[0]])
    assert all(torch.equal(a, b) for a, b in zip(lesson.results[4], twins[4], strict=False))


def test_losses():
    """Of the twin's own values the loss is 0; of others each term is what its definition says."""
    twin = matting()
    low = begun(twin, "levels=1,bases=1")
    who = Apprentice(low, twin, "behind", as_clips(CLIPS, low), 1.5)
    lesson = prepare(who, [(s,) for s in CLIPS[0][:3]], True)
    values, _ = run_live(who, lesson, 0, 3, live_start(who))
    right = [{n: lesson.results[t][i] for i, n in enumerate(who.results)}
             | {n: lesson.taps[t][n] for n in who.taps} for t in range(3)]  # fmt: skip
    total, results = lesson_loss(who, right, lesson, 0, Weights(1.0, 0.0, 0.0))
    assert float(total) == float(results) == 0
    off = [dict(step) for step in right]
    relu = next(n for n in who.taps if n.name == "relu_3")
    for t, step in enumerate(off):
        step[relu] = step[relu] + lesson.taps[t][relu].square().mean().sqrt()  # by its power: 1
    total, _ = lesson_loss(who, off, lesson, 0, Weights(0.5, 0.0, 0.0))
    assert float(total) == pytest.approx(0.5 / len(who.taps), rel=1e-4)


def test_results_count_as_rvm_counts_them():
    g = torch.Generator().manual_seed(0)
    fgr, pha, true_fgr, true_pha = (torch.rand(4, 1, c, 16, 16, generator=g) for c in (3, 1, 3, 1))
    true_pha = (true_pha - 0.5).clamp(min=0)
    given, want = [list(s) for s in zip(fgr, pha, strict=True)], [list(s) for s in zip(true_fgr, true_pha, strict=True)]
    terms = matting_loss(*(x.transpose(0, 1) for x in (fgr, pha, true_fgr, true_pha)))
    assert float(results_loss(given, want)) == pytest.approx(float(terms["total"]), rel=1e-5)


def test_mimicking_compares_directions_of_encoder_features():
    """LBM by hand, with the mask; only nodes of an encoder count."""
    twin = matting()
    low = begun(twin, "levels=1,bases=1")
    for n in low.calls:
        if n.name == "relu_2":
            n.meta["encoder"] = True
    who = Apprentice(low, twin, "behind", as_clips(CLIPS, low), 1.5)
    lesson = prepare(who, [(CLIPS[0][2],)], True)
    values, _ = run_live(who, lesson, 0, 1, live_start(who))
    (node,) = who.encoder
    a, b = values[0][node].detach(), lesson.taps[0][node]
    a, b = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (a, b))
    mask = torch.nn.functional.interpolate(values[0][who.mask].detach(), a.shape[2:], mode="bilinear")
    want = float(((a - b).square().sum(1, keepdim=True) * mask).sum())
    with_, without = (float(lesson_loss(who, values, lesson, 0, Weights(0.0, m, 0.0))[0].detach()) for m in (1.0, 0.0))
    assert want > 0 and with_ - without == pytest.approx(want, rel=1e-3)


def test_gradients_of_signs_are_as_wide_as_their_inputs():
    x = torch.tensor([[-7.0, -1.0, 0.5, 5.0]]).view(1, 4, 1, 1).requires_grad_()
    tau, width = torch.zeros(4, requires_grad=True), torch.full((4,), 4.0)
    y = sign_within(x, tau, width, "clip")
    assert y.flatten().tolist() == [-1, -1, 1, 1]
    y.sum().backward()
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([0, 0.25, 0.25, 0]))
    torch.testing.assert_close(tau.grad, -x.grad.flatten())


def test_lessons():
    """The same number is the same lesson; changed ones are pictures in [0, 1]; without change they are as they were."""
    twin = matting()
    clips = [[(s,) for s in c] for c in CLIPS]
    a, b = (Augmented(twin, clips, 4, 0, True, 1.0).steps(3) for _ in range(2))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))
    assert all(float(s[0].min()) >= 0 and float(s[0].max()) <= 1 and s[0].shape == (1, 3, 32, 32) for s in a)
    plain = Augmented(twin, clips, 4, 0, False, 0.0).steps(3)
    assert any(all(torch.equal(s[0], c[t + i]) for i, s in enumerate(plain)) for c in CLIPS for t in range(5))
    g = torch.Generator().manual_seed(0)
    frames = torch.cat(CLIPS[0])
    assert moved(frames, g).shape == recoloured(frames, g).shape == frames.shape


def test_the_same_seed_gives_the_same_bits_and_another_others():
    twin = matting()
    low = begun(twin)
    a, b, c = (taught(twin, low, seed=s, steps=12) for s in (0, 0, 1))
    assert same(a, b) and not same(a, c)


def test_killed_it_goes_on_and_ends_with_the_same_bits(tmp_path):
    twin = matting()
    low = begun(twin)
    want = taught(twin, low)

    class Killed(Exception):
        pass

    def kill(text, done, total):
        if done == 9:  # visits of two steps each, looks at 4, 8 and 12
            raise Killed

    context = PassContext(calibration=CLIPS, twin=twin, workdir=tmp_path, progress=kill)
    with pytest.raises(Killed):
        Mimic(**QUICK)(low, context)
    done = []
    got = Mimic(**QUICK)(low, dataclasses.replace(context, progress=lambda text, k, total: done.append(k)))
    assert done == [9, 10, 11, 12] and same(got, want)


def test_what_diverges_or_does_not_help_changes_nothing(monkeypatch):
    twin = matting()
    low = begun(twin)
    program = taught(twin, low, rate=30.0, other_rate=30.0, looks=2)
    assert same(program, low) and "it stays as it was" in reasons(program)["matting"]
    loss = mimicking.lesson_loss
    monkeypatch.setattr("vqc.passes.mimic.lesson_loss", lambda *a: (loss(*a)[0] * math.nan, loss(*a)[1]))
    program = taught(twin, low)
    assert same(program, low) and "learning diverged" in reasons(program)["matting"]


def test_nothing_binary_and_bad_options():
    twin = matting()
    with pytest.raises(PipelineError, match="no binary layer"):
        taught(twin, twin)
    for bad in ({"steps": 0}, {"learn": "some"}, {"rate": 0.0}, {"reach": -1.0}, {"looks": 0}):
        with pytest.raises(PipelineError):
            taught(twin, begun(twin), **bad)

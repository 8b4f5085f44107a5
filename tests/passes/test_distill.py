"""distill: bounds that learn from teachers, kept only where held-out frames gain, resumed after a kill."""

import dataclasses
import math
import operator
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "learning"))
from handmade import Hand, aten, reasons
from networks import clip, conv, error, low_bits, recurrent

from vqc.calibration import Clips, as_clips
from vqc.calibration.split import split
from vqc.errors import PipelineError
from vqc.frames import Frames
from vqc.learning import distillation
from vqc.learning.distillation import Targets, Window, windows
from vqc.learning.quantizers import _FakeQuantize
from vqc.learning.store import Store
from vqc.passes.distill import Distill
from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize
from vqc.pipeline import PassContext, parse

FRAMES = clip(10)
QUICK = {"steps": 24, "teacher_steps": 8, "looks": 3, "rate": 0.05}
qd = torch.ops.quantized_decomposed


def still(seed: int = 0):
    """Three convolutions with a residual, no state."""
    h = Hand("still", seed)
    x = h.input("x", 1, 3, 16, 16)
    a = h(aten.relu, conv(h, "first", x, 8, 3))
    b = h(aten.add.Tensor, a, conv(h, "second", a, 8, 8))
    return h.done(conv(h, "head", h(aten.relu, b), 3, 8))


def halves(seed: int = 0):
    """One half of a layer's result goes through a recurrence: what leaves the first block is a list of both."""
    h = Hand("halves", seed)
    both = h(aten.split.Tensor, conv(h, "first", h.input("x", 1, 3, 16, 16), 8, 3), 4, 1)
    kept, seen = (h(operator.getitem, both, i) for i in (0, 1))
    state = h.state("r", torch.zeros(1, 4, 16, 16))
    new = h(aten.tanh, conv(h, "gate", h(aten.cat, [seen, state], 1), 4, 8))
    return h.done(conv(h, "head", h(aten.cat, [kept, new], 1), 3, 8), states=[new])


def taught(twin, text="activation_bits=3,weight_bits=4,method=minmax,granularity=tensor", seed=0, **options):
    """(quantized, distilled), the history of the last pass in the latter."""
    low = low_bits(twin, [FRAMES], text)
    context = PassContext(calibration=[FRAMES], twin=twin, seed=seed)
    return low, Distill(**(QUICK | options))(low, context)


def constants(program):
    found = {k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)}
    grids = [n.args[1:] for n in program.calls if n.target is qd.quantize_per_tensor.default]
    return found, grids


def same(a, b) -> bool:
    (ca, ga), (cb, gb) = constants(a), constants(b)
    return ga == gb and ca.keys() == cb.keys() and all(torch.equal(ca[k], cb[k]) for k in ca)


@pytest.mark.parametrize("network", [still, recurrent])
@pytest.mark.parametrize("options", [
    {}, {"train_weights": "scales"}, {"train_weights": "rounding", "steps": 240, "rate": 0.01, "feature_weight": 0.5},
    {"teachers": (8,)}, {"teachers": (8, 4), "feature_weight": 0.5, "steps": 48},
])  # fmt: skip
def test_learns_where_it_is_judged(network, options):
    twin = network()
    low, program = taught(twin, **options)
    assert program.history[-1].rewrites["activation"] >= 2
    assert program.history[-1].rewrites.get("layer", 0) == (0 if "train_weights" not in options else
                                                            low.history[-1].rewrites["weight"])  # fmt: skip
    assert error(program, twin, FRAMES[7:]) < 0.95 * error(low, twin, FRAMES[7:])
    notes = [n.partition(":")[0] for n in program.history[-1].notes if "dB on held-out" in n]
    assert notes[-1] == "student" and set(notes[:-1]) <= {f"{b}-bit teacher" for b in options.get("teachers", ())}
    if "train_weights" not in options:
        assert constants(program)[0].keys() == constants(low)[0].keys()
        assert all(torch.equal(v, constants(low)[0][k]) for k, v in constants(program)[0].items() if "int4" in k)


def test_what_leaves_a_block_may_be_a_list():
    twin = halves()
    low, program = taught(twin)
    assert program.history[-1].rewrites["activation"] >= 2
    assert error(program, twin, FRAMES[7:]) < error(low, twin, FRAMES[7:])


def test_gradients_are_those_of_2dquant():
    """d/du and d/dl of Q as 2DQuant has them, through scale and zero point: (r - v)/n and its negative inside."""
    n = 15
    low, high = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-0.8, 2.2))
    x = torch.tensor([-3.0, -0.79, -0.31, 0.0, 0.77, 1.93, 2.19, 5.0], dtype=torch.float64, requires_grad=True)
    scale = (high - low) / n
    zero = -low / scale
    assert float(zero.detach()) == 4.0  # a whole one, so that rounding it changes nothing
    weights = torch.arange(1, 9, dtype=torch.float64)
    (weights * _FakeQuantize.apply(x, scale.view(1), zero.view(1), n, 1.0)).sum().backward()
    v = (x.detach() + 0.8) / 0.2
    inside, above, below = (x >= -0.8) & (x <= 2.2), x > 2.2, x < -0.8
    slope = torch.where(inside, (torch.round(v) - v) / n, 0)
    torch.testing.assert_close(high.grad, (weights * (slope + above)).sum())
    torch.testing.assert_close(low.grad, (weights * (-slope + below)).sum())
    torch.testing.assert_close(x.grad, weights * inside)


def test_loss_is_that_of_the_paper():
    """By hand: K teachers summed, a of the float one, both results and features, each by the float network's power."""
    twin = still()
    frames = split(as_clips([FRAMES], twin))
    with Store(1 << 20) as store:
        targets = Targets(twin, ["relu"], frames, store)
        other = still(seed=1)
        targets.learn_from("8", other)
        targets.learn_from("4", other)
        (y,) = targets.results
        place = (0, 2)
        want, features = (store.get(("float", k, *place)) for k in (y, "relu"))
        theirs, others = (store.get(("8", k, *place)) for k in (y, "relu"))
        values = {y: want + 1, "relu": features + 2}
        power = {k: sum(float(store.get(("float", k, 0, t)).square().mean()) for t in range(8)) / 8
                 for k in (y, "relu")}  # fmt: skip
        direct = power[y] ** -0.5 + 5 * 4 / power["relu"]
        between = (float((want + 1 - theirs).square().mean()) / power[y]) ** 0.5
        between += 5 * float((features + 2 - others).square().mean()) / power["relu"]
        for share in (0.0, 0.5, 1.0):
            loss = float(targets.loss(values, place, share, 5.0))
            assert loss == pytest.approx((2 * between + share * direct) / (1 + share), rel=1e-4)
        targets.teachers.clear()
        assert float(targets.loss(values, place, 0.0, 5.0)) == pytest.approx(direct, rel=1e-4)
        assert ("8", y, 0, 8) not in store._values and ("float", y, 0, 8) in store._values  # held out: for the judge


def test_windows():
    """Recurrent: each clip from its reset, in order, none held out. Otherwise single steps, all of them each round."""
    step = (torch.zeros(1),)
    frames = split(Clips(((step,) * 8, (step,) * 4)), 0.25)
    drawn = windows(frames, True, 4, seed=1)
    found = [next(drawn) for _ in range(6)]
    first, second = [Window(0, 0, 4), Window(0, 4, 6)], [Window(1, 0, 3)]
    assert [w.fresh for w in first] == [True, False]
    assert found[:3] in (first + second, second + first) and found[3:] in (first + second, second + first)
    drawn = windows(frames, False, 4, seed=1)
    rounds = [[next(drawn) for _ in range(9)] for _ in range(2)]
    assert all({(w.clip, w.first, w.last) for w in r} == {(0, t, t + 1) for t in range(6)}
               | {(1, t, t + 1) for t in range(3)} for r in rounds)  # fmt: skip
    assert rounds[0] != rounds[1]


def test_teachers_are_made_as_the_program_was(monkeypatch):
    """The same options with more bits; each taught by those before it; their values are what the student is shown."""
    seen = []
    learn_from = Targets.learn_from

    def spy(self, name, program):
        seen.append((name, *((program.history[-1].name, len(self.teachers)) if name != "float" else ("", 0))))
        learn_from(self, name, program)

    monkeypatch.setattr(Targets, "learn_from", spy)
    taught(still(), "activation_bits=2,weight_bits=4,method=btbi,tail=quantized", teachers=(8, 4), steps=4)
    made = "quantize{{{}activation_bits={},method=btbi,tail=quantized}}"
    assert [s[0] for s in seen] == ["float", "8", "4"] and [s[2] for s in seen] == [0, 0, 1]
    assert seen[1][1].replace("activation_bits=8,", "") == "quantize{method=btbi,tail=quantized}"
    assert seen[2][1] == made.format("weight_bits=4,", 4)


def test_the_same_seed_gives_the_same_bits_and_another_others():
    twin = still()
    a, b, c = (taught(twin, seed=s)[1] for s in (0, 0, 1))
    assert same(a, b) and not same(a, c)


@pytest.mark.parametrize(("network", "options"), [(still, {"train_weights": "rounding"}),
                                                  (recurrent, {"teachers": (8,)})])  # fmt: skip
def test_killed_it_goes_on_and_ends_with_the_same_bits(tmp_path, network, options):
    twin = network()
    low, want = taught(twin, **options)
    p = Distill(**(QUICK | options))

    class Killed(Exception):
        pass

    def kill(text, done, total):
        if text == "distill student" and done == 19:  # after the second look at 16
            raise Killed

    context = PassContext(calibration=[FRAMES], twin=twin, workdir=tmp_path, progress=kill)
    with pytest.raises(Killed):
        p(low, context)
    steps = []
    got = p(low, dataclasses.replace(context, progress=lambda text, done, _: steps.append((text, done))))
    assert [s for s in steps if "distill" in s[0]] == [("distill student", done) for done in range(17, 25)]
    assert same(got, want)


def test_what_diverges_or_does_not_help_changes_nothing(monkeypatch):
    twin = still()
    low, program = taught(twin, rate=30.0)
    assert same(program, low) and "it stays as it was" in reasons(program)["student"]
    monkeypatch.setattr(distillation.Pupil, "learn", lambda *a: math.nan)
    low, program = taught(twin, train_weights="rounding")
    assert same(program, low) and reasons(program)["student"] == "it stays as it was: learning diverged"


def test_bounds_of_frames_learn_and_folded_scales_stay():
    h = Hand("batch")
    x = h.input("x", 2, 3, 16, 16, frames=Frames("axis", 0, 2))
    sized = h(aten.mul.Tensor, x, h.const("k", torch.tensor([1.0, 9]).view(2, 1, 1, 1)))
    a = h(aten.relu, conv(h, "first", sized, 4, 3))
    twin = h.done(conv(h, "second", a, 3, 4))
    steps = [torch.cat([f, FRAMES[-1 - t]]) for t, f in enumerate(FRAMES)]
    context = PassContext(calibration=steps, twin=twin)
    low = Quantize(activation_bits=3, frames=True, tail="quantized")(Observe("frame")(twin, context))
    program = Distill(**QUICK)(low, context)
    assert program.history[-1].rewrites == {"activation": 2}
    assert error(program, twin, steps[7:]) < 0.9 * error(low, twin, steps[7:])
    folded = Quantize(granularity="channel", tail="quantized", pixels=0)(Observe()(still(), context3()))
    declined = Distill(**QUICK)(folded, dataclasses.replace(context3(), twin=still()))
    assert "there is nothing to learn" in reasons(declined)["student"] and same(declined, folded)


def context3():
    return PassContext(calibration=[FRAMES])


@pytest.mark.parametrize(("options", "message"), [
    ({"teachers": (4, 8)}, "do not fall in bits"), ({"teachers": (4, 3)}, r"teachers of \[4, 3\] bits cannot teach"),
    ({"steps": 0}, "at least one step"),
])  # fmt: skip
def test_refusals(options, message):
    with pytest.raises(PipelineError, match=message):
        taught(still(), **options)


def test_what_it_needs():
    twin = still()
    low = low_bits(twin, [FRAMES], "activation_bits=3")
    with pytest.raises(PipelineError, match="distill has no float program"):
        Distill()(low, PassContext(calibration=[FRAMES]))
    low.history = ()
    with pytest.raises(PipelineError, match="the program's history has no observe"):
        Distill(teachers=(8,))(low, PassContext(calibration=[FRAMES], twin=twin))
    text = "distill{teachers=[8,4],train_weights=scales,steps=300}"
    assert str(parse(text).passes[0]) == "distill{teachers=[8,4],steps=300,train_weights=scales}"

"""shb-decoder: one-bit pairs in a decoder's place, fitted to the float layers, sparse where the mask is zero."""

import pytest
import torch
import torch.nn.functional as F
from handmade import Hand, aten, reasons, run
from matting_help import conv, discs, matting, resized

import vqc
from vqc import testing
from vqc.accounting import account, mask_densities
from vqc.errors import PipelineError
from vqc.learning.signs import Aim, fit_layers, thresholds
from vqc.learning.uncertainty import choose_threshold, uncertain
from vqc.learning.upward import ends, find_decoder
from vqc.pipeline import PassContext, parse, rollout
from vqc.program import evaluate

CLIPS = discs()
UNITS = ("conv2d_2", "conv2d_3", "conv2d_4", "conv2d_5")  # up1, gate, new, out1
v = torch.ops.vqc


def shb(program, text="", clips=None, seed=0):
    context = PassContext(calibration=CLIPS if clips is None else clips, seed=seed)
    return parse(f"shb-decoder{{{text}}}" if text else "shb-decoder").run(program, context)


def mattes(program, clip):
    return torch.stack([out[1][0] for out in rollout(program, [(s,) for s in clip])])


def lost(program, twin):
    clip = discs(seed=5)[0]  # never seen
    return float((mattes(program, clip) - mattes(twin, clip)).abs().mean())


@pytest.mark.parametrize("dense", [False, True])
def test_before_and_after(dense):
    before = matting()
    after = shb(before, f"sparse={0 if dense else 4},levels=2,bases=1")
    found = after.history[-1].rewrites
    assert found == {"binary unit": 4} if dense else found == {"binary unit": 4, "mask producer": 1, "mask": 2}
    layers = 4 if dense else 8  # 3x3, and 1x1 beside each
    testing.assert_ops(after, {"vqc.fake_binarize": layers, "vqc.fake_binarize_weight": layers})
    assert set(reasons(after)) == {"conv2d_6", "conv2d_7"} and "1x1, not 3x3" in reasons(after)["conv2d_6"]
    names = {n.name for n in after.calls}
    assert {
        "relu_2",
        "sigmoid",
        "tanh",
        "relu_3",
        "conv2d_3",
        "conv2d_4",
    } <= names  # the twin's, where something stands
    assert {n.name for n in after.calls if n.meta.get("imitates")} == {"relu_2", "sigmoid", "tanh", "relu_3"}
    assert [s.name for s in after.states] == [s.name for s in before.states]


def test_more_levels_and_bases_lose_less_and_far_less_than_mean_and_size_alone():
    before, clips = matting(), discs(6, 6)
    losses = [lost(shb(before, f"sparse=0,levels={n},bases={m}", clips), before)
              for n, m in ((1, 1), (3, 1), (3, 2))]  # fmt: skip
    assert losses[0] > 1.4 * losses[1] > 1.4 * 1.15 * losses[2]
    plain = parse("binarize{keep=[conv2d,conv2d_1],ends=binary}").run(before, PassContext(calibration=clips))
    assert {"conv2d_2", "conv2d_5"} <= {n.name for n in plain.calls} - {n.name for n in before.calls} | {
        n.name for n in plain.calls if n.target is aten.add.Tensor}  # fmt: skip
    assert lost(plain, before) > 1.2 * losses[0]


def test_each_scale_has_a_mask_and_lowering_keeps_every_value():
    before = matting()
    after = shb(before, "levels=2,bases=1")
    low = parse("fold-constants,lower-binary").run(after, PassContext())
    testing.assert_ops(low, {"vqc.masked_bconv2d": 4, "vqc.bconv2d": 4, "vqc.fake*": 0, "vqc.masked_conv2d": 0})
    for clip in CLIPS:
        for a, b in zip(rollout(after, [(s,) for s in clip]), rollout(low, [(s,) for s in clip]), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    densities = mask_densities(low, [[(s,) for s in CLIPS[0]]])
    assert len(densities) == 2 and all(0 < d < 1 for d in densities.values())
    dense = parse("fold-constants,lower-binary").run(shb(before, "levels=2,bases=1,sparse=0"), PassContext())
    work = [sum(w.operations for w in account(p, d).layers if w.kind == "binary")
            for p, d in ((low, densities), (low, 1.0), (dense, 1.0))]  # fmt: skip
    assert work[0] < work[2] < work[1]  # the 1x1 layers cost less than what the mask saves


def test_where_the_mask_is_zero_the_small_layer_alone_speaks():
    """A unit by hand: relu(U * (S conv3(sign) + B) + s conv1(sign) + b)."""
    after = shb(matting(), "levels=1,bases=1")
    program = after.with_outputs([n.name for n in after.calls])
    out = run(program, (CLIPS[0][3],))
    names = [n.name for n in after.calls]
    seen = dict(zip(names, out[-len(names) :], strict=True))
    c, relu = after.constants, after.node("relu_3")
    total = relu.args[0]
    masked, narrow = total.args
    mask = seen[masked.args[0].name]
    assert 0 < float((mask > 0).float().mean()) < 1
    x = seen["cat_3"]
    base = "out1.bin{}."
    wide, small = ({k: c[base.format(n) + k] for k in ("weight", "tau", "factor", "shift")} for n in (3, 1))

    def layer(k, pad):
        signs = torch.where(x < k["tau"].view(1, -1, 1, 1), -1.0, 1.0)
        return F.conv2d(signs, torch.where(k["weight"] < 0, -1.0, 1.0), None, 1, pad) * k["factor"] + k["shift"]

    want = (mask * layer(wide, 1) + layer(small, 0)).relu()
    torch.testing.assert_close(seen["relu_3"], want)
    assert narrow.op == "call_function"


def test_ends_may_stay_float():
    before = matting()
    after = shb(before, "sparse=0,first=float,last=float")
    assert set(reasons(after)) == {"conv2d_2", "conv2d_5", "conv2d_6", "conv2d_7"}
    assert after.history[-1].rewrites == {"binary unit": 2}
    sparse = shb(before, "last=float")
    assert sparse.history[-1].rewrites["float unit"] == 1
    lowered = parse("fold-constants,lower-binary").run(sparse, PassContext())
    testing.assert_ops(lowered, {"vqc.masked_conv2d": 1})  # the last one: float, but sparse
    decoder = find_decoder(before)
    units = [n for n in decoder.behind if n.name in UNITS]
    first, last = ends(before, units)
    assert [n.name for n in first] == ["conv2d_2"] and [n.name for n in last] == ["conv2d_5"]


def test_what_is_declined():
    assert "no decoder" in reasons(shb(matting(decoder=False)))["matting"]
    none = shb(matting(matte=False))
    assert not none.history[-1].rewrites and "nothing tells where it is uncertain" in reasons(none)["relu_1"]
    kept = shb(matting(), "sparse=0,keep=[conv2d_3]")
    assert "kept by 'conv2d_3'" in reasons(kept)["conv2d_3"]
    h = Hand("odd")
    x = h.input("x", 1, 3, 8, 8)
    y = resized(h, conv(h, "a", x, 4, 3), 16)
    a = conv(h, "grouped", y, 4, 4, groups=2)
    b = conv(h, "strided", a, 4, 4, stride=2)
    wide = h(aten.conv2d, y, h.const("w5", h.rand(4, 4, 5, 5)), None, [1, 1], [2, 2])
    t = h(aten.conv_transpose2d.input, b, h.const("t", h.rand(4, 4, 2, 2)), None, [2, 2])
    said = reasons(shb(h.done(wide, t), clips=[[torch.rand(1, 3, 8, 8)] * 4]))
    assert "grouped" in said["conv2d_1"] and "stride" in said["conv2d_2"] and "5x5" in said["conv2d_3"]
    assert "no binary operator" in said["conv_transpose2d"]


@pytest.mark.parametrize("text", ["form=sharp", "surrogate=cubic", "levels=0", "bases=0", "density=0.0", "density=2.0",
                                  "first=int8", "result=depth"])  # fmt: skip
def test_bad_options(text):
    with pytest.raises(PipelineError):
        shb(matting(), text)


def test_without_clips_it_refuses():
    with pytest.raises(Exception, match="calibration"):
        parse("shb-decoder").run(matting(), PassContext())


def test_the_same_seed_gives_the_same_bits():
    a, b, c = (shb(matting(), "levels=1", seed=s).constants for s in (0, 0, 1))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_weights_of_one_sign_one_frame_and_a_state_never_used():
    before = matting()
    before.constants["up1.weight"] = before.constants["up1.weight"].abs()
    after = shb(before, "levels=2", clips=[discs(1, 1)[0]])
    assert all(c.isfinite().all() for c in after.constants.values())
    assert all(x.isfinite().all() for x in run(after, (CLIPS[0][0],)))


# ---- fitting --------------------------------------------------------------------------------------------------------


def sampled(inputs=6, outputs=5, count=4000, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs * 9, generator=g)
    x = 0.4 * x + 0.9 * torch.randn(count, inputs, generator=g).repeat_interleave(9, 1)  # neighbours look alike
    w = torch.randn(outputs, inputs * 9, generator=g) / 7
    return x, x @ w.T + 0.3


def explained(given, want):
    return 1 - float((given - want).square().sum() / (want - want.mean(0)).square().sum())


def test_signs_are_chosen_together():
    """Each sign makes up for those before: better than the signs of the best real weights."""
    x, want = sampled()
    cuts = thresholds(x.view(-1, 6, 9)[:, :, 4], 2)
    (layer,), given = fit_layers(x, cuts, Aim(want), 6, "bimatting")
    signs = torch.cat([(x.view(-1, 6, 9) >= c.view(1, -1, 1)).float() * 2 - 1 for c in cuts], 1).flatten(1)
    real = torch.linalg.lstsq(torch.cat((signs, torch.ones(len(signs), 1)), 1), want).solution[:-1].T
    sums = signs @ torch.where(real < 0, -1.0, 1.0).T
    best = sums * (sums - sums.mean(0)).mul(want - want.mean(0)).sum(0) / (sums - sums.mean(0)).square().sum(0)
    best = best + (want - best).mean(0)
    assert 1 - explained(given, want) < 0.85 * (1 - explained(best, want))
    assert layer.tau.shape == (12,) and layer.weight.shape == (5, 12, 3, 3)


def test_a_float_layer_is_found_again():
    x, want = sampled()
    (layer,), given = fit_layers(x, None, Aim(want), 6, None)
    assert explained(given, want) > 0.999 and layer.tau is None and layer.factor is None


def test_behind_a_relu_only_what_is_above_zero_counts():
    x, want = sampled()
    want = want - 1.0
    cuts = thresholds(x.view(-1, 6, 9)[:, :, 4], 1)
    losses = [float((fit_layers(x, cuts, Aim(want, relu=r), 6, "bimatting")[1].relu() - want.relu()).square().mean())
              for r in (False, True)]  # fmt: skip
    assert losses[1] < 0.97 * losses[0]


def test_a_share_and_what_is_there_already_count():
    x, want = sampled()
    g = torch.Generator().manual_seed(3)
    share = torch.rand(len(x), generator=g)
    there = -2 * want * share[:, None]
    cuts = thresholds(x.view(-1, 6, 9)[:, :, 4], 3)
    _, given = fit_layers(x, cuts, Aim(want * share[:, None] + there, there, share), 6, "bimatting")
    assert explained(given, want * share[:, None]) > 0.7


def test_thresholds():
    g = torch.Generator().manual_seed(0)
    x = torch.cat((torch.randn(20000, 1, generator=g), torch.full((20000, 1), 2.0)), 1)
    x = torch.cat((x, torch.randn(20000, 1, generator=g).relu()), 1)
    cuts = thresholds(x, 3)
    torch.testing.assert_close(cuts[:, 0], torch.tensor([-0.9816, 0.0, 0.9816]), atol=0.05, rtol=0)  # Max, 1960
    assert (cuts[:, 1] > 2).all() and (cuts[:, 2] > 0).all() and cuts[2, 2] < 2.5


# ---- the mask --------------------------------------------------------------------------------------------------------


def test_the_mask_is_a_band_around_the_edge():
    guess = torch.zeros(1, 1, 9, 12)
    guess[..., 5:] = 0.9
    mask = uncertain(guess, 0.5)
    assert mask[0, 0, :, 4:6].all() and not mask[0, 0, :, :3].any() and not mask[0, 0, :, 8:].any()
    assert not uncertain(guess, 0.95).any() and not uncertain(guess, -1.0).any()  # empty, for one kind of pixel alone


def test_the_threshold_splits_most_evenly_within_a_cap():
    ramp = torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(2, 1, 16, 32)
    at, entropy, density = choose_threshold(ramp, 1.0)
    assert entropy > 0.6 and 0 < density < 0.4 and 0 < at < 1
    assert choose_threshold(torch.full((1, 1, 8, 8), 0.3), 0.5) == (pytest.approx(0.3), 0.0, 0.0)
    noise = torch.rand(1, 1, 16, 32, generator=torch.Generator().manual_seed(0))
    free, capped = choose_threshold(noise, 1.0), choose_threshold(noise, 0.3)
    assert capped[2] < free[2] and capped[1] <= free[1]


# ---- the recipe ----------------------------------------------------------------------------------------------------


def test_recipe_bivm_decoder_has_the_same_integers_in_c():
    """8 bits before the first upsample, signs behind it; C gives what the reference gives, state carried."""
    twin = matting()
    program = vqc.apply(twin, "bivm-decoder", calibration=CLIPS)
    kinds = {w.node: w.kind for w in account(program).layers}
    assert [kinds[n] for n in kinds if n.startswith("bconv")] == ["binary"] * 8  # four layers, two bases
    assert sum(k == "integer" for k in kinds.values()) == 2 and sum(k == "float" for k in kinds.values()) == 2
    watched = program.with_outputs(testing.integer_nodes(program))
    first = len(program.result_nodes)
    assert sum(n.target is v.binarize.default for n in watched.result_nodes[first:]) == 4
    exe = vqc.compile(watched, target="native")
    state = theirs = program.initial_state()
    for frame in discs(seed=5)[0]:
        want, got = evaluate(watched, [frame], theirs), exe.trace([frame], state)
        for node, x, y in zip(watched.result_nodes[first:], want[first:], got[first:], strict=True):
            assert torch.equal(x, y), f"{node}: {int((x != y).sum())} of {x.numel()} differ"
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-5)
        theirs, state = [want[s.output] for s in program.states], [got[s.output] for s in program.states]
        assert all(torch.equal(x, y) for x, y in zip(theirs, state, strict=True))
    assert lost(program, twin) < 0.06  # of a matte whose standard deviation is 0.27

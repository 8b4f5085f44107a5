"""binarize: what becomes binary, how it begins, and what is left alone and why."""

from __future__ import annotations

import pytest
import torch
from handmade import Hand, reasons, run

import vqc.passes  # noqa: F401
from vqc import testing
from vqc.models.binary import METHODS
from vqc.pipeline import PassContext, parse
from vqc.program import Program, evaluate

aten, v = torch.ops.aten, torch.ops.vqc
SAME = ([1, 1], [1, 1])


def chain(groups: int = 1, state: bool = False, act=aten.relu) -> Program:
    """Four convolutions with biases and activations; the second and third are neither first nor last."""
    h = Hand("chain")
    y = h.input("x", 1, 3, 8, 10)
    r = h.state("r", torch.zeros(1, 8, 8, 10)) if state else None
    y = h(act, h(aten.conv2d, y, h.const("a", h.rand(8, 3, 3, 3)), h.const("ab", h.rand(8)), *SAME))
    if r is not None:
        y = h(aten.add.Tensor, y, r)
    y = h(act, h(aten.conv2d, y, h.const("b", h.rand(8, 8 // groups, 3, 3)), h.const("bb", h.rand(8)), *SAME,
                       [1, 1], groups))  # fmt: skip
    new = y = h(aten.sigmoid, h(aten.conv2d, y, h.const("c", h.rand(8, 8, 1, 1) * 0.1), h.const("cb", h.rand(8))))
    y = h(aten.conv2d, y, h.const("d", h.rand(2, 8, 3, 3)), None, *SAME)
    return h.done(y, states=[] if r is None else [new])


def clips(program: Program, frames: int = 4) -> list[list[tuple[torch.Tensor, ...]]]:
    g = torch.Generator().manual_seed(4)
    return [[tuple(torch.randn(i.shape, generator=g) for i in program.inputs) for _ in range(frames)] for _ in range(2)]


def binarize(program: Program, text: str = "binarize", calibration=None) -> Program:
    return parse(text).run(program, PassContext(calibration=calibration))


def moments(program: Program, names: list[str], calibration) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    watched, values = program.with_outputs(names), {n: [] for n in names}
    for clip in calibration:
        state = program.initial_state()
        for step in clip:
            out = evaluate(watched, step, state)
            state = [out[s.output] for s in program.states]
            for name, value in zip(names, out[-len(names) :], strict=True):
                values[name].append(value)
    found = {}
    for name, parts in values.items():
        x = torch.cat(parts).transpose(0, 1).flatten(1).double()
        found[name] = (x.mean(1), x.std(1, correction=0))
    return found


def test_before_and_after():
    before = chain()
    after = binarize(before)
    assert after.history[-1].rewrites == {"layer": 2}
    testing.assert_change(before, after, {"vqc.fake_binarize": 2, "vqc.fake_binarize_weight": 2, "aten.mul.Tensor": 2,
                                          "aten.add.Tensor": 2})  # fmt: skip
    for name in ("conv2d", "conv2d_3"):
        assert "ends=float" in reasons(after)[name]
    assert {n.name for n in before.calls} <= {n.name for n in after.calls}  # of the twin, each value has its name
    binary = parse("fold-constants,lower-binary").run(after, PassContext())
    testing.assert_ops(binary, {"vqc.bconv2d": 2, "vqc.fake*": 0, "aten.mul*": 0, "aten.conv2d": 2})
    assert torch.equal(run(after)[0], run(binary)[0])


@pytest.mark.parametrize("method, state", [*((m, False) for m in sorted(METHODS)), ("bimatting", True)])
def test_it_begins_with_the_moments_of_the_float_layers(method, state):
    before = chain(state=state, act=aten.leaky_relu)
    seen = clips(before)
    after = binarize(before, f"binarize{{method={method},rounds={12 if state else 2}}}", seen)
    layers = ["conv2d_1", "conv2d_2"]
    want, have = moments(before, layers, seen), moments(after, layers, seen)
    for name in layers:
        for a, b in zip(want[name], have[name], strict=True):
            torch.testing.assert_close(b, a, rtol=2e-2 if state else 1e-4, atol=2e-2 if state else 1e-4)
    blind = moments(binarize(before, f"binarize{{method={method}}}"), layers, seen)
    assert not torch.allclose(blind["conv2d_2"][1], want["conv2d_2"][1], rtol=0.05)


def test_behind_a_relu_thresholds_begin_inside():
    before = chain()
    seen = clips(before)
    after = binarize(before, "binarize{method=reactnet}", seen)
    assert not after.history[-1].notes
    (relu,) = moments(before, ["relu"], seen).values()
    torch.testing.assert_close(after.constants["b_tau"].double(), relu[0])
    dead = binarize(before, "binarize{method=xnor}", seen)
    assert "conv2d_2: its sums are always the same" in dead.history[-1].notes[0]


def test_without_clips_it_begins_with_the_weights():
    before = chain()
    after = binarize(before, "binarize{method=reactnet}")
    weight, bias = before.constants["b"], before.constants["bb"]
    assert torch.equal(after.constants["b_factor"].flatten(), weight.abs().mean((1, 2, 3)))
    assert torch.equal(after.constants["b_shift"].flatten(), bias)
    assert after.constants["b_tau"].shape == (8,) and not after.constants["b_tau"].any()
    assert binarize(before, "binarize{method=xnor}").constants["b_tau"].shape == (1,)
    dorefa = binarize(before, "binarize{method=dorefa}").constants["b_factor"]
    torch.testing.assert_close(dorefa.flatten(), weight.abs().mean().expand(8))


def test_a_silent_channel_keeps_its_factor():
    h = Hand()
    x = h.input("x", 1, 2, 4, 4)
    y = h(aten.relu, h(aten.neg, h(aten.abs, x)))  # zeros: every sign is +1 and no sum moves
    y = h(aten.conv2d, y, h.const("w", h.rand(3, 2, 1, 1)), h.const("b", h.rand(3)))
    before = h.done(y)
    seen = clips(before, 1)
    after = binarize(before, "binarize{ends=binary}", seen)
    torch.testing.assert_close(run(after, seen[0][0]), run(before, seen[0][0]))


def test_options():
    before = chain()
    assert binarize(before, "binarize{ends=binary}").history[-1].rewrites == {"layer": 4}
    kept = binarize(before, "binarize{keep=[conv2d_1]}")
    assert kept.history[-1].rewrites == {"layer": 1} and "kept in float by 'conv2d_1'" in reasons(kept)["conv2d_1"]
    acts = binarize(before, "binarize{rprelu=true}")
    assert acts.history[-1].rewrites == {"layer": 2, "rprelu": 1}
    testing.assert_change(before, acts, {"vqc.fake_binarize": 2, "vqc.fake_binarize_weight": 2, "aten.mul.Tensor": 2,
                                         "aten.add.Tensor": 3, "aten.sub.Tensor": 1, "aten.prelu": 1,
                                         "aten.relu": -1})  # fmt: skip
    assert "no activation alone reads it" in reasons(acts)["conv2d_2"]  # a sigmoid is a gate
    assert float(acts.constants[next(k for k in acts.constants if k.endswith("rprelu_slope"))].mean()) == 0.25


def test_groups_are_declined_unless_forced():
    before = chain(groups=8)
    after = binarize(before)
    assert after.history[-1].rewrites == {"layer": 1}
    assert "it has 8 groups" in reasons(after)["conv2d_1"]
    assert binarize(before, "binarize{force_groups=true}").history[-1].rewrites == {"layer": 2}


def test_linear_and_what_has_no_operator():
    h = Hand()
    x, u = h.input("x", 4, 6), h.input("u", 5, 6)
    picture, clip = h.input("p", 1, 3, 5, 5), h.input("c", 2, 4, 6)
    w = h.const("w", h.rand(5, 6))
    results = [h(aten.linear, x, w, h.const("b", h.rand(5))), h(aten.linear, x, u), h(aten.linear, clip, w),
               h(aten.conv_transpose2d.input, picture, h.const("t", h.rand(3, 2, 2, 2)))]  # fmt: skip
    before = h.done(*results)
    after = binarize(before, "binarize{ends=binary}", clips(before))
    assert after.history[-1].rewrites == {"layer": 1}
    said = reasons(after)
    assert "no constant" in said["linear_1"] and "3 axes" in said["linear_2"]
    assert "no binary operator for aten.conv_transpose2d" in said["conv_transpose2d"]
    lowered = parse("fold-constants,lower-binary").run(after, PassContext())
    testing.assert_ops(lowered, {"vqc.bconv2d": 1})
    assert torch.equal(run(after)[0], run(lowered)[0])


def test_it_can_be_trained():
    """Gradients reach weights, thresholds and factors through the program's own module."""
    after = binarize(chain(), "binarize{method=reactnet}")
    module = after.to_module()
    leaves = {k: c.clone().requires_grad_() for k, c in after.constants.items()}
    for name, value in leaves.items():
        delattr(module, name)
        setattr(module, name, value)
    module(*after.example)[0].square().mean().backward()
    for name in ("b", "b_tau", "b_factor", "b_shift", "c"):
        assert leaves[name].grad is not None and bool(leaves[name].grad.any()), name

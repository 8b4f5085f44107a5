"""BiVM in one bit, from the trained form to C: every decision is the training graph's, on x86 and on Arm."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from c_exports import qemu, self_test
from c_helpers import compiled
from torch import nn

import vqc
from vqc import testing
from vqc.backends.c.cross import build_export
from vqc.errors import InputError
from vqc.models.bivm import BiVM
from vqc.program import Program, evaluate

STATES = {"r1": 2, "r2": 3, "r3": 4, "r4": 5}
BEFORE = "canonicalize,fold-constants,fold-bn{scales=false},canonicalize"  # what recipe xnor begins with
SIZES = [(64, 96), (70, 98)]
FRAMES = 6


@cache
def captured(size: tuple[int, int]) -> Program:
    """At half the width, with norms and thresholds as if trained, and a mask that is neither empty nor full."""
    torch.manual_seed(0)
    model = BiVM(width=0.5).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0.0, 0.1)
            nn.init.normal_(m.running_mean, 0.0, 0.1)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
        if getattr(m, "tau", None) is not None:
            nn.init.normal_(m.tau, 0.0, 0.1)
    for name, scale in model.named_parameters():
        if name.endswith(("alpha3", "alpha1")):  # of shortcuts: a factor in the convolution's kernel
            nn.init.uniform_(scale, 0.5, 1.5)
    return vqc.capture(model, tuple(clip(size)[0]), states=STATES, known_ranges={"src": (0, 1)}, name="bivm")


@cache
def lowered(size: tuple[int, int]) -> Program:
    return vqc.apply(captured(size), "xnor")


def clip(size: tuple[int, int]) -> list[list[torch.Tensor]]:
    """Frames of a picture that moves."""
    g = torch.Generator().manual_seed(1)
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 13, generator=g), (size[0] + FRAMES, size[1] + FRAMES),
                                           mode="bilinear")  # fmt: skip
    return [[wide[:, :, t : t + size[0], t : t + size[1]].contiguous()] for t in range(FRAMES)]


def watched(program: Program) -> Program:
    """The program with every sign and every mask among its results."""
    masks = [n.name for n in program.calls if isinstance(v := n.meta["val"], torch.Tensor) and v.dtype == torch.bool]
    return program.with_outputs([*testing.integer_nodes(program), *masks])


def test_the_recipe_leaves_no_sign_in_floats():
    program = lowered(SIZES[0])
    testing.assert_ops(program, {"vqc.fake*": 0, "vqc.masked_bconv2d": 10, "vqc.masked_conv2d": 1, "vqc.bconv2d": 49})
    done = {r.name: r for r in program.history}
    assert done["lower-binary"].rewrites == {"sign": 59, "layer": 59, "mask": 10, "float mask": 1}
    assert not done["lower-binary"].declined and not done["exact-float"].declined


@pytest.mark.parametrize("size", SIZES)
def test_decisions_are_those_of_the_training_graph(size):
    """The captured graph with its float sums in order, and the lowered one: equal signs, results and states."""
    before = vqc.apply(captured(size), BEFORE + ",exact-float")
    after = lowered(size)
    place = {n.name: n for n in after.calls}
    signs = [n.name for n in before.calls if n.target is torch.ops.vqc.fake_binarize.default]
    twins = [n.name for n in after.calls if n.target is torch.ops.vqc.binarize.default]
    assert len(signs) == len(twins) == 59 and set(twins) <= set(place)
    a, b = before.with_outputs(signs), after.with_outputs(twins)
    state_a = state_b = before.initial_state()
    first = len(before.result_nodes)
    masked = []
    for frame in clip(size):
        want, got = evaluate(a, frame, state_a), evaluate(b, frame, state_b)
        for x, y in zip(want[first:], got[first:], strict=True):
            assert torch.equal(x, y.float())
        for x, y in zip(want[2:6], got[2:6], strict=True):
            assert torch.equal(x, y)
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-5)
        state_a, state_b = [want[s.output] for s in before.states], [got[s.output] for s in after.states]
        masked += [float(evaluate(after.with_outputs(["mask"]), frame, state_b)[-1].float().mean())]
    assert min(masked) > 0 and min(masked) < 1


@pytest.mark.parametrize("size", SIZES)
def test_every_integer_in_c_over_frames(size):
    program = watched(lowered(size))
    exe = compiled(program)
    first = len(lowered(size).result_nodes)
    assert len(program.result_nodes) - first == 59 + 6  # signs; the matte cut, what is uncertain, four masks
    state = theirs = program.initial_state()
    seen = []
    for frame in clip(size):
        want, got = evaluate(program, frame, theirs), exe.trace(frame, state)
        for node, a, b in zip(program.result_nodes[first:], want[first:], got[first:], strict=True):
            assert torch.equal(a, b), f"{node}: {int((a != b).sum())} of {a.numel()} differ"
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-4)
        theirs, state = [want[s.output] for s in program.states], [got[s.output] for s in program.states]
        assert all(torch.equal(a, b) for a, b in zip(theirs, state, strict=True))
        seen.append(want[1])
    assert not torch.equal(seen[0], seen[-1])


def test_as_it_is_shipped_it_gives_the_same():
    """Without extra results more goes into one kernel: alpha and the states are still the reference's."""
    program = lowered(SIZES[1])
    exe = compiled(program)
    state = theirs = program.initial_state()
    for frame in clip(SIZES[1]):
        want, got = evaluate(program, frame, theirs), exe.trace(frame, state)
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-4)
        theirs, state = [want[s.output] for s in program.states], [got[s.output] for s in program.states]
        assert all(torch.equal(a, b) for a, b in zip(theirs, state, strict=True))
    with pytest.raises(InputError):
        exe.step(clip(SIZES[1])[0], [s[..., 1:] for s in program.initial_state()])
    with pytest.raises(InputError):
        exe.step(clip(SIZES[0])[0], program.initial_state())


def test_every_integer_on_arm(tmp_path):
    program = watched(lowered(SIZES[0]))
    folder = vqc.export(program, tmp_path / "bivm", "aarch64-linux")
    built = build_export(folder, "aarch64-linux")["bivm_test"]
    done = self_test(built, folder, qemu("aarch64"))
    assert done.returncode == 0, done.stdout + done.stderr

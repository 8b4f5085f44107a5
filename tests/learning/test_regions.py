"""Blocks: what stands together by form, that they can run one after the other, and what cannot be isolated."""

import pytest
import torch
from handmade import Hand, aten
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import clip, conv, low_bits, recurrent

from vqc.learning.execute import execute, whole
from vqc.learning.regions import partition
from vqc.learning.student import Student
from vqc.program import evaluate


def blocks_of(program, max_layers=6):
    """The partition of a float program, its convolutions taken for quantized layers."""
    return partition(program, [n for n in program.calls if n.target is aten.conv2d.default], max_layers)


def layers(program, max_layers=6):
    weights = {n: str(n.args[1].target).removesuffix(".w") for n in program.calls if n.target is aten.conv2d.default}
    return [[weights[n] for n in b.layers] for b in blocks_of(program, max_layers).blocks if b.layers]


def runs_in_order(program, blocks, feeds, overrides=None):
    """Every value of every block, each block seeing only what it declares; equal to the whole graph's."""
    env = dict(feeds)
    with torch.no_grad():
        for b in blocks:
            env |= execute(program, b.nodes, {n: env[n] for n in b.inputs}, b.outputs, overrides)
    return [env[n] for n in program.result_nodes]


def test_a_gated_update_and_a_residual_stand_whole_and_chains_follow():
    p = recurrent()
    assert layers(p) == [["first"], ["res1", "second"], ["gate", "candidate", "after", "head"]]
    blocks = blocks_of(p).blocks
    kinds = {b.layers[0].name: b.kinds for b in blocks}
    assert "closure" in kinds[blocks[2].layers[0].name] and "diamond" in kinds[blocks[1].layers[0].name]
    (place, after), *rest = blocks[2].states.items()
    assert place.name == "r" and after is p.result_nodes[1] and not rest


def test_a_gated_update_too_large_is_cut_and_said():
    part = blocks_of(recurrent(), 1)
    assert [len(b.layers) for b in part.blocks if b.layers] == [1] * 7
    assert not any(b.states for b in part.blocks)
    (note,) = part.notes
    assert note.startswith("the update of state r cannot be isolated: 2 layers lie between")


def squeeze_excite():
    h = Hand()
    x = h.input("x", 1, 4, 8, 8)
    a = h(aten.relu, conv(h, "expand", x, 8, 4, 1))
    s = h(aten.mean.dim, a, [2, 3], True)
    s = h(aten.hardsigmoid, conv(h, "fc2", h(aten.relu, conv(h, "fc1", s, 4, 8, 1)), 8, 4, 1))
    y = conv(h, "project", h(aten.mul.Tensor, a, s), 4, 8, 1)
    return h.done(h(aten.add.Tensor, x, y))


def test_squeeze_and_excite_stands_whole():
    assert layers(squeeze_excite()) == [["expand", "fc1", "fc2", "project"]]


def u_net():
    h = Hand()
    x = h.input("x", 1, 4, 8, 8)
    skips = []
    for i in range(3):
        x = h(aten.relu, conv(h, f"down{i}", x, 4, 4))
        skips.append(x)
    for i in reversed(range(3)):
        x = h(aten.relu, conv(h, f"up{i}", h(aten.cat, [x, skips[i]], 1), 4, 8))
    return h.done(x)


def test_long_skips_are_cut():
    for most in (1, 2, 3, 4):
        p = u_net()
        part = blocks_of(p, most)
        assert max(len(b.layers) for b in part.blocks) <= most
        assert torch.equal(runs_in_order(p, part.blocks, whole(p, p.example, []))[0], evaluate(p, p.example)[0])


def test_two_sets_that_wait_for_each_other_fall_apart():
    """a1 -> b1 and b2 -> a2 with a residual over each pair: neither can run first."""
    h = Hand()
    x, y = h.input("x", 1, 2, 4, 4), h.input("y", 1, 2, 4, 4)
    s, t = h.state("s", torch.zeros(1, 2, 4, 4)), h.state("t", torch.zeros(1, 2, 4, 4))
    a1 = conv(h, "a1", h(aten.add.Tensor, x, s), 2, 2)
    b2 = conv(h, "b2", h(aten.add.Tensor, y, t), 2, 2)
    a2 = h(aten.add.Tensor, conv(h, "a2", b2, 2, 2), a1)
    b1 = h(aten.add.Tensor, conv(h, "b1", a1, 2, 2), b2)
    p = h.done(x, states=[a2, b1])
    part = blocks_of(p)
    got = runs_in_order(p, part.blocks, whole(p, p.example, p.initial_state()) | {})
    assert all(torch.equal(a, b) for a, b in zip(got, evaluate(p, p.example), strict=True))


@st.composite
def random_graphs(draw):
    """Convolutions, sums, concats and states, wired at random."""
    h = Hand(seed=draw(st.integers(0, 9)))
    values = [h.input("x", 1, 2, 6, 6)]
    states = draw(st.integers(0, 2))
    values += [h.state(f"s{i}", torch.zeros(1, 2, 6, 6)) for i in range(states)]
    for i in range(draw(st.integers(2, 10))):
        a = values[draw(st.integers(0, len(values) - 1))]
        b = values[draw(st.integers(max(0, len(values) - 3), len(values) - 1))]
        kind = draw(st.sampled_from(["conv", "conv", "add", "mul", "relu"]))
        if kind == "conv":
            values.append(conv(h, f"c{i}", a, 2, 2))
        elif kind == "relu":
            values.append(h(aten.relu, a))
        else:
            values.append(h(getattr(aten, kind).Tensor, a, b))
    return h.done(values[-1], states=[values[-1 - draw(st.integers(0, 2))] for _ in range(states)])


@settings(max_examples=40, deadline=None)
@given(random_graphs(), st.integers(1, 5))
def test_any_graph_runs_block_by_block(p, most):
    part = blocks_of(p, most)
    assert all(len(b.layers) <= most for b in part.blocks)
    every = [n for b in part.blocks for n in b.layers]
    assert len(every) == len(set(every)) == sum(n.target is aten.conv2d.default for n in p.calls)
    feeds = whole(p, p.example, p.initial_state())
    got = runs_in_order(p, part.blocks, feeds)
    assert all(torch.equal(a, b) for a, b in zip(got, evaluate(p, p.example), strict=True))


@pytest.mark.parametrize("text", ["weight_bits=4", "weight_bits=4,granularity=channel", "activation_bits=4"])
def test_a_quantized_program_runs_block_by_block(text):
    """A layer's input quantizer and its weight's dequantize stand in its block; the student computes as the program."""
    twin = recurrent()
    q = low_bits(twin, [clip(4)], text)
    student = Student(q, twin)
    part = partition(q, student.layers, 6)
    feeds = whole(q, [clip(4)[1]], q.initial_state())
    want = evaluate(q, [clip(4)[1]])
    plain = runs_in_order(q, part.blocks, feeds)
    assert all(torch.equal(a, b) for a, b in zip(plain, want, strict=True))
    with torch.no_grad():
        taught = runs_in_order(q, part.blocks, feeds, student.overrides())
    for a, b in zip(taught, want, strict=True):
        assert float((a - b).abs().mean()) < 0.02 * float(b.abs().mean())
    for b in part.blocks:
        for n in b.layers:
            assert n.args[0] in b.nodes and student.layers[n].weight in b.nodes

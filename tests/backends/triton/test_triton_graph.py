"""A recorded step, with a recorder that repeats calls on the same memory as a CUDA graph does."""

import pytest
import torch
from handmade import Hand
from triton_programs import recurrent

import vqc
from vqc.backends.triton.graph import GraphedExecutable
from vqc.errors import TargetError
from vqc.executable import Stream


def repeating(body):
    """What a graph does, by calls: the results' memory is the first call's, and each play fills it anew."""
    results = [r.clone() for r in body()]

    def play():
        for kept, r in zip(results, body(), strict=True):
            kept.copy_(r)

    return results, play


def test_two_streams_on_one_graph_equal_the_reference():
    program = recurrent()
    exe = GraphedExecutable(vqc.compile(program, "triton"), repeating)
    assert "a step is one CUDA graph" in exe.report.notes
    g = torch.Generator().manual_seed(2)
    ours, judges = [Stream(exe), Stream(exe)], [Stream(vqc.compile(program, "reference")) for _ in range(2)]
    kept = []
    for _ in range(3):
        for mine, judge in zip(ours, judges, strict=True):
            frame = [torch.randn(1, 5, 6, 8, generator=g)]
            kept.append((mine.step(frame), judge.step(frame)))
            assert all(torch.equal(a, b) for a, b in zip(mine.state, judge.state, strict=True))
    for results, wanted in kept:  # all of them, after everything was played
        assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))


def test_a_step_with_operators_of_pytorch_is_no_graph():
    b = Hand("turned")
    x = b.input("x", 1, 3, 4, 4)
    program = b.done(b(torch.ops.aten.flip, x, [3]))
    with pytest.raises(TargetError, match=r"1 of its operators that may wait for the host \(flip\)"):
        GraphedExecutable(vqc.compile(program, "triton"), repeating)


def test_plain_launches_of_pytorch_may_be_in_a_graph():
    b = Hand("plain")
    x = b.input("x", 1, 3, 4, 4)
    program = b.done(b(torch.ops.aten.relu, b(torch.ops.aten.neg, x)))
    exe = GraphedExecutable(vqc.compile(program, "triton"), repeating)
    assert [d.node for d in exe.report.fallbacks] == ["neg"]
    (y,), _ = exe.step([torch.full((1, 3, 4, 4), -2.0)])
    assert torch.equal(y, torch.full((1, 3, 4, 4), 2.0))


def test_graphs_need_a_gpu():
    with pytest.raises(TargetError, match="option graph needs a GPU"):
        vqc.compile(recurrent(), "triton", graph=True)
    with pytest.raises(TargetError, match="option graph cannot be 'yes'"):
        vqc.compile(recurrent(), "triton", graph="yes")

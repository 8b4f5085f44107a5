"""Pictures between kernels in half the bits: which of them, and how far the step is from float32."""

import operator

import pytest
import torch
from handmade import Hand
from test_triton_lowering import network

import vqc
from vqc.backends.triton.halves import half_nodes
from vqc.backends.triton.rules import why_not
from vqc.executable import Stream

aten, vops = torch.ops.aten, torch.ops.vqc


def floats():
    """Pictures through every kind of float kernel, one of PyTorch's operators, and a warp."""
    b = Hand("floats", seed=3)
    x, grid, h = b.input("x", 1, 6, 8, 10), b.input("grid", 1, 8, 10, 2), b.state("h", torch.zeros(1, 6, 8, 10))
    y = b(aten.add.Tensor, x, h)
    step = b(aten.mul.Tensor, grid, 1.0)
    warped = b(vops.grid_sample, b(vops.sigmoid, y), step, "border", True)
    both = b(aten.cat, [warped, y], 1)
    parts = b(aten.split.Tensor, both, 4, 1)
    picks = [b(operator.getitem, parts, i) for i in range(3)]
    gate = b(vops.mean_hw, picks[1])
    tail = b(aten.mul.Tensor, b(vops.resize_bilinear, picks[1], 4, 5, False, None, None), gate)
    left = b(aten.flip, picks[0], [3])
    new = b(aten.mul.Tensor, y, 0.5)
    return b.done(b(aten.relu, tail), left, b(aten.add.Tensor, picks[2], 1.0), states=[new])


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_a_step_beside_float32(dtype, digits):
    program = network()
    exe = vqc.compile(program, "triton", residual_dtype=dtype)
    ours, judge = Stream(exe), Stream(vqc.compile(program, "reference"))
    g = torch.Generator().manual_seed(9)
    worst = 0.0
    for _ in range(3):
        frame = [torch.randn(1, 3, 12, 16, generator=g)]
        (made, _), (wanted, _) = ours.step(frame), judge.step(frame)
        assert made.dtype == torch.float32 and all(s.dtype == torch.float32 for s in ours.state)
        worst = max(worst, float((ours.state[0] - judge.state[0]).abs().max() / judge.state[0].abs().max()))
        assert float((made - wanted).abs().mean()) < 0.05, "pictures of 0 .. 1, behind 8-bit layers"
    assert 0 < worst < 8 * 2.0**-digits
    assert any(n.endswith(f"values between kernels are rounded to {dtype}") for n in exe.report.notes)


def test_which_pictures():
    program = floats()
    found = {n.name for n in half_nodes(program, lambda n: why_not(program, n))}
    assert found == {"add", "sigmoid", "grid_sample", "cat", "getitem_1", "getitem_2", "resize_bilinear", "mul_1"}
    exact = vqc.compile(program, "triton").step(program.example)
    for dtype in ("float16", "bfloat16"):
        made = vqc.compile(program, "triton", residual_dtype=dtype).step(program.example)
        for a, b in zip((*made[0], *made[1]), (*exact[0], *exact[1]), strict=True):
            assert a.dtype == b.dtype == torch.float32 and not torch.equal(a, b)
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)

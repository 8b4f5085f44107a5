"""Many clips in one step: each has the bits that it has alone, and begins anew by itself."""

import operator

import pytest
import torch
from handmade import Hand
from triton_programs import recurrent

import vqc
from vqc.backends.triton.streams import batched, streams
from vqc.errors import InputError, UnsupportedOp
from vqc.executable import Stream

aten, vops = torch.ops.aten, torch.ops.vqc


def masked():
    """A recurrent binary network under a mask that each clip makes for itself."""
    b = Hand("masked", seed=1)
    x, h = b.input("x", 1, 33, 5, 17), b.state("h", torch.zeros(1, 33, 5, 17))
    w = b.const("w", torch.where(b.rand(33, 33, 3, 3) < 0, -1, 1).to(torch.int8))
    s, c = b.const("s", torch.rand(33, generator=b.generator) * 1e-2), b.const("c", b.rand(33))
    tau, mask = b.const("tau", [0.1]), b(aten.gt.Scalar, b(aten.slice.Tensor, x, 1, 0, 1), 0.4)
    y = b(vops.masked_bconv2d, b(vops.binarize, b(aten.add.Tensor, x, h), tau), w, s, c, mask, *[[1, 1]] * 3)
    gate = b(vops.sigmoid, b(vops.mean_hw, y))
    new = b(aten.add.Tensor, b(aten.mul.Tensor, y, gate), b(aten.mul.Tensor, h, 0.5))
    flat = b(aten.view, new, [1, 33, 85])
    return b.done(b(operator.getitem, b(aten.chunk, flat, 2, 2), 1), states=[new])


@pytest.mark.parametrize("make", [recurrent, masked])
def test_streams_equal_each_alone(make):
    program, clips = make(), 3
    many = streams(program, "triton", clips)
    alone = [Stream(vqc.compile(program, "triton")) for _ in range(clips)]
    g = torch.Generator().manual_seed(4)
    for step in range(3):
        frames = [torch.randn(i.shape, generator=g) for i in program.inputs for _ in range(clips)]
        if step == 2:
            many.reset(1)
            alone[1].reset()
        made = many.step([torch.cat(frames)])
        for i, one in enumerate(alone):
            wanted = one.step([frames[i]])
            assert all(torch.equal(m[i : i + 1], w) for m, w in zip(made, wanted, strict=True))
            assert all(torch.equal(m[i : i + 1], w) for m, w in zip(many.state, one.state, strict=True))
    assert many.frames == [3, 1, 3] and many.frame == 3
    many.reset()
    assert many.frames == [0, 0, 0]
    assert all(torch.equal(s, torch.cat([r.reset] * 3)) for s, r in zip(many.state, program.states, strict=True))
    with pytest.raises(InputError, match="no stream 3"):
        many.reset(3)


def test_the_program_itself_is_left_alone():
    program = recurrent()
    before = str(program)
    assert [i.shape[0] for i in batched(program, 5).inputs] == [5] and str(program) == before
    with pytest.raises(InputError, match="0 clips"):
        batched(program, 0)


@pytest.mark.parametrize(("call", "reason"), [
    (lambda b, x: b(aten.flip, x, [0]), "along their axis"),
    (lambda b, x: b(aten.softmax.int, x, -4), "along their axis"),
    (lambda b, x: b(aten.sum.dim_IntList, x, [1, 2, 3]), ""),
    (lambda b, x: b(aten.mean, x), "in place of"),
    (lambda b, x: b(aten.add.Tensor, x, b(aten.select.int, x, 0, 0)), "along their axis"),
    (lambda b, x: b(aten.expand, b(aten.select.int, x, 1, 0), [1, 2, 4, 4]), "puts axes before theirs"),
    (lambda b, x: b(aten.roll, x, [1]), "along all axes at once"),
    (lambda b, x: b(aten.sort, x, 3), "not known to keep them apart"),
    (lambda b, x: b(aten.add.Tensor, x, b(aten.view, x, [3, 4, 4])), "cannot run with 2"),
])  # fmt: skip
def test_what_mixes_clips_is_refused(call, reason):
    b = Hand("mixing")
    x = b.input("x", 1, 3, 4, 4)
    y = call(b, x)
    program = b.done(b(operator.getitem, y, 0) if isinstance(y.meta["val"], tuple) else y)
    if not reason:
        assert batched(program, 2).result_nodes[0].meta["val"].shape == (2,)
        return
    with pytest.raises(UnsupportedOp, match="does not keep clips apart") as e:
        batched(program, 2)
    assert reason in str(e.value)


def test_inputs_of_several_clips_are_refused():
    b = Hand("pair")
    x = b.input("x", 2, 3, 4, 4)
    with pytest.raises(InputError, match="its first axis is not one clip"):
        batched(b.done(b(aten.relu, x)), 2)

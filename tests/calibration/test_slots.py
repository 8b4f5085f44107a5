"""Slots: which entries of a tensor share bounds, and that parts kept apart make the whole again."""

import pytest
import torch
from handmade import Hand, aten

from vqc.calibration import Observed, Statistics
from vqc.calibration.slots import Slots, slot_parts, slots_of, whole_of
from vqc.frames import Frames, frame_layout

FIRST, SECOND = (Frames("slot", index=i, count=2) for i in range(2))


def window():
    """cat[resize(cat[a, b, mask]), flow] of a window of two: the mask and the flow are made of both pictures."""
    h = Hand()
    a, b = h.input("a", 1, 3, 8, 8, frames=FIRST), h.input("b", 1, 3, 8, 8, frames=SECOND)
    both = h(aten.sub.Tensor, a, b)
    mask = h(aten.slice.Tensor, both, 1, 0, 1)
    pictures = h(aten.cat, [a, b, mask], 1)
    small = h(aten.upsample_bilinear2d, h(aten.mul.Tensor, pictures, h.const("half", 0.5)), [4, 4], False)
    flow = h(aten.upsample_bilinear2d, h(aten.slice.Tensor, both, 1, 0, 2), [4, 4], False)
    x = h(aten.cat, [small, h(aten.relu, flow)], 1)
    return h.done(h(aten.conv2d, x, h.const("w", h.rand(2, 9, 3, 3)), None), small, x)


def test_parts_of_a_window_side_by_side():
    program = window()
    layout = frame_layout(program)
    assert slots_of(program.node("cat_1"), layout) == Slots(1, (0, 0, 0, 1, 1, 1, 2, 3, 3), (0, 1, 2, 3))
    assert slots_of(program.node("upsample_bilinear2d"), layout) == Slots(1, (0, 0, 0, 1, 1, 1, 2), (0, 1, 2))
    assert slots_of(program.node("conv2d"), layout) is None and slots_of(program.node("a"), layout) is None
    without = window()
    without.inputs = tuple(type(i)(i.name, i.shape, i.dtype) for i in without.inputs)
    assert slots_of(without.node("cat_1"), frame_layout(without)) is None  # no window: a concat says nothing of frames


def test_two_tensors_of_one_picture_share_its_bounds():
    h = Hand()
    a, b = h.input("a", 1, 2, 4, 4, frames=FIRST), h.input("b", 1, 1, 4, 4, frames=SECOND)
    x = h(aten.cat, [a, h(aten.relu, a), b], 1)
    program = h.done(h(aten.conv2d, x, h.const("w", h.rand(1, 5, 1, 1)), None))
    assert slots_of(program.node("cat"), frame_layout(program)) == Slots(1, (0, 0, 0, 0, 1), (0, 1))


@pytest.mark.parametrize(("frames", "shape", "of"), [
    (Frames("axis", 0, 3, 5), (3, 2, 4, 4), (0, 1, 2)),
    (Frames("folded", 0, 2, 0, 2), (8, 2, 4, 4), (0, 0, 1, 1, 0, 0, 1, 1)),
    (Frames("folded", 1, 2, 0, 1, 2), (1, 6, 4, 4), (0, 0, 0, 1, 1, 1)),
])  # fmt: skip
def test_frames_in_a_dimension(frames, shape, of):
    h = Hand()
    x = h.input("x", *shape, frames=frames)
    program = h.done(h(aten.relu, x))
    layout = frame_layout(program)
    slots = slots_of(program.node("relu"), layout)
    assert slots == Slots(frames.axis, of, tuple(range(frames.index, frames.index + frames.count)))
    value = program.example[0]
    for key, part in slot_parts(value, program.node("relu"), layout):
        at = slots.entries(slots.keys.index(key))
        assert torch.equal(part.flatten(), value.index_select(frames.axis, torch.tensor(at)).flatten())
    assert torch.equal(slots.spread(torch.arange(len(slots.keys))), torch.tensor(of))


def test_slots_of_the_channels_make_the_whole_again():
    program = window()
    node, layout = program.node("cat_1"), frame_layout(program)
    slots = slots_of(node, layout)
    apart, whole = Observed("frame"), Statistics()
    for t in range(3):
        x = torch.randn(1, 9, 16, 16, generator=torch.Generator().manual_seed(t)) * torch.arange(1, 10).view(1, 9, 1, 1)
        whole.update(x)
        for key, part in slot_parts(x, node, layout):
            apart.update(key, part)
    found = whole_of(apart, slots)
    assert (found.low == whole.low).all() and (found.high == whole.high).all() and found.frames == 3
    assert (found.mean_square == whole.mean_square).all()
    assert found.values == whole.values and found.range == apart.total.range == whole.range
    assert len(apart.total.low) == 1  # parts of 3, 3, 1 and 2 channels have no channels in common
    one = Observed("tensor", {0: whole})
    assert (whole_of(one, slots).low == whole.low).all()

"""Where the frames are: rule by rule on hand graphs."""

from __future__ import annotations

import operator

import torch
from handmade import Hand, aten
from torch import fx

import vqc.ops  # noqa: F401  (registers the vqc:: operators)
from vqc.frames import NONE, Frames, frame_layout, split_by_frame

AXIS = Frames("axis", axis=1, count=5)


def clip(h: Hand, *shape: int) -> fx.Node:
    return h.input("x", *(shape or (2, 5, 3, 8, 8)), frames=AXIS)


def said(h: Hand, *results: fx.Node) -> list[str]:
    layout = frame_layout(h.done(*results))
    return [str(layout[r.name]) for r in results]


# ---- text and parts --------------------------------------------------------------------------------------------------


def test_text():
    assert str(AXIS) == "T=5@1"
    assert str(Frames("folded", axis=0, count=5, outer=2)) == "T=5 in batch"
    assert str(Frames("folded", axis=1, count=5)) == "T=5 in axis 1"
    assert str(Frames("axis", axis=1, count=4, index=1)) == "T=4@1 from 1"
    assert str(Frames("step", index=2)) == "t=2"
    assert str(Frames("slot", index=0, count=3)) == "slot 0 of 3"
    assert str(Frames("axis", axis=1, count=3, slots=3)) == "slots=3@1"
    assert str(NONE) == ""
    assert not NONE
    assert AXIS


def test_a_program_shows_the_frames_of_its_inputs():
    h = Hand()
    assert "input x: f32[2,5,3,8,8] T=5@1" in str(h.done(h(aten.relu, clip(h))))


def test_split_by_frame():
    x = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4)
    assert [k for k, _ in split_by_frame(x, Frames("axis", axis=1, count=3, index=4))] == [4, 5, 6]
    assert torch.equal(split_by_frame(x, Frames("axis", axis=1, count=3))[2][1], x[:, 2])
    folded = x.reshape(12, 4)
    for k, part in split_by_frame(folded, Frames("folded", axis=0, count=3, outer=2)):
        assert torch.equal(part, x[:, k].reshape(4, 4))
    assert split_by_frame(x, Frames("step", index=3))[0] == (3, x)
    assert split_by_frame(x, Frames("slot", index=1, count=2))[0] == (1, x)
    assert split_by_frame(x, NONE)[0] == (0, x)
    assert split_by_frame(x, None)[0] == (0, x)


# ---- views -----------------------------------------------------------------------------------------------------------


def test_into_the_batch_and_back():
    h = Hand()
    x = clip(h)
    flat = h(aten.flatten.using_ints, x, 0, 1)
    y = h(aten.conv2d, flat, h.const("w", h.rand(4, 3, 3, 3)), None, [2, 2], [1, 1])
    pooled = h(aten.max_pool2d, y, [2, 2])
    back = h(aten.view, h(aten.relu, pooled), [2, 5, 4, 2, 2])
    assert said(h, x, flat, y, pooled, back) == ["T=5@1", *["T=5 in batch"] * 3, "T=5@1"]


def test_a_single_clip_in_the_batch_is_an_axis():
    h = Hand()
    x = clip(h, 1, 5, 3, 8, 8)
    assert said(h, h(aten.flatten.using_ints, x, 0, 1), h(aten.squeeze.dim, x, 0)) == ["T=5@0", "T=5@0"]


def test_views():
    h = Hand()
    x = clip(h)
    results = {
        h(aten.permute, x, [0, 2, 1, -2, -1]): "T=5@2",
        h(aten.transpose.int, x, 1, -1): "T=5@4",
        h(aten.movedim.int, x, 1, 0): "T=5@0",
        h(aten.unsqueeze, x, 0): "T=5@2",
        h(aten.unsqueeze, x, -1): "T=5@1",
        h(aten.select.int, x, 0, 1): "T=5@0",
        h(aten.select.int, x, 1, -1): "t=4",
        h(aten.select.int, x, 2, 0): "T=5@1",
        h(aten.slice.Tensor, x, 1, 1): "T=4@1 from 1",
        h(aten.slice.Tensor, x, 1, -2, -1): "t=3",
        h(aten.slice.Tensor, x, 1, 0, 5, 2): "mixed",
        h(aten.slice.Tensor, x, 3, 0, 4): "T=5@1",
        h(aten.reshape, x, [2, 15, 8, 8]): "T=5 in axis 1",
        h(aten.reshape, x, [2, 5, 3, 64]): "T=5@1",
        h(aten.reshape, x, [30, 64]): "T=5 in batch",
        h(aten.reshape, x, [-1]): "T=5 in batch",
        h(aten.flip, x, [1]): "mixed",
        h(aten.flip, x, [4]): "T=5@1",
        h(aten.roll, x, [1]): "mixed",
        h(aten.expand, x, [7, -1, -1, -1, -1, -1]): "T=5@2",
        h(aten.repeat, x, [1, 2, 1, 1, 1]): "T=5 in axis 1",
        h(aten.repeat, x, [3, 1, 1, 1, 1, 2]): "T=5@2",
        h(aten.tile, x, [2]): "T=5@1",
        h(aten.constant_pad_nd, x, [1, 1]): "T=5@1",
        h(aten.constant_pad_nd, x, [0, 0, 0, 0, 0, 0, 1, 0]): "mixed",
    }
    assert said(h, *results) == list(results.values())


def test_a_reshape_across_frames_is_mixed():
    h = Hand()
    x = clip(h, 2, 5, 3, 4, 4)
    assert said(h, h(aten.reshape, x, [3, 10, 16]), h(aten.reshape, x, [2, 3, 5, 16])) == ["mixed", "mixed"]


def test_steps_and_back():
    h = Hand()
    x = clip(h)
    pieces = h(aten.unbind.int, x, 1)
    a, b, c = (h(aten.relu, h(operator.getitem, pieces, k)) for k in range(3))
    results = {
        a: "t=0",
        c: "t=2",
        h(aten.stack, [a, b, c], 1): "T=3@1",
        h(aten.stack, [b, c], 0): "T=2@0 from 1",
        h(aten.stack, [a, c], 0): "mixed",
        h(aten.stack, [b, a], 0): "mixed",
        h(aten.cat, [a, b, c], 0): "T=3 in batch",
        h(aten.cat, [a, b], 1): "T=2 in axis 1",
        h(aten.cat, [a, a], 1): "t=0",
        h(aten.stack, [a, a], 1): "t=0",
        h(aten.sub.Tensor, b, a): "mixed",
        h(aten.add.Tensor, b, b): "t=1",
    }
    assert said(h, *results) == list(results.values())


def test_steps_in_batch_come_apart_again():
    h = Hand()
    x = clip(h)
    steps = [h(aten.select.int, x, 1, k) for k in range(3)]
    batch = h(aten.cat, steps, 0)  # [3 * 2, ...], frame after frame
    y = h(aten.conv2d, batch, h.const("w", h.rand(4, 3, 3, 3)))
    pieces = h(aten.split.Tensor, y, 2)
    pairs = h(aten.split_with_sizes, y, [4, 2])
    crooked = h(aten.chunk, y, 4)
    results = {
        y: "T=3 in batch",
        h(operator.getitem, pieces, 1): "t=1",
        h(operator.getitem, pairs, 0): "T=2 in batch",
        h(operator.getitem, pairs, 1): "t=2",
        h(operator.getitem, crooked, 0): "t=0",
        h(aten.select.int, y, 0, 3): "t=1",
        h(aten.slice.Tensor, y, 0, 1, 3): "mixed",
        h(aten.slice.Tensor, y, 0, 2, 3): "t=1",
    }
    assert said(h, *results) == list(results.values())


def test_recurrent_state_and_constants_are_neutral():
    h = Hand()
    x = clip(h)
    s = h.state("s", torch.zeros(2, 3, 8, 8))
    w = h.const("w", h.rand(3, 1, 1))
    step = h(aten.select.int, x, 1, 0)
    results = {
        h(aten.mul.Tensor, x, w): "T=5@1",
        h(aten.add.Tensor, step, s): "t=0",
        h(aten.cat, [step, s], 1): "t=0",
        h(aten.mul.Tensor, s, w): "",
        h(aten.cat, [step, s], 0): "t=0",
        h(aten.cat, [x, h(aten.unsqueeze, s, 1)], 1): "mixed",
        h(aten.cat, [x, h(aten.expand, h(aten.unsqueeze, s, 1), [2, 5, 3, 8, 8])], 2): "T=5@1",
    }
    h.resets = [("s", torch.zeros(2, 3, 8, 8))]
    layout = frame_layout(h.done(*results, states=[s]))
    assert [str(layout[r.name]) for r in results] == list(results.values())


# ---- operators that mix dimensions -----------------------------------------------------------------------------------


def test_layers():
    h = Hand()
    x = clip(h)
    flat = h(aten.flatten.using_ints, x, 0, 1)
    volume = h(aten.permute, x, [0, 2, 1, 3, 4])  # [B, C, T, H, W]
    tokens = h(aten.reshape, x, [2, 5, 192])
    c3 = [h.const(f"c{i}", h.rand(*s)) for i, s in enumerate([(4, 3, 1, 3, 3), (4, 3, 3, 3, 3)])]
    w, fc, up = (h.const(n, h.rand(*s)) for n, s in (("w", (4, 15, 3, 3)), ("fc", (6, 192)), ("up", (3, 4, 2, 2))))
    ones, t = h.const("ones", torch.ones(3)), h.const("t", h.rand(6, 5))
    q = [h.const("scale", torch.ones(3)), h.const("zp", torch.zeros(3, dtype=torch.int64))]
    qd = torch.ops.quantized_decomposed
    results = {
        h(aten.conv2d, h(aten.reshape, x, [2, 15, 8, 8]), w): "mixed",
        h(aten.conv3d, volume, c3[0]): "T=5@2",
        h(aten.conv3d, volume, c3[0], None, [2, 1, 1]): "mixed",
        h(aten.conv3d, volume, c3[1]): "mixed",
        h(aten.conv_transpose2d.input, flat, up, None, [2, 2]): "T=5 in batch",
        h(aten.linear, tokens, fc): "T=5@1",
        h(aten.linear, h(aten.permute, tokens, [0, 2, 1]), t): "mixed",
        h(aten.batch_norm, flat, ones, ones, ones, ones, False, 0.1, 1e-5, False): "T=5 in batch",
        h(aten.batch_norm, flat, ones, ones, None, None, True, 0.1, 1e-5, False): "mixed",
        h(aten.group_norm, flat, 3): "T=5 in batch",
        h(aten.layer_norm, tokens, [192]): "T=5@1",
        h(aten.layer_norm, tokens, [5, 192]): "mixed",
        h(aten.softmax.int, tokens, -1): "T=5@1",
        h(aten.softmax.int, tokens, 1): "mixed",
        h(aten.mean.dim, x, [-1, -2]): "T=5@1",
        h(aten.mean.dim, x, [0]): "T=5@0",
        h(aten.mean.dim, x, [1]): "mixed",
        h(aten.sum, x): "mixed",
        h(aten.adaptive_avg_pool2d, flat, [1, 1]): "T=5 in batch",
        h(aten.upsample_bilinear2d, flat, [16, 16], False): "T=5 in batch",
        h(aten.pixel_unshuffle, flat, 2): "T=5 in batch",
        h(aten.grid_sampler, flat, h(aten.slice.Tensor, h(aten.permute, flat, [0, 2, 3, 1]), 3, 0, 2), 0, 0, True):
            "T=5 in batch",
        h(aten.bmm, h(aten.reshape, flat, [10, 24, 8]), h(aten.reshape, flat, [10, 8, 24])): "T=5 in batch",
        h(aten.bmm, tokens, h(aten.permute, tokens, [0, 2, 1])): "mixed",
        h(qd.quantize_per_channel, flat, *q, 1, 0, 255, torch.uint8): "T=5 in batch",
        h(torch.ops.vqc.mean_hw, flat): "T=5 in batch",
        h(torch.ops.vqc.sigmoid, x): "T=5@1",
        h(aten.hardswish, x): "T=5@1",
        h(aten.prelu, flat, ones): "T=5 in batch",
        h(aten.where.self, h(aten.gt.Scalar, x, 0), x, h(aten.zeros_like, x)): "T=5@1",
        h(aten.zeros_like, x): "",
        h(aten.glu, volume, 3): "T=5@2",
        h(aten.glu, tokens, 2): "T=5@1",
        h(aten.cumsum, x, 1): "mixed",
        h(aten.cumsum, x, 2): "T=5@1",
        h(operator.getitem, h(aten.sort, x), 0): "mixed",
    }  # fmt: skip
    assert said(h, *results) == list(results.values())


def test_frames_of_different_axes_are_mixed():
    h = Hand()
    x = clip(h, 5, 5, 3, 8, 8)
    assert said(h, h(aten.add.Tensor, x, h(aten.transpose.int, x, 0, 1))) == ["mixed"]


def test_frame_differences_are_mixed():
    h = Hand()
    x = clip(h)
    late, early = h(aten.slice.Tensor, x, 1, 1), h(aten.slice.Tensor, x, 1, 0, -1)
    assert said(h, h(aten.sub.Tensor, late, early)) == ["mixed"]


# ---- windows of frames -----------------------------------------------------------------------------------------------


def window(h: Hand) -> list[fx.Node]:
    return [h.input(f"img{i}", 1, 3, 8, 8, frames=Frames("slot", index=i, count=2)) for i in range(2)]


def test_slots():
    h = Hand()
    a, b = window(h)
    w, w2 = h.const("w", h.rand(4, 3, 3, 3)), h.const("w2", h.rand(4, 6, 3, 3))
    both = h(aten.cat, [a, b], 1)
    flow = h(aten.conv2d, both, w2)
    features = h(aten.conv2d, h(aten.cat, [a, b], 0), w)
    pieces = h(aten.chunk, features, 2)
    second = h(operator.getitem, pieces, 1)
    results = {
        h(aten.conv2d, a, w): "slot 0 of 2",
        both: "slots=2 in axis 1",
        flow: "window",
        h(aten.sub.Tensor, a, b): "window",
        features: "slots=2@0",
        second: "slot 1 of 2",
        h(aten.add.Tensor, flow, second): "window",
        h(aten.slice.Tensor, both, 1, 3, 6): "slot 1 of 2",
    }
    assert said(h, *results) == list(results.values())


def test_one_frame_on_an_axis_is_a_step():
    h = Hand()
    x = h.input("x", 2, 1, 3, frames=Frames("axis", axis=1, count=1, index=0))
    assert said(h, h(aten.relu, x)) == ["t=0"]


def test_scan():
    """The sequence form keeps the time of what it stacks; what it carries on is of no one frame."""
    scan = torch.ops.higher_order.scan

    def body(carry: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        total = carry + x
        return [total, total * 2]

    h = Hand()
    h.const("w", h.rand(4))
    x = h.input("x", 5, 4, frames=Frames("axis", axis=0, count=5))
    g = h.program.graph
    h.program.constants["body"] = fx.symbolic_trace(body)
    inner = g.create_node("get_attr", "body", name="body")
    start = h.const("start", torch.zeros(4))
    node = g.call_function(scan, (inner, [start], [h(aten.relu, x)], ()))
    meta = {"device": "meta"}
    node.meta["val"] = (torch.empty(4, **meta), torch.empty(5, 4, **meta))
    last, all_of_them = h(operator.getitem, node, 0), h(operator.getitem, node, 1)
    assert said(h, last, all_of_them) == ["mixed", "T=5@0"]

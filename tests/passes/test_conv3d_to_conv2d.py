"""conv3d-to-conv2d: every form and its numbers, what moves along and what must not, what stays 3-d and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from handmade import Hand, aten, reasons
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from vqc import testing
from vqc.known_ranges import known_ranges
from vqc.passes.canonicalize import Canonicalize
from vqc.passes.conv3d_to_conv2d import Conv3dToConv2d
from vqc.passes.fold_bn import FoldBN
from vqc.pipeline import PassContext, parse
from vqc.program import Program, op_text

DEBUG = PassContext(debug=True)


def planar(program: Program) -> Program:
    """The pass, checked against its promise on two steps; the numbers are compared once more, with other inputs."""
    after = Conv3dToConv2d()(program, DEBUG)
    testing.assert_same(program, after, rtol=1e-4, atol=1e-5)
    assert [n.meta["val"].shape for n in after.result_nodes] == [n.meta["val"].shape for n in program.result_nodes]
    return after


def conv(h: Hand, x: fx.Node, out: int, kernel: tuple[int, ...], stride: Any = 1, padding: Any = 0, dilation: Any = 1,
         groups: int = 1, bias: bool = True, name: str = "conv") -> fx.Node:  # fmt: skip
    w = h.const(f"{name}.weight", h.rand(out, x.meta["val"].shape[1] // groups, *kernel) * 0.3)
    b = h.const(f"{name}.bias", h.rand(out)) if bias else None
    options = [[v] * 3 if isinstance(v, int) else list(v) for v in (stride, padding, dilation)]
    return h(aten.conv3d, x, w, b, *options, groups)


def single(shape: tuple[int, ...], kernel: tuple[int, ...], **options: Any) -> Program:
    h = Hand()
    return h.done(conv(h, h.input("x", *shape), 4, kernel, **options))


def permutes(program: Program) -> int:
    return sum(op_text(n.target) == "aten.permute" for n in program.calls)


# ---- the forms -------------------------------------------------------------------------------------------------------

#        shape            kernel     options                                              what             permutes
FORMS = {
    "frame": ((2, 4, 3, 6, 5), (1, 3, 3), {"padding": (0, 1, 1)}, "each-frame", 2),
    "frame, grouped": ((2, 4, 3, 6, 5), (1, 3, 2), {"groups": 2, "stride": (1, 2, 1), "bias": False}, "each-frame", 2),
    "frame, every other": ((1, 4, 5, 6, 5), (1, 3, 3), {"stride": (2, 1, 1), "dilation": (3, 1, 2)}, "each-frame", 2),
    "frame, depthwise": ((1, 4, 2, 6, 5), (1, 3, 3), {"padding": (0, 1, 1), "groups": 4}, "each-frame", 2),
    "frame, one channel": ((1, 1, 3, 6, 5), (1, 3, 3), {}, "each-frame", 1),  # the result alone is turned
    "only frame": ((2, 4, 1, 6, 5), (1, 3, 3), {"padding": (0, 1, 1), "groups": 2}, "each-frame", 0),
    "only frame, padded": ((2, 4, 1, 6, 5), (3, 3, 3), {"padding": 1}, "each-frame", 0),
    "point, strided": ((1, 4, 5, 6, 6), (1, 1, 1), {"stride": 2}, "each-frame", 2),
    "window": ((2, 4, 3, 6, 5), (3, 3, 3), {"padding": (0, 1, 1)}, "whole-window", 0),
    "window, grouped": ((2, 4, 3, 6, 5), (3, 3, 3), {"groups": 2, "dilation": (1, 2, 1)}, "whole-window", 0),
    "window, padded": ((1, 4, 2, 6, 5), (4, 3, 3), {"padding": 1}, "whole-window", 0),
    "window, dilated": ((1, 4, 5, 6, 5), (3, 3, 3), {"dilation": (2, 1, 1)}, "whole-window", 0),
    "window, part": ((1, 4, 4, 6, 5), (3, 3, 3), {"stride": (2, 1, 1)}, "whole-window", 0),
    "window, point": ((1, 4, 3, 6, 5), (3, 1, 1), {}, "whole-window", 0),
    "windows": ((2, 4, 6, 6, 8), (2, 4, 4), {"stride": (2, 4, 4)}, "windows", 2),
    "windows, rest": ((1, 4, 7, 6, 5), (3, 3, 3), {"stride": (3, 1, 1), "groups": 2}, "windows", 2),
    "rows": ((2, 4, 5, 6, 5), (3, 1, 1), {"padding": (1, 0, 0)}, "time-as-rows", 0),
    "rows, grouped": ((1, 4, 9, 6, 5), (3, 1, 1), {"stride": (2, 1, 1), "padding": (2, 0, 0), "dilation": (2, 1, 1),
                                                   "groups": 2}, "time-as-rows", 0),
    "rows, apart": ((1, 4, 6, 6, 5), (2, 1, 1), {"stride": (2, 1, 1)}, "time-as-rows", 0),
    "rows, point": ((2, 4, 3, 6, 5), (1, 1, 1), {"bias": False}, "time-as-rows", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_form(name: str):
    shape, kernel, options, what, turns = FORMS[name]
    after = planar(single(shape, kernel, **options))
    assert after.history[-1].rewrites == {what: 1} and not after.history[-1].declined
    testing.assert_ops(after, {"aten.conv3d": 0, "aten.conv2d": 1, "aten.permute": turns})
    assert after.result_nodes[0].name == "conv3d"  # the value keeps its name
    assert "conv.weight" not in after.constants


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_as_a_word(padding: str):
    h = Hand()
    x, w = h.input("x", 1, 4, 3, 7, 6), h.const("w", h.rand(4, 4, 1, 3, 5))
    after = planar(h.done(h(aten.conv3d.padding, x, w, None, [1, 1, 1], padding, [1, 2, 1])))
    assert after.history[-1].rewrites == {"each-frame": 1}


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(3, 7), st.integers(3, 6)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 1)),
    groups=st.sampled_from([1, 2, 4]), bias=st.booleans(), turned=st.booleans(),
)  # fmt: skip
def test_any_convolution_is_equal_or_left_with_a_reason(size, kernel, stride, padding, dilation, groups, bias, turned):
    batch, *space = size
    reach = [s + 2 * p - d * (k - 1) for s, p, d, k in zip(space, padding, dilation, kernel, strict=True)]
    if min(reach) < 1:
        return
    h = Hand()
    x = h.input("x", batch, space[0], 4, *space[1:]) if turned else h.input("x", batch, 4, *space)
    x = h(aten.permute, x, [0, 2, 1, 3, 4]) if turned else x
    y = conv(h, x, 4, kernel, stride, padding, dilation, groups, bias)
    after = planar(h.done(y))
    record = after.history[-1]
    assert sum(record.rewrites.values()) + len(record.declined) == 1
    testing.assert_ops(after, {"aten.conv3d": len(record.declined)})
    alone = kernel[0] == 1 and padding[0] == 0 or kernel[1:] == (1, 1) and stride[1:] == (1, 1) and not any(padding[1:])
    assert not (alone and record.declined)


# ---- what stays 3-d --------------------------------------------------------------------------------------------------

BOTH = "its kernel of {} slides along time and along the picture, and its windows share frames"


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "reason"),
    [
        ((1, 4, 5, 6, 5), (3, 3, 3), {"padding": 1}, BOTH.format("3x3x3")),
        ((1, 4, 5, 6, 5), (3, 1, 1), {"stride": (1, 2, 2)}, BOTH.format("3x1x1")),
        ((1, 4, 8, 6, 5), (2, 3, 3), {"stride": (2, 1, 1), "dilation": (2, 1, 1)}, BOTH.format("2x3x3")),
        ((1, 4, 5, 6, 5), (1, 3, 3), {"padding": 1},
         "its kernel is one frame long, but it pads time with zeros, which gives more frames than there are"),
        ((1, 4, 1, 6, 5), (2, 3, 3), {"padding": (2, 0, 0), "dilation": (3, 1, 1), "stride": (2, 1, 1)},
         "no frame reaches its result"),
        ((4, 5, 6, 5), (1, 3, 3), {}, "its input has no batch"),
    ],
)  # fmt: skip
def test_what_stays(shape: tuple[int, ...], kernel: tuple[int, ...], options: dict[str, Any], reason: str):
    h = Hand()
    x = h.input("x", *shape)
    w = h.const("w", h.rand(4, 4, *kernel))
    several = {k: [v] * 3 if isinstance(v, int) else list(v) for k, v in options.items()}
    after = planar(h.done(h(aten.conv3d, x, w, None, **several)))
    assert after.history[-1].rewrites == {}
    assert reasons(after) == {"conv3d": reason}


def test_computed_weights_and_uneven_borders_stay():
    h = Hand()
    x, w = h.input("x", 1, 4, 3, 6, 5), h.const("w", h.rand(4, 4, 1, 3, 3))
    a = h(aten.conv3d, x, h(aten.mul.Tensor, w, 2.0))
    b = h(aten.conv3d.padding, x, h.const("even", h.rand(4, 4, 1, 2, 3)), None, [1, 1, 1], "same")
    after = planar(h.done(a, b))
    assert after.history[-1].rewrites == {}
    assert reasons(after) == {
        "conv3d": "its weight is computed at every step (fold-constants first, if it depends on no input)",
        "conv3d_1": "its padding 'same' has one zero more behind than before",
    }


# ---- what moves along ------------------------------------------------------------------------------------------------


def block(h: Hand, x: fx.Node) -> fx.Node:
    """A residual block of (1,3,3) convolutions with all that can stand between them."""
    a = h(aten.relu, conv(h, x, 6, (1, 3, 3), padding=(0, 1, 1), name="a"))
    a = h(aten.mul.Tensor, a, h.const("gamma", h.rand(6, 1, 1, 1)))
    a = h(aten.prelu, a, h.const("slope", h.rand(6)))
    b = conv(h, h(aten.add.Tensor, a, h.const("half", torch.full((1, 1, 1, 1, 1), 0.5))), 4, (1, 1, 1), name="b")
    gate = h(aten.sigmoid, conv(h, a, 1, (1, 3, 3), padding=(0, 1, 1), name="gate"))
    both = h(aten.cat, [h(aten.mul.Tensor, b, gate), h(aten.clamp, a, 0.0, 1.0)], 1)
    return h(aten.add.Tensor, x, conv(h, both, 4, (1, 3, 3), padding=(0, 1, 1), name="c"))


def test_nothing_is_turned_back_between_layers_of_frames():
    h = Hand()
    after = Canonicalize()(planar(h.done(block(h, h.input("x", 1, 4, 3, 6, 5)))))
    assert permutes(after) == 2  # x, and the result
    testing.assert_ops(after, {"aten.conv2d": 4, "aten.reshape": 2})
    assert all(n.meta["val"].dim() == 4 for n in after.calls if "permute" not in n.name and "reshape" not in n.name
               and n is not after.result_nodes[0])  # fmt: skip


def test_a_clip_and_the_window_behind_its_layers_need_no_turning():
    """[N,T,C,H,W] has its frames as pictures already, and what reads all of them reads them as channels."""
    h = Hand("clip")
    x = h(aten.permute, h.input("x", 1, 3, 4, 6, 5), [0, 2, 1, 3, 4])
    a = h(aten.relu, conv(h, x, 4, (1, 3, 3), padding=(0, 1, 1), name="a"))
    y = h(aten.squeeze.dim, h(aten.relu, conv(h, a, 2, (3, 3, 3), padding=(0, 1, 1), name="b")), 2)
    before = h.done(y, conv(h, x, 2, (3, 1, 1), name="c"))
    testing.assert_text(before, """
        program clip
          input x: f32[1,3,4,6,5]
          permute: f32[1,4,3,6,5] = aten.permute(x, [0,2,1,3,4])
          conv3d: f32[1,4,3,6,5] = aten.conv3d(permute, a.weight, a.bias, [1,1,1], [0,1,1])
          relu: f32[1,4,3,6,5] = aten.relu(conv3d)
          conv3d_1: f32[1,2,1,6,5] = aten.conv3d(relu, b.weight, b.bias, [1,1,1], [0,1,1])
          relu_1: f32[1,2,1,6,5] = aten.relu(conv3d_1)
          squeeze: f32[1,2,6,5] = aten.squeeze.dim(relu_1, 2)
          conv3d_2: f32[1,2,1,6,5] = aten.conv3d(permute, c.weight, c.bias)
          return y0 = squeeze
          return y1 = conv3d_2
    """)  # fmt: skip
    after = Canonicalize()(planar(before))
    assert after.history[-2].rewrites == {"each-frame": 1, "whole-window": 2, "moved": 2}
    testing.assert_text(after, """
        program clip
          input x: f32[1,3,4,6,5]
          reshape: f32[3,4,6,5] = aten.reshape(x, [3,4,6,5])
          conv2d: f32[3,4,6,5] = aten.conv2d(reshape, a.weight_2d, a.bias, [1,1], [1,1])
          relu_2: f32[3,4,6,5] = aten.relu(conv2d)
          reshape_3: f32[1,12,6,5] = aten.reshape(relu_2, [1,12,6,5])
          conv2d_1: f32[1,2,6,5] = aten.conv2d(reshape_3, b.weight_2d, b.bias, [1,1], [1,1])
          relu_3: f32[1,2,6,5] = aten.relu(conv2d_1)
          reshape_6: f32[1,12,6,5] = aten.reshape(x, [1,12,6,5])
          conv2d_2: f32[1,2,6,5] = aten.conv2d(reshape_6, c.weight_2d, c.bias)
          conv3d_2: f32[1,2,1,6,5] = aten.reshape(conv2d_2, [1,2,1,6,5])
          return y0 = relu_3
          return y1 = conv3d_2
    """)  # fmt: skip


@pytest.mark.parametrize(("groups", "turns"), [(1, 0), (2, 1)])
def test_a_whole_window_takes_frames_as_they_lie(groups: int, turns: int):
    """Channels of a group lie side by side only as [C,T]; without groups their order is the weight's affair."""
    h = Hand()
    x = h(aten.transpose.int, h.input("x", 2, 3, 4, 6, 5), 1, 2)
    after = Canonicalize()(planar(h.done(conv(h, x, 4, (3, 3, 3), groups=groups))))
    assert [op_text(n.target) for n in after.calls].count("aten.reshape") == 2
    assert sum(op_text(n.target) in ("aten.permute", "aten.transpose.int") for n in after.calls) == turns


def test_views_move_whoever_reads():
    """One frame comes out: its picture is the value itself, so relu stands at the layer, where a kernel takes it in."""
    h = Hand()
    y = conv(h, h.input("x", 1, 4, 3, 6, 6), 4, (3, 3, 3))
    after = planar(h.done(h(aten.max_pool3d, y, [1, 2, 2]), h(aten.relu, y)))
    assert after.history[-1].rewrites == {"whole-window": 1, "moved": 1}


def test_a_sum_with_a_value_that_has_no_pictures_stays():
    h = Hand()
    y = conv(h, h.input("x", 1, 4, 3, 6, 5), 4, (1, 3, 3), padding=(0, 1, 1))
    after = planar(h.done(h(aten.add.Tensor, y, h.input("other", 1, 4, 3, 6, 5))))
    assert after.history[-1].rewrites == {"each-frame": 1}
    assert permutes(after) == 2  # x and the layer's result, not also `other`


def test_a_value_that_others_read_is_turned_once():
    """Moving relu too would turn what max_pool3d reads and what the reader behind relu reads."""
    h = Hand()
    y = conv(h, h.input("x", 1, 4, 3, 6, 6), 4, (1, 3, 3))
    pooled = h(aten.max_pool3d, y, [1, 2, 2])
    after = planar(h.done(pooled, h(aten.max_pool3d, h(aten.relu, y), [1, 2, 2])))
    assert after.history[-1].rewrites == {"each-frame": 1}
    assert permutes(after) == 2


def test_a_value_that_others_read_moves_when_a_layer_asks_for_it():
    h = Hand()
    x, other = h.input("x", 1, 4, 3, 6, 6), h.input("other", 1, 4, 3, 4, 4)
    y = conv(h, x, 4, (1, 3, 3), name="a")
    early = conv(h, other, 4, (1, 3, 3), name="early")  # its pictures of `other` have to be there for the sum before
    total = h(aten.add.Tensor, h(aten.relu, y), other)
    late = conv(h, other, 4, (1, 3, 3), padding=(0, 1, 1), name="late")
    z = conv(h, total, 4, (1, 3, 3), padding=(0, 1, 1), name="b")
    after = planar(h.done(h(aten.max_pool3d, y, [1, 2, 2]), early, h(aten.add.Tensor, late, z)))
    assert after.history[-1].rewrites == {"each-frame": 4, "moved": 3}
    assert permutes(after) == 5  # x, other; y, early and the sum back


@pytest.mark.parametrize(
    "why", ["positions", "frames", "another axis", "batch statistics", "memory of five axes", "kept along time"]
)
def test_what_must_not_move(why: str):
    """One frame: no memory is moved by moving, so only what the call means holds it back."""
    h = Hand()
    y = conv(h, h.input("x", 2, 4, 1, 6, 5), 4, (1, 3, 3), padding=(0, 1, 1))
    if why == "positions":
        z = h(aten.mul.Tensor, y, h.const("columns", h.rand(5)))
    elif why == "frames":
        z = h(aten.mul.Tensor, y, h.const("videos", h.rand(2, 1, 1, 1, 1)))
    elif why == "another axis":
        z = h(aten.cat, [y, y], 2)
    elif why == "batch statistics":
        z = h(aten.batch_norm, y, None, None, None, None, True, 0.1, 1e-5, False)
    elif why == "memory of five axes":
        z = h(aten.clone, y, memory_format=torch.channels_last_3d)
    else:
        z = h(aten.add.Tensor, y, h.input("many", 2, 4, 3, 6, 5))
    after = planar(h.done(z))
    assert after.history[-1].rewrites == {"each-frame": 1}


def test_a_states_declared_range_is_known_where_its_pictures_are():
    h = Hand()
    x, s = h.input("x", 1, 4, 3, 6, 5), h.state("s", torch.zeros(1, 4, 3, 6, 5))
    total = h(aten.add.Tensor, conv(h, x, 4, (1, 3, 3), padding=(0, 1, 1)), s)
    program = h.done(conv(h, total, 4, (1, 3, 3), padding=(0, 1, 1), name="second"), states=[total])
    program.states = tuple(replace(t, known_range=(0.0, 1.0)) for t in program.states)
    after = planar(program)
    known = known_ranges(after)
    assert known[[n for n in after.calls if "conv" in n.name][1].args[0]] == (0.0, 1.0)


def test_a_value_that_is_broadcast_along_the_picture_does_not_move():
    h = Hand()
    y = conv(h, h.input("x", 2, 4, 3, 6, 5), 4, (3, 1, 1), padding=(1, 0, 0))
    after = planar(h.done(h(aten.mul.Tensor, y, h.input("columns", 2, 4, 3, 1, 5))))
    assert after.history[-1].rewrites == {"time-as-rows": 1}


def test_a_shared_weight_stays_shared():
    h = Hand()
    x, w = h.input("x", 1, 4, 3, 6, 5), h.const("w", h.rand(4, 4, 1, 3, 3))
    clips = [x, h(aten.relu, x), h(aten.slice.Tensor, x, 2, 0, 1)]
    after = planar(h.done(*(h(aten.conv3d, c, w) for c in clips)))
    assert after.history[-1].rewrites == {"each-frame": 3}
    assert list(after.constants) == ["w_2d"]


def test_taps_of_one_weight_over_other_padding_are_other_weights():
    h = Hand()
    x, w = h.input("x", 1, 4, 1, 6, 5), h.const("w", h.rand(4, 4, 3, 3, 3))
    first = h(aten.slice.Tensor, h(aten.conv3d, x, w, None, [2, 1, 1], [2, 1, 1]), 2, 0, 1)  # two frames: it stays
    after = planar(h.done(h(aten.conv3d, x, w, None, [1, 1, 1], [1, 1, 1]),
                          h(aten.conv3d, x, w, None, [3, 1, 1], [2, 1, 1]), first))  # fmt: skip
    assert after.history[-1].rewrites == {"each-frame": 2}
    assert sorted(after.constants) == ["w", "w_2d", "w_2d_1"]


@pytest.mark.parametrize("order", ["fold-bn,conv3d-to-conv2d", "conv3d-to-conv2d,fold-bn"])
@pytest.mark.parametrize(
    ("kernel", "padding"), [((1, 3, 3), (0, 1, 1)), ((3, 1, 1), (1, 0, 0)), ((3, 3, 3), 0)], ids=str
)
def test_a_norm_is_folded_before_and_after(order: str, kernel: tuple[int, ...], padding: Any):
    h = Hand()
    y = conv(h, h.input("x", 1, 4, 3, 6, 5), 6, kernel, padding=padding, bias=False)
    stats = [h.const(f"bn.{n}", h.rand(6).abs() + 0.5) for n in ("weight", "bias", "mean", "var")]
    before = h.done(h(aten.relu, h(aten.batch_norm, y, *stats, False, 0.1, 1e-5, False)))
    after = parse(order).run(before, DEBUG)
    testing.assert_ops(after, {"aten.batch_norm": 0, "aten.conv3d": 0, "aten.conv2d": 1})
    testing.assert_same(before, after, rtol=1e-4, atol=1e-5)
    assert {"fold-bn-after": 1}.items() <= {**after.history[-1].rewrites, **after.history[-2].rewrites}.items()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_networks(data: st.DataObject):
    """Layers, sums, concatenations and functions in any order, values read again later, results anywhere."""
    h = Hand(seed=data.draw(st.integers(0, 99)))
    frames = data.draw(st.sampled_from([1, 2, 3]))
    values = [h.input("x", 1, 4, frames, 5, 4), h.state("s", h.rand(1, 4, frames, 5, 4))]
    kernels = [((1, 3, 3), (0, 1, 1)), ((3, 1, 1), (1, 0, 0)), ((1, 1, 1), 0), ((3, 3, 3), 1)]
    for i in range(data.draw(st.integers(2, 9))):
        x = data.draw(st.sampled_from(values))
        what = data.draw(st.sampled_from(["conv", "conv", "conv", "relu", "add", "cat", "scale", "mix"]))
        if what == "conv":
            kernel, padding = data.draw(st.sampled_from(kernels))
            values.append(conv(h, x, 4, kernel, padding=padding, name=f"c{i}"))
        elif what == "scale":
            values.append(h(aten.mul.Tensor, x, h.const(f"scale{i}", h.rand(1, 4, 1, 1, 1))))
        elif what == "mix":
            values.append(h(aten.flip, x, [2]))
        elif what == "relu":
            values.append(h(aten.relu, x))
        else:
            y = data.draw(st.sampled_from(values))
            both = h(aten.add.Tensor, x, y) if what == "add" else h(aten.cat, [x, y], 1)
            values.append(both if what == "add" else conv(h, both, 4, (1, 1, 1), name=f"c{i}"))
    results = [data.draw(st.sampled_from(values[2:])) for _ in range(2)]
    after = planar(h.done(*results, values[-1], states=[h(aten.tanh, values[-1])]))
    testing.assert_same(Canonicalize()(FoldBN()(after)), after, rtol=1e-4, atol=1e-5)

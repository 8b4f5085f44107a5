"""Layers around displacements: who makes where a warp looks, who reads it, who leads to the first guess of it."""

from __future__ import annotations

import pytest
import torch

from tests.handmade import Hand
from vqc.passes.displacements import displacements
from vqc.passes.observe import Observe, quantizable
from vqc.passes.quantize import GUESS_HEADROOM, Quantize
from vqc.pipeline import PassContext
from vqc.program import Program

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
DEQUANTIZE = (qd.dequantize_per_tensor.default, qd.dequantize_per_channel.default)


def _flow(h: Hand, x, i: int):
    """Two layers that make a displacement [1,2,8,8] of a tensor of any channels."""
    features = h(aten.relu, h(aten.conv2d, x, h.const(f"a{i}", h.rand(4, x.meta["val"].shape[1], 3, 3)), None,
                              [1, 1], [1, 1]))  # fmt: skip
    return h(aten.conv2d, features, h.const(f"b{i}", h.rand(2, 4, 3, 3) * 0.01), None, [1, 1], [1, 1])


def _warped(h: Hand, x, flow):
    grid = h(aten.add.Tensor, h(aten.permute, flow, [0, 2, 3, 1]), h.const(f"at{flow.name}", torch.zeros(1, 8, 8, 2)))
    return h(aten.grid_sampler_2d, x, grid, 0, 1, True)


def _refining() -> Program:
    """A flow is guessed, the picture warped by it; both are looked at again for a better flow, and coloured."""
    h = Hand()
    x = h.input("x", 1, 3, 8, 8)
    guess = _flow(h, h(aten.sub.Tensor, x, h.const("half", 0.5)), 0)  # conv2d, conv2d_1
    seen = h(aten.cat, [_warped(h, x, guess), h(aten.mul.Tensor, guess, h.const("quarter", 0.25))], 1)
    flow = h(aten.add.Tensor, guess, _flow(h, seen, 1))  # conv2d_2, conv2d_3
    picture = _warped(h, x, flow)
    kept = h(aten.conv2d, picture, h.const("c", h.rand(3, 3, 3, 3)), None, [1, 1], [1, 1])  # conv2d_4
    return h.done(h(aten.conv2d, h(aten.relu, kept), h.const("d", h.rand(3, 3, 1, 1)), None))


def _names(nodes) -> set[str]:
    return {n.name for n in nodes}


def test_makers_readers_and_guesses():
    p = _refining()
    found = displacements(p, quantizable(p))
    assert _names(found.makers) == {"conv2d_1", "conv2d_3"}
    assert _names(found.readers) == {"conv2d_2"}, "conv2d_4 reads a warped picture, no displacement"
    assert _names(found.guesses) == {"conv2d", "conv2d_1"}, "the second flow is not refined"


def _reading(count: int) -> Program:
    """A flow, and `count` layers behind each other of which the first reads it; the last makes the result."""
    h = Hand()
    x = h.input("x", 1, 3, 8, 8)
    flow = _flow(h, x, 0)  # conv2d, conv2d_1
    y = h(aten.cat, [_warped(h, x, flow), flow], 1)
    for i in range(count):
        weight = h.const(f"r{i}", h.rand(5, y.meta["val"].shape[1], 3, 3))
        y = h(aten.relu, h(aten.conv2d, y, weight, None, [1, 1], [1, 1]))
    return h.done(y)


def test_neighbours_stand_next_to_makers_and_readers():
    p = _reading(3)
    found = displacements(p, quantizable(p))
    assert _names(found.makers) == {"conv2d_1"} and _names(found.readers) == {"conv2d_2"}
    assert _names(found.neighbours) == {"conv2d", "conv2d_3"}, "conv2d_4 is one further"


def test_neighbours_have_the_bits_of_edges():
    p = _reading(4)
    context = PassContext(calibration=[torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))])
    after = Quantize(weight_bits=4, activation_bits=4, edge_bits=8)(Observe()(p, context), context)
    levels = {n.name: n.args[0].args[4] for n in after.calls if n.target is aten.conv2d.default
              and n.args[0].target is qd.dequantize_per_tensor.default}  # fmt: skip
    assert levels["conv2d_3"] == 255 and levels["conv2d_4"] == 15


def _prelu(h: Hand, x, i: int):
    channels = x.meta["val"].shape[1]
    return h(aten.prelu, x, h.const(f"slope{i}", torch.full((channels,), 0.25)))


def _leaky(h: Hand, x, i: int):
    return h(aten.leaky_relu, x, 0.2)


def _upwards(act) -> Program:
    """A flow as RIFE makes and reads one: half the size and back by transposed convolutions, `act` between layers."""
    h = Hand()
    x = h.input("x", 1, 3, 8, 8)

    def down(y, width: int, i: int):
        weight = h.const(f"down{i}", h.rand(width, y.meta["val"].shape[1], 3, 3) * 0.1)
        return act(h, h(aten.conv2d, y, weight, None, [2, 2], [1, 1]), i)

    def up(y, width: int, i: int):
        weight = h.const(f"up{i}", h.rand(y.meta["val"].shape[1], width, 4, 4) * 0.1)
        return h(aten.conv_transpose2d.input, y, weight, None, [2, 2], [1, 1])

    y = act(h, up(down(down(x, 4, 0), 4, 1), 4, 2), 2)  # conv2d, conv2d_1, conv_transpose2d
    flow = up(y, 2, 3)  # conv_transpose2d_1
    y = down(h(aten.cat, [_warped(h, x, flow), flow], 1), 4, 4)  # conv2d_2
    y = act(h, up(y, 4, 5), 5)  # conv_transpose2d_2
    y = act(h, h(aten.conv2d, y, h.const("far", h.rand(4, 4, 3, 3)), None, [1, 1], [1, 1]), 6)  # conv2d_3
    return h.done(h(aten.conv2d, y, h.const("last", h.rand(3, 4, 1, 1))))  # conv2d_4


@pytest.mark.parametrize("act", [_prelu, _leaky])
def test_neighbours_by_transposed_convolutions_and_slopes(act):
    p = _upwards(act)
    found = displacements(p, quantizable(p))
    assert _names(found.makers) == {"conv_transpose2d_1"} and _names(found.readers) == {"conv2d_2"}
    assert _names(found.neighbours) == {"conv_transpose2d", "conv_transpose2d_2"}
    context = PassContext(calibration=[torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))])
    after = Quantize(weight_bits=4, activation_bits=4, edge_bits=8)(Observe()(p, context), context)
    levels = {n.name: [a.args[-2] for a in n.args[:2]] for n in after.calls if n.name.startswith("conv")
              and all(a.target in DEQUANTIZE for a in n.args[:2])}  # fmt: skip
    assert levels == {"conv2d": [255, 127], "conv2d_1": [15, 7], "conv_transpose2d": [255, 127],
                      "conv_transpose2d_2": [255, 127], "conv2d_3": [15, 7]}  # fmt: skip


CARRIED = {
    "prelu": lambda h, y: _prelu(h, y, 9),
    "leaky_relu": lambda h, y: _leaky(h, y, 9),
    "pixel_shuffle": lambda h, y: h(aten.pixel_shuffle, y, 2),
    "pad": lambda h, y: h(aten.constant_pad_nd, y, [1, 1, 1, 1], 0.0),
    "replication_pad2d": lambda h, y: h(aten.replication_pad2d, y, [1, 1, 1, 1]),
    "nearest_exact": lambda h, y: h(aten._upsample_nearest_exact2d, y, [16, 16]),
    "antialias": lambda h, y: h(aten._upsample_bilinear2d_aa, y, [4, 4], False),
    "area": lambda h, y: h(aten.adaptive_avg_pool2d, y, [4, 4]),
    "repeat": lambda h, y: h(aten.repeat, y, [1, 2, 1, 1]),
    "roll": lambda h, y: h(aten.roll, y, [1], [2]),
    "mean of candidates": lambda h, y: h(aten.mean.dim, h(aten.view, y, [1, 4, 2, 8, 8]), [1]),
    "index": lambda h, y: h(aten.index.Tensor, y, [None, h.const("order", torch.tensor([1, 0]))]),
}


@pytest.mark.parametrize("how", CARRIED)
def test_a_displacement_is_followed_through_what_keeps_its_values(how):
    """Between the layer and the warp, and between the displacement and the layer that reads it."""
    h = Hand()
    x = h.input("x", 1, 3, 8, 8)
    y = h(aten.relu, h(aten.conv2d, x, h.const("a", h.rand(4, 3, 3, 3)), None, [1, 1], [1, 1]))
    y = CARRIED[how](h, h(aten.conv2d, y, h.const("b", h.rand(8, 4, 3, 3) * 0.01), None, [1, 1], [1, 1]))
    flow = h(aten.slice.Tensor, y, 1, 0, 2)
    grid = h(aten.permute, flow, [0, 2, 3, 1])
    read = h(aten.conv2d, flow, h.const("c", h.rand(3, 2, 1, 1)))
    p = h.done(h(aten.add.Tensor, h(aten.grid_sampler_2d, x, grid, 0, 1, True), read))
    found = displacements(p, quantizable(p))
    assert _names(found.makers) == {"conv2d_1"} and _names(found.readers) == {"conv2d_2"}
    assert _names(found.neighbours) == {"conv2d"}


def test_one_flow_is_no_guess():
    h = Hand()
    x = h.input("x", 1, 3, 8, 8)
    p = h.done(_warped(h, x, _flow(h, x, 0)))
    found = displacements(p, quantizable(p))
    assert _names(found.makers) == {"conv2d_1"} and not found.readers and not found.guesses


def test_a_network_without_warps_has_none():
    h = Hand()
    x = h.input("x", 1, 3, 8, 8)
    p = h.done(_flow(h, x, 0))
    found = displacements(p, quantizable(p))
    assert not found.makers | found.readers | found.guesses


def test_what_makes_or_reads_a_displacement_stays_float():
    p = _refining()
    context = PassContext(calibration=[[(torch.rand(1, 3, 8, 8),)] * 2])
    seen = Observe()(p, context)
    kept = Quantize()(seen, context).history[-1]
    assert kept.rewrites["weight"] == 2, "conv2d and conv2d_4; conv2d_5 makes the result"
    reasons = {d.node: d.reason for d in kept.declined}
    assert "makes where a warp looks" in reasons["conv2d_1"] and "reads where a warp looks" in reasons["conv2d_2"]
    every = Quantize(displacements="quantized", tail="quantized")(seen, context).history[-1]
    assert every.rewrites["weight"] == 6


@pytest.mark.parametrize(("headroom", "wider"), [(0.1, 1 + GUESS_HEADROOM), (3.0, 4.0), (0.0, 1.0)])
def test_a_first_guess_has_wide_ranges(headroom, wider):
    p = _refining()
    context = PassContext(calibration=[[(torch.rand(1, 3, 8, 8),)] * 2])
    seen = Observe()(p, context)
    x = seen.node("conv2d_1").args[0]
    high = x.meta["observed"].total.range[1]
    after = Quantize(displacements="quantized", granularity="tensor", headroom=headroom)(seen, context)
    scales = {n.args[0].name: n.args[1] for n in after.calls if n.target is qd.quantize_per_tensor.default}
    assert scales[x.name] == pytest.approx(high * wider / 255, rel=1e-6)
    other = seen.node("conv2d_3").args[0]  # its flow is the last one
    assert scales[other.name] == pytest.approx(other.meta["observed"].total.range[1] * (1 + headroom) / 255, rel=1e-6)


def test_eight_bits_amid_fewer_have_the_whole_range():
    """The first guess is an edge: 8 bits of what was seen, and room; its neighbours follow the rule for few bits."""
    p = _refining()
    context = PassContext(calibration=[[(torch.rand(1, 3, 8, 8),)] * 2])
    seen = Observe()(p, context)
    after = Quantize(displacements="quantized", granularity="tensor", headroom=0.0, method="btbi", weight_bits=4,
                     activation_bits=4, edge_bits=8)(seen, context)  # fmt: skip
    made = {n.args[0].name: n.args for n in after.calls if n.target is qd.quantize_per_tensor.default}
    guess, later = seen.node("conv2d_1").args[0], seen.node("conv2d_3").args[0]
    high = guess.meta["observed"].total.range[1]
    assert made[guess.name][4] == 255 and made[guess.name][1] == pytest.approx(high * (1 + GUESS_HEADROOM) / 255, 1e-6)
    assert made[later.name][4] == 15
    assert made[later.name][1] < 0.999 * later.meta["observed"].total.range[1] / 15, "btbi cuts off"

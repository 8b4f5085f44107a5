"""quantize: what gets integers, what is kept and why, and that pictures lose nothing."""

import pytest
import torch
from handmade import Hand, aten, reasons, run

from vqc.calibration import Statistics
from vqc.frames import Frames
from vqc.known_ranges import known_ranges, pixel_grid
from vqc.passes.channel_balance import balance
from vqc.passes.lower_integer import LowerInteger
from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize, first_layers, tail_layers
from vqc.pipeline import PassContext, parse
from vqc.program import replace

qd = torch.ops.quantized_decomposed


def normalised(mid_groups: int = 1, cin: int = 3):
    """A picture, normalised per channel, through conv - relu - conv - conv."""
    h = Hand()
    x = h.input("x", 1, cin, 8, 8)
    mean, std = (
        h.const("mean", torch.rand(1, cin, 1, 1, generator=h.generator)),
        h.const("std", torch.rand(1, cin, 1, 1, generator=h.generator) + 0.2),
    )
    n = h(aten.div.Tensor, h(aten.sub.Tensor, x, mean), std)
    a = h(aten.conv2d, n, h.const("w0", h.rand(4, cin, 3, 3)), h.const("b0", h.rand(4)), [1, 1], [1, 1])
    w1 = h.const("w1", h.rand(4, 4 // mid_groups, 3, 3))
    b = h(aten.conv2d, h(aten.relu, a), w1, None, [1, 1], [1, 1], [1, 1], mid_groups)
    program = h.done(h(aten.conv2d, b, h.const("w2", h.rand(1, 4, 1, 1)), None))
    program.inputs = (replace(program.inputs[0], known_range=(0.0, 1.0)),)
    return program


def clip(program, n=4, levels=255):
    g = torch.Generator().manual_seed(1)
    shape = program.inputs[0].shape
    return [torch.randint(0, levels + 1, shape, generator=g).float() / levels for _ in range(n)]


def quantized(program, **options):
    frames = clip(program)
    return Quantize(**options)(Observe()(program, PassContext(calibration=frames))), frames


def test_layers_in_other_numbers_and_with_computed_weights_are_named():
    h = Hand()
    x = h.input("x", 1, 3, 8, 8)
    half = h(aten._to_copy, x, dtype=torch.bfloat16)
    low = h(aten.conv2d, half, h.const("w0", h.rand(4, 3, 1, 1).bfloat16()))
    y = h(aten._to_copy, low, dtype=torch.float32)
    kernel = h(aten.reshape, h(aten.mean.dim, x, [2, 3]), [1, 3, 1, 1])
    dynamic = h(aten.conv2d, x, kernel)
    a = h(aten.conv2d, h(aten.mul.Tensor, y, dynamic), h.const("w1", h.rand(4, 4, 1, 1)))
    program = h.done(h(aten.conv2d, a, h.const("w2", h.rand(1, 4, 1, 1))))
    after, _ = quantized(program)
    assert reasons(after) == {
        "conv2d": "it computes in torch.bfloat16: only layers in float32 get integers (module.float())",
        "conv2d_1": "its weight is computed at every step",
        "conv2d_3": "it makes a result directly (tail=float)",
    }
    assert after.history[-1].rewrites == {"activation": 1, "weight": 1}
    again = Quantize()(after)
    assert "conv2d_2" not in reasons(again)  # it has integers


def sqnr(a, b):
    return float(10 * torch.log10(a.square().sum() / (a - b).square().sum()))


def test_counts_reasons_and_closeness():
    before = normalised()
    after, frames = quantized(before)
    assert after.history[-1].rewrites == {"activation": 2, "weight": 2}
    assert reasons(after) == {"conv2d_2": "it makes a result directly (tail=float)"}
    assert tail_layers(before) == {before.node("conv2d_2")}
    assert sqnr(run(before, [frames[0]])[0], run(after, [frames[0]])[0]) > 30


def test_eight_bit_pictures_lose_nothing():
    """With 8-bit weights that are exact, the first layer's result on an 8-bit picture is exact but for its border."""
    before = normalised()
    before.constants["w0"] = torch.randint(-127, 128, before.constants["w0"].shape).float() / 64
    before.constants["w0"][:, 0, 0, 0] = 127 / 64
    before.constants["std"] = torch.full_like(before.constants["std"], 0.5)
    after, frames = quantized(before)
    grid = pixel_grid(before, before.node("div"))
    assert grid is not None and (grid.zero != grid.zero.round()).any()
    want = run(before.with_outputs(["conv2d"]), [frames[0]])[-1]
    got = run(after.with_outputs(["conv2d"]), [frames[0]])[-1]
    inside = (want - got)[..., 1:-1, 1:-1].abs().max()
    assert inside < 2e-5 * want.abs().max()
    ablated = run(quantized(before, pixels=0)[0].with_outputs(["conv2d"]), [frames[0]])[-1]
    assert (want - ablated)[..., 1:-1, 1:-1].abs().max() > 20 * inside


def uneven(groups: int):
    """normalised(), with channels between the first two convolutions that differ a thousand times in range."""
    program = normalised(mid_groups=groups)
    spread = torch.tensor([1.0, 0.03, 30.0, 0.2]).view(4, 1, 1, 1)
    program.constants["w0"] = program.constants["w0"] * spread
    program.constants["b0"] = program.constants["b0"] * spread.flatten()
    if groups == 1:
        program.constants["w1"] = program.constants["w1"] / spread.view(1, 4, 1, 1)
    return program


@pytest.mark.parametrize("groups", [1, 4])
def test_channel_scales_where_channels_differ(groups):
    def kinds(program):
        return [str(n.target).split(".")[1] for n in program.calls if ".quantize_per" in str(n.target)]

    before = uneven(groups)
    auto, frames = quantized(before)
    plain, _ = quantized(before, granularity="tensor")
    assert kinds(auto) == ["quantize_per_channel", "quantize_per_channel"]
    assert kinds(plain) == ["quantize_per_channel", "quantize_per_tensor"]
    want = run(before.with_outputs(["conv2d_1"]), [frames[0]])[-1]
    worst = [min(sqnr(want[:, c], run(p.with_outputs(["conv2d_1"]), [frames[0]])[-1][:, c]) for c in range(4))
             for p in (auto, plain)]  # fmt: skip
    assert worst[0] > 30 and worst[0] > worst[1] + 10


def test_even_channels_keep_one_scale():
    program, seen = normalised(), Statistics()
    seen.update(torch.rand(1, 1, 8, 8).expand(1, 4, 8, 8))
    assert balance(program, program.node("conv2d_1"), seen, 256, 8) is None
    assert balance(program, program.node("conv2d_1"), seen, 256, 8, always=True) is not None


@pytest.mark.parametrize("method", ["mse", "omse"])
def test_weight_ranges_that_shrink(method):
    """Few bits and a few large weights: a searched step loses less of the weight, and of what the layer gives."""
    before = normalised()
    for name in ("w0", "w1"):
        before.constants[name] = before.constants[name].clone()
        before.constants[name][:, 0, 0, 0] = 6.0
    frames = clip(before)
    want = run(before.with_outputs(["conv2d_1"]), [frames[0]])[-1]
    got = {}
    for how in ("minmax", method):
        after, _ = quantized(before, weight_bits=3, weight_method=how)
        assert f"weight_method={how}" in str(after.history[-1]) or how == "minmax"
        got[how] = sqnr(want, run(after.with_outputs(["conv2d_1"]), [frames[0]])[-1])
    assert got[method] > got["minmax"] + 1


@pytest.mark.parametrize("options", [{"granularity": "channel"}, {"tail": "quantized"}, {"method": "mse"},
                                     {"method": "percentile"}, {"weight_bits": 6, "activation_bits": 6}])  # fmt: skip
def test_options_stay_close(options):
    before = normalised()
    after, frames = quantized(before, **options)
    assert sqnr(run(before, [frames[1]])[0], run(after, [frames[1]])[0]) > 18


def test_keep_and_missing_observers():
    before = normalised()
    assert reasons(quantized(before, keep=("conv2d_1",))[0])["conv2d_1"] == "kept in float by 'conv2d_1'"
    assert reasons(Quantize()(before))["conv2d_1"] == "its input was not observed; run observe before quantize"
    kept = parse("quantize{keep=[conv2d_1,stem.*]}").passes[0]
    assert kept.keep == ("conv2d_1", "stem.*") and str(kept) == "quantize{keep=[conv2d_1,stem.*]}"


def test_sums_that_do_not_fit_are_declined():
    h = Hand()
    x = h.input("x", 1, 70000)
    y = h(aten.linear, h(aten.sigmoid, x), h.const("w", torch.ones(1, 70000)), None)
    program = Quantize(tail="quantized")(h.done(y))
    assert "more than 31 bits hold" in reasons(program)["linear"]


def test_transposed_conv_scales_its_output_channels():
    h = Hand()
    x = h.input("x", 1, 4, 5, 5)
    w = h.rand(4, 3, 4, 4) * torch.tensor([1.0, 100.0, 0.01]).view(1, 3, 1, 1)
    before = h.done(h(aten.conv_transpose2d.input, x, h.const("w", w), None, [2, 2], [1, 1]))
    frames = [torch.rand(1, 4, 5, 5) for _ in range(3)]
    after = Quantize(tail="quantized")(Observe()(before, PassContext(calibration=frames)))
    a, b = run(before, [frames[0]])[0], run(after, [frames[0]])[0]
    assert min(sqnr(a[:, c], b[:, c]) for c in range(3)) > 33  # one scale for all would lose channel 2


def test_known_ranges():
    h = Hand()
    x, s = h.input("x", 1, 2, 4, 4), h.state("h", torch.zeros(1, 2, 4, 4))
    z = h(aten.sigmoid, x)
    both = h(aten.cat, [z, h(aten.tanh, x)], 1)
    program = h.done(h(aten.mul.Tensor, z, z), both, h(aten.relu, x), states=[h(aten.add.Tensor, s, x)])
    program.states = (replace(program.states[0], known_range=(-1.0, 1.0)),)
    found = {n.name: r for n, r in known_ranges(program).items()}
    assert found == {"h": (-1, 1), "sigmoid": (0, 1), "tanh": (-1, 1), "cat": (-1, 1), "mul": (0, 1), "add": (-1, 1)}


def test_a_declared_range_holds_for_what_a_next_state_shows_in_another_shape():
    h = Hand()
    x = h.input("x", 1, 4, 4, 4)
    h.state("whole", torch.zeros(1, 2, 4, 4))
    h.state("part", torch.zeros(1, 2, 4, 4))
    total = h(aten.add.Tensor, x, x)
    more = h(aten.mul.Tensor, total, 3.0)
    turned = h(aten.permute, h(aten.slice.Tensor, total, 1, 0, 2), [0, 1, 3, 2])
    program = h.done(more, states=[turned, h(aten.slice.Tensor, more, 1, 0, 2)])
    program.states = tuple(replace(t, known_range=(0.0, 1.0)) for t in program.states)
    found = {n.name: r for n, r in known_ranges(program).items()}
    first, second = (n.name for n in program.calls if "slice" in n.name)
    assert found[first] == found[second] == found["permute"] == (0, 1)  # what the first is cut from may hold more
    assert "add" not in found and "mul" not in found


def clip_of(shape, n=4):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=g) for _ in range(n)]


def framed_batch():
    """Three frames in the batch, each a hundred times the one before, through two convolutions that keep them apart."""
    h = Hand()
    x = h.input("x", 3, 2, 6, 6, frames=Frames("axis", 0, 3))
    sized = h(aten.mul.Tensor, x, h.const("size", torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1, 1)))
    a = h(aten.conv2d, sized, h.const("w0", h.rand(3, 2, 3, 3)), h.const("b0", torch.zeros(3)), [1, 1], [1, 1])
    return h.done(h(aten.conv2d, h(aten.relu, a), h.const("w1", h.rand(2, 3, 3, 3)), None))


def by_frames(program, policy="frame", **options):
    frames = clip_of(program.inputs[0].shape)
    observed = Observe(policy)(program, PassContext(calibration=frames))
    return Quantize(tail="quantized", pixels=0, **options)(observed), frames


def test_bounds_of_each_frame_in_the_batch():
    """What is small in one frame is not lost beside another, larger one. No integer kernel takes that."""
    before = framed_batch()
    apart, frames = by_frames(before, frames=True, method="btbi", weight_bits=8)
    alone, _ = by_frames(before, method="btbi")
    assert apart.history[-1].rewrites == {"activation": 2, "activation by frame slot": 2, "weight": 2}
    kinds = [n for n in apart.calls if n.target is qd.quantize_per_channel.default]
    assert [n.args[3] for n in kinds] == [0, 0] and all(apart.constant(n.args[1]).shape == (3,) for n in kinds)
    want = run(before, [frames[0]])[0]
    worst = [min(sqnr(want[k], run(p, [frames[0]])[0][k]) for k in range(3)) for p in (apart, alone)]
    assert worst[0] > 25 and worst[1] < 5
    lowered = LowerInteger()(apart)
    assert "a scale for each frame (axis 0), which no integer kernel takes" in reasons(lowered)["conv2d"]
    assert torch.equal(run(lowered, [frames[0]])[0], run(apart, [frames[0]])[0])


def window_of_two(spread=100.0):
    """Two pictures of a window side by side, the second `spread` times as large, through one convolution."""
    h = Hand()
    first, second = (Frames("slot", index=i, count=2) for i in range(2))
    a, b = h.input("a", 1, 2, 8, 8, frames=first), h.input("b", 1, 2, 8, 8, frames=second)
    both = h(aten.cat, [a, h(aten.mul.Tensor, b, h.const("spread", spread))], 1)
    w = h.rand(3, 4, 3, 3)
    w[:, 2:] /= spread
    return h.done(h(aten.conv2d, h(aten.relu, both), h.const("w", w), None, [1, 1], [1, 1]))


def test_slots_side_by_side_go_into_the_weight():
    """One pair a picture, all channels of it alike; lowered to one integer layer like any other."""
    before = window_of_two()
    frames = [tuple(torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(2 * t + i)) for i in range(2))
              for t in range(4)]  # fmt: skip
    observed = Observe("frame")(before, PassContext(calibration=frames))
    options = {"tail": "quantized", "granularity": "tensor", "method": "minmax"}
    apart, alone = Quantize(frames=True, **options)(observed), Quantize(**options)(observed)
    assert apart.history[-1].rewrites == {"activation": 1, "activation by frame slot": 1, "weight": 1}
    assert "activation by frame slot" not in alone.history[-1].rewrites
    (q,) = (n for n in apart.calls if n.target is qd.quantize_per_channel.default)
    scale = apart.constant(q.args[1])
    assert q.args[3] == 1 and scale[0] == scale[1] and scale[2] == scale[3] and scale[2] > 50 * scale[0]
    want = run(before, frames[0])[0]
    assert sqnr(want, run(apart, frames[0])[0]) > 35 > 25 > sqnr(want, run(alone, frames[0])[0])
    lowered = LowerInteger()(apart)
    assert lowered.history[-1].rewrites["layer"] == 1
    assert sqnr(run(apart, frames[0])[0], run(lowered, frames[0])[0]) > 100


def test_a_slot_of_zeros_takes_the_scale_of_another():
    before = window_of_two(spread=0.0)
    before.constants["w"] = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    frames = [tuple(torch.rand(1, 2, 8, 8) for _ in range(2)) for _ in range(3)]
    observed = Observe("frame")(before, PassContext(calibration=frames))
    after = Quantize(frames=True, tail="quantized", granularity="tensor")(observed)
    (q,) = (n for n in after.calls if n.target is qd.quantize_per_channel.default)
    assert after.constant(q.args[1]).unique().numel() == 1


def test_edges_have_bits_of_their_own():
    h = Hand()
    x = h.input("x", 1, 3, 8, 8)
    y = x
    for i in range(4):
        y = h(aten.relu, h(aten.conv2d, y, h.const(f"w{i}", h.rand(3, 3, 3, 3)), None, [1, 1], [1, 1]))
    before = h.done(y)
    assert first_layers(before) == {before.node("conv2d")} and tail_layers(before) == {before.node("conv2d_3")}
    context = PassContext(calibration=clip_of((1, 3, 8, 8)))
    after = Quantize(weight_bits=4, activation_bits=2, edge_bits=8, tail="quantized")(Observe()(before, context))
    tops = [n.args[4] for n in after.calls if n.target is qd.quantize_per_tensor.default]
    weights = [n.args[5] for n in after.calls if n.target is qd.dequantize_per_channel.default]
    assert tops == [255, 3, 3, 255] and weights == [127, 7, 7, 127]


def test_layers_that_read_one_tensor_with_channel_scales_of_their_own():
    """Two convolutions of one input for which other channel scales are best: each has integers and weights that fit."""
    h = Hand()
    x = h.input("x", 1, 4, 8, 8)
    spread = torch.tensor([1.0, 0.01, 100.0, 0.1]).view(1, 4, 1, 1)
    a = h(aten.mul.Tensor, x, h.const("spread", spread))
    even, other = h.rand(2, 4, 3, 3) / spread, h.rand(2, 4, 3, 3) / spread.sqrt()
    before = h.done(h(aten.conv2d, a, h.const("w0", even), None), h(aten.conv2d, a, h.const("w1", other), None))
    context = PassContext(calibration=clip_of((1, 4, 8, 8)))
    after = Quantize(tail="quantized")(Observe()(before, context))
    assert len([n for n in after.calls if n.target is qd.quantize_per_channel.default]) == 2
    for want, got in zip(run(before), run(after), strict=True):
        assert sqnr(want, got) > 30

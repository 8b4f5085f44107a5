"""Whole programs on Triton kernels in the interpreter: the reference's integers and states, step after step."""

import operator

import pytest
import torch
from handmade import Hand

import vqc
import vqc.ops
from vqc.backends.triton.backend import TritonBackend
from vqc.backends.triton.rules import why_not
from vqc.errors import TargetError, UnsupportedOp
from vqc.executable import Stream

aten, vops, qd = torch.ops.aten, torch.ops.vqc, torch.ops.quantized_decomposed


def weight(b, name, *shape):
    return b.const(name, torch.randint(-128, 128, shape, generator=b.generator).to(torch.int8))


def factors(b, name, o):
    return b.const(f"{name}_s", torch.rand(o, generator=b.generator) * 1e-3), b.const(f"{name}_b", b.rand(o))


def zero(b, name, value=128):
    return b.const(name, torch.tensor([value], dtype=torch.int32))


def quantize(b, x, scale=0.03):
    return b(qd.quantize_per_tensor, x, scale, 128, 0, 255, torch.uint8)


def same(program, clips, **options):
    """Run steps with the state carried on both, compare all results bit for bit; returns the executable."""
    ours, judge = vqc.compile(program, "triton", **options), vqc.compile(program, "reference")
    mine, theirs = Stream(ours), Stream(judge)
    for frame in clips:
        for a, b in zip(mine.step(frame), theirs.step(frame), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(mine.state, theirs.state, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
    return ours


def network():
    """A small recurrent network of every kind of integer layer, with gates, a residual and a resize between."""
    b = Hand("small", seed=4)
    x, h = b.input("x", 1, 3, 12, 16), b.state("h", torch.zeros(1, 16, 6, 8))
    w1, w2, wd = weight(b, "w1", 16, 3, 3, 3), weight(b, "w2", 32, 32, 1, 1), weight(b, "wd", 32, 1, 3, 3)
    (s1, b1), (s2, b2), (sd, bd) = factors(b, "c1", 16), factors(b, "c2", 32), factors(b, "cd", 32)
    wt, wg = weight(b, "wt", 16, 8, 4, 4), weight(b, "wg", 16, 16, 3, 3)
    (st, bt), (sg, bg) = factors(b, "ct", 8), factors(b, "cg", 16)
    slope, z1 = b.const("slope", torch.rand(16, generator=b.generator)), zero(b, "z1", 3)
    zc = b.const("zc", torch.randint(0, 256, (32,), generator=b.generator).to(torch.int32))
    scales, points = (
        b.const("q_s", torch.rand(32, generator=b.generator) * 0.05 + 0.01),
        b.const("q_z", zc_values(zc, b)),
    )
    y = b(vops.qconv2d, quantize(b, x), w1, s1, b1, z1, [2, 2], [1, 1], [1, 1], 1)
    y = b(aten.prelu, b(aten.add.Tensor, y, h), slope)  # the state as a residual
    u = quantize(b, y)
    g = b(vops.sigmoid, b(vops.qconv2d, u, wg, sg, bg, zero(b, "zg"), [1, 1], [1, 1], [1, 1], 1))
    new = b(aten.add.Tensor, b(aten.mul.Tensor, b(aten.rsub.Scalar, g, 1), h), b(aten.mul.Tensor, g, y))
    both = b(aten.cat, [new, y], 1)
    q = b(qd.quantize_per_channel, both, scales, points, 1, 0, 255, torch.uint8)
    d = b(vops.qconv2d_requantize, q, wd, sd, bd, zc, [1, 1], [1, 1], [1, 1], 32, "relu", 11.0, 5)
    e = b(vops.hardswish, b(vops.qconv2d, d, w2, s2, b2, zero(b, "z2", 5), [1, 1], [0, 0], [1, 1], 1))
    half = b(aten.flip, b(aten.slice.Tensor, e, 1, 0, 16), [3])
    up = b(vops.qconv_transpose2d, quantize(b, half), wt, st, bt, zero(b, "zt"), [2, 2], [1, 1], [0, 0], 1, [1, 1])
    out = b(vops.resize_bilinear, b(aten.clamp, up, 0.0, 1.0), 24, 32, False, 2.0, 2.0)
    return b.done(out, d, states=[new])


def zc_values(node, b):
    return b.program.constants[str(node.target)].to(torch.int64)


def test_a_network_equals_the_reference_with_its_state():
    program = network()
    g = torch.Generator().manual_seed(9)
    exe = same(program, [[torch.randn(1, 3, 12, 16, generator=g)] for _ in range(3)])
    kernels = exe.report.kernels
    made = {"conv_i8", "depthwise_i8", "pointwise", "resize_bilinear", "written in place", "view",
            "quantized in parts", "eager aten.flip"}  # fmt: skip
    assert set(kernels.values()) == made
    assert kernels["prelu"] == kernels["qconv2d"] == "conv_i8", "residual and PReLU in the convolution's kernel"
    assert [(d.node, d.reason) for d in exe.report.fallbacks] == [("flip", "there is no Triton kernel for aten.flip")]
    rows = 16 * 32 + 16 * 192 + 32 * 9 + 32 * 32 + 4 * 8 * 64  # filters' taps up to a multiple of a step of the sum
    tables = 2 * (24 + 32) * (4 + 4)
    assert exe.report.weight_bytes == rows + tables
    assert exe.report.state_bytes == 16 * 6 * 8 * 4
    assert any("interpreted" in n for n in exe.report.notes)


@pytest.mark.parametrize("way", ["dot", "popcount"])
def test_a_binary_network_keeps_signs_packed(way):
    b = Hand("bits", seed=6)
    x = b.input("x", 2, 40, 7, 9)
    ws = [b.const(f"w{i}", torch.where(b.rand(40, 40, 3, 3) < 0, -1, 1).to(torch.int8)) for i in range(2)]
    (s0, b0), (s1, b1) = factors(b, "l0", 40), factors(b, "l1", 40)
    tau = [b.const(f"t{i}", b.rand(40) * 0.1) for i in range(2)]
    slope = b.const("slope", torch.rand(40, generator=b.generator))
    mask = b(aten.gt.Scalar, b(aten.slice.Tensor, x, 1, 0, 1), 0.3)
    y = b(vops.bconv2d, b(vops.binarize, x, tau[0]), ws[0], s0, b0, [1, 1], [1, 1], [1, 1])
    y = b(aten.prelu, b(aten.add.Tensor, y, x), slope)
    z = b(vops.masked_bconv2d, b(vops.binarize, y, tau[1]), ws[1], s1, b1, mask, [1, 1], [1, 1], [1, 1])
    program = b.done(b(aten.add.Tensor, z, y))
    exe = same(program, [list(program.example)], binary=way)
    names = exe.report.kernels
    assert names["bconv2d"] == names["prelu"] == names["binarize_1"] == names["masked_bconv2d"] == f"bconv_{way}"
    assert names["binarize"] == names["gt"] == "pointwise"
    assert exe.report.fallbacks == []


def binary_weight(b, name, *shape):
    return b.const(name, torch.where(b.rand(*shape) < 0, -1, 1).to(torch.int8))


@pytest.mark.parametrize("way", ["dot", "popcount"])
def test_thresholds_and_signs_that_others_read(way):
    """Signs packed by a layer for the next one; signs that are a result, too, or are concatenated, as s8."""
    b = Hand("tests", seed=7)
    x = b.input("x", 1, 40, 6, 9)
    w = [binary_weight(b, f"w{i}", 40, 40, 3, 3) for i in range(2)] + [binary_weight(b, "w2", 5, 80, 1, 1)]
    limit = [b.const(f"t{i}", torch.randint(-30, 30, (40,), generator=b.generator).to(torch.int32)) for i in range(2)]
    flip = [b.const(f"f{i}", b.rand(40) < 0) for i in range(2)]
    s, c = factors(b, "l", 5)
    plain = [[1, 1], [1, 1], [1, 1]]
    signs = b(vops.binarize, x, b.const("tau", b.rand(40) * 0.3))
    first = b(vops.bconv2d_threshold, signs, w[0], limit[0], flip[0], *plain)
    second = b(vops.bconv2d_threshold, first, w[1], limit[1], flip[1], *plain)
    both = b(aten.cat, [signs, second], 1)
    y = b(vops.bconv2d, both, w[2], s, c, [1, 1], [0, 0], [1, 1])
    exe = same(b.done(y, second), [[torch.randn(1, 40, 6, 9)]], binary=way)
    assert exe.report.fallbacks == []
    assert exe.report.kernels["bconv2d_threshold"] == exe.report.kernels["bconv2d"] == f"bconv_{way}"
    assert exe.report.kernels["cat"] == "move_channels", "one of them is a result"


def test_what_is_not_known_to_be_signs_stays_with_pytorch():
    b = Hand("mixed")
    x = b.input("x", 1, 8, 5, 5)
    s, c = factors(b, "l", 4)
    signs = b(aten.sign, x)
    eight = b(aten._to_copy, signs, dtype=torch.int8)
    y = b(vops.bconv2d, eight, binary_weight(b, "w", 4, 8, 1, 1), s, c, [1, 1], [0, 0], [1, 1])
    exe = same(b.done(y), [[torch.randn(1, 8, 5, 5)]])
    reasons = {d.node: d.reason for d in exe.report.fallbacks}
    assert reasons["bconv2d"] == "its picture is not known to hold +1 and -1 alone"


def test_masks_are_made_in_kernels():
    """Comparisons of both operands, flags as floats again, flags as results; a float convolution under such a mask."""
    b = Hand("flags", seed=3)
    x, y = b.input("x", 1, 1, 10, 18), b.input("y", 1, 1, 10, 18)
    w, c = b.const("w", b.rand(6, 3, 3, 3)), b.const("c", b.rand(6))
    limit = b.const("limit", torch.tensor(0.2))
    mask = b(aten.ge.Tensor, x, y)
    seen = b(aten._to_copy, b(aten.gt.Tensor, b(aten.abs, x), limit), dtype=torch.float32)
    wide = b(vops.resize_bilinear, seen, 5, 9, False, None, None)
    inside = b(aten.lt.Scalar, wide, 0.5)
    less = b(aten.le.Tensor, limit, x)
    masked = b(vops.masked_conv2d, b(aten.cat, [x, y, seen], 1), w, c, mask, [1, 1], [1, 1], [1, 1], 1)
    program = b.done(inside, mask, less, b(aten._to_copy, less, dtype=torch.float32), seen, b(aten.relu, masked))
    ours = vqc.compile(program, "triton")
    g = torch.Generator().manual_seed(1)
    frame = [torch.randn(1, 1, 10, 18, generator=g) for _ in range(2)]
    frame[0][0, 0, 0, :3] = torch.tensor([float("nan"), 0.2, -0.2])
    made, wanted = ours.step(frame)[0], vqc.compile(program, "reference").step(frame)[0]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(made[:5], wanted[:5], strict=True))
    keep = wanted[1]
    assert keep.any() and not keep.all()
    picture, (weight, bias) = torch.cat([*frame, wanted[4]], 1), (program.constants[k] for k in ("w", "c"))
    sums = vops.conv2d(picture, weight, bias, [1, 1], [1, 1], [1, 1], 1)
    ordered = torch.where(keep, sums, 0.0).relu()  # its sums have no order in the reference: here they do
    torch.testing.assert_close(made[5], ordered, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(made[5], wanted[5], rtol=0, atol=2e-6, equal_nan=True)
    assert ours.report.fallbacks == []
    kernels = ours.report.kernels
    assert kernels["gt"] == kernels["abs_1"] == "pointwise" and kernels["lt"] == "resize_bilinear"
    assert kernels["relu"] == kernels["masked_conv2d"] == "conv_f32"


def test_masked_and_linear_layers():
    b = Hand("rest", seed=2)
    x, v = b.input("x", 1, 5, 9, 20), b.input("v", 3, 2, 24)
    w, wl = weight(b, "w", 7, 5, 3, 3), weight(b, "wl", 6, 24)
    (s, c), (sl, cl) = factors(b, "l", 7), factors(b, "k", 6)
    mask = b(aten.gt.Scalar, b(aten.slice.Tensor, x, 1, 0, 1), 0.8)
    y = b(vops.masked_qconv2d_requantize, quantize(b, x), w, s, c, zero(b, "z"), mask, [1, 1], [1, 1], [1, 1], 1,
          "relu", 9.0, 17)  # fmt: skip
    f = b(vops.masked_qconv2d, quantize(b, x, 0.01), w, s, c, zero(b, "z2"), mask, [1, 1], [1, 1], [1, 1], 1)
    f = b(aten.sub.Tensor, b(aten.relu, f), 0.25)
    q = b(qd.quantize_per_tensor, v, 0.02, 0, -128, 127, torch.int8)
    lin = b(vops.qlinear, q, wl, sl, cl, zero(b, "zl", 0))
    out = b(vops.qlinear_requantize, q, wl, sl, None, zero(b, "zm", 0), "none", 20.0, 100)
    program = b.done(y, f, lin, out)
    g = torch.Generator().manual_seed(1)
    exe = same(program, [[torch.randn(1, 5, 9, 20, generator=g), torch.randn(3, 2, 24, generator=g)]])
    assert exe.report.kernels["qlinear"] == exe.report.kernels["masked_qconv2d"] == "conv_i8"
    assert exe.report.kernels["sub"] == "conv_i8"


def test_what_has_no_kernel_is_an_error_if_asked_for():
    program = network()
    with pytest.raises(UnsupportedOp, match="cannot take .* operators of small") as e:
        vqc.compile(program, "triton", fallback="none")
    assert "flip (aten.flip): there is no Triton kernel for aten.flip" in str(e.value)
    backend = TritonBackend()
    assert backend.supports(program, program.node("qconv2d"), "cuda") is None
    assert backend.supports(program, program.node("flip"), "cuda") == "there is no Triton kernel for aten.flip"


def test_options_are_checked():
    program = network()
    with pytest.raises(TargetError, match="no option 'threads'"):
        vqc.compile(program, "triton", threads=2)
    with pytest.raises(TargetError, match="option binary cannot be 'bits'"):
        vqc.compile(program, "triton", binary="bits")


def test_float_layers_and_moves():
    """Warp, average, mean, ordered and plain convolutions; a concatenation and its parts."""
    b = Hand("floats", seed=5)
    x, grid = b.input("x", 1, 6, 8, 10), b.input("grid", 1, 8, 10, 2)
    w, c = b.const("w", b.rand(4, 6, 3, 3)), b.const("c", b.rand(4))
    warped = b(aten.relu, b(vops.grid_sample, x, grid, "border", True))
    pooled = b(vops.avg_pool2d, warped, [2, 2], [2, 2], [0, 0], False, True)
    gate = b(vops.sigmoid, b(vops.mean_hw, pooled))
    y = b(aten.div.Tensor, b(aten.mul.Tensor, b(vops.conv2d, x, w, c, [2, 2], [1, 1], [1, 1], 1), 2.0), 3.0)
    both = b(aten.cat, [b(aten.mul.Tensor, pooled, gate), y], 1)
    parts = b(aten.split.Tensor, both, 4, 1)
    free = b(aten.conv2d, x, w, c, [1, 1], [1, 1], [1, 1], 1)
    program = b.done(b(operator.getitem, parts, 1), b(operator.getitem, parts, 2), free)
    exe = same(program, [list(program.example)])
    kernels = exe.report.kernels
    assert kernels["grid_sample"] == kernels["relu"] == "grid_sample"
    assert kernels["conv2d"] == kernels["div"] == "conv_f32"
    assert kernels["cat"] == "written in place", "both parts are made by kernels of their own"
    made = {"grid_sample", "avg_pool2d", "mean_hw", "sigmoid", "mul", "div", "split"}  # ends of chains, and moves
    assert exe.report.notes[0] == f"{len(made)} calls of Triton kernels, 1 operators left to PyTorch"
    assert kernels["split"] == kernels["getitem"] == "move_channels", "its parts are results"
    wanted = "a float convolution whose sums have no order: PyTorch's own is faster"
    assert [d.reason for d in exe.report.fallbacks] == [wanted]
    assert why_not(program, program.node(exe.report.fallbacks[0].node), whole=True) is None


def test_the_second_operand_as_the_chain():
    """x - f(x) is one kernel that takes its value off x; x / f(x) is two."""
    b = Hand("second", seed=8)
    x = b.input("x", 1, 5, 4, 6)
    less = b(aten.sub.Tensor, x, b(aten.relu, x))
    part = b(aten.div.Tensor, x, b(vops.sigmoid, x))
    program = b.done(less, part)
    exe = same(program, [list(program.example)])
    assert exe.report.fallbacks == [] and set(exe.report.kernels.values()) == {"pointwise"}
    assert exe.report.notes[0].startswith("3 calls of Triton kernels, 0 operators")


def test_concatenations_in_place_and_parts_that_are_views():
    """Written into two concatenations, twice into one; parts read as pictures, operands, planes, by every layer."""
    b = Hand("places", seed=9)
    x, h = b.input("x", 1, 6, 7, 9), b.state("h", torch.zeros(1, 6, 7, 9))
    w, wd = weight(b, "w", 8, 12, 3, 3), weight(b, "wd", 6, 1, 3, 3)
    (s, c), (sd, cd) = factors(b, "l", 8), factors(b, "d", 6)
    y = b(aten.relu, b(aten.add.Tensor, x, h))
    z = b(vops.sigmoid, x)
    both = b(aten.cat, [y, z, x, y], 1)
    again = b(aten.cat, [z, b(vops.tanh, y)], 1)
    parts = b(aten.split_with_sizes, both, [6, 6, 5, 1, 6], 1)
    first, gate, odd, plane, last = (b(operator.getitem, parts, i) for i in range(5))
    mixed = b(aten.mul.Tensor, b(aten.add.Tensor, b(aten.mul.Tensor, first, gate), plane), last)
    levels = b(aten.cat, [quantize(b, mixed), quantize(b, b(aten.slice.Tensor, again, 1, 6, 12), 0.01)], 1)
    conv = b(vops.qconv2d, levels, w, s, c, zero(b, "z"), [1, 1], [1, 1], [1, 1], 1)
    half = b(aten.slice.Tensor, levels, 1, 3, 9)
    deep = b(vops.qconv2d, half, wd, sd, cd, zero(b, "zd"), [1, 1], [1, 1], [1, 1], 6)
    small = b(vops.avg_pool2d, odd, [2, 2], [2, 2], [0, 0], False, True)
    wide = b(aten.mul.Tensor, b(vops.resize_bilinear, odd, 9, 11, False, None, None), b(vops.mean_hw, odd))
    turned = b(aten.flip, odd, [2])
    new = b(aten.mul.Tensor, b(aten.slice.Tensor, both, 1, 3, 9), 0.5)
    program = b.done(conv, deep, small, wide, turned, again, states=[new])
    g = torch.Generator().manual_seed(2)
    for dtype in ("float32", "float16"):
        exe = vqc.compile(program, "triton", residual_dtype=dtype)
        kernels = exe.report.kernels
        whole = "view" if dtype == "float32" else "move_channels"  # one of its parts goes to PyTorch, as float32
        assert [kernels[k] for k in ("split_with_sizes", "slice_1", "cat_2")] == [whole, "view", "written in place"]
        assert kernels["cat"] == kernels["cat_1"] == "move_channels", "x, and what stands elsewhere, are moved there"
    same(program, [[torch.randn(1, 6, 7, 9, generator=g)] for _ in range(2)])


def test_quantizers_of_concatenations_are_spread():
    """One scale, and one for each channel; a part that is a result, too; a concatenation that others read stays."""
    b = Hand("spread", seed=4)
    x, h = b.input("x", 1, 5, 6, 9), b.state("h", torch.zeros(1, 5, 6, 9))
    y, z = b(vops.sigmoid, x), b(vops.tanh, b(aten.mul.Tensor, x, h))
    scales = b.const("scales", torch.rand(10, generator=b.generator) * 0.02 + 0.01)
    points = b.const("points", torch.randint(0, 256, (10,), generator=b.generator))
    both = quantize(b, b(aten.cat, [y, h, z], 1), 0.01)
    each = b(qd.quantize_per_channel, b(aten.cat, [z, y], 1), scales, points, 1, 0, 255, torch.uint8)
    kept = b(aten.cat, [x, h], 1)
    new = b(aten.add.Tensor, y, z)
    program = b.done(both, each, quantize(b, kept, 0.02), b(aten.relu, kept), y, states=[new])
    g = torch.Generator().manual_seed(3)
    exe = same(program, [[torch.randn(1, 5, 6, 9, generator=g)] for _ in range(2)])
    kernels = exe.report.kernels
    assert kernels["cat"] == kernels["cat_1"] == "quantized in parts" != kernels["cat_2"]
    assert kernels["quantize_per_tensor"] == "written in place"
    assert all(n.name in kernels for n in program.calls)

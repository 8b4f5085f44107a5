"""The integer convolution kernels in the interpreter, bit for bit against the reference operators."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401  registers vqc::
from vqc.backends.triton import masks
from vqc.backends.triton.convolution import Convolution, Geometry, why_not_integers
from vqc.backends.triton.epilogue import Epilogue, Levels, Step
from vqc.ops._common import conv_size, conv_transpose_size

CPU = torch.device("cpu")
vops = torch.ops.vqc
FEW = settings(max_examples=12, deadline=None, derandomize=True)


def levels(g, *shape, dtype=torch.uint8):
    low, high = (0, 256) if dtype == torch.uint8 else (-128, 128)
    return torch.randint(low, high, shape, generator=g).to(dtype)


def zeros(g, count, dtype):
    return levels(g, count, dtype=dtype).to(torch.int32)


def weights(g, *shape, low=-128):
    return torch.randint(low, -low, shape, generator=g).to(torch.int8)


def factors(g, o):
    return torch.rand(o, generator=g) * 1e-3 + 1e-5, torch.randn(o, generator=g)


@st.composite
def convolutions(draw, groups=(1, 2)):
    """Arguments of a convolution, sizes odd and even, channels seldom a multiple of a tile."""
    g = draw(st.sampled_from(groups))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    pad = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * pad[i]) for i in (0, 1)]
    size = [draw(st.integers(least[i], least[i] + 9)) for i in (0, 1)]
    return {
        "groups": g, "kernel": kernel, "stride": list(stride), "dilation": list(dilation), "pad": list(pad),
        "size": size, "n": draw(st.integers(1, 2)), "c": g * draw(st.sampled_from((1, 3, 17, 32, 40, 64))),
        "o": g * draw(st.sampled_from((1, 5, 16, 33))), "seed": draw(st.integers(0, 2**20)),
        "dtype": draw(st.sampled_from((torch.uint8, torch.int8))), "channels": draw(st.booleans()),
        "bias": draw(st.booleans()), "four": draw(st.booleans()), "relu": draw(st.booleans()),
    }  # fmt: skip


def layer(p, epilogue, masked=False, **options):
    """(call, x, the reference operator's arguments)."""
    g = torch.Generator().manual_seed(p["seed"])
    out = tuple(conv_size(p["size"][i], p["kernel"][i], p["stride"][i], p["pad"][i], p["dilation"][i]) for i in (0, 1))
    x = levels(g, p["n"], p["c"], *p["size"], dtype=p["dtype"])
    w = weights(g, p["o"], p["c"] // p["groups"], *p["kernel"], low=-8 if p["four"] else -128)
    scale, bias = factors(g, p["o"])
    bias = bias if p["bias"] else None
    zero = zeros(g, p["c"] if p["channels"] else 1, p["dtype"])
    where = Geometry(tuple(x.shape), out, tuple(p["stride"]), tuple(p["pad"]), tuple(p["dilation"]), p["groups"])
    call = Convolution(where, w, scale, bias, zero, p["dtype"] == torch.uint8, epilogue, CPU, masked=masked, **options)
    return call, x, (x, w, scale, bias, zero), (p["stride"], p["pad"], p["dilation"], p["groups"])


@given(convolutions())
@FEW
def test_float_results_equal_the_reference(p):
    call, x, tensors, numbers = layer(p, Epilogue())
    assert torch.equal(call(x).value, vops.qconv2d(*tensors, *numbers))


@given(convolutions(), st.integers(0, 255))
@FEW
def test_requantized_results_equal_the_reference(p, zero_point):
    inv = 37.3
    steps = (Step("relu"),) if p["relu"] else ()
    levels_of = Levels(torch.tensor([inv]), torch.tensor([float(zero_point)]), 0, 255, torch.uint8)
    call, x, tensors, numbers = layer(p, Epilogue(steps, value=False, levels=levels_of))
    wanted = vops.qconv2d_requantize(*tensors, *numbers, "relu" if p["relu"] else "none", inv, zero_point)
    made = call(x)
    assert made.value is None and torch.equal(made.levels, wanted)


@given(convolutions(groups=(6, 19)), st.sampled_from((1, 2, 3)))
@FEW
def test_depthwise_equals_the_reference(p, each):
    p |= {"c": p["groups"], "o": p["groups"] * each}
    call, x, tensors, numbers = layer(p, Epilogue())
    assert call.kernel == "depthwise_i8"
    assert torch.equal(call(x).value, vops.qconv2d(*tensors, *numbers))


def test_four_bit_weights_take_half_the_bytes():
    p = {"groups": 1, "kernel": (3, 3), "stride": [1, 1], "dilation": [1, 1], "pad": [1, 1], "size": [9, 7], "n": 1,
         "c": 128, "o": 24, "seed": 3, "dtype": torch.uint8, "channels": True, "bias": True, "four": True}  # fmt: skip
    call, x, tensors, numbers = layer(p, Epilogue())
    plain, *_ = layer(p, Epilogue(), four_bits=False)
    assert call.kernel == "conv_w4a8" and plain.kernel == "conv_i8"
    assert 2 * call.weight_bytes == plain.weight_bytes == 128 * 9 * 24
    wanted = vops.qconv2d(*tensors, *numbers)
    assert torch.equal(call(x).value, wanted) and torch.equal(plain(x).value, wanted)


@given(convolutions(), st.data())
@FEW
def test_transposed_equals_the_reference(p, data):
    g = torch.Generator().manual_seed(p["seed"])
    kernel, stride, dilation = p["kernel"], p["stride"], p["dilation"]
    extra = [data.draw(st.integers(0, max(stride[i], dilation[i]) - 1)) for i in (0, 1)]
    size = [data.draw(st.integers(1, 6)) for _ in (0, 1)]
    out = tuple(conv_transpose_size(size[i], kernel[i], stride[i], p["pad"][i], extra[i], dilation[i]) for i in (0, 1))
    if min(out) < 1:
        size = [s + 6 for s in size]
        out = tuple(
            conv_transpose_size(size[i], kernel[i], stride[i], p["pad"][i], extra[i], dilation[i]) for i in (0, 1)
        )
    x = levels(g, p["n"], p["c"], *size, dtype=p["dtype"])
    w = weights(g, p["c"], p["o"] // p["groups"], *kernel, low=-8 if p["four"] else -128)
    scale, bias = factors(g, p["o"])
    zero = zeros(g, p["c"] if p["channels"] else 1, p["dtype"])
    where = Geometry(tuple(x.shape), out, tuple(stride), tuple(p["pad"]), tuple(dilation), p["groups"], transposed=True)
    call = Convolution(where, w, scale, bias, zero, p["dtype"] == torch.uint8, Epilogue(), CPU)
    wanted = vops.qconv_transpose2d(x, w, scale, bias, zero, stride, p["pad"], extra, p["groups"], dilation)
    assert torch.equal(call(x).value, wanted)


@given(convolutions(), st.sampled_from((0.0, 0.02, 0.3, 1.0)))
@FEW
def test_masked_equals_the_reference(p, density):
    call, x, (xx, w, scale, bias, zero), numbers = layer(p, Epilogue(), masked=True)
    g = torch.Generator().manual_seed(p["seed"] + 1)
    mask = torch.rand(p["n"], 1, *call.geometry.out, generator=g) < density
    plain, listed = masks.find(mask)
    wanted = vops.masked_qconv2d(xx, w, scale, bias, zero, mask, *numbers)
    assert torch.equal(call(x, (), plain, listed).value, wanted)


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 50), st.sampled_from((0.0, 0.01, 0.2, 1.0)),
       st.integers(0, 2**20))  # fmt: skip
@FEW
def test_the_list_of_tiles(n, h, w, density, seed):
    mask = torch.rand(n, 1, h, w, generator=torch.Generator().manual_seed(seed)) < density
    plain, (tiles, count) = masks.find(mask)
    assert torch.equal(plain.bool(), mask[:, 0])
    wanted = []
    for image in range(n):
        for row in range(0, h, 8):
            wanted += [bool(mask[image, 0, row : row + 8, col : col + 16].any()) for col in range(0, w, 16)]
    active = [i for i, busy in enumerate(wanted) if busy]
    assert int(count) == len(active)
    assert tiles.tolist() == active + [i for i, busy in enumerate(wanted) if not busy]


def test_linear_layers_are_convolutions_of_one_row():
    g = torch.Generator().manual_seed(5)
    for dtype in (torch.uint8, torch.int8):
        x = levels(g, 3, 7, 50, dtype=dtype)
        w = weights(g, 19, 50)
        scale, bias = factors(g, 19)
        zero = zeros(g, 1, dtype)
        where = Geometry((1, 50, 1, 21), (1, 21), (1, 1), (0, 0), (1, 1), 1)
        call = Convolution(where, w[:, :, None, None], scale, bias, zero, dtype == torch.uint8, Epilogue(), CPU)
        y = call(x.reshape(1, 1, 21, 50).permute(0, 3, 1, 2)).value.permute(0, 2, 3, 1).reshape(3, 7, 19)
        assert torch.equal(y, vops.qlinear(x, w, scale, bias, zero))


def test_sums_that_no_float32_holds():
    """About 66 million: rounded once, to even, when it becomes a float32."""
    c = 2048
    x = torch.full((1, c, 1, 2), 255, dtype=torch.uint8)
    x[0, 5] = 200
    w = torch.full((2, c, 1, 1), 127, dtype=torch.int8)
    w[1] = -128
    scale, zero = torch.tensor([1.0, 1.0]), torch.tensor([1], dtype=torch.int32)
    where = Geometry((1, c, 1, 2), (1, 2), (1, 1), (0, 0), (1, 1), 1)
    made = Convolution(where, w, scale, None, zero, True, Epilogue(), CPU)(x).value
    assert torch.equal(made, vops.qconv2d(x, w, scale, None, zero, [1, 1], [0, 0], [1, 1], 1))
    assert int(made[0, 0, 0, 0]) != 127 * (254 * (c - 1) + 199)


def test_numbers_the_kernels_decline():
    zero = torch.tensor([0], dtype=torch.int32)
    w = torch.full((1, 70000, 1, 1), -128, dtype=torch.int8)
    assert why_not_integers(w, zero, True, 1, False) == "a sum might leave int32"
    assert why_not_integers(w.reshape(70000, 1, 1, 1), zero, True, 1, True) == "a sum might leave int32"
    assert why_not_integers(w.reshape(70000, 1, 1, 1), zero, True, 1, False) is None
    assert why_not_integers(w.to(torch.int16), zero, True, 1, False) == "its weights are s16; tensor cores multiply s8"
    assert why_not_integers(w[:, :1], zero - 1, True, 1, False) == "a zero point lies outside 0..255"
    assert why_not_integers(w[:, :1], zero + 128, False, 1, False) == "a zero point lies outside -128..127"

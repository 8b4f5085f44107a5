"""Steps, quantizers and packed signs behind a layer, bit for bit against the operators they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401  registers vqc::
from vqc.backends.triton import packing
from vqc.backends.triton.convolution import Convolution, Geometry
from vqc.backends.triton.epilogue import Epilogue, Levels, Step
from vqc.backends.triton.pointwise import Pointwise

CPU = torch.device("cpu")
aten, vops, qd = torch.ops.aten, torch.ops.vqc, torch.ops.quantized_decomposed
ALONE = {
    "relu": aten.relu, "hardsigmoid": vops.hardsigmoid,
    "hardswish": vops.hardswish, "sigmoid": vops.sigmoid, "tanh": vops.tanh, "silu": vops.silu, "abs": aten.abs,
}  # fmt: skip
WITH = {
    "add": lambda y, r: y + r, "sub": lambda y, r: y - r, "rsub": lambda y, r: r - y, "mul": lambda y, r: y * r,
    "div": lambda y, r: y / r, "least": torch.maximum, "most": torch.minimum,
    "gt": lambda y, r: (y > r).float(), "ge": lambda y, r: (y >= r).float(), "lt": lambda y, r: (y < r).float(),
    "le": lambda y, r: (y <= r).float(), "sign": lambda y, r: 1 - 2 * (y < r).float(),
}  # fmt: skip
SHAPES = {"full": (2, 37, 3, 5), "plane": (2, 1, 3, 5), "image": (2, 37, 1, 1), "channel": (1, 37, 1, 1),
          "one": (1, 1, 1, 1)}  # fmt: skip


def pictures(g, *shape):
    """Values of every size: around zero, large, tiny, and exact halves."""
    x = torch.randn(shape, generator=g) * 10 ** (torch.rand(shape, generator=g) * 6 - 4)
    return torch.where(torch.rand(shape, generator=g) < 0.2, torch.round(x) + 0.5, x)


@pytest.mark.parametrize("kind", ALONE)
def test_functions_of_one_value(kind):
    g = torch.Generator().manual_seed(7)
    x = pictures(g, 2, 37, 9, 9)
    x[0, 0, 0, :5] = torch.tensor([0.0, -0.0, 200.0, -200.0, 1e-40])
    made = Pointwise(tuple(x.shape), Epilogue((Step(kind),)), CPU)(x)
    assert torch.equal(made.value, ALONE[kind](x))


@pytest.mark.parametrize("kind", WITH)
@pytest.mark.parametrize("place", SHAPES)
def test_steps_with_an_operand(kind, place):
    g = torch.Generator().manual_seed(8)
    x, r = pictures(g, *SHAPES["full"]), pictures(g, *SHAPES[place])
    made = Pointwise(tuple(x.shape), Epilogue((Step(kind, place, 0),)), CPU)(x, [r])
    assert torch.equal(made.value, WITH[kind](x, r))


LEVELS = ((0, 255, torch.uint8), (-128, 127, torch.int8), (0, 15, torch.uint8))


@given(st.integers(0, 2**20), st.booleans(), st.sampled_from(LEVELS))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_quantizers(seed, each, kind):
    low, high, dtype = kind
    g = torch.Generator().manual_seed(seed)
    x = pictures(g, 2, 19, 4, 5)
    count = 19 if each else 1
    scale = torch.rand(count, generator=g) * 0.2 + 0.01
    zero = torch.randint(low, high + 1, (count,), generator=g)
    if each:
        wanted = qd.quantize_per_channel(x, scale, zero, 1, low, high, dtype)
        inv = 1.0 / scale
    else:
        wanted = qd.quantize_per_tensor(x, float(scale), int(zero), low, high, dtype)
        inv = torch.tensor([1.0 / float(scale)])
    made = Pointwise(tuple(x.shape), Epilogue((), False, Levels(inv, zero.float(), low, high, dtype)), CPU)(x)
    assert torch.equal(made.levels, wanted)


@given(st.integers(0, 2**20), st.sampled_from((1, 31, 32, 45)), st.booleans())
@settings(max_examples=10, deadline=None, derandomize=True)
def test_signs(seed, channels, each):
    g = torch.Generator().manual_seed(seed)
    x, tau = torch.randn(1, channels, 3, 5, generator=g), torch.randn(channels if each else 1, generator=g)
    x[0, 0, 0, 0] = tau[0]  # equality is +1
    x[0, 0, 0, 1] = float("nan")
    made = Pointwise(tuple(x.shape), Epilogue(value=False, signs=tau), CPU)(x)
    assert torch.equal(packing.unpacked(made.signs, channels), vops.binarize(x, tau))


def test_a_chain_with_all_three_results():
    """conv, residual, PReLU, gate of every channel; then the value, its levels and its signs."""
    g = torch.Generator().manual_seed(11)
    x = torch.randint(0, 256, (2, 20, 6, 7), generator=g).to(torch.uint8)
    w = torch.randint(-128, 128, (40, 20, 3, 3), generator=g).to(torch.int8)
    scale, bias = torch.rand(40, generator=g) * 1e-3, torch.randn(40, generator=g)
    zero = torch.tensor([131], dtype=torch.int32)
    residual, gate = torch.randn(2, 40, 6, 7, generator=g), torch.rand(2, 40, 1, 1, generator=g)
    slope = torch.randn(40, generator=g)
    inv, tau = torch.rand(40, generator=g) * 30, torch.randn(40, generator=g)
    steps = (Step("add", "full", 0), Step("prelu", "channel", slope), Step("mul", "image", 1))
    out = Epilogue(steps, True, Levels(inv, torch.full((40,), 7.0), 0, 255, torch.uint8), tau)
    call = Convolution(Geometry((2, 20, 6, 7), (6, 7), (1, 1), (1, 1), (1, 1), 1), w, scale, bias, zero, True, out, CPU)
    made = call(x, [residual, gate])
    y = vops.qconv2d(x, w, scale, bias, zero, [1, 1], [1, 1], [1, 1], 1)
    y = aten.prelu(y + residual, slope) * gate
    assert torch.equal(made.value, y)
    inv4 = inv.view(1, -1, 1, 1)
    assert torch.equal(made.levels, (torch.round(y * inv4) + 7).clamp(0, 255).to(torch.uint8))
    assert torch.equal(packing.unpacked(made.signs, 40), vops.binarize(y, tau))

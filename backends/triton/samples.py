"""Layers of real networks as launches on empty tensors: every kernel and variant, for compilation ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from vqc.backends.triton import floats, masks, products
from vqc.backends.triton.binary import BinaryConvolution
from vqc.backends.triton.convolution import Convolution, Geometry
from vqc.backends.triton.epilogue import FLAGS, Epilogue, Levels, Step
from vqc.backends.triton.launch import Launch, recording
from vqc.backends.triton.pointwise import Pointwise
from vqc.ops._common import conv_size, conv_transpose_size

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Layer:
    """A convolution layer: channels in and out, picture, kernel, stride, groups; pad keeps the size at stride 1."""

    c: int
    o: int
    size: tuple[int, int]
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    transposed: bool = False


def levels(o: int) -> Levels:
    """A quantizer with one scale."""
    return Levels(torch.ones(1), torch.full((1,), 128.0), 0, 255, torch.uint8)


def convolution(layer: Layer, epilogue: Epilogue, *, masked: bool = False, four_bits: bool = False,
                device: torch.device = CPU, seed: int = 0) -> Convolution:  # fmt: skip
    """A convolution of a layer with random weights and u8 pictures."""
    g = torch.Generator().manual_seed(seed)
    pad = layer.dilation * (layer.kernel - 1) // 2
    if layer.transposed:
        out = [conv_transpose_size(s, layer.kernel, layer.stride, pad, layer.stride - 1, 1) for s in layer.size]
        shape = (layer.c, layer.o // layer.groups, layer.kernel, layer.kernel)
    else:
        out = [conv_size(s, layer.kernel, layer.stride, pad, layer.dilation) for s in layer.size]
        shape = (layer.o, layer.c // layer.groups, layer.kernel, layer.kernel)
    reach = 8 if four_bits else 128
    weight = torch.randint(-reach, reach, shape, generator=g).to(torch.int8)
    twice = (layer.stride,) * 2, (pad, pad), (layer.dilation,) * 2
    where = Geometry((1, layer.c, *layer.size), (out[0], out[1]), *twice, layer.groups, layer.transposed)
    return Convolution(where, weight, torch.full((layer.o,), 1e-4), torch.zeros(layer.o),
                       torch.tensor([128], dtype=torch.int32), True, epilogue, device, masked=masked,
                       four_bits=four_bits)  # fmt: skip


def binary(layer: Layer, epilogue: Epilogue, way: str | None, *, masked: bool = False, threshold: bool = False,
           device: torch.device = CPU, seed: int = 0) -> BinaryConvolution:  # fmt: skip
    """A binary convolution of a layer with random weights; threshold: one that ends in a test of its sums."""
    g = torch.Generator().manual_seed(seed)
    pad = layer.dilation * (layer.kernel - 1) // 2
    out = [conv_size(s, layer.kernel, layer.stride, pad, layer.dilation) for s in layer.size]
    weight = (2 * torch.randint(0, 2, (layer.o, layer.c, layer.kernel, layer.kernel), generator=g) - 1).to(torch.int8)
    where = Geometry((1, layer.c, *layer.size), (out[0], out[1]), (layer.stride,) * 2, (pad, pad),
                     (layer.dilation,) * 2, 1)  # fmt: skip
    scale = torch.zeros(layer.o, dtype=torch.int32) if threshold else torch.ones(layer.o)
    bias = torch.zeros(layer.o, dtype=torch.bool if threshold else torch.float32)
    return BinaryConvolution(where, weight, scale, bias, epilogue, device, masked=masked, way=way,
                             threshold=threshold)  # fmt: skip


def _first(made: tuple[list[Launch], object]) -> Launch:
    return made[0][0]


def samples() -> dict[str, Launch]:
    """Every kernel and variant by name."""
    u8 = lambda layer: torch.empty((1, layer.c, *layer.size), dtype=torch.uint8)  # noqa: E731
    words = lambda layer: torch.empty((1, *layer.size, -(-layer.c // 32)), dtype=torch.int32)  # noqa: E731
    full = lambda o, size: torch.empty((1, o, *size))  # noqa: E731
    requantize = Epilogue((Step("hardswish"),), False, levels(64))
    decoder, small = Layer(64, 64, (72, 128)), Layer(16, 40, (36, 64))
    mask = torch.empty((1, 1, 72, 128), dtype=torch.bool)
    finder, plain, listed = masks.launch_of(mask)
    residual = Epilogue(
        (Step("add", "full", 0), Step("prelu", "channel", torch.zeros(64))), True, None, torch.zeros(64)
    )
    one = Layer(64, 128, (72, 128), kernel=1)
    layers = {
        "conv 3x3, requantized": (decoder, requantize, {}),
        "conv 1x1, relu": (one, Epilogue((Step("relu"),), False, levels(128)), {}),
        "conv 3x3 stride 2, 3 channels": (Layer(3, 16, (288, 512), stride=2), requantize, {}),
        "conv 3x3 dilated, float": (Layer(64, 64, (36, 64), dilation=2), Epilogue(), {}),
        "conv 3x3 grouped": (Layer(48, 80, (36, 64), groups=2), Epilogue(), {}),
        "conv 3x3 odd channels": (small, requantize, {}),
        "conv w4a8": (decoder, requantize, {"four_bits": True}),
        "conv w4a8 odd channels": (small, requantize, {"four_bits": True}),
        "depthwise 5x5": (Layer(72, 72, (36, 64), kernel=5, groups=72), requantize, {}),
        "conv transposed, stride 2": (Layer(64, 32, (72, 128), stride=2, transposed=True), Epilogue(), {}),
    }
    found = {}
    for name, (layer, epilogue, more) in layers.items():
        found[name] = _first(convolution(layer, epilogue, **more).launches(u8(layer)))
    found["conv 3x3, residual, PReLU, signs"] = _first(
        convolution(decoder, residual).launches(u8(decoder), [full(64, decoder.size)]))  # fmt: skip
    found["conv 3x3 masked"] = _first(
        convolution(decoder, Epilogue(), masked=True).launches(u8(decoder), (), plain, listed))  # fmt: skip
    for way in ("dot", "popcount"):
        found[f"binary {way}"] = _first(
            binary(decoder, residual, way).launches(words(decoder), [full(64, decoder.size)]))  # fmt: skip
        found[f"binary {way} masked"] = _first(
            binary(decoder, Epilogue(value=False, signs=torch.zeros(1)), way, masked=True)
            .launches(words(decoder), (), plain, listed))  # fmt: skip
        tested = binary(decoder, Epilogue(value=False, signs=torch.zeros(1)), way, threshold=True)
        found[f"binary {way} threshold"] = _first(tested.launches(words(decoder)))
    found["tiles of a mask"] = finder
    gates = Epilogue((Step("sigmoid"), Step("mul", "full", 0)))
    found["gate"] = _first(Pointwise((1, 64, 72, 128), gates, CPU).launches(full(64, (72, 128)), [full(64, (72, 128))]))
    tanh = Epilogue((Step("tanh"),), True, levels(64))
    found["tanh, levels"] = _first(Pointwise((1, 64, 72, 128), tanh, CPU).launches(full(64, (72, 128))))
    flags = Epilogue((Step("abs"), Step("gt", "one", torch.zeros(1))), False, FLAGS)
    found["flags"] = _first(Pointwise((1, 1, 72, 128), flags, CPU).launches(full(1, (72, 128))))
    for dtype, name in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        stream = replace(residual, dtype=dtype)
        other = full(64, decoder.size).to(dtype)
        found[f"conv 3x3, residual in {name}"] = _first(convolution(decoder, stream).launches(u8(decoder), [other]))
    return found | _floats(plain, listed) | _products()


def _products() -> dict[str, Launch]:
    """Attention of 4 frames of 256 positions, 64 channels a head, and layers of 4-bit weights beside float16."""
    q, p, scales = torch.empty(8, 1024, 64, dtype=torch.int8), torch.empty(8, 1024, 1024), torch.ones(8, 4)
    half = [products.pack_levels(torch.zeros(8, 1024, n, dtype=torch.int8), f) for n, f in ((64, 1), (1024, 4))]
    one, probable = torch.ones(8, 1), p.to(torch.uint8)
    made = {
        "product q k": (q, q, scales, scales, None, 64, 1, False, 8, 8),
        "product q k, 4 bits": (half[0], half[0], scales, scales, None, 64, 1, False, 4, 4),
        "product p v, split": (probable, q, scales, one, scales, 1024, 4, True, 8, 8),
        "product p v, split, v of 4 bits": (probable, half[1][:, :64].contiguous(), scales, one, scales, 1024, 4,
                                            False, 8, 4),
    }  # fmt: skip
    found = {name: products.launch_of(*given)[0] for name, given in made.items()}
    g = Geometry((1, 64, 72, 128), (72, 128), (1, 1), (1, 1), (1, 1), 1)
    weight, x = torch.zeros(64, 64, 3, 3, dtype=torch.int8), torch.empty(1, 64, 72, 128, dtype=torch.float16)
    for name, scale in (("w4a16", torch.ones(64)), ("w4a16, scales of parts", torch.ones(9, 64))):
        layer = products.ConvolutionW4A16(g, weight, scale, torch.zeros(64), Epilogue(dtype=torch.float16), CPU)
        found[name] = _first(layer.launches(x))
    return found


def _floats(mask: torch.Tensor, listed: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Launch]:
    """Float layers and moves, each recorded as it is called."""
    wide, shape, half, u8 = (1, 24, 72, 128), (1, 24, 36, 64), (18, 32), Epilogue(value=False, levels=levels(24))
    x, grid, weight = torch.empty(shape), torch.empty(1, 36, 64, 2), torch.zeros(8, 24, 3, 3)
    calls: dict[str, Callable[[], object]] = {
        "resize": lambda: floats.resize(shape, (72, 128), False, (2.0, 2.0), u8, CPU)(x),
        "warp": lambda: floats.grid_sample(shape, (36, 64), True, True, Epilogue(), CPU)(x, [grid]),
        "average": lambda: floats.average(shape, half, [2, 2], [2, 2], [0, 0], True, False, u8, CPU)(x),
        "mean": lambda: floats.Mean()(x),
        "ordered convolution": lambda: floats.conv(
            shape, (36, 64), weight, torch.zeros(8), [1, 1], [1, 1], [1, 1], 1, Epilogue(), CPU)(x),
        "masked float convolution": lambda: floats.conv(
            wide, (72, 128), weight, torch.zeros(8), [1, 1], [1, 1], [1, 1], 1, Epilogue(), CPU, masked=True)(
            torch.empty(wide), (), mask, listed),
        "channels": lambda: floats.Channels([(0, 0, 24, 0, 24)], [48])([x]),
        "crop": lambda: floats.Channels([(0, 0, 24, 0, 0)], [24], None, (1, 0, 35, 64))([x]),
    }  # fmt: skip
    found: dict[str, Launch] = {}
    for name, call in calls.items():
        with recording(partial(found.__setitem__, name)):
            call()
    return found

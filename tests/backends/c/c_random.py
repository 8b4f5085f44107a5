"""Random small Programs of 8-bit convolutions and what may stand around them, all with exact meaning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from c_helpers import Builder, aten
from torch import Tensor, fx

import vqc.ops  # noqa: F401
from vqc.program import Program, dtype_of, shape_of

vops, qd = torch.ops.vqc, torch.ops.quantized_decomposed

SIZES = ((5, 7), (1, 1), (1, 9), (6, 6), (9, 2), (4, 100), (24, 60), (70, 20))
LARGEST = 60_000  # elements of a tensor that others are made of


def same_results(want: Sequence[Tensor], got: Sequence[Tensor], where: str = "", names: Sequence[str] = ()) -> None:
    """Assert that results are the same, every element, a NaN being a NaN; `names` of the results, for the message."""
    assert len(want) == len(got)
    for i, (a, b) in enumerate(zip(want, got, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape
        same = (a == b) | ((a != a) & (b != b))
        assert bool(same.all()), (
            f"{where}{names[i] if names else i} {list(a.shape)}: {int((~same).sum())} of {a.numel()} differ, "
            f"e.g. {a[~same][:4].tolist()} / {b[~same][:4].tolist()}"
        )


class Grower:
    """Adds random calls to a Builder; what it draws depends on the seed alone."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        h, w = self.rng.choice(SIZES)
        n, c = self.rng.choice((1, 1, 2)), self.rng.randint(1, 9)
        inputs = [self.rand(n, c, h, w) * 2, self.bytes(n, self.rng.randint(1, 9), h, w), self.rand(n, c, 1, 1),
                  self.rand(n, c, h, w) > 0]  # fmt: skip
        self.builder = Builder(inputs, [self.rand(n, c, h, w), self.rand(n, 4, h, w)], "random")
        self.made: list[fx.Node] = [*self.builder.inputs, *self.builder.states]

    def rand(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def bytes(self, *shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=self.generator).to(torch.uint8)

    # ---- choosing --------------------------------------------------------------------------------------------------

    def pick(self, kind: torch.dtype | None = None, like: fx.Node | None = None, same: tuple[int, ...] = (0, 1, 2, 3)
             ) -> fx.Node | None:  # fmt: skip
        """A picture of this type, of the sizes of `like` along these axes: more likely a late one."""
        fit = [
            n for n in self.made
            if kind in (None, dtype_of(n)) and len(shape_of(n)) == 4
            and (like is None or all(shape_of(n)[i] == shape_of(like)[i] for i in same))
        ]  # fmt: skip
        if not fit:
            return None
        fresh = [n for n in fit if not n.users]
        return self.rng.choice(fresh[-2:] if fresh and self.rng.random() < 0.8 else fit)

    def float(self) -> fx.Node:
        found = self.pick(torch.float32)
        assert found is not None
        return found

    def call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.builder.call(op, *args, **kwargs)

    # ---- one call each ---------------------------------------------------------------------------------------------

    def conv(self) -> fx.Node | None:
        x = self.pick(torch.uint8)
        if x is None:
            return None
        c, (h, w) = shape_of(x)[1], shape_of(x)[2:]
        transposed = self.rng.random() < 0.25
        groups = self.rng.choice([g for g in (1, 1, 1, 2, 3, c) if c % g == 0])
        o = groups * self.rng.choice((1, 1, 2, 3, 4, 5, 8, 12))
        kernel = [self.rng.randint(1, 4) for _ in "hw"] if self.rng.random() < 0.7 else [1, 1]
        stride, dilation = ([self.rng.choice((1, 1, 2, 3)) for _ in "hw"] for _ in "sd")
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = [self.rng.randint(0, max(k, 1)) for k in kernel]
        if transposed:
            padding = [self.rng.randint(0, r // 2) for r in reach]
        elif any(s + 2 * p < r + 1 for s, p, r in zip((h, w), padding, reach, strict=True)):
            return None
        lead = (c, o // groups) if transposed else (o, c // groups)
        low, high = self.rng.choice(((-128, 128), (-128, 128), (-8, 8), (-128, -127)))
        weight = torch.randint(low, high, (*lead, *kernel), generator=self.generator).to(torch.int8)
        scale = torch.rand(o, generator=self.generator) / (c * kernel[0] * kernel[1] * 2000)
        bias = self.rand(o) if self.rng.random() < 0.7 else None
        zero = torch.randint(0, 256, (self.rng.choice((1, c)),), generator=self.generator).to(torch.int32)
        args = [x, weight, scale, bias, zero, stride, padding]
        if transposed:
            more = [self.rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
            args += [more, groups, dilation]
        else:
            args += [dilation, groups]
        name = "qconv_transpose2d" if transposed else "qconv2d"
        if self.rng.random() < 0.3:
            level = (self.rng.choice(("relu", "none")), 20.0, self.rng.choice((0, 100)))
            return self.call(getattr(vops, name + "_requantize").default, *args, *level)
        return self.call(getattr(vops, name).default, *args)

    def quantize(self, x: fx.Node | None = None) -> fx.Node:
        x = x or self.float()
        rare = [(torch.int8, -128, 127), (torch.uint8, 3, 200), (torch.int16, -32768, 32767)]
        kind, low, high = self.rng.choice([(torch.uint8, 0, 255)] * 6 + rare)
        axis = self.rng.choice((1, 1, 1, 1, 0, 2, 3))
        if self.rng.random() < 0.3:
            size = shape_of(x)[axis]
            scales = torch.rand(size, generator=self.generator) * 0.1 + 0.01
            zeros = torch.randint(0, 100, (size,), generator=self.generator)
            return self.call(qd.quantize_per_channel.default, x, scales, zeros, axis, low, high, kind)
        scale, zero = self.rng.choice((0.03, 0.11)), self.rng.choice((0, 77, 255))
        return self.call(qd.quantize_per_tensor.default, x, scale, zero, low, high, kind)

    def dequantize(self) -> fx.Node | None:
        x = self.pick(self.rng.choice((torch.uint8, torch.int8, torch.int16)))
        return x and self.call(qd.dequantize_per_tensor.default, x, 0.05, 3, -32768, 32767, dtype_of(x))

    def unary(self, x: fx.Node | None = None) -> fx.Node:
        x, c = x or self.float(), self.rng.choice((-0.5, 0.25, 3.0))
        match self.rng.randrange(12):
            case 0:
                return self.call(aten.relu.default, x)
            case 1:
                return self.call(vops.hardswish.default, x)
            case 2:
                return self.call(vops.sigmoid.default, x)
            case 3:
                return self.call(vops.tanh.default, x)
            case 4:
                return self.call(aten.prelu.default, x, self.rand(shape_of(x)[1] if self.rng.random() < 0.7 else 1))
            case 5:
                return self.call(aten.clamp.default, x, -1.0, self.rng.choice((2.0, None)))
            case 6:
                return self.call(aten.mul.Tensor, x, c)
            case 7:
                return self.call(aten.add.Tensor, x, c)
            case 8:
                return self.call(aten.neg.default, x)
            case 9:
                return self.call(aten.floor.default, x)
            case 10:
                return self.call(aten.remainder.Scalar, x, 1.5)  # has no form in a row program
            case _:
                return self.call(aten.leaky_relu.default, x, 0.125)

    def binary(self) -> fx.Node | None:
        x = self.float()
        n, c, h, w = shape_of(x)
        op = self.rng.choice((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.maximum.default))
        match self.rng.randrange(8):
            case 0:
                y: Any = self.rand(*self.rng.choice(((c, 1, 1), (1, c, 1, 1), (n, c, 1, 1), (w,), (h, 1), (1, 1, h, w),
                                                     (n, 1, h, w), (n, c, h, w), (1,))))  # fmt: skip
            case 1:
                y = x
            case 2:
                gates = [g for g in self.made if shape_of(g) == (n, c, 1, 1) and dtype_of(g) == torch.float32]
                y = self.rng.choice(gates) if gates else x
            case 3:
                masks = [g for g in self.made if shape_of(g) == (n, c, h, w) and dtype_of(g) == torch.bool]
                if not masks:
                    return self.call(aten.lt.Scalar, x, 0.25)
                return self.call(aten.where.self, self.rng.choice(masks), x, self.pick(torch.float32, x) or x)
            case _:
                y = self.pick(torch.float32, x) or x
        args = (x, y) if isinstance(y, Tensor) or self.rng.random() < 0.6 else (y, x)
        return self.call(op, *args)

    def integers(self) -> fx.Node | None:
        x = self.pick(torch.uint8)
        if x is None:
            return None
        match self.rng.randrange(4):
            case 0:
                return self.call(aten.add.Tensor, x, x)  # wraps
            case 1:
                return self.call(aten.max_pool2d.default, x, [1, 1], [1, 1])
            case 2:
                return self.call(aten.maximum.default, x, self.pick(torch.uint8, x) or x)
            case _:
                return self.call(aten.add.Tensor, self.pick(torch.float32, x) or x, x)

    def cat(self) -> fx.Node | None:
        kind = self.rng.choice((torch.float32, torch.float32, torch.uint8))
        x = self.pick(kind)
        if x is None:
            return None
        parts: list[Any] = [x]
        for _ in range(self.rng.randint(1, 4)):
            y = self.pick(kind, x, (0, 2, 3)) or x
            if kind == torch.float32 and self.rng.random() < 0.4:
                source = self.pick(kind, x, (0,)) or x
                y = self.resized(source, *shape_of(x)[2:])
                if self.rng.random() < 0.3:
                    y = self.call(aten.relu.default, y)
            elif self.rng.random() < 0.2:
                y = self.slice(y)
            elif self.rng.random() < 0.1:
                n, _, h, w = shape_of(x)
                y = self.rand(n, 3, h, w) if kind == torch.float32 else self.bytes(n, 3, h, w)
            elif kind == torch.float32 and self.rng.random() < 0.3:
                y = self.call(aten.sub.Tensor, y, 0.5)
            parts.append(y)
        self.rng.shuffle(parts)
        return self.call(aten.cat.default, parts, 1)

    def resized(self, x: fx.Node, h: int, w: int) -> fx.Node:
        return self.call(vops.resize_bilinear.default, x, h, w, self.rng.random() < 0.3, None, None)

    def resize(self) -> fx.Node:
        x = self.float()
        h, w = ((2 * s, max(1, s // 2), s + 3)[self.rng.randrange(3)] for s in shape_of(x)[2:])
        return self.resized(x, h, w)

    def slice(self, x: fx.Node | None = None) -> fx.Node:
        """Some of a picture's channels; when none is given, of any one, or a part of the picture."""
        axis = 1 if x is not None or self.rng.random() < 0.7 else self.rng.choice((2, 3))
        x = x or self.pick()
        assert x is not None
        first = self.rng.randrange(shape_of(x)[axis])
        return self.call(aten.slice.Tensor, x, axis, first, self.rng.randint(first + 1, shape_of(x)[axis]), 1)

    def feed(self) -> fx.Node | None:
        """What leads to a convolution: a concatenation or a resize, something done to it, levels."""
        x = self.cat() if self.rng.random() < 0.7 else self.resize()
        if x is None or x in self.made:
            return None
        if dtype_of(x) == torch.float32:
            for _ in range(self.rng.randrange(4)):
                x = self.unary(x)
            x = self.quantize(x)
        self.made.append(x)
        return self.conv() if dtype_of(x) == torch.uint8 else x

    def grow(self, steps: int) -> Program:
        """A Program of about this many calls."""
        often = {self.conv: 5, self.quantize: 6, self.unary: 5, self.binary: 6, self.cat: 2, self.feed: 4,
                 self.resize: 1, self.slice: 1, self.dequantize: 2, self.integers: 1}  # fmt: skip
        ways = [way for way, times in often.items() for _ in range(times)]
        for _ in range(steps):
            node = self.rng.choice(ways)()
            if node is not None and node not in self.made:
                self.made.append(node)
                if node.meta["val"].numel() > LARGEST:
                    self.made.remove(node)
        calls = [n for n in self.made if n.op == "call_function"]
        results = [n for n in calls if not n.users] + [n for n in calls if n.users and self.rng.random() < 0.1]
        nexts = []
        for s in self.builder.states:
            fit = [n for n in self.made if shape_of(n) == shape_of(s) and dtype_of(n) == torch.float32]
            nexts.append(self.rng.choice(fit[-3:]))
        if not results:
            results = [self.call(aten.relu.default, self.builder.inputs[0])]
        return self.builder.done(*results, states=nexts)

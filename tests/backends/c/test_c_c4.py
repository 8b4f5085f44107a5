"""8-bit convolutions in words of four channels: every geometry, every instruction set, bit for bit."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from c_exports import qemu, self_test
from c_helpers import aten, chain, check, compiled
from c_random import same_results
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401
from vqc.backends.c import CBackend
from vqc.backends.c.cross import build_export
from vqc.backends.c.targets import ARM
from vqc.ops._common import conv_size, conv_transpose_size
from vqc.program import evaluate

vops, qd = torch.ops.vqc, torch.ops.quantized_decomposed
X86 = platform.machine().lower() in ("x86_64", "amd64")
CPUS = {"neon": "cortex-a53", "dotprod": "cortex-a76", "i8mm": "max"}  # the least of qemu's that has each


@dataclass(frozen=True)
class Conv:
    """One convolution of a test: sizes of its input and weights, and how levels are made of it."""

    n: int = 1
    c: int = 4
    o: int = 8
    size: tuple[int, int] = (6, 7)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    transposed: bool = False
    more: tuple[int, int] = (0, 0)
    zeros: int = 1  # zero points: one, or one for each channel
    biased: bool = True
    levels: str = ""  # "": a float result; else the activation before levels
    extreme: bool = False  # inputs 255, weights -128
    narrow: bool = False  # weights of 4 bits

    @property
    def fits(self) -> bool:
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.more, self.dilation, strict=True)
        if self.transposed:
            return all(conv_transpose_size(*a) > 0 for a in axes)
        return all(conv_size(s, k, t, p, d) > 0 for s, k, t, p, _, d in axes)

    def input(self, g: torch.Generator) -> torch.Tensor:
        shape = (self.n, self.c, *self.size)
        return torch.full(shape, 255, dtype=torch.uint8) if self.extreme else levels(*shape, g=g)

    def call(self, b: Any, x: Any, g: torch.Generator) -> Any:
        lead = (self.c, self.o // self.groups) if self.transposed else (self.o, self.c // self.groups)
        most = 8 if self.narrow else 128
        weight = torch.randint(-most, most, (*lead, *self.kernel), generator=g).to(torch.int8)
        if self.extreme:
            weight.fill_(-128)
        zero = torch.randint(0, 256, (self.zeros if self.zeros == 1 else self.c,), generator=g).to(torch.int32)
        bias = torch.randn(self.o, generator=g) if self.biased else None
        scale = (torch.rand(self.o, generator=g) + 0.1) / (300.0 * self.c * self.kernel[0] * self.kernel[1])
        name, args = "qconv2d", [x, weight, scale, bias, zero, list(self.stride), list(self.padding)]
        if self.transposed:
            name, args = "qconv_transpose2d", [*args, list(self.more), self.groups, list(self.dilation)]
        else:
            args += [list(self.dilation), self.groups]
        if self.levels:
            return b.call(getattr(vops, name + "_requantize").default, *args, self.levels, 3.7, 60)
        return b.call(getattr(vops, name).default, *args)


def levels(*shape: int, g: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=g).to(torch.uint8)


def program_of(convs, seed=0, name="small"):
    """All convolutions in one Program, each with its own input."""
    g = torch.Generator().manual_seed(seed)
    return chain(lambda b, *xs: tuple(c.call(b, x, g) for c, x in zip(convs, xs, strict=True)),
                 *(c.input(g) for c in convs), name=name)  # fmt: skip


def kernels(exe):
    return [c.kernel for c in exe.model.model.lowered.calls if c.kernel.startswith("vqc_qconv")]


@st.composite
def drawn(draw):
    """A convolution that the layout takes; groups of 1, of multiples of 4, or depthwise."""
    pair = st.tuples
    transposed = draw(st.booleans())
    kind = draw(st.sampled_from(("one", "one", "four", "deep")))
    groups = {"one": 1, "four": draw(st.integers(2, 3)), "deep": draw(st.integers(1, 11))}[kind]
    c = {"one": draw(st.integers(1, 13)), "four": groups * draw(st.sampled_from((4, 8))), "deep": groups}[kind]
    o = {"one": draw(st.integers(1, 21)), "four": groups * draw(st.sampled_from((4, 8, 12))), "deep": groups}[kind]
    stride, dilation = (draw(pair(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    made = Conv(
        draw(st.integers(1, 3)), c, o, draw(st.sampled_from(((1, 1), (1, 13), (2, 2), (5, 9), (9, 4), (3, 40)))),
        draw(pair(st.integers(1, 5), st.integers(1, 5))), stride, draw(pair(st.integers(0, 4), st.integers(0, 4))),
        dilation, groups, transposed, more if transposed else (0, 0), draw(st.sampled_from((1, 2))),
        draw(st.booleans()), draw(st.sampled_from(("", "relu", "none"))), narrow=draw(st.booleans()),
    )  # fmt: skip
    return made if made.fits else replace(made, kernel=(1, 1), padding=(0, 0))


@settings(max_examples=4, deadline=None)
@given(st.lists(drawn(), min_size=12, max_size=16), st.integers(0, 2**20))
def test_convolutions_of_every_shape(convs, seed):
    exe = check(program_of(convs, seed), exact=True)
    assert all("_c4" in k for k in kernels(exe)) or any(c.transposed and c.groups > 1 for c in convs)


def _fixed():
    """A few of every path: blocks of 8 and 4, single positions, rests, gaps between rows, long rows, every kind."""
    return [
        Conv(2, 3, 5, (7, 9), levels="relu"),
        Conv(1, 13, 21, (5, 30), stride=(2, 2), zeros=2, levels="none"),
        Conv(1, 8, 12, (4, 11), (1, 1), padding=(0, 0), levels="none"),
        Conv(1, 5, 3, (6, 70), (1, 1), padding=(0, 0), levels="none", extreme=True),
        Conv(2, 16, 9, (1, 1), (1, 1), padding=(0, 0), levels="none"),
        Conv(1, 6, 4, (1, 1), levels="none"),
        Conv(1, 4, 8, (2, 3), (5, 5), padding=(2, 2), levels="none"),
        Conv(1, 7, 6, (9, 12), (2, 4), (3, 1), (1, 3), (2, 3), zeros=2, levels="none"),
        Conv(1, 2, 10, (3, 900), levels="none"),
        Conv(1, 24, 8, (6, 8), groups=2, levels="relu", extreme=True),
        Conv(1, 12, 24, (4, 10), groups=3, zeros=2, levels="none"),
        Conv(2, 11, 11, (8, 9), groups=11, zeros=2, levels="none"),
        Conv(1, 16, 16, (9, 33), (5, 5), (2, 1), (2, 2), groups=16, levels="relu"),
        Conv(1, 5, 5, (1, 7), (1, 1), padding=(0, 0), groups=5, levels="none", extreme=True),
        Conv(1, 4, 4, (3, 500), (3, 2), padding=(1, 1), dilation=(1, 2), groups=4, levels="none"),
        Conv(1, 6, 7, (5, 6), (4, 4), (2, 2), transposed=True, levels="relu"),
        Conv(2, 9, 4, (3, 8), (3, 2), (3, 2), (0, 1), transposed=True, more=(2, 1), zeros=2, levels="none"),
        Conv(1, 8, 16, (4, 5), (2, 2), (2, 2), (0, 0), groups=2, transposed=True, levels="none"),
        Conv(1, 3, 6, (2, 210), (3, 5), (1, 3), (1, 0), (2, 1), transposed=True, levels="none", extreme=True),
        Conv(1, 4, 3, (2, 3), (1, 1), (3, 3), (0, 0), transposed=True, more=(2, 2), levels="none"),
        Conv(1, 3, 20, (40, 41), levels="none"),
        Conv(1, 9, 13, (5, 21), stride=(2, 1), levels="none", narrow=True),
        Conv(1, 5, 5, (5, 21), groups=5, levels="none", narrow=True),
        Conv(1, 5, 11, (5, 21), (4, 4), (2, 2), transposed=True, levels="none", narrow=True),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def fixed():
    return program_of(_fixed(), name="fixed")


@pytest.mark.parametrize("target", ["native", "portable"])
@pytest.mark.parametrize("threads", [1, 3])
def test_fixed_convolutions(fixed, target, threads):
    exe = check(fixed, exact=True, target=target, threads=threads)
    assert all("_c4" in k for k in kernels(exe)) and len(set(kernels(exe))) == 3


@pytest.mark.skipif(not X86, reason="runs x86-64 code in this process")
def test_every_x86_instruction_set(fixed):
    exe = compiled(fixed, "x86-64-linux")
    want = evaluate(fixed, fixed.example)
    names = exe.model.variants
    for name in names[names.index(exe.model.variant) :]:
        exe.model.select(name)
        same_results(want, exe.trace(fixed.example), f"{name}: ")
    assert exe.model.variant == "x86-64-v2"


@pytest.fixture(scope="module")
def exported(fixed, tmp_path_factory):
    return CBackend().export(fixed, "aarch64-linux", tmp_path_factory.mktemp("c4") / "out", {})


@pytest.mark.parametrize("variant", [v.name for v in ARM])
def test_every_arm_instruction_set(exported, variant):
    """All results are levels, which the self-test compares one by one."""
    program = build_export(exported, "aarch64-linux", variant)["fixed_test"]
    done = self_test(program, exported, qemu("aarch64"), "-cpu", CPUS[variant])
    assert done.returncode == 0 and done.stdout == f"fixed, {variant}: ok\nfixed: ok\n", done.stdout + done.stderr


def test_what_the_layout_does_not_take():
    """Odd groups, signed inputs, zero points beyond a byte: by the other kernels, as exact."""
    g = torch.Generator().manual_seed(1)
    odd = [Conv(1, 6, 9, groups=3), Conv(1, 6, 12, groups=6), Conv(1, 8, 6, groups=2),
           Conv(1, 5, 5, groups=5, transposed=True),
           Conv(1, 2, 3, (3, 3), (2, 2), (9, 9), (0, 0), transposed=True)]  # fmt: skip
    beyond = [torch.tensor([z], dtype=torch.int32) for z in (300, -7)]

    def build(b, signed, x, *xs):
        weight, scale = torch.randint(-128, 128, (5, 3, 3, 3), generator=g).to(torch.int8), torch.rand(5, generator=g)
        rest = ([1, 1], [1, 1], [1, 1], 1)
        found = [b.call(vops.qconv2d.default, x, weight, scale, None, z, *rest) for z in beyond]
        found += [b.call(vops.qconv2d.default, signed, weight, scale, None, beyond[0], *rest)]
        return (*found, *(c.call(b, y, g) for c, y in zip(odd, xs, strict=True)))

    x = levels(1, 3, 6, 8, g=g)
    exe = check(chain(build, (x.to(torch.int16) - 128).to(torch.int8), x, *(c.input(g) for c in odd)), exact=True)
    assert len(kernels(exe)) == 8 and not any("_c4" in k for k in kernels(exe))


def test_a_picture_is_packed_once_and_levels_stay_packed():
    g = torch.Generator().manual_seed(2)
    two = Conv(1, 8, 8, levels="relu")

    def build(b, x):
        y = two.call(b, x, g)
        z = two.call(b, y, g)
        return two.call(b, x, g), z, two.call(b, y, g), y

    exe = check(chain(build, two.input(g)), exact=True)
    calls = [c.kernel for c in exe.model.model.lowered.calls]
    assert calls.count("vqc_pack_c4") == 1
    assert calls.count("vqc_unpack_c4") == 1  # y, which is a result as well


def test_levels_have_other_readers_too():
    """A pooled, a sliced, a permuted and a concatenated reader of a tensor that a convolution has packed."""
    g = torch.Generator().manual_seed(3)
    conv = Conv(2, 6, 6, (6, 8), levels="none")

    def build(b, x):
        y = conv.call(b, x, g)
        pooled = b.call(aten.max_pool2d.default, y, [3, 3], [1, 1], [1, 1])
        part = b.call(aten.slice.Tensor, y, 1, 1, 5, 1)
        both = b.call(aten.cat.default, [part, y, b.call(aten.permute.default, pooled, [0, 1, 2, 3])], 1)
        last = Conv(2, 16, 5, (6, 8)).call(b, both, g)
        turned = b.call(aten.permute.default, y, [0, 3, 2, 1])
        return conv.call(b, pooled, g), last, turned, Conv(2, 4, 3, (6, 8)).call(b, part, g)

    check(chain(build, conv.input(g)), exact=True)

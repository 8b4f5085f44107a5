"""What a binary convolution adds to its result: a residual as it is, scaled, repeated, or computed for it."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch
from c_exports import qemu, run_in, self_test
from c_helpers import aten, chain, check

import vqc.ops  # noqa: F401
from vqc.backends.c import CBackend
from vqc.backends.c.cross import build_export

vops = torch.ops.vqc
CPU = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
LEVELS = {"x86-64-v3": "avx2", "x86-64-v4": "avx512bw"}
TARGETS = ["native", "portable", *(name for name, flag in LEVELS.items() if flag in CPU)]
SAME = ([1, 1], [1, 1], [1, 1])
SLOPES = {"relu": lambda b, x, o: b.call(aten.relu.default, x), "none": lambda b, x, o: x,
          "prelu": lambda b, x, o: b.call(aten.prelu.default, x, torch.linspace(-0.5, 1.5, o))}  # fmt: skip


def signs(*shape):
    return (2 * torch.randint(0, 2, shape) - 1).to(torch.int8)


def conv(b, x, o, bias=True):
    c = x.meta["val"].shape[1]
    q = b.call(vops.binarize.default, x, torch.zeros(1))
    return b.call(vops.bconv2d.default, q, signs(o, c, 3, 3), torch.rand(o) * 0.1,
                  torch.randn(o) if bias else None, *SAME)  # fmt: skip


def every_form(act):
    """Residuals of six kinds, each with an activation and a sign behind it, on sizes no vector divides."""

    def build(b, x, r):
        found = []

        def behind(y, residual):
            y = SLOPES[act](b, b.call(aten.add.Tensor, residual, y), 44)
            found.extend([b.call(vops.binarize.default, y, torch.randn(44) * 0.3), y])

        def twice(y):
            return b.call(aten.cat.default, [y, y], 1)

        behind(conv(b, x, 44), x)
        behind(conv(b, x, 44), b.call(aten.mul.Tensor, x, torch.tensor([0.3])))
        behind(conv(b, x, 44, bias=False), twice(r))
        behind(conv(b, x, 44), b.call(aten.mul.Tensor, twice(r), 0.7))
        behind(conv(b, x, 44), twice(b.call(aten.mul.Tensor, r, -1.3)))
        y = conv(b, x, 44)  # its residual is computed behind it
        parts = b.call(aten.split.Tensor, x, 22, 1)
        first, second = (b.call(operator.getitem, parts, i) for i in (0, 1))
        behind(y, b.call(aten.mul.Tensor, twice(b.call(aten.add.Tensor, first, second)), 1 / 3))
        return tuple(found)

    return chain(build, torch.randn(2, 44, 9, 35), torch.randn(2, 22, 9, 35))


@pytest.mark.parametrize("act, target", [*((act, "native") for act in SLOPES), *(("prelu", t) for t in TARGETS[1:])])
def test_every_residual_is_added_in_the_kernel(act, target):
    torch.manual_seed(3)
    exe = check(every_form(act), exact=True, target=target)
    kernels = exe.report.kernels
    inside = [name for name, text in kernels.items() if text.startswith("in vqc_bconv2d of ")]
    assert sum(name.startswith("add_tensor") for name in inside) == 6, kernels
    assert sum(name.startswith("mul_tensor") for name in inside) == 3, kernels  # of six; r * -1.3 is repeated after it
    assert sum(name.startswith("cat") for name in inside) == 4, kernels
    assert not [text for text in kernels.values() if "not further" in text]


def test_two_threads_give_the_same_bits():
    torch.manual_seed(4)
    program = every_form("prelu")
    one, two = (check(program, exact=True, threads=n).trace(program.example, []) for n in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_factor_is_rounded_by_itself():
    """The case is one in which a contracted multiplication gives other bits; `check` compares with the right ones."""
    torch.manual_seed(5)
    x, scale, bias = torch.randn(1, 16, 20, 37), torch.rand(16) * 0.1, torch.randn(16)
    w = signs(16, 16, 3, 3)

    def layer(b, x):
        q = b.call(vops.binarize.default, x, torch.zeros(1))
        return b.call(vops.bconv2d.default, q, w, scale, bias, *SAME)

    def summed(b, x):
        return b.call(aten.add.Tensor, layer(b, x), b.call(aten.mul.Tensor, x, 0.1))

    alone, both = (check(chain(f, x), exact=True).trace([x], [])[0] for f in (layer, summed))
    contracted = (alone.double() + x.double() * float(torch.tensor(0.1))).float()
    assert 0 < int((contracted != both).sum()) < both.numel()


def test_what_stays_outside_is_told():
    """A product others read stays; so do integers, and what waits for an operator that is not brought forward."""
    torch.manual_seed(6)

    def build(b, x, n):
        one, two, three = (conv(b, x, 44) for _ in range(3))
        shared = b.call(aten.mul.Tensor, x, 0.5)
        whole = b.call(aten.mul.Tensor, n, 0.5)
        late = b.call(aten.mul.Tensor, b.call(aten.neg.default, x), 0.5)
        return (b.call(aten.add.Tensor, one, shared), shared, b.call(aten.add.Tensor, two, whole),
                b.call(aten.add.Tensor, three, late))  # fmt: skip

    numbers = torch.randint(-9, 9, (1, 44, 9, 35))
    kernels = check(chain(build, torch.randn(1, 44, 9, 35), numbers), exact=True).report.kernels
    assert kernels["add_tensor"] == "in vqc_bconv2d of bconv2d_default" and "bconv2d" not in kernels["mul_tensor"]
    assert kernels["add_tensor_1"] == "in vqc_bconv2d of bconv2d_default_1"
    assert "bconv2d" not in kernels["mul_tensor_1"]
    told = kernels["bconv2d_default_2"]
    assert told == "vqc_bconv2d, not further: add_tensor_2 waits for neg_default, which is computed later"


def test_on_arm(tmp_path):
    torch.manual_seed(7)
    program = every_form("prelu")
    program.name = "sums"
    folder = CBackend().export(program, "aarch64-linux", tmp_path / "out", {})
    done = self_test(build_export(folder, "aarch64-linux")["sums_test"], folder, qemu("aarch64"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_clean_under_sanitizers(tmp_path):
    torch.manual_seed(8)
    out = CBackend().export(every_form("prelu"), "native", tmp_path / "out", {})
    flags = "-O1 -g -march=native -Werror -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all"
    assert run_in(out, "make", "test", "CC=gcc", f"CFLAGS={flags}").endswith("small: ok\n")

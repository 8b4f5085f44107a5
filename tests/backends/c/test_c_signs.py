"""Signs of pictures put together, some of them resized: the bits of the separate operators, and nothing else stored."""

from __future__ import annotations

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


def joined(n, size, channels, name="small"):
    """A cat of a doubled picture, a part of another one and an enlarged one; its signs at three thresholds."""
    h, w = size
    torch.manual_seed(h * w)
    a, b, c = channels

    def build(g, small, wide, odd):
        twice = g.call(vops.resize_bilinear.default, small, 2 * h, 2 * w, False, 2.0, 2.0)
        grown = g.call(vops.resize_bilinear.default, odd, 2 * h, 2 * w, False, None, None)
        seen = g.call(aten.slice.Tensor, wide, 1, 1, 1 + b)
        x = g.call(aten.cat.default, [twice, seen, grown], 1)
        taus = [torch.randn(a + b + c) * 0.3, torch.randn(1) * 0.3, torch.randn(a + b + c) * 0.3]
        alone = g.call(aten.cat.default, [wide, seen], 1)
        single = g.call(vops.binarize.default, alone, torch.zeros(1))
        both = [g.call(vops.binarize.default, wide, torch.full((1,), t)) for t in (0.1, -0.1)]
        return (*(g.call(vops.binarize.default, x, t) for t in taus), single, *both)

    given = torch.randn(n, a, h, w), torch.randn(n, b + 2, 2 * h, 2 * w), torch.randn(n, c, 2 * h - 1, w + 1)
    given[1][..., ::7] = 0.0  # on a threshold, and -0
    return chain(build, *given, name=name)


@pytest.mark.parametrize(
    "n, size, channels, target",
    [(2, (5, 37), (33, 3, 2), t) for t in TARGETS]
    + [(1, s, (40, 5, 20), "native") for s in ((3, 3), (1, 16), (40, 70))],
)
def test_bits_are_those_of_separate_operators(n, size, channels, target):
    exe = check(joined(n, size, channels), exact=True, target=target)
    kernels = [c.kernel for c in exe.model.model.lowered.calls]
    assert kernels.count("vqc_signs") == 4 and not {"vqc_copy", "vqc_resize_bilinear_f32", "vqc_binarize"} & {*kernels}
    assert exe.report.kernels["cat_default"] == exe.report.kernels["resize_bilinear_default"] == "in its signs"
    assert exe.report.kernels["binarize_default_2"] == "in vqc_signs of binarize_default_1"


def stairs(n, h, w):
    """A state's next value beside a part of another picture, doubled together and put before a third one."""
    torch.manual_seed(n)

    def build(g, x, held, wide):
        first, second = g.call(aten.slice.Tensor, x, 1, 2, 35), g.call(aten.mul.Tensor, held, 0.5)
        inner = g.call(aten.cat.default, [first, second], 1)
        up = g.call(vops.resize_bilinear.default, inner, 2 * h, 2 * w, False, 2.0, 2.0)
        whole = g.call(aten.cat.default, [up, wide], 1)
        return (*(g.call(vops.binarize.default, whole, torch.randn(41) * 0.3) for _ in range(2)), second)

    return chain(build, torch.randn(n, 37, h, w), torch.randn(n, 5, h, w), torch.randn(n, 3, 2 * h, 2 * w))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [(1, 9, 21), (2, 5, 16), (2, 1, 1)])
def test_a_concatenation_that_is_resized_is_not_made(target, size):
    exe = check(stairs(*size), exact=True, target=target)
    kernels = [c.kernel for c in exe.model.model.lowered.calls]
    assert kernels.count("vqc_signs") == 1 and not {"vqc_copy", "vqc_resize_bilinear_f32"} & {*kernels}
    assert exe.report.kernels["cat_default"] == exe.report.kernels["resize_bilinear_default"] == "in its signs"


def test_two_threads_give_the_same_bits():
    program = joined(2, (9, 20), (33, 3, 2))
    one, two = (check(program, exact=True, threads=n).trace(program.example, []) for n in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_what_others_read_is_stored():
    """A sum of the concatenation, and a resize that another operator reads: both are made, and give the same bits."""
    torch.manual_seed(1)

    def build(b, x, y):
        up = b.call(vops.resize_bilinear.default, x, 6, 8, False, 2.0, 2.0)
        first, second = b.call(aten.cat.default, [up, y], 1), b.call(aten.cat.default, [y, up], 1)
        signs = [b.call(vops.binarize.default, c, torch.zeros(1)) for c in (first, second)]
        return (*signs, b.call(aten.add.Tensor, first, 1.0))

    exe = check(chain(build, torch.randn(1, 3, 3, 4), torch.randn(1, 4, 6, 8)), exact=True)
    assert exe.report.kernels["cat_default"] != "in its signs" and exe.report.kernels["cat_default_1"] == "in its signs"
    assert exe.report.kernels["resize_bilinear_default"] == "vqc_resize_bilinear_f32"


def test_on_arm(tmp_path):
    folder = CBackend().export(joined(1, (5, 37), (33, 3, 2), "signs"), "aarch64-linux", tmp_path / "out", {})
    done = self_test(build_export(folder, "aarch64-linux")["signs_test"], folder, qemu("aarch64"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_clean_under_sanitizers(tmp_path):
    out = CBackend().export(joined(2, (5, 37), (33, 3, 2)), "native", tmp_path / "out", {})
    flags = "-O1 -g -march=native -Werror -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all"
    assert run_in(out, "make", "test", "CC=gcc", f"CFLAGS={flags}").endswith("small: ok\n")

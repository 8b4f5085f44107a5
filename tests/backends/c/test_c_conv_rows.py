"""1x1 convolutions that compute their pointwise input as they go."""

from __future__ import annotations

import pytest
import torch
from c_exports import qemu, run_in, self_test
from c_helpers import aten, chain, check

import vqc.ops  # noqa: F401
from vqc.backends.c import CBackend
from vqc.backends.c.cross import build_export

vops = torch.ops.vqc


def program(n=2, c=16, o=20, h=23, w=51, name="small"):
    """PReLU(x) * mask + y, a 1x1 convolution of it with a PReLU, and one of four channels of a sum without bias."""
    torch.manual_seed(2)

    def build(b, x, y, u):
        z = b.call(aten.add.Tensor, b.call(aten.mul.Tensor, b.call(aten.prelu.default, x, torch.rand(c)), u), y)
        z = b.call(aten.conv2d.default, z, torch.randn(o, c, 1, 1), torch.randn(o))
        z = b.call(aten.prelu.default, z, torch.rand(o))
        return b.call(aten.conv2d.default, b.call(aten.add.Tensor, z, 0.5), torch.randn(3, o, 1, 1), None)

    return chain(build, torch.randn(n, c, h, w), torch.randn(n, c, h, w), torch.rand(n, 1, h, w), name=name)


@pytest.mark.parametrize("target", ["native", "portable"])
def test_the_input_is_not_stored(target):
    exe = check(program(), target=target, atol=1e-5)
    calls = [c.kernel for c in exe.model.model.lowered.calls]
    assert calls == ["vqc_conv_rows_f32", "vqc_conv_rows_f32"]
    assert exe.report.kernels["add_tensor"] == "in vqc_conv_rows_f32 of conv2d_default"
    assert exe.report.kernels["prelu_default_1"] == "vqc_conv_rows_f32"


def tail(n=2, c=12, m=16, h=23, w=51, name="tail", shared=False):
    """A matting network's end: prelu(x) * mask + prelu(conv(y)), and a 1x1 convolution of that."""
    torch.manual_seed(3)

    def build(b, x, y, u):
        masked = b.call(aten.mul.Tensor, b.call(aten.prelu.default, x, torch.rand(m)), u)
        first = b.call(aten.conv2d.default, y, torch.randn(m, c, 1, 1), torch.randn(m))
        first = b.call(aten.prelu.default, first, torch.rand(m))
        last = b.call(aten.conv2d.default, b.call(aten.add.Tensor, masked, first), torch.randn(4, m, 1, 1), None)
        return (last, b.call(aten.neg.default, first)) if shared else last

    return chain(build, torch.randn(n, m, h, w), torch.randn(n, c, h, w), torch.rand(n, 1, h, w), name=name)


@pytest.mark.parametrize("target", ["native", "portable"])
@pytest.mark.parametrize("size", [(23, 51), (1, 1), (1, 5), (16, 64)])
def test_a_convolution_that_only_it_reads_is_made_as_it_goes(target, size):
    exe = check(tail(h=size[0], w=size[1]), target=target, atol=1e-5)
    assert [c.kernel for c in exe.model.model.lowered.calls] == ["vqc_conv_rows_f32"]
    assert exe.report.kernels["conv2d_default"] == "in vqc_conv_rows_f32 of conv2d_default_1"
    assert exe.report.kernels["prelu_default_1"] == "in vqc_conv_rows_f32 of conv2d_default_1"
    assert sum(layer.macs for layer in exe.report.layers) == 2 * size[0] * size[1] * (12 * 16 + 16 * 4)


def test_a_convolution_that_others_read_or_too_wide_is_stored():
    for p in (tail(shared=True), tail(m=20)):
        calls = [c.kernel for c in check(p, atol=1e-5).model.model.lowered.calls]
        assert calls[0] == "vqc_conv_f32" and "vqc_conv_rows_f32" in calls


def masked_tail(n=2, c=6, m=12, h=23, w=51, name="masked", groups=1, shared=False, density=0.3):
    """BiVM's last unit: prelu(conv3x3 of x under a mask) * u + prelu(conv1x1(y)), and a 1x1 convolution of that."""
    torch.manual_seed(4)
    mask = torch.nn.functional.interpolate(torch.rand(n, 1, -(-h // 5), -(-w // 5)), (h, w)) < density

    def build(b, x, y, u, mask):
        z = b.call(vops.masked_conv2d.default, x, torch.randn(m, c // groups, 3, 3), torch.randn(m), mask, [1, 1],
                   [1, 1], [1, 1], groups)  # fmt: skip
        unit = b.call(aten.mul.Tensor, b.call(aten.prelu.default, z, torch.rand(m)), u)
        first = b.call(aten.conv2d.default, y, torch.randn(m, c, 1, 1), torch.randn(m))
        unit = b.call(aten.add.Tensor, unit, b.call(aten.prelu.default, first, torch.rand(m)))
        last = b.call(aten.conv2d.default, unit, torch.randn(4, m, 1, 1), torch.randn(4))
        return (last, b.call(aten.neg.default, z)) if shared else last

    x, y, u = torch.randn(n, c, h, w), torch.randn(n, c, h, w), torch.rand(n, 1, h, w)
    return chain(build, x, y, u, mask, name=name)


@pytest.mark.parametrize("target", ["native", "portable"])
@pytest.mark.parametrize("size", [(23, 51), (1, 1), (1, 5), (16, 64), (40, 300)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_a_masked_convolution_that_only_it_reads_is_made_band_by_band(target, size, density):
    exe = check(masked_tail(h=size[0], w=size[1], density=density), target=target, atol=2e-5)
    assert [c.kernel for c in exe.model.model.lowered.calls] == ["vqc_conv_rows_f32"]
    assert exe.report.kernels["masked_conv2d_default"] == "in vqc_conv_rows_f32 of conv2d_default_1"
    assert sum(layer.macs for layer in exe.report.layers) == 2 * size[0] * size[1] * (6 * 12 * 9 + 6 * 12 + 12 * 4)


def test_a_masked_convolution_of_groups_or_that_others_read_is_stored():
    for p in (masked_tail(groups=2), masked_tail(shared=True)):
        calls = [c.kernel for c in check(p, atol=2e-5).model.model.lowered.calls]
        assert "vqc_masked_conv_f32" in calls and "vqc_conv_rows_f32" in calls


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 256), (19, 27)])
def test_runs_of_any_length(size):
    check(program(1, 3, 5, *size), atol=1e-5)


def test_two_threads_give_the_same_bits():
    for p in (program(), tail(), masked_tail()):
        one, two = (check(p, threads=n, atol=1e-5).trace(p.example, [])[0] for n in (1, 2))
        assert torch.equal(one, two)


def test_what_others_read_or_wide_inputs_are_stored():
    def build(b, x, y):
        z = b.call(aten.add.Tensor, x, 1.0)
        first = b.call(aten.conv2d.default, z, torch.randn(4, 8, 1, 1), None)
        wide = b.call(aten.conv2d.default, b.call(aten.add.Tensor, y, 1.0), torch.randn(4, 40, 1, 1), None)
        cut = b.call(aten.conv2d.default, b.call(aten.add.Tensor, x, 2.0), torch.randn(4, 8, 1, 1), None, [2, 2])
        return z, first, wide, cut

    exe = check(chain(build, torch.randn(1, 8, 6, 9), torch.randn(1, 40, 6, 9)), atol=1e-5)
    assert "vqc_conv_rows_f32" not in exe.report.kernels.values()


def test_on_arm_and_under_sanitizers(tmp_path):
    flags = "-O1 -g -march=native -Werror -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all"
    for make, name in ((program, "runs"), (tail, "tail"), (masked_tail, "masked")):
        folder = CBackend().export(make(1, name=name), "aarch64-linux", tmp_path / f"arm-{name}", {})
        done = self_test(build_export(folder, "aarch64-linux")[f"{name}_test"], folder, qemu("aarch64"))
        assert done.returncode == 0, done.stdout + done.stderr
        out = CBackend().export(make(name=name), "native", tmp_path / f"out-{name}", {})
        assert run_in(out, "make", "test", "CC=gcc", f"CFLAGS={flags}").endswith(f"{name}: ok\n")

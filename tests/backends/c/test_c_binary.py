"""Binary convolutions in C, bit for bit: shapes, borders, fused epilogues, thresholds, on every kind of kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from c_exports import run_in
from c_helpers import aten, chain, check, compiled, together
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401
from vqc.backends.c import CBackend
from vqc.backends.c.lowering.binary import pack_weight
from vqc.errors import UnsupportedOp

vops = torch.ops.vqc
CPU = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
LEVELS = {"x86-64-v2": "sse4_2", "x86-64-v3": "avx2", "x86-64-v4": "avx512bw"}
TARGETS = ["native", "portable", *(name for name, flag in LEVELS.items() if flag in CPU)]


def signs(*shape):
    return (2 * torch.randint(0, 2, shape) - 1).to(torch.int8)


@st.composite
def shapes(draw):
    """(x shape, output channels, kernel, stride, padding, dilation) of a convolution that has a result."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (2, 3), (1, 7), (7, 2)]))
    stride, dilation, padding = (
        [draw(st.integers(low, high)), draw(st.integers(low, high))] for low, high in ((1, 3), (1, 2), (0, 3))
    )
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    size = [least[0] + draw(st.integers(0, 6)), least[1] + draw(st.sampled_from([0, 1, 5, 17, 32, 63, 64, 70, 130]))]
    channels = draw(st.sampled_from([1, 3, 16, 31, 32, 33, 40, 64, 70]))
    return (draw(st.integers(1, 2)), channels, *size), draw(st.integers(1, 41)), kernel, stride, padding, dilation


def program(case):
    """A float output, a fused residual, activation and sign, and a threshold, on one shape."""
    x_shape, o, kernel, stride, padding, dilation = case
    x, w = torch.randn(x_shape), signs(o, x_shape[1], *kernel)
    geometry = (stride, padding, dilation)
    scale, bias = torch.randn(o) * 0.1, torch.randn(o)
    reach = x_shape[1] * kernel[0] * kernel[1]

    def build(b, x, r):
        q = b.call(vops.binarize.default, x, torch.randn(x_shape[1]) * 0.1)
        plain = b.call(vops.bconv2d.default, q, w, scale, None, *geometry)
        summed = b.call(aten.add.Tensor, r, b.call(vops.bconv2d.default, q, w, scale, bias, *geometry))
        active = b.call(aten.prelu.default, summed, torch.rand(o))
        sign = b.call(vops.binarize.default, active, torch.randn(1))
        limit = torch.randint(-reach - 1, reach + 2, (o,), dtype=torch.int32)
        decided = b.call(vops.bconv2d_threshold.default, q, w, limit, torch.rand(o) < 0.5, *geometry)
        again = b.call(vops.bconv2d.default, decided, signs(9, o, 1, 1), torch.ones(9), None, [1, 1], [0, 0], [1, 1])
        return q, plain, active, sign, decided, again

    like = vops.bconv2d(signs(*x_shape), w, scale, None, *geometry)
    return chain(build, x, torch.randn_like(like))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(case=shapes())
def test_any_shape(target, case):
    check(program(case), exact=True, target=target)


def test_words_of_a_weight():
    """Channels that fill no word share one among taps."""
    found = {(c, k): pack_weight(signs(9, c, k, k)).shape[1]
             for c, k in ((3, 3), (16, 3), (35, 3), (40, 3), (40, 5), (27, 3), (64, 3), (35, 1))}  # fmt: skip
    assert found == {(3, 3): 2, (16, 3): 5, (35, 3): 11, (40, 3): 12, (40, 5): 32, (27, 3): 9, (64, 3): 18, (35, 1): 2}


@pytest.mark.parametrize("target", TARGETS)
def test_taps_that_share_words(target):
    torch.manual_seed(4)

    def case(channels, kernel, stride, padding, dilation):
        w, scale = signs(9, channels, kernel, kernel), torch.rand(9)
        return [signs(2, channels, 13, 70)], lambda b, x: b.call(
            vops.bconv2d.default, x, w, scale, None, [stride, 1], [padding, 1], [1, dilation]
        )

    cases = [case(c, k, *g) for c, k in ((3, 3), (16, 3), (35, 3), (40, 5))
             for g in ((1, 1, 1), (2, 0, 2), (3, 2, 1))]  # fmt: skip
    check(together(cases), exact=True, target=target)


def body(b, x, relu=aten.relu.default, tau=0.0):
    """Two residual blocks, 24 channels of float and binary pictures."""
    geometry = ([1, 1], [1, 1], [1, 1])
    for _ in range(2):
        q = b.call(vops.binarize.default, x, torch.full((1,), tau))
        y = b.call(vops.bconv2d.default, q, signs(24, 24, 3, 3), torch.rand(24) * 0.1, torch.randn(24), *geometry)
        x = b.call(relu, b.call(aten.add.Tensor, y, x))
    return x


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("relu", [aten.relu.default, aten.leaky_relu.default], ids=["relu", "leaky"])
def test_residual_blocks_are_one_kernel_each(target, relu):
    exe = check(chain(lambda b, x: body(b, x, relu), torch.randn(1, 24, 13, 35)), exact=True, target=target)
    kernels = exe.report.kernels
    assert kernels["bconv2d_default"] == kernels["bconv2d_default_1"] == "vqc_bconv2d"
    inside = [text for text in kernels.values() if text.startswith("in vqc_bconv2d of ")]
    assert len(inside) == 5, kernels  # two sums, two activations, and the second block's sign in the first one's kernel


def test_two_threads_give_the_same_bits():
    program = chain(body, torch.randn(2, 24, 37, 35))
    assert torch.equal(*(check(program, exact=True, threads=n).trace(program.example, [])[0] for n in (1, 2)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("channels", [1024, 2048])
def test_long_sums(target, channels):
    """All bits alike and all but one: the largest counts there can be."""
    x, w = torch.ones(1, channels, 4, 5), -torch.ones(9, channels, 3, 3, dtype=torch.int8)
    w[3, 5] = 1

    def build(b, x):
        q = b.call(vops.binarize.default, x, torch.zeros(1))
        return b.call(vops.bconv2d.default, q, w, torch.ones(9), None, [1, 1], [1, 1], [1, 1])

    check(chain(build, x), exact=True, target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_thresholds_beyond_all_sums(target):
    """The ends of int32 and of 16 bits, and what lies just inside and outside of the sums; some turned round."""
    ends = [-(2**31), -32769, -32768, -32767, -289, -288, -287, 0, 287, 288, 289, 32767, 32768, 2**31 - 1]
    limit = torch.tensor(2 * ends, dtype=torch.int32)
    flip = torch.arange(len(limit)) >= len(ends)
    w = torch.ones(len(limit), 32, 3, 3, dtype=torch.int8)
    x = torch.randn(1, 32, 6, 41)
    x[..., 5:25], x[..., 30:] = 1, -1  # all alike somewhere: the sums reach both ends

    def build(b, x):
        q = b.call(vops.binarize.default, x, torch.zeros(1))
        return b.call(vops.bconv2d_threshold.default, q, w, limit, flip, [1, 1], [1, 1], [1, 1])

    check(chain(build, x), exact=True, target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_bits_of_channels_that_do_not_exist_stay_zero(target):
    """Sums of 18432 signs that all differ: the rest of the block of 8 has no weights, and must not turn into ones."""
    geometry = ([1, 1], [1, 1], [1, 1])

    def build(b, x):
        q = b.call(vops.binarize.default, x, torch.zeros(1))
        q = b.call(vops.bconv2d_threshold.default, q, torch.ones(4, 2048, 3, 3, dtype=torch.int8),
                   torch.zeros(4, dtype=torch.int32), torch.zeros(4, dtype=torch.bool), *geometry)  # fmt: skip
        return b.call(vops.bconv2d.default, q, torch.ones(8, 4, 1, 1, dtype=torch.int8), torch.ones(8), None, [1, 1],
                      [0, 0], [1, 1])  # fmt: skip

    check(chain(build, -torch.ones(1, 2048, 4, 20)), exact=True, target=target)


def test_what_is_not_taken_along_is_told():
    """The sum of three, an alpha, a residual of another size, and one that is computed later."""
    w, one = signs(8, 8, 1, 1), torch.ones(8)
    geometry = ([1, 1], [0, 0], [1, 1])

    def build(b, x, r):
        q = b.call(vops.binarize.default, x, torch.zeros(1))
        a, c, d = (b.call(vops.bconv2d.default, q, w, one, None, *geometry) for _ in range(3))
        later = b.call(aten.neg.default, x)
        return (
            b.call(aten.add.Tensor, a, x, alpha=2),
            b.call(aten.add.Tensor, c, r),
            b.call(aten.add.Tensor, d, later),
        )

    exe = check(chain(build, torch.randn(1, 8, 4, 6), torch.randn(1, 8, 1, 1)), exact=True)
    told = [exe.report.kernels[n] for n in ("bconv2d_default", "bconv2d_default_1", "bconv2d_default_2")]
    for text, reason in zip(told, ("scales an operand", "two pictures of one size", "computed later"), strict=True):
        assert text.startswith("vqc_bconv2d, not further: ") and reason in text


@pytest.mark.parametrize("weight, reason", [((4, 8, 1, 9), "its kernel has 9 columns"),
                                            ((1, 32768, 1, 1), "its sums have 32768 terms")])  # fmt: skip
def test_what_has_no_kernel_is_named(weight, reason):
    def build(b, q):
        return b.call(vops.bconv2d.default, q, signs(*weight), torch.ones(weight[0]), None, [1, 1], [0, 0], [1, 1])

    with pytest.raises(UnsupportedOp, match=reason):
        compiled(chain(build, signs(1, weight[1], 2, 12)))


def test_clean_under_sanitizers(tmp_path):
    torch.manual_seed(0)
    case = ((2, 33, 7, 21), 13, (3, 3), [1, 2], [1, 1], [1, 1])
    out = CBackend().export(program(case), "native", tmp_path / "out", {})
    flags = "-O1 -g -march=native -Werror -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all"
    assert run_in(out, "make", "test", "CC=gcc", f"CFLAGS={flags}").endswith("small: ok\n")

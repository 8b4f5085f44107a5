"""Float convolutions by Winograd's filtering: PyTorch's numbers, where they are taken, and where not."""

from __future__ import annotations

import torch
from c_exports import qemu, self_test
from c_helpers import In, aten, chain, check, single
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.backends.c import CBackend, winograd
from vqc.backends.c.cross import build_export
from vqc.backends.c.lowering.conv import geometry
from vqc.backends.c.packing import pack_conv

KERNEL = "vqc_conv_winograd_f32"


@st.composite
def cases(draw):
    """Sizes of a convolution with three rows of taps, from one pair of rows on, odd heights and narrow pictures too."""
    groups = draw(st.sampled_from([1, 1, 2]))
    cols, apart = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    pad = [draw(st.integers(0, 2)), draw(st.integers(0, 3))]
    least = [max(1, 4 - 2 * pad[0]), max(1, (cols - 1) * apart + 1 - 2 * pad[1])]
    size = [least[0] + draw(st.integers(0, 9)), least[1] + draw(st.sampled_from([0, 1, 7, 15, 33, 60]))]
    return {"n": draw(st.integers(1, 2)), "c": groups * draw(st.integers(8, 11)), "groups": groups,
            "o": groups * draw(st.integers(8, 17)), "size": size, "taps": (3, cols), "pad": pad, "apart": [1, apart],
            "bias": draw(st.booleans()), "act": draw(st.sampled_from(["none", "relu", "leaky"])),
            "seed": draw(st.integers(0, 9))}  # fmt: skip


def _program(made):
    def build(b, *xs):
        results = []
        for x, c in zip(xs, made, strict=True):
            g = torch.Generator().manual_seed(c["seed"])
            weight = torch.randn(c["o"], c["c"] // c["groups"], *c["taps"], generator=g)
            bias = torch.randn(c["o"], generator=g) if c["bias"] else None
            y = b.call(aten.conv2d.default, x, weight, bias, [1, 1], c["pad"], c["apart"], c["groups"])
            if c["act"] != "none":
                y = b.call(aten.relu.default, y) if c["act"] == "relu" else b.call(aten.leaky_relu.default, y, 0.1)
            results.append(y)
        return tuple(results)

    inputs = [torch.randn(c["n"], c["c"], *c["size"], generator=torch.Generator().manual_seed(c["seed"])) for c in made]
    return chain(build, *inputs)


@settings(max_examples=10, deadline=None)
@given(st.lists(cases(), min_size=3, max_size=5), st.sampled_from(["native", "native", "portable"]),
       st.sampled_from([1, 3]))  # fmt: skip
def test_equal_to_pytorchs(made, target, threads):
    exe = check(_program(made), rtol=1e-5, atol=3e-5, target=target, threads=threads, winograd=True)
    assert {c.kernel for c in exe.model.model.lowered.calls} == {KERNEL}


def test_taken_only_when_asked_and_where_it_fits():
    def kernel(*args, winograd=True, c=8, size=(9, 11)):
        exe = check(single(aten.conv2d.default, In(torch.randn(1, c, *size)), *args), atol=3e-5, winograd=winograd)
        return next(k for k in exe.report.kernels.values() if k.startswith("vqc_conv"))

    def weight(o, i, *taps):
        return torch.randn(o, i, *(taps or (3, 3)))

    assert kernel(weight(8, 8), None, [1, 1], [1, 1]) == KERNEL
    assert kernel(weight(8, 8), None, [1, 1], [1, 1], winograd=False) == "vqc_conv_f32"
    for args in ((weight(8, 8), None, [2, 2], [1, 1]), (weight(8, 8), None, [1, 2], [1, 1]),
                 (weight(8, 8), None, [1, 1], [2, 2], [2, 2]), (weight(8, 8, 5, 3), None, [1, 1], [1, 1]),
                 (weight(8, 8, 1, 1),), (weight(7, 8), None, [1, 1], [1, 1]),
                 (weight(16, 1), None, [1, 1], [1, 1], [1, 1], 8)):  # fmt: skip
        assert kernel(*args) == "vqc_conv_f32"
    assert kernel(weight(8, 8), size=(3, 11)) == "vqc_conv_f32"  # a single row


def test_a_weight_of_run_time_is_convolved_as_it_is():
    program = single(aten.conv2d.default, In(torch.randn(1, 8, 9, 9)), In(torch.randn(8, 8, 3, 3)))
    assert KERNEL not in check(program, atol=3e-5, winograd=True).report.kernels.values()


def test_a_row_does_not_depend_on_the_band_it_is_in():
    """Other numbers of threads and other heights of bands leave every bit as it is."""
    x, weight = torch.randn(1, 64, 37, 50), torch.randn(16, 64, 3, 3)
    program = single(aten.conv2d.default, In(x), weight, None, [1, 1], [1, 1])
    made = [check(program, atol=1e-4, winograd=True, threads=n).trace(program.example, []) for n in (1, 2, 5)]
    assert all(torch.equal(made[0][0], m[0]) for m in made[1:])


def test_parts_of_a_weight():
    """Three rows of taps as four kernels of one row: g0, half the sum, half of it with g1 negative, g2."""
    weight = torch.arange(8 * 8 * 9, dtype=torch.float32).reshape(8, 8, 3, 3)
    node = next(n for n in single(aten.conv2d.default, In(torch.randn(1, 8, 5, 5)), weight).calls)
    geo = geometry(node, weight, transposed=False)
    packed = winograd.pack(geo, weight.unsqueeze(2))
    g0, g1, g2 = weight.unbind(2)
    want = [pack_conv(w[:, :, None, None], 1) for w in (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2)]
    assert torch.equal(packed, torch.cat(want)) and winograd.suits(geo)
    paired = winograd.PairedRows.of(geo)
    assert paired.packed(4) >= 4 * (6 + 4 * 8 * 2) * 5 and paired.scratch(3) >= paired.packed(3)


def test_exported_to_arm(tmp_path):
    """The export's own self-test on 64-bit Arm, with the option on; weights take 4/3 of the bytes."""
    program = single(aten.conv2d.default, In(torch.randn(1, 8, 21, 40)), torch.randn(24, 8, 3, 3), torch.randn(24),
                     [1, 1], [1, 1])  # fmt: skip
    made = CBackend().export(program, "aarch64-linux", tmp_path / "out", {"winograd": True})
    plain = CBackend().export(program, "aarch64-linux", tmp_path / "plain", {})
    assert KERNEL in next(made.glob("*_step.c")).read_text()
    sizes = [next(f.glob("*.weights.bin")).stat().st_size for f in (made, plain)]
    assert 1.25 < sizes[0] / sizes[1] < 1.4
    built = build_export(made, "aarch64-linux")
    name = next(made.glob("*_test.c")).stem
    done = self_test(built[name], made, qemu("aarch64"))
    assert done.returncode == 0, done.stdout + done.stderr

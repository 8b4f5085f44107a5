"""The self-test of an export: what it compares, and how far it lets results move."""

import struct

import pytest
import torch
from c_exports import self_test
from c_helpers import chain
from handmade import Hand, aten

from vqc.backends.c.backend import CBackend
from vqc.backends.c.cross import build_export
from vqc.backends.c.selftest import STEPS
from vqc.backends.c.wavering import LEAST, LEAST_SHARE, Bound, bounds, step_results, wavers

qd = torch.ops.quantized_decomposed


def test_infinities_and_what_is_no_number_are_compared_too(tmp_path):
    x = torch.arange(16.0).view(1, 1, 4, 4) - 3
    program = chain(lambda b, x: b.call(aten.div.Tensor, x, b.call(aten.relu.default, x)), x, name="quotient")
    out = CBackend().export(program, "portable", tmp_path / "out", {})
    test = build_export(out, "portable")["quotient_test"]
    assert self_test(test, out).stdout.endswith("quotient: ok\n")  # -inf, -inf, -inf, NaN, 1, 1, ...
    vectors = (out / "quotient.test.bin").read_bytes()
    for element, other in ((0, float("inf")), (1, 5.0), (3, 1.0), (5, float("nan")), (6, float("inf")), (7, 1.001)):
        at = 128 + 4 * element  # behind the head and the input, 64 bytes each
        wrong = vectors[:at] + struct.pack("<f", other) + vectors[at + 4 :]
        (out / "quotient.test.bin").write_bytes(wrong)
        done = self_test(test, out)
        assert done.returncode == 1 and "step 0, output 0" in done.stdout, (element, other)


def gelu_and_quantizer(op, state=False):
    """op, then 8 bits; with a state, what op gave is quantized at the next step."""
    h = Hand()
    x = h.input("x", 1, 1, 400, 400)
    s = h.state("s", torch.zeros(1, 1, 400, 400)) if state else None
    y = h(op, x)
    grid = (0.01, 20, 0, 255, torch.uint8)
    z = h(qd.dequantize_per_tensor, h(qd.quantize_per_tensor, s if state else y, *grid), *grid)
    return h.done(z, states=[y]) if state else h.done(z)


def found(program):
    return bounds(program, step_results(program, STEPS))


def least(x):
    """The bound of a tensor of floats with these values that nothing moves."""
    slack = LEAST * float(x.abs().max()) + 1e-6
    return Bound(1.0, slack, slack, float(x.max()) - float(x.min()))


@pytest.mark.parametrize("state", [False, True])
def test_bounds_follow_roundings_that_hang_on_last_bits(state):
    firm, loose = gelu_and_quantizer(aten.relu, state), gelu_and_quantizer(aten.gelu, state)
    values = [[out[i] for out in step_results(firm, STEPS)] for i in range(1 + state)]
    assert not wavers(firm) and found(firm) == [least(torch.cat(v)) for v in values]
    assert wavers(loose)
    y, *states = found(loose)
    assert y.distance == pytest.approx(4 * 0.01, rel=1e-3) and LEAST_SHARE <= y.share < 0.01  # four steps of few values
    assert y.judges
    if state:
        assert states == [least(torch.cat([out[1] for out in step_results(loose, STEPS)]))]


def test_labels_that_hang_on_last_bits():
    h = Hand()
    x = h.input("x", 1, 2, 8, 8)
    y = h(aten.conv2d, x, h.const("w", h.rand(4, 2, 3, 3)))
    program = h.done(y, h(aten.argmax, y, 1), h(aten.gt.Scalar, x, 0.0))
    assert wavers(program)
    assert [(b.share, b.slack, b.distance) for b in found(program)[1:]] == [(LEAST_SHARE, 0, 3), (LEAST_SHARE, 0, 1)]
    assert found(program)[0] == least(torch.cat([out[0] for out in step_results(program, STEPS)]))
    h = Hand()
    x = h.input("x", 1, 2, 8, 8)
    program = h.done(h(aten.conv2d, x, h.const("w", h.rand(4, 2, 3, 3))), h(aten.gt.Scalar, x, 0.0))
    assert not wavers(program) and found(program)[1] == Bound(0.0, 0.0, 0.0, 1.0)


def test_a_bound_that_refuses_little_does_not_judge():
    assert Bound(1.0, 0.1, 0.4, 1.0).judges and not Bound(1.0, 0.1, 0.5, 1.0).judges
    assert Bound(0.4, 0.1, 0.5, 1.0).judges and Bound(0.4, 0.0, 2.0, 1.0).judges
    assert not Bound(0.5, 0.0, 2.0, 1.0).judges and Bound(1.0, 0.1, 0.1, 0.0).judges  # the last: one value everywhere


def chaos():
    """Two results that last bits move through their whole range, and one that nothing moves."""
    h = Hand("chaos")
    x = h.input("x", 1, 8, 20, 20)
    y = h(aten.sin, h(aten.mul.Tensor, h(aten.gelu, x), 3e7))
    return h.done(h(aten.round, h(aten.mul.Tensor, y, 4.0)), h(aten.argmax, y, 1), x)


def test_what_is_not_judged_is_told_and_gross_errors_still_fail(tmp_path):
    program = chaos()
    rounded, labels, same = found(program)
    assert not rounded.judges and not labels.judges and same.judges
    assert 8 < rounded.distance <= 16  # its values lie 8 apart
    out = CBackend().export(program, "portable", tmp_path / "out", {})
    readme = (out / "README.txt").read_text()
    assert f"  outputs[0]: {rounded}\n  outputs[1]: {labels}\n  outputs[2]: no value off by more than" in readme
    assert "not judged: by last bits, which engines do not share, 100 % of the values may be off by 16" in readme
    test = build_export(out, "portable")["chaos_test"]
    said = self_test(test, out).stdout
    assert f"chaos, output 0 is {rounded}\nchaos, output 1 is {labels}\n" in said
    assert said.endswith("chaos: ok, but 2 of 3 outputs and states are not judged\n")
    vectors = (out / "chaos.test.bin").read_bytes()
    at = 64 + 4 * 8 * 400  # the first output, behind the head and the input
    for other, code in ((-4.0, 0), (4.0, 0), (30.0, 1), (float("nan"), 1), (float("inf"), 1)):
        (out / "chaos.test.bin").write_bytes(vectors[:at] + struct.pack("<f", other) + vectors[at + 4 :])
        done = self_test(test, out)
        assert done.returncode == code and ("step 0, output 0" in done.stdout) == bool(code), other
    at += 4 * 8 * 400  # the labels, of 64 bits
    (out / "chaos.test.bin").write_bytes(vectors[:at] + struct.pack("<q", 99) + vectors[at + 8 :])
    assert "step 0, output 1: " in self_test(test, out).stdout


def test_the_readme_says_how_wide_the_bounds_are(tmp_path):
    program = gelu_and_quantizer(aten.gelu, state=True)
    readme = (CBackend().export(program, "portable", tmp_path / "out", {}) / "README.txt").read_text()
    share = 100 * found(program)[0].share
    text = f"  outputs[0]: {share:.3g} % of the values may be off by more than 0.00024, none by more than 0.04; they"
    assert text in readme
    assert "  state[0]: no value off by more than 0.00046; they lie" in readme

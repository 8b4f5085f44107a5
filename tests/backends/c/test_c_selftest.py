"""The self-test of an export: what it compares, and how far it lets results move."""

import struct

import pytest
import torch
from c_exports import self_test
from c_helpers import chain
from handmade import Hand, aten

from vqc.backends.c.backend import CBackend
from vqc.backends.c.cross import build_export
from vqc.backends.c.wavering import LEAST, LEAST_SHARE, bounds, wavers

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


@pytest.mark.parametrize("state", [False, True])
def test_bounds_follow_roundings_that_hang_on_last_bits(state):
    firm, loose = gelu_and_quantizer(aten.relu, state), gelu_and_quantizer(aten.gelu, state)
    assert not wavers(firm) and bounds(firm, 2) == [LEAST] * (1 + state)
    assert wavers(loose)
    found = bounds(loose, 2)
    assert found[0] == pytest.approx(4 * 0.01 / 2.35, rel=1e-3)  # four times one step of 2.35, the grid's end
    assert found[1:] == [LEAST] * state


def test_labels_that_hang_on_last_bits():
    h = Hand()
    x = h.input("x", 1, 2, 8, 8)
    y = h(aten.conv2d, x, h.const("w", h.rand(4, 2, 3, 3)))
    program = h.done(y, h(aten.argmax, y, 1), h(aten.gt.Scalar, x, 0.0))
    assert wavers(program) and bounds(program, 2) == [LEAST, LEAST_SHARE, LEAST_SHARE]
    h = Hand()
    x = h.input("x", 1, 2, 8, 8)
    program = h.done(h(aten.conv2d, x, h.const("w", h.rand(4, 2, 3, 3))), h(aten.gt.Scalar, x, 0.0))
    assert not wavers(program) and bounds(program, 2) == [LEAST, 0.0]

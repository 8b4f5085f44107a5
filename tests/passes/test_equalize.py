"""equalize: ranges on both sides become equal, results stay, and what would change them is left alone with a reason."""

import pytest
import torch
from handmade import Hand, aten, reasons, run

from vqc.passes.equalize import Equalize
from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize
from vqc.pipeline import PassContext

SPREAD = torch.tensor([1.0, 100.0, 0.01, 3.0, 0.3, 30.0])


def pair(between, bias=True, second="conv"):
    """Two layers with channels of very different ranges between them."""
    h = Hand()
    x = h.input("x", 2, 3, 8, 8)
    w1 = h.const("w1", h.rand(6, 3, 3, 3) * SPREAD.view(-1, 1, 1, 1))
    a = h(aten.conv2d, x, w1, h.const("b1", h.rand(6) * SPREAD) if bias else None, [1, 1], [1, 1])
    b = between(h, a)
    if second == "conv":
        y = h(aten.conv2d, b, h.const("w2", h.rand(4, 6, 3, 3)), h.const("b2", h.rand(4)), [1, 1], [1, 1])
    elif second == "grouped":
        y = h(aten.conv2d, b, h.const("w2", h.rand(4, 3, 3, 3)), None, [1, 1], [1, 1], [1, 1], 2)
    elif second == "depthwise":
        y = h(aten.conv2d, b, h.const("w2", h.rand(6, 1, 3, 3)), None, [1, 1], [1, 1], [1, 1], 6)
    else:
        y = h(aten.conv_transpose2d.input, b, h.const("w2", h.rand(6, 2, 4, 4)), None, [2, 2], [1, 1], [0, 0], 3)
    return h.done(y)


HOMOGENEOUS = {
    "nothing": lambda h, a: a,
    "relu": lambda h, a: h(aten.relu, a),
    "leaky": lambda h, a: h(aten.leaky_relu, a, 0.2),
    "prelu": lambda h, a: h(aten.prelu, a, h.const("slope", torch.rand(6))),
    "two": lambda h, a: h(aten.relu, h(aten.prelu, a, h.const("slope", torch.rand(1)))),
}


def ranges(program, first="conv2d", second=None, groups=1):
    second = second or next(n.name for n in reversed(program.calls))
    w1, w2 = (program.constant(program.node(n).args[1]) for n in (first, second))
    into = torch.cat([part.abs().amax((0, 2, 3)) for part in w2.chunk(groups)])
    return w1.abs().amax((1, 2, 3)), into


@pytest.mark.parametrize("between", HOMOGENEOUS)
@pytest.mark.parametrize("bias", [True, False])
def test_both_ranges_become_their_geometric_mean(between, bias):
    before = pair(HOMOGENEOUS[between], bias)
    after = Equalize()(before, PassContext(debug=True))
    assert after.history[-1].rewrites == {"pair": 1}
    r1, r2 = ranges(before)
    for r in ranges(after):
        torch.testing.assert_close(r, (r1 * r2).sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(run(after)[0], run(before)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("second", "groups"), [("grouped", 2), ("depthwise", 6)])
def test_grouped_second_layers(second, groups):
    before = pair(HOMOGENEOUS["relu"], second=second)
    after = Equalize()(before, PassContext(debug=True))
    r1, r2 = ranges(before, groups=groups)
    for r in ranges(after, groups=groups):
        torch.testing.assert_close(r, (r1 * r2).sqrt(), rtol=1e-4, atol=0)


def test_transposed_second_layers():
    before = pair(HOMOGENEOUS["relu"], second="transposed")
    after = Equalize()(before, PassContext(debug=True))
    w1, w2 = (after.constant(after.node(n).args[1]) for n in ("conv2d", "conv_transpose2d"))
    torch.testing.assert_close(w1.abs().amax((1, 2, 3)), w2.abs().amax((1, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(run(after)[0], run(before)[0], rtol=1e-4, atol=1e-3)


def triple():
    h = Hand()
    x = h.input("x", 1, 3, 8, 8)
    a = h(aten.relu, h(aten.conv2d, x, h.const("w1", h.rand(6, 3, 1, 1) * SPREAD.view(-1, 1, 1, 1)), None))
    d = h(aten.conv2d, a, h.const("w2", h.rand(6, 1, 3, 3)), h.const("b2", h.rand(6)), [1, 1], [1, 1], [1, 1], 6)
    return h.done(h(aten.conv2d, h(aten.relu, d), h.const("w3", h.rand(4, 6, 1, 1)), None))


def test_depthwise_triples_share_the_cube_root():
    before = triple()
    after = Equalize()(before, PassContext(debug=True))
    assert after.history[-1].rewrites == {"pair": 2}

    def three(p):
        w = [p.constant(n.args[1]) for n in p.calls if n.target is aten.conv2d.default]
        return w[0].abs().amax((1, 2, 3)), w[1].abs().amax((1, 2, 3)), w[2].abs().amax((0, 2, 3))

    r1, r2, r3 = three(before)
    for r in three(after):
        torch.testing.assert_close(r, (r1 * r2 * r3) ** (1 / 3), rtol=1e-3, atol=0)


def test_quantized_weights_gain():
    """One scale for all inputs of a row: the second layer's channels drown without equalisation."""
    before = pair(HOMOGENEOUS["relu"])
    w2 = before.constants["w2"]
    before.constants["w2"] = w2 / SPREAD.view(1, -1, 1, 1)  # so that every channel counts the same in the result
    clip = [(torch.randn(2, 3, 8, 8),) for _ in range(3)]
    context = PassContext(calibration=clip)
    errors = []
    for program in (before, Equalize()(before)):
        quantized = Quantize(tail="quantized", granularity="tensor", weight_bits=6)(Observe()(program, context))
        errors.append(float((run(quantized, clip[0])[0] - run(before, clip[0])[0]).square().mean()))
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("op", ["hardswish", "sigmoid", "silu", "relu6", "tanh"])
def test_functions_that_are_not_homogeneous(op):
    before = pair(lambda h, a: h(getattr(aten, op), a))
    after = Equalize()(before)
    assert "does not pass a factor on" in reasons(after)["conv2d"] and str(after) == str(before)


def test_readers_beside_the_second_layer():
    h = Hand()
    x = h.input("x", 1, 4, 8, 8)
    a = h(aten.relu, h(aten.conv2d, x, h.const("w1", h.rand(4, 4, 1, 1)), None))
    b = h(aten.conv2d, a, h.const("w2", h.rand(4, 4, 1, 1)), None)
    kept = reasons(Equalize()(h.done(h(aten.add.Tensor, a, b))))
    assert kept["conv2d"] == "2 nodes read relu: add, conv2d_1"
    assert kept["conv2d_1"] == "aten.add stands behind it: it does not pass a factor on"


def test_results_states_and_shared_weights():
    h = Hand()
    x = h.input("x", 1, 4, 8, 8)
    shared = h.const("w", h.rand(4, 4, 1, 1))
    a = h(aten.conv2d, x, shared, None)
    b = h(aten.conv2d, a, shared, None)
    c = h(aten.conv2d, b, h.const("w3", h.rand(4, 4, 1, 1)), None)
    before = h.done(c)
    after = Equalize()(before)
    assert reasons(after) == {
        "conv2d": "other nodes read the weight of conv2d too",
        "conv2d_1": "other nodes read the weight of conv2d_1 too",
        "conv2d_2": "the program returns it",
    }
    assert torch.equal(run(before)[0], run(after)[0])


def test_linear_layers_and_dimensions_that_do_not_match():
    h = Hand()
    x = h.input("x", 1, 5, 6)
    a = h(aten.relu, h(aten.linear, x, h.const("w1", h.rand(8, 6) * torch.logspace(-2, 2, 8)[:, None]), None))
    b = h(aten.linear, a, h.const("w2", h.rand(3, 8)), h.const("b", h.rand(3)))
    before = h.done(b)
    after = Equalize()(before, PassContext(debug=True))
    w1, w2 = (after.constant(after.node(n).args[1]) for n in ("linear", "linear_1"))
    torch.testing.assert_close(w1.abs().amax(1), w2.abs().amax(0), rtol=1e-4, atol=0)
    h = Hand()
    x = h.input("x", 1, 4, 8, 6)
    a = h(aten.conv2d, x, h.const("w1", h.rand(4, 4, 1, 1)), None)
    kept = reasons(Equalize()(h.done(h(aten.linear, a, h.const("w2", h.rand(3, 6)), None))))
    assert kept["conv2d"] == "linear sums over another dimension than its channels"


def test_dead_channels_keep_their_weights():
    before = pair(HOMOGENEOUS["relu"])
    before.constants["w1"] = before.constants["w1"].clone()
    before.constants["w1"][2] = 0
    before.constants["w2"] = before.constants["w2"].clone()
    before.constants["w2"][:, 4] = 0
    after = Equalize()(before, PassContext(debug=True))
    (r1, r2), (o1, o2) = ranges(after), ranges(before)
    assert bool(torch.isfinite(r1).all() and torch.isfinite(r2).all())
    assert r2[2] == o2[2] and r1[4] == o1[4] and r1[2] == 0 and r2[4] == 0

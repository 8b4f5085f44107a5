"""How far channels reach by their weights, and that quiet ones keep a range."""

import torch
from handmade import Hand, aten

from vqc.calibration import Statistics
from vqc.passes.channel_balance import balance, channel_groups
from vqc.passes.channel_reach import reaches


def reach(program, node):
    (found,) = reaches(program, [node]).values()
    return found


def test_a_convolution_reaches_as_its_weights_and_bias():
    h = Hand()
    x = h.input("x", 1, 2, 4, 4)
    w, b = h.rand(3, 2, 3, 3), h.rand(3)
    y = h(aten.relu, h(aten.conv2d, x, h.const("w", w), h.const("b", b), [1, 1], [1, 1]))
    p = h.done(y)
    want = w.double().square().sum((1, 2, 3)).sqrt() + b.double().abs()
    torch.testing.assert_close(reach(p, p.result_nodes[0]), want / want.max())


def test_depthwise_layers_scales_concats_and_sums_hand_it_on():
    h = Hand()
    x = h.input("x", 1, 2, 4, 4)
    a = h(aten.conv2d, x, h.const("w", torch.tensor([4.0, 1.0]).view(2, 1, 1, 1).expand(2, 2, 1, 1)), None)
    depthwise = h(
        aten.conv2d, a, h.const("d", torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)), None, [1, 1], [0, 0], [1, 1], 2
    )
    scaled = h(aten.mul.Tensor, a, h.const("s", torch.tensor([1.0, -8.0]).view(1, 2, 1, 1)))
    both = h(aten.cat, [depthwise, scaled], 1)
    total = h(aten.add.Tensor, a, scaled)
    p = h.done(both, total)
    found = [reach(p, n).tolist() for n in p.result_nodes]
    assert found[0] == [1.0, 0.5, 1.0, 2.0]
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor([2**0.5, (0.25**2 + 2**2) ** 0.5]))
    assert channel_groups(p.result_nodes[0]) == [2, 2]


def test_what_is_unknown_reaches_equally_far():
    h = Hand()
    x = h.input("x", 1, 3, 4, 4)
    p = h.done(h(aten.flip, x, [3]))
    assert reach(p, p.result_nodes[0]).tolist() == [1.0, 1.0, 1.0]


def test_a_channel_that_calibration_did_not_hear_keeps_a_range():
    """Three channels of equal reach, one silent: its scale is that of the others, and one small by construction keeps
    a small one."""
    h = Hand()
    x = h.input("x", 1, 4, 8, 8)
    w = torch.ones(4, 4, 1, 1) * torch.tensor([1.0, 1.0, 1.0, 0.001]).view(4, 1, 1, 1)
    a = h(aten.conv2d, x, h.const("w", w), None)
    p = h.done(h(aten.conv2d, a, h.const("v", h.rand(2, 4, 3, 3)), None))
    seen = Statistics()
    seen.update(torch.rand(1, 4, 8, 8) * torch.tensor([1.0, 1.0, 1e-9, 0.001]).view(1, 4, 1, 1))
    layer = p.result_nodes[0]
    known = reach(p, layer.args[0])
    quant = balance(p, layer, seen, 256, 8, always=True, reach=known)
    assert quant is not None
    ranges = quant.scale * 255
    assert float(ranges[2]) > 0.5 * float(ranges[0]) and float(ranges[3]) < 0.01 * float(ranges[0])
    assert torch.allclose(
        balance(p, layer, seen, 256, 8, always=True, headroom=0.5, reach=known).scale, quant.scale * 1.5
    )

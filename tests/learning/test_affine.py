"""The gradient of a layer's factor and shift, against autograd through its weight."""

import pytest
import torch
from handmade import Hand, aten

from vqc.learning.affine import Affine
from vqc.learning.execute import execute, whole
from vqc.learning.moments import ChannelStats
from vqc.learning.student import Student
from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize
from vqc.pipeline import PassContext
from vqc.program import shape_of

KINDS = {
    "plain": (aten.conv2d, (6, 4, 3, 3), 6, ([1, 1], [1, 1])),
    "strided": (aten.conv2d, (6, 4, 3, 3), 6, ([2, 2], [1, 1], [2, 2])),
    "depthwise": (aten.conv2d, (4, 1, 3, 3), 4, ([1, 1], [1, 1], [1, 1], 4)),
    "transposed": (aten.conv_transpose2d.input, (4, 6, 4, 4), 6, ([2, 2], [1, 1])),
    "transposed groups": (aten.conv_transpose2d.input, (4, 3, 4, 4), 6, ([2, 2], [1, 1], [0, 0], 2)),
    "linear": (aten.linear, (6, 4), 6, ()),
}


def student(kind: str):
    target, weight, outputs, rest = KINDS[kind]
    h = Hand()
    x = h.input("x", *((1, 5, 4) if kind == "linear" else (1, 4, 8, 8)))
    first = h(aten.mul.Tensor, x, 2.0)
    y = h(target, h(aten.relu, first), h.const("w", h.rand(*weight)), h.const("b", h.rand(outputs)), *rest)
    twin = h.done(y)
    context = PassContext(calibration=[twin.example] * 2)
    program = Quantize(tail="quantized")(Observe()(twin, context))
    return Student(program, twin), program


@pytest.mark.parametrize("kind", list(KINDS))
def test_gradients_are_those_of_the_layer_with_the_gain_in_its_weight(kind):
    s, program = student(kind)
    (layer,) = s.layers.values()
    g = torch.Generator().manual_seed(0)
    channels = layer.bias.numel()
    stats = ChannelStats(torch.randn(channels, generator=g).double(), torch.rand(channels, generator=g).double() + 0.1)
    affine = Affine(s, {layer.node: stats})
    (mine,) = affine.layers.values()
    mine.gamma.data += torch.randn(mine.gamma.shape, generator=g) * 0.3
    mine.beta.data += torch.randn(mine.beta.shape, generator=g) * 0.3
    x = program.example[0].clone().requires_grad_()
    aim = torch.randn(shape_of(layer.node), generator=g)

    def gradients(overrides, *params):
        found = execute(program, program.calls, whole(program, [x], []), [layer.node], overrides)[layer.node]
        return found.detach(), torch.autograd.grad((found * aim).sum(), [x, *params])

    value, (by_x, by_gamma, by_beta) = gradients(affine.overrides(), mine.gamma, mine.beta)
    plain, (x_too, by_gain, by_bias) = gradients(s.overrides(), layer.quantizer.gain, layer.bias)
    assert torch.allclose(value, plain, atol=1e-4)
    assert torch.allclose(by_x, x_too, atol=1e-4)
    assert torch.allclose(by_beta, by_bias * mine.deviation, rtol=1e-4, atol=1e-3)
    # gain = gain0 gamma, and bias = gamma bias0 + (1 - gamma) mean + ...: gamma moves both
    moved = (by_bias * (mine.bias - mine.mean)).view(-1, mine.scales).sum(0)
    assert torch.allclose(by_gamma, by_gain * mine.gain + moved, rtol=1e-3, atol=2e-3)


def test_scales_of_a_pictures_own_grid_stay():
    h = Hand()
    x = h.input("x", 1, 1, 6, 6)
    shifted = h(aten.sub.Tensor, x, h.const("mean", torch.full((1, 1, 1, 1), 0.123)))
    a = h(aten.conv2d, shifted, h.const("w0", h.rand(2, 1, 3, 3)), h.const("b0", h.rand(2)))
    twin = h.done(h(aten.conv2d, h(aten.relu, a), h.const("w1", h.rand(1, 2, 1, 1)), h.const("b1", h.rand(1))))
    twin.inputs = (type(twin.inputs[0])("x", (1, 1, 6, 6), torch.float32, known_range=(0.0, 1.0)),)
    program = Quantize(tail="quantized")(Observe()(twin, PassContext(calibration=[torch.rand(1, 1, 6, 6)])))
    s = Student(program, twin)
    assert sum(layer.offset is not None for layer in s.layers.values()) == 1
    stats = {n: ChannelStats(torch.zeros(k.bias.numel()).double(), torch.ones(k.bias.numel()).double())
             for n, k in s.layers.items()}  # fmt: skip
    affine = Affine(s, stats)
    assert [q.args[0].name for q in affine.activations] == ["relu"]


def test_what_is_restored_is_what_was():
    s, _ = student("plain")
    (n,) = s.layers
    stats = ChannelStats(torch.randn(6).double(), torch.rand(6).double())
    affine = Affine(s, {n: stats}, "layer")
    affine.layers[n].compose(torch.full((6,), 2.0), torch.ones(6))
    affine.layers[n].gamma.data.fill_(0.7)
    held, gains, biases = affine.tensors(), affine.layers[n].gains(), affine.layers[n].biases()
    affine.layers[n].compose(torch.full((6,), 3.0), torch.ones(6))
    affine.layers[n].beta.data.fill_(0.5)
    affine.restore(held)
    assert torch.equal(affine.layers[n].gains(), gains) and torch.equal(affine.layers[n].biases(), biases)


def test_compose_is_the_map_after_what_stands():
    s, _ = student("transposed groups")
    (n,) = s.layers
    affine = Affine(s, {n: ChannelStats(torch.randn(6).double(), torch.rand(6).double())})
    layer = affine.layers[n]
    layer.gamma.data.fill_(0.7)
    layer.beta.data.fill_(-0.3)
    gains, biases = layer.gains(), layer.biases()
    gamma, beta = torch.tensor([2.0, 0.5, 1.0] * 2), torch.arange(6.0)
    layer.compose(gamma, beta)
    assert torch.allclose(layer.gains(), gains * gamma[:3]) and torch.allclose(layer.biases(), biases * gamma + beta)

"""A factor and a shift for what each quantized layer gives: global affine calibration, without a node at run time.

y'_c = gamma_c y_c + beta_c of a layer's result y = W x + b is again a layer: scales gamma s_w, bias gamma b + beta
(PTQ4VM, arXiv 2506.10840, the form of its code; the paper has one gamma and one beta a layer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from vqc.learning.moments import ChannelStats, match_moments
from vqc.learning.quantizers import ActivationQuantizer
from vqc.learning.student import QuantizedLayer, Student

aten = torch.ops.aten

Granularity = Literal["channel", "layer"]
ENOUGH = 256  # values of a channel for a variance to be matched: a squeezed layer has one a frame
GAMMA = (0.25, 4.0)  # a closed-form factor outside says that a channel has been lost, not that it needs amplifying


class AffineLayer(nn.Module):
    """gamma and beta of one layer, learned in units in which one rate fits all layers.

    The map is y' = mean + gamma (y - mean) + deviation beta, with the channel's mean and standard deviation in the
    float twin, so that gamma and beta do not have to make up for each other. `channels`: of the result, [O]; the weight
    has `scales` factors, fewer than O for a grouped transposed convolution, whose groups share them.
    """

    def __init__(self, layer: QuantizedLayer, stats: ChannelStats, granularity: Granularity):
        super().__init__()
        self.layer = layer
        self.gain, self.bias = layer.quantizer.gain.detach().clone(), layer.bias.detach().clone()
        self.scales, self.channels = self.gain.numel(), self.bias.numel()
        self.mean, self.deviation = stats.mean.float(), stats.var.sqrt().float()
        self.gamma = nn.Parameter(torch.ones(self.scales if granularity == "channel" else 1))
        self.beta = nn.Parameter(torch.zeros(self.channels if granularity == "channel" else 1))

    def of_channels(self, values: Tensor) -> Tensor:
        """[scales] as [O]."""
        return values.repeat(self.channels // self.scales)

    def gains(self) -> Tensor:
        """[scales], the factor of every weight scale."""
        return self.gain * self.gamma

    def biases(self) -> Tensor:
        """[O]"""
        gamma = self.of_channels(self.gamma.expand(self.scales))
        return gamma * self.bias + (1 - gamma) * self.mean + self.deviation * self.beta

    def compose(self, gamma: Tensor, beta: Tensor) -> None:
        """Apply y' = gamma y + beta (both [O]) after what stands; gamma and beta begin anew from there."""
        shared = gamma.view(-1, self.scales).mean(0)
        with torch.no_grad():
            self.bias = (self.of_channels(shared) * self.biases().double() + beta).float()
            self.gain = (self.gains() * shared).float()
            self.gamma.fill_(1)
            self.beta.zero_()

    def write(self) -> None:
        """Put gain and bias into the student's layer."""
        with torch.no_grad():
            self.layer.quantizer.gain.copy_(self.gains())
            self.layer.bias.copy_(self.biases())


class Affine(nn.Module):
    """All gammas and betas of a student, and the scales of its activations. `stats`: of the twin's layers, by node."""

    def __init__(self, student: Student, stats: Mapping[fx.Node, ChannelStats], granularity: Granularity = "channel"):
        super().__init__()
        self.student = student
        self.layers = {n: AffineLayer(layer, stats[n], granularity) for n, layer in student.layers.items()}
        fixed = {n.args[0] for n, layer in student.layers.items() if layer.offset is not None}  # a picture's own grid
        self.activations: dict[fx.Node, ActivationQuantizer] = {
            q: quantizer for q, quantizer in student.activations.items()
            if quantizer.learns and not fixed.intersection(q.users)
        }  # fmt: skip

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """gamma and beta of every layer, log_scale of every activation whose grid may move."""
        found: dict[str, nn.Parameter] = {}
        for n, layer in self.layers.items():
            found[f"gamma {n.name}"], found[f"beta {n.name}"] = layer.gamma, layer.beta
        found |= {f"scale {q.name}": quantizer.log_scale for q, quantizer in self.activations.items()}
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Copies of everything that has changed since the program: what `restore` takes."""
        found = {k: p.detach().clone() for k, p in self.parameters_by_name().items()}
        for n, layer in self.layers.items():
            found[f"gain {n.name}"], found[f"bias {n.name}"] = layer.gain.clone(), layer.bias.clone()
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for k, p in self.parameters_by_name().items():
                p.copy_(tensors[k])
        for n, layer in self.layers.items():
            layer.gain, layer.bias = tensors[f"gain {n.name}"].clone(), tensors[f"bias {n.name}"].clone()

    def match(self, n: fx.Node, student: ChannelStats, twin: ChannelStats, count: int) -> tuple[Tensor, Tensor]:
        """Give layer `n` the factor and shift that match its moments to the twin's; returns both, float64 [O].

        `count`: of how many values a moment is. A variance of few says little: then the shift alone is matched.
        """
        gamma, _ = match_moments(twin, student)
        gamma = gamma.clamp(*GAMMA) if count >= ENOUGH else torch.ones_like(gamma)
        gamma = self.layers[n].of_channels(gamma.view(-1, self.layers[n].scales).mean(0))
        beta = twin.mean - gamma * student.mean
        self.layers[n].compose(gamma, beta)
        return gamma, beta

    def overrides(self) -> dict[fx.Node, Callable[..., Any]]:
        """How to compute the program as it is now. Make it anew after every step of an optimiser."""
        for layer in self.layers.values():
            layer.write()
        made = self.student.overrides()
        for n, affine in self.layers.items():
            with torch.no_grad():
                weight = affine.layer.quantizer(soft=False)
            made[affine.layer.weight] = _given(weight)
            made[n] = _affine(affine)
        return made

    def bake(self) -> None:
        """Write everything into the Program's constants and arguments."""
        for layer in self.layers.values():
            layer.write()
        self.student.bake()


def _given(value: Tensor) -> Callable[..., Tensor]:
    return lambda *_: value


def _affine(affine: AffineLayer) -> Callable[..., Tensor]:
    """The layer with the gains in its weight already; gradients for x, gains and biases alone."""
    gains, biases = affine.of_channels(affine.gains()), affine.biases()
    target: Any = affine.layer.node.target
    offset = affine.layer.offset

    def run(x: Tensor, w: Tensor, _bias: Tensor | None = None, *rest: Any) -> Tensor:
        full = biases.detach()
        if offset is not None:
            full = full - (w * offset).sum((1, 2, 3))
        return _Layer.apply(x, w, gains, biases, full, target, rest)

    return run


class _Layer(torch.autograd.Function):
    """A layer with a gradient for the factor and shift of its result instead of one for its weight.

    y - bias is proportional to the gain, so d y / d gain is (y - bias) / gain: a sum for each channel in place of the
    gradient of a convolution's weight, which is a third of all the work.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, gains: Tensor, biases: Tensor, full: Tensor, target: Any,
                rest: tuple[Any, ...]) -> Tensor:  # fmt: skip
        y = target(x, w, full, *rest)
        ctx.save_for_backward(w, gains, biases, y)
        ctx.target, ctx.rest, ctx.x_shape = target, rest, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        w, gains, biases, y = ctx.saved_tensors
        linear = ctx.target is aten.linear.default
        across = [d for d in range(y.ndim) if d != (y.ndim - 1 if linear else 1)]
        total = g.sum(across)
        by_gain = ((g * y).sum(across) - total * biases) / gains
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = g @ w if linear else _input_gradient(g, w, ctx.x_shape, ctx.target, ctx.rest)
        return by_x, None, by_gain, total, None, None, None


def _input_gradient(g: Tensor, w: Tensor, shape: torch.Size, target: Any, rest: tuple[Any, ...]) -> Tensor:
    """Of a convolution, in the argument order of aten.conv2d or aten.conv_transpose2d after the bias."""
    transposed = target is aten.conv_transpose2d.input
    names = ("stride", "padding", "output_padding", "groups", "dilation") if transposed else \
            ("stride", "padding", "dilation", "groups")  # fmt: skip
    given: dict[str, Any] = {"stride": [1], "padding": [0], "output_padding": [0], "dilation": [1], "groups": 1}
    given |= dict(zip(names, rest, strict=False))
    two = {k: [v, v] if isinstance(v, int) else list(v) * (2 // len(v)) for k, v in given.items() if k != "groups"}
    empty = g.new_empty(1).expand(shape)  # only its shape is read
    found = aten.convolution_backward(g, empty, w, None, two["stride"], two["padding"], two["dilation"], transposed,
                                      two["output_padding"], given["groups"], [True, False, False])  # fmt: skip
    return found[0]

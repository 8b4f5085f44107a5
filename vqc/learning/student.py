"""A quantized Program whose quantizers learn from its float twin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor, fx, nn

from vqc.errors import PipelineError
from vqc.learning.channels import channel_view
from vqc.learning.layers import DEQUANTIZES, LAYERS, QUANTIZES
from vqc.learning.quantizers import ActivationQuantizer, WeightQuantizer
from vqc.program import Program, shape_of

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed


@dataclass
class QuantizedLayer:
    """A layer whose weight is made of integers: `weight` is the dequantize node, `base` the constant of the integers,
    `scale` that of the scales; `bias` [O] is what is learned. `offset`: float32, shaped to broadcast with the weight,
    what the input's grid adds to each channel (pictures): the layer takes its constant effect off again."""

    node: fx.Node
    weight: fx.Node
    base: str
    scale: str
    quantizer: WeightQuantizer
    bias: nn.Parameter
    had_bias: bool
    offset: Tensor | None = None

    def full_bias(self, weight: Tensor) -> Tensor:
        """[O], the bias together with what takes the offset of the input off, for the weight as it enters the layer."""
        return self.bias if self.offset is None else self.bias - (weight * self.offset).sum((1, 2, 3))


class Student:
    """The learnable face of a quantized Program (valid between `quantize` and `lower-integer`).

    `layers` by layer node, `activations` by quantize node. `overrides()` makes `execute` compute with them; `bake()`
    writes what they have become into the Program's constants and arguments.
    Raises PipelineError when the program has no quantized layer, or a layer has no float twin.
    """

    def __init__(self, program: Program, twin: Program):
        self.program, self.twin = program, twin
        self.twins = {n.name: n for n in twin.graph.nodes}
        self.layers: dict[fx.Node, QuantizedLayer] = {}
        self.activations: dict[fx.Node, ActivationQuantizer] = {}
        for n in program.calls:
            if n.target in LAYERS:
                layer = self._layer(n)
                if layer is not None:
                    self.layers[n] = layer
        for n in program.calls:
            if n.target in QUANTIZES:
                self.activations[n] = self._activation(n)
        if not self.layers:
            raise PipelineError(f"program {program.name} has no quantized layer to learn from",
                                way_out="run observe and quantize first, and lower-integer after")  # fmt: skip

    # ---- building ------------------------------------------------------------------------------------------------

    def _layer(self, n: fx.Node) -> QuantizedLayer | None:
        weight, unfold = n.args[1], None
        if isinstance(weight, fx.Node) and weight.target is aten.mul.Tensor:
            weight, unfold = weight.args[0], weight.args[1]
        if not isinstance(weight, fx.Node) or weight.target is not qd.dequantize_per_channel.default:
            return None
        twin = self.twins.get(n.name)
        real = self.twin.constant(twin.args[1]) if twin is not None else None
        integers, scale = self.program.constant(weight.args[0]), self.program.constant(weight.args[1])
        if real is None or integers is None or scale is None:
            raise PipelineError(f"layer {n.name} has no float weight to learn from",
                                why="the float twin has no layer of this name with a constant weight",
                                way_out="pass twin=, the program as it was before quantize")  # fmt: skip
        axis = int(weight.args[3])
        factor = self.program.constant(unfold)
        folded = real.double() if factor is None else real.double() / factor.double()
        shape = [1] * real.ndim
        shape[axis] = -1
        latent = (folded / scale.double().view(shape)).float()
        top = int(weight.args[5])
        bias = self.program.constant(n.args[2]) if len(n.args) > 2 else None
        channels = shape_of(n)[-1 if n.target is aten.linear.default else 1]
        start = torch.zeros(channels) if bias is None else bias.detach().clone().float()
        offset = n.meta.get("offset")
        quantizer = WeightQuantizer(latent, scale, axis, top, integers)
        if offset is not None:
            offset = channel_view(offset, n, real).float()
            entering = quantizer(soft=False) if factor is None else quantizer(soft=False) * factor
            start = start + (entering.detach() * offset).sum((1, 2, 3))
        return QuantizedLayer(n, weight, str(weight.args[0].target), str(weight.args[1].target), quantizer,
                              nn.Parameter(start), bias is not None, offset)  # fmt: skip

    def _activation(self, n: fx.Node) -> ActivationQuantizer:
        if n.target is qd.quantize_per_tensor.default:
            scale, zero = torch.tensor([float(n.args[1])]), torch.tensor([int(n.args[2])])
            return ActivationQuantizer(scale, zero, int(n.args[4]))
        scales, zeros = self.program.constant(n.args[1]), self.program.constant(n.args[2])
        assert scales is not None and zeros is not None
        return ActivationQuantizer(scales, zeros, int(n.args[5]), int(n.args[3]))

    # ---- computing -----------------------------------------------------------------------------------------------

    def overrides(self, nodes: Iterable[fx.Node] | None = None, *, soft: bool = False, straight: bool = False,
                  keep: Callable[[Tensor], Tensor | None] | None = None
                  ) -> dict[fx.Node, Callable[..., Any]]:  # fmt: skip
        """How to compute the quantizers' nodes among `nodes` (all, if None).

        `soft`, `straight`: weights as `WeightQuantizer` says. `keep(x)` draws which values of an activation stay as
        they are (QDrop).
        """
        inside = None if nodes is None else set(nodes)
        made: dict[fx.Node, Callable[..., Any]] = {}
        for n, layer in self.layers.items():
            if inside is None or n in inside:
                made[layer.weight] = _weight_of(layer.quantizer, soft, straight)
                made[n] = _with_bias(layer)
        for q, quantizer in self.activations.items():
            if inside is None or q in inside:
                made[q] = _grid_of(quantizer, keep)
                for user in q.users:
                    if user.target in DEQUANTIZES:
                        made[user] = _first
        return made

    # ---- writing back --------------------------------------------------------------------------------------------

    def bake(self, layers: Iterable[fx.Node] | None = None, activations: Iterable[fx.Node] | None = None) -> None:
        """Write the given layers and activations (all, if None) into the Program: integers, scales, biases, grids."""
        with torch.no_grad():
            for n in self.layers if layers is None else layers:
                self._bake_layer(self.layers[n])
            for q in self.activations if activations is None else activations:
                self._bake_activation(q, self.activations[q])

    def _bake_layer(self, layer: QuantizedLayer) -> None:
        program, quantizer = self.program, layer.quantizer
        integers, scale = quantizer.integers(), (quantizer.scale * quantizer.gain).float()
        negative = scale < 0  # a gain below zero turns the integers round; a scale stays positive
        integers = torch.where(quantizer.view(negative), -integers, integers)
        program.constants[layer.base] = integers
        program.constants[layer.scale] = scale.abs()
        bias = layer.full_bias(self._entering(layer)).detach()
        if layer.had_bias or bool((bias != 0).any()):
            old = layer.node.args[2] if len(layer.node.args) > 2 else None
            if isinstance(old, fx.Node) and len(old.users) == 1:
                program.constants[str(old.target)] = bias
            else:  # there was none, or others read it too
                node = program.add_constant(f"{layer.base}_bias", bias)
                layer.node.args = (*layer.node.args[:2], node, *layer.node.args[3:])

    def _entering(self, layer: QuantizedLayer) -> Tensor:
        """The weight as it enters the layer: dequantized, channel scales taken out again."""
        weight = layer.quantizer(soft=False)
        product = layer.node.args[1]
        assert isinstance(product, fx.Node)
        factor = None if product is layer.weight else self.program.constant(product.args[1])
        return weight if factor is None else weight * factor

    def _bake_activation(self, q: fx.Node, quantizer: ActivationQuantizer) -> None:
        scale, zero = quantizer.scale.detach(), quantizer.zero_point().detach()
        users = [u for u in q.users if u.target in DEQUANTIZES]
        if q.target is qd.quantize_per_tensor.default:
            for n in (q, *users):
                n.args = (n.args[0], float(scale), int(zero), *n.args[3:])
        elif quantizer.learns:
            self.program.constants[q.args[1].target] = scale.clone()
            self.program.constants[q.args[2].target] = zero.to(torch.int64)


def _weight_of(quantizer: WeightQuantizer, soft: bool, straight: bool) -> Callable[..., Any]:
    return lambda *_: quantizer(soft, straight)


def _grid_of(quantizer: ActivationQuantizer, keep: Callable[[Tensor], Tensor | None] | None) -> Callable[..., Any]:
    return lambda x, *_: quantizer(x, keep(x) if keep is not None else None)


def _first(x: Any, *_: Any) -> Any:
    return x


def _with_bias(layer: QuantizedLayer) -> Callable[..., Any]:
    target: Any = layer.node.target
    return lambda x, w, _bias=None, *rest: target(x, w, layer.full_bias(w), *rest)

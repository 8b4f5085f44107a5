"""Layers between `quantize` and `lower-integer` whose integers, scales or biases a pass may write anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor, fx

from vqc.learning.columns import Columns
from vqc.program import Program, shape_of

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

LAYERS = (aten.conv2d.default, aten.conv_transpose2d.input, aten.linear.default)
QUANTIZES = (qd.quantize_per_tensor.default, qd.quantize_per_channel.default)
DEQUANTIZES = (qd.dequantize_per_tensor.default, qd.dequantize_per_channel.default)


@dataclass
class IntegerLayer:
    """A layer that multiplies dequantized integers with dequantized int8 weights.

    `dequantize`: the node that makes its weight; `product`: what multiplies that with `unfold`, the reciprocal of
    channel scales, or the same node. `top`: the integers lie in -top..top. `twin`: the float layer of the same name.
    """

    program: Program
    node: fx.Node
    dequantize: fx.Node
    product: fx.Node
    unfold: Tensor | None
    top: int
    twin: fx.Node
    twin_weight: Tensor

    @property
    def axis(self) -> int:
        """The dimension of the weight along which its scales run."""
        return int(self.dequantize.args[3])

    @property
    def integers(self) -> Tensor:
        """int8, of the weight's shape."""
        return self._constant(0)

    @property
    def scale(self) -> Tensor:
        """float32, one for each entry of dimension `axis`."""
        return self._constant(1)

    @property
    def bias(self) -> Tensor | None:
        """float32 [outputs]."""
        return self.program.constant(self.node.args[2]) if len(self.node.args) > 2 else None

    @property
    def outputs(self) -> int:
        """How many channels its result has."""
        return shape_of(self.node)[self.channel_axis]

    @property
    def channel_axis(self) -> int:
        """The dimension of its result that holds the channels."""
        shape = shape_of(self.node)
        return len(shape) - (1 if self.node.target is aten.linear.default else 3)

    @property
    def bits(self) -> int:
        return (self.top + 1).bit_length()

    def along_axis(self, values: Tensor) -> Tensor:
        """Values for each entry of dimension `axis`, shaped to broadcast with the weight."""
        return values.view([-1 if d == self.axis else 1 for d in range(self.twin_weight.ndim)])

    def set_weight(self, integers: Tensor | None = None, scale: Tensor | None = None) -> None:
        """Other integers or scales, of the same shapes."""
        base = str(self.dequantize.args[0].target), str(self.dequantize.args[1].target)
        args = list(self.dequantize.args)
        if integers is not None:
            args[0] = self.program.add_constant(base[0], integers.to(torch.int8))
        if scale is not None:
            args[1] = self.program.add_constant(base[1], scale.float())
        self.dequantize.args = tuple(args)

    def set_bias(self, bias: Tensor) -> None:
        """Another bias, float [outputs]; the layer gets one if it has none."""
        new = self.program.add_constant(f"{self.node.name}_bias", bias.float())
        self.node.args = (*self.node.args[:2], new, *self.node.args[3:])

    def _constant(self, i: int) -> Tensor:
        value = self.program.constant(self.dequantize.args[i])
        assert value is not None
        return value


def integer_layers(program: Program, twin: Program) -> tuple[list[IntegerLayer], dict[fx.Node, str]]:
    """(layers in graph order, why each other layer with an integer weight is none)."""
    found, refused = [], {}
    floats = {n.name: n for n in twin.graph.nodes}
    for n in program.calls:
        if n.target in LAYERS:
            layer = _integer_layer(program, twin, n, floats.get(n.name))
            if isinstance(layer, str):
                refused[n] = layer
            elif layer is not None:
                found.append(layer)
    return found, refused


def _integer_layer(program: Program, twin: Program, n: fx.Node, other: fx.Node | None) -> IntegerLayer | str | None:
    product = dequantize = n.args[1]
    unfold = None
    if isinstance(product, fx.Node) and product.target is aten.mul.Tensor:
        dequantize, unfold = product.args[0], program.constant(product.args[1])
        if unfold is None:
            return None
    if not isinstance(dequantize, fx.Node) or dequantize.target is not qd.dequantize_per_channel.default:
        return None  # a float layer: quantize has said why
    assert isinstance(product, fx.Node)
    integers, scale = program.constant(dequantize.args[0]), program.constant(dequantize.args[1])
    if integers is None or scale is None or integers.dtype != torch.int8:
        return "its weight is not made of int8 constants"
    if len(product.users) > 1 or len(dequantize.users) > 1:
        return "other layers read its weight too"
    if len(n.args) > 2 and n.args[2] is not None and program.constant(n.args[2]) is None:
        return "its bias is no constant"
    x = n.args[0]
    if not isinstance(x, fx.Node) or x.target not in DEQUANTIZES:
        return "its input is float"
    weight = twin.constant(other.args[1]) if other is not None and other.target is n.target else None
    if other is None or weight is None or weight.shape != integers.shape:
        return "the float program has no layer of this name with a weight of this shape"
    return IntegerLayer(program, n, dequantize, product, unfold, int(dequantize.args[5]), other, weight)


@dataclass
class LayerMatrix:
    """An IntegerLayer in the space of its integers: latent weight, steps and inputs as GPTQ wants them.

    Channel scales of the activation are part of the integers (`quantize`), so here the weight is multiplied with them
    and the input divided by them. What a picture's grid adds to the input, and the bias takes away, is taken from the
    input.
    """

    layer: IntegerLayer
    columns: Columns
    latent: Tensor  # float64 [g, R, K]
    step: Tensor  # float64 [g, R, 1]
    integers: Tensor  # float64 [g, R, K], those in the program
    factor: Tensor | None  # float32 [g, K], what multiplies the input
    offset: Tensor | None  # float32 [g, K], what is taken from the (not yet multiplied) input
    lifted: tuple[Any, ...] | None = None  # the node's arguments while its weight is float

    def inputs(self, x: Tensor, at: Tensor, *, quantized: bool) -> Tensor:
        """Columns [g, K, n] of the layer's input at positions `at`; `quantized`: or the float twin's."""
        found = self.columns(x, at)
        if quantized and self.offset is not None:
            found = found - self.offset[..., None]
        return found if self.factor is None else found * self.factor[..., None]

    def write(self, integers: Tensor) -> None:
        """Put integers [g, R, K] into the program, and mend the bias that goes with a picture's grid."""
        self._mend_bias(integers * self.step)
        self.layer.set_weight(integers=self.columns.weight(integers).contiguous())
        self.integers = integers

    def lift(self) -> None:
        """Let the layer multiply the float weight for now (its input stays quantized), until `lower`."""
        layer = self.layer
        given = layer.node.args
        self._mend_bias(self.latent)
        weight = layer.program.add_constant(f"{layer.node.name}_float", layer.twin_weight)
        layer.node.args = (layer.node.args[0], weight, *layer.node.args[2:])
        self.lifted = given

    def lower(self) -> None:
        """Back to integers."""
        if self.lifted is not None:
            self.layer.node.args, self.lifted = self.lifted, None

    def _mend_bias(self, weight: Tensor) -> None:
        """The bias that goes with weight [g, R, K] (in the space of the integers) on a picture's grid."""
        if self.offset is not None:
            offset = self.offset.double() if self.factor is None else (self.offset * self.factor).double()
            moved = ((weight - self.integers * self.step) * offset[:, None, :]).sum(2).flatten()
            old = self.layer.bias
            self.layer.set_bias((0 if old is None else old.double()) - moved)


def layer_matrix(layer: IntegerLayer) -> LayerMatrix:
    """The matrix view of a layer as it stands in the program now."""
    columns = Columns(layer.twin)
    weight = layer.twin_weight.double()
    factor = None
    if layer.unfold is not None:
        unfold = layer.unfold.double().expand(layer.integers.shape)
        weight = weight / unfold
        factor = columns.matrix(unfold)[:, 0, :].float().contiguous()
    offset = layer.node.meta.get("offset")
    if offset is not None:
        offset = columns.per_input(offset).float()
    step = columns.matrix(layer.along_axis(layer.scale.double()).expand(layer.integers.shape))[:, :, :1]
    return LayerMatrix(layer, columns, columns.matrix(weight).contiguous(), step.contiguous(),
                       columns.matrix(layer.integers.double()).contiguous(), factor, offset)  # fmt: skip

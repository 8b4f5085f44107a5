"""fold-bn: batch norms and per-channel scales become part of the convolutions beside them."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.arguments import bind, op_name, rebind
from vqc.pipeline import Close, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Declined, Program, dtype_of, shape_of

aten = torch.ops.aten

# operator -> number of spatial dimensions
CONVOLUTIONS = {"aten.conv1d": 1, "aten.conv2d": 2, "aten.conv3d": 3}
TRANSPOSED = {"aten.conv_transpose1d": 1, "aten.conv_transpose2d": 2, "aten.conv_transpose3d": 3}
LAYERS = {**CONVOLUTIONS, **TRANSPOSED, "aten.linear": 0}
SCALES = {"aten.mul", "aten.div", "aten.add", "aten.sub"}


@dataclass(frozen=True)
class Affine:
    """y = x * scale + shift, per channel, in float64 [C]. `key` is equal for equal constants."""

    scale: torch.Tensor
    shift: torch.Tensor
    key: Hashable


class Layer:
    """A convolution or linear layer with constant parameters."""

    def __init__(self, program: Program, node: fx.Node):
        self.program, self.node, self.op = program, node, op_name(node.target)
        self.args = bind(node)
        self.weight = program.constant(self.args["weight"])
        self.bias = program.constant(self.args["bias"])
        self.transposed = self.op in TRANSPOSED
        self.groups: int = self.args.get("groups", 1)
        self.spatial = LAYERS[self.op]
        self.key: Hashable = (self.op, self.groups, _target(self.args["weight"]), _target(self.args["bias"]))

    @property
    def channels(self) -> int:
        """Output channels."""
        weight = shape_of(self.args["weight"])
        return weight[1] * self.groups if self.transposed else weight[0]

    def axis(self, shape: tuple[int, ...]) -> int:
        """The dimension of the channels in an input or result of this shape."""
        return len(shape) - 1 - self.spatial

    def not_constant(self) -> str | None:
        if self.weight is None:
            return f"the weight of {self.node.name} is computed (fold-constants first, if it depends on no input)"
        if self.args["bias"] is not None and self.bias is None:
            return f"the bias of {self.node.name} is computed (fold-constants first, if it depends on no input)"
        return None

    def sees_only_data(self) -> bool:
        """Whether every output sums all taps of the kernel over real samples: no zero of a border, no missing tap."""
        if self.spatial == 0:
            return True
        kernel = shape_of(self.args["weight"])[2:]
        if not self.transposed:
            padding = self.args["padding"]
            return padding == "valid" if isinstance(padding, str) else not any(_every(padding, self.spatial))
        # a transposed convolution of stride 1 whose padding crops every position that some tap does not reach
        at = {k: _every(self.args[k], self.spatial) for k in ("stride", "padding", "dilation", "output_padding")}
        reach = all(p >= d * (k - 1) for p, d, k in zip(at["padding"], at["dilation"], kernel, strict=True))
        return reach and set(at["stride"]) == {1} and not any(at["output_padding"])

    def weight_view(self) -> tuple[int, ...]:
        """The weight as [groups, outputs or inputs of a group, inputs or outputs of a group, taps]."""
        w = shape_of(self.args["weight"])
        return (self.groups, w[0] // self.groups, w[1], -1)

    def scaled_outputs(self, a: Affine) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of `affine ∘ layer`, in float64."""
        assert self.weight is not None
        per_group = a.scale.view(self.groups, -1)
        s = per_group[:, None, :, None] if self.transposed else per_group[:, :, None, None]
        weight = (self.weight.double().reshape(self.weight_view()) * s).reshape(self.weight.shape)
        bias = self.bias.double() * a.scale + a.shift if self.bias is not None else a.shift
        return weight, bias

    def scaled_inputs(self, a: Affine) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of `layer ∘ affine`, in float64, for layers that see only data (or a shift of zero)."""
        assert self.weight is not None
        w = self.weight.double().reshape(self.weight_view())
        scale, shift = a.scale.view(self.groups, -1), a.shift.view(self.groups, -1)
        if self.transposed:
            added = torch.einsum("gioT,gi->go", w, shift)
            weight = w * scale[:, :, None, None]
        else:
            added = torch.einsum("goiT,gi->go", w, shift)
            weight = w * scale[:, None, :, None]
        bias = added.reshape(-1) + (self.bias.double() if self.bias is not None else 0.0)
        return weight.reshape(self.weight.shape), bias


def _every(value: Any, count: int) -> list[int]:
    """A convolution's option for each spatial dimension."""
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * count if len(value) == 1 else value


@register
@dataclass(frozen=True)
class FoldBN(Pass):
    """bn ∘ conv -> conv;  conv ∘ bn -> conv;  scale ∘ conv -> conv.

    For conv1d/2d/3d, transposed ones, grouped ones, and linear. Preconditions of `bn ∘ conv`:
    1. The batch norm is in evaluation mode and its statistics and parameters are constants.
    2. Weight and bias of the convolution are constants.
    3. Nothing but the batch norm reads the convolution's result.
    4. The batch norm's channels (dimension 1) are the convolution's output channels.
    Of `conv ∘ bn` (batch norm first), beside 1 and 2:
    5. Every reader of the batch norm's result is a convolution that reads it as data, its channels the inputs'.
    6. The convolution sees no border: no padding, no position that some tap does not reach; or the batch norm shifts
       nothing. A padded zero stands for a zero after the norm, which no constant of the folded one can give.
    `scale` is a constant or a number per output channel, multiplied, divided, added or subtracted; the same
    conditions 2 to 4 hold.

    Folded weights are made per (weight, batch norm) pair: a weight shared by time steps with one batch norm stays
    shared, with a batch norm per step it becomes one weight per step.

    Valid before: canonical form, constants folded. Valid after: the same; with `affine` no batch norm of constants
    is left, those not folded have become mul and add. Counts "fold-bn-after", "fold-bn-before", "fold-scale",
    "affine".

    Options: `affine` - turn what cannot be folded into mul and add; `scales` - fold per-channel scales too.
    """

    affine: bool = False
    scales: bool = True

    name: ClassVar[str] = "fold-bn"
    numerics: ClassVar[Numerics] = Close(rtol=1e-4, atol=1e-5)

    def apply(self, program: Program, context: PassContext) -> PassResult:
        work = _Folding(PassResult(program))
        after: dict[fx.Node, str] = {}
        declined: list[Declined] = []
        for n in program.calls:
            if n.target is aten.batch_norm.default:
                reason = work.after_layer(n)
                if reason is not None:
                    after[n] = reason
            elif self.scales and op_name(n.target) in SCALES:
                work.scale(n)
        for n, reason in reversed(after.items()):  # from the end: of two norms in a row the second goes first
            before = work.before_layer(n)
            if before is None:
                continue
            declined.append(Declined(n.name, reason if reason == before else f"{reason}; {before}"))
            if self.affine:
                work.as_affine(n)
        work.result.declined.extend(reversed(declined))
        return work.result


@dataclass
class _Folding:
    """The rewrites, with the constants made so far: a weight folded twice with the same affine is made once."""

    result: PassResult
    made: dict[Hashable, tuple[fx.Node, fx.Node]] = field(default_factory=dict)

    @property
    def program(self) -> Program:
        return self.result.program

    # ---- bn ∘ conv ---------------------------------------------------------------------------------------------------

    def after_layer(self, bn: fx.Node) -> str | None:
        """Fold a batch norm into the layer before it; the reason when it cannot be."""
        affine = self._affine_of(bn)
        if isinstance(affine, str):
            return affine
        layer = self._layer_before(bn, bn.args[0], shape_of(bn))
        if isinstance(layer, str):
            return layer
        self._fold_outputs(layer, affine, bn, "fold-bn-after")
        return None

    def _affine_of(self, bn: fx.Node) -> Affine | str:
        """A batch norm as an affine map, or why it is none."""
        a = bind(bn)
        if a["training"] or a["running_mean"] is None or a["running_var"] is None:
            return "it takes the statistics of the batch"
        named = {k: a[k] for k in ("weight", "bias", "running_mean", "running_var") if a[k] is not None}
        consts = {k: self.program.constant(v) for k, v in named.items()}
        for k, c in consts.items():
            if c is None:
                return f"its {k} is no constant"
        tensors = {k: c.double() for k, c in consts.items() if c is not None}
        scale = torch.rsqrt(tensors["running_var"] + a["eps"])
        if "weight" in tensors:
            scale = scale * tensors["weight"]
        shift = -tensors["running_mean"] * scale
        if "bias" in tensors:
            shift = shift + tensors["bias"]
        return Affine(scale, shift, ("bn", a["eps"], *((k, str(v.target)) for k, v in named.items())))

    def _layer_before(self, reader: fx.Node, source: Any, shape: tuple[int, ...], dim: int = 1) -> Layer | str:
        """The layer whose result `reader` alone reads, channels at `dim`, or why there is none."""
        if not _is_layer(source):
            return f"its input {getattr(source, 'name', source)} is no convolution"
        layer = Layer(self.program, source)
        others = [u.name for u in source.users if u is not reader]
        if others:
            return f"{others[0]} reads the result of {source.name} too"
        if layer.axis(shape) != dim or layer.channels != shape[dim]:
            return f"its channels are dimension {dim}, those of {source.name} dimension {layer.axis(shape)}"
        return layer.not_constant() or layer

    def _fold_outputs(self, layer: Layer, affine: Affine, reader: fx.Node, what: str) -> None:
        key = ("out", layer.key, affine.key)
        if key not in self.made:
            self.made[key] = self._constants(layer, *layer.scaled_outputs(affine))
        weight, bias = self.made[key]
        rebind(layer.node, weight=weight, bias=bias)
        _take_over(layer.node, reader)
        self.result.count(what)

    def _constants(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor) -> tuple[fx.Node, fx.Node]:
        name, dtype = str(layer.args["weight"].target), dtype_of(layer.args["weight"])
        had = _target(layer.args["bias"])
        prefix, dot, last = name.rpartition(".")
        bias_name = had or (f"{prefix}{dot}bias" if last == "weight" else f"{name}_bias")
        names = [re.sub(r"_folded(_\d+)?$", "", n) + "_folded" for n in (name, bias_name)]  # folded twice: one suffix
        return (
            self.program.add_constant(names[0], weight.to(dtype)),
            self.program.add_constant(names[1], bias.to(dtype)),
        )

    # ---- conv ∘ bn ---------------------------------------------------------------------------------------------------

    def before_layer(self, bn: fx.Node) -> str | None:
        """Fold a batch norm into all layers after it; the reason when it cannot be folded into each of them."""
        affine = self._affine_of(bn)
        if isinstance(affine, str):
            return affine
        layers = []
        for user in bn.users:
            layer = self._layer_after(bn, user, bool(affine.shift.any()))
            if isinstance(layer, str):
                return layer
            layers.append(layer)
        if not layers:
            return "nothing reads it"
        for layer in layers:
            key = (
                "in",
                str(layer.args["weight"].target),
                _target(layer.args["bias"]),
                layer.op,
                layer.groups,
                affine.key,
            )
            if key not in self.made:
                self.made[key] = self._constants(layer, *layer.scaled_inputs(affine))
            weight, bias = self.made[key]
            rebind(layer.node, weight=weight, bias=bias)
            self.result.count("fold-bn-before")
        bn.replace_all_uses_with(bn.args[0])
        self.program.graph.erase_node(bn)
        return None

    def _layer_after(self, bn: fx.Node, user: fx.Node, shifts: bool) -> Layer | str:
        if user.op == "output":
            return "the program returns it"
        if not _is_layer(user):
            return f"its reader {user.name} is no convolution"
        layer = Layer(self.program, user)
        if layer.args["input"] is not bn or bn in (layer.args["weight"], layer.args["bias"]):
            return f"{user.name} reads it as a parameter"
        if layer.axis(shape_of(bn)) != 1:
            return f"its channels are dimension 1, those of {user.name} dimension {layer.axis(shape_of(bn))}"
        if shifts and not layer.sees_only_data():
            return f"{user.name} sees a border of zeros, which the shift of the norm does not reach"
        return layer.not_constant() or layer

    # ---- scale ∘ conv, and what is left ------------------------------------------------------------------------------

    def scale(self, node: fx.Node) -> None:
        """Fold a multiplication, division, addition or subtraction of a constant per channel into the layer before."""
        a, op = bind(node), op_name(node.target)
        pairs = [(a["self"], a["other"])]
        if op in ("aten.mul", "aten.add"):
            pairs.append((a["other"], a["self"]))
        found = [(s, c) for s, c in pairs if _is_layer(s)]
        if len(found) != 1 or a.get("rounding_mode") is not None or dtype_of(node) != dtype_of(found[0][0]):
            return
        source, constant = found[0]
        shape = shape_of(node)
        dim = Layer(self.program, source).axis(shape)
        value = self._per_channel(constant, shape, dim) if shape == shape_of(source) else None
        if value is None:
            return
        layer = self._layer_before(node, source, shape, dim)
        if isinstance(layer, str):
            self.result.decline(node, layer)
            return
        one, zero = torch.ones_like(value), torch.zeros_like(value)
        alpha = a.get("alpha", 1) * (-1 if op == "aten.sub" else 1)
        if op == "aten.add" and source is a["other"] and alpha != 1:
            return
        scale = {"aten.mul": value, "aten.div": 1 / value}.get(op, one)
        shift = value * alpha if op in ("aten.add", "aten.sub") else zero
        if not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all()):
            return
        self._fold_outputs(layer, Affine(scale, shift, (op, alpha, _target(constant) or constant)), node, "fold-scale")

    def _per_channel(self, constant: Any, shape: tuple[int, ...], dim: int) -> torch.Tensor | None:
        """A number, or a constant that varies along `dim` alone, as float64 [C]; None when it is neither."""
        if isinstance(constant, (int, float)) and not isinstance(constant, bool):
            return torch.full((shape[dim],), float(constant), dtype=torch.float64)
        value = self.program.constant(constant)
        if value is None or not value.dtype.is_floating_point:
            return None
        padded = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
        if len(padded) != len(shape) or any(n != 1 for d, n in enumerate(padded) if d != dim):
            return None
        return value.double().reshape(-1).expand(shape[dim])

    def as_affine(self, bn: fx.Node) -> None:
        """A batch norm as mul and add of constants [C,1,..]."""
        affine = self._affine_of(bn)
        if isinstance(affine, str):
            return
        shape = (-1, *(1 for _ in shape_of(bn)[2:]))
        scale, shift = (
            self.program.add_constant(f"{bn.name}_{what}", value.to(dtype_of(bn)).reshape(shape))
            for what, value in (("scale", affine.scale), ("shift", affine.shift))
        )
        with self.program.graph.inserting_before(bn):
            product = self.program.call(aten.mul.Tensor, (bn.args[0], scale), like=bn, name="mul")
            total = self.program.call(aten.add.Tensor, (product, shift), like=bn, name="add")
        _take_over(total, bn)
        self.result.count("affine")


def _is_layer(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and op_name(node.target) in LAYERS


def _target(node: Any) -> str | None:
    return str(node.target) if isinstance(node, fx.Node) else None


def _take_over(node: fx.Node, reader: fx.Node) -> None:
    """Let `node` stand for `reader`, whose value it now has."""
    for key in ("observed", "quant"):
        node.meta.pop(key, None)
        if key in reader.meta:
            node.meta[key] = reader.meta[key]
    reader.replace_all_uses_with(node)
    reader.graph.erase_node(reader)

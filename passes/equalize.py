"""equalize: channels between two layers get the ranges that both weights can hold best."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from vqc.arguments import op_name
from vqc.learning.columns import Columns
from vqc.learning.layers import LAYERS
from vqc.pipeline import Close, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, dtype_of, shape_of

aten = torch.ops.aten

# f(s x) = s f(x) for s > 0, with the dimension of its channels left where it is.
HOMOGENEOUS = {"aten.relu", "aten.leaky_relu", "aten.prelu", "aten.alias", "aten.clone"}
LIMIT = 1e3  # a factor lies between 1 / LIMIT and LIMIT
STILL = 1e-4  # a sweep that changes no factor by more than this is the last


@register
@dataclass(frozen=True)
class Equalize(Pass):
    """equalize: W1, b1, W2 -> W1 / s, b1 / s, W2 s, where layer 1 -> f -> layer 2 and f(s x) = s f(x).

    Cross-layer equalisation (Nagel et al., ICCV 2019, arXiv 1906.04721, section 4.1): s_c = sqrt(r1_c / r2_c), with
    r1_c and r2_c the largest magnitudes of channel c's outgoing and incoming weights, makes both sqrt(r1_c r2_c). Pairs
    share layers (a depthwise convolution in the middle is second of one and first of the next), so sweeps go over all
    pairs until no factor changes.

    Preconditions, each a reason when it fails: (1) both are conv2d, conv_transpose2d or linear with constant weight and
    bias that no other layer reads; (2) between them stands nothing, relu, leaky_relu or prelu, each read once; (3)
    nobody else reads the first one's result: no residual, no squeeze-and-excite branch, no result of the program. Valid
    before: a float program, batch norms folded, before `observe`. Valid after: the same. Counts "pair".

    Options: `sweeps` - at most so many.
    """

    name: ClassVar[str] = "equalize"
    numerics: ClassVar[Numerics] = Close(rtol=1e-4, atol=1e-5)
    sweeps: int = 100

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        layers: dict[fx.Node, _Layer] = {}
        pairs = []
        for n in program.calls:
            if n.target not in LAYERS:
                continue
            other = _next_layer(program, n)
            reason = other if isinstance(other, str) else _reason(program, n) or _reason(program, other)
            if reason is not None:
                result.decline(n, reason)
                continue
            assert isinstance(other, fx.Node)
            first, second = (layers.setdefault(m, _Layer(program, m)) for m in (n, other))
            pairs.append((first, second))
        for _ in range(self.sweeps):
            if max((_equalize(a, b) for a, b in pairs), default=0.0) < STILL:
                break
        for layer in layers.values():
            layer.write()
        if pairs:
            result.count("pair", len(pairs))
        return result


@dataclass
class _Layer:
    """float64 weight as a matrix [g, R, inputs, taps], and bias [outputs]."""

    program: Program
    node: fx.Node
    columns: Columns = field(init=False)
    weight: Tensor = field(init=False)
    bias: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        self.columns = Columns(self.node)
        weight = self.program.constant(self.node.args[1])
        assert weight is not None
        c = self.columns
        self.weight = c.matrix(weight.double()).view(c.groups, c.outputs, c.inputs, c.taps).clone()
        bias = self.program.constant(self.node.args[2]) if len(self.node.args) > 2 else None
        self.bias = None if bias is None else bias.double().clone()

    def outgoing(self) -> Tensor:
        """[outputs], the largest magnitude of the weights that make each channel."""
        return self.weight.abs().amax((2, 3)).flatten()

    def incoming(self) -> Tensor:
        """[inputs], the largest magnitude of the weights that read each channel."""
        return self.weight.abs().amax((1, 3)).flatten()

    def scale_outputs(self, s: Tensor) -> None:
        self.weight *= s.view(self.columns.groups, -1, 1, 1)
        if self.bias is not None:
            self.bias *= s

    def scale_inputs(self, s: Tensor) -> None:
        self.weight *= s.view(self.columns.groups, 1, -1, 1)

    def write(self) -> None:
        weight = self.columns.weight(self.weight.flatten(2)).contiguous()
        args = list(self.node.args)
        for i, value in ((1, weight), (2, self.bias)):
            if value is not None:
                args[i] = self.program.add_constant(str(self.node.args[i].target), value.float())
        self.node.args = tuple(args)


def _equalize(first: _Layer, second: _Layer) -> float:
    """Equalise one pair; by how much the factors differ from 1 at most."""
    r1, r2 = first.outgoing(), second.incoming()
    alive = (r1 > 0) & (r2 > 0)
    s = torch.where(alive, torch.sqrt(r1 / torch.where(alive, r2, torch.ones_like(r2))), torch.ones_like(r1))
    s = s.clamp(1 / LIMIT, LIMIT)
    first.scale_outputs(1 / s)
    second.scale_inputs(s)
    return float((s - 1).abs().max())


def _reason(program: Program, n: fx.Node) -> str | None:
    """Why the parameters of layer `n` cannot be changed."""
    for what, i in (("weight", 1), ("bias", 2)):
        node: Any = n.args[i] if len(n.args) > i else None
        if node is None:
            continue
        if program.constant(node) is None:
            return f"the {what} of {n.name} is no constant"
        if len(node.users) > 1 or dtype_of(node) != torch.float32:
            return f"other nodes read the {what} of {n.name} too" if len(node.users) > 1 else \
                f"the {what} of {n.name} is not float32"  # fmt: skip
    return None


def _next_layer(program: Program, n: fx.Node) -> fx.Node | str:
    """The only layer that reads channel by channel what `n` gives, or why there is none."""
    axis = _channel_axis(n)
    at = n
    while True:
        if len(at.users) != 1:
            readers = ", ".join(sorted(str(u) for u in at.users))
            return f"{len(at.users)} nodes read {at.name}: {readers}" if at.users else "nobody reads it"
        (user,) = at.users
        if user.op == "output":
            return "the program returns it"
        if user.target in LAYERS:
            if user.args[0] is not at:
                return f"{user.name} reads it as a parameter"
            if _channel_axis(user, of_input=True) != axis:
                return f"{user.name} sums over another dimension than its channels"
            return user
        if op_name(user.target) not in HOMOGENEOUS or user.args[0] is not at:
            return f"{op_name(user.target)} stands behind it: it does not pass a factor on"
        if op_name(user.target) == "aten.prelu" and axis != 1 and shape_of(user.args[1])[0] > 1:
            return f"{user.name} has slopes along another dimension than its channels"
        at = user


def _channel_axis(n: fx.Node, of_input: bool = False) -> int:
    shape = shape_of(n.args[0]) if of_input else shape_of(n)
    return len(shape) - (1 if n.target is aten.linear.default else 3)

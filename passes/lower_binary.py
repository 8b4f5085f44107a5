"""lower-binary: convolutions of signs in training form to binary operators, and products with a mask to masked ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

import vqc.ops  # noqa: F401  (registers the vqc:: operators)
from vqc.ops.exact import argument
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, dtype_of, op_text, shape_of

aten = torch.ops.aten
v = torch.ops.vqc

SUMS = 2**24  # sums below this are exact in float32, whatever their order

# Float functions that work position by position: the results at other positions do not depend on one that is skipped.
POINTWISE = {
    aten.relu.default, aten.relu6.default, aten.prelu.default, aten._prelu_kernel.default, aten.leaky_relu.default,
    aten.hardtanh.default, aten.hardswish.default, aten.hardsigmoid.default, aten.sigmoid.default, aten.tanh.default,
    aten.silu.default, aten.gelu.default, aten.elu.default, aten.clamp.default, aten.neg.default, aten.abs.default,
    aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.mul.Scalar, aten.add.Scalar, aten.sub.Scalar,
    aten.batch_norm.default,
}  # fmt: skip

# What a mask may go through and stay at zero or above, with its zeros real zeros.
RESAMPLES = {
    aten.upsample_bilinear2d.default, aten.upsample_nearest2d.default, aten.avg_pool2d.default,
    aten.max_pool2d.default, aten.slice.Tensor, aten.reshape.default, aten.view.default, aten.constant_pad_nd.default,
    v.resize_bilinear.default, v.avg_pool2d.default,
}  # fmt: skip
COMPARISONS = {getattr(aten, name) for name in ("gt", "ge", "lt", "le", "eq", "ne")}


@register
@dataclass(frozen=True)
class LowerBinary(Pass):
    """lower-binary: conv2d(fake_binarize(x), +-1) -> vqc::bconv2d(vqc::binarize(x), +-1).

    Rewrites, each counted:
      sign:       fake_binarize(x, tau)                             -> vqc::binarize(x, tau), a bit for each value
      layer:      conv2d(sign, W) [* constants of channels] [+ constants of channels] [norm] -> vqc::bconv2d
      linear:     linear(sign, W) on [N,C]                          -> the same, as a 1x1 picture
      mask:       U * f(bconv2d), U a mask                          -> U * f(masked_bconv2d under U > 0)
      float mask: U * f(conv2d)                                     -> U * f(masked_conv2d under U > 0)

    W is a constant whose channels hold one magnitude each: +-1 of `fake_binarize_weight`, or that times the factor of a
    folded norm, which then is the layer's scale. U is a mask when it comes from a comparison by resizing and cutting
    alone: it has one channel, it is never below zero, and zeros of it are zeros. f works position by position.

    Preconditions of `layer`: (1) W is a constant; (2) no groups: `bconv2d` has none; (3) sums below 2^24. Factors and
    shifts go in as far as nobody else reads what stands between. Of a mask: (4) nobody reads f's values without it.
    Valid before: constants folded, the network in eval mode. Valid after: bits between binary operators.

    Numerics: with W of +-1 every value is equal (where the mask is 0, a zero may change its sign). Not so for a folded
    factor, a norm, a convolution's own bias and float masked layers, which round elsewhere; a sign behind may turn.

    Options: `masks` - false leaves products with masks as they are.
    """

    name: ClassVar[str] = "lower-binary"
    numerics: ClassVar[Numerics] = Lossy(30.0)
    masks: bool = True

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        signs: dict[fx.Node, fx.Node] = {}
        for n in program.calls:
            if n.target in (aten.conv2d.default, aten.linear.default):
                _layer(program, n, signs, result)
            elif _is_sign(n.args[0] if n.args else None) and n.target in _NO_KERNEL:
                result.decline(n, f"there is no binary operator for {op_text(n.target)}")
        program.drop_dead()
        if self.masks:
            masks: dict[fx.Node, fx.Node] = {}
            for n in program.calls:
                if n.target in (aten.mul.Tensor,) and not n._erased:
                    _mask(program, n, masks, result)
        return result


_NO_KERNEL = {aten.conv1d.default, aten.conv3d.default, aten.conv_transpose2d.input, aten.matmul.default,
              aten.bmm.default}  # fmt: skip


def _is_sign(n: Any) -> bool:
    return isinstance(n, fx.Node) and n.target is v.fake_binarize.default


# ---- layers ----------------------------------------------------------------------------------------------------------


def signs_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(signs as s8, magnitude of each output channel as f32 [O]) of a weight [O,...]; None if there is no such form."""
    size = weight.abs().flatten(1)
    if not size.numel() or not bool(((size == size[:, :1]) & (size > 0) & size.isfinite()).all()):
        return None
    return (1 - 2 * (weight < 0).to(torch.int8)).contiguous(), size[:, 0].float()


def of_channels(program: Program, value: Any, channels: int, axes: int) -> torch.Tensor | None:
    """A number, or a constant that varies along axis 1 of `axes` alone, as f32 [channels]; None when it is neither."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full((channels,), float(value))
    constant = program.constant(value)
    if constant is None or constant.dtype != torch.float32 or constant.ndim > axes:
        return None
    shape = (1,) * (axes - constant.ndim) + tuple(constant.shape)
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return constant.reshape(-1).expand(channels).contiguous()


def _reason(program: Program, n: fx.Node, weight: torch.Tensor | None) -> str | None:
    if weight is None:
        return "its weight is computed (fold-constants first, if it depends on no input)"
    if signs_of(weight) is None:
        return "its weight holds more than one magnitude in a channel"
    if n.target is aten.conv2d.default and argument(n, "groups") != 1:
        return f"it has {argument(n, 'groups')} groups, bconv2d has none"
    if weight[0].numel() >= SUMS:
        return f"its sums have {weight[0].numel()} terms, float32 counts to {SUMS}"
    x = n.args[0]
    assert isinstance(x, fx.Node)
    axes = len(shape_of(x))
    want = 4 if n.target is aten.conv2d.default else 2
    if axes != want:
        return f"its input has {axes} axes, binary operators take {want} here"
    if any(dtype_of(a) != torch.float32 for a in (n, *x.all_input_nodes)):
        return "it is no float32, binary operators take no other floats"
    bias = argument(n, "bias")
    if bias is not None and program.constant(bias) is None:
        return "its bias is computed at run time"
    return None


def _layer(program: Program, n: fx.Node, signs: dict[fx.Node, fx.Node], result: PassResult) -> None:
    x = n.args[0]
    weight = program.constant(n.args[1])
    if not _is_sign(x):
        if _looks_binary(n.args[1], weight):
            result.decline(n, f"its weight is binary, its input {x} is not")
        return
    assert isinstance(x, fx.Node)
    reason = _reason(program, n, weight)
    if reason is not None:
        result.decline(n, reason)
        return
    assert weight is not None
    w, scale, bias, last = _gather(program, n, weight)
    linear = n.target is aten.linear.default
    if x not in signs:
        signs[x] = _binarize(program, x, linear)
        result.count("sign")
    name = str(n.args[1].target)
    geometry: list[list[int]] = [[1, 1], [0, 0], [1, 1]]
    if not linear:
        geometry = [_pair(argument(n, k)) for k in ("stride", "padding", "dilation")]
    with program.graph.inserting_before(n):
        packed = program.add_constant(f"{name}_signs", w[:, :, None, None] if linear else w)
        factors = program.add_constant(f"{name}_scale", scale)
        shifts = None if bias is None else program.add_constant(f"{name}_shift", bias)
        new = program.call(v.bconv2d.default, (signs[x], packed, factors, shifts, *geometry), like=n, name="bconv2d")
        if linear:
            new = program.call(aten.reshape.default, (new, list(shape_of(n))), like=n)
    last.replace_all_uses_with(new)
    new.meta.update({k: last.meta[k] for k in ("observed", "quant") if k in last.meta})
    result.count("linear" if linear else "layer")


def _looks_binary(node: Any, weight: torch.Tensor | None) -> bool:
    if weight is None:
        return isinstance(node, fx.Node) and node.target is v.fake_binarize_weight.default
    return weight[0].numel() > 1 and bool((weight < 0).any()) and signs_of(weight) is not None


def _pair(value: Any) -> list[int]:
    values = [int(a) for a in value] if isinstance(value, (list, tuple)) else [int(value)]
    return values * 2 if len(values) == 1 else values


def _only(node: fx.Node) -> fx.Node | None:
    """The one call that reads this node."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.op == "call_function" else None


def _gather(program: Program, n: fx.Node, weight: torch.Tensor
            ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, fx.Node]:  # fmt: skip
    """Signs, scale, bias and the last node that is part of the layer: acc * scale, rounded, + bias, rounded."""
    found = signs_of(weight)
    assert found is not None
    signs, scale = found
    bias = program.constant(argument(n, "bias"))
    last = n
    channels, axes = shape_of(n)[1], len(shape_of(n))
    if bias is None:
        user = _only(last)
        factor = _operand(program, user, last, (aten.mul.Tensor, aten.mul.Scalar), channels, axes)
        if user is not None and factor is not None:
            scale, last = (scale.double() * factor.double()).float(), user
        user = _only(last)
        shift = _operand(program, user, last, (aten.add.Tensor, aten.add.Scalar), channels, axes)
        if user is not None and shift is not None:
            bias, last = shift, user
    user = _only(last)
    if user is not None and user.target is aten.batch_norm.default and user.args[0] is last:
        norm = _norm(program, user)
        if norm is not None:
            gain, shift = norm
            bias = ((0.0 if bias is None else bias.double()) * gain + shift).float()
            scale, last = (scale.double() * gain).float(), user
    return signs, scale, bias, last


def _norm(program: Program, n: fx.Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(gain, shift) of a batch norm of constants, float64 [C]."""
    nodes = [argument(n, name) for name in ("weight", "bias", "running_mean", "running_var")]
    values = [program.constant(a) for a in nodes]
    if argument(n, "training") or any(a is not None and c is None for a, c in zip(nodes, values, strict=True)):
        return None
    weight, bias, mean, var = (None if c is None else c.double() for c in values)
    if mean is None or var is None:
        return None
    gain = torch.rsqrt(var + argument(n, "eps")) * (1.0 if weight is None else weight)
    return gain, (0.0 if bias is None else bias) - mean * gain


def _operand(program: Program, user: fx.Node | None, x: fx.Node, targets: tuple[Any, ...], channels: int, axes: int
             ) -> torch.Tensor | None:  # fmt: skip
    """What `user` multiplies or adds to x in each channel, if it is that and nothing else."""
    if user is None or user.target not in targets or argument(user, "alpha", 1) != 1:
        return None
    if shape_of(user) != shape_of(x) or dtype_of(user) != dtype_of(x):
        return None
    others = [a for a in user.args[:2] if a is not x]
    return of_channels(program, others[0], channels, axes) if len(others) == 1 else None


def _binarize(program: Program, x: fx.Node, linear: bool) -> fx.Node:
    with program.graph.inserting_before(x):
        source: Any = x.args[0]
        if linear:
            source = program.call(aten.reshape.default, (source, [*shape_of(source), 1, 1]), like=x)
        return program.call(v.binarize.default, (source, x.args[1]), like=x, name="binarize")


# ---- masks -----------------------------------------------------------------------------------------------------------


def is_mask(n: Any) -> bool:
    """Whether a node comes from a comparison by resizing and cutting alone: zero or more, with real zeros."""
    while isinstance(n, fx.Node) and n.target in RESAMPLES:
        if n.target is aten.constant_pad_nd.default and argument(n, "value", 0) < 0:
            return False
        n = n.args[0]
    if not isinstance(n, fx.Node) or n.target not in (aten._to_copy.default, aten.to.dtype):
        return False
    source = n.args[0]
    return isinstance(source, fx.Node) and getattr(source.target, "overloadpacket", None) in COMPARISONS


def _mask(program: Program, product: fx.Node, masks: dict[fx.Node, fx.Node], result: PassResult) -> None:
    for mask, values in (product.args[:2], reversed(product.args[:2])):
        if not is_mask(mask) or not isinstance(values, fx.Node):
            continue
        assert isinstance(mask, fx.Node)
        layer = _layer_behind(program, values)
        if layer is None:
            continue
        n, c, h, w = shape_of(layer)
        if shape_of(mask) != (n, 1, h, w) or shape_of(product) != (n, c, h, w):
            result.decline(layer, f"its mask {mask} is {list(shape_of(mask))}, no plane of its size")
            return
        place = _places(program)
        if place[mask] > min(place[u] for u in layer.users):
            result.decline(layer, f"its mask {mask} is computed later")
            return
        _put(program, layer, mask, masks, result)
        return


def _places(program: Program) -> dict[fx.Node, int]:
    return {n: i for i, n in enumerate(program.graph.nodes)}


def _layer_behind(program: Program, values: fx.Node) -> fx.Node | None:
    """The convolution whose values go through functions of single positions, and nowhere else, to `values`."""
    n = values
    while len(n.users) == 1 and n.target in POINTWISE:
        if n.target is aten.batch_norm.default and argument(n, "training"):
            return None
        inputs = [a for a in n.all_input_nodes if a.op != "get_attr"]
        if len(inputs) != 1 or shape_of(inputs[0]) != shape_of(n):
            return None
        n = inputs[0]
    takes = n.target in (v.bconv2d.default, aten.conv2d.default) and len(n.users) == 1 and len(shape_of(n)) == 4
    return n if takes and dtype_of(n) == torch.float32 else None


def _put(program: Program, layer: fx.Node, mask: fx.Node, masks: dict[fx.Node, fx.Node], result: PassResult) -> None:
    if mask not in masks:
        with program.graph.inserting_after(mask):
            masks[mask] = program.call(aten.gt.Scalar, (mask, 0), like=mask, name="mask")
    get: Callable[[str], Any] = lambda name: argument(layer, name)  # noqa: E731
    binary = layer.target is v.bconv2d.default
    with program.graph.inserting_before(next(iter(layer.users))):
        if binary:
            args = (*layer.args[:4], masks[mask], *layer.args[4:])
            new = program.call(v.masked_bconv2d.default, args, like=layer, name="masked_bconv2d")
        else:
            pairs = [_pair(get(k)) for k in ("stride", "padding", "dilation")]
            args = (get("input"), get("weight"), get("bias"), masks[mask], *pairs, get("groups"))
            new = program.call(v.masked_conv2d.default, args, like=layer, name="masked_conv2d")
    layer.replace_all_uses_with(new)
    program.graph.erase_node(layer)
    result.count("mask" if binary else "float mask")

"""lower-integer: quantize/dequantize patterns to integer operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

import vqc.ops  # noqa: F401  (registers the vqc:: operators)
from vqc.passes.quantize import weight_axis
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, dtype_of

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
v = torch.ops.vqc

QUANTIZE, DEQUANTIZE = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
QUANTIZE_CHANNEL, DEQUANTIZE_CHANNEL = qd.quantize_per_channel.default, qd.dequantize_per_channel.default

# Float functions of one value; between a dequantize and a quantize they are a table of 256 entries.
POINTWISE = {
    aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.hardsigmoid.default, aten.hardswish.default,
    aten.silu.default, aten.gelu.default, aten.elu.default, aten.leaky_relu.default, aten.neg.default,
    aten.abs.default, aten.exp.default, aten.clamp.default, aten.relu6.default, aten.hardtanh.default,
    aten.mul.Scalar, aten.add.Scalar, aten.sub.Scalar, aten.div.Scalar,
}  # fmt: skip

# Operators that only move values: quantizing before or after them gives the same integers.
MOVES = {
    aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int, aten.unsqueeze.default,
    aten.squeeze.dim, aten.slice.Tensor, aten.select.int, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.flip.default, aten.expand.default, aten.cat.default,
}  # fmt: skip


@register
@dataclass(frozen=True)
class LowerInteger(Pass):
    """lower-integer: conv(dequantize(q), dequantize(w)) -> qconv(q, w), with the following quantize fused into it.

    Rewrites, each counted:
      layer:       layer(dq(q), dq(w) [* 1/scale_c], b)      -> vqc::qconv2d | qconv_transpose2d | qlinear
      requantize:  q(relu?(vqc layer))                        -> vqc layer _requantize (q per tensor or per channel)
      table:       q(f(dq(q0))), f pointwise of one value     -> vqc::lut(q0, table)
      hoist:       q(move(x)), move = cat, view, slice, ...   -> move(q(x)): the same integers, a quarter of the bytes

    Preconditions of `layer`: (1) the weight is int8, symmetric, per output channel; (2) the activation is uint8 or
    int8; (3) conv2d, transposed conv2d or linear. Of the others: (4) nobody else reads the value in between.
    Valid before: a program with quantize/dequantize pairs. Valid after: integers between integer operators.
    """

    name: ClassVar[str] = "lower-integer"
    numerics: ClassVar[Numerics] = Lossy(30.0)  # a uint8 may flip by one step where sums round apart

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        for n in program.calls:
            if n.target in (aten.conv2d.default, aten.conv_transpose2d.input, aten.linear.default):
                _layer(program, n, result)
        program.drop_dead()
        _until_stable(program, result, _hoist, "hoist")
        _until_stable(program, result, _merge, "shared quantize")
        program.drop_dead()
        _until_stable(program, result, _requantize, "requantize")
        _until_stable(program, result, _table, "table")
        for n in program.calls:
            if n.target in (DEQUANTIZE, DEQUANTIZE_CHANNEL):
                users = ", ".join(sorted({str(u) for u in n.users}))
                result.decline(n, f"{users} has no integer operator and reads floats")
        return result


def _until_stable(program: Program, result: PassResult, rewrite: Any, what: str) -> None:
    changed = True
    while changed:
        changed = False
        for n in program.calls:
            if n.target in (QUANTIZE, QUANTIZE_CHANNEL) and not n._erased and rewrite(program, n):
                result.count(what)
                changed = True


# ---- layers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Quantized:
    """A dequantized value taken apart: integers, scale (float64 of one value or [C]), zero point (same shape)."""

    q: fx.Node
    scale: torch.Tensor
    zero: torch.Tensor


def _activation(program: Program, n: Any) -> _Quantized | str:
    if not isinstance(n, fx.Node) or n.target not in (DEQUANTIZE, DEQUANTIZE_CHANNEL):
        return f"its input {n} is float"
    q = n.args[0]
    assert isinstance(q, fx.Node)
    if dtype_of(q) not in (torch.uint8, torch.int8):
        return f"its input {n} has {dtype_of(q)} integers"
    if n.target is DEQUANTIZE:
        return _Quantized(q, torch.tensor([float(n.args[1])], dtype=torch.float64), torch.tensor([int(n.args[2])]))
    scale, zero = program.constant(n.args[1]), program.constant(n.args[2])
    if scale is None or zero is None:
        return f"the channel scales of {n} are not constants"
    if n.args[3] != 1:
        return f"its input {n} has a scale for each frame (axis {n.args[3]}), which no integer kernel takes"
    return _Quantized(q, scale.double(), zero)


def _weight(program: Program, n: fx.Node) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | str:
    """(int8 weight, float64 scale per output channel, what multiplies it) of layer `n`, or the reason why not."""
    w = n.args[1]
    unfold = None
    if isinstance(w, fx.Node) and w.target is aten.mul.Tensor:
        unfold = program.constant(w.args[1])
        w = w.args[0]
    if not isinstance(w, fx.Node) or w.target is not DEQUANTIZE_CHANNEL:
        return "its weight is float"
    integers, scale, zero = (program.constant(a) for a in w.args[:3])
    if integers is None or scale is None or integers.dtype != torch.int8:
        return "its weight is not made of int8 constants"
    if zero is not None and bool((zero != 0).any()):
        return "its weight is not symmetric"
    if w.args[3] != weight_axis(n):
        return f"its weight has scales along axis {w.args[3]}"
    return integers, scale.double(), unfold


def _layer(program: Program, n: fx.Node, result: PassResult) -> None:
    weight = _weight(program, n)
    if isinstance(weight, str):
        return  # a float layer: nothing to lower, and quantize has said why
    x = _activation(program, n.args[0])
    if isinstance(x, str):
        result.decline(n, x)
        return
    integers, scale, unfold = weight
    if x.scale.numel() > 1:
        if unfold is None:
            result.decline(n, "its input has channel scales that are not folded into the weight")
            return
    else:
        if unfold is not None:
            result.decline(n, "its weight is scaled per input channel, its input is not")
            return
        scale = scale * x.scale
    base = str(n.args[1].target) if isinstance(n.args[1], fx.Node) and n.args[1].op == "get_attr" else n.name
    groups = _arg(n, 6, 1)
    if n.target is aten.conv_transpose2d.input and groups > 1:
        scale = scale.repeat(groups)  # its scales are those of one group, shared by all
    bias = n.args[2] if len(n.args) > 2 else None
    with program.graph.inserting_before(n):
        w = program.add_constant(f"{base}_weight", integers)
        s = program.add_constant(f"{base}_output_scale", scale.float())
        z = program.add_constant(f"{base}_input_zero", x.zero.to(torch.int32))
        args: tuple[Any, ...] = (x.q, w, s, bias, z)
        if n.target is aten.conv2d.default:
            args += (_pair(n, 3, 1), _pair(n, 4, 0), _pair(n, 5, 1), groups)
            new = program.call(v.qconv2d.default, args, like=n, name="qconv2d")
        elif n.target is aten.conv_transpose2d.input:
            args += (_pair(n, 3, 1), _pair(n, 4, 0), _pair(n, 5, 0), groups, _pair(n, 7, 1))
            new = program.call(v.qconv_transpose2d.default, args, like=n, name="qconv_transpose2d")
        else:
            new = program.call(v.qlinear.default, args, like=n, name="qlinear")
    n.replace_all_uses_with(new)
    program.graph.erase_node(n)
    result.count("layer")


def _arg(n: fx.Node, i: int, default: int) -> int:
    return int(n.args[i]) if len(n.args) > i else default


def _pair(n: fx.Node, i: int, default: int) -> list[int]:
    value: Any = n.args[i] if len(n.args) > i else [default]
    values = [int(a) for a in value] if isinstance(value, (list, tuple)) else [int(value)]
    return values * 2 if len(values) == 1 else values


# ---- what follows a layer, what stands between integers --------------------------------------------------------------

_FUSED = {
    v.qconv2d.default: v.qconv2d_requantize.default,
    v.qconv_transpose2d.default: v.qconv_transpose2d_requantize.default,
    v.qlinear.default: v.qlinear_requantize.default,
}


def _is_u8(q: fx.Node) -> bool:
    return tuple(q.args[-3:]) == (0, 255, torch.uint8)


def _replace(program: Program, old: fx.Node, new: fx.Node) -> bool:
    old.replace_all_uses_with(new)
    program.graph.erase_node(old)
    return True


def _requantize(program: Program, q: fx.Node) -> bool:
    x = q.args[0]
    if not isinstance(x, fx.Node) or not _is_u8(q) or len(x.users) != 1:
        return False
    activation = "none"
    layer = x
    if x.target is aten.relu.default and isinstance(x.args[0], fx.Node) and len(x.args[0].users) == 1:
        activation, layer = "relu", x.args[0]
    if layer.target not in _FUSED:
        return False
    if q.target is QUANTIZE:
        args = layer.args
        inverse = float(torch.tensor(1.0 / float(q.args[1]), dtype=torch.float32))
        zero = int(q.args[2])
    else:
        scaled = _scale_outputs(program, q, layer, activation)
        if scaled is None:
            return False
        args, inverse, zero = scaled, 1.0, 0
    with program.graph.inserting_before(q):
        args = (*args, activation, inverse, zero)
        new = program.call(_FUSED[layer.target], args, like=layer, name=f"{layer.name}_requantize")
    _replace(program, q, new)
    for dead in dict.fromkeys((x, layer)):
        if not dead.users:
            program.graph.erase_node(dead)
    return True


def _scale_outputs(program: Program, q: fx.Node, layer: fx.Node, activation: str) -> tuple[Any, ...] | None:
    """The layer's arguments with a following per-channel quantize folded in: y/s_c + z_c is again a scale and a bias.

    With a relu in between only z_c = 0 may be folded, for relu(y)/s = relu(y/s) but relu(y) + z is not relu(y + z).
    """
    scale, zero = program.constant(q.args[1]), program.constant(q.args[2])
    out_scale, bias = program.constant(layer.args[2]), program.constant(layer.args[3])
    if scale is None or zero is None or out_scale is None or q.args[3] != 1 or layer.target is v.qlinear.default:
        return None
    if activation == "relu" and bool((zero != 0).any()):
        return None
    inverse = 1 / scale.double()
    shift = (0 if bias is None else bias.double() * inverse) + zero.double()
    new_scale = program.add_constant(f"{layer.name}_scale", (out_scale.double() * inverse).float())
    new_bias = program.add_constant(f"{layer.name}_bias", shift.float())
    return (layer.args[0], layer.args[1], new_scale, new_bias, *layer.args[4:])


def _table(program: Program, q: fx.Node) -> bool:
    chain: list[fx.Node] = []
    x = q.args[0]
    while isinstance(x, fx.Node) and x.target in POINTWISE and len(x.users) == 1 and len(x.all_input_nodes) == 1:
        chain.append(x)
        x = x.args[0]
    if not isinstance(x, fx.Node) or x.target is not DEQUANTIZE or not _is_u8(q):
        return False
    source = x.args[0]
    assert isinstance(source, fx.Node)
    if q.target is not QUANTIZE or dtype_of(source) != torch.uint8:
        return False
    value = DEQUANTIZE(torch.arange(256, dtype=torch.uint8), *x.args[1:])
    for f in reversed(chain):
        value = f.target(value, *f.args[1:], **f.kwargs)
    table = QUANTIZE(value, *q.args[1:])
    if not chain and torch.equal(table, torch.arange(256, dtype=torch.uint8)):
        return _replace(program, q, source)
    with program.graph.inserting_before(q):
        constant = program.add_constant(f"{q.name}_table", table)
        new = program.call(v.lut.default, (source, constant), like=q, name="lut")
    return _replace(program, q, new)


def _hoist(program: Program, q: fx.Node) -> bool:
    move = q.args[0]
    if q.target is not QUANTIZE or not isinstance(move, fx.Node) or move.target not in MOVES:
        return False
    if any(u.target is not QUANTIZE or u.args[1:] != q.args[1:] for u in move.users):
        return False  # somebody reads the floats as well, so nothing would be saved
    sources = move.args[0] if move.target is aten.cat.default else [move.args[0]]
    with program.graph.inserting_before(move):
        moved = [program.call(QUANTIZE, (s, *q.args[1:]), like=q, name="quantize") for s in sources]
        first = moved if move.target is aten.cat.default else moved[0]
        new = program.call(move.target, (first, *move.args[1:]), dict(move.kwargs), like=move, name=f"{move.name}_u8")
    for user in list(move.users):
        _replace(program, user, new)
    program.graph.erase_node(move)
    return True


def _merge(program: Program, q: fx.Node) -> bool:
    """Two quantizes of one tensor with the same parameters become the earlier one."""
    same = [u for u in q.args[0].users if u.target is q.target and u.args == q.args and u is not q]
    if not same:
        return False
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    if any(order[u] < order[q] for u in same):
        return False
    for u in same:
        _replace(program, u, q)
    return True

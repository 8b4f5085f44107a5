"""Decomposed graphs with zero points of 0, which is all that TensorRT's explicit quantization knows.

A picture of uint8 with scale s and zero point z is x - c in int8 with zero point 0, c = s * (128 - z): the integers are
those of uint8 less 128. A layer adds up x - c in place of x, so its bias gets c times the sum of its weights, and the
zeros around the picture, where the layer pads, are put there first, as -c. Only a value halfway between two steps may
be rounded to the other one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from vqc.arguments import bind
from vqc.interop.decomposed import decompose
from vqc.interop.forms import LAYERS, computed_weight, float_weight, spelled_out
from vqc.interop.signed import MOVES
from vqc.program import PassRecord, Program, dtype_of

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
WEIGHT = qd.dequantize_per_channel.default


def for_tensorrt(program: Program) -> Program:
    """The decomposed program with int8 quantize and dequantize of zero point 0 next to every layer that can have them.

    Other layers are float, with the reason in the history: a picture with a scale for each channel, one that is
    quantized where it is not dequantized alike, one that is padded with a zero beyond 8 bits, a transposed convolution,
    a computed bias that would have to be shifted. A layer whose weight or its scales are computed stays, and is named.
    Every other pair of quantize and dequantize becomes float arithmetic, unless it is of this kind already.
    """
    made = spelled_out(decompose(program))
    counts, notes = {"layer": 0, "picture": 0}, []
    floats: dict[fx.Node, fx.Node] = {}
    for n in made.calls:
        if n.target not in LAYERS or not isinstance(n.args[1], fx.Node) or n.args[1].target is not WEIGHT:
            continue
        computed = computed_weight(made, n)
        if computed is not None:
            notes.append(f"{n.name} stays: {computed}")
            continue
        reason = _why_float(made, n)
        if reason is None:
            _symmetric(made, n, floats)
            counts["layer"] += 1
        elif float_weight(made, n):
            notes.append(f"{n.name} is float: {reason}")
    made.drop_dead()
    for n in made.calls:  # what is quantized for other readers than layers, or otherwise
        if n.target in (QUANTIZE, DEQUANTIZE) and not _is_symmetric(n):
            with made.graph.inserting_before(n):
                new = _arithmetic(made, n)
            n.replace_all_uses_with(new)
            made.graph.erase_node(n)
            counts["picture"] += 1
    made.drop_dead()
    return made.recorded(PassRecord("for-tensorrt", counts, notes=tuple(notes)))


def _is_symmetric(n: fx.Node) -> bool:
    """Whether a quantize or a dequantize is of the kind that TensorRT knows."""
    b = bind(n)
    levels = n.target is DEQUANTIZE or (b["quant_min"], b["quant_max"]) == (-128, 127)
    return b["dtype"] is torch.int8 and b["zero_point"] == 0 and levels


def _leaves(dq: fx.Node) -> list[fx.Node] | None:
    """The quantizes whose integers, moved, a dequantize reads; None when they come from elsewhere or differ from it."""
    b, found, todo = bind(dq), [], [dq.args[0]]
    while todo:
        n = todo.pop()
        if not isinstance(n, fx.Node):
            return None
        if n.target is QUANTIZE:
            q = bind(n)
            if (q["scale"], q["zero_point"]) != (b["scale"], b["zero_point"]) or (q["quant_min"], q["quant_max"]) != (
                    0, 255):  # fmt: skip
                return None
            found.append(n)
        elif isinstance(n.target, torch._ops.OpOverload) and n.target.name() in MOVES:
            todo += n.args[0] if isinstance(n.args[0], (list, tuple)) else [n.args[0]]
        else:
            return None
    return found


def _why_float(program: Program, layer: fx.Node) -> str | None:
    dq = layer.args[0]
    if not isinstance(dq, fx.Node) or dq.target is not DEQUANTIZE or bind(dq)["dtype"] is not torch.uint8:
        return "its picture has no single scale"
    if _leaves(dq) is None:
        return "its picture is not quantized as it is dequantized"
    if layer.target is aten.conv2d.default and any(bind(layer)["padding"]) and not 0 <= bind(dq)["zero_point"] <= 255:
        return "it pads a picture whose zero point is beyond 8 bits: no level is the padding's"
    if layer.target is aten.conv_transpose2d.input:
        if bind(dq)["zero_point"] != 128:
            return "a transposed convolution of a picture whose zero point is not 128"
        return "a transposed convolution: the scales of its weight are along axis 1"
    bias = bind(layer)["bias"]
    if bias is not None and program.constant(bias) is None and bind(dq)["zero_point"] != 128:
        return f"its bias ({bias}) is computed at every step, so the picture's zero point cannot be put into it"
    return None


def _as_float(program: Program, n: fx.Node, floats: dict[fx.Node, fx.Node]) -> fx.Node:
    """The picture that was quantized, moved as its integers are."""
    if n.target is QUANTIZE:
        return n.args[0]  # type: ignore[return-value]
    if n not in floats:
        first = n.args[0]
        moved: Any = _as_float(program, first, floats) if isinstance(first, fx.Node) else [
            _as_float(program, a, floats) for a in first]  # fmt: skip
        with program.graph.inserting_before(n):
            floats[n] = program.call(n.target, (moved, *n.args[1:]), dict(n.kwargs), like=n)
    return floats[n]


def _symmetric(program: Program, layer: fx.Node, floats: dict[fx.Node, fx.Node]) -> None:
    dq = layer.args[0]
    assert isinstance(dq, fx.Node)
    b = bind(dq)
    shift = b["scale"] * (128 - b["zero_point"])
    x = _as_float(program, dq.args[0], floats)
    args = list(layer.args)
    with program.graph.inserting_before(layer):
        if shift:
            x = program.call(aten.sub.Tensor, (x, _number(program, layer, "shift", shift)), like=layer)
            if layer.target is aten.conv2d.default:
                x = _padded(program, layer, args, x, -shift)
            args[2] = _bias(program, layer, shift)
        pair = (b["scale"], 0, -128, 127, torch.int8)
        q = program.call(QUANTIZE, (x, *pair), like=layer)
        args[0] = program.call(DEQUANTIZE, (q, *pair), like=layer)
    layer.args = tuple(args)


def _padded(program: Program, layer: fx.Node, args: list[Any], x: fx.Node, value: float) -> fx.Node:
    """The picture with its padding around it; the layer then has none."""
    padding = list(bind(layer)["padding"])
    up, left = padding * 2 if len(padding) == 1 else padding
    if not up and not left:
        return x
    args += [[1, 1], [0, 0]][len(args) - 3 :] if len(args) < 5 else []
    args[4] = [0, 0]
    return program.call(aten.constant_pad_nd.default, (x, [left, left, up, up], value), like=layer)


def _bias(program: Program, layer: fx.Node, shift: float) -> fx.Node:
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    known = [program.constant(a) if isinstance(a, fx.Node) else a for a in weight.args]
    floats = weight.target(*known)
    old = layer.args[2] if len(layer.args) > 2 else None
    bias = program.constant(old) if old is not None else None
    total = floats.double().flatten(1).sum(1) * shift + (0 if bias is None else bias.double())
    return program.add_constant(f"{layer.name}_bias_shifted", total.float())


def _number(program: Program, like: fx.Node, name: str, value: float) -> fx.Node:
    return program.add_constant(f"{like.name}_{name}", torch.tensor(float(value)))


def _arithmetic(program: Program, n: fx.Node) -> fx.Node:
    """A quantize, or a dequantize, as the float arithmetic it is; integers become whole floats."""
    b = bind(n)
    scale, zero = _number(program, n, "scale", b["scale"]), float(b["zero_point"])

    def call(target: Any, *args: Any) -> fx.Node:
        return program.call(target, args, like=n)

    if n.target is QUANTIZE:
        inverse = _number(program, n, "inverse", 1.0 / b["scale"])
        y = call(aten.add.Scalar, call(aten.round.default, call(aten.mul.Tensor, b["input"], inverse)), zero)
        y = call(aten.clamp.default, y, float(b["quant_min"]), float(b["quant_max"]))
        return program.call(aten._to_copy.default, (y,), {"dtype": b["dtype"]}, like=n)
    x = b["input"]
    if dtype_of(x) != torch.float32:
        x = program.call(aten._to_copy.default, (x,), {"dtype": torch.float32}, like=n)
    return call(aten.mul.Tensor, call(aten.sub.Scalar, x, zero), scale)


def _same_scale(q: fx.Node, dq: fx.Node) -> bool:
    return bool(bind(q)["scale"] == bind(dq)["scale"])


def with_quantize_op(program: Program, quantize_op: Any) -> Program:
    """A copy in which pairs of quantize and dequantize are one call of `tensorrt::quantize_op`, which is what
    torch-tensorrt has a converter for: (x, amax, 8, 0, unsigned, narrow_range), amax = 127 * scale.
    """
    made, count = program.clone(), 0
    for n in made.calls:
        if n.target is DEQUANTIZE and n.args[0].target is QUANTIZE and _same_scale(n.args[0], n):
            amax = _number(made, n, "amax", 127 * bind(n)["scale"])
            args: tuple[Any, ...] = (n.args[0].args[0], amax, 8, 0, False, False)
        elif n.target is WEIGHT and not any(isinstance(a, fx.Node) and made.constant(a) is None for a in n.args):
            known = [made.constant(a) if isinstance(a, fx.Node) else a for a in n.args]
            weight = n.target(*known)
            amax = made.add_constant(f"{n.name}_amax", (127 * known[1].float()).view(-1, *[1] * (weight.ndim - 1)))
            args = (made.add_constant(f"{n.name}_float", weight), amax, 8, 0, False, True)
        else:
            continue
        with made.graph.inserting_before(n):
            new = made.call(quantize_op, args, like=n)
        n.replace_all_uses_with(new)
        made.graph.erase_node(n)
        count += 1
    made.drop_dead()
    return made.recorded(PassRecord("with-quantize-op", {"quantize_op": count}))

"""Decomposed graphs narrowed down to what one reader takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from vqc.arguments import bind
from vqc.interop.decomposed import decompose
from vqc.interop.signed import DEQUANTIZES, signed
from vqc.program import PassRecord, Program, shape_of

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
LAYERS = {aten.conv2d.default, aten.conv_transpose2d.input, aten.linear.default}


def for_xnnpack(program: Program) -> Program:
    """The decomposed program as ExecuTorch's XNNPACK partitioner looks for it: int8 pictures with one scale, integer
    weights where a layer's result is quantized as well. The weights of all other layers are float, unless they or their
    scales are computed: such a layer stays, and the history says so.
    """
    made = spelled_out(decompose(program))
    counts, notes = {"float weight": 0}, []
    for n in made.calls:
        if n.target not in LAYERS or (reason := _why_float(n)) is None:
            continue
        if float_weight(made, n):
            counts["float weight"] += 1
            notes.append(f"{n.name} has a float weight: {reason}")
        elif (computed := computed_weight(made, n)) is not None:
            notes.append(f"{n.name} stays: {computed}")
    made.drop_dead()
    return signed(made.recorded(PassRecord("for-xnnpack", counts, notes=tuple(notes))))


def _why_float(layer: fx.Node) -> str | None:
    x, users = layer.args[0], list(layer.users)
    assert isinstance(x, fx.Node)
    if x.target is not qd.dequantize_per_tensor.default:
        return "its picture has no single scale"
    if layer.target is aten.conv_transpose2d.input and bind(layer)["groups"] != 1:
        return "a transposed convolution with groups"
    if len(users) == 1 and users[0].target is aten.relu.default:
        users = list(users[0].users)
    if not users or any(u.target is not qd.quantize_per_tensor.default for u in users):
        return "its result is not quantized"
    return None


def float_weight(program: Program, layer: fx.Node) -> bool:
    """Put the floats that a layer's integer weight means in its place; False when its weight is float already."""
    weight = layer.args[1]
    if not isinstance(weight, fx.Node) or weight.target is not qd.dequantize_per_channel.default:
        return False
    if computed_weight(program, layer) is not None:
        return False
    known = [program.constant(a) if isinstance(a, fx.Node) else a for a in weight.args]
    name = f"{layer.name}_weight_float"
    layer.replace_input_with(weight, program.add_constant(name, weight.target(*known)))
    return True


def computed_weight(program: Program, layer: fx.Node) -> str | None:
    """None when a layer's integer weight and its scales are constants (or it has none), else what is computed."""
    weight = layer.args[1]
    if not isinstance(weight, fx.Node) or weight.target is not qd.dequantize_per_channel.default:
        return None
    made = _computed(program, weight.args)
    return f"{made} of its weight is computed at every step" if made else None


def _computed(program: Program, arguments: Iterable[Any]) -> str | None:
    """The name of the first argument that is a node and no constant."""
    return next((a.name for a in arguments if isinstance(a, fx.Node) and program.constant(a) is None), None)


def spelled_out(program: Program) -> Program:
    """A copy in which pictures with a scale for each channel are quantized and dequantized by float arithmetic.

    clamp(round(x * (1 / s)) + z, low, high), then (.. - z) * s: the operators' own steps, so the same bits. What is
    moved in between, and what has a computed scale, stays, and the history says so.
    """
    made = program.clone()
    count, notes = 0, []
    for q in made.calls:
        if q.target is not qd.quantize_per_channel.default:
            continue
        if any(u.target not in DEQUANTIZES for u in q.users):
            notes.append(f"{q.name} stays: its integers are moved before they are dequantized")
            continue
        computed = _computed(made, [a for n in (q, *q.users) for name, a in bind(n).items() if name != "input"])
        if computed is not None:
            notes.append(f"{q.name} stays: its scales or zero points ({computed}) are computed at every step")
            continue
        for dq in list(q.users):
            with made.graph.inserting_before(dq):
                new = _arithmetic(made, bind(q), dq)
            dq.replace_all_uses_with(new)
            made.graph.erase_node(dq)
            count += 1
    made.drop_dead()
    return made.recorded(PassRecord("spelled-out", {"picture": count}, notes=tuple(notes)))


def _arithmetic(program: Program, b: dict[str, Any], dq: fx.Node) -> fx.Node:
    x, shape = b["input"], [1] * len(shape_of(dq))
    shape[b["axis"]] = -1

    def column(name: str, value: torch.Tensor) -> fx.Node:
        return program.add_constant(f"{dq.name}_{name}", value.to(torch.float32).view(shape))

    def call(target: Any, *args: Any) -> fx.Node:
        return program.call(target, args, like=dq)

    scales, zeros = program.constant(b["scales"]), program.constant(b["zero_points"])
    assert scales is not None and zeros is not None, "a picture with computed scales is not spelled out"
    y = call(aten.round.default, call(aten.mul.Tensor, x, column("inverse", 1.0 / scales)))
    y = call(aten.add.Tensor, y, column("zero", zeros))
    y = call(aten.clamp.default, y, float(b["quant_min"]), float(b["quant_max"]))
    read = bind(dq)
    if "zero_point" in read:  # channel scales that are in the weight: the same zero point for all, and scale 1
        y = call(
            aten.sub.Tensor, y, program.add_constant(f"{dq.name}_own_zero", torch.tensor(float(read["zero_point"])))
        )
        return call(aten.mul.Tensor, y, program.add_constant(f"{dq.name}_scale", torch.tensor(float(read["scale"]))))
    own = program.constant(read["scales"])
    assert own is not None, "a picture with computed scales is not spelled out"
    own_zeros = program.constant(read["zero_points"])
    if own_zeros is not None:  # a dequantize may have none, which is zero for every channel
        y = call(aten.sub.Tensor, y, column("own_zero", own_zeros))
    return call(aten.mul.Tensor, y, column("scale", own))

"""Decomposed graphs narrowed down to what one reader takes."""

from __future__ import annotations

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
    weights where a layer's result is quantized as well. The weights of all other layers are float.
    """
    made = spelled_out(decompose(program))
    counts, notes = {"float weight": 0}, []
    for n in made.calls:
        if n.target in LAYERS and (reason := _why_float(n)) is not None and float_weight(made, n):
            counts["float weight"] += 1
            notes.append(f"{n.name} has a float weight: {reason}")
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
    known = [program.constant(a) if isinstance(a, fx.Node) else a for a in weight.args]
    if any(isinstance(a, fx.Node) and k is None for a, k in zip(weight.args, known, strict=True)):
        return False
    name = f"{layer.name}_weight_float"
    layer.replace_input_with(weight, program.add_constant(name, weight.target(*known)))
    return True


def spelled_out(program: Program) -> Program:
    """A copy in which pictures with a scale for each channel are quantized and dequantized by float arithmetic.

    clamp(round(x * (1 / s)) + z, low, high), then (.. - z) * s: the operators' own steps, so the same bits.
    """
    made = program.clone()
    count, notes = 0, []
    for q in made.calls:
        if q.target is not qd.quantize_per_channel.default:
            continue
        if any(u.target not in DEQUANTIZES for u in q.users):
            notes.append(f"{q.name} stays: its integers are moved before they are dequantized")
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
    assert scales is not None and zeros is not None, f"the scales of {dq.name} are computed"
    y = call(aten.round.default, call(aten.mul.Tensor, x, column("inverse", 1.0 / scales)))
    y = call(aten.add.Tensor, y, column("zero", zeros))
    y = call(aten.clamp.default, y, float(b["quant_min"]), float(b["quant_max"]))
    read = bind(dq)
    if "zero_point" in read:  # channel scales that are in the weight: the same zero point for all, and scale 1
        y = call(
            aten.sub.Tensor, y, program.add_constant(f"{dq.name}_own_zero", torch.tensor(float(read["zero_point"])))
        )
        return call(aten.mul.Tensor, y, program.add_constant(f"{dq.name}_scale", torch.tensor(float(read["scale"]))))
    own = [program.constant(read[k]) for k in ("scales", "zero_points")]
    assert own[0] is not None and own[1] is not None, f"the scales of {dq.name} are computed"
    return call(aten.mul.Tensor, call(aten.sub.Tensor, y, column("own_zero", own[1])), column("scale", own[0]))

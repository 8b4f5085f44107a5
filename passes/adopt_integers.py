"""adopt-integers: quantize/dequantize pairs of other tools in the form that `lower-integer` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import fx

from vqc.arguments import bind, rebind
from vqc.passes.observe import QUANTIZABLE
from vqc.passes.quantize import weight_axis
from vqc.pipeline import Exact, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, infer, op_text

qd = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
DEQUANTIZE_CHANNEL = qd.dequantize_per_channel.default
SHIFT = 128  # from int8 to uint8


@register
@dataclass(frozen=True)
class AdoptIntegers(Pass):
    """adopt-integers: graphs of `quantized_decomposed` operators, such as torchao's PT2E gives, made ready for kernels.

    Rewrites, each counted; every dequantized value keeps its bits:
      unsigned: q and dq of int8 -> of uint8, levels and zero point 128 higher: round(x / s) + z is only shifted
      channels: a weight with one scale -> the same scale for each output channel

    Preconditions: (1) of `unsigned`: scale and zero point are numbers, and only dequantizes with q's own scale and zero
    point read the int8 values; (2) of `channels`: the weight is an int8 constant with zero point 0.
    Valid before: a captured graph of quantized_decomposed operators. Valid after: the same; run
    `lower-integer,exact-float,canonicalize` next. A result may then be one step of a uint8 from the Q/DQ graph's: its
    float sums are rounded at every addition, an integer sum is exact and is rounded once.
    """

    name: ClassVar[str] = "adopt-integers"
    numerics: ClassVar[Numerics] = Exact()

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        for n in program.calls:
            if n.target in QUANTIZABLE:
                _channels(program, n, result)
        for n in program.calls:
            if n.target is QUANTIZE and bind(n)["dtype"] is torch.int8:
                _unsigned(program, n, result)
            elif "quantized_decomposed" in str(n.target) and op_text(n.target) not in _TAKEN:
                result.decline(n, f"{op_text(n.target)}: its scale is computed at every step, which no integer kernel "
                                  "takes")  # fmt: skip
        return result


_TAKEN = {"quantized_decomposed." + n for n in ("quantize_per_tensor", "dequantize_per_tensor", "quantize_per_channel",
                                                "dequantize_per_channel")}  # fmt: skip


def _channels(program: Program, layer: fx.Node, result: PassResult) -> None:
    dq = layer.args[1]
    if not isinstance(dq, fx.Node) or dq.target is not DEQUANTIZE:
        return
    b = bind(dq)
    weight = program.constant(b["input"])
    if weight is None or weight.dtype != torch.int8 or b["zero_point"] != 0:
        result.decline(layer, "its weight is not made of int8 constants with zero point 0")
        return
    axis = weight_axis(layer)
    count = weight.shape[axis]
    with program.graph.inserting_before(dq):
        scales = program.add_constant(f"{dq.name}_scale", torch.full((count,), b["scale"], dtype=torch.float32))
        zeros = program.add_constant(f"{dq.name}_zero_point", torch.zeros(count, dtype=torch.int64))
        args = (b["input"], scales, zeros, axis, b["quant_min"], b["quant_max"], torch.int8)
        new = program.call(DEQUANTIZE_CHANNEL, args, like=dq, name="weight")
    layer.replace_input_with(dq, new)
    result.count("channels")


def _unsigned(program: Program, q: fx.Node, result: PassResult) -> None:
    b = bind(q)
    readers = list(q.users)
    for u in readers:
        if u.target is not DEQUANTIZE or any(bind(u)[k] != b[k] for k in ("scale", "zero_point")):
            result.decline(q, f"{u.name} reads its int8 values otherwise than q's own dequantize would")
            return
    changed: dict[str, Any] = {"zero_point": b["zero_point"] + SHIFT, "quant_min": b["quant_min"] + SHIFT,
                               "quant_max": b["quant_max"] + SHIFT, "dtype": torch.uint8}  # fmt: skip
    for n in (q, *readers):
        rebind(n, **changed)
        infer(program, n)
    result.count("unsigned")

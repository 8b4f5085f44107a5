"""8-bit pictures as int8 in place of uint8, for readers that take nothing else (XNNPACK, TensorRT)."""

from __future__ import annotations

import torch
from torch import fx

from vqc.arguments import bind, rebind
from vqc.program import PassRecord, Program, dtype_of, infer

qd = torch.ops.quantized_decomposed
SHIFT = 128
QUANTIZES = {qd.quantize_per_tensor.default, qd.quantize_per_channel.default}
DEQUANTIZES = {qd.dequantize_per_tensor.default, qd.dequantize_per_channel.default}
MOVES = {"aten::cat", "aten::view", "aten::reshape", "aten::slice.Tensor", "aten::select.int", "aten::permute",
         "aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::unsqueeze", "aten::squeeze.dim", "aten::flip",
         "aten::expand", "aten::transpose.int"}  # fmt: skip


def signed(program: Program) -> Program:
    """A copy in which uint8 quantized values are int8, levels and zero points 128 lower; no float changes its bits.

    Values change together with everything that moves them, from quantizes to dequantizes. Where anything else makes or
    reads the integers (an input, a result, a table), where a zero point is beyond 8 bits (it would be beyond int8's
    range as well, which readers check) or computed, they stay uint8, and the history says so.
    """
    made = program.clone()
    counts, notes = {"signed": 0}, []
    for group in _groups(made):
        kept = next(((n, why) for n in made.nodes if n in group and (why := _why_unsigned(made, n))), None)
        if kept is not None:
            notes.append(f"{kept[0].name} keeps its uint8: {kept[1]}")
            continue
        for n in made.calls:  # in order, so that shapes and dtypes are inferred from what is changed already
            if n in group:
                _lower(made, n)
        counts["signed"] += 1
    return made.recorded(PassRecord("signed", counts, notes=tuple(notes)))


def _groups(program: Program) -> list[set[fx.Node]]:
    """The quantized values of uint8, those that are moved together in one set, with the dequantizes that read them."""
    groups: list[set[fx.Node]] = []
    for n in program.nodes:
        if n.op == "output" or not isinstance(n.meta.get("val"), torch.Tensor) or dtype_of(n) != torch.uint8:
            continue
        joined = {n, *(a for a in n.all_input_nodes if _is_u8(a)), *n.users}
        for other in [g for g in groups if g & joined]:
            joined |= other
            groups.remove(other)
        groups.append(joined)
    return groups


def _is_u8(n: fx.Node) -> bool:
    val = n.meta.get("val")
    return isinstance(val, torch.Tensor) and val.dtype == torch.uint8


def _is_move(n: fx.Node) -> bool:
    return isinstance(n.target, torch._ops.OpOverload) and n.target.name() in MOVES


def _why_unsigned(program: Program, n: fx.Node) -> str | None:
    """None when a quantize, a dequantize or a move can be of int8, else the reason it stays."""
    if _is_move(n):
        return None
    if n.target not in QUANTIZES and n.target not in DEQUANTIZES:
        return "something else than quantize, dequantize and moves holds it"
    b = bind(n)
    zeros = torch.tensor(b["zero_point"]) if "zero_point" in b else program.constant(b["zero_points"])
    if zeros is None:
        said = b["zero_points"]
        return "it has no zero points" if said is None else f"its zero points ({said}) are computed at every step"
    return None if bool(((zeros >= 0) & (zeros <= 255)).all()) else "a zero point is beyond 8 bits"


def _lower(program: Program, n: fx.Node) -> None:
    if not _is_move(n):
        b = bind(n)
        zero = "zero_point" if "zero_point" in b else "zero_points"
        shifted = b[zero] - SHIFT if zero == "zero_point" else _constant(program, b[zero])
        low, high = b["quant_min"] - SHIFT, b["quant_max"] - SHIFT
        rebind(n, **{zero: shifted, "quant_min": low, "quant_max": high, "dtype": torch.int8})
    infer(program, n)


def _constant(program: Program, zeros: fx.Node) -> fx.Node:
    value = program.constant(zeros)
    assert value is not None, "a group with computed zero points is not lowered"
    return program.add_constant(f"{zeros.target}_signed", value - SHIFT)

"""Which calls of a Program kernels take, and why not the others."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from vqc.backends.triton.chains import is_picture, quantizer, steps_of
from vqc.backends.triton.convolution import why_not_integers
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, op_text

CONVOLUTIONS = ("vqc.qconv2d", "vqc.qconv2d_requantize", "vqc.masked_qconv2d", "vqc.masked_qconv2d_requantize")
TRANSPOSED = ("vqc.qconv_transpose2d", "vqc.qconv_transpose2d_requantize")
LINEAR = ("vqc.qlinear", "vqc.qlinear_requantize")
BINARY = ("vqc.bconv2d", "vqc.masked_bconv2d", "vqc.bconv2d_threshold")
FLOATS = ("vqc.resize_bilinear", "vqc.grid_sample", "vqc.avg_pool2d", "vqc.conv2d", "vqc.masked_conv2d")
MOVES = ("aten.cat", "aten.split.Tensor", "aten.split_with_sizes", "aten.chunk", "aten.slice.Tensor")
LARGEST = 2**31
MAKES_SIGNS = ("vqc.binarize", "vqc.bconv2d_threshold")
_MOVED = (torch.float32, torch.uint8, torch.int8)


def known_signs(program: Program) -> set[fx.Node]:
    """The s8 values that hold +1 and -1 alone: what makes signs, and channels of signs put elsewhere."""
    found: set[fx.Node] = set()
    for n in program.calls:
        name = op_text(n.target)
        moved = name in MOVES or n.target is operator.getitem
        if name in MAKES_SIGNS or (moved and n.all_input_nodes and all(a in found for a in n.all_input_nodes)):
            found.add(n)
    return found


def binary_packs(program: Program) -> set[fx.Node]:
    """The signs that lie packed, in words of 32 channels: only binary convolutions read them."""
    results = set(program.result_nodes)
    return {n for n in program.calls if op_text(n.target) in MAKES_SIGNS and n.users and n not in results
            and _why_no_signs(program, n) is None
            and all(op_text(u.target) in BINARY and _constants(program, u) is None for u in n.users)}  # fmt: skip


def _why_no_signs(program: Program, node: fx.Node) -> str | None:
    if op_text(node.target) != "vqc.binarize":
        return _constants(program, node)
    if program.constant(argument(node, "tau")) is None:
        return "its threshold is computed at run time"
    return None if is_picture(node.args[0]) else "it is no picture of float32"


def _constants(program: Program, node: fx.Node) -> str | None:
    name = op_text(node.target)
    names = ["weight", "scale", "bias"] + ([] if name in BINARY else ["x_zero"])
    for k in ["weight", "threshold", "flip"] if name == "vqc.bconv2d_threshold" else names:
        value = argument(node, k)
        if value is not None and program.constant(value) is None:
            return f"its {k} is computed at run time"
    return None


def _why_not_float(program: Program, node: fx.Node, name: str) -> str | None:
    """The same for float layers and moves."""
    if name == "vqc.mean_hw" or name in FLOATS[:3]:
        return None
    if name in ("vqc.conv2d", "vqc.masked_conv2d", "aten.conv2d"):
        values = [argument(node, "weight"), argument(node, "bias")]
        held = all(v is None or program.constant(v) is not None for v in values)
        return None if held and is_picture(node) else "its weights are computed at run time"
    return None if channel_parts(node) is not None else "it does not only move channels of 8-bit or float pictures"


def channel_parts(node: fx.Node) -> tuple[list[fx.Node], list[tuple[int, int, int, int, int]], list[int]] | None:
    """A move of channels: its inputs, the parts and the outputs' channels as `floats.Channels` takes them; or None."""
    name = op_text(node.target)
    inputs: list[Any] = list(node.args[0]) if name == "aten.cat" else [node.args[0]]
    vals = [n.meta.get("val") if isinstance(n, fx.Node) else None for n in inputs]
    if any(not isinstance(v, Tensor) or v.ndim != 4 or v.dtype not in _MOVED or not v.numel() for v in vals):
        return None
    if len({v.dtype for v in vals}) != 1:
        return None
    if name == "aten.slice.Tensor" and crop_of(node) is not None:
        return inputs, [(0, 0, vals[0].shape[1], 0, 0)], [vals[0].shape[1]]
    if int(argument(node, "dim", 0)) not in (1, -3):
        return None
    counts = [v.shape[1] for v in vals]
    if name == "aten.cat":
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return inputs, [(i, 0, c, 0, s) for i, (c, s) in enumerate(zip(counts, starts, strict=True))], [sum(counts)]
    outputs = [v.shape[1] for v in tensors_of(node)]
    at = 0
    if name == "aten.slice.Tensor":
        if int(argument(node, "step", 1)) != 1:
            return None
        at = int(argument(node, "start") or 0)
        at = max(0, min(at + counts[0] if at < 0 else at, counts[0]))
    parts = [(0, at + sum(outputs[:i]), c, i, 0) for i, c in enumerate(outputs)]
    return inputs, parts, outputs


def crop_of(node: fx.Node) -> tuple[int, int, int, int] | None:
    """(top, left, rows, columns) of a slice of a picture's rows or columns, None for what is no such slice."""
    if op_text(node.target) != "aten.slice.Tensor" or int(argument(node, "step", 1)) != 1:
        return None
    dim = int(argument(node, "dim", 0)) % 4
    if dim < 2:
        return None
    size, (_, _, h, w) = node.args[0].meta["val"].shape[dim], node.meta["val"].shape
    at = int(argument(node, "start") or 0)
    at = max(0, min(at + size if at < 0 else at, size))
    return (at, 0, h, w) if dim == 2 else (0, at, h, w)


def tensors_of(node: fx.Node) -> list[Tensor]:
    """What a call gives, as a list."""
    val = node.meta["val"]
    return list(val) if isinstance(val, (tuple, list)) else [val]


def why_not(program: Program, node: fx.Node, packs: set[fx.Node] | None = None, whole: bool = False) -> str | None:
    """None when a kernel takes this call (alone or in a chain), else the reason.

    packs: `binary_packs(program)`, if it is known already. whole: take what PyTorch does faster, too (`vqc.export`).
    """
    name = op_text(node.target)
    if node.target is operator.getitem:
        return None
    for n in (node, *node.all_input_nodes):
        val = n.meta.get("val")
        if isinstance(val, Tensor) and val.numel() >= LARGEST:
            return f"{n.name} has 2^31 elements or more"
        if isinstance(val, Tensor) and val.numel() == 0:
            return f"{n.name} is empty"
    if name in (*CONVOLUTIONS, *TRANSPOSED, *LINEAR):
        reason = _constants(program, node)
        if reason is not None:
            return reason
        weight, zero = (program.constant(argument(node, k)) for k in ("weight", "x_zero"))
        groups = 1 if name in LINEAR else int(argument(node, "groups"))
        return why_not_integers(weight, zero, dtype_of(node.args[0]) == torch.uint8, groups, name in TRANSPOSED)
    if name in BINARY:
        packs = binary_packs(program) if packs is None else packs
        if node.args[0] not in packs and node.args[0] not in known_signs(program):
            return "its picture is not known to hold +1 and -1 alone"
        return _constants(program, node)
    if name == "vqc.binarize":
        return _why_no_signs(program, node)
    if name.startswith("quantized_decomposed.quantize"):
        taken = quantizer(program, node) is not None
        return None if taken else "no quantizer of a float picture to 8 bits with constants"
    if name in (*FLOATS, *MOVES, "vqc.mean_hw") or (whole and name == "aten.conv2d"):
        return _why_not_float(program, node, name)
    if any(steps_of(program, node, a) is not None for a in node.all_input_nodes):
        return None
    if name == "aten.conv2d":
        return "a float convolution whose sums have no order: PyTorch's own is faster"
    return f"there is no Triton kernel for {name}"

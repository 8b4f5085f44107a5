"""What kernel calls cost: their multiply-adds and bytes, and the time that a machine of given peaks should take.

The model is a roofline: a call takes the longer of its arithmetic at a part of the peak (its kernel's efficiency) and
its bytes at the bandwidth of the memory they fit in, and a little for being called. It ranks alternatives; tune.py
measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from vqc.backends.c.ir import Array, Buffer, Call, Lowered
from vqc.layers import Layer
from vqc.ops.exact import argument
from vqc.program import Program, op_text, tensor_text

CALL_SECONDS = 3e-7  # what a call costs that does nothing
LEVELS = (("l1", 32 << 10), ("l2", 1 << 20), ("dram", math.inf))  # bytes that a level is taken to hold

# The part of the peak that kernels reach: of their kind's multiply-adds, or of the float ones where they do operations
# on elements; by the beginning of the name, the longest that fits. Measured on RVM and RIFE with AVX-512.
EFFICIENCY: dict[str, float] = {
    "vqc_conv_f32": 0.7, "vqc_conv_winograd": 0.9,  # of all products, of which it makes two thirds
    "vqc_conv_transpose_f32": 0.5, "vqc_conv_exact": 0.25, "vqc_conv_transpose_exact": 0.25,
    "vqc_qconv_c4": 0.55, "vqc_qconv_transpose_c4": 0.48, "vqc_qconv_dw_c4": 0.06, "vqc_qconv": 0.15, "vqc_bconv": 0.7,
    "vqc_matmul": 0.3, "vqc_qlinear": 0.2, "vqc_grid_sample": 0.02, "vqc_avg_pool": 0.01, "vqc_parts_c4": 0.02,
    "vqc_resize": 0.2, "vqc_signs": 0.05, "vqc_": 0.25,
}  # fmt: skip


@dataclass(frozen=True)
class Peaks:
    """What a core can do: 10^9 multiply-adds a second by kind, and 10^9 bytes copied a second by memory level.

    `measured` says whether it was timed here (peak.py) or is a guess for an unknown machine.
    """

    macs: Mapping[str, float] = field(default_factory=lambda: {"f32": 60.0, "int8": 120.0, "binary": 500.0})
    copy: Mapping[str, float] = field(default_factory=lambda: {"l1": 100.0, "l2": 40.0, "dram": 8.0})
    measured: bool = False


DEFAULT = Peaks()


def macs(program: Program, node: fx.Node) -> tuple[str, int]:
    """The kind of arithmetic of a node, and its multiply-adds: ("", 0) for one that has none."""
    name = op_text(node.target)
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return "", 0
    out: torch.Tensor = node.meta["val"]
    if "conv" in name or "linear" in name:
        weight = _weight(node)
        if weight is None:
            return "", 0
        x: torch.Tensor = node.args[0].meta["val"]
        kind = _kind(name, weight)
        if "transpose" in name:
            return kind, x.numel() * math.prod(weight.shape[1:])
        return kind, out.numel() * math.prod(weight.shape[1:])
    if name in ("aten.mm", "aten.bmm", "aten.matmul", "aten.addmm"):
        first: torch.Tensor = node.args[1 if name == "aten.addmm" else 0].meta["val"]
        return "f32", out.numel() * first.shape[-1]
    return "", 0


def _weight(node: fx.Node) -> torch.Tensor | None:
    found = argument(node, "weight") if not op_text(node.target).startswith("aten.") else node.args[1]
    value = found.meta.get("val") if isinstance(found, fx.Node) else None
    return value if isinstance(value, torch.Tensor) and value.ndim >= 2 else None


def _kind(name: str, weight: torch.Tensor) -> str:
    if "bconv" in name or "binary" in name:
        return "binary"
    return "f32" if weight.is_floating_point() else "int8"


def moved(call: Call) -> int:
    """Bytes of all buffers a call touches, each counted once; of a buffer it enters at an offset, the rest."""
    seen: dict[Buffer, int] = {}
    for r in call.refs():
        seen[r.buffer] = max(seen.get(r.buffer, 0), max(r.buffer.size - r.offset, 0))
    return sum(seen.values())


def element_ops(call: Call) -> int:
    """Operations on single elements: those of a pointwise program times its elements, else one for each result."""
    table: Any = call.params.fields.get("ops")
    written = max((r.buffer.size - r.offset for r in call.refs() if r.writes), default=0)
    if isinstance(table, Array):
        shape: Sequence[int] = call.params.fields["shape"]
        useful = [o for o in table.items if o.fields["code"] not in ("VQC_PW_LOAD", "VQC_PW_STORE", "VQC_PW_CONST")]
        return math.prod(shape) * len(useful)
    return written


def seconds(kernel: str, kind: str, work: int, bytes_: int, peaks: Peaks = DEFAULT) -> float:
    """The time one call should take: `work` multiply-adds of a kind, or element operations when the kind is ""."""
    part = EFFICIENCY[max((k for k in EFFICIENCY if kernel.startswith(k)), key=len, default="vqc_")]
    rate = part * peaks.macs.get(kind or "f32", peaks.macs["f32"])
    level = next(name for name, size in LEVELS if bytes_ <= size)
    return max(work / rate, bytes_ / peaks.copy[level]) / 1e9 + CALL_SECONDS


def layers(program: Program, lowered: Lowered, peaks: Peaks = DEFAULT) -> list[Layer]:
    """One row a call, in the order they run, predicted for a machine.

    A node's multiply-adds stand at the call of the kernel that computes it; the copies and conversions around it have
    rows of their own.
    """
    nodes = {n.name: n for n in program.calls}
    main: dict[str, int] = {}  # the call that gets a node's multiply-adds: of its kernels, the last
    for i, c in enumerate(lowered.calls):
        if c.kernel in lowered.kernels.get(c.node, "").split(" + "):
            main[c.node] = i
    inside: dict[str, list[str]] = {}  # nodes that another one's kernel computes
    for name, kernel in lowered.kernels.items():
        if kernel.startswith("in vqc_") and name in nodes:
            inside.setdefault(kernel, []).append(name)
    found = []
    for i, call in enumerate(lowered.calls):
        node = nodes.get(call.node)
        kind, count = macs(program, node) if node is not None and main.get(call.node) == i else ("", 0)
        count += sum(macs(program, nodes[n])[1] for n in inside.get(f"in {call.kernel} of {call.node}", ()) if count)
        ops, bytes_ = 0 if count else element_ops(call), moved(call)
        found.append(Layer(
            call.node, op_text(node.target) if node is not None else "result", call.kernel,
            tensor_text(node.meta["val"]) if node is not None else "", kind, count, ops, bytes_,
            predicted_ms=seconds(call.kernel, kind, count or ops, bytes_, peaks) * 1e3,
        ))  # fmt: skip
    return found

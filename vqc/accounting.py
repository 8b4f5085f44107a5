"""Operations and bytes of a Program as papers of few-bit networks count them.

Operations: float multiply-adds + binary ones / 64, because a 64-bit word holds 64 signs (Bi-Real Net, ReActNet, BiVM);
integers of w and a bits count w * a / 64, at most 1 (DoReFa-Net's convention). Only convolutions, linear layers and
matrix products are counted. Bytes: a bit for each sign, a byte for 8 bits, 4 for a float.
Layers under a mask count by the share of positions that it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from vqc.calibration.clips import as_clips
from vqc.errors import InputError
from vqc.ops.exact import argument
from vqc.program import Program, evaluate, op_text

WORD = 64
Kind = Literal["float", "integer", "binary"]
_PRODUCTS = {"aten.mm": 0, "aten.bmm": 0, "aten.matmul": 0, "aten.addmm": 1, "aten.baddbmm": 1}  # where the left one is


@dataclass(frozen=True)
class Work:
    """One layer. `macs`: multiply-adds of one step, without any mask; `bits`: of weight and input; `mask`: the node
    that says which outputs are computed, or ""; `density`: the share of them that is."""

    node: str
    operator: str
    kind: Kind
    macs: int
    bits: tuple[int, int]
    mask: str = ""
    density: float = 1.0

    @property
    def operations(self) -> float:
        """Multiply-adds of floats that count as much."""
        return self.macs * self.density * min(1.0, math.prod(self.bits) / WORD)


@dataclass(frozen=True)
class Account:
    """A Program's layers, and the bytes of its constants by kind of number."""

    layers: tuple[Work, ...]
    bytes_of: Mapping[Kind, int]

    def macs(self, kind: Kind) -> int:
        """Multiply-adds of one kind, as if no layer had a mask."""
        return sum(w.macs for w in self.layers if w.kind == kind)

    @property
    def operations(self) -> float:
        return sum(w.operations for w in self.layers)

    @property
    def bytes(self) -> int:
        return sum(self.bytes_of.values())

    def rows(self) -> list[dict[str, str]]:
        """A table: one row for each kind of number, and the sum."""
        rows = []
        for kind in ("float", "integer", "binary"):
            layers = [w for w in self.layers if w.kind == kind]
            if layers or self.bytes_of[kind]:
                kept = sum(w.macs * w.density for w in layers)
                rows.append({"numbers": kind, "layers": str(len(layers)), "M multiply-adds": _mega(self.macs(kind)),
                             "computed": _mega(kept), "M operations": _mega(sum(w.operations for w in layers)),
                             "weights MB": f"{self.bytes_of[kind] / 1e6:.3f}"})  # fmt: skip
        rows.append({"numbers": "all", "layers": str(len(self.layers)), "M operations": _mega(self.operations),
                     "weights MB": f"{self.bytes / 1e6:.3f}"})  # fmt: skip
        return rows


def _mega(value: float) -> str:
    return f"{value / 1e6:.2f}"


def account(program: Program, density: float | Mapping[str, float] = 1.0) -> Account:
    """What a Program costs. `density`: the share of positions that masks keep, one for all or by mask node
    (`mask_densities` measures it). Raises InputError for a share outside of 0 to 1, or a mask without one."""
    signs = {n.args[1] for n in program.calls if _trains_binary(program, n)}
    layers = []
    for n in program.calls:
        found = _work(program, n, n.args[1] in signs if len(n.args) > 1 else False)
        if found is not None:
            layers.append(found if not found.mask else _masked(found, density))
    bytes_of: dict[Kind, int] = {"float": 0, "integer": 0, "binary": 0}
    binary = {str(a.target) for a in signs if a.op == "get_attr"}
    binary |= {str(w.target) for n in program.calls if "bconv2d" in op_text(n.target)
               if isinstance(w := argument(n, "weight"), fx.Node) and w.op == "get_attr"}  # fmt: skip
    for name in {str(n.target) for n in program.nodes if n.op == "get_attr"}:
        value = program.constants[name]
        if isinstance(value, torch.Tensor):
            kind: Kind = "binary" if name in binary else "float" if value.is_floating_point() else "integer"
            bytes_of[kind] += -(-value.numel() // 8) if kind == "binary" else value.numel() * value.element_size()
    return Account(tuple(layers), bytes_of)


def mask_densities(program: Program, clips: Any) -> dict[str, float]:
    """The mean share of positions each mask keeps over clips (see `vqc.calibration.as_clips`), the state carried."""
    names = sorted({w.mask for w in account(program).layers if w.mask})
    if not names:
        return {}
    watched = program.with_outputs(names)
    total, steps = dict.fromkeys(names, 0.0), 0
    for clip in as_clips(clips, program).clips:
        state = program.initial_state()
        for step in clip:
            out = evaluate(watched, step, state)
            state = [out[s.output] for s in program.states]
            steps += 1
            for name, mask in zip(names, out[-len(names) :], strict=True):
                total[name] += float(mask.float().mean())
    return {name: value / steps for name, value in total.items()}


def _masked(work: Work, density: float | Mapping[str, float]) -> Work:
    share = density if isinstance(density, (int, float)) else density.get(work.mask)
    if share is None or not 0 <= share <= 1:
        raise InputError(f"layer {work.node} runs under mask {work.mask}, of density {share}",
                         way_out="give a share from 0 to 1 for every mask (mask_densities measures them)")  # fmt: skip
    return Work(work.node, work.operator, work.kind, work.macs, work.bits, work.mask, float(share))


def _trains_binary(program: Program, n: fx.Node) -> bool:
    """Whether a float layer multiplies signs by weights of one magnitude in each channel: a binary layer in training
    form."""
    if op_text(n.target) not in ("aten.conv2d", "aten.linear") or not isinstance(n.args[0], fx.Node):
        return False
    if n.args[0].target is not torch.ops.vqc.fake_binarize.default:
        return False
    weight = program.constant(n.args[1])
    if weight is None:
        return isinstance(n.args[1], fx.Node) and n.args[1].target is torch.ops.vqc.fake_binarize_weight.default
    size = weight.abs().flatten(1)
    return bool((size == size[:, :1]).all())


def _work(program: Program, n: fx.Node, signs: bool) -> Work | None:
    name = op_text(n.target)
    out = n.meta.get("val")
    if not isinstance(out, torch.Tensor):
        return None
    if name in _PRODUCTS:
        left = n.args[_PRODUCTS[name]].meta["val"]
        return Work(n.name, name, "float", out.numel() * left.shape[-1], (32, 32))
    if not ("conv" in name or "linear" in name) or name.startswith("vqc.fake"):
        return None
    at = argument(n, "weight")
    weight = at.meta.get("val") if isinstance(at, fx.Node) else None
    if not isinstance(weight, torch.Tensor) or weight.ndim < 2:
        return None
    results = n.args[0].meta["val"] if "transpose" in name else out
    macs = results.numel() * math.prod(weight.shape[1:])
    mask = argument(n, "mask") if "masked" in name else None
    kind: Kind = "binary" if signs or "bconv" in name else "float" if weight.is_floating_point() else "integer"
    bits = {"binary": (1, 1), "float": (32, 32), "integer": (8 * weight.element_size(), 8)}[kind]
    return Work(n.name, name, kind, macs, bits, mask.name if isinstance(mask, fx.Node) else "")

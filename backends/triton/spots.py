"""Which values are written straight into a concatenation, at their channels, and which parts of a picture are views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from vqc.backends.triton.chains import is_picture
from vqc.backends.triton.rules import MOVES, channel_parts, tensors_of
from vqc.program import Program, op_text

Stored = Callable[[fx.Node], torch.dtype]  # a value's dtype in memory


@dataclass(frozen=True)
class Spot:
    """Where a value goes: the concatenation, the first of its channels there, and their number."""

    cat: fx.Node
    first: int
    count: int


def spots(program: Program, taken: Callable[[fx.Node], bool], stored: Stored) -> dict[fx.Node, Spot]:
    """The values that kernels (`taken`) write into a concatenation; the first one, where several read them."""
    results, found = set(program.result_nodes), dict[fx.Node, Spot]()
    for cat in program.calls:
        if op_text(cat.target) != "aten.cat" or not taken(cat):
            continue
        at = 0
        for a in cat.args[0]:
            count = a.meta["val"].shape[1]
            made = a.op == "call_function" and taken(a) and a not in results and stored(a) == stored(cat)
            if made and a not in found and _has_own_kernel(a):
                found[a] = Spot(cat, at, count)
            at += count
    return found


def _has_own_kernel(n: fx.Node) -> bool:
    """Whether a kernel with an epilogue makes this value: not a move, a pick, a linear layer or a mean."""
    name = op_text(n.target)
    pictures = is_picture(n) or n.meta["val"].dtype in (torch.uint8, torch.int8)
    return pictures and name not in MOVES and not name.startswith(("vqc.qlinear", "vqc.mean_hw", "getitem"))


def is_view(program: Program, n: fx.Node, stored: Stored) -> bool:
    """Whether a split or a slice of channels need not be moved: its parts are no results, and lie as they did."""
    found = channel_parts(n)
    if found is None or op_text(n.target) == "aten.cat" or found[0][0].op != "call_function":
        return False
    results = set(program.result_nodes)
    several = isinstance(n.meta["val"], (tuple, list))
    parts = list(n.users) if several else [n]
    if several and any(len(t.shape) != 4 for t in tensors_of(n)):
        return False
    return all(p not in results and stored(p) == stored(found[0][0]) for p in parts)

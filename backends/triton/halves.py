"""Which pictures between kernels may lie in half the bits: those that kernels write and kernels alone read."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx

from vqc.backends.triton.chains import is_picture
from vqc.backends.triton.rules import MOVES
from vqc.program import Program, op_text

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def half_nodes(program: Program, why_not: Callable[[fx.Node], str | None]) -> set[fx.Node]:
    """Float pictures that are no result and no state, made and read by kernels; positions of warps stay as they are."""
    results = set(program.result_nodes)
    eager = {n for n in program.calls if why_not(n) is not None}

    def fits(n: fx.Node) -> bool:
        made = n.args[0] if n.target is operator.getitem else n
        if not is_picture(n) or n in results or n in eager or made in eager or op_text(n.target) == "vqc.mean_hw":
            return False
        positions = (u for u in n.users if op_text(u.target) == "vqc.grid_sample" and u.args[1] is n)
        return not any(u in eager for u in n.users) and not any(positions)

    found = {n for n in program.calls if fits(n)}
    for n in program.calls:
        picks = [u for u in n.users if u.target is operator.getitem]
        if op_text(n.target) in MOVES and op_text(n.target) != "aten.cat" and n.args[0] not in found:
            found -= {n, *picks}  # parts of a picture lie as it does
        # An output that is picked twice has one dtype.
        for u in picks:
            if any(v.args[1] == u.args[1] and v not in found for v in picks):
                found.discard(u)
    return found

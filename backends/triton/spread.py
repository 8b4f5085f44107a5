"""Quantizers of a concatenation spread over its parts: each kernel then stores levels, and no float concatenation is.

Quantizing is pointwise, so nothing changes but where it happens. A part that others read as floats is stored twice.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from vqc.backends.triton.chains import QUANTIZERS, is_picture, quantizer
from vqc.ops.exact import argument
from vqc.program import Program, op_text, shape_of


def spread(program: Program) -> tuple[Program, list[str]]:
    """The program with such quantizers spread, and the names of the concatenations that are gone; itself if none is."""
    found = [n.name for n in program.calls if _spreads(program, n)]
    if not found:
        return program, []
    made = program.clone()
    gone: list[str] = []
    for name in found:
        n = made.node(name)
        gone.append(str(n.all_input_nodes[0].name))
        _spread_one(made, n)
    return made, gone


def _spreads(program: Program, n: fx.Node) -> bool:
    """Whether a call quantizes float pictures that are concatenated along channels for it alone."""
    cat = n.args[0] if n.args else None
    if op_text(n.target) not in QUANTIZERS or not isinstance(cat, fx.Node) or cat.op != "call_function":
        return False
    if op_text(cat.target) != "aten.cat" or len(cat.users) != 1 or int(argument(cat, "dim", 0)) not in (1, -3):
        return False
    return all(is_picture(a) for a in cat.args[0]) and quantizer(program, n) is not None


def _spread_one(program: Program, n: fx.Node) -> None:
    cat, name = n.args[0], n.name
    each = op_text(n.target) == QUANTIZERS[2]  # scales and zero points of every channel
    parts, at = [], 0
    with program.graph.inserting_before(n):
        for a in cat.args[0]:
            count = shape_of(a)[1]
            args: list[Any] = [a, *n.args[1:]]
            if each:
                for i in (1, 2):
                    whole = program.constant(n.args[i])
                    assert whole is not None
                    key = f"{n.args[i].name}_{at}"
                    args[i] = program.add_constant(key, whole[at : at + count].contiguous())
            parts.append(program.call(n.target, tuple(args), dict(n.kwargs), like=n))
            at += count
        joined = program.call(cat.target, (parts, 1), like=n)
    n.replace_all_uses_with(joined)
    program.graph.erase_node(n)
    program.graph.erase_node(cat)
    joined.name = name

"""A program's way back up to full size: its decoder, found by form, and the convolutions worth a sparse pair there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import fx

from vqc.ops.exact import argument
from vqc.program import Program, shape_of

aten = torch.ops.aten

UPSAMPLES = {aten.upsample_bilinear2d.default, aten.upsample_nearest2d.default, aten.upsample_bicubic2d.default}
CONVOLUTIONS = {aten.conv2d.default, aten.conv_transpose2d.input}


@dataclass(frozen=True)
class Decoder:
    """`top`: the feature that is resized first, at the coarsest scale; `behind`: all that a resized value reaches
    within a step, in graph order."""

    top: fx.Node
    behind: tuple[fx.Node, ...]


def find_decoder(program: Program) -> Decoder | None:
    """The decoder of a program, None where nothing is resized upwards.

    Of several values that are resized with no resize before them, the smallest is the top; of these, the first.
    """
    ups = [n for n in program.calls if n.target in UPSAMPLES and area(n) > area(n.args[0])]
    behind = downstream(program, ups)
    first = [u.args[0] for u in ups if u.args[0] not in behind]
    if not first:
        return None
    top = min(first, key=area)
    assert isinstance(top, fx.Node)
    return Decoder(top, tuple(n for n in program.calls if n in behind))


def area(n: fx.Node) -> int:
    """Positions of a picture [N,C,H,W]."""
    shape = shape_of(n)
    return int(shape[-1] * shape[-2])


def downstream(program: Program, start: Iterable[fx.Node]) -> set[fx.Node]:
    """`start` and every call that reads one of them, directly or not, within a step."""
    found = set(start)
    for n in program.calls:
        if any(a in found for a in n.all_input_nodes):
            found.add(n)
    return found


def why_not(program: Program, conv: fx.Node, top: fx.Node, keep: Sequence[str]) -> str | None:
    """Why a convolution behind an upsample is no candidate for a sparse pair, None if it is one."""
    for pattern in keep:
        if fnmatchcase(conv.name, pattern) or fnmatchcase(conv.meta.get("module", ""), pattern):
            return f"kept by {pattern!r}"
    if conv.target is not aten.conv2d.default:
        return "a transposed convolution has no binary operator"
    if program.constant(conv.args[1]) is None:
        return "its weight is not a float constant"
    if int(argument(conv, "groups")) != 1:
        return "it is grouped: one-bit layers of few inputs lose too much"
    kernel = shape_of(conv.args[1])[2:]
    if kernel != (3, 3):
        return f"its kernel is {kernel[0]}x{kernel[1]}, not 3x3"
    for what, wanted in (("stride", 1), ("padding", 1), ("dilation", 1)):
        if any(int(v) != wanted for v in argument(conv, what)):
            return f"its {what} is {list(argument(conv, what))}, not {wanted}"
    if area(conv) <= area(top):
        return "it is not at a finer scale than the coarsest one"
    return None


def ends(program: Program, units: Iterable[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Of these layers: (those no other feeds within a step, those from which a result is reached without another)."""
    units = set(units)
    last: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    todo = list(program.result_nodes[: len(program.outputs)])
    while todo:
        n = todo.pop()
        if n in seen:
            continue
        seen.add(n)
        if n in units:
            last.add(n)
        else:
            todo.extend(n.all_input_nodes)
    fed: set[fx.Node] = set()
    for n in program.calls:
        if any(a in fed or a in units for a in n.all_input_nodes):
            fed.add(n)
    return units - fed, last

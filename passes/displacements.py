"""Which layers make a displacement, read one, or lead to the first guess of one: what says where a warp looks.

A warp's coordinates (`grid_sampler`) are pixels, not brightness: a step of 8 bits over a flow of 30 pixels is a quarter
of a pixel, everywhere in the picture. So the layers that make them are as much a network's result as its pictures are,
and a layer that reads a flow reads a number, not a feature. Networks that refine a flow warp by a first guess and look
again; the guess comes from coarse, cheap layers, and what they hold grows with the motion, which differs from clip to
clip far more than brightness does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from vqc.arguments import is_elementwise, op_name
from vqc.program import Program

aten = torch.ops.aten

WARPS = {aten.grid_sampler_2d.default, aten.grid_sampler.default}
# Operators whose result holds the values of their operands (scaled, moved, resized), beside elementwise ones.
_CARRY = {
    "aten.cat", "aten.stack", "aten.slice", "aten.select", "aten.split", "aten.split_with_sizes", "aten.chunk",
    "aten.unbind", "getitem", "aten.permute", "aten.transpose", "aten.view", "aten.reshape", "aten._unsafe_view",
    "aten.unsqueeze", "aten.squeeze", "aten.expand", "aten.repeat", "aten.clone", "aten.contiguous", "aten._to_copy",
    "aten.flip", "aten.roll", "aten.index", "aten.index_select", "aten.gather", "aten.pixel_shuffle",
    "aten.pixel_unshuffle", "aten.channel_shuffle", "aten.im2col", "aten.constant_pad_nd", "aten.replication_pad2d",
    "aten.reflection_pad2d", "aten.upsample_nearest2d", "aten._upsample_nearest_exact2d", "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d", "aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa", "aten.avg_pool2d",
    "aten.adaptive_avg_pool2d", "aten.max_pool2d", "aten.sum", "aten.mean", "aten.prelu",
}  # fmt: skip


@dataclass(frozen=True)
class Displacements:
    """`makers`: layers whose result reaches a warp's coordinates through no other layer; `readers`: layers that such a
    result reaches through no other layer and no warp; `guesses`: layers before a warp that has no warp before it,
    where its displacement is refined: some later warp is reached from what it gives; `neighbours`: layers that a maker
    reads, or that read what a reader gives, through no other layer and no warp.
    """

    makers: frozenset[fx.Node]
    readers: frozenset[fx.Node]
    guesses: frozenset[fx.Node]
    neighbours: frozenset[fx.Node]


def displacements(program: Program, layers: Iterable[fx.Node]) -> Displacements:
    """The layers around the displacements of a Program. `layers`: its convolutions and linear layers."""
    layers = frozenset(layers)
    warps = [n for n in program.calls if n.target in WARPS]
    grids = [w.args[1] for w in warps if isinstance(w.args[1], fx.Node)]
    direct = _before(grids, lambda n: n not in layers and _carries(n))
    makers = layers & direct
    held = _after(makers, lambda n: n not in layers and _carries(n))
    readers = frozenset(n for n in layers if n.args[0] in held)
    before = _before([n.args[0] for n in makers if isinstance(n.args[0], fx.Node)], lambda n: _between(n, layers))
    given = _after(readers, lambda n: _between(n, layers))
    neighbours = (layers & before) | {n for n in layers if n.args[0] in given}
    return Displacements(makers, readers, _guesses(warps, layers), neighbours - makers - readers)


def _guesses(warps: list[fx.Node], layers: frozenset[fx.Node]) -> frozenset[fx.Node]:
    first: list[tuple[fx.Node, frozenset[fx.Node]]] = []
    refined: set[fx.Node] = set()
    for warp in warps:
        before = _before(warp.args[1:2], lambda n: True)
        earlier = [w for w in warps if w in before]
        if earlier:
            refined |= set(earlier)
        else:
            first.append((warp, layers & before))
    return frozenset(n for warp, found in first if warp in refined for n in found)


def _before(ends: Iterable[fx.Node], through: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """`ends` and all that they are computed from; the search goes on behind a node if `through` says so."""
    found: set[fx.Node] = set()
    todo = list(ends)
    while todo:
        n = todo.pop()
        if n not in found:
            found.add(n)
            if through(n):
                todo.extend(n.all_input_nodes)
    return found


def _after(starts: Iterable[fx.Node], through: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """`starts` and all that is computed from them, as far as `through` lets a node hand on."""
    found = set(starts)
    todo = list(starts)
    while todo:
        for user in todo.pop().users:
            if user not in found and through(user):
                found.add(user)
                todo.append(user)
    return found


def _between(n: fx.Node, layers: frozenset[fx.Node]) -> bool:
    """Whether a node stands between layers: an activation, a norm, a resize."""
    return n.op == "call_function" and n not in layers and n.target not in WARPS


def _carries(n: fx.Node) -> bool:
    return n.op == "call_function" and (is_elementwise(n.target) or op_name(n.target) in _CARRY)

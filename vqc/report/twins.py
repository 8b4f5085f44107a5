"""Which node of a quantized program stands for which node of its float twin, and how far it is from it.

Passes keep the name of a value they leave in place, so names are followed from pass to pass; a name that a later pass
gives to a new node is not taken for the old one. Layers that become integer operators get new names: they are found
again by the module and the line of source they came from, in order. What cannot be matched is said, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

import vqc.ops  # noqa: F401  (registers the vqc:: operators)
from vqc.ops.exact import argument
from vqc.passes.lower_integer import MOVES, QUANTIZE_CHANNEL
from vqc.program import Program, short_name

# Of aten, and of vqc: qconv2d, masked_bconv2d, ... but not upsample_bilinear2d.
_LAYER = re.compile(r"(?:masked_)?[a-z]?(conv_transpose\dd|conv\dd|linear|bmm|matmul|scaled_dot_product_attention)")
_RELU = torch.ops.aten.relu.default

Visit = Callable[[fx.Node, Any], Any]


def layer_kind(node: fx.Node) -> str:
    """`conv2d` for every operator that is one, integer or float; "" for what is no layer."""
    if node.op != "call_function":
        return ""
    found = _LAYER.match(short_name(node.target))
    return found[1] if found else ""


@dataclass(frozen=True)
class Link:
    """What a node stands for: the twin's node `twin`, through a relu if `relu`.

    A node of integers holds `value / scale + zero`, rounded and held in `low .. high`; `scale` is None for floats.
    """

    twin: str
    relu: bool = False
    scale: Tensor | None = None
    zero: Tensor | None = None
    low: int = 0
    high: int = 255

    def truth(self, value: Tensor) -> Tensor:
        """The twin's value as it should be at this node."""
        return value.clamp_min(0) if self.relu else value

    def real(self, value: Tensor) -> Tensor:
        """This node's value as the float it stands for."""
        if self.scale is None or self.zero is None:
            return value
        return (value.float() - self.zero) * self.scale

    def stored(self, truth: Tensor, like: Tensor) -> Tensor:
        """A float in the form in which this node holds it."""
        if self.scale is None or self.zero is None:
            return truth.to(like.dtype)
        return (truth / self.scale + self.zero).round().clamp(self.low, self.high).to(like.dtype)


Links = Mapping[str, Link]


def own_links(program: Program) -> dict[str, Link]:
    """Every float tensor of a program stands for itself."""
    return {n.name: Link(n.name) for n in program.graph.nodes if n.op == "call_function" and _is_float(n)}


def follow(before: Program, after: Program, links: Links) -> dict[str, Link]:
    """The links of a pass's result from those of the program it was given."""
    old = {n.name: n for n in before.graph.nodes}
    found: dict[str, Link] = {}
    fresh: dict[tuple[str, str, str], list[fx.Node]] = {}
    for n in after.calls:
        was = old.get(n.name)
        if was is not None:
            if n.name in links and _like(was, n):
                found[n.name] = links[n.name]
        elif layer_kind(n):
            fresh.setdefault(_origin(n), []).append(n)
    names = {n.name for n in after.graph.nodes}
    gone: dict[tuple[str, str, str], list[fx.Node]] = {}
    for n in before.calls:
        if n.name in links and layer_kind(n) and n.name not in names:
            gone.setdefault(_origin(n), []).append(n)
    for key, nodes in fresh.items():
        lost = gone.get(key, [])
        if len(lost) == len(nodes):
            pairs = zip(lost, nodes, strict=True)
            found |= {n.name: link for was, n in pairs if (link := _decoded(before, was, n, links[was.name]))}
    return found


def unmatched(twin: Program, links: Links) -> list[str]:
    """The twin's layers that no node of the program stands for."""
    there = {link.twin for link in links.values()}
    return [n.name for n in twin.calls if layer_kind(n) and _is_float(n) and n.name not in there]


def _origin(n: fx.Node) -> tuple[str, str, str]:
    return str(n.meta.get("module", "")), str(n.meta.get("source", "")), layer_kind(n)


def _is_float(n: fx.Node) -> bool:
    value = n.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _like(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta.get("val"), b.meta.get("val")
    return isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.dtype == y.dtype


def _decoded(before: Program, was: fx.Node, node: fx.Node, link: Link) -> Link | None:
    """The link of a layer that was rewritten into `node`, or None when its integers cannot be read."""
    if was.meta["val"].shape != node.meta["val"].shape:
        return None
    if _is_float(node):
        return link
    if not short_name(node.target).endswith("_requantize"):
        return None
    relu = argument(node, "activation") == "relu"
    inverse, zero = float(argument(node, "inv_scale")), int(argument(node, "zero_point"))
    scales = _channel_scales(before, was) if inverse == 1.0 and zero == 0 else None
    if scales is not None:
        return Link(link.twin, link.relu or relu, *scales)
    return Link(link.twin, link.relu or relu, torch.tensor(1.0 / inverse), torch.tensor(float(zero)))


def _channel_scales(program: Program, layer: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Scales and zero points [1,C,1,1] of the quantizer per channel that reads a layer, through a relu or moves."""
    todo, seen = list(layer.users), set()
    while todo:
        n = todo.pop()
        if n in seen:
            continue
        seen.add(n)
        if n.target is QUANTIZE_CHANNEL:
            scale, zero = program.constant(n.args[1]), program.constant(n.args[2])
            if scale is not None and zero is not None and n.args[3] == 1:
                return scale.view(1, -1, 1, 1), zero.float().view(1, -1, 1, 1)
        elif n.target is _RELU or n.target in MOVES:
            todo += n.users
    return None


# ---- running ---------------------------------------------------------------------------------------------------------


def walk(program: Program, inputs: Sequence[Tensor], state: Sequence[Tensor], visit: Visit) -> tuple[Any, ...]:
    """Run one step as `vqc.program.evaluate` does; a value that `visit(call, value)` returns takes the place of the
    call's own (None: it stays). Placeholders are visited too, and stay. Values are freed after their last use.
    Returns the flat outputs.
    """
    left = {n: len(n.users) for n in program.graph.nodes}
    feeds = iter([*inputs, *state])
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for n in program.graph.nodes:
            if n.op == "output":
                return tuple(fx.node.map_arg(n.args[0], values.__getitem__))
            if n.op == "placeholder":
                values[n] = next(feeds)
                visit(n, values[n])
            elif n.op == "get_attr":
                values[n] = program.constants[str(n.target)]
            else:
                args, kwargs = fx.node.map_arg((n.args, n.kwargs), values.__getitem__)
                value = n.target(*args, **kwargs)
                other = visit(n, value)
                values[n] = value if other is None else other
            for a in n.all_input_nodes:
                left[a] -= 1
                if not left[a]:
                    del values[a]
    raise AssertionError("a graph without an output")

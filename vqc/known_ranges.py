"""Ranges that hold by mathematics or by declaration, and the pixel grid of 8-bit pictures. Never calibrated.

A sigmoid lies in [0, 1], a recurrent state of a gated cell in [-1, 1], an image in [0, 1] whatever a clip shows.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from vqc.program import Program

aten = torch.ops.aten
Range = tuple[float, float]

_FIXED: dict[object, Range] = {
    aten.sigmoid.default: (0.0, 1.0),
    aten.tanh.default: (-1.0, 1.0),
    aten.hardsigmoid.default: (0.0, 1.0),
    aten._softmax.default: (0.0, 1.0),
    aten.softmax.int: (0.0, 1.0),
    aten.sin.default: (-1.0, 1.0),
    aten.cos.default: (-1.0, 1.0),
}

# The result's values are values of (or means of values of) the first argument.
_PASS_THROUGH = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default, aten.transpose.int,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.expand.default,
    aten.slice.Tensor, aten.select.int, aten.flip.default, aten.roll.default, aten.repeat.default,
    aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.split.Tensor, aten.split_with_sizes.default,
    aten.chunk.default, aten.unbind.int, operator.getitem, aten.clone.default, aten.contiguous.default,
    aten.max_pool2d.default, aten.upsample_bilinear2d.default, aten.upsample_nearest2d.default,
    aten.adaptive_avg_pool2d.default, aten.mean.dim,
}  # fmt: skip

# As above, but taps outside the picture count as zero.
_PASS_THROUGH_WITH_ZERO = {aten.avg_pool2d.default, aten.grid_sampler_2d.default, aten.grid_sampler.default}


# The result's values are those of the first argument, all of them: what is known of one is known of the other.
_SAME_VALUES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default, aten.transpose.int,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.expand.default,
    aten.flip.default, aten.roll.default, aten.repeat.default, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default, aten.clone.default, aten.contiguous.default,
}  # fmt: skip


def _of_next_states(program: Program) -> dict[fx.Node, Range]:
    """What states are declared to hold, at their next values and at what those only show in another shape."""
    found: dict[fx.Node, Range] = {}
    for s in program.states:
        n = program.result_nodes[s.output]
        while s.known_range is not None:
            found.setdefault(n, s.known_range)
            if n.target not in _SAME_VALUES or not isinstance(n.args[0], fx.Node):
                break
            n = n.args[0]
    return found


def known_ranges(program: Program) -> dict[fx.Node, Range]:
    """The nodes whose range is known without looking at data, each with (low, high)."""
    known: dict[fx.Node, Range] = {}
    declared = {i.name: i.known_range for i in program.inputs} | {s.input: s.known_range for s in program.states}
    next_state = _of_next_states(program)
    for n in program.graph.nodes:
        result: Range | None = None
        if n.op == "placeholder":
            result = declared.get(n.name)
        elif n in next_state:
            result = next_state[n]
        elif n.op == "call_function":
            result = _rule(n, known)
        if result is not None:
            known[n] = result
    return known


def _rule(n: fx.Node, known: dict[fx.Node, Range]) -> Range | None:
    if n.target in _FIXED:
        return _FIXED[n.target]
    first = known.get(n.args[0]) if n.args and isinstance(n.args[0], fx.Node) else None
    if n.target in _PASS_THROUGH:
        return first
    if n.target in _PASS_THROUGH_WITH_ZERO and first is not None:
        return min(first[0], 0.0), max(first[1], 0.0)
    if n.target is aten.cat.default:
        parts = [known.get(a) for a in n.args[0]]
        if all(p is not None for p in parts):
            return min(p[0] for p in parts), max(p[1] for p in parts)
        return None
    if n.target is aten.clamp.default and len(n.args) == 3 and all(isinstance(a, (int, float)) for a in n.args[1:]):
        return float(n.args[1]), float(n.args[2])
    if n.target is aten.mul.Tensor and all(isinstance(a, fx.Node) and a in known for a in n.args[:2]):
        products = [x * y for x in known[n.args[0]] for y in known[n.args[1]]]
        return min(products), max(products)
    if n.target is aten.relu.default and first is not None:
        return max(first[0], 0.0), max(first[1], 0.0)
    return None


@dataclass(frozen=True)
class PixelGrid:
    """x[:, c] = (q - zero[c]) * scale[c] with q an integer 0..255: what an 8-bit picture becomes by normalisation.

    `scale`, `zero`: float64 [C]; `zero` need not be an integer.
    """

    scale: torch.Tensor
    zero: torch.Tensor


def pixel_grid(program: Program, node: fx.Node, levels: int = 256) -> PixelGrid | None:
    """The grid of `node` if it is a per-channel affine function of an input declared in [0, 1]; None otherwise.

    Such a node is quantized without any loss when the input is an 8-bit picture, whatever the normalisation is.
    """
    declared = {i.name: i.known_range for i in program.inputs}
    if node.op == "placeholder":
        val = node.meta["val"]
        if declared.get(node.name) != (0.0, 1.0) or val.ndim != 4:
            return None
        channels = val.shape[1]
        return PixelGrid(
            torch.full((channels,), 1 / (levels - 1), dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
        )
    if node.target not in (aten.sub.Tensor, aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor) or node.kwargs:
        return None
    if not isinstance(node.args[0], fx.Node):
        return None
    base = pixel_grid(program, node.args[0], levels)
    if base is None:
        return None
    c = _per_channel(program, node.args[1], len(base.scale))
    if c is None or (node.target in (aten.mul.Tensor, aten.div.Tensor) and bool((c == 0).any())):
        return None
    if node.target is aten.sub.Tensor:
        return PixelGrid(base.scale, base.zero + c / base.scale)
    if node.target is aten.add.Tensor:
        return PixelGrid(base.scale, base.zero - c / base.scale)
    scale = base.scale * c if node.target is aten.mul.Tensor else base.scale / c
    return PixelGrid(scale, base.zero) if bool((scale > 0).all()) else None


def _per_channel(program: Program, value: object, channels: int) -> torch.Tensor | None:
    if isinstance(value, (int, float)):
        return torch.full((channels,), float(value), dtype=torch.float64)
    const = program.constant(value)
    if const is None:
        return None
    shape = tuple(const.shape)
    while shape and shape[0] == 1 and len(shape) > 3:
        shape = shape[1:]
    if const.numel() == 1:
        return const.double().reshape(1).expand(channels)
    if shape in ((channels, 1, 1), (channels,)) and const.numel() == channels and const.ndim >= 3:
        return const.double().reshape(channels)
    return None

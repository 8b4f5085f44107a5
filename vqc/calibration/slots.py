"""Which entries of a tensor share bounds: one pair for each frame slot (PMQ-VE, section "per-frame quantization").

Frames in a dimension of their own, or folded into one, are its slots. A window's parts that stand side by side along
the channels (two pictures, a mask, a flow) are slots as well: each belongs to a place of its own in the window, and its
values to a range of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from vqc.arguments import bind, is_elementwise, op_name
from vqc.calibration.observe import Observed
from vqc.calibration.statistics import Statistics
from vqc.frames import WINDOW, Frames
from vqc.program import shape_of

# Operators of [N, C, H, W] that leave channel c in channel c and look at no other.
_CHANNELWISE = {
    "aten.upsample_nearest2d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d", "aten._upsample_bilinear2d_aa",
    "aten.avg_pool2d", "aten.max_pool2d", "aten.adaptive_avg_pool2d", "aten.clone", "aten.contiguous",
    "aten.constant_pad_nd", "aten.reflection_pad2d", "aten.replication_pad2d",
}  # fmt: skip


@dataclass(frozen=True)
class Slots:
    """The slots along dimension `axis`: entry i of it is in slot `of[i]`, which an observer knows as `keys[of[i]]`."""

    axis: int
    of: tuple[int, ...]
    keys: tuple[int, ...]

    def spread(self, values: Tensor) -> Tensor:
        """Values of each slot [K] -> of each entry of the axis."""
        return values[torch.tensor(self.of)]

    def entries(self, slot: int) -> list[int]:
        return [i for i, k in enumerate(self.of) if k == slot]


def slots_of(node: fx.Node, layout: Mapping[str, Frames]) -> Slots | None:
    """The slots of a node's tensor, None when it has but one. `layout`: of `vqc.frames.frame_layout`."""
    f, shape = layout[node.name], shape_of(node)
    if f.placed:
        inner = f.inner(shape)
        of = tuple((i // inner) % f.count for i in range(shape[f.axis]))
        return Slots(f.axis, of, tuple(f.index + k for k in range(f.count)))
    if f != WINDOW or len(shape) != 4:
        return None
    found: list[int] = []
    before: Frames | None = None
    slot = -1
    for part in _side_by_side(node):
        frames = layout[part.name]
        if not (frames.kind == "slot" and frames == before):  # neighbours of one frame share its bounds
            slot += 1
        before = frames
        found += [slot] * shape_of(part)[1]
    return Slots(1, tuple(found), tuple(range(slot + 1))) if slot > 0 else None


def _side_by_side(node: fx.Node) -> list[fx.Node]:
    """The tensors whose channels, one after the other, are the channels of `node`; itself, where no concat is."""
    if node.op != "call_function":
        return [node]
    name = op_name(node.target)
    if name in ("aten.cat", "aten.concat"):
        args = bind(node)
        if args["dim"] % len(shape_of(node)) == 1:
            return [leaf for part in args["tensors"] for leaf in _side_by_side(part)]
        return [node]
    sources = [a for a in node.all_input_nodes if a.op != "get_attr"]
    if len(sources) != 1 or len(sources[0].meta["val"].shape) != 4 or shape_of(sources[0])[1] != shape_of(node)[1]:
        return [node]
    if name not in _CHANNELWISE and not is_elementwise(node.target):
        return [node]
    parts = _side_by_side(sources[0])
    return parts if len(parts) > 1 else [node]


def slot_parts(value: Tensor, node: fx.Node, layout: Mapping[str, Frames]) -> list[tuple[int, Tensor]]:
    """(key, part) for every slot of a node's tensor, of its rank; one of its frame's index when it has one slot."""
    slots = slots_of(node, layout)
    if slots is None:
        return [(layout[node.name].index, value)]
    return [(key, value.index_select(slots.axis, torch.tensor(slots.entries(k)))) for k, key in enumerate(slots.keys)]


def whole_of(observed: Observed, slots: Slots | None) -> Statistics:
    """What was observed of the whole tensor; slots along the channels are put side by side again.

    Each slot counts alike in the histogram, however many channels it has.
    """
    if slots is None or slots.axis != 1 or set(observed.groups) != set(slots.keys):
        return observed.total
    groups = [observed.groups[key] for key in slots.keys]
    if any(g.low is None or len(g.low) != len(slots.entries(k)) for k, g in enumerate(groups)):
        return observed.total
    whole = Statistics(sum_low=min(g.sum_low for g in groups), sum_high=max(g.sum_high for g in groups),
                       frames=groups[0].frames, values=sum(g.values for g in groups))  # fmt: skip
    whole.low, whole.high = np.empty(len(slots.of)), np.empty(len(slots.of))
    whole.power = np.empty(len(slots.of), object)
    for k, g in enumerate(groups):
        at = slots.entries(k)
        whole.low[at], whole.high[at], whole.power[at] = g.low, g.high, g.power
        whole.add_counts(g.exponent, g.first, g.counts)
    return whole

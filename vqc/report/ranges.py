"""How well quantizers use their levels on a clip: codes seen, values cut off, bits of weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from vqc.calibration.observe import PHASES, phase_of
from vqc.ops.exact import argument
from vqc.program import Program, short_name
from vqc.report.twins import Links, layer_kind


@dataclass(frozen=True)
class Use:
    """What one quantizer met in one phase since reset.

    `since`, `until`: the phase's first and last frame. `low`, `high`: smallest and largest code. `used`: share of all
    codes that occurred. `channel`: mean over channels of the share of the codes between the channel's smallest and
    largest. `below`, `above`: share of values that were cut off at the lowest and at the highest code.
    """

    since: int
    until: int
    low: int
    high: int
    used: float
    channel: float
    below: float
    above: float


@dataclass(frozen=True)
class Quantizer:
    """One quantizer of an activation.

    `node`: it; `source`: the node it reads; `layers`: the layers (of the twin) it feeds. `first`, `last`: its codes;
    `low`, `high`: the floats they stand for (over all channels). `scales`: how many it has. `uses`: by phase.
    """

    node: str
    source: str
    layers: tuple[str, ...]
    first: int
    last: int
    low: float
    high: float
    scales: int
    uses: tuple[Use, ...]

    @property
    def levels(self) -> int:
        return self.last - self.first + 1

    @property
    def clipped(self) -> float:
        """The largest share of values cut off in a phase."""
        return max((u.below + u.above for u in self.uses), default=0.0)

    @property
    def used(self) -> float:
        """The largest share of codes used in a phase."""
        return max((u.used for u in self.uses), default=0.0)


@dataclass(frozen=True)
class Weights:
    """The quantized weight of one layer: levels it may take, share of them that occur, `granularity` in words."""

    layer: str
    levels: int
    used: float
    granularity: str


def is_quantize(node: fx.Node) -> bool:
    """Whether a node turns floats into integers."""
    return _decomposed(node, "quantize")


def _decomposed(node: Any, what: str) -> bool:
    target = getattr(node, "target", None)
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "quantized_decomposed":
        return False
    return target._opname.startswith(what)


def bits_text(levels: int) -> str:
    """`8` for 255 or 256 levels, `2` for 3 or 4."""
    return str(max(1, (levels - 1).bit_length()))


@dataclass
class _Seen:
    """Sums of one quantizer in one phase."""

    counts: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    below: int = 0
    above: int = 0
    values: int = 0
    frames: list[int] = field(default_factory=list)

    def use(self, first: int) -> Use:
        there = self.counts.nonzero().view(-1)
        assert self.low is not None and self.high is not None
        span = (self.high - self.low + 1).double() / len(self.counts)
        return Use(self.frames[0], self.frames[-1], int(there[0]) + first, int(there[-1]) + first,
                   _round(len(there) / len(self.counts)), _round(float(span.mean())), _round(self.below / self.values),
                   _round(self.above / self.values))  # fmt: skip


class RangeWatch:
    """Watches the inputs of every activation's quantizer while a program runs: `look` after `begin(frame)`."""

    def __init__(self, program: Program, links: Links):
        self.program, self.links = program, links
        self.readers: dict[str, list[fx.Node]] = {}
        for n in program.calls:
            if is_quantize(n) and isinstance(n.args[0], fx.Node):
                self.readers.setdefault(n.args[0].name, []).append(n)
        self.seen: dict[tuple[str, int], _Seen] = {}
        self.frame = 0

    def begin(self, frame: int) -> None:
        """What comes next is of this frame since reset."""
        self.frame = frame

    def look(self, node: fx.Node, value: Any) -> None:
        """Take in a node's value, if a quantizer reads it."""
        for q in self.readers.get(node.name, ()):
            self._take(q, value)

    def _take(self, q: fx.Node, value: Tensor) -> None:
        first, last = _codes(q)
        scale, zero, axis = _grid(self.program, q)
        shape = [-1 if d == axis else 1 for d in range(value.ndim)] if scale.numel() > 1 else [1] * value.ndim
        code = torch.round(value * (1.0 / scale.view(shape))) + zero.view(shape)
        key = (q.name, phase_of(self.frame))
        seen = self.seen.setdefault(key, _Seen(torch.zeros(last - first + 1, dtype=torch.int64)))
        seen.below += int((code < first).sum())
        seen.above += int((code > last).sum())
        seen.values += code.numel()
        kept = code.clamp(first, last) - first
        seen.counts += torch.bincount(kept.reshape(-1).to(torch.int64), minlength=last - first + 1)
        rows = kept.transpose(0, 1).reshape(kept.shape[1], -1) if kept.ndim > 1 else kept.view(1, -1)
        low, high = rows.amin(1), rows.amax(1)
        seen.low = low if seen.low is None else torch.minimum(seen.low, low)
        seen.high = high if seen.high is None else torch.maximum(seen.high, high)
        if self.frame not in seen.frames:
            seen.frames.append(self.frame)

    def quantizers(self) -> list[Quantizer]:
        """What was seen of every quantizer, in order."""
        found = []
        for readers in self.readers.values():
            for q in readers:
                uses = [self.seen[q.name, i] for i in range(len(PHASES)) if (q.name, i) in self.seen]
                if not uses:
                    continue
                first, last = _codes(q)
                scale, zero, _ = _grid(self.program, q)
                low, high = (first - zero) * scale, (last - zero) * scale
                found.append(Quantizer(q.name, str(q.args[0]), tuple(_fed(q, self.links)), first, last,
                                       _round(float(low.min())), _round(float(high.max())), scale.numel(),
                                       tuple(u.use(first) for u in uses)))  # fmt: skip
        return found


def _round(x: float) -> float:
    return float(f"{x:.5g}")


def _codes(q: fx.Node) -> tuple[int, int]:
    return int(argument(q, "quant_min")), int(argument(q, "quant_max"))


def _grid(program: Program, q: fx.Node) -> tuple[Tensor, Tensor, int]:
    """Scale f32 and zero point f32 of a quantizer (one value, or one a channel), and the channels' axis."""
    scale, zero = (
        argument(q, a) if argument(q, a) is not None else argument(q, a + "s") for a in ("scale", "zero_point")
    )
    values = []
    for x in (scale, zero):
        constant = program.constant(x) if isinstance(x, fx.Node) else torch.tensor([float(x)])
        assert constant is not None
        values.append(constant.float().reshape(-1))
    return values[0], values[1], int(argument(q, "axis", 1))


def _fed(q: fx.Node, links: Links) -> list[str]:
    """The layers that read a quantizer, through dequantize and operators that are no layers."""
    found, todo, seen = [], list(q.users), set()
    while todo:
        n = todo.pop(0)
        if n in seen or is_quantize(n):
            continue
        seen.add(n)
        if layer_kind(n):
            found.append(links[n.name].twin if n.name in links else n.name)
        else:
            todo += n.users
    return found


def weights_of(program: Program, links: Links) -> list[Weights]:
    """The quantized weights of a program whose layers read dequantized constants."""
    found = []
    for n in program.calls:
        if not layer_kind(n) or n.name not in links:
            continue
        for x in n.all_input_nodes:
            source = _dequantize(x)
            integers = program.constant(source.args[0]) if source is not None else None
            if source is None or integers is None:
                continue
            first, last = _codes(source)
            scales = program.constant(source.args[1])
            count = 1 if scales is None else scales.numel()
            what = "per tensor" if count == 1 else f"{count} scales, per output channel"
            if "group" in short_name(source.target):
                what = f"{count} scales, per group of {argument(source, 'group_size')}"
            used = len(torch.unique(integers)) / (last - first + 1)
            found.append(Weights(links[n.name].twin, last - first + 1, _round(used), what))
    return found


def _dequantize(node: fx.Node) -> fx.Node | None:
    """The dequantize of a constant behind a weight, through a product that undoes channel scales."""
    while isinstance(node, fx.Node) and not _decomposed(node, "dequantize"):
        calls = [a for a in node.all_input_nodes if a.op == "call_function"]
        if node.op != "call_function" or len(calls) != 1 or layer_kind(node):
            return None
        node = calls[0]
    return node

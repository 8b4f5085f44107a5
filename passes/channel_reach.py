"""How far each channel of a tensor reaches by the weights that make it, whatever clip is played.

Calibration sees some channels nearly silent that speak on other pictures. What a channel can hold shows in the
weights: a convolution's result spreads as the root of the sum of w^2. That tells a channel which is small by
construction from one that only was not heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from vqc.program import Program, shape_of

aten = torch.ops.aten

_KEEP = {  # results whose channels are those of their first argument
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "leaky_relu", "prelu", "hardswish", "silu", "gelu", "elu",
    "mean", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "upsample_bilinear2d", "upsample_nearest2d", "neg",
    "abs", "_adaptive_avg_pool2d", "mish", "softplus", "amax", "contiguous", "clone",
}  # fmt: skip


def reaches(program: Program, tensors: Sequence[Any]) -> dict[Any, torch.Tensor]:
    """The reach of every channel of these nodes (see `Reach`), all found before a pass changes the graph."""
    reach = Reach(program)
    return {x: reach(x) for x in tensors}


class Reach:
    """The reach of every channel (axis 1) of a Program's tensors: float64 [C], in units that only compare within one
    tensor. Where nothing is known all channels reach equally far."""

    def __init__(self, program: Program):
        self.program = program
        self._found: dict[fx.Node, torch.Tensor] = {}

    def __call__(self, x: fx.Node) -> torch.Tensor:
        todo = [x]
        while todo:
            n = todo[-1]
            missing = [a for a in self._sources(n) if a not in self._found]
            if missing and n not in self._found:
                todo += missing
                continue
            if n not in self._found:
                self._found[n] = self._of(n)
            todo.pop()
        return self._found[x]

    def _sources(self, n: fx.Node) -> list[fx.Node]:
        """The tensors from which the reach of `n` follows."""
        name = _name(n)
        if name == "cat":
            return list(n.args[0]) if _axis(n) == 1 else []
        if name in ("add", "sub", "mul", "div"):
            return [a for a in n.args[:2] if isinstance(a, fx.Node) and _channels(a) == _channels(n) is not None]
        if name == "conv2d" or name in _KEEP:
            return [n.args[0]]  # type: ignore[list-item]
        return []

    def _of(self, n: fx.Node) -> torch.Tensor:
        equal = torch.ones(_channels(n) or 1, dtype=torch.float64)
        name, parts = _name(n), [self._found[a] for a in self._sources(n)]
        if name == "cat" and parts:
            found = torch.cat(parts)
        elif name in ("add", "sub") and parts:
            found = torch.stack(parts).square().sum(0).sqrt()
        elif name in ("mul", "div") and parts:
            found = torch.stack(parts).prod(0) if name == "mul" else parts[0]
            factor = self.program.constant(n.args[1])
            if factor is not None and factor.numel() == len(equal) == factor.shape[-3 if factor.ndim > 2 else 0]:
                size = factor.double().abs().reshape(-1)
                found = found * size if name == "mul" else found / size.clamp_min(1e-30)
        elif name == "conv2d":
            found = self._conv(n, parts[0], equal)
        elif name in _KEEP:
            found = parts[0]
        else:
            return equal
        return found if found.shape == equal.shape else equal

    def _conv(self, n: fx.Node, source: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
        """Root of the sum of w^2, and the size of the bias. A depthwise layer hands on how far its channel reaches;
        where channels are summed, the weights have made up for that."""
        weight, bias = self.program.constant(n.args[1]), self.program.constant(n.args[2] if len(n.args) > 2 else None)
        groups = int(n.args[6]) if len(n.args) > 6 else 1
        if weight is None or weight.shape[0] != len(equal):
            return equal
        found = weight.double().square().sum((1, 2, 3)).sqrt()
        if groups == len(source) == len(equal):
            found = found * source / source.max().clamp_min(1e-30)
        if bias is not None:
            found = found + bias.double().abs()
        peak = float(found.max())
        return found / peak if peak > 0 else equal


def _name(n: fx.Node) -> str:
    packet = getattr(n.target, "_opname", "")
    return str(packet)


def _axis(n: fx.Node) -> Any:
    return n.args[1] if len(n.args) > 1 else 0


def _channels(n: fx.Node) -> int | None:
    value = n.meta.get("val")
    return shape_of(n)[1] if isinstance(value, torch.Tensor) and value.ndim >= 2 else None

"""What the tests of the door share: small networks, and an engine that counts instead of compiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.scan import scan

from vqc.door.binding import picker
from vqc.door.part import Engine, Part, Request
from vqc.door.report import PartReport


class Counting(Engine):
    """Runs bound graphs eagerly on private copies of their weights, as packed code would, and counts."""

    name = "counting"

    def __init__(self, sizes: int = 2) -> None:
        self.sizes = sizes  # type: ignore[misc]
        self.bound_count = 0
        self.generic_count = 0
        self.constants: list[list[str]] = []

    def bound(self, request: Request, report: PartReport) -> Callable[..., Any]:
        self.bound_count += 1
        gm, left = request.bind()
        pick = picker(left)
        self.constants.append([n for n, _ in gm.named_buffers()] + [n for n, _ in gm.named_parameters()])
        for holder in gm.modules():
            for name, p in list(holder._parameters.items()):
                setattr(holder, name, nn.Parameter(p.detach().clone()))
            for name, b in list(holder._buffers.items()):
                setattr(holder, name, b.detach().clone())
        return lambda *args: gm(*pick(args))

    def generic(self, gm: Any, args: Sequence[Any], dynamic: bool, why: str, report: PartReport) -> Any:
        self.generic_count += 1
        return gm


class CountingDoor:
    """A `torch.compile` backend made of Parts with a Counting engine."""

    def __init__(self, sizes: int = 2) -> None:
        self.engine = Counting(sizes)
        self.parts: list[Part] = []
        self.reports: list[PartReport] = []

    def __call__(self, gm: Any, example: Sequence[Any]) -> Part:
        report = PartReport(len(self.parts), "counting")
        part = Part(gm, example, self.engine, report)
        if not part.numbers:
            assert part.facts is not None
            assert not part.facts.unknown
            part.prepare(example)
        self.parts.append(part)
        self.reports.append(report)
        return part

    def notes(self) -> str:
        return "\n".join(n for r in self.reports for n in r.notes)


class Small(nn.Module):
    """conv, batch norm with statistics that matter, and a scale."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)
            self.bn.running_mean = torch.randn(4)
            self.bn.running_var = torch.rand(4) + 0.5
            self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x))) * self.scale


class Recurrent(nn.Module):
    """A cell whose hidden state is a buffer written in place."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3 + 4, 4, 3, padding=1)
        self.register_buffer("hidden", torch.zeros(1, 4, 8, 8))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.conv(torch.cat((x, self.hidden), 1)))
        self.hidden.copy_(h)
        return h * 2


class Scanning(nn.Module):
    """A gated cell carried over a clip [T, N, C, H, W] by scan."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 3, 3, padding=1)
        self.eval()

    def forward(self, clip):
        def cell(h, x):
            h = torch.tanh(self.conv(torch.cat((x, h), 1)))
            return h, h.clone()

        return scan(cell, torch.zeros_like(clip[0]), clip)[1]


def looped(model: Scanning, clip: torch.Tensor) -> torch.Tensor:
    h, out = torch.zeros_like(clip[0]), []
    for x in clip:
        h = torch.tanh(model.conv(torch.cat((x, h), 1)))
        out.append(h)
    return torch.stack(out)


def frames(count: int, size: int = 8, seed: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, size, size, generator=g) for _ in range(count)]

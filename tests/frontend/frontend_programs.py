"""Small networks, one for each reason why real video networks resist capture, and how each is to come out.

A way of writing a forward that breaks other tools: the network is built by `make`, run on `example`. `outcome` is
"captured", "assumed" (captured under a run-time check) or a piece of the CaptureError's text; `line` is then the
piece of the user's code the error has to show.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], tuple[Any, ...]]
    outcome: str = "captured"
    line: str = ""


class MirroredClip(nn.Module):
    """Data sets an attribute, and only when the clip's length is even."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 2, 3, padding=1)
        self.palindrome = False

    def look(self, clip: torch.Tensor) -> None:
        if clip.shape[1] % 2 == 0:
            first, second = clip.chunk(2, dim=1)
            if torch.norm(first - second.flip(1)) == 0:
                self.palindrome = True

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        self.look(clip)
        y = self.body(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
        return y * 2 + y.flip(1) if self.palindrome else y


class WindowMask(nn.Module):
    """A buffer that comes into being in the first forward and is compared as a number later."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        n = tokens.shape[1]
        if not hasattr(self, "count") or self.count.item() != n:
            self.register_buffer("count", torch.Tensor([n]))
            self.register_buffer("mask", (torch.arange(n) % 2).to(tokens.dtype)[None, :, None])
        return self.mix(tokens) * self.mask


BASE_GRIDS: dict[str, torch.Tensor] = {}


def warped(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    key = f"{flow.device} {flow.size()}"
    if key not in BASE_GRIDS:
        n, _, h, w = flow.shape
        xs = torch.linspace(-1, 1, w).view(1, 1, 1, w).expand(n, 1, h, w)
        ys = torch.linspace(-1, 1, h).view(1, 1, h, 1).expand(n, 1, h, w)
        BASE_GRIDS[key] = torch.cat([xs, ys], 1)
    where = (BASE_GRIDS[key] + flow).permute(0, 2, 3, 1)
    return F.grid_sample(image, where, padding_mode="border", align_corners=True)


class CachedGrid(nn.Module):
    """A dictionary of the module file keeps tensors from call to call."""

    def __init__(self) -> None:
        super().__init__()
        BASE_GRIDS.clear()
        self.flow = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return warped(x, self.flow(x))


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.rows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows = x.shape[0]
        return self.mix(x)


class Checkpointed(nn.Module):
    """Activation checkpointing left on, around a block that writes an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Remembering()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.block, x, use_reentrant=False)


class DeviceProbe(nn.Module):
    """Asks for devices in forward and moves its own buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = "mps" if torch.backends.mps.is_built() and torch.backends.mps.is_available() else "cpu"
        self.mean = self.mean.to(found)
        with torch.amp.autocast(device_type=found, enabled=False):
            return self.body(x.float() - self.mean)


class TokenStore:
    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def put(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.keys = key if self.keys is None else torch.cat([self.keys, key], 2)
        self.values = value if self.values is None else torch.cat([self.values, value], 2)

    def get(self, query: torch.Tensor) -> torch.Tensor:
        score = self.keys.transpose(1, 2) @ query
        best, place = score.topk(3, dim=1)
        weight = best.exp_()
        weight /= weight.sum(1, keepdim=True)
        return self.values @ torch.zeros_like(score).scatter_(1, place, weight)


class GrowingMemory(nn.Module):
    """A plain Python object grows with the clip and is read by top-k."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        store, results = TokenStore(), []
        for t, frame in enumerate(clip):
            feature = self.encode(frame[None]).flatten(2)
            result = feature if t == 0 else store.get(feature)
            if t % 2 == 0:
                store.put(feature, result)
            results.append(result)
        return torch.stack(results)


class ObjectId:
    def __init__(self, number: int):
        self.number = number

    def __hash__(self) -> int:
        return hash(self.number)

    def __eq__(self, other: object) -> bool:
        return self.number == (other if isinstance(other, int) else getattr(other, "number", None))


class HashedObjects(nn.Module):
    """Bookkeeping with the user's own hashable objects."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        book = {ObjectId(i): i for i in (3, 5)}
        return self.body(x) * (book[3] + book[5])


class CheckedConstants(nn.Module):
    """A library tests its own constants before it uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = torch.as_tensor([0.2, 0.3, 0.4], dtype=x.dtype, device=x.device)
        if (spread == 0).any():
            raise ValueError("a deviation is zero")
        return self.body(x / spread.view(-1, 1, 1))


class TwoRates(nn.Module):
    """Takes a list and overwrites its entries."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList([nn.Conv3d(3, 4, 1), nn.Conv3d(3, 2, 1)])
        self.join = nn.Conv3d(2, 2, (3, 1, 1), (2, 1, 1), (1, 0, 0))

    def forward(self, ways: list[torch.Tensor]) -> torch.Tensor:
        for i, stem in enumerate(self.stems):
            ways[i] = stem(ways[i])
        ways[0] = torch.cat([ways[0], self.join(ways[1])], 1)
        return torch.cat([w.mean((2, 3, 4)) for w in ways], 1)


class ClipGru(nn.Module):
    """The recurrence runs inside; every weight is used once for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Sigmoid())
        self.new = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, clip: torch.Tensor, h: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.zeros_like(clip[:, 0]) if h is None else h
        states = []
        for x in clip.unbind(1):
            r, z = self.gates(torch.cat([x, h], 1)).chunk(2, 1)
            h = (1 - z) * h + z * torch.tanh(self.new(torch.cat([x, r * h], 1)))
            states.append(h)
        return torch.stack(states, 1), h


class WorstPatches(nn.Module):
    """Refines as many patches as nonzero finds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        places = torch.nonzero(error > 0.5)
        b, r, c = places[:, 0], places[:, 2], places[:, 3]
        if len(b) > 0:
            patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)[b, r, c]
            y = x.view(x.shape[0], 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).clone()
            y[b, r, c] = self.body(patches)
            x = y.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
        return x


class NumpySizes(nn.Module):
    """Sizes that are NumPy integers."""

    def __init__(self) -> None:
        super().__init__()
        side = np.int64(np.ceil(8 / 4.0))
        self.body, self.pool = nn.Conv3d(3, 4, 3, (1, 4, 4), 1), nn.AvgPool3d([4, side, side], stride=1)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return self.pool(self.body(clip)).flatten(1)


class RawCopy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(x.shape)
        ctypes.memmove(out.data_ptr(), x.contiguous().data_ptr(), x.numel() * 4)
        return out


class RawExtension(nn.Module):
    """A compiled extension that gets raw pointers, without a registered operator."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(RawCopy.apply(self.mix(x)))


class FrozenGrid(nn.Module):
    """Sets requires_grad on a tensor it has made."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[2:]
        ys, xs = torch.meshgrid(torch.arange(h).type_as(x), torch.arange(w).type_as(x), indexing="ij")
        grid = torch.stack((xs, ys), 2).float()
        grid.requires_grad = False
        where = grid + self.flow(x).permute(0, 2, 3, 1)
        where = torch.stack((2 * where[..., 0] / (w - 1) - 1, 2 * where[..., 1] / (h - 1) - 1), 3)
        return F.grid_sample(x, where, padding_mode="border", align_corners=True)


class ChosenTokens(nn.Module):
    """The data says how many tokens are computed anew."""

    def __init__(self) -> None:
        super().__init__()
        self.judge, self.mix = nn.Linear(4, 1), nn.Linear(4, 4)

    def forward(self, now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        score = (torch.sigmoid(self.judge((now - before).abs())) >= 0.5).float().flatten()
        many = int(score.sum())
        order = score.argsort(descending=True)
        out = torch.zeros_like(now)
        out[order[:many]] = self.mix(now[order[:many]])
        out[order[many:]] = before[order[many:]]
        return out


class Warns(nn.Module):
    """Looks at the data only to complain."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.body = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        offset = self.offset(x)
        if offset.abs().mean() > 50:
            warnings.warn(f"offsets of {offset.abs().mean():.1f}")
        return self.body(x) * torch.sigmoid(offset[:, :1])


def r(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


CASES = [
    Case("mirror_odd", MirroredClip, lambda: (r(1, 3, 2, 8, 8),)),
    Case("mirror_even", MirroredClip, lambda: (r(1, 4, 2, 8, 8),), "assumed", "== 0"),
    Case("window_mask", WindowMask, lambda: (r(1, 6, 4),)),
    Case("cached_grid", CachedGrid, lambda: (r(1, 3, 8, 8),)),
    Case("checkpointed", Checkpointed, lambda: (r(2, 4),)),
    Case("device_probe", DeviceProbe, lambda: (r(1, 3, 4, 4),)),
    Case("growing_memory", GrowingMemory, lambda: (r(5, 3, 8, 8),)),
    Case("hashed_objects", HashedObjects, lambda: (r(1, 3, 4, 4),)),
    Case("checked_constants", CheckedConstants, lambda: (r(1, 3, 8, 8),)),
    Case("two_rates", TwoRates, lambda: ([r(1, 3, 2, 8, 8), r(1, 3, 4, 8, 8)],)),
    Case("clip_gru", ClipGru, lambda: (r(1, 3, 3, 8, 8),)),
    Case(
        "worst_patches", WorstPatches, lambda: (r(1, 3, 16, 16), r(1, 1, 4, 4)), "nonzero", "torch.nonzero(error > 0.5)"
    ),
    Case("numpy_sizes", NumpySizes, lambda: (r(1, 3, 4, 8, 8),)),
    Case("raw_extension", RawExtension, lambda: (r(2, 4),), "data_ptr()", "ctypes.memmove"),
    Case("frozen_grid", FrozenGrid, lambda: (r(1, 3, 8, 8),)),
    Case("chosen_tokens", ChosenTokens, lambda: (r(8, 4), r(8, 4) * 0.5), "item()", "many = int(score.sum())"),
    Case("warns", Warns, lambda: (r(1, 4, 8, 8),)),
]

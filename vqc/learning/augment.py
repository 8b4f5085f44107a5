"""Clips that carry further: turned, zoomed, recoloured, over other backgrounds. The truth is what the teacher says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqc.program import Program, evaluate, shape_of
from vqc.video.sheets import drawn_background

Steps = Sequence[Sequence[Tensor]]


def pictures(program: Program) -> list[int]:
    """Which inputs are pictures: float32 [1,3,H,W]."""
    return [i for i, x in enumerate(program.inputs)
            if len(x.shape) == 4 and x.shape[:2] == (1, 3) and x.dtype == torch.float32]  # fmt: skip


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def moved(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames [T,3,H,W] of one clip, mirrored by chance, zoomed, turned and shifted a little, drifting on the way."""
    count, _, height, width = frames.shape
    flip = -1.0 if _uniform(generator, 0, 1) < 0.5 else 1.0
    zoom = math.exp(_uniform(generator, math.log(0.55), math.log(1.35)))  # below 1: nearer
    angle = math.radians(_uniform(generator, -12, 12))
    room = max(0.15, abs(1 - zoom))
    x, y = (_uniform(generator, -room, room) for _ in range(2))
    drift = [_uniform(generator, -0.01, 0.01) for _ in range(4)]
    maps = []
    for t in range(count):
        z, a = zoom * (1 + drift[0] * t), angle + drift[1] * t
        ratio = width / height
        maps.append([[flip * z * math.cos(a), -z * math.sin(a) / ratio, x + drift[2] * t],
                     [flip * z * math.sin(a) * ratio, z * math.cos(a), y + drift[3] * t]])  # fmt: skip
    grid = F.affine_grid(torch.tensor(maps), list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, padding_mode="reflection", align_corners=False)


def recoloured(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames [T,3,H,W] in [0,1] under other light: gains of channels, saturation, contrast, gamma; by chance grey."""
    gains = torch.tensor([_uniform(generator, 0.75, 1.3) for _ in range(3)]).view(3, 1, 1)
    grey = frames.mean(1, keepdim=True)
    saturation = _uniform(generator, 0.3, 1.5) if _uniform(generator, 0, 1) > 0.08 else 0.0
    frames = grey + (frames - grey) * saturation
    frames = frames * gains
    middle = frames.mean()
    frames = middle + (frames - middle) * _uniform(generator, 0.65, 1.35) + _uniform(generator, -0.12, 0.12)
    frames = frames.clamp(0, 1) ** math.exp(_uniform(generator, -0.45, 0.45))
    noise = _uniform(generator, 0, 0.02)
    return (frames + noise * torch.randn(frames.shape, generator=generator)).clamp(0, 1)


def background(count: int, size: tuple[int, int], others: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """[T,3,H,W]: a drawn background that is panned, or frames of another clip, zoomed into and recoloured."""
    if others and _uniform(generator, 0, 1) < 0.5:
        frames = others[int(torch.randint(len(others), (), generator=generator))]
        frames = frames[:1].expand(count, -1, -1, -1)
        return recoloured(moved(moved(frames, generator), generator), generator)
    height, width = size[0] + size[0] // 5, size[1] + size[1] // 5
    sheet = drawn_background((height, width), int(torch.randint(1 << 30, (), generator=generator)))
    rows, columns = height - size[0], width - size[1]
    paths = [torch.linspace(_uniform(generator, 0, n), _uniform(generator, 0, n), count).round().int().tolist()
             for n in (rows, columns)]  # fmt: skip
    return torch.stack([sheet[:, r : r + size[0], c : c + size[1]] for r, c in zip(*paths, strict=True)])


class Augmented:
    """Clips of `length` steps out of the ones that are learned from; number j of a seed is always the same.

    With `change` its pictures are moved and recoloured, a share `swap` of the clips as a cut-out by the twin over
    another background, and half of the clips run backwards. Otherwise they are as they are.
    """

    def __init__(self, twin: Program, clips: Sequence[Steps], length: int, seed: int, change: bool, swap: float):
        self.twin, self.length, self.seed, self.swap = twin, length, seed, swap
        self.clips = [c for c in clips if len(c)]
        self.pictures = pictures(twin) if change else []

    def steps(self, number: int) -> Steps:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        clip = self.clips[int(torch.randint(len(self.clips), (), generator=generator))]
        count = min(self.length, len(clip))
        start = int(torch.randint(len(clip) - count + 1, (), generator=generator))
        taken = [list(s) for s in clip[start : start + count]]
        if not self.pictures:
            return taken
        if float(torch.rand((), generator=generator)) < 0.5:
            taken.reverse()
        look = int(torch.randint(1 << 40, (), generator=generator))
        swapped = None
        if float(torch.rand((), generator=generator)) < self.swap:
            swapped = self._cut_out(taken)
        for i in self.pictures:
            same = torch.Generator().manual_seed(look)  # every picture of a step is moved alike
            frames = torch.cat([s[i] for s in taken])
            if swapped is not None:
                fore, alpha = swapped
                layers = moved(torch.cat((recoloured(fore, same), alpha), 1), same)
                fore, alpha = layers[:, :3], layers[:, 3:]
                others = [c[0][i] for c in self.clips]
                frames = fore * alpha + background(count, frames.shape[-2:], others, same) * (1 - alpha)
                frames = frames.clamp(0, 1)
            else:
                frames = recoloured(moved(frames, same), same)
            for t, step in enumerate(taken):
                step[i] = frames[t : t + 1]
        return taken

    @torch.no_grad()
    def _cut_out(self, steps: Steps) -> tuple[Tensor, Tensor] | None:
        """(colours, matte) of the person the twin sees; None where it gives no such results, or sees nobody."""
        twin = self.twin
        shapes = [tuple(shape_of(n)) for n in twin.result_nodes[: len(twin.outputs)]]
        frame = tuple(twin.inputs[self.pictures[0]].shape)
        try:
            fore, matte = shapes.index(frame), shapes.index((1, 1, *frame[2:]))
        except ValueError:
            return None
        state, colours, mattes = twin.initial_state(), [], []
        for step in steps:
            out = evaluate(twin, step, state)
            state = [out[s.output] for s in twin.states]
            colours.append(out[fore])
            mattes.append(out[matte])
        alpha = torch.cat(mattes)
        return (torch.cat(colours), alpha) if float(alpha.mean()) > 0.02 else None

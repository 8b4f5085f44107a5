"""Pictures drawn by a seed: a head and shoulders with strands of hair and an exact alpha, and a background."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .flow import pixels


def drawn_portrait(size: tuple[int, int], seed: int) -> Tensor:
    """Head, shoulders and hair as a cut-out float32 [4,H,W] in [0,1]: RGB, not multiplied by alpha, then alpha.

    The head is in the upper half; the body reaches the lower edge. Edges are soft over one to four pixels and strands
    of hair stand out half transparent. The same seed gives the same bits.
    """
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    at = pixels(size, like=torch.zeros(()))[0]
    unit = width / 512  # of the shapes below, drawn for a frame of 288x512
    x, y = (at[0] - width / 2) / unit, at[1] / unit

    def rand(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def ellipse(cx: float, cy: float, rx: float, ry: float, soft: float) -> Tensor:
        """1 inside, 0 outside, with an edge of about `soft` pixels."""
        radius = (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2).sqrt()
        return torch.sigmoid((1 - radius) * min(rx, ry) * unit * 4 / soft)

    def paint(colour: tuple[float, ...], cover: Tensor) -> None:
        picture.lerp_(torch.tensor(colour).view(3, 1, 1), cover[None])

    def tone(*base: float) -> tuple[float, ...]:
        return tuple(min(max(b + rand(-0.08, 0.08), 0.03), 0.95) for b in base)

    top = rand(48, 60)
    head_x, head_y, head_r = rand(-12, 12), top + 66, rand(44, 52)
    cloth, skin, hair = tone(0.35, 0.3, 0.45), tone(0.8, 0.6, 0.5), tone(0.22, 0.15, 0.1)
    picture = torch.tensor(hair).view(3, 1, 1).expand(3, height, width).clone()
    shoulders = torch.maximum(ellipse(0, 370, 165, 205, 2.5), ellipse(0, 520, 190, 300, 2.5))
    neck = ellipse(head_x * 0.6, head_y + 66, 27, 62, 2)
    face = ellipse(head_x, head_y, head_r, head_r * 1.28, 1.5)
    cap = ellipse(head_x, head_y - 14, head_r * 1.22, head_r * 1.34, 4)
    fringe = ellipse(head_x + rand(-8, 8), head_y - 52, head_r * 1.05, head_r * 0.62, 3)
    paint(cloth, shoulders)
    stripes = 0.5 + 0.5 * torch.sin((x * rand(-0.4, 0.4) + y) * rand(0.15, 0.3))
    picture *= 1 + 0.25 * (stripes - 0.5) * shoulders
    paint(tuple(0.85 * c for c in skin), neck)
    paint(skin, face)
    picture *= 1 + 0.18 * ((x - head_x) / head_r).clamp(-1, 1) * face  # light from one side
    for side in (-1, 1):
        paint((0.95, 0.95, 0.93), ellipse(head_x + side * 18, head_y - 6, 9, 5, 1.5))
        paint(tone(0.2, 0.2, 0.2), ellipse(head_x + side * 18, head_y - 6, 4, 4.5, 1.5))
        paint(hair, ellipse(head_x + side * 19, head_y - 19, 12, 2.5, 1.5))
    paint(tuple(0.75 * c for c in skin), ellipse(head_x + 2, head_y + 12, 6, 12, 4))
    paint(tone(0.65, 0.25, 0.28), ellipse(head_x, head_y + 36, 17, 5, 2))
    paint(hair, fringe)
    strands = _strands((height, width), generator, head_x * unit + width / 2, (head_y - 14) * unit,
                       head_r * 1.2 * unit, unit)  # fmt: skip
    paint(hair, strands * (1 - torch.maximum(face, shoulders)))
    picture *= 1 + 0.07 * smooth_noise((1, height, width), generator, 3.0 * unit)
    alpha = torch.maximum(torch.maximum(shoulders, neck), torch.maximum(face, cap))
    alpha = 1 - (1 - alpha) * (1 - strands)
    # Beyond six pixels the tails of the soft edges are nobody.
    return torch.cat((picture.clamp(0, 1), ((alpha - 0.004) / 0.992).clamp(0, 1)[None]))


def _strands(size: tuple[int, int], generator: torch.Generator, cx: float, cy: float, radius: float, unit: float
             ) -> Tensor:  # fmt: skip
    """How opaque hair is that stands out of a circle: thin bent lines that fade towards their tips, [H,W]."""
    height, width = size
    clear = torch.ones(size)
    for _ in range(70):
        where, bend, length, thick, dense = torch.rand(5, generator=generator).tolist()
        angle = math.pi * (1.1 * where + 0.95)  # the upper half and a little more
        steps = torch.arange(0, (12 + 22 * length) * unit, 1.0)
        turn = angle + (bend - 0.5) * 1.6 * steps / (34 * unit)
        px = cx + radius * 0.96 * math.cos(angle) + torch.cumsum(torch.cos(turn), 0)
        py = cy + radius * 1.08 * math.sin(angle) + torch.cumsum(torch.sin(turn), 0)
        fade = (1 - steps / steps[-1].clamp_min(1)) * (0.45 + 0.5 * dense)
        low_x, low_y = max(int(px.min()) - 4, 0), max(int(py.min()) - 4, 0)
        high_x, high_y = min(int(px.max()) + 5, width), min(int(py.max()) + 5, height)
        if low_x >= high_x or low_y >= high_y:
            continue
        gx = torch.arange(low_x, high_x)[None, :, None] - px
        gy = torch.arange(low_y, high_y)[:, None, None] - py
        spread = (0.7 + 0.5 * thick) * max(unit, 0.7)
        cover = (torch.exp(-(gx.square() + gy.square()) / (2 * spread**2)) * fade).amax(-1)
        clear[low_y:high_y, low_x:high_x] *= 1 - cover
    return 1 - clear


def drawn_background(size: tuple[int, int], seed: int) -> Tensor:
    """A textured background without people, float32 [3,H,W] in [0,1]; the same seed gives the same bits."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    at = pixels(size, like=torch.zeros(()))[0]
    picture = torch.rand(3, 1, 1, generator=generator) * 0.4 + 0.25
    picture = picture + 0.18 * smooth_noise((3, height, width), generator, height / 6)
    for _ in range(14):
        where = torch.rand(2, 1, 1, generator=generator) * torch.tensor([width, height]).view(2, 1, 1)
        reach = (0.05 + 0.15 * torch.rand(2, 1, 1, generator=generator)) * height
        box = torch.sigmoid((1 - ((at - where) / reach).abs().amax(0)) * float(reach.min()) * 2)
        picture = picture.lerp(torch.rand(3, 1, 1, generator=generator) * 0.7 + 0.1, 0.8 * box[None])
    return (picture + 0.05 * smooth_noise((1, height, width), generator, 3.0)).clamp(0, 1)


def smooth_noise(shape: tuple[int, int, int], generator: torch.Generator, length: float) -> Tensor:
    """Noise [C,H,W] of mean 0 and deviation 1 whose bumps are about `length` pixels wide (Gaussian spectrum)."""
    noise = torch.randn(shape, generator=generator)
    fy, fx = torch.fft.fftfreq(shape[1])[:, None], torch.fft.rfftfreq(shape[2])[None]
    bell = torch.exp(-2 * (math.pi * length / 2) ** 2 * (fx.square() + fy.square()))
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) * bell, s=shape[1:])
    return (smooth - smooth.mean((1, 2), keepdim=True)) / smooth.std((1, 2), keepdim=True)

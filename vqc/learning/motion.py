"""How pictures move between the steps of calibration clips, and what flickers against it (PTQ4VM's flow assistance)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vqc.calibration import Clips
from vqc.errors import PipelineError
from vqc.learning.labels import Labels, Motion
from vqc.learning.store import Store
from vqc.program import Program
from vqc.video.flow import DenseFlow, Flow, consistent, flow_source, warp

Target = Literal["twin", "absolute"]
FLOWS = ("none", "still", "dense", "rife")


def flow_named(name: str) -> Flow | None:
    """The source of flow of an option: "none", "still" (nothing moves), "dense" (classical, at half size), "rife"
    (fetches weights)."""
    if name == "still":
        return _still
    if name == "dense":
        return DenseFlow(finest=1)  # a fifth of the time of full size, and a flow as good for a loss
    return None if name == "none" else flow_source(name)


def _still(a: Tensor, b: Tensor) -> Tensor:
    """No motion: pictures [N,3,H,W] -> [N,2,H,W] of zeros."""
    return a.new_zeros((a.shape[0], 2, *a.shape[-2:]))


class Motions:
    """The motion from each step of the clips to the next: that of the labels where it is given, else a flow's.

    A flow is taken once for a pair of frames, of the first input that is a picture, and kept in `store`; pixels that
    the next frame hides, or that leave it, do not count. Raises PipelineError when a flow is asked for and no input is
    a picture [N,3,H,W].
    """

    def __init__(self, program: Program, clips: Clips, labels: Labels, flow: Flow | None, store: Store):
        self.clips, self.labels, self.flow, self.store = clips, labels, flow, store
        pictures = [i for i, x in enumerate(program.inputs)
                    if len(x.shape) == 4 and x.shape[1] == 3 and x.dtype.is_floating_point]  # fmt: skip
        self.picture = pictures[0] if pictures else -1
        if flow is not None and not pictures:
            raise PipelineError(f"program {program.name} has no picture to take the flow of",
                                why="no input is a float tensor [N,3,H,W]",
                                way_out="use flow=none, or give the motion with the labels")  # fmt: skip

    @property
    def known(self) -> bool:
        """Whether any motion may be known."""
        return self.flow is not None or bool(self.labels.motion)

    def at(self, clip: int, t: int) -> Motion | None:
        """(flow, valid) from step t to t + 1 of a clip, None where it is not known or there is no next step."""
        given = self.labels.moved(clip, t) if t + 1 < len(self.clips.clips[clip]) else None
        if given is not None or self.flow is None or t + 1 >= len(self.clips.clips[clip]):
            return given
        key = ("motion", clip, t)
        if key not in self.store:
            a, b = (self.clips.clips[clip][s][self.picture] for s in (t, t + 1))
            with torch.no_grad():
                forward = self.flow(a, b)
                self.store.put(key, (forward, consistent(forward, self.flow(b, a))))
        flow, valid = self.store.get(key)
        return flow, valid


def flicker(now: Tensor, then: Tensor, motion: Motion) -> Tensor:
    """Mean over pixels that stay visible of |now(p) - then(p + F(p))|: `now`, `then` [N,C,H,W] of neighbouring steps.

    A motion of other size than the pictures is scaled to them. Given two results it is the loss of the paper; given the
    errors of two results it is the change of an error, which is zero where the twin itself changes.
    """
    flow, valid = _fitted(motion, (now.shape[-2], now.shape[-1]))
    return ((now - warp(then, flow)).abs() * valid).sum() / (valid.sum() * now.shape[1]).clamp_min(1)


def _fitted(motion: Motion, size: tuple[int, int]) -> Motion:
    flow, valid = motion
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow, valid
    factor = flow.new_tensor([size[1] / width, size[0] / height]).view(1, 2, 1, 1)
    flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * factor
    return flow, F.interpolate(valid.float(), size=size, mode="nearest") > 0

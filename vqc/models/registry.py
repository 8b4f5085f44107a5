"""The networks vqc ships, and how a clip becomes their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import InputError
from ._assets import RIFE_LICENCE, RVM_LICENCE, SRVGG_LICENCE
from ._bivm_weights import BIVM_LICENCE, load_bivm
from ._rvm_weights import load_rvm
from .rife import load_rife
from .srvgg import load_srvgg


@dataclass(frozen=True)
class ModelEntry:
    """One network of the registry.

    name            the key it is found under
    kind            "matting", "interpolation" or "super-resolution"
    load            () -> the network in eval mode with trained weights (fetched; may raise ArtifactError)
    licence         of the weights
    example         (height, width) -> the tensors of one step, without states; float32 in [0,1], seeded
    outputs         names of the output leaves, in order
    picture         index of the output that is judged as a picture (for matting: alpha)
    inputs          names of the forward arguments that `example` gives: pictures in [0,1]
    states          forward argument -> index of the output leaf that is its next value; empty without recurrence
    state_range     open interval no state value leaves, by mathematics; None without recurrence
    multiple        sides of the frames must be multiples of this
    reach           a step at frame t looks at frames t .. t + reach
    target_offset   the true picture of step t is frame t + target_offset of the clip; None if a clip holds none
    """

    name: str
    kind: str
    load: Callable[..., nn.Module]
    licence: str
    example: Callable[[int, int], tuple[Tensor, ...]]
    outputs: tuple[str, ...]
    picture: int
    inputs: tuple[str, ...]
    states: dict[str, int] = field(default_factory=dict)
    state_range: tuple[float, float] | None = None
    multiple: int = 1
    reach: int = 0
    target_offset: int | None = None

    @property
    def known_ranges(self) -> dict[str, tuple[float, float]]:
        """What `vqc.capture` should know of the inputs: pictures lie in [0, 1]."""
        return dict.fromkeys(self.inputs, (0.0, 1.0))

    def steps(self, clip: Tensor) -> int:
        """How many steps a clip [T,3,H,W] has inputs for."""
        return max(0, clip.shape[0] - self.reach)

    def step_inputs(self, clip: Tensor, step: int) -> tuple[Tensor, ...]:
        """The inputs of one step out of a clip [T,3,H,W] in [0,1]: tensors [1,3,H,W], without states.

        Matting and super-resolution see frame `step`; interpolation sees frames `step` and `step + 2`.
        Raises InputError if the clip is no such tensor or has no such step.
        """
        if clip.ndim != 4 or clip.shape[1] != 3:
            raise InputError(
                f"a clip of shape {tuple(clip.shape)}", why="expected [T,3,H,W]", way_out="index or permute it"
            )
        if not 0 <= step < self.steps(clip):
            raise InputError(
                f"step {step} of {self.name}",
                why=f"a clip of {clip.shape[0]} frames has {self.steps(clip)} steps",
                way_out="read a longer clip",
            )
        picked = (step,) if self.reach == 0 else (step, step + self.reach)
        return tuple(clip[index : index + 1] for index in picked)

    def target(self, clip: Tensor, step: int) -> Tensor | None:
        """The true picture [1,3,H,W] of one step where the clip holds it (interpolation: the frame left out)."""
        if self.target_offset is None:
            return None
        index = step + self.target_offset
        return clip[index : index + 1]


def _noise(height: int, width: int, count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(1, 3, height, width, generator=generator) for _ in range(count))


def _one(height: int = 288, width: int = 512) -> tuple[Tensor, ...]:
    return _noise(height, width, 1)


def _two(height: int = 288, width: int = 512) -> tuple[Tensor, ...]:
    return _noise(height, width, 2)


_MATTING = ("fgr", "pha", "r1", "r2", "r3", "r4")
_STATES = {"r1": 2, "r2": 3, "r3": 4, "r4": 5}


def _matting(name: str, load: Callable[..., nn.Module], licence: str) -> ModelEntry:
    """A network with the interface of RVM."""
    return ModelEntry(name=name, kind="matting", load=load, licence=licence, example=_one, outputs=_MATTING, picture=1,
                      inputs=("src",), states=_STATES, state_range=(-1.0, 1.0))  # fmt: skip


_ALL = (
    _matting("bivm", load_bivm, BIVM_LICENCE),
    _matting("rvm", load_rvm, RVM_LICENCE),
    ModelEntry(
        name="rife",
        kind="interpolation",
        load=load_rife,
        licence=RIFE_LICENCE,
        example=_two,
        outputs=("middle",),
        picture=0,
        inputs=("img0", "img1"),
        multiple=32,
        reach=2,
        target_offset=1,
    ),
    ModelEntry(
        name="srvgg",
        kind="super-resolution",
        load=load_srvgg,
        licence=SRVGG_LICENCE,
        example=_one,
        outputs=("large",),
        picture=0,
        inputs=("x",),
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ALL}

"""Schedules of training: the published four stages, and ones that fit two cores.

Sources: RVM (Lin et al., WACV 2022) and BiVM (TPAMI 2025). Published stages are epochs over VideoMatte240K, D646 and
AIM, which nobody may pass on; here they are steps over clips made on the fly. What differs besides: no segmentation
steps in between, and stages 3 and 4 alternate long low clips and short high ones as stages of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import TrainingError
from .loop import Schedule


@dataclass(frozen=True)
class Preset:
    """Stages by name. `about`: what machine they are for."""

    name: str
    about: str
    stages: tuple[Schedule, ...]


def _full() -> tuple[Schedule, ...]:
    low = {"batch": 4, "size": (384, 384), "amp": True, "last_rate": 1.0}
    high = {"batch": 1, "frames": 6, "window": 6, "size": (1024, 1536), "refine": 0.25, "amp": True, "last_rate": 1.0}
    return (
        # From nothing: what 200 epochs of ImageNet are for in the paper.
        Schedule("0", 40_000, batch=8, frames=8, window=8, size=(224, 320), amp=True, mimic=1e-4),
        Schedule("1", 60_000, frames=15, window=15, backbone_rate=1e-4, decoder_rate=2e-4, mimic=1e-4, **low),
        Schedule("2", 6_000, frames=50, window=10, backbone_rate=5e-5, decoder_rate=1e-4, **low),
        Schedule("3-low", 3_000, frames=40, window=10, backbone_rate=1e-5, decoder_rate=1e-5, **low),
        Schedule("3-high", 3_000, backbone_rate=1e-5, decoder_rate=1e-5, refiner_rate=2e-4, **high),
        Schedule("4-low", 10_000, frames=40, window=10, backbone_rate=1e-5, decoder_rate=5e-5, **low),
        Schedule("4-high", 10_000, backbone_rate=1e-5, decoder_rate=5e-5, refiner_rate=2e-4, **high),
    )


def _small() -> tuple[Schedule, ...]:
    def stage(name: str, steps: int, rate: float, **rest: Any) -> Schedule:
        return Schedule(name, steps, **{"backbone_rate": rate, "decoder_rate": rate, "amp": True} | rest)

    one = {"frames": 1, "window": 1}
    return (
        # Single pictures, eight different ones a step; then with a state; then at the size of use.
        stage("0", 1000, 2e-3, batch=8, size=(128, 208), last_rate=0.3, **one),
        stage("1", 1500, 2e-3, batch=8, size=(128, 208), last_rate=0.2, **one),
        stage("2", 700, 1e-3, batch=6, burn_in=6, size=(160, 256), last_rate=0.3, **one),
        stage("3", 420, 6e-4, batch=3, burn_in=3, size=(288, 512), last_rate=0.1, **one),
        stage("4", 300, 3e-4, batch=2, frames=2, window=2, burn_in=3, size=(288, 512), last_rate=0.05, statistics=48),
        stage("5", 80, 0.0, batch=2, size=(288, 512), refine=0.5, refiner_rate=2e-3, **one),
    )


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset("full", "a GPU, days", _full()),
        Preset("small", "two cores, two to three hours", _small()),
        Preset("tiny", "seconds, to see that it runs", (
            Schedule("1", 4, batch=1, frames=4, window=2, size=(64, 96)),
        )),
    )
}  # fmt: skip


def preset(name: str) -> Preset:
    """A preset by name. Raises TrainingError for an unknown one."""
    if name not in PRESETS:
        raise TrainingError(f"unknown preset {name!r}", way_out="one of " + ", ".join(PRESETS))
    return PRESETS[name]

"""Schedules of training: the published four stages, and ones that fit two cores.

Sources: RVM (Lin et al., WACV 2022) and BiVM (TPAMI 2025). Published stages are epochs over VideoMatte240K, D646 and
AIM, which nobody may pass on; here they are steps over clips made on the fly. What differs besides: no segmentation
steps in between, and stages 3 and 4 alternate long low clips and short high ones as stages of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

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


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset("full", "a GPU, days", _full()),
        Preset("small", "two cores, about an hour and a half", (
            Schedule("1", 2600, batch=2, frames=8, window=4, size=(128, 208), backbone_rate=2e-3, decoder_rate=2e-3,
                     amp=True),
            Schedule("2", 300, batch=1, frames=12, window=6, size=(224, 384), backbone_rate=3e-4, decoder_rate=3e-4,
                     amp=True),
            Schedule("3", 60, batch=1, frames=4, window=4, size=(288, 512), backbone_rate=0.0, decoder_rate=0.0,
                     refiner_rate=2e-3, refine=0.5, amp=True),
        )),
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

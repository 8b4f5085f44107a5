"""Reading clips: any file that FFmpeg, through PyAV, can decode.

Pixels are converted to RGB by FFmpeg's scaler (which follows the colour matrix the file states, BT.601 where it states
none). Frames come in the order of display; a rotation tag is not applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import VideoError


def import_av() -> Any:
    """The PyAV module. Raises VideoError where it is not installed: it is an extra."""
    try:
        import av
    except ImportError as error:
        raise VideoError(
            "reading and writing video needs PyAV", why=str(error), way_out="pip install vqc[video]"
        ) from error
    return av


def iter_frames(path: str | Path, size: tuple[int, int] | None = None, start: int = 0) -> Iterator[Tensor]:
    """The frames of a clip from index `start` on, one at a time: each float32 [3,H,W], RGB in [0,1].

    `size` (H, W) resizes by bilinear interpolation with antialiasing. Frames before `start` are decoded and dropped, so
    an index always means the same picture.
    Raises VideoError if the file is missing, empty, has no video, or breaks off in an undecodable place.
    """
    for frame in islice(_decode(path), start, None):
        picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).float() / 255
        yield picture if size is None else resize(picture, size)


def read_clip(
    path: str | Path, frames: int | None = None, size: tuple[int, int] | None = None, start: int = 0
) -> Tensor:
    """A clip as one tensor: float32 [T,3,H,W], RGB in [0,1].

    `frames` frames from index `start` on, or as many as there are; `size` as for `iter_frames`.
    Raises VideoError as `iter_frames` does, if the clip has fewer than `frames` frames from there, or none at all.
    """
    if frames is not None and frames < 1:
        raise VideoError(f"{frames} frames were asked for", where=str(path), way_out="ask for one or more, or for None")
    found = list(islice(iter_frames(path, size, start), frames))
    if not found or (frames is not None and len(found) < frames):
        raise too_short(path, frames or 0, start, len(found), "ask for fewer frames or an earlier start")
    return torch.stack(found)


def too_short(path: str | Path, frames: int, start: int, found: int, way_out: str) -> VideoError:
    """The error for a clip that has `found` frames from index `start` on, fewer than the `frames` wanted (0: any)."""
    return VideoError(
        "the clip is too short",
        where=str(path),
        why=f"{frames or 'some'} frames from index {start} on were asked for, {found} are there",
        way_out=way_out,
    )


def frame_rate(path: str | Path) -> float:
    """Frames a second, as the file states it. Raises VideoError if it cannot be opened or states none."""
    av = import_av()
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate
    except (av.FFmpegError, OSError, IndexError) as error:
        raise _unreadable(path, error) from error
    if not rate:
        raise VideoError("the clip states no frame rate", where=str(path), way_out="give one by hand")
    return float(rate)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`images` [...,C,H,W] brought to `size` (H, W): bilinear, antialiased, corners not aligned."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    out = F.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return out.reshape(*images.shape[:-2], *size)


def _decode(path: str | Path) -> Iterator[Any]:
    av = import_av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("the file has no video", where=str(path), way_out="give a video file")
            seen = False
            for frame in container.decode(container.streams.video[0]):
                seen = True
                yield frame
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from error
    if not seen:
        raise VideoError("the clip has no frames", where=str(path), way_out="give a clip that decodes")


def _unreadable(path: str | Path, error: Exception) -> VideoError:
    why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
    return VideoError(
        "the clip cannot be read", where=str(path), why=why, way_out="give a video file that FFmpeg decodes"
    )

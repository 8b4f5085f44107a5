"""Writing clips."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import VideoError
from ._files import written_beside
from .read import import_av

_CODECS = ("libx264", "h264", "mpeg4")


def write_video(path: str | Path, frames: Iterable[Tensor], fps: float) -> Path:
    """Write frames ([3,H,W] or, gray, [1,H,W] each: float in [0,1], or uint8) as a video; gives back its path.

    H.264 where this FFmpeg can encode it, MPEG-4 part 2 otherwise; the container follows the file's suffix. 4:2:0 needs
    even sides: an odd one gets its last row or column twice. `frames` may be a tensor [T,C,H,W] or a generator. The
    file appears only when it is complete.
    Raises VideoError if there are no frames, they change size, or the file cannot be written.
    """
    av = import_av()
    if not 0 < fps < math.inf:
        raise VideoError(
            f"a clip of {fps} frames a second cannot be written", where=str(path), why="fps must be above 0"
        )
    with written_beside(path) as beside:
        try:
            container = av.open(str(beside), "w", options={"fflags": "+bitexact"})  # no dates, no random numbers
        except (av.FFmpegError, ValueError) as error:  # ValueError: no container goes by this suffix
            raise _unwritable(path, error) from error
        try:
            with container:
                _encode(av, container, frames, fps, path)
        except av.FFmpegError as error:
            raise _unwritable(path, error) from error
    return Path(path)


def to_bytes(image: Tensor) -> Tensor:
    """A picture [1 or 3,H,W], float in [0,1] (clamped, rounded to nearest) or uint8 -> uint8 [H,W,3] on the CPU."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise VideoError(
            f"a tensor of shape {tuple(image.shape)} is no picture",
            why="expected [3,H,W] or [1,H,W]",
            way_out="index it",
        )
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return image.expand(3, -1, -1).permute(1, 2, 0)


def _encode(av: Any, container: Any, frames: Iterable[Tensor], fps: float, path: str | Path) -> None:
    stream = None
    for index, picture in enumerate(frames):
        image = _even(to_bytes(picture))
        if stream is None:
            stream = container.add_stream(_codec(av), rate=Fraction(fps).limit_denominator(60000))
            stream.height, stream.width = image.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1  # x264 cuts a picture into slices by threads: other CPUs, other bytes
            if stream.codec_context.name == "libx264":
                stream.options = {"x264-params": "mbtree=0"}  # with it, small pictures get other bytes now and then
        elif image.shape[:2] != (stream.height, stream.width):
            raise VideoError(
                "the frames change size",
                where=f"{path}, frame {index}",
                why=f"{stream.height}x{stream.width} so far, now {image.shape[0]}x{image.shape[1]}",
                way_out="bring all frames to one size",
            )
        frame = av.VideoFrame.from_ndarray(image.contiguous().numpy(), format="rgb24")
        container.mux(stream.encode(frame))
    if stream is None:
        raise VideoError("there are no frames to write", where=str(path))
    container.mux(stream.encode(None))


def _unwritable(path: str | Path, error: Exception) -> VideoError:
    return VideoError("the clip cannot be written", where=str(path), why=str(error), way_out="write a .mp4 or .mkv")


def _even(image: Tensor) -> Tensor:
    height, width = image.shape[:2]
    if height % 2:
        image = torch.cat((image, image[-1:]), 0)
    if width % 2:
        image = torch.cat((image, image[:, -1:]), 1)
    return image


def _codec(av: Any) -> str:
    for name in _CODECS:
        try:
            av.Codec(name, "w")
        except ValueError:
            continue
        return name
    raise VideoError("this FFmpeg has no encoder for H.264 or MPEG-4", way_out="pip install av")

"""Still pictures: PNG files, strips of frames for a person's eyes, a matte laid over a colour."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import VideoError
from ._files import written_beside
from ._font import GLYPH_HEIGHT, draw
from .read import resize
from .write import to_bytes


def png_bytes(image: Tensor) -> bytes:
    """A picture [3,H,W] or [1,H,W] (float in [0,1], or uint8) as the bytes of an 8-bit RGB PNG file.

    Needs nothing beyond the standard library. Raises VideoError if it is no picture.
    """
    pixels = to_bytes(image)
    height, width = pixels.shape[:2]
    # Each row starts with its filter: 0, none (PNG specification, section 9).
    rows = torch.cat((torch.zeros(height, 1, dtype=torch.uint8), pixels.reshape(height, width * 3)), 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.numpy().tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def write_png(path: str | Path, image: Tensor) -> Path:
    """Write a picture [3,H,W] or [1,H,W] (float in [0,1], or uint8) as an 8-bit RGB PNG; gives back its path.

    Raises VideoError if it is no picture or the file cannot be written.
    """
    content = png_bytes(image)
    with written_beside(path) as beside:
        beside.write_bytes(content)
    return Path(path)


def composite(fgr: Tensor, pha: Tensor, background: Sequence[float] | Tensor = (0.47, 1.0, 0.6)) -> Tensor:
    """fgr * pha + background * (1 - pha): `fgr` [...,3,H,W] and `pha` [...,1,H,W] in [0,1] -> [...,3,H,W].

    `background` is an RGB colour in [0,1], or a picture that broadcasts against `fgr`.
    """
    if not isinstance(background, Tensor):
        background = torch.tensor(tuple(background)).view(3, 1, 1)
    return fgr * pha + background.to(fgr) * (1 - pha)


def strip(images: Sequence[Sequence[Tensor]], labels: Sequence[str] = (), gap: int = 2) -> Tensor:
    """Rows of pictures as one picture, float32 [3,H,W] in [0,1]; `labels`, if given, name the rows.

    Every picture is [3,H,W] or [1,H,W] in [0,1] (or uint8), and is brought to the size of the first. A label stands
    above its row; `gap` is the number of white pixels around each picture.
    Raises VideoError if there are no pictures, or not as many labels as rows.
    """
    if not images or not images[0]:
        raise VideoError("a strip needs at least one picture")
    if labels and len(labels) != len(images):
        raise VideoError(f"{len(labels)} labels were given for {len(images)} rows", way_out="give one label a row")
    size = tuple(images[0][0].shape[-2:])
    height, width = size
    head = GLYPH_HEIGHT + gap if labels else 0
    columns = max(len(row) for row in images)
    out = torch.ones(3, len(images) * (head + height + gap) + gap, columns * (width + gap) + gap)
    for i, row in enumerate(images):
        top = gap + i * (head + height + gap)
        if labels:
            draw(out[:, top : top + GLYPH_HEIGHT, gap:], labels[i])
        for j, image in enumerate(row):
            left = gap + j * (width + gap)
            picture = to_bytes(image).permute(2, 0, 1).float() / 255
            out[:, top + head : top + head + height, left : left + width] = resize(picture, (height, width))
    return out

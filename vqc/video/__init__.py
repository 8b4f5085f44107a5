"""Reading and writing clips, still pictures, and the clips used in examples and tests."""

from .clips import CLIPS, ClipEntry, clip
from .picture import composite, png_bytes, strip, write_png
from .read import frame_rate, iter_frames, read_clip, resize
from .write import write_video

__all__ = [
    "CLIPS",
    "ClipEntry",
    "clip",
    "composite",
    "frame_rate",
    "iter_frames",
    "png_bytes",
    "read_clip",
    "resize",
    "strip",
    "write_png",
    "write_video",
]

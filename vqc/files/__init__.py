"""The `.vqc` file: a Program with its weights, its states, its history and what it came from, in one file."""

from __future__ import annotations

from vqc.files.container import FORMAT, SIZE_LIMIT
from vqc.files.read import about, load
from vqc.files.write import content_key, save

__all__ = ["FORMAT", "SIZE_LIMIT", "about", "content_key", "load", "save"]

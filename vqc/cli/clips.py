"""Clips as a command is given them: files, folders, names; and what identifies one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqc import video
from vqc.errors import InputError, VideoError

# What a folder's files are known by to be videos. A file that is named on the command line may be called anything.
SUFFIXES = frozenset((
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv",
    ".ts", ".webm", ".wmv", ".y4m",
))  # fmt: skip


def clip_path(name: str) -> Path:
    """A file's path, or that of a clip known by name (`vqc.video.CLIPS`), which is fetched if it has to be."""
    return video.clip(name) if name in video.CLIPS and not Path(name).exists() else Path(name)


def in_folder(folder: Path) -> list[Path]:
    """The videos directly in a folder, by name; hidden files are none. Raises InputError when there are none."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InputError(f"the folder {folder} has no clips", where=str(folder),
                         why="no file in it ends as a video does: " + " ".join(sorted(SUFFIXES)),
                         way_out="give a folder of videos, or name the files")  # fmt: skip
    return found


def expand(names: Sequence[str]) -> list[str]:
    """Folders as the clips in them; every clip once, in the order given. Raises InputError for a folder without."""
    found: dict[object, str] = {}
    for name in names:
        for one in map(str, in_folder(Path(name))) if Path(name).is_dir() else [name]:
            known = one in video.CLIPS and not Path(one).exists()
            found.setdefault(one if known else Path(one).resolve(), one)
    return list(found.values())


@dataclass(frozen=True)
class Identity:
    """What a clip is: the SHA-256 (hexadecimal) of its bytes, and how many there are."""

    sha256: str
    size: int


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: Path) -> Identity:
    """Raises VideoError for a file that cannot be read."""
    try:
        return Identity(sha256_of(path), path.stat().st_size)
    except OSError as e:
        raise VideoError("the clip cannot be read", where=str(path), why=e.strerror or str(e),
                         way_out="give a video file that FFmpeg decodes") from e  # fmt: skip

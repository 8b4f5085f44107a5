"""The folder of an export: there whole or not at all, and replaced only when it is an earlier export."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from vqc.errors import ArtifactError

MARKER = "vqc-export.txt"  # names a folder as ours, so that a new export may replace it


def check_folder(folder: Path) -> None:
    """Raise ArtifactError when the folder holds files that are not an earlier export."""
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).exists())):
        raise ArtifactError(f"{folder} is already there and is not an export", why="it would be overwritten",
                            way_out="give a new or empty folder")  # fmt: skip


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write these files, MARKER among them, into a folder beside and rename it; returns the folder.

    Raises ArtifactError when the folder cannot be written, or holds files that are not an earlier export.
    """
    folder = folder.absolute()
    check_folder(folder)
    temp: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        temp.chmod(0o755)
        for file, data in files.items():
            (temp / file).write_bytes(data)
        if folder.exists():
            old = temp.with_name(temp.name + "-old")
            os.replace(folder, old)
            os.replace(temp, folder)
            shutil.rmtree(old)
        else:
            os.replace(temp, folder)
    except OSError as e:
        if temp is not None:
            shutil.rmtree(temp, ignore_errors=True)
        raise ArtifactError(f"the export to {folder} failed", why=str(e),
                            way_out="choose a folder on a disk with room that you may write to") from e  # fmt: skip
    return folder

"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import VideoError


@contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, renamed to it if the block ends well, removed if not.

    Raises VideoError if the folder cannot be written.
    """
    path = Path(path)
    try:
        # The suffix is kept: the name of a video file tells its container.
        handle, name = tempfile.mkstemp(prefix=".vqc-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise VideoError(
            f"{path.name} cannot be written", where=str(path.parent), why=str(error), way_out="choose a writable folder"
        ) from error
    beside = Path(name)
    try:
        yield beside
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(beside, path)
    except OSError as error:
        raise VideoError(f"{path.name} cannot be written", where=str(path), why=str(error)) from error
    finally:
        beside.unlink(missing_ok=True)

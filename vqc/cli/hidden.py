"""The hidden folder that a run works in, in the folder of its results; what killed runs left of theirs is removed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not a POSIX system: what a killed run left is not told from what another one is at
    fcntl = None  # type: ignore[assignment]

# What the names begin with, the second until a folder has its lock; and the file in it that is locked.
WORK, BEGUN, LOCK = ".vqc-run-", ".vqc-begun-", "lock"


@contextmanager
def work_folder(output: Path, say: Callable[[str], None] | None = None) -> Iterator[Path]:
    """A hidden folder in `output`, gone at the end; those that killed runs left are removed, and `say` is told of it.

    Its lock is held as long as the process lives, so that those of other runs at work are known and stay.
    """
    left = sum(_clear(found) for begins in (WORK, BEGUN) for found in sorted(output.glob(f"{begins}*")))
    if left and say is not None:
        say(f"removed what a killed run left unfinished in {output}; nothing that was finished is lost")
    made, lock = _make(output)
    with lock:
        try:
            yield made
        finally:
            _remove(made)


def _make(output: Path) -> tuple[Path, IO[str]]:
    """A new folder, and its lock. Until it has that, another run may take it for a dead one's and remove it."""
    while True:
        begun = Path(tempfile.mkdtemp(prefix=BEGUN, dir=output))
        try:
            lock = open(begun / LOCK, "w")  # noqa: SIM115 (it is open as long as the run lives)
        except FileNotFoundError:
            continue
        _locked(lock, wait=True)  # a run that removes the folder holds it meanwhile
        try:
            return begun.rename(begun.with_name(WORK + begun.name.rpartition("-")[2])), lock
        except FileNotFoundError:
            lock.close()


def _clear(folder: Path) -> bool:
    """Remove a folder whose run is dead; whether that was done."""
    try:
        with open(folder / LOCK, "r+") as lock:
            if _locked(lock):
                _remove(folder)
                return True
    except FileNotFoundError:  # its run was killed before it had a lock, or when all else was removed; or it is gone
        with suppress(OSError):
            folder.rmdir()
            return True
    except (PermissionError, NotADirectoryError):  # another user's, or no folder of ours
        pass
    return False


def _remove(folder: Path) -> None:
    """The lock goes last: a folder without it is empty."""
    for inside in folder.iterdir():
        if inside.name != LOCK:
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    (folder / LOCK).unlink()
    with suppress(FileNotFoundError):  # another run saw it empty
        folder.rmdir()


def _locked(file: IO[str], wait: bool = False) -> bool:
    """Lock a file for this process, if it can be; `wait`: until no other has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another run holds it, or nothing can be locked there
        return False
    return True

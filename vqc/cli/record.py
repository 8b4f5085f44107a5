"""The record of a finished clip: what its results were made from, and the hashes of the files that hold them.

A record is written last. It says that the clip is done as long as what it was made from is what is asked for now, and
its files have the bytes they had. It holds no time, no date and no path: equal runs write equal records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import vqc
import vqc.backends
import vqc.passes
from vqc.api import pipeline_of
from vqc.cli.clips import clip_path, identity, sha256_of
from vqc.cli.show import plain
from vqc.cli.work import Job
from vqc.files import content_key
from vqc.program import Program
from vqc.report.network import Network
from vqc.video.read import import_av

FORM = 1
SOURCES = {".py", ".c", ".h", ".in"}


def sources_key() -> str:
    """SHA-256 of vqc's own sources: in a checkout they change while the version stays."""
    digest = hashlib.sha256()
    for module in (vqc, vqc.passes, vqc.backends):
        root = Path(module.__path__[0])
        for path in sorted(p for p in root.rglob("*") if p.suffix in SOURCES):
            digest.update(f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def made_from(job: Job, net: Network, program: Program, beside: bool) -> dict[str, Any]:
    """All that the results of a clip depend on but the clip. `program`: as captured, before the recipe.

    Raises VideoError for a calibration clip that cannot be read.
    """
    still = program.clone()
    still.example = ()  # often of random numbers; results do not depend on it, only on its shapes
    return {
        "model": content_key(still), "picture": [net.picture, net.foreground],
        "recipe": str(pipeline_of(job.recipe)),
        "calibration": [identity(clip_path(name)).sha256 for name in job.calibration_names],
        "calibration frames": job.calibration_frames if job.calibration_names else None,
        "target": job.target, "threads": job.threads, "size": list(net.size), "frames": job.frames, "start": job.start,
        "beside float": beside, "vqc": f"{vqc.__version__} {sources_key()}", "PyTorch": torch.__version__,
        "PyAV": import_av().__version__,
    }  # fmt: skip


def text_of(result: Mapping[str, Any], origin: Mapping[str, Any], clip: Mapping[str, Any], made: Mapping[str, Path]
            ) -> str:  # fmt: skip
    """A record as text. `made`: the files of the clip by the names they are to have."""
    files = {name: sha256_of(path) for name, path in made.items()}
    said = {"form": FORM, "clip": clip, **result, "files": files, "made_from": origin}
    return json.dumps(plain(said), indent=2, allow_nan=False) + "\n"


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a file; None when there is none, or none of this form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("form") != FORM:
        return None
    kinds = {"clip": dict, "files": dict, "made_from": dict, "frames": int, "size": list, "engines": list}
    return found if all(isinstance(found.get(key), kind) for key, kind in kinds.items()) else None


def why_anew(record: Mapping[str, Any], origin: Mapping[str, Any], clip: Mapping[str, Any], folder: Path) -> str:
    """Why a clip has to be run again although there is a record of it; "" when it does not."""
    origin, before = plain(origin), record["made_from"]
    other = [name for name in {**before, **origin} if before.get(name) != origin.get(name)]
    if record["clip"] != clip:
        other.append("clip")
    if other:
        return f"it was made with another {', '.join(other)}"
    for name, sha256 in record["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is gone"
        if sha256_of(path) != sha256:
            return f"{name} is not what was written"
    return ""

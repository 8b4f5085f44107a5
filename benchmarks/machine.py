"""What was measured on, with what, and where the results lie."""

from __future__ import annotations

import json
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vqc.backends.c.peak import cpu_name
from vqc.report.tables import write_text

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]


def machine() -> Record:
    """The processor, its cores, the system, and how busy it was (mean of the last minute) when this was asked."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"processor": cpu_name(), "cores": os.cpu_count(), "system": platform.system(), "load": load}


def versions() -> dict[str, str]:
    """Versions of what was measured and of what it ran on."""
    found = {"python": platform.python_version()}
    for name in ("vqc", "torch", "numpy", "ziglang", "onnx", "onnxruntime", "openvino", "nncf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def folder(results: Path = RESULTS) -> Path:
    """Where this processor's results go: one file a topic."""
    return results / re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")


def write(topic: str, records: list[Record], began: Record, where: Path, note: str = "") -> Path:
    """Write the records of a topic with the machine they were measured on; `began`: `machine()` before the first."""
    where.mkdir(parents=True, exist_ok=True)
    content = {"machine": began, "load_after": machine()["load"], "versions": versions(), "note": note,
               "results": records}  # fmt: skip
    return write_text(where / f"{topic}.json", json.dumps(content, indent=1) + "\n")

"""Tables as text and Markdown, and text files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vqc.errors import ArtifactError


def columns(rows: Sequence[dict[str, str]]) -> list[str]:
    """The columns of rows in the order of first sight; a row may lack some."""
    seen: dict[str, None] = {}
    for row in sorted(rows, key=len, reverse=True):
        seen |= dict.fromkeys(row)
    return list(seen)


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table; a value a row lacks is shown as an en dash."""
    names = columns(rows)
    lines = [
        "| " + " | ".join(names) + " |",
        "|" + "|".join("---" if i == 0 else "---:" for i in range(len(names))) + "|",
    ]
    lines += ["| " + " | ".join(row.get(name, "–") for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def folder(path: str | Path) -> Path:
    """The folder, made if it is missing. Raises ArtifactError when files cannot be written into it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".vqc-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise ArtifactError(f"nothing can be written into {path}", where=str(path), why=e.strerror or str(e),
                            way_out="choose another folder with -o") from e  # fmt: skip
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file beside and rename it. Raises ArtifactError when it cannot be written."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as e:
        beside.unlink(missing_ok=True)
        raise ArtifactError(f"{path} cannot be written", where=str(path), why=e.strerror or str(e),
                            way_out="choose another folder") from e  # fmt: skip
    return path

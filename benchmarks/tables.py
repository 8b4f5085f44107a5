"""Put the tables of benchmarks/results/*.json into the README, between its markers.

python -m benchmarks.tables [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vqc.report.tables import markdown, write_text

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: begin, made by python -m benchmarks.tables -->", "<!-- results: end -->"
TITLES = {
    "rvm": "RVM, video matting, recurrent",
    "rife": "RIFE 3.8, frame interpolation",
    "srvgg": "SRVGG (realesr-animevideov3), super-resolution x4",
}


def tables(content: dict[str, Any]) -> str:
    """The tables of one processor as Markdown: one for each network and number of threads."""
    machine, found = content["machine"], content["versions"]
    shown = ", ".join(f"{k} {v}" for k, v in found.items() if v != "not installed")
    text = f"**{machine['processor']}**, {machine['cores']} cores, {machine['system']}; {shown}.\n"
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in content["results"]:
        groups.setdefault((record["model"], record["threads"]), []).append(record)
    for (model, threads), records in groups.items():
        first = records[0]
        text += (f"\n{TITLES[model]}: {first['size']}, {first['steps']} steps of `{first['clip']}`, calibrated on "
                 f"`{first['calibration']}`, {threads} thread{'s' if threads > 1 else ''}.\n\n")  # fmt: skip
        text += markdown([_row(r) for r in records])
    return text


def _row(record: dict[str, Any]) -> dict[str, str]:
    row = {"engine": record["engine"], "ms a frame": f"{record['ms']:.1f}"}
    for name, value in record["metrics"].items():
        if name != "drift dB/frame":
            row[name] = "equal" if value is None else f"{value:.2f}"
    size = record["weight_bytes"]
    return row | {"weights MB": f"{size / 1e6:.2f}" if size else "–"}


def section(folder: Path) -> str:
    """What stands between the markers."""
    files = sorted(folder.glob("*.json"))
    if not files:
        return "Not measured yet: run `make bench`.\n"
    return "\n".join(tables(json.loads(file.read_text(encoding="utf-8"))) for file in files)


def replaced(readme: str, text: str) -> str:
    """The README with `text` between its markers; ValueError when it lacks them."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("README.md has no markers for the results")
    return f"{before}{BEGIN}\n{text}{END}{after}"


def main() -> None:
    """Update the README, or with --check only tell whether it is up to date."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = replaced(old, section(ROOT / "benchmarks" / "results"))
    if "--check" in sys.argv[1:]:
        sys.exit(0 if new == old else "README.md differs from benchmarks/results; run python -m benchmarks.tables")
    write_text(path, new)


if __name__ == "__main__":
    main()

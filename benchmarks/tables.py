"""Put the tables of benchmarks/results/ into the README, between its markers.

python -m benchmarks.tables [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
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
Record = dict[str, Any]
Row = dict[str, str]


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _groups(records: Sequence[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[k] for k in keys), []).append(record)
    return groups


# ---- networks ------------------------------------------------------------------------------------------------------


def networks(records: Sequence[Record]) -> str:
    """A table for each network and number of threads; vqc's rows with the ratio to the fastest peer of their kind."""
    text = ""
    for (model, threads), group in _groups(records, "model", "threads").items():
        first = group[0]
        text += (f"\n{TITLES[model]}: {first['size']}, {first['steps']} steps of `{first['clip']}`, calibrated on "
                 f"`{first['calibration']}`, {_threads(threads)}.\n\n")  # fmt: skip
        text += markdown([_network_row(r) for r in group]) + _baselines(group)
    return text


def _network_row(record: Record) -> Row:
    row = {"engine": record["engine"], "ms a frame": f"{record['ms']:.1f}"}
    if "ratio" in record:
        row["of the best peer"] = f"{record['ratio']:.2f} x"
    for name, value in record["metrics"].items():
        if name != "drift dB/frame":
            row[name] = "equal" if value is None else f"{value:.2f}"
    size = record["weight_bytes"]
    return row | {"weights MB": f"{size / 1e6:.2f}" if size else "–"}


def _baselines(records: Sequence[Record]) -> str:
    """Which peers the ratios are against."""
    named = [f"{r['engine']}: {r['baseline']}" for r in records if "baseline" in r]
    return f"\nBest peers: {'; '.join(named)}.\n" if named else ""


# ---- layers --------------------------------------------------------------------------------------------------------


def layers(records: Sequence[Record]) -> str:
    """Milliseconds of one layer: an engine a row, a shape a column; vqc's with the ratio to the best of its kind."""
    text = ""
    for (threads,), group in _groups(records, "threads").items():
        rows: dict[str, Row] = {}
        for r in group:
            cell = f"{r['ms']:.3f}" + (f" ({r['ratio']:.2f} x)" if "ratio" in r else "")
            rows.setdefault(r["engine"], {"ms of a layer": r["engine"]})[r["shape"]] = cell
        text += (f"\nOne convolution with bias and ReLU in a chain, {_threads(threads)}; in brackets the time over "
                 "that of the fastest peer of the same kind (float32; or bf16 and int8).\n\n")  # fmt: skip
        text += markdown(list(rows.values()))
    return text


def _chosen(records: Sequence[Record], names: dict[str, str], digits: dict[str, int]) -> str:
    """Some columns of records under other names; `digits` after the point where it is not 3."""
    rows = []
    for r in records:
        cells = {name: r[key] for key, name in names.items() if key in r}
        by_name = {names[k]: d for k, d in digits.items()}
        rows.append({n: f"{v:.{by_name.get(n, 3)}f}" if isinstance(v, float) else str(v) for n, v in cells.items()})
    return markdown(rows)


def binary(records: Sequence[Record]) -> str:
    """Binary layers: one row for a shape, a body and an instruction set."""
    names = {"layer": "layer", "kind": "body", "isa": "instructions", "vqc_ms": "vqc ms", "openvino_ms": "OpenVINO ms",
             "ratio": "times as fast", "vqc_gmacs": "vqc GMAC/s", "share": "of the limit"}  # fmt: skip
    text = (
        "\nBinary 3x3 convolutions with true zero padding, one more layer of a body: `chain` has binary pictures "
        "in\nand out, `residual` a sum and a PReLU in float; the limit is that of a loop of xor, count and add.\n\n"
    )
    return text + _chosen(records, names, {"ratio": 2, "share": 2})


def masked(records: Sequence[Record]) -> str:
    """Masked layers: one row for a kind, a layer and a density."""
    names = {"layer": "layer", "kind": "type", "density": "active", "dense_ms": "dense ms", "masked_ms": "masked ms",
             "ratio": "masked / dense"}  # fmt: skip
    return "\nConvolutions under a mask of blobs, 1 thread.\n\n" + _chosen(records, names, {"density": 2})


# ---- the build -----------------------------------------------------------------------------------------------------


def build(records: Sequence[Record]) -> str:
    """Seconds and sizes of making the C of a network."""
    rows = [{
        "program": f"{r['model']} {r['size']}, {r['recipe']}", "generate s": f"{r['generate_s']:.1f}",
        "compile s": f"{r['compile_s']:.1f}", "sources MB": f"{r['source_bytes'] / 1e6:.2f}",
        "weights MB": f"{r['weight_bytes'] / 1e6:.2f}", "arena MB": f"{r['arena_bytes'] / 1e6:.2f}",
        "of what is alive at once": f"{r['arena_bytes'] / r['live_bytes']:.3f} x",
    } for r in records]  # fmt: skip
    return "\nFrom a captured network to a library, with nothing in the caches.\n\n" + markdown(rows)


TOPICS: dict[str, Callable[[Sequence[Record]], str]] = {
    "networks": networks, "layers": layers, "binary": binary, "masked": masked, "build": build,
}  # fmt: skip


def tables(topics: dict[str, Record]) -> str:
    """The tables of one processor as Markdown; `topics`: the files' contents by topic."""
    text = ""
    heads: list[str] = []
    for name, content in topics.items():
        machine = content["machine"]
        shown = ", ".join(f"{k} {v}" for k, v in content["versions"].items() if v != "not installed")
        load = "" if machine["load"] is None else f", load {machine['load']} before"
        head = f"**{machine['processor']}**, {machine['cores']} cores, {machine['system']}{load}; {shown}.\n"
        text += ("" if head in heads else ("\n" if text else "") + head) + TOPICS[name](content["results"])
        text += f"\n{content['note']}\n" if content.get("note") else ""
        heads.append(head)
    return text


def section(folder: Path) -> str:
    """What stands between the markers."""
    parts = []
    for place in sorted(p for p in folder.glob("*") if p.is_dir()):
        found = {t: json.loads((place / f"{t}.json").read_text(encoding="utf-8")) for t in TOPICS
                 if (place / f"{t}.json").exists()}  # fmt: skip
        parts += [tables(found)] if found else []
    return "\n".join(parts) or "Not measured yet: run `make bench`.\n"


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

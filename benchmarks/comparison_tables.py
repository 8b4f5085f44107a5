"""vqc beside its peers, engine by engine, out of benchmarks/results/: also, and first of all, where vqc is behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fidelity_tables import TITLES
from vqc.report.tables import markdown

Record = dict[str, Any]
Row = dict[str, str]
KINDS = {"float32": "vqc C, float32", "reduced": "vqc C, int8"}  # which of vqc's engines a peer's kind is held against
DISTANCES = {"MAD x1e3": (False, "MAD x1e3"), "PSNR dB": (True, "dB")}  # metric -> higher is better, how it is shown


def _distance(metrics: Record) -> tuple[float, bool, str] | None:
    """The value of the first metric that tells the distance to float, whether higher is better, and its unit."""
    for name, (higher, unit) in DISTANCES.items():
        if metrics.get(name) is not None:
            return float(metrics[name]), higher, unit
    return None


def _shown(distance: tuple[float, bool, str] | None) -> str:
    return "–" if distance is None else f"{distance[0]:.{1 if distance[1] else 2}f} {distance[2]}"


def pairs(records: Sequence[Record]) -> Iterator[tuple[Record, Record]]:
    """(a peer's record, vqc's of the same network, threads and kind), the peers in the order they were run."""
    ours = {(r["model"], r["threads"], r["engine"]): r for r in records}
    for r in records:
        mine = ours.get((r["model"], r["threads"], KINDS.get(r.get("kind", ""), "")))
        if not r["engine"].startswith("vqc") and mine is not None:
            yield r, mine


def speed(records: Sequence[Record]) -> str:
    """A table for each peer: its time and distance, and vqc's."""
    by_engine: dict[str, list[Row]] = {}
    for peer, mine in pairs(records):
        by_engine.setdefault(peer["engine"], []).append({
            "network": f"{peer['model']} {peer['size']}", "threads": str(peer["threads"]),
            "its ms": f"{peer['ms']:.1f}", "vqc's ms": f"{mine['ms']:.1f}",
            "vqc's time": f"{mine['ms'] / peer['ms']:.2f} x",
            "its distance": _shown(_distance(peer["metrics"])), "vqc's distance": _shown(_distance(mine["metrics"])),
        })  # fmt: skip
    return "".join(f"\n### {engine}\n\n{markdown(rows)}" for engine, rows in by_engine.items())


def behind(records: Sequence[Record]) -> list[str]:
    """Every pair in which the peer is faster, or nearer to float while vqc computes in 8 bits as well."""
    found = []
    for peer, mine in pairs(records):
        where = f"{peer['model']} {peer['size']}, {peer['threads']} thread{'s' if peer['threads'] > 1 else ''}"
        if peer["ms"] < mine["ms"]:
            found.append(f"{where}: {peer['engine']} takes {peer['ms']:.1f} ms, {mine['engine']} {mine['ms']:.1f}.")
        theirs, own = _distance(peer["metrics"]), _distance(mine["metrics"])
        if peer["kind"] == "reduced" and theirs and own and (theirs[0] > own[0]) == own[1]:
            found.append(f"{where}: {peer['engine']} is nearer to float, {_shown(theirs)} against {_shown(own)} of "
                         f"{mine['engine']}; it takes {peer['ms']:.1f} ms, vqc {mine['ms']:.1f}.")  # fmt: skip
    return found


def _held_out(record: Record) -> Record:
    return next((t["metrics"] for t in record["trials"] if t["part"] == "held-out"), {})


def fidelity(records: Sequence[Record]) -> tuple[str, list[str]]:
    """Tables of recipe `int8` beside what other tools make of the same clips, and the rows that are nearer to float."""
    text, found = "", []
    for model in dict.fromkeys(r["model"] for r in records):
        rows = [r for r in records if r["model"] == model and r["status"] == "ok"]
        mine = next(r for r in rows if r["row"] == "int8")
        others = [r for r in rows if r["kind"] == "peer" or (r["row"].endswith("w8a8") and r["kind"] == "nearest")]
        table = []
        for r in (mine, *others):
            metrics = _held_out(r)
            by = {"recipe": "vqc", "nearest": "vqc, to nearest"}.get(r["kind"], r["computed_by"])
            row = {"how": f"`{r['row']}`", "by": by}
            if any("calibration_steps" in other for other in rows):  # older records do not say it
                row["steps of calibration"] = str(r.get("calibration_steps", "–"))
            row["distance to float"] = _shown(_distance(metrics))
            if "dtSSD x1e2" in metrics:
                row["flicker: dtSSD x1e2"] = f"{metrics['dtSSD x1e2']:.2f}"
            table.append(row)
            theirs, own = _distance(metrics), _distance(_held_out(mine))
            if r is not mine and theirs and own and (theirs[0] > own[0]) == own[1]:
                found.append(f"{TITLES[model]}: `{r['row']}` is nearer to float than recipe `int8`, {_shown(theirs)} "
                             f"against {_shown(own)}.")  # fmt: skip
        text += f"\n### {TITLES[model]}\n\n{markdown(table)}"
    return text, found


def page(folder: Path) -> str:
    """The whole section, of every processor that was measured."""
    text = ""
    for place in sorted(p for p in folder.glob("*") if (p / "networks.json").exists()):
        content = json.loads((place / "networks.json").read_text(encoding="utf-8"))
        machine = content["machine"]
        shown = ", ".join(f"{k} {v}" for k, v in content["versions"].items() if v != "not installed")
        against = behind(content["results"])
        recipes = ""
        if (place / "fidelity.json").exists():
            judged = json.loads((place / "fidelity.json").read_text(encoding="utf-8"))
            recipes, more = fidelity(judged["results"])
            against += more
        text += ("\n" if text else "") + f"**{machine['processor']}**, {machine['cores']} cores; {shown}.\n"
        text += "\n## Where vqc is behind\n\n"
        text += "".join(f"- {line}\n" for line in against or ["Nowhere in these tables."])
        text += "\n## Engine by engine\n" + speed(content["results"])
        text += "\n## Tools that quantize, on a clip none of them saw\n" + recipes if recipes else ""
    return text or "Not measured yet: run `make bench`.\n"

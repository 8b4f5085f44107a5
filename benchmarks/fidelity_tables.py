"""The tables of docs/fidelity.md: one a network, a row for each way to quantize."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.machine import Record
from vqc.report.tables import markdown

TITLES = {
    "rvm": "RVM, video matting, recurrent",
    "rife": "RIFE 3.8, frame interpolation",
    "srvgg": "SRVGG (realesr-animevideov3), super-resolution x4",
}
KINDS = {"recipe": "recipe", "nearest": "nearest rounding", "peer": "peer"}
MATTE, PICTURE, REAL = "MAD x1e3", "PSNR dB", "PSNR dB to the real frame"
Row = dict[str, str]


def network(model: str, records: Sequence[Record]) -> str:
    """The table of one network."""
    done = [r for r in records if r["status"] == "ok"]
    text = f"\n### {TITLES[model]}\n\n"
    if done:
        text += f"{done[0]['size']}, calibrated on `{done[0]['calibration']}`.{_clips(done)}\n\n"
        text += markdown([_row(r) for r in done])
    notes = _notes(done) + [f"`{r['row']}`: {r['status']}." for r in records if r["status"] != "ok"]
    return text + ("\n" + "\n".join(f"- {n}" for n in notes) + "\n" if notes else "")


def _trials(record: Record, part: str) -> list[Record]:
    return [t for t in record["trials"] if t["part"] == part]


def _mean(trials: Sequence[Record], group: str, name: str) -> float | None:
    values = [t[group].get(name) for t in trials]
    return None if not values or None in values else sum(values) / len(values)


def _clips(records: Sequence[Record]) -> str:
    """What was played, and what the float network itself reaches where the truth is known."""
    found: dict[str, str] = {}
    for r in records:
        for t in r["trials"]:
            values = [f" (float itself: {t['float_truth'][n]:.2f} {n})" for n in (MATTE, REAL) if n in t["float_truth"]]
            found.setdefault(f"{t['part']}: `{t['clip']}`", "".join(values))  # of the first row, when lengths differ
    return " Played: " + "; ".join(k + v for k, v in found.items()) + "."


def _row(record: Record) -> Row:
    held, seen = _trials(record, "held-out"), _trials(record, "calibration")
    row = {"how": f"`{record['row']}`", "kind": KINDS[record["kind"]], "steps": str(held[0]["steps"])}
    for name, value in held[0]["metrics"].items():
        digits = 3 if "drift" in name else 2
        row[name] = "equal" if value is None else f"{value:.{digits}f}"
    first = next(n for n in (MATTE, PICTURE) if n in held[0]["metrics"])
    if seen:
        value = seen[0]["metrics"][first]
        row[f"{first}, calibration clip"] = "equal" if value is None else f"{value:.2f}"
    real, plain = _mean(held, "truth", REAL), _mean(held, "float_truth", REAL)
    if real is not None and plain is not None:
        row["dB to the real frame"] = f"{real:.2f} ({real - plain:+.2f})"
    for part in ("drawn", "lifted"):
        of = _trials(record, part)
        true, float_ = _mean(of, "truth", MATTE), _mean(of, "float_truth", MATTE)
        if true is not None and float_:
            row[f"MAD to the true matte, {part}"] = f"{true:.2f} ({100 * (true / float_ - 1):+.1f} %)"
    size = record["weight_bytes"]
    return row | {"made in s of CPU": f"{record['cpu_seconds']:.0f}", "peak MB": str(record["peak_mb"]),
                  "weights MB": f"{size / 1e6:.2f}" if size else "–"}  # fmt: skip


def _notes(records: Sequence[Record]) -> list[str]:
    """What computed the rows, and what fell back."""
    by: dict[str, list[str]] = {}
    for r in records:
        by.setdefault(r["computed_by"], []).append(f"`{r['row']}`")
    found = [f"Computed by {name}: {', '.join(names)}." for name, names in by.items()]
    return found + [f"`{r['row']}`: {len(r['notes'])} fell back: {r['notes'][0]}" for r in records if r["notes"]]


def page(contents: Sequence[Record]) -> str:
    """All tables; `contents`: those of fidelity.json, one a processor."""
    text = ""
    for content in contents:
        machine = content["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items() if v != "not installed")
        text += f"**{machine['processor']}**, {machine['cores']} cores, {machine['system']}; {versions}.\n"
        for model in TITLES:
            records = [r for r in content["results"] if r["model"] == model]
            text += network(model, records) if records else ""
        text += f"\n{content['note']}\n" if content.get("note") else ""
    return text or "Not measured yet: run `python -m benchmarks.fidelity`.\n"

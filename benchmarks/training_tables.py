"""The tables of docs/training.md: how good the shipped network is, BiVM's table I in small, and whether its directions
hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vqc.report.tables import markdown


def network(contents: Sequence[dict[str, Any]]) -> str:
    """The shipped network's mattes, clip by clip."""
    text = ""
    for content in contents:
        records = content["results"]
        text += markdown([{
            "clip": f"`{r['case']}`", "what": r["kind"], "frames": str(r["frames"]), "MAD x1e3": f"{r['mad']:.1f}",
            "MSE x1e3": f"{r['mse']:.1f}", "dtSSD": f"{r['dtssd']:.2f}", "mask": f"{r['density']:.2f}",
            "MAD, mask everywhere": f"{r['mad_everywhere']:.1f}", "MAD of an empty matte": f"{r['empty_mad']:.0f}",
            "G operations": f"{r['giga_operations']:.3f}" if "giga_operations" in r else "–",
        } for r in records])  # fmt: skip
        held = [r["mad"] for r in records if r["kind"] == "held-out stretch"]
        text += f"\nHeld-out stretches, mean: MAD x1e3 {sum(held) / len(held):.1f}.\n\n"
    return text or "Not measured yet: run `python -m benchmarks.bivm network`.\n\n"


def page(contents: Sequence[dict[str, Any]]) -> str:
    """Rows and directions of every processor's run."""
    text = ""
    for content in contents:
        machine, records = content["machine"], content["results"]
        rows = [r for r in records if "row" in r]
        directions = [r for r in records if "what" in r]
        text += f"**{machine['processor']}**, {rows[0]['steps']} steps a row, seed {rows[0]['seed']}.\n\n"
        text += markdown([{
            "row": str(r["row"]), "network": r["name"],
            **{f"{what}: {name}": f"{r[kind][key]:.{digits}f}" for kind, what in _JUDGED.items()
               for key, name, digits in (("mad", "MAD x1e3", 1), ("dtssd", "dtSSD x1e2", 2))},
            "mask": f"{r['stretches']['density']:.2f}" if "density" in r["stretches"] else "–",
            "the paper's MAD": f"{r['paper_mad']:.2f}", "CPU s": f"{r['cpu_s']:.0f}",
        } for r in rows])  # fmt: skip
        text += "\n" + markdown([{
            "better": str(d["better"]), "worse": str(d["worse"]), "what": d["what"],
            "the paper's ratio": f"{d['paper_ratio']:.2f}", "asked": f"{d['asked']:.2f}",
            **{what: f"{d[kind]:.2f}" for kind, what in _JUDGED.items()},
        } for d in directions])  # fmt: skip
    return text or "Not measured yet: run `python -m benchmarks.bivm ablation`.\n"


_JUDGED = {"stretches": "held-out stretches", "people": "unseen people"}

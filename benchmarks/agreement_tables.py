"""The table of docs/onnx.md: how far apart engines are on one Program, out of agreement.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqc.report.tables import markdown

ENGINES = {"native": "C", "onnx": "ONNX Runtime, `onnx`", "onnx:exact": "ONNX Runtime, `onnx:exact`",
           "openvino": "OpenVINO, `openvino`", "reference": "reference"}  # fmt: skip


def page(folder: Path) -> str:
    """A row for each program and engine beside the reference or C, of every processor that was measured on."""
    text = ""
    for file in sorted(folder.glob("*/agreement.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        machine, versions = content["machine"], content["versions"]
        shown = ", ".join(f"{k} {versions[k]}" for k in ("torch", "onnxruntime", "openvino"))
        text += f"**{machine['processor']}**, {machine['system']}; {shown}.\n\n"
        text += markdown([_row(r) for r in content["results"] if r["a"] in ("reference", "native")])
        text += f"\n{content['note']}\n" if content["note"] else ""
    return text or "Not measured yet: run `python -m benchmarks.onnx_agreement`.\n"


def _row(r: dict[str, Any]) -> dict[str, str]:
    states = "" if not r["states"] else ", its own states" if r["own"] else ", states of the first"
    differ = f"{r['differ']:,} of {r['decisions']:,}" if r["decisions"] else "–"
    return {
        "program": f"{r['program']}, {r['size']}", "steps": f"{r['steps']}{states}",
        "engines": f"{ENGINES.get(r['a'], r['a'])} and {ENGINES.get(r['b'], r['b'])}",
        "MAD x1e3, mean (largest)": f"{r['mad_mean']:.3g} ({r['mad_largest']:.3g})",
        "a pixel at most": f"{r['pixel']:.2g}", "decisions that differ": differ,
    }  # fmt: skip

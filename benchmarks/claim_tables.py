"""Small tables that stand amid the text of a page: what a sentence there would claim, out of the files of results.

Each function takes the folder of results and gives Markdown; where nothing was measured, the command that measures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vqc.report.tables import markdown

Record = dict[str, Any]
Row = dict[str, str]


def contents(folder: Path, topic: str) -> list[tuple[Path, Record]]:
    """The files of a topic, of every processor, with what they hold."""
    return [(f, json.loads(f.read_text(encoding="utf-8"))) for f in sorted(folder.glob(f"*/{topic}.json"))]


def table(folder: Path, topic: str, rows: Callable[[Sequence[Record]], list[Row]]) -> str:
    """The rows of every processor's file, each table under the file's name."""
    text = ""
    for file, content in contents(folder, topic):
        made = rows(content["results"])
        if made:
            text += f"From `benchmarks/results/{file.parent.name}/{file.name}`:\n\n{markdown(made)}"
    return text or f"Not measured yet: run `python -m benchmarks.{topic.replace('-', '_')}`.\n"


# ---- choices ---------------------------------------------------------------------------------------------------------


def interpolation(folder: Path, *groups: str, also: str = "") -> str:
    """Distances of RIFE's choices to the float network and to the frame that was left out; `also`: one of another
    group, by its name."""

    def row(r: Record) -> Row:
        return {**_interpolated(r), "multiply-adds in float": f"{100 * r['float_share']:.1f} %"}

    return table(
        folder, "choices", lambda records: [row(r) for r in records if r["group"] in groups or r["name"] == also]
    )


def _interpolated(r: Record) -> Row:
    played, real = r["trials"][0], "PSNR dB to the real frame"
    better = played["truth"][real] - played["float_truth"][real]
    return {"how": r.get("name") or f"`{r['row']}`", "dB to float": f"{played['metrics']['PSNR dB']:.1f}",
            "dB to the real frame, less float's": f"{better:+.2f}",
            "weights MB": f"{r['weight_bytes'] / 1e6:.2f}"}  # fmt: skip


FOUR_BITS = ("gptq-w4", "gptq-w4+calm-ranges@speeds", "nearest-percentile-w4a4", "pmqve-w4a4",
             "pmqve-w4a4+calm-ranges@speeds", "qdrop-60-w4a4+calm-ranges@speeds")  # fmt: skip


def four_bits(folder: Path) -> str:
    """RIFE in 4 bits: the rows of the fidelity tables, and what was not chosen."""

    def rows(records: Sequence[Record]) -> list[Row]:
        return [
            _interpolated(r) for r in records if r["model"] == "rife" and r["status"] == "ok" and r["row"] in FOUR_BITS
        ]

    tried = table(folder, "choices", lambda records: [_interpolated(r) for r in records if r["group"] == "four-bits"])
    return f"{table(folder, 'fidelity', rows)}\n{tried}"


def matting(folder: Path, group: str) -> str:
    """Distances of RVM's choices to the float matte."""

    def row(r: Record) -> Row:
        metrics = r["trials"][0]["metrics"]
        return {"how": r["name"], "MAD x1e3": f"{metrics['MAD x1e3']:.2f}",
                "dtSSD x1e2": f"{metrics['dtSSD x1e2']:.2f}",
                "weights MB": f"{r['weight_bytes'] / 1e6:.2f}"}  # fmt: skip

    return table(folder, "choices", lambda records: [row(r) for r in records if r["group"] == group])


def signs(folder: Path) -> str:
    """A decoder of signs on two stretches, and what it costs."""

    def rows(records: Sequence[Record]) -> list[Row]:
        found = []
        for r in (r for r in records if r["group"] == "signs"):
            row = {"how": r["name"]}
            for t in r["trials"]:
                row |= {f"`{t['clip']}`: {k}": f"{t['metrics'][k]:.2f}" for k in ("MAD x1e3", "dtSSD x1e2")}
            found.append(row | {"M operations": f"{r['m_operations']:.0f}",
                                "of them behind the first upsample": f"{r['m_operations_behind']:.0f}",
                                "weights MB": f"{r['weight_bytes'] / 1e6:.2f}"})  # fmt: skip
        return found

    return table(folder, "choices", rows)


def roundings(folder: Path) -> str:
    """What soft and whole roundings leave of nearest rounding's error, a column a seed."""

    def rows(records: Sequence[Record]) -> list[Row]:
        found: dict[str, Row] = {}
        for r in records:
            found.setdefault(r["forward"], {"forward": r["forward"]})[f"seed {r['seed']}"] = f"{r['share']:.2f}"
        return list(found.values())

    return table(folder, "roundings", rows)


# ---- others ----------------------------------------------------------------------------------------------------------


def today(folder: Path) -> str:
    """How far recipe `int8` is from float on each network, one sentence of every processor."""
    units = {"MAD x1e3": "{:.2f} MAD x1e3", "PSNR dB": "{:.1f} dB"}
    text = ""
    for file, content in contents(folder, "fidelity"):
        found = []
        for r in content["results"]:
            if r["row"] == "int8" and r["status"] == "ok":
                metrics = r["trials"][0]["metrics"]
                shown = next(u.format(metrics[k]) for k, u in units.items() if k in metrics)
                found.append(f"{r['model'].upper()} {shown}")
        where = f"benchmarks/results/{file.parent.name}/{file.name}"
        text += f"Recipe `int8`, distance to float: {', '.join(found)} (`{where}`).\n"
    return text or "Not measured yet: run `python -m benchmarks.fidelity`.\n"


def zeros(folder: Path) -> str:
    """What masks save in one-bit layers: a layer a row; of the dense one's time."""

    def rows(records: Sequence[Record]) -> list[Row]:
        def share(kind: str, layer: str, density: float) -> str:
            found = [r["ratio"] for r in records if r["kind"] == kind and r["layer"] == layer
                     and abs(r["density"] - density) < 0.02]  # fmt: skip
            return f"{found[0]:.2f}" if found else "–"

        unit, points = "binary unit", "binary unit, points"
        return [{"layer": layer, "layer alone, nothing kept": share("binary", layer, 0.0),
                 **{f"unit, {d:.2f} kept": share(unit, layer, d) for d in (0.10, 0.24, 0.50)},
                 "unit, 0.10 in scattered points": share(points, layer, 0.10)}
                for layer in dict.fromkeys(r["layer"] for r in records if r["kind"] == unit)]  # fmt: skip

    return table(folder, "masked", rows)


def instructions(folder: Path) -> str:
    """Instructions of the Arm kernels under qemu."""

    def rows(records: Sequence[Record]) -> list[Row]:
        return [{"kernel": r["kernel"], "instructions": f"{r['instructions']:.2f}",
                 "bar of the tests": f"{r['bar']:.1f}" if r["bar"] else "–"} for r in records]  # fmt: skip

    return table(folder, "instructions", rows)


def cost(folder: Path) -> str:
    """What the shipped BiVM costs as papers count it, at full masks and at half of them."""

    def rows(records: Sequence[Record]) -> list[Row]:
        return [{"masks keep": f"{100 * r['density']:.0f} %", "G binary multiply-adds": f"{r['binary'] / 1e9:.2f}",
                 "G float ones": f"{r['float'] / 1e9:.2f}", "G operations": f"{r['operations'] / 1e9:.3f}",
                 "weights MB": f"{r['bytes'] / 1e6:.2f}", "the file MB": f"{r['file_bytes'] / 1e6:.2f}"}
                for r in records if r["what"] == "cost"]  # fmt: skip

    return table(folder, "counts", rows)


def launches(folder: Path) -> str:
    """Launches of a step on a GPU, and what is left to PyTorch."""

    def rows(records: Sequence[Record]) -> list[Row]:
        return [{"network": r["network"], "calls": str(r["calls"]), "launches": str(r["launches"]),
                 "left to PyTorch": ", ".join(f"`{op}`" for op in r["left"]) or "nothing"}
                for r in records if r["what"] == "launches"]  # fmt: skip

    return table(folder, "counts", rows)


def halves(folder: Path) -> str:
    """What pictures in half floats between kernels change in a step."""

    def rows(records: Sequence[Record]) -> list[Row]:
        found = []
        for r in records:
            low, high = (100 * f(r["states"]) for f in (min, max))
            found.append({"pictures between kernels": r["dtype"], "alpha, mean error": f"{r['alpha_mean']:.4f}",
                          "alpha, largest": f"{r['alpha_largest']:.3f}",
                          "states, mean error beside their mean": f"{low:.1f} to {high:.1f} %"})  # fmt: skip
        return found

    return table(folder, "triton-halves", rows)


def wild(folder: Path) -> str:
    """How many wild networks came back from files."""
    found = []
    for file, content in contents(folder, "wild-files"):
        records = content["results"]
        same = sum(r["taken"] and r["same_text"] and r["same_c"] for r in records)
        where = f"benchmarks/results/{file.parent.name}/{file.name}"
        found.append(f"Of the {len(records)} networks of `tests/wild`, {same} came back from files with the same text\n"
                     f"and gave the same C (`{where}`).")  # fmt: skip
    return "\n".join(found or ["Not tried yet: run `python -m benchmarks.wild_files`."]) + "\n"


def resumed(folder: Path) -> str:
    """A learned recipe at full size, whole and killed on the way."""

    def rows(records: Sequence[Record]) -> list[Row]:
        return [{"network": r["model"], "recipe": f"`{r['recipe']}`", "s of CPU": str(r["cpu_s"]),
                 "peak MB": str(r["peak_mb"]),
                 "killed": ", ".join(f"after {s} s" for s in r["killed_after_s"]) or "never",
                 "the file": "the same bytes" if r["same"] else "other bytes"} for r in records]  # fmt: skip

    return table(folder, "resume", rows)


BLOCKS: dict[tuple[str, str], Callable[[Path], str]] = {
    ("README.md", "today"): today,
    ("docs/quantization.md", "displacements"): lambda f: interpolation(f, "displacements"),
    ("docs/quantization.md", "channels"): lambda f: interpolation(f, "channels", also="recipe `int8`"),
    ("docs/quantization.md", "four bits"): four_bits,
    ("docs/quantization.md", "pictures"): lambda f: matting(f, "pictures"),
    ("docs/learning.md", "resumed"): resumed,
    ("docs/learning.md", "roundings"): roundings,
    ("docs/learning.md", "dropping"): lambda f: matting(f, "dropping"),
    ("docs/learning.md", "bits"): lambda f: matting(f, "bits"),
    ("docs/learning.md", "bias"): lambda f: matting(f, "bias"),
    **{("docs/fidelity.md", g): lambda f, g=g: matting(f, g) for g in ("ablation 144x256", "ablation 288x512")},
    ("docs/binary.md", "signs"): signs,
    ("docs/binary.md", "cost"): cost,
    ("docs/c-backend.md", "masks"): zeros,
    ("docs/c-backend.md", "instructions"): instructions,
    ("docs/triton.md", "launches"): launches,
    ("docs/triton.md", "halves"): halves,
    ("docs/files.md", "wild networks"): wild,
}
"""What stands between the markers of a name on a page, by page and name."""

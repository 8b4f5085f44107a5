"""Put the tables of benchmarks/results/ between the markers of their pages: a summary into the README, what was timed
into docs/results.md, how faithful recipes are into docs/fidelity.md, one-bit training into docs/training.md, BiVM in
one bit beside its float twin into docs/binary.md, each peer beside vqc into docs/comparisons.md, how far
engines are apart into docs/onnx.md, how many corrupted files were refused into docs/files.md. Smaller tables that stand
amid the text of a page have a name in their markers (benchmarks/claim_tables.py, benchmarks/paper.py).

python -m benchmarks.tables [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    agreement_tables,
    bivm_tables,
    claim_tables,
    comparison_tables,
    fidelity_tables,
    paper,
    training_tables,
)
from benchmarks.fidelity_tables import TITLES
from vqc.report.tables import markdown, write_text

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: begin, made by python -m benchmarks.tables -->", "<!-- results: end -->"
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
             "ratio": "times as fast", "vqc_gmacs": "vqc GMAC/s", "share": "of the limit",
             "pair_share": "of that of pairs"}  # fmt: skip
    text = (
        "\nBinary 3x3 convolutions with true zero padding, one more layer of a body: `chain` has binary pictures "
        "in\nand out, `residual` a sum and a PReLU in float; the limit is that of a loop of xor, count and add.\n\n"
    )
    return text + _chosen(records, names, {"ratio": 2, "share": 2, "pair_share": 2})


def masked(records: Sequence[Record]) -> str:
    """Masked layers: one row for a kind, a layer and a density."""
    names = {"layer": "layer", "kind": "type", "density": "active", "dense_ms": "dense ms", "masked_ms": "masked ms",
             "ratio": "masked / dense"}  # fmt: skip
    text = (
        "\nConvolutions under a mask of blobs (`points`: scattered at random), 1 thread; `binary unit`: with what "
        "follows it in\nBiVM's decoder.\n\n"
    )
    return text + _chosen(records, names, {"density": 2})


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


def _content(folder: Path) -> list[dict[str, Record]]:
    """The files' contents by topic, for each processor."""
    places = sorted(p for p in folder.glob("*") if p.is_dir())
    found = [{t: json.loads((place / f"{t}.json").read_text(encoding="utf-8")) for t in TOPICS
              if (place / f"{t}.json").exists()} for place in places]  # fmt: skip
    return [topics for topics in found if topics]


def section(folder: Path) -> str:
    """All tables."""
    return "\n".join(tables(topics) for topics in _content(folder)) or "Not measured yet: run `make bench`.\n"


def summary(folder: Path) -> str:
    """vqc's two engines beside the fastest peer of each kind, on every network."""
    text = ""
    for topics in _content(folder):
        if "networks" not in topics:
            continue
        machine, rows = topics["networks"]["machine"], []
        for (model, threads), group in _groups(topics["networks"]["results"], "model", "threads").items():
            by_name = {r["engine"]: r for r in group}
            for ours in (r for r in group if r["engine"].startswith("vqc") and r.get("baseline") in by_name):
                peer = by_name[ours["baseline"]]
                rows.append({
                    "network": f"{model} {ours['size']}", "threads": str(threads),
                    "vqc": ours["engine"].split(", ")[-1], "ms": f"{ours['ms']:.1f}",
                    "fastest peer of that kind": peer["engine"], "its ms": f"{peer['ms']:.1f}",
                    "time": f"{ours['ms'] / peer['ms']:.2f} x", "distance to float": _distance(ours),
                    "the peer's": _distance(peer),
                })  # fmt: skip
        text += f"**{machine['processor']}**, {machine['cores']} cores, {machine['system']}.\n\n{markdown(rows)}"
    return text or "Not measured yet: run `make bench`.\n"


def fidelity(folder: Path) -> str:
    """How faithful each way to quantize is, on every network."""
    files = sorted(folder.glob("*/fidelity.json"))
    return fidelity_tables.page([json.loads(f.read_text(encoding="utf-8")) for f in files])


def _distance(record: Record) -> str:
    """The first of a record's metrics that tells how far it is from the float network."""
    for name in ("MAD x1e3", "PSNR dB"):
        if name in record["metrics"]:
            value = record["metrics"][name]
            return "equal" if value is None else f"{value:.2f} {name}" if name[0] == "M" else f"{value:.1f} dB"
    return "–"


def replaced(page: str, text: str, name: str = "") -> str:
    """A page with `text` between its markers, those of that name; ValueError when it lacks them."""
    begin, end = (m.replace("results", f"results of {name}", 1) if name else m for m in (BEGIN, END))
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page has no markers {begin} {end}, or has them twice")
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}\n{text}{end}{after}"


def calibration(folder: Path) -> str:
    """The observing pass by one process and by several, of every processor."""
    text = ""
    for file in sorted(folder.glob("*/calibration.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        machine, records = content["machine"], content["results"]
        alone = {r["case"]: r for r in records if r["processes"] == r["threads"] == 1}
        rows = [{
            "what": f"{r['model']} {r['size']}, {r['case']}: {r['frames']} frames", "processes": str(r["processes"]),
            "threads of each": str(r["threads"]), "s": f"{r['s']:.2f}",
            "times as fast": f"{alone[r['case']]['s'] / r['s']:.2f}", "cpu s": f"{r['cpu_s']:.2f}",
            "whole s": f"{r['whole_s']:.1f}", "ranges": "same bits" if r["same"] else "last bits differ",
        } for r in records]  # fmt: skip
        text += f"**{machine['processor']}**, {machine['cores']} cores, load {machine['load']} before.\n\n"
        text += markdown(rows) + (f"\n{content['note']}\n" if content["note"] else "")
    return text or "Not measured yet: run `python -m benchmarks.calibration`.\n"


def training(folder: Path) -> str:
    """The shipped one-bit network, and BiVM's table I in small."""
    shipped, rows = ([json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob(f"*/bivm-{name}.json"))]
                     for name in ("network", "ablation"))  # fmt: skip
    network, table = training_tables.network(shipped), training_tables.page(rows)
    return f"### The shipped network, clip by clip\n\n{network}### The paper's table I in small\n\n{table}"


def bivm(folder: Path) -> str:
    """BiVM in one bit beside its float twin, of every processor."""
    names = ("bivm-speed.json", "bivm-exact.json")
    text = ""
    for place in sorted({f.parent for name in names for f in folder.glob(f"*/{name}")}):
        found = [json.loads(f.read_text(encoding="utf-8")) if (f := place / n).exists() else None for n in names]
        text += ("\n" if text else "") + bivm_tables.section(*found)
    return text or "Not measured yet: run `python -m benchmarks.bivm speed`.\n"


def corrupt_files(folder: Path) -> str:
    """How many corrupted and forged `.vqc` files were refused or loaded, of every processor."""
    rows = []
    for file in sorted(folder.glob("*/corrupt-files.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        rows += [{
            "on": f"{content['machine']['processor']}, {content['machine']['system']}", "files": f"{r['files']:,}",
            "seed": str(r["seed"]), **{kind: f"{n:,}" for kind, n in r["found"].items()},
            "the slowest": f"{r['slowest_ms']:.0f} ms",
        } for r in content["results"]]  # fmt: skip
    return markdown(rows) if rows else "Not tried yet: run `python -m benchmarks.corrupt_files`.\n"


PAGES: dict[str, Callable[[Path], str]] = {
    "README.md": summary, "docs/results.md": section, "docs/fidelity.md": fidelity, "docs/distributed.md": calibration,
    "docs/training.md": training, "docs/binary.md": bivm, "docs/comparisons.md": comparison_tables.page,
    "docs/onnx.md": agreement_tables.page, "docs/files.md": corrupt_files,
}  # fmt: skip


def outdated(root: Path = ROOT) -> dict[str, str]:
    """The pages whose tables differ from benchmarks/results/, and what they should be."""
    found = {}
    places = {(page, ""): make for page, make in PAGES.items()} | claim_tables.BLOCKS | paper.BLOCKS
    for page in dict.fromkeys(page for page, _ in places):
        old = new = (root / page).read_text(encoding="utf-8")
        for (where, name), make in places.items():
            if where == page:
                new = replaced(new, make(root / "benchmarks" / "results"), name)
        if new != old:
            found[page] = new
    return found


def main() -> None:
    """Update the pages, or with --check only tell whether they are up to date."""
    changed = outdated()
    if "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(changed)}: not as benchmarks/results; run python -m benchmarks.tables" if changed else 0)
    for page, text in changed.items():
        write_text(ROOT / page, text)


if __name__ == "__main__":
    main()

"""The tables of `python -m benchmarks.bivm speed` and `exact` as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vqc.report.tables import markdown

Record = dict[str, Any]
Row = dict[str, str]
MISSING = "not measured"


def _of(records: Sequence[Record], what: str) -> list[Record]:
    return [r for r in records if r["what"] == what]


def _engines(records: Sequence[Record]) -> str:
    """Every engine with one thread and with more, and our ratio in one bit with its baselines."""
    text = ""
    for threads in sorted({r["threads"] for r in records}):
        group = [r for r in records if r["threads"] == threads]
        one = threads == 1
        rows = [{"network": r["network"], "engine": r["engine"], "ms a frame": f"{r['ms']:.1f}"}
                | ({"processor ms": f"{r['cpu_ms']:.1f}"} if one else {}) for r in group]  # fmt: skip
        clock = "processor time" if one else "time on the clock"
        text += f"\n{threads} thread{'' if one else 's'}; least of the frames.\n\n{markdown(rows)}"
        for r in (r for r in group if "ratio" in r):
            text += (f"\n{r['engine']} takes 1/{r['ratio']:.1f} of the {clock} of {r['baseline']}, the fastest float "
                     f"engine, and 1/{r['eager_ratio']:.1f} of that of eager PyTorch's float twin.\n")  # fmt: skip
            if "same_ratio" in r:
                text += f"OpenVINO takes {r['same_ratio']:.1f} times as long for the same one-bit program.\n"
    return text


def _parts(records: Sequence[Record]) -> str:
    rows: dict[str, Row] = {}
    for r in records:
        cell = f"{r['ms']:.2f} ({100 * r['share']:.0f} %)"
        rows.setdefault(r["part"], {"part of a frame": r["part"]})[f"{r['network']}: ms"] = cell
    return "\nWhere a frame's time goes in vqc C, 1 thread.\n\n" + markdown(list(rows.values()))


def _masks(records: Sequence[Record]) -> str:
    rows = [{
        "cells of the mask": f"{r['density']:.2f}", "pixels it reaches": f"{r['kept']:.2f}",
        "decoder, dense: ms": f"{r['dense_ms']:.1f}", "masked: ms": f"{r['masked_ms']:.1f}",
        "times as fast": f"{r['ratio']:.2f}", "frame: ms": f"{r['frame_ms']:.1f}",
        "operations of dense": f"{r['operations']:.2f}",
    } for r in records]  # fmt: skip
    return ("\nThe decoder under masks of blobs; dense is the same decoder whose mask vqc is not told of, baseline of "
            "its row.\n\n" + markdown(rows))  # fmt: skip


def _arm(records: Sequence[Record]) -> str:
    rows = [{
        "network": r["network"], "M instructions": f"{r['instructions'] / 1e6:.1f}",
        "vector": f"{r['vector'] / 1e6:.1f}",
        "loads": f"{r['load'] / 1e6:.1f}", "stores": f"{r['store'] / 1e6:.1f}", "modelled ms": f"{r['model_ms']:.1f}",
    } for r in records]  # fmt: skip
    first = records[0]
    longer = "" if first["counted_at"] == "288x512" else ", as many times longer as 288x512 has pixels more"
    return (
        f"\n64-bit Arm, counted under qemu on a frame of {first['counted_at']}; nothing was timed on Arm.\n"
        f"Modelled{longer}: a core of Cortex-A76's class at 2.86 GHz that\n"
        "issues 4 instructions a cycle, 2 of them on vectors, 2 loads or stores, 1 store, and never waits.\n\n"
        + markdown(rows)
        + f"\nThe float twin (vqc C, float32) executes {first['ratio']:.1f} x the instructions and takes "
        f"{first['model_ratio']:.1f} x the modelled time of one bit.\n"
    )


def _exact(content: Record | None) -> str:
    if content is None:
        return f"\nEvery decision against the training graph: {MISSING}.\n"
    rows = [{
        "machine": r["machine"], "weights": r["weights"], "frames": str(r["frames"]),
        "tensors a frame": str(r["tensors"]),
        "that differ": str(r["differ"]), "largest distance of alpha": f"{r['alpha']:.1e}",
    } for r in content["results"]]  # fmt: skip
    return "\nSigns, masks and states of the C code beside the training graph's, 288x512, with state.\n\n" + markdown(
        rows
    )


def section(speed: Record | None, exact: Record | None) -> str:
    """The tables of one machine. `speed`, `exact`: contents of bivm-speed.json and bivm-exact.json, None for none."""
    text = ""
    if speed is not None:
        machine, records = speed["machine"], speed["results"]
        shown = ", ".join(f"{k} {v}" for k, v in speed["versions"].items() if v != "not installed")
        text += (f"**{machine['processor']}**, {machine['cores']} cores, {machine['system']}, load {machine['load']} "
                 f"before; {shown}. {speed['note']}\n")  # fmt: skip
        jobs = (("engine", _engines, "Engines"), ("part", _parts, "Parts of a frame"), ("mask", _masks, "Masks"),
                ("arm", _arm, "Arm"))  # fmt: skip
        for what, make, name in jobs:
            found = _of(records, what)
            text += make(found) if found else f"\n{name}: {MISSING}.\n"
    return text + _exact(exact)

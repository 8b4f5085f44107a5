"""The page of comparisons: each figure out of a file of results, and what is bad for vqc as well as what is good."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import comparison_tables, tables

ROOT = Path(__file__).parents[2]
PEER = {"model": "rvm", "size": "4x4", "threads": 1, "engine": "p, int8", "kind": "reduced", "ms": 2.0,
        "metrics": {"MAD x1e3": 0.5}}  # fmt: skip
OURS = PEER | {"engine": "vqc C, int8", "ms": 1.0, "metrics": {"MAD x1e3": 0.25}}


def test_no_figure_stands_outside_the_tables() -> None:
    """Between the markers is what the files say (tests/cli/test_documents.py); around them nothing is measured."""
    page = (ROOT / "docs" / "comparisons.md").read_text()
    before, _, rest = page.partition(tables.BEGIN)
    _, end, after = rest.partition(tables.END)
    assert end and not re.findall(r"\d+(?:\.\d+)? ?(?:%|x\b|ms|dB|MB|times)", before + after)
    assert rest.count("| rvm 288x512 |") >= 12 and "Where vqc is behind" in rest


def test_a_peer_that_is_better_is_told_first() -> None:
    assert comparison_tables.behind([PEER, OURS]) == []
    slower = comparison_tables.behind([PEER | {"ms": 0.5}, OURS])
    assert slower == ["rvm 4x4, 1 thread: p, int8 takes 0.5 ms, vqc C, int8 1.0."]
    nearer = comparison_tables.behind([PEER | {"metrics": {"MAD x1e3": 0.1}}, OURS])
    assert len(nearer) == 1 and "nearer to float, 0.10 MAD x1e3 against 0.25 MAD x1e3" in nearer[0]
    picture = {"metrics": {"PSNR dB": 40.0}}
    assert len(comparison_tables.behind([PEER | {"metrics": {"PSNR dB": 41.0}}, OURS | picture])) == 1
    assert comparison_tables.behind([PEER | {"metrics": {"PSNR dB": 39.0}}, OURS | picture]) == []


def test_rows_are_paired_by_network_threads_and_kind() -> None:
    records = [PEER, OURS, PEER | {"threads": 2}, PEER | {"kind": "float32"}]
    assert list(comparison_tables.pairs(records)) == [(PEER, OURS)]
    assert "| rvm 4x4 | 1 | 2.0 | 1.0 | 0.50 x | 0.50 MAD x1e3 | 0.25 MAD x1e3 |" in comparison_tables.speed(records)


def test_steps_of_calibration_are_shown_where_records_hold_them() -> None:
    ours = {"model": "rvm", "size": "4x4", "row": "int8", "kind": "recipe", "computed_by": "C", "status": "ok",
            "trials": [{"part": "held-out", "metrics": {"MAD x1e3": 0.25}}]}  # fmt: skip
    peer = ours | {"row": "p", "kind": "peer", "computed_by": "P 1.0"}
    text, _ = comparison_tables.fidelity([ours | {"calibration_steps": 32}, peer])
    assert "| how | by | steps of calibration | distance to float |" in text
    assert "| `int8` | vqc | 32 | 0.25 MAD x1e3 |" in text and "| `p` | P 1.0 | – | 0.25 MAD x1e3 |" in text
    assert "steps of calibration" not in comparison_tables.fidelity([ours, peer])[0]

"""The small tables amid the text of a page: made of the records they name, put between the markers of their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import choices, claim_tables, paper, tables
from vqc.pipeline import parse
from vqc.recipes import RECIPES

BEGIN = "<!-- results of a: begin, made by python -m benchmarks.tables -->\n"
END = "<!-- results of a: end -->"


def results(folder: Path, topic: str, records: list[dict[str, Any]]) -> Path:
    (folder / "cpu").mkdir(exist_ok=True)
    (folder / "cpu" / f"{topic}.json").write_text(json.dumps({"results": records}))
    return folder


def test_text_goes_between_the_markers_of_its_name() -> None:
    page = f"one\n{BEGIN}old\n{END}\ntwo {tables.BEGIN}\nother\n{tables.END}"
    assert tables.replaced(page, "new\n", "a") == page.replace("old", "new")
    assert tables.replaced(page, "new\n") == page.replace("other", "new")
    for wrong in ("no markers", page + BEGIN, page.replace(END, "")):
        with pytest.raises(ValueError, match="markers"):
            tables.replaced(wrong, "new\n", "a")


def test_a_table_names_its_file_or_says_how_to_measure(tmp_path: Path) -> None:
    assert claim_tables.cost(tmp_path) == "Not measured yet: run `python -m benchmarks.counts`.\n"
    record = {"what": "cost", "density": 0.5, "binary": 2e9, "float": 1e9, "operations": 1.25e9, "bytes": 1e6,
              "file_bytes": 2e6}  # fmt: skip
    left = {"what": "launches", "network": "n", "calls": 9, "launches": 4, "left": []}
    made = claim_tables.cost(results(tmp_path, "counts", [record, left]))
    assert "From `benchmarks/results/cpu/counts.json`:" in made
    assert made.endswith("| 50 % | 2.00 | 1.00 | 1.250 | 1.00 | 2.00 |\n")
    assert claim_tables.launches(tmp_path).endswith("| n | 9 | 4 | nothing |\n")


def _choice(group: str, name: str, **more: Any) -> dict[str, Any]:
    real = "PSNR dB to the real frame"
    trial = {"clip": "c", "metrics": {"PSNR dB": 50.04, "MAD x1e3": 0.5, "dtSSD x1e2": 0.25},
             "truth": {real: 36.9}, "float_truth": {real: 37.0}}  # fmt: skip
    return {"group": group, "name": name, "trials": [trial], "weight_bytes": 2_000_000, "float_share": 0.125,
            "m_operations": 100.4, "m_operations_behind": 20.4, **more}  # fmt: skip


def test_choices_stand_in_the_table_of_their_group(tmp_path: Path) -> None:
    results(tmp_path, "choices", [_choice("a", "first"), _choice("b", "second"), _choice("signs", "third")])
    one = claim_tables.interpolation(tmp_path, "a")
    assert "| first | 50.0 | -0.10 | 2.00 | 12.5 % |" in one and "second" not in one
    assert "second" in claim_tables.interpolation(tmp_path, "a", also="second")
    assert "| second | 0.50 | 0.25 | 2.00 |" in claim_tables.matting(tmp_path, "b")
    assert "| third | 0.50 | 0.25 | 100 | 20 | 2.00 |" in claim_tables.signs(tmp_path)


def test_other_tables(tmp_path: Path) -> None:
    soft = [{"forward": "soft", "seed": s, "share": 0.25 + s} for s in range(2)]
    assert "| soft | 0.25 | 1.25 |" in claim_tables.roundings(results(tmp_path, "roundings", soft))
    wild = [{"taken": t, "same_text": True, "same_c": c} for t, c in ((True, True), (True, False))]
    assert "Of the 2 networks of `tests/wild`, 1 came" in claim_tables.wild(results(tmp_path, "wild-files", wild))
    half = {"dtype": "float16", "alpha_mean": 0.001, "alpha_largest": 0.02, "states": [0.02, 0.01]}
    assert "| float16 | 0.0010 | 0.020 | 1.0 to 2.0 % |" in claim_tables.halves(
        results(tmp_path, "triton-halves", [half])
    )
    ratios = (("binary", 0.0, 0.1), ("binary unit", 0.1, 0.2), ("binary unit, points", 0.1, 0.3))
    binary = [{"kind": k, "layer": "l", "density": d, "ratio": r} for k, d, r in ratios]
    assert "| l | 0.10 | 0.20 | – | – | 0.30 |" in claim_tables.zeros(results(tmp_path, "masked", binary))
    run = {"model": "rvm", "recipe": "r", "cpu_s": 9, "peak_mb": 8, "killed_after_s": [3, 4], "same": False}
    assert "| rvm | `r` | 9 | 8 | after 3 s, after 4 s | other bytes |" in claim_tables.resumed(
        results(tmp_path, "resume", [run])
    )
    row = {"model": "rvm", "row": "int8", "status": "ok", "trials": [{"metrics": {"MAD x1e3": 0.333}}]}
    assert "RVM 0.33 MAD x1e3 (`benchmarks/results/cpu/fidelity.json`)" in claim_tables.today(
        results(tmp_path, "fidelity", [row, row | {"row": "other"}])
    )


def test_launches_on_paper_are_paired_by_layer_and_kernel(tmp_path: Path) -> None:
    def launch(size: str, us: float, layer: str = "a", **more: Any) -> dict[str, Any]:
        return {"what": "launch", "size": size, "layer": layer, "kernel": "k", "GMAC": 1.0, "MB": 2.0, "least us": us,
                "bound": "bytes", **more}  # fmt: skip

    records = [launch("288x512", 1.0), launch("288x512", 3.0), launch("1080p", 10.0), launch("1080p", 30.0),
               launch("288x512", 2.0, "b")]  # fmt: skip
    made = paper.launches(results(tmp_path, "paper", records))
    assert [line.split("|")[5].strip() for line in made.splitlines()[4:]] == ["3.00", "2.00", "1.00"]
    assert "| 3.00 | bytes | 1.000 | 2.0 | 30.00 | bytes | not measured |" in made


def test_every_choice_is_a_pipeline_of_its_own() -> None:
    keys = [(c.group, c.name) for c in choices.CHOICES]
    assert len(set(keys)) == len(keys)
    for choice in choices.CHOICES:
        text = RECIPES["int8"].pipeline.replace("observe,quantize", choice.middle)
        parse(RECIPES[choice.middle].pipeline if choice.middle in RECIPES else text)

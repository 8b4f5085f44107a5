"""The documents say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import tables
from vqc import errors

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_error_is_explained() -> None:
    names = {n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, errors.VqcError)}
    assert names == set(re.findall(r"^\| `(\w+)` \|", read("docs/errors.md"), re.M))


def test_the_results_in_the_readme_are_those_of_the_files() -> None:
    written = read("README.md")
    assert written == tables.replaced(written, tables.section(ROOT / "benchmarks" / "results")), "run: make docs"


def test_a_table_of_results() -> None:
    record = {"model": "rvm", "size": "4x4", "clip": "a", "calibration": "b", "threads": 2, "steps": 3, "engine": "e",
              "ms": 1.26, "weight_bytes": 2_000_000,
              "metrics": {"MAD x1e3": 0.5, "drift dB/frame": 1.0, "PSNR dB": None}}  # fmt: skip
    made = tables.tables({"machine": {"processor": "P", "cores": 2, "system": "S"}, "versions": {"torch": "1"},
                          "results": [record]})  # fmt: skip
    assert "**P**, 2 cores, S; torch 1." in made and "2 threads" in made
    assert "| e | 1.3 | 0.50 | equal | 2.00 |" in made


def test_links_between_the_documents_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", read(name)):
            if not target.startswith("http"):
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"

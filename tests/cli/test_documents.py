"""The documents say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import tables
from benchmarks.networks import against_best
from vqc import errors

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_error_is_explained() -> None:
    names = {n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, errors.VqcError)}
    assert names == set(re.findall(r"^\| `(\w+)` \|", read("docs/errors.md"), re.M))


def test_the_results_on_the_pages_are_those_of_the_files() -> None:
    assert not tables.outdated(ROOT), "run: make docs"


def test_a_table_of_results() -> None:
    record = {"model": "rvm", "size": "4x4", "clip": "a", "calibration": "b", "threads": 2, "steps": 3, "engine": "e",
              "ms": 1.26, "weight_bytes": 2_000_000,
              "metrics": {"MAD x1e3": 0.5, "drift dB/frame": 1.0, "PSNR dB": None}}  # fmt: skip
    head = {"machine": {"processor": "P", "cores": 2, "system": "S", "load": None}, "versions": {"torch": "1"}}
    made = tables.tables({"networks": head | {"results": [record]}})
    assert "**P**, 2 cores, S; torch 1." in made and "2 threads" in made
    assert "| e | 1.3 | 0.50 | equal | 2.00 |" in made
    peer = record | {"engine": "p", "ms": 1.0, "metrics": {}, "kind": "float32"}
    slow = peer | {"engine": "slow", "ms": 9.0}
    other = peer | {"engine": "q", "ms": 0.1, "kind": "reduced"}
    ours = against_best([peer, slow, other, record | {"engine": "vqc C, float32", "kind": "float32"}])
    assert ours[:3] == [peer, slow, other]
    made = tables.networks(ours)
    assert "| vqc C, float32 | 1.3 | 1.26 x | 0.50 | equal | 2.00 |" in made
    assert "Best peers: vqc C, float32: p." in made


def test_tables_of_layers_and_of_the_build() -> None:
    peer = {"shape": "8->8 3x3 @4x4", "macs": 9216, "threads": 1, "engine": "p", "kind": "float32", "ms": 0.5,
            "gmacs": 1.0}  # fmt: skip
    made = tables.layers(against_best([peer, peer | {"engine": "vqc C, float32", "ms": 0.25}]))
    assert "| p | 0.500 |" in made and "| vqc C, float32 | 0.250 (0.50 x) |" in made
    made = tables.build([{"model": "rvm", "size": "4x4", "recipe": "int8", "generate_s": 1.0, "compile_s": 2.0,
                          "source_bytes": 10**6, "weight_bytes": 10**6, "calls": 9, "arena_bytes": 102,
                          "live_bytes": 100}])  # fmt: skip
    assert "| rvm 4x4, int8 | 1.0 | 2.0 | 1.00 | 1.00 | 0.00 | 1.020 x |" in made
    made = tables.binary([{"layer": "a", "kind": "chain", "isa": "full", "vqc_ms": 0.125, "openvino_ms": 0.25,
                           "ratio": 2.0, "vqc_gmacs": 2000, "share": 0.9}])  # fmt: skip
    assert "| a | chain | full | 0.125 | 0.250 | 2.00 | 2000 | 0.90 |" in made
    made = tables.masked([{"kind": "int8", "layer": "a", "density": 0.25, "dense_ms": 1.0, "masked_ms": 0.3,
                           "ratio": 0.3}])  # fmt: skip
    assert "| a | int8 | 0.25 | 1.000 | 0.300 | 0.300 |" in made


def test_links_between_the_documents_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", read(name)):
            if not target.startswith("http"):
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"

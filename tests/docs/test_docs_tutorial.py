"""The tutorial as a reader types it in: every block in order, in an empty folder, printouts compared with the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_blocks import Page, blocks, expected

from vqc.metrics import mad

ROOT = Path(__file__).parents[2]
INSTALL = "pip install '.[video,compiler]'"  # tests/packaging does that


def test_the_tutorial_works_as_printed(tmp_path: Path) -> None:
    page = Page(tmp_path)
    run = [b for b in blocks(ROOT, "docs/tutorial.md") if b.text != INSTALL]
    assert len([b for b in run if b.kind == "output"]) >= 5
    for block in run:
        page.run(block)
    assert (tmp_path / "report.html").is_file() and (tmp_path / "out" / "matte" / "build" / "matte_test").is_file()
    frame, truth = page.names["new"].frames[:1], page.names["new"].alpha[0]
    with page.names["torch"].no_grad():  # what the text says of the figures it leaves out
        exact = page.names["model"](frame)[0][0]
    small = page.names["vqc"].Stream(page.names["small"].executable)(frame)[0][0]
    assert mad(small, exact) < 0.5 * mad(exact, truth)


def test_a_printout_that_differs_is_found(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text("```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n")
    first, second = blocks(tmp_path, "p.md")
    page = Page(tmp_path)
    page.run(first)
    with pytest.raises(AssertionError, match="the page shows"):
        page.run(second)
    assert expected("a ...\nb", "a 1\n2\nb \n") and not expected("a ...\nb", "a 1\nc") and not expected("a", "a\nb")

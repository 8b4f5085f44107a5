"""Printouts are compared. The tutorial itself runs from an installed wheel: tests/packaging/test_wheel.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_blocks import Page, blocks, expected


def test_a_printout_that_differs_is_found(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text("```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n")
    first, second = blocks(tmp_path, "p.md")
    page = Page(tmp_path)
    page.run(first)
    with pytest.raises(AssertionError, match="the page shows"):
        page.run(second)
    assert expected("a ...\nb", "a 1\n2\nb \n") and not expected("a ...\nb", "a 1\nc") and not expected("a", "a\nb")


def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text("```sh\ntrue\nfalse\n```\n\n```sh\nvqc compare nothing.py:make talk.mp4\n```\n")
    for block in blocks(tmp_path, "p.md"):
        with pytest.raises(AssertionError, match="p.md"):
            Page(tmp_path).run(block)

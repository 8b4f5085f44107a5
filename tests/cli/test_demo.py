"""The demo, as short as it may be: files, a table, and what it says about the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vqc.cli import app

pytestmark = pytest.mark.network


@pytest.mark.parametrize(
    ("teacher", "first"), [("--no-teacher", "PyTorch (training graph)"), ("--teacher", "the teacher")]
)
def test_the_one_bit_demo(tmp_path: Path, teacher: str, first: str) -> None:
    done = CliRunner().invoke(app, ["demo", teacher, "--frames", "2", "--size", "96x160", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    written = {p.name for p in tmp_path.iterdir()}
    assert written == {f"bivm-single_face{end}" for end in (".mp4", "-strip.png", "-table.md")}
    rows = (tmp_path / "bivm-single_face-table.md").read_text().splitlines()
    assert first in rows[2]
    assert any(line.startswith("| one bit, vqc C") for line in rows)


def test_a_demo_that_is_not_known_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "rwm", "-o", str(tmp_path)])
    assert done.exit_code == 2 and "bivm, rvm" in done.output

"""docs/cli.md names every command, exit code, bound, and all that a record is made from."""

from __future__ import annotations

import re
from pathlib import Path

from vqc.cli import app
from vqc.cli.compare import BOUNDS
from vqc.cli.config import COMMANDS
from vqc.cli.exits import Exit

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_page_has_what_there_is() -> None:
    commands = {c.callback.__name__ for c in app.registered_commands if c.callback is not None}
    assert set(re.findall(r"`vqc (\w+)`", PAGE.split("**A network**")[0])) == commands
    codes = PAGE.split("| exit code |")[1].split("```")[0]
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", codes, re.M)} == {*Exit, 130}
    assert all(f"`{bound}`" in PAGE for bound in BOUNDS)
    (reading,) = re.findall(r"^(`vqc run`.*) read it", PAGE, re.M)
    assert set(re.findall(r"`(?:vqc )?(\w+)`", reading)) == set(COMMANDS)

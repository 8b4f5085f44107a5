"""What setuptools is told: every package, and every file that is no module."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOPS = (("vqc", "vqc"), ("passes", "vqc.passes"), ("backends", "vqc.backends"))


def test_every_package_is_packaged() -> None:
    """A package that setuptools is not told of is there in a checkout and missing from the wheel."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for top, prefix in TOPS:
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(".".join([prefix, *init.parent.relative_to(ROOT / top).parts]))
    assert listed == found

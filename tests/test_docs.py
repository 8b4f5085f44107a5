"""The documentation keeps up: every pass has its file, its test, its entry; no page names what does not exist."""

import re
import tomllib
from pathlib import Path

import pytest

from vqc.pipeline import passes
from vqc.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", sorted(passes()))
def test_a_pass_is_one_file_one_test_one_entry(name):
    stem = name.replace("-", "_")
    assert (ROOT / "passes" / f"{stem}.py").is_file()
    assert (ROOT / "tests" / "passes" / f"test_{stem}.py").is_file()
    assert f"[`{name}`](../passes/{stem}.py)" in (ROOT / "docs" / "passes.md").read_text()


def test_recipes_are_made_of_passes():
    from vqc.pipeline import parse

    for recipe in RECIPES.values():
        assert str(parse(recipe.pipeline)) == recipe.pipeline


PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_package_is_packaged():
    """A package that setuptools is not told of is there in a checkout and missing from the wheel."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for top, prefix in (("vqc", "vqc"), ("passes", "vqc.passes"), ("backends", "vqc.backends")):
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(".".join([prefix, *init.parent.relative_to(ROOT / top).parts]))
    assert listed == found

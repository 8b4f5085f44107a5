"""Every link leads somewhere: to a file of the repository, to a heading of it, or to a site that is listed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")])
# Sites outside are not asked, so that tests need no network: a new link is looked at by a person, and put here.
OUTSIDE = {
    "https://docs.pytorch.org/TensorRT/",
    "https://github.com/google/atheris",
    "https://github.com/huggingface/safetensors",
    "https://triton-lang.org",
}


def without_code(text: str) -> str:
    """A page without its blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


@cache
def anchors(page: Path) -> frozenset[str]:
    """What headings are called in links, as GitHub and MyST do it."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: dict[str, int] = {}
    out = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        out.add(slug if slug not in found else f"{slug}-{found[slug]}")
        found[slug] = found.get(slug, 0) + 1
    return frozenset(out)


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """The links of a page that lead nowhere, and those to sites that are not listed."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            wrong += [] if target in OUTSIDE else [target]
            continue
        name, _, heading = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        if not to.exists() or not to.is_relative_to(root) or (heading and heading not in anchors(to)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A B\n[a](none.md) [b](#no) [c](#a-b) [d](https://example.org) `[e](x)` [f](page.md#a-b) [g](../x)\n"
    )
    assert broken(page, tmp_path) == ["none.md", "#no", "https://example.org", "../x"]

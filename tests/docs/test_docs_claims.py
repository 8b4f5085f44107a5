"""No measured figure stands in the prose of a page without naming the file of results, or the test, behind it.

Between the markers of `benchmarks.tables` text is made from the files, which tests/cli/test_documents.py compares. Here
is looked at what stands around it: a number with a unit of measurement, or a table of decimals, needs in its paragraph
the name of a file that is there: one of benchmarks/results/, or a test that holds the figure. What is no measurement
though it looks like one (a default, a size, arithmetic) stands in ALLOWED, with the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import tables

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md",
         *sorted(p for p in ROOT.glob("docs/**/*.md") if p.parent.name != "reference")]  # fmt: skip

NUMBER = r"(?<![\w.-])[+-]?\d[\d,]*(?:\.\d+)?"
UNITS = (r"ms|us|s|seconds?|minutes?|hours?|dB|fps|MAD|dtSSD|[kKMG]?B|G?MAC/s|%|x|times|instructions|networks|"
         r"launches|calls|kernels|fallbacks|layers|tensors|files")  # fmt: skip
FIGURES = re.compile(
    rf"{NUMBER} ?(?:{UNITS})(?![\w/-])"  # 3 ms
    r"|(?<![\w.=-])[+-]?0\.\d\d+(?![\d.]*\w)"  # 0.42, a share
    r"|\d(?:\.\d+)?e-\d+"  # 3e-7
    rf"|\b(?:MAD|MSE|dtSSD|PSNR|SSIM|SQNR)(?: x1e\d)?(?: of)? {NUMBER}"  # MAD 0.38
    r"|\b(?:twice|half|third|quarter|two|three|four|five|ten|several) (?:times |the )?(?:as )?"
    r"(?:fast|quick|small|short|slow|faster|slower|smaller|time)\b"
)  # fmt: skip
DECIMAL_CELL = re.compile(r"^[+-]?\d+\.\d+(?:\D.*)?$")
FILES = re.compile(r"(?:benchmarks/results/[\w./-]+\.json|tests/[\w./-]+\.py)")


def prose(text: str) -> str:
    """A page without blocks of code, spans of code that are no paths, and what is generated between markers."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    text = re.sub(r"<!-- (\w[^>]*?): begin\b[^>]*-->.*?<!-- \1: end -->", "", text, flags=re.S)
    return re.sub(r"`([^`\n]*)`", lambda m: m[0] if FILES.search(m[1]) else " ", text)


def paragraphs(text: str) -> list[str]:
    """Paragraphs, items of lists each for itself, a table with what stands before it."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n", prose(text)):
        for part in re.split(r"\n(?=\s*(?:[-*]|\d+\.) )", block.strip("\n")):
            if part.lstrip().startswith("|") and found:
                found[-1] += "\n" + part
            elif part.strip():
                found.append(part)
    return found


def figures(paragraph: str) -> list[str]:
    """What looks measured in a paragraph."""
    cells = [c.strip() for line in paragraph.splitlines() if line.lstrip().startswith("|") for c in line.split("|")]
    flat = " ".join(paragraph.split())
    return [m[0] for m in FIGURES.finditer(flat)] + [c for c in cells if DECIMAL_CELL.match(c)]


def sourced(paragraph: str, root: Path = ROOT) -> bool:
    """Whether it names a file of results or a test, and each that it names is there; what it says is not compared."""
    named = FILES.findall(paragraph)
    return bool(named) and all((root / n).is_file() for n in named)


def claims(text: str, root: Path = ROOT) -> list[tuple[str, str]]:
    """(figure, paragraph) of every figure without a file behind it."""
    return [(f, p) for p in paragraphs(text) if not sourced(p, root) for f in figures(p)]


# What is no measurement, by page and figure, with the reason.
DOWNLOAD, STACK = "what a download takes: the package's size in its registry", "a bound that the kernels are written to"
LAYOUT, THRESHOLD = "lanes of a kernel, not times", "a rule of thumb for the reader, or a default"
ALLOWED = {
    ("README.md", "10 MB"): DOWNLOAD,
    ("README.md", "150 MB"): DOWNLOAD,
    ("README.md", "64 KB"): STACK,
    ("docs/c-backend.md", "64 KB"): STACK,
    ("docs/c-backend.md", "8 x"): LAYOUT,
    ("docs/triton.md", "8 x"): LAYOUT,
    ("docs/triton.md", "2 us"): "what `roofline.py` takes a launch to cost",
    ("docs/binary.md", "32 times"): "arithmetic: a bit in place of 32",
    ("docs/design.md", "1e-7"): "arithmetic: a rounding's edge",
    ("docs/distributed.md", "1.4 times"): "arithmetic that the paragraph shows",
    ("docs/fidelity.md", "1000, dtSSD"): "units of a table",
    ("docs/results.md", "1000, dtSSD"): "units of a table",
    ("docs/howto/flicker.md", "1 %"): THRESHOLD,
    ("docs/report.md", "1 %"): THRESHOLD,
    ("docs/report.md", "20 dB"): THRESHOLD,
    ("docs/learning.md", "2.97 MB"): "an option's value in an example",
    ("docs/fidelity.md", "0.001"): "an option's value",
    ("CHANGELOG.md", "0.16"): "a version",
    ("docs/files.md", "0.1.0"): "a version",
    ("docs/files.md", "0.1.0 and later"): "a version",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_figures_have_files_behind_them(page: Path) -> None:
    name = str(page.relative_to(ROOT))
    found = claims(page.read_text(encoding="utf-8"))
    assert [c for c in found if (name, c[0]) not in ALLOWED] == []
    listed = {figure for where, figure in ALLOWED if where == name}
    assert listed <= {figure for figure, _ in found}, "stands on the list, and no longer on the page"


def test_every_generated_table_says_where_it_comes_from_and_was_measured() -> None:
    for page, name in tables.claim_tables.BLOCKS | tables.paper.BLOCKS:
        begin = tables.BEGIN.replace("results", f"results of {name}", 1)
        block = (ROOT / page).read_text(encoding="utf-8").partition(begin)[2].partition("<!--")[0]
        assert "Not measured" not in block and FILES.search(block), (page, name)
        assert sourced(block), (page, name)


@pytest.mark.parametrize("text", [
    "It takes 3.5 ms a frame.", "RVM is at MAD 0.38 there.", "0.38 MAD x1e3", "a gain of 1.8 to 7 dB", "2 x faster",
    "12.5 times fewer", "It is twice as fast.", "some 10 seconds", "4.0 instructions", "It becomes 144 launches.",
    "5 % longer", "within 3e-7", "it leaves 0.13 of it",
    "- an item\n- weights of 3.7 MB", "| a | b |\n|---|---|\n| soft | 0.42 |", "of `x` it takes 12 s",
    "1.2 minutes (`benchmarks/results/nowhere/none.json`)",
    "A paragraph (`tests/docs/test_docs_claims.py`).\n\nAnother, of 3 ms.",
    "- an item (`tests/docs/test_docs_claims.py`)\n- another, 3 ms",
])  # fmt: skip
def test_a_figure_without_a_file_is_found(text: str) -> None:
    assert claims(text)


@pytest.mark.parametrize("text", [
    "At 288x512 with 8 bits and 64-bit Arm, Python 3.11 to 3.13.", "`takes 3 ms`", "```sh\n3 ms\n```",
    "3 ms (`tests/docs/test_docs_claims.py`)", "[3 ms](../tests/docs/test_docs_claims.py)",
    "<!-- results of a: begin, made by x -->\n3 ms\n<!-- results of a: end -->",
    "| a | b |\n|---|---|\n| 8 | 4 |",
])  # fmt: skip
def test_what_is_no_claim_or_has_its_file_is_left_alone(text: str) -> None:
    assert claims(text) == []

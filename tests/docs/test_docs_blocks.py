"""Every block of code of every page runs, in order, in an empty folder; or it is listed here with the reason."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import KINDS, SAVED, Block, Page, blocks, check_arguments, commands, indented, vqc_arguments
from doc_stages import AFTER, BEFORE, everywhere

from vqc import pipeline

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(p.relative_to(ROOT)) for p in (*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")))
INSTALLS = "installs vqc; tests/packaging installs the wheel into an environment of its own"
# (page, a line of the block) -> why it is not run. Such a block is still parsed, and flags of vqc are looked up.
NOT_RUN = {
    ("README.md", "make demo"): "fetches a clip and takes minutes; tests/cli/test_demo.py runs the demo",
    ("README.md", "pip install -e ."): INSTALLS,
    ("docs/install.md", "pip install ."): INSTALLS,
    ("docs/tutorial.md", "pip install '.[video,compiler]'"): INSTALLS,
    ("CONTRIBUTING.md", "make setup"): "sets up the environment that this test runs in",
    ("docs/distributed.md", "torchrun"): "starts several processes; tests/core/test_distributed.py does",
    ("docs/training.md", "python -m vqc.train --preset small -o"): "trains for hours; tests/train does it for seconds",
    ("docs/learning.md", "matting_scenes"): "learns for hours; tests/learning/test_scenes.py does for seconds",
    ("docs/targets.md", "cc -std=c99"): "NAME stands for a network; tests/backends/c compile exports in this way",
    ("docs/triton.md", "vqc.compile(program, \"cuda\")"): "needs a GPU; tests/backends/triton interpret and compile it",
    ("docs/interop.md", "executorch"): "needs ExecuTorch, which the tests do without",
    ("docs/howto/phone.md", "cmake -S out/phone"): "needs the Android NDK and a phone",
}  # fmt: skip


def reason(block: Block) -> str | None:
    """Why a block is not run, None for one that is."""
    return next((why for (page, text), why in NOT_RUN.items() if page == block.page and text in block.text), None)


def check_without_running(block: Block) -> None:
    """A block that is not run is at least one that could be: it parses, and the flags of vqc exist."""
    if block.kind == "python":
        compile(block.text, str(block), "exec")
        return
    assert block.kind == "sh", f"{block}: only python and sh are left unrun"
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for command in commands(block):
        words, arguments = shlex.split(command), vqc_arguments(command)
        if arguments is not None:
            check_arguments(arguments)
        elif words[0] == "make":
            subprocess.run([*words, "-n", "PYTHON=" + sys.executable], cwd=ROOT, capture_output=True, check=True)
        elif "vqc.train" in words:
            known = subprocess.run([sys.executable, "-m", "vqc.train", "--help"], capture_output=True, text=True).stdout
            given = words[words.index("vqc.train") :]
            assert all(w in known for w in given if w.startswith("-")), f"{block}: {command}"


@pytest.mark.parametrize("name", [p for p in PAGES if blocks(ROOT, p) and p != "docs/tutorial.md"])
def test_every_block_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "REGISTRY", pipeline.passes())
    loaded = set(sys.modules)
    page = Page(tmp_path)
    found = blocks(ROOT, name)
    if any(b.kind not in ("text",) and reason(b) is None for b in found):
        everywhere(tmp_path, monkeypatch, page.names)
        BEFORE.get(name, lambda *given: None)(tmp_path, monkeypatch, page.names)
    try:
        for block in found:
            if reason(block) is None:
                page.run(block)
            else:
                check_without_running(block)
        AFTER.get(name, lambda names: None)(page.names)
    finally:
        for module in set(sys.modules) - loaded:
            if getattr(sys.modules[module], "__file__", None) and str(tmp_path) in str(sys.modules[module].__file__):
                del sys.modules[module]


def test_blocks_are_of_known_kinds_and_saved_ones_have_names() -> None:
    for name in PAGES:
        for block in blocks(ROOT, name):
            assert block.kind in KINDS, f"{block}: ```{block.kind}"
            assert block.kind not in SAVED or block.file, f"{block}: begin with the file's name in a comment"


def test_no_code_hides_in_indented_lines() -> None:
    assert {name: indented(ROOT, name) for name in PAGES if indented(ROOT, name)} == {}


def test_every_reason_is_still_needed() -> None:
    found = [(b.page, b.text) for name in PAGES for b in blocks(ROOT, name)]
    stale = [(page, text) for page, text in NOT_RUN if not any(p == page and text in t for p, t in found)]
    assert stale == []


def test_wrong_flags_are_found(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text("```sh\nvqc compare rvm talk.mp4 --recipee int8\n```\n\n    indented\n")
    with pytest.raises(Exception, match="recipee"):
        check_without_running(blocks(tmp_path, "p.md")[0])
    assert indented(tmp_path, "p.md") == ["    indented"]

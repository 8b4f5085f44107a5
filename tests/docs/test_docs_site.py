"""The site builds without a warning, its generated pages are current, and its lists are those of the code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from vqc.pipeline import parse, passes
from vqc.recipes import RECIPES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-d", tmp_path / "trees"]
    done = subprocess.run([*command, ROOT / "docs", tmp_path / "site"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {p.relative_to(tmp_path / "site").with_suffix("") for p in (tmp_path / "site").rglob("*.html")}
    assert {p.relative_to(ROOT / "docs").with_suffix("") for p in ROOT.glob("docs/**/*.md")} <= pages
    api = (tmp_path / "site" / "reference" / "api.html").read_text(encoding="utf-8")
    for name in ("vqc.capture", "vqc.apply", "vqc.compile", "vqc.Stream", "vqc.video.read_clip", "vqc.metrics.mad"):
        assert f'id="{name}"' in api, f"{name} is not on the page of the Python interface"


def test_the_reference_pages_are_current() -> None:
    """In a process of its own: other tests add operators and rules to the registries."""
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_reference_pages_hold_what_there_is(generate: ModuleType) -> None:
    made = {name: page() for name, page in generate.PAGES.items()}
    assert set(re.findall(r"^## (\S+)$", made["passes.md"], re.M)) == set(passes())
    assert set(re.findall(r"^## (\S+)$", made["recipes.md"], re.M)) == set(RECIPES)
    for text, recipe in zip(re.findall(r"```text\n(.*?)```", made["recipes.md"], re.S), RECIPES.values(), strict=True):
        assert str(parse(text.replace("\n", ""))) == recipe.pipeline
    assert "| `weight_bits` | whole number | `8` |" in made["passes.md"]


def test_the_support_matrix_is_what_the_backends_say(generate: ModuleType) -> None:
    """A program of many operators: where a backend takes a call, the matrix says so; where it has no rule, too."""
    import torch

    import vqc
    from vqc.backends import backend_for
    from vqc.backends.c.registry import op_name

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ConvTranspose2d(8, 4, 2, 2)
            self.register_buffer("h", torch.zeros(1, 8, 8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.h = torch.tanh(self.a(x)) * 0.5 + self.h * torch.sigmoid(self.h)
            y = torch.cat((self.b(self.h).relu(), torch.nn.functional.interpolate(x, scale_factor=2.0)), 1)
            return torch.linalg.matrix_norm(y)

    program = vqc.capture(Mixed().eval(), torch.rand(1, 3, 8, 8), known_ranges={"x": (0, 1)})
    lowered = vqc.apply(program, "int8-all", calibration=torch.rand(2, 3, 8, 8))
    seen = set()
    for name, target in (("C", "portable"), ("ONNX", "onnx"), ("Triton", "triton")):
        for p in (program, lowered):
            for node in p.calls:
                op, taken = op_name(node.target), backend_for(target).supports(p, node, target) is None
                if op != "getitem":
                    seen.add((op, taken))
                    assert not taken or generate.takers(op)[name], f"{name} takes {op}, and the matrix does not say so"
                    assert taken or not generate.takers(op)[name] or name == "Triton", f"{name} does not take {op}"
    assert len(seen) > 12


def test_every_extra_is_explained() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text(), re.M)) == set(extras)
    named = re.findall(r"(?:vqc|'?\.)\[([\w,]+)\]", "".join(p.read_text() for p in ROOT.glob("docs/**/*.md")))
    assert {n for several in named for n in several.split(",")} <= set(extras)


@pytest.mark.parametrize("name", sorted(passes()))
def test_a_pass_is_one_file_one_test_one_entry(name: str) -> None:
    stem = name.replace("-", "_")
    assert (ROOT / "passes" / f"{stem}.py").is_file()
    assert (ROOT / "tests" / "passes" / f"test_{stem}.py").is_file()
    assert f"[`{name}`](../passes/{stem}.py)" in (ROOT / "docs" / "passes.md").read_text()


def test_recipes_are_made_of_passes() -> None:
    for recipe in RECIPES.values():
        assert str(parse(recipe.pipeline)) == recipe.pipeline

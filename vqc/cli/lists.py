"""`vqc recipes | passes | targets`: what there is to choose from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_type_hints

import typer

from vqc.api import pipeline_of
from vqc.backends import TARGETS
from vqc.backends.c.targets import TARGETS as C_TABLE
from vqc.cli.complete import recipe_names
from vqc.cli.exits import Misuse
from vqc.cli.show import Answer
from vqc.errors import PipelineError
from vqc.pipeline import Pass
from vqc.pipeline import passes as known_passes
from vqc.recipes import RECIPES

FULL = "-full"
_OTHERS = {
    "reference": "PyTorch on this machine, operator for operator: slow, and what the others are judged by",
    "inductor": "PyTorch's own compiler, on this machine",
    "triton": "Triton kernels on this machine's GPU",
    "cuda": "the same; cuda:sm_90 names an architecture, which export needs",
    "hip": "AMD GPUs: hip:gfx942 (compiled, never run)",
    "onnx": "an ONNX model with QuantizeLinear; onnx:exact has the reference's integers",
    "openvino": "OpenVINO on this machine's CPU; openvino:float has one-bit layers as float ones",
    "pt2": "a file of torch.export; pt2:decomposed, pt2:xnnpack and pt2:tensorrt in the operators other tools know",
    "tensorrt": "TensorRT through torch-tensorrt, on a machine with its GPU (never run)",
}
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]


def recipes(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Show these whole; none: all in brief.",
                                                      autocompletion=recipe_names, show_default=False)] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """List the recipes (what --recipe takes) and their pipelines."""
    unknown = [name for name in names or () if name not in RECIPES]
    if unknown:
        raise Misuse(PipelineError(f"there is no recipe called {unknown[0]!r}",
                                   way_out="use one of " + ", ".join(RECIPES)))  # fmt: skip
    answer = Answer("recipes", json)
    for line in whole_lines(names) if names else recipe_lines():
        answer.line(line)
    answer.give(recipes=[dataclasses.asdict(RECIPES[name]) for name in names or RECIPES])


def passes(json: Json = False) -> None:
    """List the passes that a pipeline's text (which --recipe takes too) can name."""
    answer = Answer("passes", json)
    found = [_pass_data(name, cls) for name, cls in sorted(known_passes().items())]
    for row in found:
        answer.line(f"{row['name']}: {row['about']}")
    answer.give(passes=found)


def targets(json: Json = False) -> None:
    """List the targets (what --target takes)."""
    answer = Answer("targets", json)
    answer.table(target_rows())
    answer.give(targets=[{"target": name, "what": _about(name), "instruction_sets": _sets(name)} for name in TARGETS])


def target_rows() -> list[dict[str, str]]:
    """Every target: what it is, and the instruction sets a program for it has or can be compiled for."""
    return [{"target": name, "what": _about(name), "instruction sets": ", ".join(_sets(name))} for name in TARGETS]


def _about(name: str) -> str:
    return C_TABLE[name].about if name in C_TABLE else _OTHERS.get(name, "")


def _sets(name: str) -> list[str]:
    return [v.name for v in C_TABLE[name].variants] if name in C_TABLE else []


def recipe_lines() -> Iterator[str]:
    """Two or three lines for each recipe; one that learns and its -full form stand together."""
    for name, recipe in RECIPES.items():
        if name.endswith(FULL) and name.removesuffix(FULL) in RECIPES:
            continue
        full = RECIPES.get(name + FULL)
        yield f"{name}{f' | {full.name}' if full else ''}: {recipe.about}"
        passes = decisive(name)
        yield f"  {','.join(passes)}"
        if full:
            yield f"  {FULL[1:]}: {','.join(p for p in decisive(full.name) if p not in passes)}"
    yield ""
    free = [name for name, recipe in RECIPES.items() if not recipe.needs_calibration]
    yield f"All but {' and '.join(free)} need a calibration clip. Shown are the passes between those of float and"
    yield "lower-integer; of a -full recipe, which takes hours, those that differ. `vqc recipes NAME` prints a whole"
    yield "pipeline."


def decisive(name: str) -> list[str]:
    """The passes of a recipe from `observe` to before `lower-integer`, as text; all of them where it has neither."""
    passes = pipeline_of(name).passes
    kinds = [p.name for p in passes]
    if "observe" in kinds and "lower-integer" in kinds:
        passes = passes[kinds.index("observe") : kinds.index("lower-integer")]
    return [str(p) for p in passes]


def whole_lines(names: Sequence[str]) -> Iterator[str]:
    """The pipelines of these recipes."""
    for name in names:
        yield f"{name}: {RECIPES[name].about}"
        yield f"  {RECIPES[name].pipeline}"


def _pass_data(name: str, cls: type[Pass]) -> dict[str, Any]:
    first = (cls.__doc__ or "").strip().splitlines()[0]
    hints = get_type_hints(cls)
    options = {}
    for f in dataclasses.fields(cls):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        kind = hints[f.name]
        options[f.name] = {"type": kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", ""),
                           "default": default}  # fmt: skip
    return {"name": name, "about": first.removeprefix(f"{name}:").strip(), "promise": str(cls.numerics),
            "options": options}  # fmt: skip

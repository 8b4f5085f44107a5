"""`vqc recipes`: what recipes there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vqc.api import pipeline_of
from vqc.errors import PipelineError
from vqc.recipes import RECIPES

FULL = "-full"


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
    yield "All but float need a calibration clip. Shown are the passes between those of float and lower-integer; of a"
    yield "-full recipe, which takes hours, those that differ. `vqc recipes NAME` prints a whole pipeline."


def decisive(name: str) -> list[str]:
    """The passes of a recipe from `observe` to before `lower-integer`, as text; all of them where it has neither."""
    passes = pipeline_of(name).passes
    kinds = [p.name for p in passes]
    if "observe" in kinds and "lower-integer" in kinds:
        passes = passes[kinds.index("observe") : kinds.index("lower-integer")]
    return [str(p) for p in passes]


def whole_lines(names: Sequence[str]) -> Iterator[str]:
    """The pipelines of these recipes. Raises PipelineError for a name that is none."""
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise PipelineError(f"there is no recipe called {unknown[0]!r}", way_out="use one of " + ", ".join(RECIPES))
    for name in names:
        yield f"{name}: {RECIPES[name].about}"
        yield f"  {RECIPES[name].pipeline}"

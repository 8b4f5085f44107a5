"""What a shell offers on Tab: models, clips, recipes and the passes of a pipeline, targets."""

from __future__ import annotations

from collections.abc import Iterator

from vqc.models import MODELS
from vqc.pipeline import passes
from vqc.recipes import RECIPES
from vqc.video import CLIPS

Offer = tuple[str, str]  # what is written, and what it is


def models(incomplete: str) -> Iterator[Offer]:
    """Networks that come along; a shell offers files where none of them begins so."""
    return ((name, f"{name}, a network that comes along") for name in sorted(MODELS) if name.startswith(incomplete))


def clips(incomplete: str) -> Iterator[Offer]:
    """Clips known by name."""
    return ((name, entry.content) for name, entry in CLIPS.items() if name.startswith(incomplete))


def recipe_names(incomplete: str) -> Iterator[Offer]:
    """Recipes."""
    return ((name, recipe.about) for name, recipe in RECIPES.items() if name.startswith(incomplete))


def recipes(incomplete: str) -> Iterator[Offer]:
    """Recipes, and passes: the next one of a pipeline's text after its last comma."""
    before, comma, begun = incomplete.rpartition(",")
    if not comma:
        yield from recipe_names(incomplete)
    for name, cls in sorted(passes().items()):
        if name.startswith(begun):
            first = (cls.__doc__ or "").strip().splitlines()[0]
            yield before + comma + name, first.removeprefix(f"{name}:").strip()


def targets(incomplete: str) -> Iterator[Offer]:
    """Targets."""
    from vqc.cli.lists import target_rows  # which needs the C backend's tables

    return ((row["target"], row["what"]) for row in target_rows() if row["target"].startswith(incomplete))

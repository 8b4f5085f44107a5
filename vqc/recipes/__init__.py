"""Recipes: named pipelines, as data. A recipe's text round-trips through `vqc.pipeline.parse`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A pipeline's text under a name, with one line for whom it is. `needs_calibration`: it runs calibration clips."""

    name: str
    pipeline: str
    about: str
    needs_calibration: bool = False


_FLOAT = "canonicalize,fold-constants,fold-bn,canonicalize"
_INTEGER = "lower-integer,exact-float,canonicalize"

RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe("float", _FLOAT, "the same network in float32: batch norm folded, constants and duplicates gone"),
        Recipe("int8", f"{_FLOAT},observe,quantize,{_INTEGER}",
               "8-bit weights and activations in every layer but those that make the results; pictures without loss",
               needs_calibration=True),
        Recipe("int8-all", f"{_FLOAT},observe,quantize{{tail=quantized}},{_INTEGER}",
               "as int8, with the layers that make the results in 8 bits as well", needs_calibration=True),
    )
}  # fmt: skip

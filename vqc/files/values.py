"""What stands in a program's graph, as JSON and back: numbers, tuples, dtypes, nodes, tensors, observations.

A list is a JSON array; everything that JSON does not have is an object of one key that says what it is.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from vqc.calibration import wire
from vqc.calibration.observe import Observed
from vqc.frames import Frames
from vqc.program import DTYPE_NAMES

DTYPES = {str(d).removeprefix("torch."): d for d in DTYPE_NAMES}
LAYOUTS = {str(x): x for x in (torch.strided, torch.sparse_coo)}
FORMATS = {str(x): x for x in (torch.contiguous_format, torch.preserve_format, torch.channels_last,
                               torch.channels_last_3d)}  # fmt: skip
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_DEVICE = re.compile(r"(cpu|cuda|xpu|mps|meta)(:\d{1,3})?")
_FRACTION = re.compile(r"-?\d{1,2000}(/\d{1,2000})?")


class Unfit(ValueError):
    """A value that a file cannot hold, or that is not what its place in a file asks for."""


def need(ok: bool, why: str) -> None:
    if not ok:
        raise Unfit(why)


def integer(value: Any, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    need(type(value) is int and low <= value <= high, f"{value!r:.60} is no integer from {low} to {high}")
    return value


def text(value: Any) -> str:
    need(type(value) is str, f"{value!r:.60} is no text")
    return value


def items(value: Any, count: int | None = None) -> list[Any]:
    need(type(value) is list, f"{value!r:.60} is no list")
    need(count is None or len(value) == count, f"a list of {len(value)} items, where {count} belong")
    return value


def fields(value: Any, *required: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object with exactly these keys."""
    need(type(value) is dict, f"{value!r:.60} is no object")
    wrong = sorted((set(value) - {*required, *optional}) | (set(required) - set(value)))
    need(not wrong, f"an object with the keys {sorted(value)!r:.200}, where {list(required)} belong")
    return value


def sizes(value: Any, low: int = 0) -> tuple[int, ...]:
    """A shape or strides: at most 16 whole numbers below 2**40, their product too."""
    found = tuple(integer(v, low, 2**40) for v in items(value))
    need(len(found) <= 16 and math.prod(found) <= 2**40, f"the size {list(found)!r:.80} is too large")
    return found


def dtype(value: Any) -> torch.dtype:
    need(type(value) is str and value in DTYPES, f"{value!r:.60} is no dtype")
    return DTYPES[value]


def dtype_text(value: torch.dtype) -> str:
    name = str(value).removeprefix("torch.")
    need(name in DTYPES, f"a file has no word for {value}")
    return name


# ---- writing ---------------------------------------------------------------------------------------------------------


def encode(value: Any, keep: Callable[[Tensor], str]) -> Any:
    """A value as JSON; `keep` stores a tensor and gives its name. Raises Unfit for what a file cannot hold."""
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return integer(value)
    if kind is float:
        return (
            value if math.isfinite(value) else {"float": next(k for k, v in _FLOATS.items() if repr(v) == repr(value))}
        )
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, Tensor):
        return {"tensor": keep(value)}
    if isinstance(value, list):
        return [encode(v, keep) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(v, keep) for v in value]}
    if isinstance(value, dict) and all(type(k) in (str, int) for k in value):
        return {"dict": [[k, encode(v, keep)] for k, v in value.items()]}
    if isinstance(value, Frames):
        return {"frames": dataclasses.asdict(value)}
    if isinstance(value, Observed):
        return {"observed": json.loads(wire.to_bytes({"": value}))[""]}
    if kind is complex:
        return {"complex": [encode(value.real, keep), encode(value.imag, keep)]}
    if kind is slice:
        return {"slice": [encode(v, keep) for v in (value.start, value.stop, value.step)]}
    if kind is torch.dtype:
        return {"dtype": dtype_text(value)}
    for word, table in (("layout", LAYOUTS), ("memory_format", FORMATS)):
        if kind is type(next(iter(table.values()))) and str(value) in table:
            return {word: str(value)}
    if kind is torch.device and _DEVICE.fullmatch(str(value)):
        return {"device": str(value)}
    raise Unfit(f"a file has no form for a {kind.__module__}.{kind.__qualname__}")


def encode_tree(spec: pytree.TreeSpec) -> Any:
    """The structure of arguments or a result, leaves numbered in order. Classes of the user's own become tuples, or
    dictionaries when they are mappings: a file brings no classes with it."""
    return _tree(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))


def _tree(value: Any) -> Any:
    if type(value) is int:
        return value
    if isinstance(value, Mapping):
        need(all(type(k) in (str, int) for k in value), "a dictionary with keys that are no texts or numbers")
        return {"dict": [[k, _tree(v)] for k, v in value.items()]}
    if type(value) is list:
        return [_tree(v) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [_tree(v) for v in value]}
    children = pytree.tree_leaves(value, is_leaf=lambda x: x is not value)
    need(children != [value], f"a result of class {type(value).__qualname__}")
    return {"tuple": [_tree(v) for v in children]}


# ---- reading ---------------------------------------------------------------------------------------------------------


def decode(value: Any, nodes: Mapping[str, fx.Node], tensor: Callable[[str], Tensor]) -> Any:
    """What `encode` was given; `tensor` gives a stored tensor by its name. Raises Unfit."""

    def inner(v: Any) -> Any:
        return decode(v, nodes, tensor)

    if value is None or type(value) in (bool, str, float):
        return value
    if type(value) is int:
        return integer(value)
    if type(value) is list:
        return [inner(v) for v in value]
    need(type(value) is dict and len(value) == 1, f"{value!r:.60} is no value")
    (word, content), = value.items()  # fmt: skip
    if word == "node":
        need(text(content) in nodes, f"the node {content!r:.60} is read before it is there")
        return nodes[content]
    if word == "tensor":
        return tensor(text(content))
    if word == "tuple":
        return tuple(inner(v) for v in items(content))
    if word == "dict":
        return _pairs(content, inner)
    if word == "slice":
        return slice(*(inner(v) for v in items(content, 3)))
    if word == "complex":
        real, imaginary = (inner(v) for v in items(content, 2))
        need(type(real) is float and type(imaginary) is float, "a complex number is made of two floats")
        return complex(real, imaginary)
    if word == "observed":
        return _observed(content)
    if word == "frames":
        return _frames(content)
    need(type(content) is str, f"{value!r:.60} is no value")
    if word == "device":
        need(_DEVICE.fullmatch(content) is not None, f"{content!r:.60} is no device")
        return torch.device(content)
    tables: dict[str, Mapping[str, Any]] = {"float": _FLOATS, "dtype": DTYPES, "layout": LAYOUTS,
                                            "memory_format": FORMATS}  # fmt: skip
    table = tables.get(word, {})
    need(content in table, f"{value!r:.60} is no value")
    return table[content]


def _pairs(content: Any, inner: Callable[[Any], Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pair in items(content):
        key, v = items(pair, 2)
        need(type(key) in (str, int) and key not in found, f"a dictionary with the key {key!r:.60} twice, or no key")
        found[key] = inner(v)
    return found


def _frames(content: Any) -> Frames:
    names = [f.name for f in dataclasses.fields(Frames)]
    found = fields(content, *names)
    need(found["kind"] in ("axis", "folded", "step", "slot", "none"), f"frames of the kind {found['kind']!r:.40}")
    text(found["note"])
    for name in ("axis", "count", "index", "outer", "slots"):
        integer(found[name], -16, 2**31)
    return Frames(**found)


def _observed(content: Any) -> Observed:
    """An observation; exact sums are checked before they are read: a few letters can stand for endless digits."""
    found = fields(content, "policy", "groups")
    need(found["policy"] in ("tensor", "frame", "phase"), f"observed by {found['policy']!r:.40}")
    for key, group in fields(found["groups"], *found["groups"]).items():
        need(key.lstrip("-").isdecimal() and len(key) < 12, f"a group called {key!r:.40}")
        g = fields(
            group, "low", "high", "sum_low", "sum_high", "power", "frames", "values", "exponent", "first", "counts"
        )
        for name in ("sum_low", "sum_high"):
            need(_FRACTION.fullmatch(text(g[name])) is not None, f"{g[name]!r:.40} is no fraction")
        for name in ("frames", "values", "first"):
            integer(g[name], -(2**62), 2**62)
        integer(g["exponent"], -1100, 1100)
        for name in ("low", "high"):
            need(g[name] is None or all(type(v) is float for v in items(g[name])), f"{name} is no list of floats")
        need(g["power"] is None or all(type(v) is int for v in items(g["power"])), "power is no list of integers")
        for v in items(g["counts"]):
            integer(v, 0, 2**62)
    return wire.from_bytes(json.dumps({"": found}).encode())[""]


def decode_tree(value: Any) -> pytree.TreeSpec:
    """The structure that `encode_tree` wrote. Raises Unfit."""
    return pytree.tree_structure(_untree(value))


def _untree(value: Any) -> Any:
    if type(value) is int:
        return value
    if type(value) is list:
        return [_untree(v) for v in value]
    found = fields(value, optional=("tuple", "dict"))
    need(len(found) == 1, f"{value!r:.60} is no structure")
    if "tuple" in found:
        return tuple(_untree(v) for v in items(found["tuple"]))
    return _pairs(found["dict"], _untree)

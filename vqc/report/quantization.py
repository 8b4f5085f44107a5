"""Where, when and why a quantized program differs from its float self: everything the report shows, as data."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from vqc.errors import InputError
from vqc.report.bisect import First
from vqc.report.pictures import PictureFrame, WorstFrame
from vqc.report.ranges import Quantizer, Weights

_ANEW = "write it anew with vqc report --json"
FORM = 1  # of the JSON; a reader refuses another one

Table = dict[str, tuple[float, ...]]  # SQNR in dB of every frame, by layer or by `result NAME` and `state NAME`


@dataclass(frozen=True)
class Stage:
    """The program after one pass. `promise`: "exact", "close", "lossy". `did`: its rewrites as text.

    `measured`: False where the pass changed nothing or promises equal bits; the tables are then those of the stage
    before. `outputs`: against the network as captured; `layers`: against the float twin (empty before it). The state is
    the program's own, carried from reset.
    """

    name: str
    promise: str
    did: str
    measured: bool
    outputs: Table
    layers: Table


@dataclass(frozen=True)
class Layer:
    """One layer of the float twin and what became of it.

    `weight_bits`, `activation_bits`: "" in float. `kernel`: what computes it on the target, "" if not compiled.
    `kept`: why it is in float, "" where it is not.
    """

    name: str
    module: str
    operator: str
    shape: str
    weight_bits: str
    activation_bits: str
    granularity: str
    kernel: str
    kept: str


@dataclass(frozen=True)
class LeftAlone:
    """Something a pass declined."""

    by: str
    node: str
    reason: str


@dataclass(frozen=True)
class QuantizationReport:
    """A recipe on a clip. All SQNR are in dB; 200: no difference at all; -99: not finite, or noise alone.

    `stages`: pass by pass. `fresh`: the last program fed with the twin's state at every frame, so that nothing is
    carried over (outputs and layers). `own`: the last program's layers, each fed with the twin's own values: the error
    that arises there. `alone`: the shown picture's SQNR in frame `alone_frame` when only this layer's own error is in
    the float network; `alone_of` is that output. `unmatched`: layers no node of the last program stands for.
    `picture`: what is shown, "" without a picture; `picture_range`: the values shown as black and white.
    `first`: where the bound is first broken, None where it never is.
    """

    network: str
    recipe: str
    clip: str
    calibration: str
    frames: int
    bound: float
    target: str
    stages: tuple[Stage, ...]
    fresh: Table
    own: Table
    alone: dict[str, float]
    alone_of: str
    alone_frame: int
    layers: tuple[Layer, ...]
    unmatched: tuple[str, ...]
    quantizers: tuple[Quantizer, ...]
    weights: tuple[Weights, ...]
    left_alone: tuple[LeftAlone, ...]
    picture: str
    picture_range: tuple[float, float]
    pictures: tuple[PictureFrame, ...]
    worst: tuple[WorstFrame, ...]
    first: First | None
    notes: tuple[str, ...] = ()

    @property
    def last(self) -> Stage:
        return self.stages[-1]

    def to_json(self) -> str:
        """One line of JSON; equal reports give equal bytes."""
        return json.dumps({"form": FORM} | dataclasses.asdict(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> QuantizationReport:
        """The report that `to_json` wrote. Raises InputError for any other text."""
        try:
            data = json.loads(text)
        except ValueError as e:
            raise InputError("a report cannot be read", why=f"it is no JSON: {e}", way_out=_ANEW) from e
        if not isinstance(data, dict) or data.get("form") != FORM:
            raise InputError("a report cannot be read", why=f"it is not of form {FORM}",
                             way_out=_ANEW)  # fmt: skip
        try:
            return _build(cls, {k: v for k, v in data.items() if k != "form"})
        except (KeyError, TypeError, AttributeError) as e:
            raise InputError("a report cannot be read", why=f"a part is missing or wrong: {e}",
                             way_out=_ANEW) from e  # fmt: skip


T = TypeVar("T")


def _build(kind: type[T], data: Any) -> T:
    """A value of type `kind` (dataclasses, tuples, dictionaries, unions with None, plain values) out of JSON's."""
    hint: Any = kind
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{f.name: _build(hints[f.name], data[f.name]) for f in dataclasses.fields(hint)})  # type: ignore
    origin, args = get_origin(hint), get_args(hint)
    made: Any = data
    if origin in (Union, types.UnionType):
        inner = next(a for a in args if a is not type(None))
        made = None if data is None else _build(inner, data)
    elif origin is tuple:
        kinds = [args[0]] * len(data) if args[-1] is Ellipsis else list(args)
        made = tuple(_build(k, v) for k, v in zip(kinds, data, strict=True))
    elif origin is dict:
        made = {k: _build(args[1], v) for k, v in data.items()}
    elif hint is float:
        made = float(data)
    return made


def slope(values: Sequence[float]) -> float:
    """The trend in dB a frame by least squares, over frames that differ at all; below 0, errors pile up."""
    points = [(x, y) for x, y in enumerate(values) if -99 < y < 200]
    if len(points) < 2:
        return 0.0
    mx, my = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
    return sum((x - mx) * (y - my) for x, y in points) / sum((x - mx) ** 2 for x, _ in points)


Progress = Callable[[str, int, int], None]
Steps = Sequence[Sequence[Tensor]]

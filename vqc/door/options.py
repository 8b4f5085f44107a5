"""The options of `torch.compile(model, backend="vqc", options={...})`, typed and checked."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vqc import compat
from vqc.api import pipeline_of
from vqc.backends import TARGETS
from vqc.errors import BackendError


class Kept:
    """Calibration clips that are equal to themselves only."""

    def __init__(self, clips: Any):
        self.clips = clips


def keep_clips(options: Any) -> None:
    """Put the clips in the user's options into an envelope, in place.

    Dynamo compares the options of two compiled models that run the same code with `==`, which for lists of tensors
    raises that a tensor is no truth value. It happens before any backend is asked, so a backend can only see to it that
    its options are comparable from the first graph on.
    """
    clips = options.get("calibration") if isinstance(options, dict) else None
    if clips is not None and not isinstance(clips, Kept):
        options["calibration"] = Kept(clips)


@dataclass(frozen=True, eq=False)
class DoorOptions:
    """What the user of the door may say.

    recipe: "float", the name of a recipe, or a pipeline's text.
    calibration: what every recipe but float needs. A clip is a list of steps, a step the model's arguments for one
        call: a tensor, a tuple of positional arguments, or a dict of named ones. A list of clips is fine, too, and so
        is a function without arguments that returns any of these.
    target: "inductor" (default of float), "native" (C, default of the others), "reference" (eager, the judge).
    debug: check the numeric promise of every pass.
    report: called with a `vqc.door.report.PartReport` after every compilation and every later change of mind.
    seed: for recipes that draw.
    inductor: settings of `torch._inductor.config`, in force only while vqc compiles.
    """

    recipe: str = "float"
    calibration: Any = None
    target: str = ""
    debug: bool = False
    report: Callable[[Any], None] | None = None
    seed: int = 0
    inductor: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_float(self) -> bool:
        return self.recipe == "float"


def parse(mode: str | None, options: Mapping[str, Any] | None) -> DoorOptions:
    """Check what `torch.compile` was given; BackendError naming what is wrong and what is known.

    A recipe that is neither a name nor a pipeline's text raises PipelineError.
    """
    known = {f.name for f in dataclasses.fields(DoorOptions)}
    given = dict(options or {})
    for key in given:
        if key not in known:
            raise BackendError(f"torch.compile(backend='vqc') has no option {key!r}{_guess(key, known)}",
                               way_out="its options are " + ", ".join(sorted(known)))  # fmt: skip
    _check(given, "recipe", str, "a recipe's name or a pipeline's text")
    _check(given, "target", str, "a target's name")
    _check(given, "debug", bool, "true or false")
    _check(given, "seed", int, "a whole number")
    _check(given, "inductor", Mapping, "a dict of torch._inductor.config settings")
    if given.get("report") is not None and not callable(given["report"]):
        raise BackendError("option report is not callable", way_out="give a function that takes one report")
    if isinstance(given.get("calibration"), Kept):
        given["calibration"] = given["calibration"].clips
    parsed = DoorOptions(**given)
    target = parsed.target or ("inductor" if parsed.is_float else "native")
    if target.split(":")[0] not in TARGETS:
        raise BackendError(f"there is no target called {target!r}{_guess(target, TARGETS)}",
                           way_out="use one of " + ", ".join(sorted(TARGETS)))  # fmt: skip
    passes = [] if parsed.is_float else [p.name for p in pipeline_of(parsed.recipe).passes]
    if "observe" in passes and parsed.calibration is None:
        raise BackendError(
            f"recipe {parsed.recipe!r} needs calibration clips",
            why="ranges of activations are measured on them, and the door sees only a graph",
            way_out='give options={"calibration": clips}: lists of steps, a step being the arguments of one call',
        )  # fmt: skip
    settings = {**_mode_settings(mode, target), **parsed.inductor}
    unknown = compat.unknown_inductor_settings(list(settings))
    if unknown:
        raise BackendError(f"Inductor has no setting {unknown[0]!r}", way_out="see torch._inductor.config")
    return dataclasses.replace(parsed, target=target, inductor=settings)


def _mode_settings(mode: str | None, target: str) -> dict[str, Any]:
    if mode in (None, "default"):
        return {}
    if target != "inductor":
        raise BackendError(f"mode {mode!r} means nothing to target {target}",
                           why="torch.compile's modes are sets of Inductor's settings",
                           way_out="leave mode out, or use target inductor")  # fmt: skip
    settings = compat.inductor_mode(str(mode))
    if settings is None:
        raise BackendError(f"torch.compile has no mode {mode!r}", way_out="use one of Inductor's, or leave it out")
    return settings


def _check(given: Mapping[str, Any], name: str, kind: type, text: str) -> None:
    if name in given and (not isinstance(given[name], kind) or (kind is int and isinstance(given[name], bool))):
        raise BackendError(f"option {name} is {given[name]!r}", way_out=f"give {text}")


def _guess(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""

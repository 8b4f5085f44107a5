"""Passes, their numeric promises, and pipelines of them with a text form that round-trips.

    fold-bn,observe{policy=frame},quantize{weight_bits=8}

A pass is a frozen dataclass; its options are its fields. The manager clones the Program, applies the pass, drops dead
nodes, runs the spec, writes the history and, in debug mode, checks the pass's numeric promise on a probe sequence.
"""

from __future__ import annotations

import dataclasses
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch

from vqc import spec
from vqc.distributed import Shard
from vqc.errors import NumericsError, PipelineError
from vqc.layers import Layer
from vqc.program import Declined, PassRecord, Program, evaluate

# ---- numeric promises ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """Every output is equal, bit for bit."""


@dataclass(frozen=True)
class Close:
    """|after - before| <= rtol * max|before| + atol for every output."""

    rtol: float = 1e-5
    atol: float = 1e-6


@dataclass(frozen=True)
class Lossy:
    """The outputs' SQNR stays above `floor` dB (a coarse alarm, not a quality bar)."""

    floor: float = 5.0


Numerics = Exact | Close | Lossy

# ---- passes --------------------------------------------------------------------------------------------------------


Costs = Callable[[Program, str, bool, int], Sequence[Layer]]


@dataclass
class PassContext:
    """What a pass may look at beside the Program.

    `calibration`: clips (see `vqc.calibration.as_clips`), None when the pipeline needs none. `seed`: for passes that
    draw. `debug`: check every pass's promise. `probe`: the steps to check it on (default: the captured example with
    noise, twice, with the state carried). `progress(text, done, total)`: for long passes.
    `twin`: the float program that learning passes imitate; a pipeline sets it to the program as it was before its first
    lossy pass, if none is given. Nodes of both programs that stand for the same value have the same name.
    `labels`: what the results should be, where it is known (see `vqc.learning.labels`). `workdir`: a folder for
    checkpoints and for caches too large for memory; None: a temporary one, and no resuming. `shard`: this process's
    place among those that share the work (`vqc.distributed`, docs/distributed.md).
    `costs(program, target, measured, threads)`: the kernel calls of a program on a target with their times, for passes
    that ask what pays (`vqc.backends.layers_of`); passes themselves know no backend.
    """

    calibration: Any = None
    seed: int = 0
    debug: bool = False
    probe: Sequence[Sequence[torch.Tensor]] | None = None
    progress: Callable[[str, int, int], None] | None = None
    twin: Program | None = None
    labels: Any = None
    workdir: Path | None = None
    shard: Shard = Shard()
    costs: Costs | None = None

    def report(self, text: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(text, done, total)


@dataclass
class PassResult:
    """A pass's outcome: the Program, a count for each kind of rewrite, what was declined and why, and notes."""

    program: Program
    rewrites: dict[str, int] = field(default_factory=dict)
    declined: list[Declined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, what: str, by: int = 1) -> None:
        self.rewrites[what] = self.rewrites.get(what, 0) + by

    def decline(self, node: Any, reason: str) -> None:
        self.declined.append(Declined(getattr(node, "name", str(node)), reason))


class Pass(ABC):
    """Base of every pass: a frozen dataclass with a `name` and a numeric promise.

    `apply` gets a clone it may change in place and returns a PassResult holding it.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics]

    @abstractmethod
    def apply(self, program: Program, context: PassContext) -> PassResult: ...

    def __call__(self, program: Program, context: PassContext | None = None) -> Program:
        """Run this pass alone, with all the checks of a pipeline."""
        return run_pass(self, program, context or PassContext())

    def __str__(self) -> str:
        shown = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            default = f.default
            if f.default_factory is not dataclasses.MISSING:
                default = f.default_factory()
            if value != default:
                shown.append(f"{f.name}={_option_text(value)}")
        return self.name + ("{" + ",".join(shown) + "}" if shown else "")


REGISTRY: dict[str, type[Pass]] = {}


def register(cls: type[Pass]) -> type[Pass]:
    """Class decorator: make a pass known to pipelines under its name."""
    if cls.name in REGISTRY and REGISTRY[cls.name] is not cls:
        raise PipelineError(f"two passes are called {cls.name}", way_out="rename one")
    REGISTRY[cls.name] = cls
    return cls


def passes() -> dict[str, type[Pass]]:
    """All registered passes by name (importing `vqc.passes` registers the built-in ones)."""
    import vqc.passes  # noqa: F401

    return dict(REGISTRY)


# ---- the manager ---------------------------------------------------------------------------------------------------


def probe_steps(program: Program, count: int = 2, seed: int = 0) -> list[list[torch.Tensor]]:
    """The captured example and noisy neighbours of it, as `count` steps."""
    g = torch.Generator().manual_seed(seed)
    steps = []
    for t in range(count):
        step = []
        for x in program.example:
            noise = torch.rand(x.shape, generator=g) * 0.1 * t if x.is_floating_point() else None
            step.append(x if noise is None else (x + noise.to(x.dtype)))
        steps.append(step)
    return steps


def rollout(program: Program, steps: Sequence[Sequence[torch.Tensor]]) -> list[tuple[torch.Tensor, ...]]:
    """Outputs (results, then states) of every step, the state carried from the reset value."""
    state, results = program.initial_state(), []
    for step in steps:
        out = evaluate(program, step, state)
        state = [out[s.output] for s in program.states]
        results.append(tuple(out[: len(program.outputs) + len(program.states)]))
    return results


def _check_numerics(p: Pass, before: Program, after: Program, context: PassContext) -> None:
    steps = context.probe or probe_steps(before)
    if not steps or (before.inputs and not steps[0]):
        return
    for t, (want, got) in enumerate(zip(rollout(before, steps), rollout(after, steps), strict=True)):
        for i, (a, b) in enumerate(zip(want, got, strict=True)):
            problem = _breaks(p.numerics, a, b)
            if problem:
                raise NumericsError(f"pass {p} changed output {i} at step {t}", why=problem,
                                    way_out="this is a defect of the pass, or its promise is too strong")  # fmt: skip


def _breaks(promise: Numerics, a: torch.Tensor, b: torch.Tensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {tuple(a.shape)} became {b.dtype} {tuple(b.shape)}"
    if isinstance(promise, Exact):
        return "" if torch.equal(a, b) else f"it promises equal bits; max difference {_max_diff(a, b):.3g}"
    if isinstance(promise, Close):
        bound = promise.rtol * float(a.abs().max()) + promise.atol if a.numel() else 0.0
        diff = _max_diff(a, b)
        return "" if diff <= bound else f"it promises {promise}; difference {diff:.3g} over the bound {bound:.3g}"
    x, y = a.double(), b.double()
    sqnr = 10 * torch.log10(x.square().sum() / (x - y).square().sum().clamp_min(1e-30)) if x.numel() else 1e9
    return "" if sqnr >= promise.floor else f"it promises {promise}; SQNR {float(sqnr):.1f} dB"


def _max_diff(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def run_pass(p: Pass, program: Program, context: PassContext) -> Program:
    """Apply one pass to a clone, check the spec and (in debug mode) its promise, and write the history.

    Processes of a shard are compared after the pass; the others are told of an error that ends this one.
    """
    try:
        after = _run_pass(p, program, context)
        context.shard.check_equal(after, str(p))
    except Exception as error:
        context.shard.failed(str(p), error)
        raise
    return after


def _run_pass(p: Pass, program: Program, context: PassContext) -> Program:
    before = program
    result = p.apply(program.clone(), context)
    after = result.program
    after.drop_dead()
    if [s.name for s in after.states] != [s.name for s in before.states]:
        raise NumericsError(f"pass {p} lost a state", why=f"{[s.name for s in before.states]} became "
                            f"{[s.name for s in after.states]}", way_out="this is a defect of the pass")  # fmt: skip
    spec.check(after, str(p))
    if context.debug:
        _check_numerics(p, before, after, context)
    return after.recorded(PassRecord(str(p), dict(result.rewrites), tuple(result.declined), tuple(result.notes)))


Callback = Callable[[Pass, Program, Program, float], None]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. `callback(pass, before, after, seconds)` between passes is the one hook for tools."""

    passes: tuple[Pass, ...]
    callback: Callback | None = None

    def run(self, program: Program, context: PassContext | None = None) -> Program:
        context = context or PassContext()
        for p in self.passes:
            if context.twin is None and isinstance(p.numerics, Lossy):
                context = dataclasses.replace(context, twin=program)
            start = time.perf_counter()
            before, program = program, run_pass(p, program, context)
            if self.callback is not None:
                self.callback(p, before, program, time.perf_counter() - start)
        return program

    def __str__(self) -> str:
        return ",".join(str(p) for p in self.passes)


# ---- text ----------------------------------------------------------------------------------------------------------


def _option_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(_option_text(v) for v in value) + "]"
    if value is None:
        return "none"
    return str(value)


def _convert(text: str, hint: Any, where: str) -> Any:
    kinds = get_args(hint) or (hint,)
    if text == "none" and type(None) in kinds:
        return None
    if text.startswith("["):
        inner = next((k for k in get_args(hint) if k is not Ellipsis), str)
        items = [t for t in _split(text[1:-1]) if t]
        return tuple(_convert(t, inner, where) for t in items)
    if get_origin(hint) is tuple:
        raise PipelineError(f"option {where} cannot be {text!r}", why="it is a list", way_out=f"write [{text}]")
    for kind in kinds:
        try:
            if kind is bool and text in ("true", "false"):
                return text == "true"
            if kind in (int, float) and kind is not bool:
                return kind(text)
        except ValueError:
            continue
    words = [w for k in (hint, *kinds) if get_origin(k) is Literal for w in get_args(k)]
    if str in kinds or text in words:
        return text
    raise PipelineError(f"option {where} cannot be {text!r}", why=f"it must be {hint}")


def _split(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for ch in text:
        depth += ch in "{["
        depth -= ch in "}]"
        if depth < 0:
            raise PipelineError(f"pipeline {text!r} closes a brace it never opened")
        if ch == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += ch
    if depth:
        raise PipelineError(f"pipeline {text!r} leaves a brace open")
    return [*parts, current.strip()] if current.strip() or parts else []


def make_pass(name: str, options: Mapping[str, Any] | None = None) -> Pass:
    """A pass by name with options (strings are converted to the fields' types); PipelineError when unknown."""
    known = passes()
    if name not in known:
        raise PipelineError(f"there is no pass called {name!r}", way_out="use one of " + ", ".join(sorted(known)))
    cls = known[name]
    hints = get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    values = {}
    for key, value in (options or {}).items():
        if key not in names:
            raise PipelineError(f"pass {name} has no option {key!r}",
                                way_out="its options are " + (", ".join(sorted(names)) or "none"))  # fmt: skip
        values[key] = _convert(value, hints[key], f"{name}.{key}") if isinstance(value, str) else value
    return cls(**values)


def parse(text: str) -> Pipeline:
    """A pipeline from its text; PipelineError naming what is not understood."""
    result = []
    for part in _split(text):
        m = re.fullmatch(r"([a-z0-9-]+)\s*(?:\{(.*)\})?", part, re.S)
        if m is None:
            raise PipelineError(f"pipeline part {part!r} is not understood", way_out="write name or name{option=value}")
        options = {}
        for item in _split(m.group(2) or ""):
            key, eq, value = item.partition("=")
            if not eq:
                raise PipelineError(f"option {item!r} of pass {m.group(1)} has no value", way_out="write option=value")
            options[key.strip()] = value.strip()
        result.append(make_pass(m.group(1), options))
    return Pipeline(tuple(result))

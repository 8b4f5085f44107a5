"""Teaching a program in training form what its float twin gives: what learns, what stays, lessons and losses.

Nodes that nothing learned reaches give the same values every time a clip is looked at: they are run once for each clip
(the frozen part), the rest at every step (the live part).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx

import vqc.ops  # noqa: F401  (registers the operators)
from vqc.calibration import Clips
from vqc.learning.execute import execute
from vqc.learning.signs import sign_within
from vqc.program import Program, evaluate, shape_of
from vqc.train.losses import TEMPORAL, coherence_loss, laplacian_loss, mimicking_loss

aten = torch.ops.aten
v = torch.ops.vqc

What = Literal["units", "behind", "all"]
Steps = Sequence[Sequence[Tensor]]

_WEIGHTED = {aten.conv2d.default: (1, 2), aten.conv_transpose2d.input: (1, 2), aten.linear.default: (1, 2),
             aten.prelu.default: (1,), aten.mul.Tensor: (0, 1), aten.add.Tensor: (0, 1)}  # fmt: skip


@dataclass
class Learnable:
    """A constant that learns: start + scale * delta. `latent`: a real weight of which only signs are used."""

    key: str
    start: Tensor
    scale: Tensor
    latent: bool
    delta: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.delta = torch.zeros_like(self.start).requires_grad_()

    def value(self) -> Tensor:
        return self.start + self.scale * self.delta


class Apprentice:
    """A program in training form with the constants that learn and both its parts.

    `taps`: nodes that should give what the twin's node of the same name gives; `shrunk`: those that should give a
    result brought to their size; `masks`: where the matte is uncertain, one of them, or None.
    """

    def __init__(self, program: Program, twin: Program, what: What, clips: Clips, reach: float):
        self.program, self.twin, self.what = program, twin, what
        twins = {n.name: n for n in twin.graph.nodes}
        self.taps = {n: twins[n.name] for n in program.calls if n.meta.get("imitates") and n.name in twins}
        self.encoder = {n: t for n, t in self.taps.items() if n.meta.get("encoder")}
        self.shrunk = {n: program.outputs.index(n.meta["shrunk"]) for n in program.calls if "shrunk" in n.meta}
        self.mask = next((n for n in program.calls if n.meta.get("mask")), None)
        self.results = [n if n.meta["val"].is_floating_point() else None
                        for n in program.result_nodes[: len(program.outputs)]]  # fmt: skip
        self.widths = _widths(program, clips, reach)
        self.learnables = self._find()
        self._split()

    # ---- what learns -----------------------------------------------------------------------------------------------

    def _find(self) -> dict[str, Learnable]:
        program = self.program
        found: dict[str, Learnable] = {}
        behind: set[fx.Node] = set()
        moves: set[fx.Node] = set()  # nodes that what learns reaches
        for n in program.calls:
            if any(a in behind for a in n.all_input_nodes) or n.target is v.fake_binarize.default:
                behind.add(n)
        for n in program.calls:
            moving = any(a in moves for a in n.all_input_nodes)
            settled = n.meta.get("producer") and not moving
            learns = n.target in (v.fake_binarize.default, v.fake_binarize_weight.default) or n.meta.get("unit") or (
                self.what == "behind" and n in behind) or self.what == "all"  # fmt: skip
            if learns and not settled:
                for key, scale, latent in self._of(n):
                    found.setdefault(key, Learnable(key, program.constants[key], scale, latent))
                    moving = True
            if moving:
                moves.add(n)
        return found

    def _of(self, n: fx.Node) -> list[tuple[str, Tensor, bool]]:
        """(constant, unit of its change, whether it is latent) of what a node reads and may learn."""
        if n.target is v.fake_binarize_weight.default:
            weight = self.program.constant(n.args[0])
            return [] if weight is None else [(str(n.args[0].target), torch.ones(()), True)]
        if n.target is v.fake_binarize.default:
            tau = self.program.constant(n.args[1])
            width = self.widths[n]
            if tau is None:
                return []
            return [(str(n.args[1].target), width if len(tau) == len(width) else width.mean(), False)]
        found = []
        for i in _WEIGHTED.get(n.target, ()):
            a = n.args[i] if i < len(n.args) else None
            value = self.program.constant(a)
            if value is not None and value.is_floating_point():
                found.append((str(a.target), self._unit_of(n, i, value), False))
        return found

    def _unit_of(self, n: fx.Node, i: int, value: Tensor) -> Tensor:
        """In what unit a constant moves: its own size; a shift in the size of what it is added to."""
        size = value.square().mean().sqrt().clamp(min=1e-3)
        if n.target is aten.add.Tensor:
            other = n.args[1 - i]
            if isinstance(other, fx.Node) and other.target is aten.mul.Tensor:
                factor = self.program.constant(other.args[1])
                conv = other.args[0]
                if factor is not None and isinstance(conv, fx.Node) and conv.target is aten.conv2d.default:
                    inputs = math.prod(shape_of(conv.args[1])[1:])
                    return factor.abs().mean() * math.sqrt(inputs)
        return size

    def _split(self) -> None:
        program = self.program
        learned = set(self.learnables)
        places = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        live: set[fx.Node] = set()
        while True:
            for n in program.calls:
                reads = {str(a.target) for a in n.all_input_nodes if a.op == "get_attr"}
                if reads & learned or any(a in live for a in n.all_input_nodes):
                    live.add(n)
            states = {places[s.input] for s in program.states if program.result_nodes[s.output] in live}
            if states <= live:
                break
            live |= states
        self.live = [n for n in program.calls if n in live]
        self.frozen = [n for n in program.calls if n not in live]
        self.live_states = [s for s in program.states if places[s.input] in live]
        self.places = places
        wanted = {n for n in (*self.results, *self.shrunk, *self.taps) if n is not None}
        wanted |= {program.result_nodes[s.output] for s in self.live_states}
        if self.mask is not None:
            wanted.add(self.mask)
        self.wanted = {n for n in wanted if n in live}
        still = {a for n in self.live for a in n.all_input_nodes if a not in live and a.op != "get_attr"}
        self.edge = still | {n for n in wanted if n not in live}

    def overrides(self) -> dict[fx.Node, Callable[..., Any]]:
        """What computes with the learned values, and with gradients as wide as the inputs."""
        found: dict[fx.Node, Callable[..., Any]] = {}
        values = {k: p.value() for k, p in self.learnables.items()}

        def run(n: fx.Node, places: list[int], *args: Any, **kwargs: Any) -> Any:
            given = [values[str(n.args[i].target)] if i in places else a for i, a in enumerate(args)]
            if n.target is v.fake_binarize.default:
                return sign_within(given[0], given[1], self.widths[n], given[2])
            return n.target(*given, **kwargs)

        for n in self.live:
            places = [i for i, a in enumerate(n.args)
                      if isinstance(a, fx.Node) and a.op == "get_attr" and str(a.target) in values]  # fmt: skip
            if places or n.target is v.fake_binarize.default:
                found[n] = partial(run, n, places)
        return found

    def bake(self) -> None:
        """Write what was learned into the program's constants."""
        for key, p in self.learnables.items():
            self.program.constants[key] = p.value().detach()


def _widths(program: Program, clips: Clips, reach: float) -> dict[fx.Node, Tensor]:
    """How far values at each sign spread, a channel: `reach` standard deviations, over some frames of each clip."""
    sums: dict[fx.Node, list[Tensor]] = {}
    signs = {n.args[0] for n in program.calls if n.target is v.fake_binarize.default}

    def see(n: fx.Node, value: Any) -> None:
        if n in signs:
            x = value.double().transpose(0, 1).flatten(1)
            sums.setdefault(n, []).append(torch.stack((x.mean(1), x.square().mean(1))))

    for clip in clips.clips[:4]:
        state = program.initial_state()
        for step in clip[:4]:
            out = evaluate(program, step, state, see)
            state = [out[s.output] for s in program.states]
    widths = {}
    for n in program.calls:
        if n.target is v.fake_binarize.default:
            mean, square = torch.stack(sums[n.args[0]]).mean(0)
            spread = (square - mean.square()).clamp(min=0).sqrt()
            widths[n] = (reach * spread).clamp(min=0.1 * float(spread.mean()) + 1e-6).float()
    return widths


# ---- lessons ---------------------------------------------------------------------------------------------------------


@dataclass
class Lesson:
    """A clip ready to learn from: for each step the frozen part's values, the twin's results and its taps' values."""

    edges: list[dict[fx.Node, Any]]
    results: list[list[Tensor]]
    taps: list[dict[fx.Node, Tensor]]


@torch.no_grad()
def prepare(who: Apprentice, steps: Steps, features: bool) -> Lesson:
    """Run the frozen part and the twin through a clip from its reset."""
    program, twin = who.program, who.twin
    lesson = Lesson([], [], [])
    state, twin_state = program.initial_state(), twin.initial_state()
    back = {t: n for n, t in who.taps.items()} if features else {}
    next_states = {program.result_nodes[s.output] for s in program.states if s not in who.live_states}
    for step in steps:
        feeds: dict[fx.Node, Any] = {}
        for spec, x in zip(program.inputs, step, strict=True):
            feeds[who.places[spec.name]] = x
        for s, x in zip(program.states, state, strict=True):
            if s not in who.live_states:
                feeds[who.places[s.input]] = x
        found = execute(program, who.frozen, feeds, who.edge | next_states)
        state = [found.get(program.result_nodes[s.output], x) for s, x in zip(program.states, state, strict=True)]
        lesson.edges.append({n: found[n] for n in who.edge})
        taps: dict[fx.Node, Tensor] = {}

        def keep(n: fx.Node, value: Any, taps: dict[fx.Node, Tensor] = taps) -> None:
            if n in back:
                taps[back[n]] = value

        out = evaluate(twin, step, twin_state, keep)
        twin_state = [out[s.output] for s in twin.states]
        lesson.results.append(list(out[: len(twin.outputs)]))
        lesson.taps.append(taps)
    return lesson


def run_live(who: Apprentice, lesson: Lesson, first: int, last: int, state: Sequence[Tensor],
             ) -> tuple[list[dict[fx.Node, Any]], list[Tensor]]:  # fmt: skip
    """Steps first .. last - 1 of a lesson; returns the values of `who.wanted` of each, and the live states after."""
    program = who.program
    changed = who.overrides()
    values = []
    for t in range(first, last):
        feeds = dict(lesson.edges[t])
        feeds.update({who.places[s.input]: x for s, x in zip(who.live_states, state, strict=True)})
        found = execute(program, who.live, feeds, who.wanted, changed)
        state = [found[program.result_nodes[s.output]] for s in who.live_states]
        values.append(found | {n: x for n, x in lesson.edges[t].items() if n not in found})
    return values, list(state)


def live_start(who: Apprentice) -> list[Tensor]:
    return [s.reset.clone() for s in who.live_states]


# ---- losses ----------------------------------------------------------------------------------------------------------


def results_loss(given: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> Tensor:
    """Of results of consecutive steps: L1 + 5 Ltc each, and of one-channel ones the Laplacian pyramid's as well.

    Colours [1,3,H,W] count where a matte [1,1,H,W] of their size is above zero in the twin. Source: RVM's losses.
    """
    total = wanted[0][0].new_zeros(())
    mattes = {tuple(x.shape[-2:]): i for i, x in enumerate(wanted[0]) if x.ndim == 4 and x.shape[1] == 1}
    for i, x in enumerate(wanted[0]):
        if not x.is_floating_point():
            continue
        mine, true = (torch.stack([step[i] for step in steps], 1) for steps in (given, wanted))
        matte = mattes.get(tuple(x.shape[-2:]))
        if x.ndim == 4 and x.shape[1] == 3 and matte is not None:
            seen = (torch.stack([step[matte] for step in wanted], 1) > 0).to(mine.dtype)
            mine, true = mine * seen, true * seen
        total = total + F.l1_loss(mine, true) + TEMPORAL * coherence_loss(mine, true)
        if i == matte:
            total = total + laplacian_loss(mine.flatten(0, 1), true.flatten(0, 1))
    return total


@dataclass(frozen=True)
class Weights:
    """Of the terms beside the results: features, BiVM's mimicking of encoder features (mu), the coarse matte."""

    features: float
    mimicking: float
    matte: float


def lesson_loss(who: Apprentice, values: Sequence[Mapping[fx.Node, Any]], lesson: Lesson, first: int,
                weights: Weights) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(the whole loss, that of the results alone) of consecutive steps from `first` on."""
    wanted = lesson.results[first : first + len(values)]
    given = [[found[n] if n is not None else true for n, true in zip(who.results, step, strict=True)]
             for found, step in zip(values, wanted, strict=True)]  # fmt: skip
    results = results_loss(given, wanted)
    total = results
    distances = []
    for t, found in enumerate(values):
        taps = lesson.taps[first + t]
        if weights.features:
            for n, true in taps.items():
                if n in who.wanted:
                    power = true.square().mean().clamp(min=1e-8)
                    distances.append((found[n] - true).square().mean() / power)
        if weights.mimicking and who.encoder:
            mask = found[who.mask] if who.mask is not None else None
            pairs = [(found[n], taps[n]) for n in who.encoder]
            lbm = mimicking_loss([a for a, _ in pairs], [b for _, b in pairs], mask)
            total = total + weights.mimicking * lbm / len(values)
        if weights.matte:
            for n, result in who.shrunk.items():
                if n in who.wanted:
                    want = F.adaptive_avg_pool2d(wanted[t][result], shape_of(n)[2:])
                    total = total + weights.matte * F.l1_loss(found[n], want) / len(values)
    if distances:
        total = total + weights.features * torch.stack(distances).mean()
    return total, results

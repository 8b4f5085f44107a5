"""allocate-bits: bits of weights and activations layer by layer, by what each costs and what the results lose."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import fx

from vqc.calibration import as_clips, split
from vqc.errors import PipelineError
from vqc.learning.allocation import Table, least, lower_bound, solve, swaps, total
from vqc.learning.execute import Overrides
from vqc.learning.sensitivity import Replacement, Stage, held_stretches, learned_stretches, replacements
from vqc.passes.canonicalize import Canonicalize
from vqc.passes.exact_float import ExactFloat
from vqc.passes.lower_integer import LowerInteger
from vqc.passes.observe import quantizable
from vqc.passes.quantize import Quantize
from vqc.pipeline import Exact, Numerics, Pass, PassContext, PassResult, parse, register
from vqc.program import Program, shape_of

aten = torch.ops.aten

Sensitivity = Literal["fisher", "measured"]
Bits = tuple[int, int]  # of weights, of activations

TRIED = 8  # swaps in a round of repair


@register
@dataclass(frozen=True)
class AllocateBits(Pass):
    """allocate-bits: choose the bits that `quantize` gives every layer's weight and input, within one budget.

    Minimises the sum over layers of the error that each alone brings to the results and next states, solved exactly
    (QuantFace, arXiv 2506.00820; `vqc/learning/allocation.py`). Errors of a network with states do not add up: so the
    choice as a whole is then measured, state carried, the best uniform choice within the budget takes its place if that
    is better on held-out frames (`vqc.calibration.split`), and swaps repair it: a layer gets more bits, others give
    them, and it stays when the error falls on learned and on held-out frames.

    Budgets, exactly one: `size`, MB (10^6 bytes) of the weights of these layers at their bits, without scales and
    biases; `bops`, share of multiply-adds x bits x bits where all have 8; `latency`, share of the time predicted for
    `target` and `threads` where all have 8 (`PassContext.costs`). The C backend stores a weight of 5 to 8 bits in a
    byte, one of 2 to 4 in half a byte (in a byte in depthwise and linear layers); its arithmetic is the same at all of
    them, so that a latency budget finds little to trade there.

    Preconditions: the layer is one that `quantize` takes (else its reason). Valid before: the program of `observe`.
    Valid after: the same; layers carry `meta["bits"]`, which `quantize` obeys. Counts layers by bits; notes hold the
    table. Raises PipelineError when no budget or two are given, the budget is below what the fewest bits cost (it names
    that), SciPy is missing (`pip install vqc[allocate]`), or a latency is asked for without costs.

    Options: `weights`, `activations`: bits to choose from; `sensitivity`: "fisher" predicts errors from gradients, in
    the time of some runs, and measures where none arrives; "measured" runs the network once a layer and choice;
    `frames`: how many frames, learned and held-out each, are looked at; `repair`: rounds at most; `like`: the quantize
    step that will follow, as text.
    """

    name: ClassVar[str] = "allocate-bits"
    numerics: ClassVar[Numerics] = Exact()
    weights: tuple[int, ...] = (8, 6, 4)
    activations: tuple[int, ...] = (8,)
    size: float | None = None
    bops: float | None = None
    latency: float | None = None
    sensitivity: Sensitivity = "fisher"
    frames: int = 16
    repair: int = 8
    like: str = "quantize"
    target: str = "native"
    threads: int = 1

    def apply(self, program: Program, context: PassContext) -> PassResult:
        step = self._check()
        result = PassResult(program)
        parts = split(as_clips(context.calibration, program))
        for n in program.calls:
            n.meta.pop("bits", None)
        choices = tuple(product(sorted(set(self.weights), reverse=True), sorted(set(self.activations), reverse=True)))
        trials = [_uniform(program, step, bits) for bits in choices]
        options = [replacements(program, trial.program) for trial in trials]
        layers = [n for n in quantizable(program) if any(n in o for o in options)]
        reasons = {d.node: d.reason for d in trials[0].declined}
        for n in quantizable(program):
            if n not in layers:
                result.decline(n, reasons.get(n.name, "quantize leaves it alone"))
        if not layers:
            return result
        budget = self._budget(program, layers, choices, trials, step, context)
        search = _Search(self, layers, choices, options, budget,
                         Stage(program, learned_stretches(parts, self.frames), states=True),
                         Stage(program, held_stretches(parts, self.frames), states=False), context)  # fmt: skip
        chosen = search.run()
        for n, option in zip(layers, chosen, strict=True):
            n.meta["bits"] = choices[option]
            result.count("W{}A{}".format(*choices[option]))
        result.notes += [*search.notes, *_table(layers, choices, chosen, search.table, budget)]
        return result

    def _check(self) -> Quantize:
        given = [n for n in ("size", "bops", "latency") if getattr(self, n) is not None]
        if len(given) != 1:
            raise PipelineError(f"allocate-bits has {len(given)} budgets" + (f": {', '.join(given)}" if given else ""),
                                way_out="give one of size (MB), bops or latency (shares of all at 8 bits)")  # fmt: skip
        value = getattr(self, given[0])
        if not 0 < value < math.inf:
            raise PipelineError(f"allocate-bits cannot use {given[0]}={value:g}", way_out="give more than 0")
        bits = (*self.weights, *self.activations)
        if not self.weights or not self.activations or not all(2 <= b <= 8 for b in bits):
            raise PipelineError(f"allocate-bits cannot choose from weights {list(self.weights)}, activations "
                                f"{list(self.activations)}", way_out="give bits from 2 to 8 for both")  # fmt: skip
        if self.sensitivity not in get_args(Sensitivity):
            raise PipelineError(f"allocate-bits has no sensitivity {self.sensitivity!r}",
                                way_out="use " + " or ".join(get_args(Sensitivity)))  # fmt: skip
        if self.frames < 1 or self.repair < 0:
            raise PipelineError(f"allocate-bits cannot use frames={self.frames}, repair={self.repair}",
                                way_out="give frames of 1 or more, repair of 0 or more")  # fmt: skip
        steps = parse(self.like).passes
        if len(steps) != 1 or not isinstance(steps[0], Quantize):
            raise PipelineError(f"allocate-bits cannot imitate {self.like!r}", why="it is not one quantize step",
                                way_out="write like=quantize{...}, the step that follows")  # fmt: skip
        return steps[0]

    def _budget(self, program: Program, layers: Sequence[fx.Node], choices: Sequence[Bits],
                trials: Sequence[PassResult], step: Quantize, context: PassContext) -> _Budget:  # fmt: skip
        if self.size is not None:
            counts = [_weights(program, n) for n in layers]
            return _Budget.sums([[c * w / 8e6 for w, _ in choices] for c in counts], self.size, "MB")
        if self.bops is not None:
            macs = [multiply_adds(program, n) for n in layers]
            whole = 64 * sum(macs) or 1
            return _Budget.sums([[m * w * a / whole for w, a in choices] for m in macs], self.bops, "of the operations")
        assert self.latency is not None
        return self._latency(program, layers, choices, trials, step, context, self.latency)

    def _latency(self, program: Program, layers: Sequence[fx.Node], choices: Sequence[Bits],
                 trials: Sequence[PassResult], step: Quantize, context: PassContext,
                 share: float) -> _Budget:  # fmt: skip
        if context.costs is None:
            raise PipelineError("allocate-bits does not know what layers cost", why="the context has no costs",
                                way_out="run it through vqc.apply, or give PassContext(costs=...)")  # fmt: skip
        costs = context.costs

        def timed(quantized: Program) -> tuple[dict[str, float], float]:
            """Predicted ms of every layer's own calls by the layer's name, and of all calls."""
            lowered = quantized
            for p in (LowerInteger(), ExactFloat(), Canonicalize()):
                lowered = p.apply(lowered.clone(), PassContext()).program
                lowered.drop_dead()
            spent: Counter[str] = Counter()
            for row in costs(lowered, self.target, False, self.threads):
                spent[row.node] += row.predicted_ms or 0.0  # type: ignore[assignment]  # a Counter adds floats as well
            names = _lowered_names(quantized, lowered)
            return {n.name: float(spent[names.get(n.name, n.name)]) for n in layers}, float(sum(spent.values()))

        eight, whole = timed(_uniform(program, step, (8, 8)).program)
        tables = [timed(t.program)[0] for t in trials]
        fixed = (whole - sum(eight.values())) / whole

        def measured(chosen: Sequence[int]) -> float:
            trial = program.clone()
            nodes = {n.name: n for n in trial.calls}
            for n, option in zip(layers, chosen, strict=True):
                nodes[n.name].meta["bits"] = choices[option]
            return timed(step.apply(trial, PassContext()).program)[1] / whole

        table = [[found[n.name] / whole for found in tables] for n in layers]
        return _Budget(np.array(table), share, "of the time", fixed, measured)


@dataclass(frozen=True)
class _Budget:
    """What layers cost at each choice, in `unit`; `fixed`: what is spent beside them; `whole`: a choice's full cost."""

    costs: Table
    limit: float
    unit: str
    fixed: float
    whole: Callable[[Sequence[int]], float]

    @staticmethod
    def sums(table: Sequence[Sequence[float]], limit: float, unit: str) -> _Budget:
        costs = np.array(table)
        return _Budget(costs, limit, unit, 0.0, lambda chosen: total(costs, chosen))

    def fits(self, chosen: Sequence[int]) -> bool:
        return self.whole(chosen) <= self.limit * (1 + 1e-9)


class _Search:
    """Sensitivities, the integer programme, and what measuring its answer as a whole makes of it."""

    def __init__(self, options: AllocateBits, layers: Sequence[fx.Node], choices: Sequence[Bits],
                 replaced: Sequence[dict[fx.Node, Replacement]], budget: _Budget, learned: Stage, held: Stage,
                 context: PassContext):  # fmt: skip
        self.options, self.layers, self.choices = options, layers, choices
        self.replaced, self.budget = replaced, budget
        self.learned, self.held, self.context = learned, held, context
        self.notes: list[str] = []
        self.table: Table = np.zeros(budget.costs.shape)

    def run(self) -> list[int]:
        self.table = self._sensitivities()
        chosen = self._solve()
        named = {"the integer programme's choice": chosen}
        for option, bits in enumerate(self.choices):
            uniform = [option] * len(self.layers)
            if np.isfinite(self.table[:, option]).all() and uniform != chosen and self.budget.fits(uniform):
                named["W{}A{} everywhere".format(*bits)] = uniform
        errors = self._measure(self.held, list(named.values()), "uniform choices")
        best = min(range(len(errors)), key=errors.__getitem__)
        for name, error in zip(named, errors, strict=True):
            self.notes.append(f"error of the results on {self.held.steps} held-out steps (of their mean square): "
                              f"{error:.3g} with {name}")  # fmt: skip
        return self._repair(list(named.values())[best], errors[best])

    def _sensitivities(self) -> Table:
        context = self.context

        def report(done: int, total: int) -> None:
            context.report(f"allocate-bits, {self.options.sensitivity} sensitivity", done, total)

        table = np.zeros(self.budget.costs.shape)
        if self.options.sensitivity == "fisher":
            predicted = self.learned.predicted(self.replaced, self.layers, context.seed, context.shard, report)
            table = np.array(predicted)
        # Where every prediction is zero, no gradient arrives: behind a sign, say, or integers. That is no prediction.
        blind = ~((table > 0) & np.isfinite(table)).any(1)
        there = [(i, j) for i in np.flatnonzero(blind) for j, o in enumerate(self.replaced) if self.layers[i] in o]
        tries = [{self.layers[i]: self.replaced[j][self.layers[i]]} for i, j in there]
        table[blind] = np.inf
        for (i, j), error in zip(there, self.learned.errors(tries, context.shard, report), strict=True):
            table[i, j] = error
        return table

    def _solve(self) -> list[int]:
        budget = self.budget
        room, reached = budget.limit - budget.fixed, least(self.table, budget.costs)
        if reached > room * (1 + 1e-9):
            raise PipelineError(f"allocate-bits cannot reach {budget.limit:.4g} {budget.unit}",
                                why=f"the least that its choices can reach is {reached + budget.fixed:.4g}",
                                way_out="give a larger budget, or fewer bits to choose from")  # fmt: skip
        room = max(room, reached)
        chosen = solve(self.table, budget.costs, room)
        if not budget.fits(chosen):
            chosen = self._one_width(room)
        self.notes.append(f"predicted: errors of {len(chosen)} layers add up to {total(self.table, chosen):.3g} "
                          f"(no choice is below {lower_bound(self.table, budget.costs, room):.3g})")  # fmt: skip
        return chosen

    def _one_width(self, room: float) -> list[int]:
        """The best choice with one width of activations, with which layers that read one tensor share its quantizer."""
        found = [[o] * len(self.layers) for o in range(len(self.choices)) if np.isfinite(self.table[:, o]).all()]
        for width in sorted({a for _, a in self.choices}):
            table = np.where([a == width for _, a in self.choices], self.table, np.inf)
            if least(table, self.budget.costs) <= room:
                found.append(solve(table, self.budget.costs, room))
        fitting = [c for c in found if self.budget.fits(c)]
        if not fitting:
            raise PipelineError(f"allocate-bits found no choice of at most {self.budget.limit:.4g} {self.budget.unit}",
                                why="layers that read one tensor at several widths cost more than each of them alone",
                                way_out="give a larger budget, or one width of activations")  # fmt: skip
        self.notes.append("inputs have one width: with several the quantizers would exceed the budget")
        return min(fitting, key=lambda c: total(self.table, c))

    def _overrides(self, chosen: Sequence[int]) -> Overrides:
        return {n: self.replaced[o][n] for n, o in zip(self.layers, chosen, strict=True)}

    def _measure(self, stage: Stage, tries: Sequence[Sequence[int]], what: str) -> list[float]:
        report = self.context.report
        return stage.errors([self._overrides(t) for t in tries], self.context.shard,
                            lambda i, n: report(f"allocate-bits, {what}", i, n))  # fmt: skip

    def _repair(self, best: list[int], held: float) -> list[int]:
        budget, before, swapped = self.budget, held, 0
        now = self._measure(self.learned, [best], "its answer")[0]
        self.notes.append(
            f"measured: its error on {self.learned.steps} learned steps, next states included, is {now:.3g}"
        )
        room = budget.limit - budget.fixed
        for i in range(self.options.repair):
            tries = [t for t in islice(swaps(self.table, budget.costs, room, best), TRIED) if budget.fits(t)]
            errors = self._measure(self.learned, tries, f"repair {i + 1}")
            if not tries or not min(errors) < now:
                break
            trial = tries[errors.index(min(errors))]
            on_held = self._measure(self.held, [trial], f"repair {i + 1}, held out")[0]
            if not on_held < held:
                break
            best, now, held, swapped = trial, min(errors), on_held, swapped + 1
        if swapped:
            self.notes.append(f"{swapped} swaps: the error on held-out steps falls from {before:.3g} to {held:.3g}")
        elif self.options.repair:
            self.notes.append("no swap of bits between layers lowers the error on learned and on held-out steps")
        return best


def _uniform(program: Program, step: Quantize, bits: Bits) -> PassResult:
    """What the quantize step makes of a clone with these bits everywhere."""
    step = dataclasses.replace(step, weight_bits=bits[0], activation_bits=bits[1], edge_bits=0)
    return step.apply(program.clone(), PassContext())


def _weights(program: Program, n: fx.Node) -> int:
    weight = program.constant(n.args[1])
    assert weight is not None
    return weight.numel()


def multiply_adds(program: Program, n: fx.Node) -> int:
    """Of one step of a convolution, transposed convolution or linear layer."""
    weight = program.constant(n.args[1])
    assert weight is not None and isinstance(n.args[0], fx.Node)
    pictures = n.args[0] if n.target is aten.conv_transpose2d.input else n
    return math.prod(shape_of(pictures)) * math.prod(weight.shape[1:])


def _lowered_names(quantized: Program, lowered: Program) -> dict[str, str]:
    """Layers' names before and after lowering: the integer weight is the same tensor in both."""
    after = {}
    for n in lowered.calls:
        value = lowered.constant(n.args[1]) if len(n.args) > 1 else None
        if value is not None and not value.is_floating_point():
            after[value.data_ptr()] = n.name
    found = {}
    for n in quantized.calls:
        w = n.args[1] if n.target in (aten.conv2d.default, aten.conv_transpose2d.input, aten.linear.default) else None
        while isinstance(w, fx.Node) and w.op == "call_function":
            w = w.args[0]
        value = quantized.constant(w)
        if value is not None and value.data_ptr() in after:
            found[n.name] = after[value.data_ptr()]
    return found


def _table(layers: Sequence[fx.Node], choices: Sequence[Bits], chosen: Sequence[int], errors: Table,
           budget: _Budget) -> list[str]:  # fmt: skip
    """The budget, then a line a layer: its bits, its error alone at every choice, its cost."""
    lines = [f"{budget.whole(chosen):.4g} {budget.unit}, at most {budget.limit:.4g}"]
    heads = ["W{}A{}".format(*bits) for bits in choices]
    for n, option, row, costs in zip(layers, chosen, errors, budget.costs, strict=True):
        alone = ", ".join(f"{e:.3g} at {h}" for e, h in zip(row, heads, strict=True) if math.isfinite(e))
        lines.append(f"{n.name}: {heads[option]}; error alone {alone}; {costs[option]:.4g} {budget.unit}")
    return lines

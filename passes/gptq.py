"""gptq: integers of weights chosen so that what one of them loses, the next make up for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor, fx

from vqc.calibration import Split, as_clips, split
from vqc.calibration.weights import weight_scales
from vqc.errors import PipelineError
from vqc.learning.checkpoint import Checkpoint
from vqc.learning.gptq import Order, compensate, output_error
from vqc.learning.layers import LayerMatrix, integer_layers, layer_matrix
from vqc.learning.rollouts import keep_better, side_by_side, twin_of, waves
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

# Of a layer: "kept", why its integers stay; or "damp", the damping used. And what the tally wants: "old", "new" (errors
# on held-out frames), "saturated". None of the last three for a layer that cannot have groups.
Outcome = dict[str, Any]


@register
@dataclass(frozen=True)
class Gptq(Pass):
    """gptq: w_int = round(w / s) -> w_int that lowers the error of the layer's results, on what the layer really sees.

    For conv2d (grouped and depthwise ones are a problem a group), transposed convolutions (as the forward ones they
    equal) and linear layers. The float weight comes from the twin; scales and activations stay as `quantize` made them.
    Columns of the inputs are drawn at random positions while calibration clips run through the program, state carried:
    layers before are done, layers not yet done multiply their float weight. Methods: GPTQ, and by options FOEM and
    GPTAQ (`vqc/learning/gptq.py`).

    Preconditions, each a reason when it fails: (1) the weight is made of int8 constants that no other layer reads; (2)
    the layer's input is quantized; (3) the twin has a layer of this name; (4) the error of its result on held-out
    frames (`vqc.calibration.split`) falls. If that of the program's results does not fall, nothing is changed.
    Valid before: after `quantize`, before `lower-integer`. Valid after: the same. Counts "layer"; a note says how much
    error is left and how many weights the grid's end cut off.

    Options: `order` - "act" rounds inputs of most energy first, "natural" as they come; `beta` - FOEM's pull towards
    the float weight (0.1; 0 is GPTQ to the bit); `alpha` - GPTAQ's share of the term that aims at the float layer on
    float inputs (0.25; 0 is off); `damp` - part of the mean energy added to every input's; `samples` - columns a layer
    (0: 32 for each input and tap, at least 4096); `waves` - how often calibration runs: layers are cut into so many
    groups in order, and a checkpoint is written after each group; `group` - inputs that share a scale (-1: all), for
    linear layers; no integer kernel multiplies those.
    """

    name: ClassVar[str] = "gptq"
    numerics: ClassVar[Numerics] = Lossy(5.0)
    order: Order = "act"
    beta: float = 0.0
    alpha: float = 0.0
    damp: float = 0.01
    samples: int = 0
    waves: int = 6
    group: int = -1

    def apply(self, program: Program, context: PassContext) -> PassResult:
        self._check()
        result, before = PassResult(program), program.clone()
        twin = twin_of(context, self.name)
        clips = as_clips(context.calibration, program)
        parts = split(clips)
        saved = _Saved(Checkpoint(context.workdir, self.name, (program, twin, clips, str(self), context.seed,
                                                               torch.get_num_threads())))  # fmt: skip
        layers, refused = integer_layers(program, twin)
        for n, reason in refused.items():
            result.decline(n, reason)
        views, done = [layer_matrix(layer) for layer in layers], _Tally()
        for view in views:
            view.lift()
        for number, wave in enumerate(waves(views, self.waves)):
            seen = [_Seen(view) for view in wave]
            if number >= saved.waves:
                self._collect(program, twin, parts, seen, context, number)
                for one in seen:
                    saved.put(one.view, *self._fit(one))
                saved.wave(number + 1)
            for view in wave:
                view.lower()
                self._write(view, saved, result, done)
        if done.before:
            result.notes.append(done.text(parts))
        if result.rewrites:
            keep_better(result, before, twin, parts)
        return result

    def _check(self) -> None:
        if self.order not in ("act", "natural"):
            raise PipelineError(f"gptq has no order {self.order!r}", way_out="use act or natural")
        if not 0 <= self.beta < 1 or not 0 <= self.alpha <= 1 or self.damp < 0:
            raise PipelineError(f"gptq cannot use beta {self.beta:g}, alpha {self.alpha:g}, damp {self.damp:g}",
                                way_out="give 0 <= beta < 1, 0 <= alpha <= 1, damp >= 0")  # fmt: skip

    def _collect(self, program: Program, twin: Program, parts: Split, seen: list[_Seen], context: PassContext,
                 number: int) -> None:  # fmt: skip
        by_input: dict[fx.Node, list[_Seen]] = {}
        for one in seen:
            x = one.view.layer.node.args[0]
            assert isinstance(x, fx.Node)
            by_input.setdefault(x, []).append(one)
        pairs: dict[fx.Node, fx.Node | None] = dict.fromkeys(by_input)
        if self.alpha:
            for x, ones in by_input.items():
                source = ones[0].view.layer.twin.args[0]
                assert isinstance(source, fx.Node)
                pairs[x] = source
        order = {one.view.layer.node: i for i, one in enumerate(seen)}

        def visit(x: fx.Node, value: Tensor, real: Tensor | None, c: int, t: int) -> None:
            for one in by_input[x]:
                key = (number, order[one.view.layer.node], c, t)
                at = self._positions(one.view, parts, context.seed, key)
                one.update(value, real, at, parts.learns(c, t))

        def report(at: int, total: int) -> None:
            context.report(f"gptq, wave {number + 1}", at, total)

        side_by_side(program, twin if self.alpha else None, parts, pairs, visit, report)

    def _positions(self, view: LayerMatrix, parts: Split, seed: int, key: tuple[int, int, int, int]) -> Tensor:
        """Which output positions of this step are looked at; the same for the same seed, layer and step."""
        wanted = self.samples or max(32 * view.columns.width, 4096)
        count = min(math.ceil(wanted / parts.learned), view.columns.positions)
        for part in key:
            seed = (seed * 1_000_003 + part + 1) % 2**62
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(view.columns.positions, generator=generator)[:count]

    def _fit(self, one: _Seen) -> tuple[Outcome, dict[str, Tensor]]:
        """What became of a layer, and its new "integers", int8 [g, R, K], with the "step" of each group of inputs."""
        view, layer = one.view, one.view.layer
        step, grouped = view.step, self.group > 0
        if grouped:
            reason = _cannot_group(view, self.group)
            if reason is not None:
                return {"kept": reason}, {}
            by_group = view.latent.reshape(-1, self.group)
            step = weight_scales(by_group, layer.top).float().double().view(1, len(view.latent[0]), -1)
            step = step.repeat_interleave(self.group, 2)
        rounded = compensate(view.latent, one.learned.hessian(), step, layer.top, order=self.order, beta=self.beta,
                             alpha=self.alpha, shift=one.learned.shift(), damp=self.damp)  # fmt: skip
        old = one.held.error(view.integers * view.step - view.latent, view.latent)
        new = one.held.error(rounded.integers * step - view.latent, view.latent)
        if not new < old:
            return {"kept": f"its error on held-out frames would be {new:.3g}, to nearest it is {old:.3g}",
                    "old": old, "new": old, "saturated": 0}, {}  # fmt: skip
        tensors = {"integers": rounded.integers.to(torch.int8)} | ({"step": step} if grouped else {})
        return {"damp": rounded.damp, "old": old, "new": new, "saturated": rounded.saturated}, tensors

    def _write(self, view: LayerMatrix, saved: _Saved, result: PassResult, done: _Tally) -> None:
        """Put what `_fit` found, now or in an earlier run, into the program."""
        outcome, tensors = saved.get(view)
        node = view.layer.node
        if "old" in outcome:
            done.add(node.name, outcome["old"], outcome["new"], outcome["saturated"], view.latent.numel())
        if "kept" in outcome:
            result.decline(node, outcome["kept"])
            return
        if "step" in tensors:
            _write_groups(view, tensors["integers"].double(), tensors["step"], self.group)
            result.count("grouped layer")
        else:
            view.write(tensors["integers"].double())
            result.count("layer")
        if outcome["damp"] != self.damp:
            result.notes.append(f"{node}: damping {outcome['damp']:g}, its inputs depend on each other")


def _cannot_group(view: LayerMatrix, group: int) -> str | None:
    if not view.columns.linear:
        return "scales of groups of inputs are for linear layers only"
    if view.columns.width % group:
        return f"its {view.columns.width} inputs are no multiple of {group}"
    return None


def _write_groups(view: LayerMatrix, integers: Tensor, step: Tensor, group: int) -> None:
    """A weight whose groups of inputs have their own scales, which only the float layer can multiply."""
    layer, program = view.layer, view.layer.program
    scales = step[0, :, ::group].float().contiguous()
    old = layer.dequantize.args
    with program.graph.inserting_before(layer.dequantize):
        q = program.add_constant(f"{layer.node.name}_int{layer.bits}", integers[0].to(torch.int8))
        s = program.add_constant(f"{layer.node.name}_group_scale", scales)
        z = program.add_constant(f"{layer.node.name}_group_zero", torch.zeros(scales.shape, dtype=torch.int32))
        args = (q, s, z, old[4], old[5], torch.int8, group, torch.float32)
        new = program.call(qd.dequantize_per_channel_group.default, args, like=layer.node, name="weight")
    layer.node.args = (layer.node.args[0], new, *layer.node.args[2:])


@dataclass
class _Sums:
    """Sums of x x^T, (f - x) x^T and (f - x) (f - x)^T over columns: x of the quantized input, f of the float one."""

    own: Tensor | None = None
    cross: Tensor | None = None
    drift: Tensor | None = None
    count: int = 0

    def add(self, x: Tensor, real: Tensor | None) -> None:
        """Columns [g, K, n] of both inputs; without the float one only x x^T is kept."""
        self.own = _plus(self.own, x, x)
        if real is not None:
            self.cross, self.drift = _plus(self.cross, real - x, x), _plus(self.drift, real - x, real - x)
        self.count += x.shape[2]

    def hessian(self) -> Tensor:
        assert self.own is not None
        return self.own / self.count

    def shift(self) -> Tensor | None:
        return None if self.cross is None else self.cross / self.count

    def error(self, difference: Tensor, weight: Tensor) -> float:
        """Mean of |(weight + difference) x - weight f|^2 over columns; f = x where no float input was seen."""
        total = float(output_error(difference, self.hessian()).sum())
        if self.cross is not None and self.drift is not None:
            total -= 2 * float(((difference @ self.cross.mT) * weight).sum()) / self.count
            total += float(output_error(weight, self.drift).sum()) / self.count
        return total


def _plus(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    product = torch.bmm(a, b.mT).double()
    return product if total is None else total + product


@dataclass
class _Seen:
    """Second moments of one layer's inputs: on frames that may be learned from, and on those held out."""

    view: LayerMatrix
    learned: _Sums = field(default_factory=_Sums)
    held: _Sums = field(default_factory=_Sums)

    def update(self, x: Tensor, real: Tensor | None, at: Tensor, learns: bool) -> None:
        columns = self.view.inputs(x, at, quantized=True)
        other = None if real is None else self.view.inputs(real, at, quantized=False)
        (self.learned if learns else self.held).add(columns, other)


class _Saved:
    """What became of the layers of the first `waves` waves, on disk after each of them."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.waves, self.tensors = checkpoint.load() or (0, {})
        self.outcomes: dict[str, Outcome] = {}
        if self.waves:
            self.outcomes = json.loads(bytes(self.tensors.pop("outcomes").tolist()))

    def put(self, view: LayerMatrix, outcome: Outcome, tensors: dict[str, Tensor]) -> None:
        name = view.layer.node.name
        self.outcomes[name] = outcome
        self.tensors |= {f"{what} {name}": x for what, x in tensors.items()}

    def get(self, view: LayerMatrix) -> tuple[Outcome, dict[str, Tensor]]:
        name = view.layer.node.name
        found = {what: self.tensors.get(f"{what} {name}") for what in ("integers", "step")}
        return self.outcomes[name], {what: x for what, x in found.items() if x is not None}

    def wave(self, count: int) -> None:
        """`count` waves are done."""
        text = torch.tensor(list(json.dumps(self.outcomes).encode()), dtype=torch.uint8)
        self.checkpoint.save(count, self.tensors | {"outcomes": text})


@dataclass
class _Tally:
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    cut: dict[str, float] = field(default_factory=dict)
    saturated: int = 0
    weights: int = 0

    def add(self, name: str, before: float, after: float, saturated: int, weights: int) -> None:
        self.before.append(before)
        self.after.append(after)
        self.cut[name] = saturated / weights
        self.saturated += saturated
        self.weights += weights

    def text(self, parts: Split) -> str:
        ratios = [math.log(max(a, 1e-300) / b) for a, b in zip(self.after, self.before, strict=True) if b > 0 and a > 0]
        left = f"{100 * math.exp(sum(ratios) / len(ratios)):.0f} %" if ratios else "all"
        worst = max(self.cut, key=lambda n: self.cut[n])
        return (f"on {parts.held} held-out frames {left} of the error of nearest rounding is left (geometric mean); "
                f"{100 * self.saturated / self.weights:.2f} % of the weights end at the grid's end by force, at most "
                f"{100 * self.cut[worst]:.2f} % in {worst}")  # fmt: skip

"""float-where-slower: put quantized layers back to float32 where the target takes longer over the integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.errors import PipelineError, UnsupportedOp
from vqc.layers import Layer
from vqc.learning.layers import LAYERS
from vqc.passes.canonicalize import Canonicalize
from vqc.passes.exact_float import ExactFloat
from vqc.passes.lower_integer import DEQUANTIZE, DEQUANTIZE_CHANNEL, LowerInteger
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program

aten = torch.ops.aten


@register
@dataclass(frozen=True)
class FloatWhereSlower(Pass):
    """float-where-slower: layer(dequantize(q), dequantize(w), b) -> layer(x, w_float, b_float) where that is faster.

    An integer layer pays when it saves more than its quantizer costs; a strided layer of a few channels may not. Each
    layer that looks slow (its call and its quantizer's against the layer of an all-float program) is tried: the program
    is lowered with the layer in integers and in float, and all calls that differ are summed on both sides. So what
    another layer shares stays counted, as do epilogues, requantization, and the ordered float sums that a layer
    upstream of a quantizer needs (`exact-float`). A layer is put back when its integers take more than 1 + `margin`
    times as long as the float calls in their place; the trials of later layers begin with what was put back before.

    Weight and bias are those of the float twin. Without a twin the weight is the dequantized one, which a note says.
    Quantizers that nobody reads any more go.

    Preconditions of a rewrite: (1) the layer's input and weight are dequantized; (2) the twin has the layer, or its
    input has one scale (the bias of one on the grid of pictures holds a shift that only the twin knows).
    Valid before: the program of `quantize`, not lowered yet. Valid after: the same, with fewer layers in integers.
    Raises PipelineError when the context has no `costs` (`vqc.apply` gives them), TargetError from those.

    Options: `target`: whose times; `threads`; `margin`; `measure`: times by the clock of this machine, which runs the
    target; else the backend's prediction, which is the same everywhere.
    """

    name: ClassVar[str] = "float-where-slower"
    numerics: ClassVar[Numerics] = Lossy(5.0)
    target: str = "native"
    measure: bool = False
    threads: int = 1
    margin: float = 0.05

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        if context.costs is None:
            raise PipelineError(f"pass {self.name} does not know what layers cost", why="the context has no costs",
                                way_out="run it through vqc.apply, or give PassContext(costs=...)")  # fmt: skip
        back = {}
        for n in quantized_layers(program):
            found = float_arguments(program, n, context.twin)
            if isinstance(found, str):
                result.decline(n, found)
            else:
                back[n.name] = found
        if not back:
            return result
        try:
            self._try_all(result, context, back)
        except UnsupportedOp as e:
            result.notes.append(f"nothing was compared on {self.target}: {e}")
        if context.twin is None and result.rewrites:
            result.notes.append("no float twin is known: weights in float32 are the dequantized ones")
        return result

    def _try_all(self, result: PassResult, context: PassContext, back: dict[str, FloatLayer]) -> None:
        integers, best = self._lowered(result.program, context)
        _, floats = self._lowered(_put_back(result.program, back.values()), context)
        slow = _candidates(result.program, integers, best, floats, back)
        for i, name in enumerate(slow):
            trial = _put_back(result.program, [back[name]])
            _, rows = self._lowered(trial, context)
            before, after = changed_ms(best, rows)
            context.report(f"{self.name}: {name}", i + 1, len(slow))
            if before > (1 + self.margin) * after:
                result.program, best = trial, rows
                result.count("float")
                kind = "measured" if self.measure else "predicted"
                result.notes.append(f"{name} is in float32: calls that change take {before:.4f} ms in integers, "
                                    f"{after:.4f} ms in float ({kind}, {self.target})")  # fmt: skip

    def _lowered(self, program: Program, context: PassContext) -> tuple[Program, Sequence[Layer]]:
        """The program as the rest of a pipeline would lower it, and what its calls cost."""
        assert context.costs is not None
        for p in (LowerInteger(), ExactFloat(), Canonicalize()):
            program = p.apply(program.clone(), PassContext()).program
            program.drop_dead()
        return program, context.costs(program, self.target, self.measure, self.threads)


@dataclass(frozen=True)
class FloatLayer:
    """A layer's arguments in float: its input's name, the weight, the bias (None where it has none)."""

    node: str
    source: str
    weight: torch.Tensor
    bias: torch.Tensor | None


def quantized_layers(program: Program) -> list[fx.Node]:
    """The convolutions and linear layers between a dequantized input and a dequantized weight."""
    return [n for n in program.calls if n.target in LAYERS and _dequantized(n.args[0]) and _weight(n) is not None]


def _dequantized(n: Any) -> bool:
    return isinstance(n, fx.Node) and n.target in (DEQUANTIZE, DEQUANTIZE_CHANNEL)


def _weight(n: fx.Node) -> fx.Node | None:
    """The dequantize node of a layer's integer weight; between both may stand a factor for each channel."""
    w: Any = n.args[1]
    if isinstance(w, fx.Node) and w.target is aten.mul.Tensor:
        w = w.args[0]
    return w if _dequantized(w) and all(a.op == "get_attr" for a in w.all_input_nodes) else None


def float_arguments(program: Program, n: fx.Node, twin: Program | None) -> FloatLayer | str:
    """What a quantized layer was in float, or why that is not known."""
    dequantize: Any = n.args[0]
    source = dequantize.args[0].args[0]
    if twin is not None:
        same = next((t for t in twin.calls if t.name == n.name and t.target is n.target), None)
        weight = twin.constant(same.args[1]) if same is not None else None
        if same is None or weight is None:
            return "the float twin has no layer of this name with a constant weight"
        return FloatLayer(n.name, source.name, weight, twin.constant(same.args[2]) if len(same.args) > 2 else None)
    if dequantize.target is DEQUANTIZE_CHANNEL:
        return "its float bias is not known without a float twin"
    w = _weight(n)
    assert w is not None
    values = [program.constant(a) if isinstance(a, fx.Node) else a for a in w.args]
    bias = program.constant(n.args[2]) if len(n.args) > 2 else None
    target: Any = w.target
    return FloatLayer(n.name, source.name, target(*values), bias)


def _put_back(program: Program, layers: Iterable[FloatLayer]) -> Program:
    """A clone with these layers in float, and without the quantizers that nobody else reads."""
    program = program.clone()
    nodes = {n.name: n for n in program.nodes}
    for layer in layers:
        n = nodes[layer.node]
        weight = program.add_constant(f"{layer.node}_float", layer.weight)
        bias = None if layer.bias is None else program.add_constant(f"{layer.node}_float_bias", layer.bias)
        n.args = (nodes[layer.source], weight, *([bias] if len(n.args) > 2 else []), *n.args[3:])
        n.meta.pop("offset", None)
    program.drop_dead()
    return program


def _candidates(program: Program, integers: Program, rows: Sequence[Layer], floats: Sequence[Layer],
                back: dict[str, FloatLayer]) -> list[str]:  # fmt: skip
    """Names of the layers that look slow, the slowest first: their calls and all of their quantizers' against float."""
    spent, in_float = _by_node(rows), _by_node(floats)
    lowered = {}  # the integer weight is the same tensor before and after lowering
    for n in integers.calls:
        for a in n.args[1:2]:
            value = integers.constant(a)
            if value is not None and not value.is_floating_point():
                lowered[value.data_ptr()] = n
    lost = {}
    for n in quantized_layers(program):
        w = _weight(n)
        weight = program.constant(w.args[0]) if w is not None else None
        call = lowered.get(weight.data_ptr()) if weight is not None else None
        if call is None or n.name not in back:
            continue
        source: Any = call.args[0]
        lost[n.name] = spent.get(call.name, 0.0) + spent.get(source.name, 0.0) - in_float.get(n.name, 0.0)
    return sorted((n for n, ms in lost.items() if ms > 0), key=lambda n: -lost[n])


def _ms(row: Layer) -> float:
    return row.measured_ms if row.measured_ms is not None else row.predicted_ms or 0.0


def _by_node(rows: Sequence[Layer]) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in rows:
        found[row.node] += _ms(row)  # type: ignore[assignment]  # a Counter adds floats as well
    return found


def changed_ms(before: Sequence[Layer], after: Sequence[Layer]) -> tuple[float, float]:
    """Milliseconds of the calls that only the first program makes, and of those that only the second makes.

    Calls of one kernel on the same shapes are the same call wherever they stand; what such a call takes is the mean of
    all in both, so that the noise of calls that both programs make does not count.
    """
    counts: dict[tuple[Any, ...], list[int]] = {}
    spent: Counter[tuple[Any, ...]] = Counter()
    for side, rows in enumerate((before, after)):
        for r in rows:
            key = (r.operator, r.kernel, r.shape, r.kind, r.macs, r.ops, r.bytes)
            counts.setdefault(key, [0, 0])[side] += 1
            spent[key] += _ms(r)  # type: ignore[assignment]
    gone = new = 0.0
    for key, (first, second) in counts.items():
        mean = spent[key] / (first + second)
        gone += max(0, first - second) * mean
        new += max(0, second - first) * mean
    return gone, new

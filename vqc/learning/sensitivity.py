"""What a network's results lose when some of its layers multiply integers: predicted from gradients, or measured.

The float program runs with the layers' nodes replaced, so that any choice of bits is tried without making a program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from vqc.calibration import Split
from vqc.distributed import Shard
from vqc.errors import PipelineError
from vqc.learning.execute import Overrides, execute, whole
from vqc.learning.layers import DEQUANTIZES
from vqc.program import Program

Replacement = Callable[..., Any]
Report = Callable[[int, int], None]
PROBES = 4  # random directions of the results at each step


def replacements(program: Program, quantized: Program) -> dict[fx.Node, Replacement]:
    """For the layers of float `program` that `quantized` has between dequantized input and weight: how to compute them.

    Each function takes the float layer's arguments and gives what the quantized layer gives on that input.
    """
    twins = {n.name: n for n in program.calls}
    found = {}
    for q in quantized.calls:
        n = twins.get(q.name)
        x = q.args[0] if q.args else None
        if n is not None and n.target is q.target and isinstance(x, fx.Node) and x.target in DEQUANTIZES:
            found[n] = _replacement(quantized, q)
    return found


def _replacement(quantized: Program, q: fx.Node) -> Replacement:
    dequantize: Any = q.args[0]
    quantize: Any = dequantize.args[0]
    making = [quantize, dequantize]
    weight: Any = q.args[1]
    nodes = [n for n in (weight.args[0], weight) if n.op == "call_function"]
    real = execute(quantized, nodes, {}, {weight})[weight]
    source, rest = quantize.args[0], fx.node.map_arg(q.args[2:], lambda a: quantized.constants[str(a.target)])

    def run(x: Tensor, *_: Any) -> Tensor:
        value = execute(quantized, making, {source: x}, {dequantize})[dequantize]
        return q.target(value, real, *rest)

    return run


@dataclass(frozen=True)
class Stretch:
    """Steps of a clip from its reset, of which those from `first` on count."""

    clip: int
    steps: Sequence[Sequence[Tensor]]
    first: int


def learned_stretches(parts: Split, frames: int) -> list[Stretch]:
    """About `frames` steps that may be learned from: the first of every clip."""
    each = -(-frames // len(parts.starts))
    return [Stretch(c, clip[: min(each, end)], 0)
            for c, (clip, end) in enumerate(zip(parts.clips, parts.starts, strict=True)) if end]  # fmt: skip


def held_stretches(parts: Split, frames: int) -> list[Stretch]:
    """About `frames` held-out steps: the first held-out ones of every clip, behind those that carry the state there."""
    each = -(-frames // len(parts.starts))
    begins = enumerate(zip(parts.clips, parts.starts, strict=True))
    return [Stretch(c, clip[: start + each], start) for c, (clip, start) in begins if start < len(clip)]


class Stage:
    """Steps on which replaced layers are judged, and what the float program gives there.

    The error is the mean over outputs of |difference|^2 / |float output|^2, both summed over all steps that count.
    Outputs are the float results and, if `states`, the next states. A float output that is zero counts as it is.
    """

    def __init__(self, program: Program, stretches: Sequence[Stretch], states: bool):
        self.program, self.stretches = program, stretches
        count = len(program.outputs) + (len(program.states) if states else 0)
        self.outputs = [i for i, n in enumerate(program.result_nodes[:count]) if n.meta["val"].is_floating_point()]
        if not self.outputs:
            raise PipelineError(f"program {program.name} has no float result to compare")
        self._nodes, self._calls = program.result_nodes, program.calls
        self._real: list[list[Tensor]] = []
        self._power = torch.zeros(len(self.outputs), dtype=torch.float64)
        for out in self._rollout({}, self.stretches):
            self._real.append([out[i] for i in self.outputs])
            self._power += torch.stack([y.double().square().sum() for y in self._real[-1]])
        self._power[self._power == 0] = 1.0

    @property
    def steps(self) -> int:
        """How many steps count."""
        return len(self._real)

    def _run(self, overrides: Overrides, step: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        found = execute(self.program, self._calls, whole(self.program, step, state), set(self._nodes), overrides)
        return tuple(found[n] for n in self._nodes)

    def _rollout(self, overrides: Overrides, stretches: Sequence[Stretch]) -> Iterable[tuple[Tensor, ...]]:
        """The outputs of every step that counts, each clip from its reset, the state carried."""
        for s in stretches:
            state = self.program.initial_state()
            for t, step in enumerate(s.steps):
                with torch.no_grad():
                    out = self._run(overrides, step, state)
                state = [out[x.output] for x in self.program.states]
                if t >= s.first:
                    yield out

    def error(self, overrides: Overrides) -> float:
        """The error of the program with these nodes replaced, its own state carried; infinite when it is NaN."""
        lost = torch.zeros(len(self.outputs), dtype=torch.float64)
        for out, real in zip(self._rollout(overrides, self.stretches), self._real, strict=True):
            lost += torch.stack([(out[i].double() - y.double()).square().sum()
                                 for i, y in zip(self.outputs, real, strict=True)])  # fmt: skip
        value = float((lost / self._power).mean())
        return value if value < torch.inf else torch.inf  # NaN is neither

    def errors(self, tries: Sequence[Overrides], shard: Shard, report: Report) -> list[float]:
        """`error` of each, shared among the processes."""
        mine = shard.share(tries)
        found = []
        for overrides in mine:
            found.append(self.error(overrides))
            report(len(found), len(mine))
        parts = shard.gather(json.dumps(found).encode(), "gathering errors of bits")
        return [e for part in parts for e in json.loads(part)]

    # ---- by gradients ----------------------------------------------------------------------------------------------

    def predicted(self, options: Sequence[Mapping[fx.Node, Replacement]], layers: Sequence[fx.Node], seed: int,
                  shard: Shard, report: Report) -> list[list[float]]:  # fmt: skip
        """[layers][options]: the error when one layer alone is replaced, to first order in what its own result loses.

        With J the derivative of the outputs (each divided by the root of its power) by the layer's result and d what
        that loses, the error is |J d|^2 = E[(v J . d)^2] over random signs v, one backward run for all layers. As in
        BRECQ (arXiv 2102.05426, section 3.3) the off-diagonal of J^T J is left out: sum of E[(v J)^2] d^2. Steps follow
        the float state. An option that a layer does not have is infinite.
        """
        mine = shard.share(self.stretches)
        total, found = sum(len(s.steps) for s in mine), []
        done = 0
        for s in mine:
            state = self.program.initial_state()
            sums = torch.zeros(len(layers), len(options), dtype=torch.float64)
            for t, step in enumerate(s.steps):
                generator = torch.Generator().manual_seed((seed * 1_000_003 + s.clip) * 1_000_003 % 2**62 + t)
                out, part = self._step(options, layers, step, state, generator)
                state = [out[x.output].detach() for x in self.program.states]
                if t >= s.first:
                    sums += part
                done += 1
                report(done, total)
            found.append(sums.tolist())
        parts = shard.gather(json.dumps(found).encode(), "gathering sensitivities")
        by_clip = torch.tensor([sums for part in parts for sums in json.loads(part)], dtype=torch.float64)
        return by_clip.sum(0).tolist()

    def _step(self, options: Sequence[Mapping[fx.Node, Replacement]], layers: Sequence[fx.Node], step: Sequence[Tensor],
              state: Sequence[Tensor], generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:  # fmt: skip
        seen: dict[fx.Node, tuple[Tensor, Tensor]] = {}

        def watching(n: fx.Node) -> Callable[..., Tensor]:
            def run(*args: Any, **kwargs: Any) -> Tensor:
                y = n.target(*args, **kwargs)
                y = y if y.requires_grad else y.detach().requires_grad_()
                seen[n] = (args[0].detach(), y)
                return y

            return run

        out = self._run({n: watching(n) for n in layers}, step, state)
        squares = self._squared_gradients(out, [seen[n][1] for n in layers], generator)
        found = torch.zeros(len(layers), len(options), dtype=torch.float64)
        with torch.no_grad():
            for i, n in enumerate(layers):
                x, y = seen[n]
                for j, option in enumerate(options):
                    if n not in option:
                        found[i, j] = torch.inf
                    elif squares[i] is not None:
                        found[i, j] = ((option[n](x) - y).square() * squares[i]).sum(dtype=torch.float64)
        return tuple(v.detach() for v in out), found

    def _squared_gradients(self, out: Sequence[Tensor], values: Sequence[Tensor], generator: torch.Generator
                           ) -> list[Tensor | None]:  # fmt: skip
        total: list[Tensor | None] = [None] * len(values)
        for _ in range(PROBES):
            scalar = torch.zeros(())
            for i, power in zip(self.outputs, self._power.tolist(), strict=True):
                signs = torch.randint(0, 2, out[i].shape, generator=generator) * 2.0 - 1
                scalar = scalar + (out[i] * signs).sum() / (power * len(self.outputs)) ** 0.5
            try:
                grads = torch.autograd.grad(scalar, values, retain_graph=True, allow_unused=True)
            except RuntimeError as e:
                raise PipelineError(f"program {self.program.name} has no gradient", why=str(e).splitlines()[0],
                                    way_out="use sensitivity=measured") from e  # fmt: skip
            for k, g in enumerate(grads):
                if g is not None:
                    square = g.square() / PROBES
                    total[k] = square if total[k] is None else total[k] + square
        return total

"""A factor and a shift for every layer's result, fitted while calibration runs, and kept only where they help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from vqc.calibration import Split
from vqc.learning.execute import execute, whole
from vqc.learning.layers import IntegerLayer
from vqc.learning.moments import PairedMoments
from vqc.learning.rollouts import outputs_of
from vqc.program import Program, evaluate

Fit = Callable[[PairedMoments], tuple[Tensor, Tensor]]  # (gamma, beta), float64 [C] each


@dataclass
class Matched:
    """One layer: y' = gamma y + beta of its result y, and the moments of float and quantized results under it."""

    layer: IntegerLayer
    gamma: Tensor
    beta: Tensor
    learned: PairedMoments = field(default_factory=PairedMoments)
    held: PairedMoments = field(default_factory=PairedMoments)

    @property
    def before(self) -> float:
        """Mean square error of the layer's result on held-out frames as it is."""
        return float(self.held.error().sum())

    @property
    def after(self) -> float:
        """The same with gamma and beta."""
        return float(self.held.error(self.gamma, self.beta).sum())

    def forget(self) -> None:
        """Back to gamma 1, beta 0."""
        self.gamma, self.beta = torch.ones_like(self.gamma), torch.zeros_like(self.beta)

    def mended(self, y: Tensor) -> Tensor:
        shape = [-1 if d == self.layer.channel_axis else 1 for d in range(y.ndim)]
        return y * self.gamma.float().view(shape) + self.beta.float().view(shape)


def match_layers(program: Program, twin: Program, layers: Sequence[IntegerLayer], parts: Split, fit: Fit, rounds: int,
                 report: Callable[[int, int], None] | None = None) -> list[Matched]:  # fmt: skip
    """Fit gamma and beta of every layer to its twin's result, all in one run of the clips, `rounds` times.

    Every layer sees inputs that the layers before it have already mended: in the first round with what is known so far
    (the means of one frame are close to those of all), afterwards with what the round before found. Without that,
    a shift that runs through several layers would be taken away by each of them. After a round, a layer whose error
    on held-out frames did not fall forgets its gamma and beta.
    """
    found = []
    for layer in layers:
        one = torch.ones(layer.outputs, dtype=torch.float64)
        found.append(Matched(layer, one, torch.zeros_like(one)))
    nodes = program.calls
    wanted = {m.layer.twin for m in found}
    total = rounds * parts.clips.frames
    done = 0
    for number in range(rounds):
        for m in found:
            m.learned, m.held = (PairedMoments(m.layer.channel_axis) for _ in range(2))
        for c, clip in enumerate(parts.clips):
            state, twin_state = program.initial_state(), twin.initial_state()
            for t, step in enumerate(clip):
                floats: dict[fx.Node, Tensor] = {}
                out = evaluate(twin, step, twin_state, lambda n, v, f=floats: _keep(wanted, f, n, v))  # type: ignore[misc]
                twin_state = [out[s.output] for s in twin.states]
                learns = parts.learns(c, t)
                overrides = {m.layer.node: _mend(m, floats, learns, fit if number == 0 else None) for m in found}
                with torch.no_grad():
                    values = execute(program, nodes, whole(program, step, state), outputs_of(program), overrides)
                state = [values[program.result_nodes[s.output]] for s in program.states]
                done += 1
                if report is not None:
                    report(done, total)
        for m in found:
            m.gamma, m.beta = fit(m.learned)
            if not m.after < m.before:
                m.forget()
    return found


def _keep(wanted: set[fx.Node], floats: dict[fx.Node, Tensor], n: fx.Node, value: Any) -> None:
    if n in wanted:
        floats[n] = value


def _mend(m: Matched, floats: dict[fx.Node, Tensor], learns: bool, fit: Fit | None) -> Callable[..., Tensor]:
    target: Any = m.layer.node.target

    def run(*args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = target(*args, **kwargs)
        (m.learned if learns else m.held).update(floats[m.layer.twin], y)
        if learns and fit is not None:
            m.gamma, m.beta = fit(m.learned)
        return m.mended(y)

    return run

"""reestimate-bn: the mean and spread of every layer's result back to what they are in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vqc.calibration import as_clips, split
from vqc.errors import PipelineError
from vqc.learning.layers import IntegerLayer, integer_layers
from vqc.learning.matching import match_layers
from vqc.learning.moments import PairedMoments, match_moments
from vqc.learning.rollouts import keep_better, twin_of
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program

GAMMA = (0.25, 4.0)  # a factor outside says that a channel has been lost, not that it wants amplifying


@register
@dataclass(frozen=True)
class ReestimateBN(Pass):
    """reestimate-bn: s_w, b -> gamma s_w, gamma b + beta, so that each channel has its float mean and variance again.

    Batch-norm re-estimation where the norms are folded already: new statistics with the old gain and bias are this
    affine map of a layer's result, gamma = sd_float / sd_quantized, beta = mean_float - gamma mean_quantized. It costs
    nothing at run time. Measured as in `bias-correct`, each layer with those before it mended.

    Preconditions, each a reason when it fails: (1) the weight is made of int8 constants that no other layer reads; (2)
    the layer's input is quantized, its bias a constant; (3) the twin has a layer of this name; (4) every output channel
    has its own weight scale; (5) the error of its result on held-out frames (`vqc.calibration.split`) falls. If the
    error of the program's results on held-out frames does not fall, nothing is changed.
    Valid before: after `quantize` and what rounds weights, before `lower-integer`. Valid after: the same; mended layers
    carry `meta["bias_corrected"]`. Counts "layer".

    Options: `rounds` - how often calibration runs.
    """

    name: ClassVar[str] = "reestimate-bn"
    numerics: ClassVar[Numerics] = Lossy(5.0)
    rounds: int = 2

    def apply(self, program: Program, context: PassContext) -> PassResult:
        if self.rounds < 1:
            raise PipelineError(f"reestimate-bn cannot run {self.rounds} rounds", way_out="give 1 or more")
        result, before = PassResult(program), program.clone()
        twin = twin_of(context, self.name)
        parts = split(as_clips(context.calibration, program))
        layers, refused = integer_layers(program, twin)
        for layer in layers:
            if len(layer.scale) != layer.outputs:
                refused[layer.node] = "groups of its outputs share their weight scales"
        for n, reason in refused.items():
            result.decline(n, reason)
        fit = [layer for layer in layers if layer.node not in refused]
        found = match_layers(program, twin, fit, parts, held_match, self.rounds,
                             lambda done, total: context.report("reestimate-bn", done, total))  # fmt: skip
        for m in found:
            if not bool((m.gamma != 1).any() or m.beta.any()):
                result.decline(m.layer.node, "its error on held-out frames does not fall")
                continue
            _fold(m.layer, m.gamma, m.beta)
            result.count("layer")
        if result.rewrites:
            keep_better(result, before, twin, parts)
        return result


def held_match(seen: PairedMoments) -> tuple[Tensor, Tensor]:
    """`match_moments` of float and quantized results, gamma held within GAMMA."""
    f, q = seen.stats("f"), seen.stats("q")
    gamma = match_moments(f, q)[0].clamp(*GAMMA)
    return gamma, f.mean - gamma * q.mean


def _fold(layer: IntegerLayer, gamma: Tensor, beta: Tensor) -> None:
    old = layer.bias
    layer.set_weight(scale=(layer.scale.double() * gamma).float())
    layer.set_bias(beta if old is None else gamma * old.double() + beta)
    layer.node.meta["bias_corrected"] = True

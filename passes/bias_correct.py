"""bias-correct: what quantization moves the mean of a layer's result by goes into its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vqc.calibration import as_clips, split
from vqc.errors import PipelineError
from vqc.learning.layers import integer_layers
from vqc.learning.matching import match_layers
from vqc.learning.moments import PairedMoments
from vqc.learning.rollouts import keep_better, twin_of
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program


@register
@dataclass(frozen=True)
class BiasCorrect(Pass):
    """bias-correct: layer(x) + b -> layer(x) + b + E[y_float - y_quantized], per output channel.

    The empirical form (Nagel et al., ICCV 2019, arXiv 1906.04721, section 4.2) with activations quantized: both
    programs run the calibration clips, state carried, and every layer sees inputs whose means the layers before it
    have already corrected (`vqc/learning/matching.py`).

    Preconditions, each a reason when it fails: (1) the weight is made of int8 constants that no other layer reads; (2)
    the layer's input is quantized, its bias a constant; (3) the twin has a layer of this name; (4) the error of its
    result on held-out frames (`vqc.calibration.split`) falls. If the error of the program's results on held-out frames
    does not fall, nothing is changed.
    Valid before: after `quantize` and what rounds weights (`gptq`, `reconstruct`), before `lower-integer`. Valid after:
    the same; corrected layers carry `meta["bias_corrected"]`. A later affine calibration must measure its means anew:
    with means from before, the shift would be taken away twice. Counts "bias".

    Options: `rounds` - how often calibration runs.
    """

    name: ClassVar[str] = "bias-correct"
    numerics: ClassVar[Numerics] = Lossy(5.0)
    rounds: int = 2

    def apply(self, program: Program, context: PassContext) -> PassResult:
        if self.rounds < 1:
            raise PipelineError(f"bias-correct cannot run {self.rounds} rounds", way_out="give 1 or more")
        result, before = PassResult(program), program.clone()
        twin = twin_of(context, self.name)
        parts = split(as_clips(context.calibration, program))
        layers, refused = integer_layers(program, twin)
        for n, reason in refused.items():
            result.decline(n, reason)
        found = match_layers(program, twin, layers, parts, shift, self.rounds,
                             lambda done, total: context.report("bias-correct", done, total))  # fmt: skip
        for m in found:
            if not bool(m.beta.any()):
                result.decline(m.layer.node, "its error on held-out frames does not fall")
                continue
            old = m.layer.bias
            m.layer.set_bias(m.beta if old is None else old.double() + m.beta)
            m.layer.node.meta["bias_corrected"] = True
            result.count("bias")
        if result.rewrites:
            keep_better(result, before, twin, parts)
        return result


def shift(seen: PairedMoments) -> tuple[Tensor, Tensor]:
    """(1, mean of float - mean of quantized), float64 [C]."""
    beta = seen.mean("f") - seen.mean("q")
    return torch.ones_like(beta), beta

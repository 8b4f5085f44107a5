"""The engines behind the door: Inductor on the graph as it is, and any backend on a captured Program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.backends.inductor import engine as inductor
from vqc.door.binding import Run
from vqc.door.options import DoorOptions
from vqc.door.part import Engine
from vqc.door.report import PartReport


class InductorEngine(Engine):
    """Inductor with frozen weights, on Dynamo's own graph: what it gives is what eager gives, writes included."""

    name: ClassVar[str] = "inductor"
    sizes: ClassVar[int] = 2

    def __init__(self, options: DoorOptions):
        self.options = options

    def takes(self, weight: torch.Tensor) -> bool:
        return inductor.can_freeze(weight)

    def bound(self, gm: fx.GraphModule, inputs: Sequence[Any], written: Sequence[int], report: PartReport) -> Run:
        report.route = "weights bound, frozen by Inductor"
        return inductor.compile_frozen(gm, inputs, self.options.inductor)

    def generic(self, gm: fx.GraphModule, inputs: Sequence[Any], dynamic: bool, why: str, report: PartReport) -> Run:
        report.route = "weights as inputs, compiled by Inductor" + (" for every size" if dynamic else "")
        if dynamic:
            return inductor.compile_any_size(gm, self.options.inductor)
        return inductor.compile_plain(gm, inputs, self.options.inductor)


def leave_as_it_is(gm: fx.GraphModule, inputs: Sequence[Any], options: DoorOptions, why: str, report: PartReport
                      ) -> Run:  # fmt: skip
    """Inductor on the graph exactly as Dynamo made it, weights as inputs, gradients and dynamic sizes included."""
    report.route = "left to Inductor as it is"
    report.note(why)
    report.compilations += 1
    compiled = inductor.compile_traced(gm, inputs, options.inductor)
    report.publish()
    return compiled
class ProgramEngine(InductorEngine):
    pass


def engine_for(options, gm, example, report):
    return InductorEngine(options)

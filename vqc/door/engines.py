"""The engines behind the door: Inductor on the graph as it is, and any backend on a captured Program."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import fx

from vqc import compat
from vqc.backends import backend_for
from vqc.backends.inductor import engine as inductor
from vqc.calibration.thin import warnings
from vqc.door.binding import Run, picker
from vqc.door.options import DoorOptions
from vqc.door.part import Engine, Request
from vqc.door.report import PartReport, logger
from vqc.door.rewrite import placeholders
from vqc.door.steps import StepReader
from vqc.errors import BackendError, CaptureError, UnsupportedOp
from vqc.executable import Executable


class InductorEngine(Engine):
    """Inductor with frozen weights, on Dynamo's own graph: what it gives is what eager gives, writes included."""

    name: ClassVar[str] = "inductor"
    sizes: ClassVar[int] = 2

    def __init__(self, options: DoorOptions):
        self.options = options

    def takes(self, weight: torch.Tensor) -> bool:
        return inductor.can_freeze(weight)

    def bound(self, request: Request, report: PartReport) -> Run:
        report.route = "weights bound, frozen by Inductor"
        gm, left = request.bind()
        pick = picker(left)
        code = inductor.compile_frozen(gm, pick(request.args), self.options.inductor)
        return lambda *args: code(*pick(args))

    def generic(self, gm: fx.GraphModule, args: Sequence[Any], dynamic: bool, why: str, report: PartReport) -> Run:
        report.route = "weights as inputs, compiled by Inductor" + (" for every size" if dynamic else "")
        if dynamic:
            return inductor.compile_any_size(gm, self.options.inductor)
        return inductor.compile_plain(gm, args, self.options.inductor)


class ProgramEngine(Engine):
    """Captures the graph as a Program, runs the recipe's passes on it, and compiles it for the target.

    A tensor the graph writes is a state of the Program: its value goes in, its next value is written back. A graph
    that cannot be captured, or has an operator the target cannot take, falls back to Inductor, and the report says so.
    """

    name: ClassVar[str] = "program"
    sizes: ClassVar[int] = 8

    def __init__(self, options: DoorOptions, reader: StepReader):
        self.options, self.reader = options, reader
        self.fallback = InductorEngine(options)

    def bound(self, request: Request, report: PartReport) -> Run:
        try:
            executable, inputs, states = self._compile(request, report)
        except (CaptureError, UnsupportedOp) as e:
            _loudly(report, self.options, f"left to Inductor: {e.what}" + (f" ({e.why})" if e.why else ""))
            return self.fallback.bound(request, report)
        report.route = f"recipe {self.options.recipe}, weights bound, compiled for {self.options.target}"
        report.details = executable.report
        return _runner(executable, picker(inputs), picker(states))

    def _compile(self, request: Request, report: PartReport) -> tuple[Executable, list[int], list[int]]:
        import vqc.api
        from vqc.frontend import capture_graph

        names = [path or n.name for path, n in zip(request.paths, placeholders(request.gm), strict=True)]
        tensors = [i for i, x in enumerate(request.args) if isinstance(x, torch.Tensor)]
        states = [i for i in request.written if i in tensors]
        inputs = [i for i in tensors if i not in request.constants and i not in states]
        with compat.outside_tracing(), compat.own_random_state(), torch.no_grad():
            program = capture_graph(request.gm, request.args, request.constants, names=names)
            if len(program.inputs) != len(inputs) or len(program.states) != len(states):
                raise CaptureError("the captured graph does not have the inputs and states Dynamo's graph has",
                                   why=f"{len(program.inputs)} inputs and {len(program.states)} states, expected "
                                   f"{len(inputs)} and {len(states)}")  # fmt: skip
            backend_for(self.options.target).ready(self.options.target)  # before minutes of calibration
            calibration = self._clips(inputs)
            program = vqc.api.apply(program, self.options.recipe, calibration=calibration, seed=self.options.seed,
                                    debug=self.options.debug)  # fmt: skip
            for text in warnings(program):
                report.note(text)
                logger.warning("graph %d: %s", report.number, text)
            return vqc.api.compile(program, self.options.target), inputs, states

    def _clips(self, inputs: list[int]) -> Any:
        if self.options.calibration is None:
            return None
        return self.reader.read(self.options.calibration, inputs)

    def generic(self, gm: fx.GraphModule, args: Sequence[Any], dynamic: bool, why: str, report: PartReport) -> Run:
        if self.options.is_float:
            if self.options.target == "reference":
                report.route = "weights as inputs, run eagerly"
                return gm
            return self.fallback.generic(gm, args, dynamic, why, report)
        raise BackendError(
            f"recipe {self.options.recipe!r} cannot be applied any more: {why}",
            why="a recipe's integer weights and ranges belong to certain weights and sizes",
            way_out="use the float recipe while weights or sizes change, or capture and compile with vqc.capture",
        )


def _runner(executable: Executable, inputs: Any, states: Any) -> Run:
    """A function of the graph's flat inputs that runs one step and writes the states back."""
    leaves = executable.program.signature.out_leaves

    def run(*args: Any) -> tuple[Any, ...]:
        live = states(args)
        with torch.no_grad():
            results, after = executable.step(_dense(inputs(args)), _dense(live))
            for tensor, value in zip(live, after, strict=True):
                tensor.copy_(value)
        return tuple(leaf.value if leaf.kind == "constant" else results[leaf.index] for leaf in leaves)

    return run


def _dense(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [t.detach().contiguous() for t in tensors]


def _loudly(report: PartReport, options: DoorOptions, text: str) -> None:
    """A note; a warning as well when the user asked for a recipe and does not get it."""
    report.note(text)
    if not options.is_float:
        logger.log(logging.WARNING, "graph %d runs in float: %s", report.number, text)


def engine_for(options: DoorOptions, gm: fx.GraphModule, example: Sequence[Any]) -> Engine:
    """The engine for a graph; call it while Dynamo is compiling the graph."""
    if options.is_float and options.target == "inductor":
        return InductorEngine(options)
    return ProgramEngine(options, StepReader(gm, example))


def leave_as_it_is(gm: fx.GraphModule, inputs: Sequence[Any], options: DoorOptions, why: str,
                   report: PartReport) -> Run:  # fmt: skip
    """The graph exactly as Dynamo made it, weights as inputs, gradients and dynamic sizes included."""
    _loudly(report, options, why)
    if options.target == "reference":
        report.route = "left to eager as it is"
        report.publish()
        return gm.forward
    report.route = "left to Inductor as it is"
    report.compilations += 1
    compiled = inductor.compile_traced(gm, inputs, options.inductor)
    report.publish()
    return compiled

"""The inductor backend: a Program compiled by PyTorch's own compiler, weights frozen.

It takes every operator PyTorch knows; `vqc::` operators run as opaque calls of their reference meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import fx

from vqc import compat
from vqc.backends import Backend
from vqc.backends.inductor.engine import Compiled, compile_frozen
from vqc.errors import PipelineError
from vqc.executable import CompileReport, Executable
from vqc.program import Program, op_text

__all__ = ["InductorBackend", "InductorExecutable"]


class InductorExecutable(Executable):
    """A Program run by Inductor's code. Results are fresh tensors, never views of inputs, states or weights."""

    def __init__(self, program: Program, report: CompileReport, compiled: Compiled):
        super().__init__(program, report)
        self._compiled = compiled

    def _run(self, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            return self._compiled(*inputs, *state)


class InductorBackend(Backend):
    """Runs everything PyTorch runs, compiled for this machine. Options: `settings`, a dict of Inductor settings."""

    name: ClassVar[str] = "inductor"

    def supports(self, program: Program, node: fx.Node, target: str) -> str | None:
        return None

    def ready(self, target: str) -> None:
        compat.inductor_compiler()

    def compile(self, program: Program, target: str, options: Mapping[str, Any]) -> Executable:
        unknown = sorted(set(options) - {"settings"})
        if unknown:
            raise PipelineError(f"the inductor backend has no option {unknown[0]!r}", way_out="its option is settings")
        gm = _fresh_results(program)
        inputs = [torch.zeros(i.shape, dtype=i.dtype) for i in program.inputs] + program.initial_state()
        compiled = compile_frozen(gm, inputs, options.get("settings"))
        report = CompileReport(self.name, target)
        for n in program.calls:
            opaque = op_text(n.target).startswith("vqc.")
            report.kernels[n.name] = f"{'opaque' if opaque else 'inductor'} {op_text(n.target)}"
        report.weight_bytes = sum(_size(v) for v in program.constants.values() if isinstance(v, torch.Tensor))
        report.state_bytes = sum(_size(s.reset) for s in program.states)
        return InductorExecutable(program, report, compiled)


def _size(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()


def _fresh_results(program: Program) -> fx.GraphModule:
    """The program's module with every result its own memory: a state written later must not change a picture."""
    clone = program.clone()
    out = clone.output_node
    views = _may_share_memory(clone)
    results, seen = [], set()
    for r in clone.result_nodes:
        if isinstance(r, fx.Node) and (r in views or r in seen):
            with clone.graph.inserting_before(out):
                results.append(clone.graph.call_function(torch.ops.aten.clone.default, (r,)))
        else:
            results.append(r)
        seen.add(r)
    out.args = (tuple(results),)
    return fx.GraphModule(dict(clone.constants), clone.graph, class_name="Program")


def _may_share_memory(program: Program) -> set[fx.Node]:
    """Nodes that are an input or a constant, or may be views of another node."""
    found = set()
    for n in program.graph.nodes:
        if n.op in ("placeholder", "get_attr"):
            found.add(n)
        elif n.op == "call_function" and not isinstance(n.target, torch._ops.HigherOrderOperator):
            returns = n.target._schema.returns if isinstance(n.target, torch._ops.OpOverload) else ()
            viewing = not returns or any(r.alias_info is not None for r in returns)
            if viewing or op_text(n.target) in _MAY_VIEW:
                found.add(n)
    return found


_MAY_VIEW = {"aten.reshape", "aten.contiguous", "aten.to.dtype", "aten.flatten.using_ints", "aten.expand_as"}

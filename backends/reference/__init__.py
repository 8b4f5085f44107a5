"""The reference backend: eager PyTorch and the reference meaning of every `vqc::` operator. Slow, exact: the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.backends import Backend
from vqc.executable import CompileReport, Executable
from vqc.program import Program, evaluate, op_text


class ReferenceExecutable(Executable):
    def _run(self, inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        held = [*inputs, *state, *(c for c in self.program.constants.values() if isinstance(c, torch.Tensor))]
        taken = {x.untyped_storage().data_ptr() for x in held}
        out = []
        for x in evaluate(self.program, inputs, state):  # a result may be an input or a constant: callers write to it
            if isinstance(x, torch.Tensor):
                x = x.clone() if x.untyped_storage().data_ptr() in taken else x
                taken.add(x.untyped_storage().data_ptr())
            out.append(x)
        return out


class ReferenceBackend(Backend):
    """Runs everything PyTorch runs."""

    name: ClassVar[str] = "reference"

    def supports(self, program: Program, node: fx.Node, target: str) -> str | None:
        return None

    def compile(self, program: Program, target: str, options: Mapping[str, Any]) -> Executable:
        report = CompileReport(self.name, target, kernels={n.name: f"eager {op_text(n.target)}" for n in program.calls})
        return ReferenceExecutable(program, report)

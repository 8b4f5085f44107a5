"""OpenVinoBackend: programs run here by OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import openvino as ov
import torch
from torch import Tensor, fx

from vqc.backends import Backend
from vqc.backends.onnx.model import why_not
from vqc.backends.openvino.model import openvino_model
from vqc.errors import TargetError
from vqc.executable import CompileReport, Executable
from vqc.program import Program, op_text

TARGETS = ("openvino", "openvino:float")
CONFIG = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


class OpenVinoExecutable(Executable):
    """Runs in OpenVINO on the CPU. `kernels` of a layer are in the report's notes."""

    def __init__(self, program: Program, report: CompileReport, compiled: Any):
        super().__init__(program, report)
        self.request = compiled.create_infer_request()
        self.names = [i.any_name for i in compiled.inputs]
        self.count = len(compiled.outputs)

    def _run(self, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> Sequence[Tensor]:
        given = {i.name: x for i, x in zip(self.program.inputs, inputs, strict=True)}
        given |= {s.input: x for s, x in zip(self.program.states, state, strict=True)}
        self.request.infer({name: given[name].detach().contiguous().numpy() for name in self.names})
        found = (self.request.get_output_tensor(k).data for k in range(self.count))
        return [torch.from_numpy(np.array(x)) for x in found]


class OpenVinoBackend(Backend):
    """OpenVINO on this machine's CPU, float layers in float32.

    Targets: `openvino`, one-bit layers as BinaryConvolution; `openvino:float`, as float convolutions of +1 and -1.
    Option of `compile`: threads.
    """

    name: ClassVar[str] = "openvino"

    def supports(self, program: Program, node: fx.Node, target: str) -> str | None:
        _check(target)
        return why_not(program, node)

    def compile(self, program: Program, target: str, options: Mapping[str, Any]) -> Executable:
        """An Executable. Raises TargetError for a wrong option, UnsupportedOp for what has no form in ONNX."""
        _check(target)
        for key, value in options.items():
            if key != "threads" or type(value) is not int:
                raise TargetError(f"the OpenVINO backend cannot take option {key}={value!r}", way_out="use threads")
        model = openvino_model(program, binary=target == "openvino")
        config = CONFIG | {"INFERENCE_NUM_THREADS": options.get("threads", 1)}
        compiled = ov.Core().compile_model(model, "CPU", config)
        counts: dict[str, int] = {}
        for n in compiled.get_runtime_model().get_ops():
            said = n.get_rt_info()
            if said["layerType"].astype(str) in ("Convolution", "BinaryConvolution", "Deconvolution"):
                kernel = said["primitiveType"].astype(str)
                counts[kernel] = counts.get(kernel, 0) + 1
        report = CompileReport(self.name, target, {n.name: f"openvino {op_text(n.target)}" for n in program.calls})
        report.notes = [f"OpenVINO {ov.__version__.split('-')[0]}", "convolutions by kernel: " + ", ".join(
            f"{k} x{c}" for k, c in sorted(counts.items()))]  # fmt: skip
        report.state_bytes = sum(s.reset.numel() * s.reset.element_size() for s in program.states)
        return OpenVinoExecutable(program, report, compiled)


def _check(target: str) -> None:
    if target not in TARGETS:
        raise TargetError(f"there is no target called {target!r}", way_out="use " + " or ".join(TARGETS))

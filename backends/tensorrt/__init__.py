"""Programs through torch-tensorrt (docs/interop.md). Written by its documentation; no GPU has run it yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from vqc.backends import Backend
from vqc.backends.folder import MARKER, write_folder
from vqc.backends.pt2 import SHOWN, licence_of
from vqc.errors import TargetError
from vqc.executable import CompileReport, Executable
from vqc.interop import interface
from vqc.interop.symmetric import for_tensorrt, with_quantize_op
from vqc.program import Declined, Program, op_text

WAY_OUT = "export target pt2:tensorrt here: the same graph as a file, which torch-tensorrt compiles on such a machine"
ENGINE = "model.pt2"


def packages() -> tuple[Any, Any]:
    """(torch_tensorrt, its quantize operator), with or without a GPU. Raises TargetError naming what is missing."""
    try:
        import torch_tensorrt
    except Exception as e:  # where TensorRT's own libraries are missing it raises a bare Exception
        raise TargetError("torch-tensorrt cannot be imported", why=f"{type(e).__name__}: {str(e).splitlines()[0]}",
                          way_out=f"pip install 'vqc[tensorrt]' on a machine with a GPU; or {WAY_OUT}"
                          ) from e  # fmt: skip
    try:
        import modelopt.torch.quantization  # noqa: F401  (it registers the operator that torch-tensorrt converts)

        return torch_tensorrt, torch.ops.tensorrt.quantize_op.default
    except (ImportError, AttributeError) as e:
        raise TargetError("torch-tensorrt takes quantized layers only with NVIDIA's Model Optimizer", why=str(e),
                          way_out=f"pip install nvidia-modelopt; or {WAY_OUT}") from e  # fmt: skip


def device() -> None:
    """Raises TargetError where there is no GPU to build engines on."""
    if not torch.cuda.is_available():
        raise TargetError("TensorRT builds engines on a GPU, and PyTorch finds none here", way_out=WAY_OUT)


def handed_over(program: Program, quantize_op: Any) -> Program:
    """The graph that torch-tensorrt gets."""
    return with_quantize_op(for_tensorrt(program), quantize_op)


def why_in_pytorch(node: fx.Node, converters: Any) -> str | None:
    """None when torch-tensorrt's own registry has a converter for a call, else why the call stays in PyTorch."""
    return None if converters.get(node) is not None else f"torch-tensorrt has no converter for {op_text(node.target)}"


class TensorRTExecutable(Executable):
    """Runs on the GPU: engines where torch-tensorrt could make them, PyTorch between them."""

    def __init__(self, program: Program, report: CompileReport, module: Any):
        super().__init__(program, report)
        self.module = module

    def _run(self, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            found = self.module(*(x.cuda() for x in (*inputs, *state)))
        return [x.cpu() for x in (found if isinstance(found, (tuple, list)) else [found])]


class TensorRTBackend(Backend):
    """torch-tensorrt, with explicit int8 quantize and dequantize around layers; states are inputs and outputs.

    Target: `tensorrt`. Option of `export`: licence. What torch-tensorrt's registry has no converter for stays in
    PyTorch and is listed in the report with the reason.
    """

    name: ClassVar[str] = "tensorrt"

    def supports(self, program: Program, node: fx.Node, target: str) -> str | None:
        """Whether torch-tensorrt converts all that a call becomes in the graph it gets, by its own registry.

        Asks no GPU. Raises TargetError where the packages are missing.
        """
        _check(target)
        _, quantize_op = packages()
        from torch_tensorrt.dynamo.conversion import DYNAMO_CONVERTERS

        marked = program.clone()
        for n in marked.calls:
            n.meta["module"] = n.name  # rewrites keep it on all that they put in a call's place
        became = (n for n in handed_over(marked, quantize_op).calls if n.meta.get("module") == node.name)
        return next((why for n in became if (why := why_in_pytorch(n, DYNAMO_CONVERTERS)) is not None), None)

    def compile(self, program: Program, target: str, options: Mapping[str, Any]) -> Executable:
        """An Executable on the GPU. Raises TargetError without one, without torch-tensorrt, or for any option."""
        _check(target)
        if options:
            raise TargetError(f"target tensorrt cannot take options {sorted(options)}", way_out="leave them out")
        module, report = _built(program)
        return TensorRTExecutable(program, report, module)

    def export(self, program: Program, target: str, folder: Path, options: Mapping[str, Any]) -> Path:
        """Write model.pt2 with its engines, interface.json and README.txt. Raises TargetError as `compile` does."""
        _check(target)
        licence = licence_of(options, target)
        module, report = _built(program)
        import tempfile

        import torch_tensorrt

        given = [x.cuda() for x in (*program.example, *program.initial_state())]
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / ENGINE
            torch_tensorrt.save(module, str(path), output_format="exported_program", arg_inputs=given)
            data = path.read_bytes()
        said = interface.of(program, licence)
        left = "".join(f"In PyTorch: {d.node}: {d.reason}\n" for d in report.fallbacks)
        readme = (f"{ENGINE}: one step of a video network, for torch_tensorrt.load({ENGINE!r}).module().\n"
                  "It takes the inputs, then the states; it gives the results, then the next states.\n"
                  f"Licence of the weights: {licence or 'unknown: ask who gave you the weights'}\n{left}")  # fmt: skip
        return write_folder(Path(folder), {
            ENGINE: data, "README.txt": readme.encode(), MARKER: b"exported by vqc for tensorrt\n",
            "interface.json": (json.dumps({k: said[k] for k in SHOWN}, indent=2) + "\n").encode()})  # fmt: skip


def _built(program: Program) -> tuple[Any, CompileReport]:
    torch_tensorrt, quantize_op = packages()
    device()
    from torch_tensorrt.dynamo.conversion import DYNAMO_CONVERTERS

    graph = handed_over(program, quantize_op)
    report = report_of(graph, DYNAMO_CONVERTERS, torch_tensorrt.__version__)
    given = [x.cuda() for x in (*program.example, *program.initial_state())]
    exported = torch.export.export(graph.to_module().eval().cuda(), tuple(given))
    return torch_tensorrt.dynamo.compile(exported, arg_inputs=given, min_block_size=1), report


def report_of(graph: Program, converters: Any, version: str) -> CompileReport:
    """What TensorRT runs and what PyTorch does, by torch-tensorrt's registry of converters."""
    reasons = {n: why_in_pytorch(n, converters) for n in graph.calls}
    kernels = {n.name: f"{'tensorrt' if why is None else 'eager'} {op_text(n.target)}" for n, why in reasons.items()}
    return CompileReport("tensorrt", "tensorrt", kernels,
                         fallbacks=[Declined(n.name, why) for n, why in reasons.items() if why is not None],
                         notes=[f"torch-tensorrt {version}",
                                "by its list of converters; a single call is an engine too (min_block_size=1)"]
                         )  # fmt: skip


def _check(target: str) -> None:
    if target != "tensorrt":
        raise TargetError(f"there is no target called {target!r}", way_out="use tensorrt or pt2:tensorrt")

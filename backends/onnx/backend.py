"""OnnxBackend: programs written as ONNX models, and run here by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, fx

from vqc.backends import Backend
from vqc.backends.folder import MARKER, write_folder
from vqc.backends.onnx.graph import OPSET
from vqc.backends.onnx.model import interface, model_of, output_names, why_not
from vqc.backends.onnx.sequence import sequence_of
from vqc.errors import TargetError
from vqc.executable import CompileReport, Executable
from vqc.program import Program, op_text

OPTIMIZE = ("none", "basic", "all")
OPTIONS = {"threads": (int,), "optimize": (str,), "licence": (str,), "sequence": (bool,)}


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their defaults; TargetError for an unknown one or a wrong value."""
    for key, value in options.items():
        if key not in OPTIONS or not isinstance(value, OPTIONS[key]):
            raise TargetError(
                f"the ONNX backend cannot take option {key}={value!r}", way_out="use " + ", ".join(OPTIONS)
            )
    found = {"threads": 1, "optimize": "none", "licence": "", "sequence": False} | dict(options)
    if found["optimize"] not in OPTIMIZE:
        raise TargetError(f"option optimize cannot be {found['optimize']!r}", way_out="use " + ", ".join(OPTIMIZE))
    return found


def is_exact(target: str) -> bool:
    """Whether a target asks for the reference's own integers; TargetError for one that is not known."""
    if target not in ("onnx", "onnx:exact"):
        raise TargetError(f"there is no target called {target!r}", way_out="use onnx or onnx:exact")
    return target == "onnx:exact"


def _runtime() -> Any:
    """The onnxruntime module; TargetError when it is not installed."""
    try:
        import onnxruntime
    except ImportError as e:
        raise TargetError("ONNX Runtime is not installed", way_out="pip install onnxruntime, or use vqc.export") from e
    return onnxruntime


class OnnxExecutable(Executable):
    """Runs in ONNX Runtime on the CPU."""

    def __init__(self, program: Program, report: CompileReport, session: Any):
        super().__init__(program, report)
        self.session = session
        self.names = [i.name for i in session.get_inputs()]

    def _run(self, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> Sequence[Tensor]:
        given = {i.name: x for i, x in zip(self.program.inputs, inputs, strict=True)}
        given |= {s.input: x for s, x in zip(self.program.states, state, strict=True)}
        feeds = {name: given[name].detach().contiguous().numpy() for name in self.names}
        return [torch.from_numpy(x) for x in self.session.run(None, feeds)]


def readme_text(program: Program, name: str, said: Mapping[str, Any], licence: str) -> str:
    """README.txt: what the files are and how a step is run."""
    carried = "".join(f"\n    feeds['{s['input']}'] = found['{s['output']}']" for s in said["states"])
    fixed = "".join(f"\n  {a['output']} must be {a['expected']}: {a['text']}" for a in said["assumptions"])
    return (
        f"{name}.onnx: {'a clip in one call, [frames, ...]' if said['sequence'] else 'one step'} of a video network, "
        f"opset {OPSET}.\n\n"
        f"Licence of the weights: {licence or 'unknown: ask who gave you the weights'}\n\n"
        "Inputs, results and states are in interface.json. Before the first frame a state is zeros, or what\n"
        "resets.safetensors holds for it; each step's state outputs are the next step's state inputs:\n\n"
        f"    found = dict(zip(names, session.run(names, feeds))){carried}\n"
        + (f"\nChecked at every step:{fixed}\n" if fixed else "")
        + "\nFunctions of the domain ai.vqc, where there are any, have bodies of standard operators.\n"
        + "".join(f"Note: {n}\n" for n in program.notes)
    )


class OnnxBackend(Backend):
    """Standard ONNX with QuantizeLinear and DequantizeLinear.

    Targets: `onnx`, in the form that runtimes look for; `onnx:exact`, with the reference's own order of operations.
    Options of `export`: licence, sequence (a Scan over the frames of a clip). Of `compile`: threads, optimize (none,
    basic, all).
    """

    name: ClassVar[str] = "onnx"

    def supports(self, program: Program, node: fx.Node, target: str) -> str | None:
        return why_not(program, node, is_exact(target))

    def ready(self, target: str) -> None:
        is_exact(target)
        _runtime()

    def compile(self, program: Program, target: str, options: Mapping[str, Any]) -> Executable:
        """An Executable that runs the model in ONNX Runtime. `optimize`: how far that may rewrite it; "all" fuses
        quantized layers into kernels with a rounding of their own.

        Raises TargetError without onnxruntime or for a wrong option, UnsupportedOp for what has no form in ONNX.
        """
        opts = read_options(options)
        if opts["sequence"]:
            raise TargetError("a model of a whole clip is not run here", way_out="export it, or compile the step")
        onnxruntime = _runtime()
        levels = onnxruntime.GraphOptimizationLevel
        session_options = onnxruntime.SessionOptions()
        session_options.graph_optimization_level = {
            "none": levels.ORT_DISABLE_ALL, "basic": levels.ORT_ENABLE_BASIC, "all": levels.ORT_ENABLE_ALL,
        }[opts["optimize"]]  # fmt: skip
        session_options.intra_op_num_threads = opts["threads"]
        session_options.inter_op_num_threads = 1
        session_options.log_severity_level = 3
        model = model_of(program, opts["licence"], is_exact(target))
        session = onnxruntime.InferenceSession(model.SerializeToString(), session_options, ["CPUExecutionProvider"])
        report = CompileReport(self.name, target, {n.name: f"onnx {op_text(n.target)}" for n in program.calls},
                               notes=[f"onnxruntime {onnxruntime.__version__}, optimize: {opts['optimize']}"]
                               )  # fmt: skip
        report.state_bytes = sum(s.reset.numel() * s.reset.element_size() for s in program.states)
        report.weight_bytes = sum(len(t.raw_data) for t in model.graph.initializer)
        return OnnxExecutable(program, report, session)

    def export(self, program: Program, target: str, folder: Path, options: Mapping[str, Any]) -> Path:
        """Write NAME.onnx, interface.json, README.txt and, for states that do not begin at zero, resets.safetensors.

        Raises UnsupportedOp, TargetError for a wrong option, ArtifactError when the folder cannot be written.
        """
        opts = read_options(options)
        for key in ("threads", "optimize"):
            if key in options:
                raise TargetError(f"an ONNX model has no option {key}", why="it is for running one: who loads the file "
                                  "chooses it", way_out="leave it out, or use vqc.compile")  # fmt: skip
        model = model_of(program, opts["licence"], is_exact(target))
        if opts["sequence"]:
            model = sequence_of(model, program)
        name = program.name.lower() if program.name.isidentifier() else "model"
        said = interface(program, output_names(program)) | {"sequence": opts["sequence"]}
        files = {f"{name}.onnx": model.SerializeToString(deterministic=True),
                 "interface.json": (json.dumps(said, indent=2) + "\n").encode(),
                 MARKER: f"exported by vqc: {name} for {target}\n".encode()}  # fmt: skip
        files["README.txt"] = readme_text(program, name, said, opts["licence"]).encode()
        resets = {s.input: s.reset.contiguous() for s in program.states if bool(s.reset.any())}
        if resets:
            files["resets.safetensors"] = safetensors_bytes(resets)
        return write_folder(Path(folder), files)

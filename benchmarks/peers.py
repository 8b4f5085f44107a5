"""The peers as engines, where they are installed: Inductor, onnxruntime, OpenVINO, in float and in fewer bits.

Each gets the same float network, the same calibration steps with the same carried states, and per-channel weights.
A network is exported and quantized once; engines are made of that for any number of threads.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vqc.report.network import Network
from vqc.report.session import Clips, Engine, Step, as_list

Call = Callable[[list[np.ndarray]], Sequence[np.ndarray]]
Feeds = list[dict[str, np.ndarray]]
# A network without states is a chain of convolutions around warps and sums: those are its only layers worth it.
LAYERS = ["Conv", "ConvTranspose"]
FLOAT, REDUCED = "float32", "reduced"  # the kinds that are compared: float with float, bf16 and int8 with each other


def installed(*names: str) -> bool:
    """Whether all of these packages are there; says which is not."""
    missing = [n for n in names if find_spec(n) is None]
    if missing:
        print(f"without {names[0]}: {', '.join(missing)} not installed (pip install -e '.[peers]')")
    return not missing


class Flat(nn.Module):
    """A network as a function of flat tensors, states included, with a flat tuple as result."""

    def __init__(self, net: Network):
        super().__init__()
        self.module, self.count, self.states = net.module, len(net.example), list(net.states)

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        states = dict(zip(self.states, args[self.count :], strict=True))
        return tuple(pytree.tree_leaves(self.module(*args[: self.count], **states)))


def zero_states(net: Network) -> list[Tensor]:
    """The states at their reset, in the order of `net.states`."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(net.module(*net.example))
    return [torch.zeros_like(leaves[index]) for index in net.states.values()]


def feeds(net: Network, calibration: Clips) -> Feeds:
    """What flows into the network at every calibration step, the float states carried within a clip."""
    flat, found = Flat(net), []
    for clip in as_list(calibration):
        state = zero_states(net)
        for inputs in net.steps(clip):
            args = [*inputs, *state]
            found.append({f"i{k}": x.contiguous().numpy() for k, x in enumerate(args)})
            with torch.no_grad():
                leaves = flat(*args)
            state = [leaves[index] for index in net.states.values()]
    return found


def export_onnx(module: nn.Module, args: Sequence[Tensor], path: Path) -> Path:
    """Write a module as ONNX; its inputs are called i0, i1, ..."""
    torch.onnx.export(module.eval(), tuple(args), str(path), dynamo=True, verbose=False, external_data=False,
                      input_names=[f"i{k}" for k in range(len(args))])  # fmt: skip
    return path


# ---- onnxruntime ---------------------------------------------------------------------------------------------------


def ort_quantized(path: Path, given: Feeds, kinds: list[str] | None = None) -> Path:
    """Static QDQ of a float ONNX file: u8 activations by min-max, s8 weights per channel. `kinds`: of operators."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter(given)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.items, None)

    prepared, quantized = (path.with_name(f"{path.stem}-{name}.onnx") for name in ("prepared", "int8"))
    quant_pre_process(str(path), str(prepared))
    quantize_static(str(prepared), str(quantized), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    op_types_to_quantize=kinds)  # fmt: skip
    return quantized


def ort_call(file: Path, threads: int) -> Call:
    """A function that runs an ONNX file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda args: session.run(None, dict(zip(names, args, strict=True)))


# ---- OpenVINO ------------------------------------------------------------------------------------------------------


def ov_quantized(path: Path, given: Feeds, preset: str, bias: str = "fast") -> Any:
    """An ONNX file after NNCF's quantization; `preset`: "mixed" or "performance"; `bias`: how NNCF corrects
    biases, "fast" (its default), "accurate" (layer by layer, with what came before quantized) or "none".
    """
    import nncf
    import openvino as ov

    kind = nncf.QuantizationPreset.MIXED if preset == "mixed" else nncf.QuantizationPreset.PERFORMANCE
    model = ov.Core().read_model(str(path))
    advanced = nncf.AdvancedQuantizationParameters(disable_bias_correction=bias == "none")
    return nncf.quantize(model, nncf.Dataset(given), preset=kind, subset_size=len(given),
                         fast_bias_correction=bias != "accurate", advanced_parameters=advanced)  # fmt: skip


def ov_call(model: Any, threads: int, precision: str | None = "f32") -> Call:
    """A function that runs an OpenVINO model; with `precision` None OpenVINO chooses (bf16 where it is fast)."""
    import openvino as ov

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda args: [np.array(x) for x in request.infer(args).values()]


def ov_bytes(model: Any, folder: Path) -> int:
    """Bytes of a model's weights as OpenVINO stores them."""
    import openvino as ov

    file = folder / "size.xml"
    ov.save_model(model, str(file), compress_to_fp16=False)
    return file.with_suffix(".bin").stat().st_size


# ---- PyTorch's own ---------------------------------------------------------------------------------------------------


def pt2e_call(net: Network, given: Feeds) -> Call:
    """A function that runs the network after torchao's PT2E static quantization for x86, its q/dq pairs in PyTorch."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    steps = [tuple(torch.from_numpy(x) for x in step.values()) for step in given]
    with torch.no_grad():
        exported = torch.export.export(Flat(net).eval(), steps[0], strict=True).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        for step in steps:
            prepared(*step)
        converted = convert_pt2e(prepared)

    def call(args: list[np.ndarray]) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in converted(*map(torch.from_numpy, args))]

    return call


# ---- all of a network ----------------------------------------------------------------------------------------------


def array_engine(net: Network, name: str, call: Call, size: int) -> Engine:
    """An engine of a function on arrays, the state carried."""
    held: dict[str, list[np.ndarray]] = {}
    zeros = [x.numpy() for x in zero_states(net)]

    def reset() -> None:
        held["state"] = [x.copy() for x in zeros]

    def step(inputs: Step) -> Sequence[Any]:
        leaves = call([*(x.contiguous().numpy() for x in inputs), *held["state"]])
        held["state"] = [leaves[index] for index in net.states.values()]
        return [torch.from_numpy(np.array(x)) for x in leaves]

    return Engine(name, step, reset, size)


def inductor_engine(net: Network) -> Engine:
    """torch.compile with frozen weights, for the number of threads PyTorch has now."""
    from torch._inductor import config

    torch.compiler.reset()
    flat, zeros = Flat(net).eval(), zero_states(net)
    held: dict[str, list[Tensor]] = {}
    compiled = torch.compile(flat)

    def reset() -> None:
        held["state"] = [x.clone() for x in zeros]

    def step(inputs: Step) -> Sequence[Any]:
        with torch.no_grad(), config.patch(freezing=True):
            leaves = compiled(*inputs, *held["state"])
        held["state"] = [leaves[index] for index in net.states.values()]
        return list(leaves)

    reset()
    step(net.example)  # compiles
    return Engine("torch.compile (Inductor, frozen), float32", step, reset, 0)


class Peers:
    """The peers' forms of one network, made once: `engines(threads)` gives (kind, a function that makes the engine)."""

    def __init__(self, net: Network, calibration: Clips):
        self.net = net
        self.folder = tempfile.TemporaryDirectory()
        self.makers: list[tuple[str, Callable[[int], Engine]]] = [(FLOAT, lambda threads: inductor_engine(net))]
        if not installed("onnxruntime", "onnx", "onnxscript"):
            return
        path = Path(self.folder.name) / "float.onnx"
        export_onnx(Flat(net), (*net.example, *zero_states(net)), path)
        given = feeds(net, calibration)
        kinds = None if net.states else LAYERS
        self._onnxruntime(FLOAT, "float32", path)
        self._onnxruntime(REDUCED, "int8 (static QDQ)", ort_quantized(path, given, kinds))
        if not installed("openvino", "nncf"):
            return
        import openvino as ov

        model = ov.Core().read_model(str(path))
        self._openvino(FLOAT, "float32", model, "f32")
        self._openvino(REDUCED, "default precision", model, None)
        for preset in ("mixed", "performance"):
            self._openvino(REDUCED, f"int8 (NNCF {preset})", ov_quantized(path, given, preset), "f32")

    def _onnxruntime(self, kind: str, name: str, file: Path) -> None:
        import onnxruntime as ort

        def make(threads: int) -> Engine:
            return array_engine(self.net, f"onnxruntime {ort.__version__}, {name}", ort_call(file, threads),
                                file.stat().st_size)  # fmt: skip

        self.makers.append((kind, make))

    def _openvino(self, kind: str, name: str, model: Any, precision: str | None) -> None:
        import openvino as ov

        size = functools.cache(lambda: ov_bytes(model, Path(self.folder.name)))

        def make(threads: int) -> Engine:
            return array_engine(self.net, f"OpenVINO {ov.__version__.split('-')[0]}, {name}",
                                ov_call(model, threads, precision), size())  # fmt: skip

        self.makers.append((kind, make))

    def engines(self, threads: int) -> Iterator[tuple[str, Engine]]:
        """Every peer's engine with its kind."""
        for kind, make in self.makers:
            yield kind, make(threads)

    def close(self) -> None:
        """Remove the files."""
        self.folder.cleanup()

"""The peers as engines, where they are installed: onnxruntime static INT8, OpenVINO with NNCF.

Each gets the same float network, the same calibration steps with the same carried states, and per-channel weights.
"""

from __future__ import annotations

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


class _Flat(nn.Module):
    """A network as a function of flat tensors, states included, with a flat tuple as result."""

    def __init__(self, net: Network):
        super().__init__()
        self.module, self.count, self.states = net.module, len(net.example), list(net.states)

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        states = dict(zip(self.states, args[self.count :], strict=True))
        return tuple(pytree.tree_leaves(self.module(*args[: self.count], **states)))


def _zero_states(net: Network) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(net.module(*net.example))
    return [torch.zeros_like(leaves[index]) for index in net.states.values()]


def _feeds(net: Network, calibration: Clips) -> list[dict[str, np.ndarray]]:
    """What flows into the network at every calibration step, the float states carried within a clip."""
    flat, feeds = _Flat(net), []
    for clip in as_list(calibration):
        state = _zero_states(net)
        for inputs in net.steps(clip):
            args = [*inputs, *state]
            feeds.append({f"i{k}": x.contiguous().numpy() for k, x in enumerate(args)})
            with torch.no_grad():
                leaves = flat(*args)
            state = [leaves[index] for index in net.states.values()]
    return feeds


def _engine(net: Network, name: str, call: Callable[[list[np.ndarray]], Sequence[np.ndarray]], size: int) -> Engine:
    held: dict[str, list[np.ndarray]] = {}
    zeros = [x.numpy() for x in _zero_states(net)]

    def reset() -> None:
        held["state"] = [x.copy() for x in zeros]

    def step(inputs: Step) -> Sequence[Any]:
        leaves = call([*(x.contiguous().numpy() for x in inputs), *held["state"]])
        held["state"] = [leaves[index] for index in net.states.values()]
        return [torch.from_numpy(np.array(x)) for x in leaves]

    return Engine(name, step, reset, size)


def _exported(net: Network, path: Path) -> None:
    args = (*net.example, *_zero_states(net))
    torch.onnx.export(_Flat(net).eval(), args, str(path), dynamo=True, verbose=False, external_data=False,
                      input_names=[f"i{k}" for k in range(len(args))])  # fmt: skip


def peer_engines(net: Network, calibration: Clips, threads: int) -> Iterator[Engine]:
    """The engines of every installed peer, float and INT8. Says which peers are missing."""
    if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
        print("onnxruntime, onnx or onnxscript is not installed: no peers")
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "float.onnx"
        _exported(net, path)
        feeds = _feeds(net, calibration)
        yield from _onnxruntime(net, path, feeds, threads)
        if find_spec("openvino") is None or find_spec("nncf") is None:
            print("openvino or nncf is not installed: without it")
            return
        yield from _openvino(net, path, feeds, threads)


def _onnxruntime(net: Network, path: Path, feeds: list[dict[str, np.ndarray]], threads: int) -> Iterator[Engine]:
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.items, None)

    def engine(name: str, file: Path) -> Engine:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        return _engine(net, name, lambda args: session.run(None, dict(zip(names, args, strict=True))),
                       file.stat().st_size)  # fmt: skip

    yield engine(f"onnxruntime {ort.__version__}, float32", path)
    prepared, quantized = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quant_pre_process(str(path), str(prepared))
    # A network without states is a chain of convolutions around warps and sums: those are its only layers worth it.
    kinds = None if net.states else ["Conv", "ConvTranspose"]
    quantize_static(str(prepared), str(quantized), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    op_types_to_quantize=kinds)  # fmt: skip
    yield engine(f"onnxruntime {ort.__version__}, int8 (static QDQ)", quantized)


def _openvino(net: Network, path: Path, feeds: list[dict[str, np.ndarray]], threads: int) -> Iterator[Engine]:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(path))
    quantized = nncf.quantize(model, nncf.Dataset(feeds), preset=nncf.QuantizationPreset.MIXED, subset_size=len(feeds))
    for kind, made in (("float32", model), ("int8 (NNCF mixed)", quantized)):
        file = path.with_name("openvino.xml")
        ov.save_model(made, str(file), compress_to_fp16=False)
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = ov.Core().compile_model(made, "CPU", settings).create_infer_request()

        def call(args: list[np.ndarray], request: Any = request) -> list[np.ndarray]:
            return [np.array(x) for x in request.infer(args).values()]

        yield _engine(net, f"OpenVINO {ov.__version__.split('-')[0]}, {kind}", call,
                      file.with_suffix(".bin").stat().st_size)  # fmt: skip

"""Single convolutions, float and int8, beside the same peers: the marginal time of one more layer in a chain.

A chain of n layers (convolution, bias, ReLU) of one shape goes through the same tools as a whole network. The time of a
layer is (time of the long chain - time of the short one) / (difference in layers), so that what happens at the ends of
a chain cancels. Chains of all engines take turns; of each the least time counts.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import vqc
from benchmarks import peers as tools
from benchmarks.machine import Record
from benchmarks.peers import FLOAT, REDUCED, Feeds, installed

SHORT, LONG = 2, 6  # layers of the two chains; even, for those that go there and back
Run = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A convolution on a map [1, channels, h, w]; `back` other channels than `channels`: every second layer returns."""

    channels: int
    back: int
    kernel: int
    h: int
    w: int

    @property
    def name(self) -> str:
        arrow = "->" if self.back == self.channels else "<->"
        return f"{self.channels}{arrow}{self.back} {self.kernel}x{self.kernel} @{self.h}x{self.w}"

    @property
    def macs(self) -> int:
        return self.channels * self.back * self.kernel**2 * self.h * self.w

    def chain(self, layers: int) -> nn.Sequential:
        """The chain, with weights that keep the size of the values."""
        torch.manual_seed(0)
        parts: list[nn.Module] = []
        for i in range(layers):
            ends = (self.channels, self.back) if i % 2 == 0 else (self.back, self.channels)
            conv = nn.Conv2d(*ends, self.kernel, padding=self.kernel // 2)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            parts += [conv, nn.ReLU()]
        return nn.Sequential(*parts).eval()

    def inputs(self, count: int) -> list[Tensor]:
        g = torch.Generator().manual_seed(1)
        return [torch.rand(1, self.channels, self.h, self.w, generator=g) for _ in range(count)]


SHAPES = (
    Shape(64, 64, 3, 72, 128), Shape(128, 128, 3, 36, 64), Shape(256, 256, 3, 18, 32), Shape(128, 128, 3, 18, 32),
    Shape(32, 32, 3, 144, 256), Shape(1024, 128, 1, 18, 32),
)  # fmt: skip


def _torch(chain: nn.Module, x: Tensor) -> Iterator[tuple[str, str, Run]]:
    def run(net: nn.Module, given: Tensor) -> Run:
        def call() -> object:
            with torch.no_grad():
                return net(given)

        return call

    yield FLOAT, "PyTorch eager, NCHW", run(chain, x)
    last = torch.channels_last
    other = copy.deepcopy(chain).to(memory_format=last)
    yield FLOAT, "PyTorch eager, channels last", run(other, x.to(memory_format=last))


def _vqc(chain: nn.Module, inputs: list[Tensor], threads: int) -> Iterator[tuple[str, str, Run]]:
    program = vqc.capture(chain, (inputs[0],))
    for kind, name, recipe in ((FLOAT, "vqc C, float32", "float"), (REDUCED, "vqc C, int8", "int8-all")):
        done = vqc.apply(program, recipe, calibration=None if recipe == "float" else [[(x,) for x in inputs]])
        exe = vqc.compile(done, "native", threads=threads)

        def call(exe: vqc.Executable = exe) -> object:
            return exe.step([inputs[0]])

        yield kind, name, call


def _peers(chain: nn.Module, inputs: list[Tensor], folder: Path, threads: int) -> Iterator[tuple[str, str, Run]]:
    if not installed("onnxruntime", "onnx", "onnxscript"):
        return
    path = tools.export_onnx(chain, (inputs[0],), folder / "chain.onnx")
    given: Feeds = [{"i0": x.numpy()} for x in inputs]
    x = [inputs[0].numpy()]

    def bound(call: Callable[[list[np.ndarray]], object]) -> Run:
        return lambda: call(x)

    yield FLOAT, "onnxruntime, float32", bound(tools.ort_call(path, threads))
    yield REDUCED, "onnxruntime, int8 (static QDQ)", bound(tools.ort_call(tools.ort_quantized(path, given), threads))
    if not installed("openvino", "nncf"):
        return
    import openvino as ov

    model = ov.Core().read_model(str(path))
    yield FLOAT, "OpenVINO, float32", bound(tools.ov_call(model, threads))
    yield REDUCED, "OpenVINO, default precision", bound(tools.ov_call(model, threads, None))
    yield (
        REDUCED,
        "OpenVINO, int8 (NNCF mixed)",
        bound(tools.ov_call(tools.ov_quantized(path, given, "mixed"), threads)),
    )


def _runs(shape: Shape, layers: int, threads: int, folder: Path, *, peers: bool) -> dict[str, tuple[str, Run]]:
    inputs = shape.inputs(4)
    found = list(_vqc(shape.chain(layers), inputs, threads))
    if peers:
        found += _peers(shape.chain(layers), inputs, folder, threads)
        found += _torch(shape.chain(layers), inputs[0])
    return {name: (kind, run) for kind, name, run in found}


def measure(shapes: tuple[Shape, ...] = SHAPES, *, threads: int = 1, rounds: int = 20, peers: bool = True
            ) -> list[Record]:  # fmt: skip
    """One record a shape and engine: ms of one layer, GMAC/s, and vqc's ratio to the best peer of its kind."""
    torch.set_num_threads(threads)
    records: list[Record] = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as name:
            chains = {n: _runs(shape, n, threads, Path(name), peers=peers) for n in (SHORT, LONG)}
            best: dict[tuple[int, str], float] = {}
            for turn in range(rounds + 1):
                for engine in chains[LONG]:
                    for n in (SHORT, LONG):
                        run = chains[n][engine][1]
                        run()  # the caches are another engine's
                        began = time.perf_counter()
                        run()
                        spent = time.perf_counter() - began
                        if turn:
                            best[n, engine] = min(best.get((n, engine), spent), spent)
        made: list[Record] = []
        for engine, (kind, _) in chains[LONG].items():
            seconds = (best[LONG, engine] - best[SHORT, engine]) / (LONG - SHORT)
            speed = round(shape.macs / seconds / 1e9, 1) if seconds > 0 else None  # below the clock's noise
            made.append({"shape": shape.name, "macs": shape.macs, "threads": threads, "engine": engine, "kind": kind,
                         "ms": round(seconds * 1e3, 4), "gmacs": speed})  # fmt: skip
            print(f"{shape.name} {engine}: {seconds * 1e3:.3f} ms, {speed} GMAC/s", flush=True)
        records += with_ratios(made)
    return records


def with_ratios(records: list[Record]) -> list[Record]:
    """The records; vqc's with their time over that of the fastest peer of the same kind, which is named."""
    from benchmarks.networks import against_best

    return against_best(records)

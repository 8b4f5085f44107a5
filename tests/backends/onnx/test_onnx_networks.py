"""Whole networks by ONNX Runtime beside the reference and C: states, decisions, exported files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.inliner import inline_local_functions
from safetensors.torch import load_file
from torch import nn

import vqc
from benchmarks.onnx_agreement import decisions
from vqc.backends.onnx.model import model_of
from vqc.errors import AssumptionError
from vqc.program import Program
from vqc.report.network import network
from vqc.report.session import recipe_program


class Gated(nn.Module):
    """A recurrent network: a gate from a state that does not begin at zero, a decision on the data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.gates = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.Conv2d(8, 1, 1)
        self.register_buffer("memory", torch.full((1, 8, 8, 12), 0.25))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.inp(x))
        z, n = torch.sigmoid(self.gates(torch.cat([y, self.memory], 1))).chunk(2, 1)
        self.memory = (1 - z) * self.memory + z * torch.tanh(n)
        if x.sum() == 0.125:
            y = y * 2
        return self.out(self.up(self.memory + y))


def pictures(count: int, *size: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return (torch.rand(1, 3, *size, generator=g) * torch.linspace(0.5, 1, count).view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.fixture(scope="module")
def gated() -> Program:
    program = vqc.capture(Gated().eval(), pictures(1, 8, 12), known_ranges={"x": (0, 1)})
    return vqc.apply(program, "int8-all", calibration=pictures(4, 8, 12))


def played(program: Program, target: str, frames: torch.Tensor, watched: list[str]) -> list[list[torch.Tensor]]:
    """The flat outputs of every step, and then what the watched nodes were."""
    engine, state, found = vqc.compile(program.with_outputs(watched), target), program.initial_state(), []
    for frame in frames.split(1):
        found.append(list(engine.trace([frame], state)))
        state = [found[-1][s.output] for s in program.states]
    return found


def distance(a: list[list[torch.Tensor]], b: list[list[torch.Tensor]]) -> float:
    return max(float((x.double() - y.double()).abs().max()) for p, q in zip(a, b, strict=True)
               for x, y in zip(p, q, strict=True))  # fmt: skip


def test_a_quantized_recurrent_network_has_the_references_bits(gated: Program) -> None:
    frames = pictures(6, 8, 12)
    watched = [n.name for n in gated.calls if n.meta["val"].__class__ is torch.Tensor and "requantize" in n.name]
    want = played(gated, "reference", frames, watched)
    assert watched or "qconv2d" in str(gated)
    assert distance(want, played(gated, "onnx:exact", frames, watched)) == 0
    assert distance(want, played(gated, "portable", frames, watched)) == 0
    assert distance(want, played(gated, "onnx", frames, watched)) < 1e-4
    assert distance(want[1:], want[:-1]) > 1e-3  # the frames differ


def test_assumptions_are_outputs_and_are_checked(gated: Program) -> None:
    names = [o.name for o in model_of(gated).graph.output]
    assert names == ["out", "memory_next", "assumption_0"]
    broken = torch.zeros(1, 3, 8, 12)
    broken[0, 0, 0, 0] = 0.125
    with pytest.raises(AssumptionError):
        vqc.compile(gated, "onnx").step([broken])


@pytest.mark.network
def test_rvm_in_eight_bits_is_the_reference_bit_for_bit() -> None:
    net = network("rvm", (64, 96))
    program = recipe_program(net, "int8", pictures(3, 64, 96))
    frames = pictures(2, 64, 96)
    want, got = (played(program, t, frames, decisions(program)) for t in ("native", "onnx:exact"))
    results = len(program.outputs) + len(program.states)
    assert distance([s[:results] for s in want], [s[:results] for s in got]) < 1e-5  # the last layers are float
    states = [s.output for s in program.states]
    assert distance([[s[i] for i in states] for s in want], [[s[i] for i in states] for s in got]) < 1e-6
    layers = [n.op_type for n in model_of(program).graph.node]
    assert layers.count("Conv") == 78 and "QuantizeLinear" in layers


@pytest.mark.network
def test_bivm_decides_as_c_does() -> None:
    net = network("bivm", (64, 96))
    program = recipe_program(net, "xnor")
    watched = decisions(program)
    assert len(watched) > 60  # signs of every layer, the mask at every scale
    frames = pictures(2, 64, 96)
    want, got = (played(program, target, frames, watched) for target in ("native", "onnx"))
    extras = len(program.result_nodes)
    for a, b in zip(want, got, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[extras:], b[extras:], strict=True))
        assert max(float((x - y).abs().max()) for x, y in zip(a[:extras], b[:extras], strict=True)) < 1e-3
    model = model_of(program)
    used = {n.op_type for n in model.graph.node if n.domain == "ai.vqc"}
    assert used == {"Binarize", "BConv2d", "MaskedBConv2d", "MaskedConv2d"} == {f.name for f in model.functions}
    onnx.checker.check_model(inline_local_functions(model), full_check=True)


@pytest.mark.network
@pytest.mark.parametrize("name", ["rife", "srvgg", "rvm"])
def test_float_networks(name: str) -> None:
    net = network(name, (64, 64))
    program = recipe_program(net, "float")
    inputs = [x.clone() for x in net.example]
    want = vqc.compile(program, "reference").trace(inputs)
    got = vqc.compile(program, "onnx", optimize="all").trace(inputs)
    assert max(float((a - b).abs().max()) for a, b in zip(want, got, strict=True)) < 1e-3


def test_a_clip_in_one_call(gated: Program, tmp_path: Path) -> None:
    folder = vqc.export(gated, tmp_path / "clip", "onnx:exact", sequence=True)
    assert json.loads((folder / "interface.json").read_text())["sequence"] is True
    model = onnx.load(folder / "gated.onnx")
    assert [n.op_type for n in model.graph.node] == ["Scan"] and len(model.graph.initializer) > 5
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(folder / "gated.onnx", options, providers=["CPUExecutionProvider"])
    reset = load_file(folder / "resets.safetensors")["memory"].numpy()
    for count in (1, 5):
        frames = pictures(count, 8, 12)
        found = session.run(["memory_next", "out", "assumption_0"], {"memory": reset, "x": frames[:, None].numpy()})
        steps = played(gated, "reference", frames, [])
        assert np.array_equal(found[0], steps[-1][1].numpy())
        assert np.array_equal(found[1], torch.stack([s[0] for s in steps]).numpy())
        assert found[2].tolist() == [False] * count


def test_an_exported_folder_is_run_as_its_readme_says(gated: Program, tmp_path: Path) -> None:
    folder = vqc.export(gated, tmp_path / "net", "onnx", licence="mine")
    assert {p.name for p in folder.iterdir()} == {
        "README.txt", "gated.onnx", "interface.json", "resets.safetensors", "vqc-export.txt"}  # fmt: skip
    said = json.loads((folder / "interface.json").read_text())
    assert said["inputs"] == [{"name": "x", "range": [0, 1]}] and said["outputs"] == ["out"]
    assert [(s["input"], s["output"], s["reset"]) for s in said["states"]] == [("memory", "memory_next", "file")]
    text = (folder / "README.txt").read_text()
    assert "Licence of the weights: mine" in text and "feeds['memory'] = found['memory_next']" in text
    session = onnxruntime.InferenceSession(folder / "gated.onnx", providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    feeds = {"memory": load_file(folder / "resets.safetensors")["memory"].numpy()}
    reference = vqc.Stream(vqc.compile(gated, "reference"))
    for frame in pictures(4, 8, 12).split(1):
        feeds["x"] = frame.numpy()
        found = dict(zip(names, session.run(names, feeds), strict=True))
        feeds["memory"] = found["memory_next"]
        assert np.abs(found["out"] - reference(frame).numpy()).max() < 0.02  # with all of its optimizations
    assert vqc.export(gated, tmp_path / "net", "onnx:exact") == folder  # an earlier export is replaced
    again = onnx.load(folder / "gated.onnx")
    assert {f.name for f in again.functions} == {"Sigmoid", "Tanh"}
    assert json.loads(next(p.value for p in again.metadata_props if p.key == "vqc.interface"))["outputs"] == ["out"]

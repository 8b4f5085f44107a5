"""The benchmark of GPUs, as far as it runs without one: its layers in the interpreter, its arithmetic on paper."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from handmade import Hand
from triton_programs import recurrent

import vqc
from benchmarks import gpu, gpu_reference
from vqc.backends.triton.samples import Layer
from vqc.errors import TargetError


def test_a_layer_on_paper():
    row = gpu.on_paper(Layer(64, 64, (72, 128)), gpu.Peak("one", bytes=1e12, s8=100e12, f16=50e12, launch_us=1.0))
    macs, values = 72 * 128 * 64 * 64 * 9, 72 * 128 * 128 + 64 * 64 * 9
    assert row["s8 us"] == pytest.approx(max(macs / 100e12, values / 1e12) * 1e6) == pytest.approx(3.397, abs=1e-3)
    assert row["f16 us"] == pytest.approx(macs / 50e12 * 1e6)
    assert row["bound"] == "arithmetic" and row["measured us"] is None
    assert "not measured" in gpu.shown([row])
    assert len(gpu.paper()) == 12


def test_every_form_of_a_layer_is_compared_and_timed():
    rows = gpu.layer_records(Layer(5, 6, (9, 17)), torch.device("cpu"), rounds=1, cache=1)
    forms = ["PyTorch, float32", "s8", "w4a8", "s8, float result", "s8, float result, masked", "binary, dot",
             "binary, popcount"]  # fmt: skip
    assert [r["form"] for r in rows] == forms
    assert all(r["us"] > 0 for r in rows)
    assert [r["equal"] for r in rows] == [None, True, True, None, True, True, True]


def test_a_step_on_paper():
    """Every launch, once, with its own bytes and multiply-adds; nothing is run."""
    rows = gpu.paper_of(recurrent(), gpu.Peak("one", bytes=1e9, s8=1e12, f16=5e11, launch_us=1.0))
    assert [r["kernel"] for r in rows] == ["pointwise", "conv_i8", "conv_i8"]
    first, second, third = rows
    assert second["GMAC"] == pytest.approx(48 * 16 * 45 / 1e9) and third["GMAC"] == pytest.approx(48 * 4 * 16 / 1e9)
    values = 48 * (5 * 4 + 5 * 4 + 5)  # two pictures of floats, one of levels
    assert values / 1e6 <= first["MB"] <= (values + 32) / 1e6
    assert first["least us"] == pytest.approx(first["MB"] * 1e3) and first["bound"] == "bytes"
    (last,) = [r for r in gpu.summed(rows) if r["kernel"] == "all"]
    assert last["launches"] == 3 and last["least us"] == pytest.approx(sum(r["least us"] for r in rows))
    assert last["us with launches"] >= max(3.0, last["least us"]) and last["measured us"] is None


def test_scaling_of_streams():
    times = {1: 1e-3, 2: 1e-3, 4: 4e-3}
    rows = gpu.scaling(lambda n: (n, "yes"), times.__getitem__, (1, 2, 4))
    assert [r["frames/s"] for r in rows] == pytest.approx([1000, 2000, 1000])
    assert [r["scaling"] for r in rows] == pytest.approx([1, 1, 0.25])

    def make(n):
        if n > 1:
            raise TargetError("too little memory")
        return n, "yes"

    rows = gpu.scaling(make, times.__getitem__, (1, 2, 4))
    assert len(rows) == 2 and rows[1]["frames/s"] is None and "too little memory" in rows[1]["one graph"]


def test_inputs_are_larger_than_the_cache():
    made = gpu.copies(lambda: torch.zeros(1000, dtype=torch.uint8), cache=2500)
    assert len(made) == 4 and len({x.data_ptr() for x in made}) == 4


def test_without_a_gpu_nothing_is_measured(tmp_path, capsys):
    assert gpu.main(["-o", str(tmp_path)]) == gpu.NOT_MEASURED == 3
    assert "not measured: TRITON_INTERPRET is set" in capsys.readouterr().err
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 3 and "not measured: target cuda needs a GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


def turned(scale=1.0):
    """A program with an operator that is left to PyTorch, and a state; `scale`: of its result."""
    b = Hand("turned")
    x, h = b.input("x", 1, 3, 4, 4), b.state("h", torch.ones(1, 3, 4, 4))
    y = b(torch.ops.aten.mul.Tensor, b(torch.ops.aten.flip, x, [3]), scale)
    return b.done(y, states=[b(torch.ops.aten.add.Tensor, h, x)])


def other(program):
    """The same program with one weight changed by one."""
    changed = program.clone()
    changed.constants["w2"] = changed.constants["w2"].clone()
    changed.constants["w2"].view(-1)[0] += 1
    return changed


CPU = torch.device("cpu")


def test_a_network_is_compared_with_the_reference():
    program = recurrent()
    assert gpu.agreement(vqc.compile(program, "triton"), program, CPU) == {
        "equal": True, "reference": "equal bits", "wrong": ""}  # fmt: skip
    found = gpu.agreement(vqc.compile(other(program), "triton"), program, CPU)
    assert not found["equal"] and "all of it runs in kernels" in found["wrong"]


def test_a_state_that_is_lost_is_wrong(monkeypatch):
    program, lost = recurrent(), vqc.compile(recurrent(), "triton")
    step = lost.step
    lost.step = lambda inputs, state: (step(inputs, state)[0], lost.program.initial_state())
    assert gpu.agreement(lost, program, CPU)["wrong"]


@pytest.mark.parametrize(("scale", "wrong"), [(1.0, ""), (1.01, ""), (1.1, "20.0 dB from"), (float("nan"), "nan dB")])
def test_behind_operators_of_pytorch_results_are_near(scale, wrong):
    exe = vqc.compile(turned(scale), "triton")
    assert exe.report.fallbacks
    found = gpu.agreement(exe, turned(), CPU)
    assert found["equal"] is (scale == 1) and wrong in found["wrong"] and bool(found["wrong"]) is bool(wrong)


@pytest.mark.parametrize("change", [lambda p: p, other])
def test_only_a_network_that_is_right_is_timed(monkeypatch, change):
    module = torch.nn.Conv2d(3, 3, 1)
    net = SimpleNamespace(module=module, example=(torch.rand(1, 3, 4, 4),))
    monkeypatch.setattr(gpu, "NETWORKS", {"recurrent": ("none", "none")})
    monkeypatch.setattr(gpu, "network_program", lambda name, size: (net, recurrent()))
    monkeypatch.setattr(gpu, "graphed", lambda program: (vqc.compile(change(program), "triton"), "no: interpreted"))
    monkeypatch.setattr(gpu.torch, "compile", lambda module, mode: module)
    (row,) = gpu.networks(CPU, 1, ["288x512"])
    timed = [k for k in row if k.endswith(" ms")]
    assert (len(timed), bool(row["wrong"])) == ((7, False) if row["equal"] else (0, True))
    assert row["equal"] is (change is not other)


def test_wrong_rows_are_told_and_not_written(tmp_path, monkeypatch, capsys):
    rows = [{"network": "good", "equal": False, "reference": "50.0 dB", "wrong": "", "vqc ms": 1.0},
            {"network": "bad", "equal": False, "reference": "3.0 dB", "wrong": "results are 3.0 dB from"}]  # fmt: skip
    forms = [{"layer": "l", "form": "s8", "us": 1.0, "equal": e} for e in (True, False, None)]
    monkeypatch.setattr(gpu, "place_for", lambda target: SimpleNamespace(interpreted=False, device=CPU))
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda device: "one")
    monkeypatch.setattr(gpu, "networks", lambda device, rounds: rows)
    monkeypatch.setattr(gpu, "layers_at", lambda size: [size] if size == "1080p" else [])
    monkeypatch.setattr(gpu, "layer_records", lambda layer, device, rounds: forms)
    assert gpu.main(["--only", "layers", "networks", "-o", str(tmp_path)]) == gpu.WRONG == 1
    told = capsys.readouterr()
    assert "networks: wrong results, not written: {'network': 'bad'" in told.err and "layers: wrong" in told.err
    written = {p.name: json.loads(p.read_text())["results"] for p in tmp_path.iterdir()}
    assert [r["equal"] for r in written["gpu-layers.json"]] == [True, None]
    (kept,) = written["gpu-networks.json"]
    assert kept["network"] == "good" and "wrong" not in kept and kept["reference"] == "50.0 dB"
    monkeypatch.setattr(gpu, "networks", lambda device, rounds: rows[1:])
    assert gpu.main(["--only", "networks", "-o", str(tmp_path / "none")]) == gpu.WRONG
    assert not (tmp_path / "none").exists() and gpu_reference.told_apart(rows[:1])[1] == []

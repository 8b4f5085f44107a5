"""The benchmark of GPUs, as far as it runs without one: its layers in the interpreter, its arithmetic on paper."""

import os
import subprocess
import sys

import pytest
import torch
from triton_programs import recurrent

from benchmarks import gpu
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

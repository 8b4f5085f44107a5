"""The benchmark of GPUs, as far as it runs without one: its layers in the interpreter, its arithmetic on paper."""

import os
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu
from vqc.backends.triton.samples import Layer


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

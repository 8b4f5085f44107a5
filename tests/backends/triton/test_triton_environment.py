"""What is said where kernels cannot run: no triton, no GPU, an old one, another one, little memory, a CPU tensor."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import triton

from vqc.backends import backend_for
from vqc.backends.triton import environment
from vqc.backends.triton.environment import (
    Place,
    architecture,
    check_capability,
    check_device,
    check_memory,
    place_for,
)
from vqc.errors import InputError, TargetError

REFUSED = """
from vqc.backends.triton.environment import place_for
from vqc.errors import TargetError
for target in ("cuda", "hip:gfx942"):
    try:
        place_for(target)
    except TargetError as e:
        print(e)
"""


def test_architectures_by_name():
    assert architecture("triton") is None and architecture("cuda") is None
    assert architecture("cuda:sm_90") == "sm_90" and architecture("hip:gfx942") == "gfx942"
    for wrong in ("cuda:sm_95", "cuda:gfx942", "hip:sm_90", "cuda:ninety"):
        with pytest.raises(TargetError, match=f"target {wrong} is not known") as e:
            architecture(wrong)
        assert "use " in str(e.value) and "older" not in str(e.value)
    with pytest.raises(TargetError, match="sm_75 is older than sm_80"):
        architecture("cuda:sm_75")


def test_an_old_gpu_and_another_one():
    check_capability("cuda", None, (9, 0), "H200")
    check_capability("cuda:sm_90", "sm_90", (9, 0), "H200")
    with pytest.raises(TargetError, match=r"cannot use Tesla T4 \(sm_75\)") as e:
        check_capability("cuda", None, (7, 5), "Tesla T4")
    assert "target inductor" in str(e.value)
    with pytest.raises(TargetError, match="A100 is sm_80"):
        check_capability("cuda:sm_90", "sm_90", (8, 0), "A100")


def test_too_little_memory():
    check_memory(10**9, 10**9, "small")
    with pytest.raises(TargetError, match="needs 3.00 GB on the GPU, 2.50 GB are free"):
        check_memory(3 * 10**9, 25 * 10**8, "large")


def test_a_tensor_of_another_device():
    place = Place(torch.device("cuda", 0), False)
    with pytest.raises(InputError, match="input 1 of program p lies on cpu") as e:
        check_device([_On("cuda:0"), torch.zeros(1)], place, "p")
    assert "x.to('cuda:0')" in str(e.value)


class _On:
    """Stands for a tensor of a device that this machine does not have."""

    def __init__(self, device):
        self.device = torch.device(device)


def test_interpreted_programs_run_on_the_cpu():
    assert place_for("triton") == Place(torch.device("cpu"), True)


def test_without_triton(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match="the package triton is not installed") as e:
        place_for("cuda")
    assert "pip install 'vqc[triton]'" in str(e.value)


@pytest.mark.parametrize("version", ["3.6.0", "2.3.1", "3.6.0+git1234"])
def test_an_old_triton_is_refused(monkeypatch, version):
    monkeypatch.setattr(triton, "__version__", version)
    with pytest.raises(TargetError, match=f"triton {version.replace('+', '.')} is too old") as e:
        backend_for("cuda").ready("cuda")
    assert "use PyTorch 2.12 or newer" in str(e.value) and "target inductor" in str(e.value)


@pytest.mark.parametrize("version", ["3.7.0", "3.10.1", "4.0.0"])
def test_a_newer_triton_is_taken(monkeypatch, version):
    monkeypatch.setattr(triton, "__version__", version)
    assert environment.need_triton() is triton


def test_the_first_triton_is_the_one_of_the_extra():
    root = Path(__file__).resolve().parents[3]
    (wanted,) = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["triton"]
    assert f"triton>={'.'.join(map(str, environment.FIRST_TRITON))};" in wanted


def test_without_a_gpu():
    """In a process in which kernels are not interpreted."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert "target cuda needs a GPU and PyTorch sees none" in done.stdout
    assert "set TRITON_INTERPRET=1 before Python starts" in done.stdout
    assert "target hip:gfx942 is not run here" in done.stdout

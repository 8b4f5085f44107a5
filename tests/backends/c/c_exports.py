"""What the tests of exported programs share: a small recurrent network of frames, and running what was built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from c_helpers import aten, chain
from c_programs import qd, vops

QEMU = "it comes with Debian's and Ubuntu's package qemu-user-static: apt-get install qemu-user-static"


def matting():
    """A recurrent step on frames: an 8-bit and a float convolution, a matte and colours; pictures in and out."""
    g = torch.Generator().manual_seed(2)

    def rand(*shape):
        return torch.randn(*shape, generator=g) * 0.5

    def build(b, x, h):
        q = b.call(qd.quantize_per_tensor.default, x, 1 / 255, 0, 0, 255, torch.uint8)
        w = torch.randint(-127, 128, (7, 3, 3, 3), generator=g).to(torch.int8)
        zero = torch.tensor([0], dtype=torch.int32)
        y = b.call(vops.qconv2d.default, q, w, torch.full((7,), 1e-4), rand(7), zero, [1, 1], [1, 1], [1, 1], 1)
        y = b.call(aten.relu.default, b.call(aten.conv2d.default, y, rand(5, 7, 3, 3), rand(5), [1, 1], [1, 1]))
        new = b.call(aten.add.Tensor, b.call(aten.mul.Tensor, h, 0.5), y)
        matte = b.call(vops.sigmoid.default, b.call(aten.slice.Tensor, new, 1, 0, 1))
        return [b.call(aten.mul.Tensor, x, matte), matte, b.call(aten.argmax.default, new, 1)], [new]

    return chain(build, torch.rand(1, 3, 10, 14, generator=g), states=[torch.zeros(1, 5, 10, 14)], name="matting")


def qemu(cpu_family: str) -> str:
    """The user-mode emulator for a family; the test fails, and says what to install, where it is missing."""
    found = shutil.which(f"qemu-{cpu_family}-static")
    if found is None:
        pytest.fail(f"qemu-{cpu_family}-static is missing; {QEMU}")
    return found


def self_test(program: Path, folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    """Run an exported self-test, on a CPU that the command `before` emulates, if one is given."""
    return subprocess.run([*before, str(program), str(folder)], capture_output=True, text=True, timeout=300)


def run_in(folder: Path, *command: str) -> str:
    """Run a command in a folder and return what it says; the test fails when the command does.

    A make that runs these tests is not the make that is tested: what it hands down is left out.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=own)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr

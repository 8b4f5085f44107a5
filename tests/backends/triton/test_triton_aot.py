"""Every kernel compiled ahead of time for four GPUs, without one, and what its machine code has to show."""

import json
import os
import subprocess
import sys

import pytest

from vqc.backends.triton.aot import compile_launch
from vqc.backends.triton.samples import samples
from vqc.errors import TargetError

SCRIPT = """
import json, sys
from vqc.backends.triton.aot import compile_launch, facts
from vqc.backends.triton.samples import samples
json.dump({name: facts(compile_launch(made, sys.argv[1])) for name, made in samples().items()}, sys.stdout)
"""
INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": ("tcgen05.mma", "mma.sync"),
               "gfx942": "v_mfma_i32"}  # fmt: skip
DIVIDES = ("gate", "tanh, levels")  # a division that is rounded right takes fused steps on NVIDIA


@pytest.mark.parametrize("arch", INSTRUCTION)
def test_machine_code(arch):
    """Kernels compile where they are not interpreted: in a process of their own."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, arch], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert set(found) == set(samples())
    for name, fact in found.items():
        products = name.startswith(("conv", "binary dot"))
        assert bool(fact["matrix"]) == products, (name, fact)
        assert all(i.startswith(INSTRUCTION[arch]) for i in fact["matrix"]), (name, fact)
        assert bool(fact["popcount"]) == name.startswith("binary popcount"), (name, fact)
        assert fact["spills"] == 0, (name, fact)
        assert fact["shared"] <= fact["limit"], (name, fact)
        if name in DIVIDES and not arch.startswith("gfx"):
            assert all(i.startswith("FFMA") for i in fact["fused"]), (name, fact)
        elif name not in DIVIDES:
            assert fact["fused"] == [], (name, fact)


def test_interpreted_kernels_are_not_compiled():
    with pytest.raises(TargetError, match="interpreted in this process") as e:
        compile_launch(samples()["gate"], "sm_90")
    assert "unset TRITON_INTERPRET" in str(e.value)

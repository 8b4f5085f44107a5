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
# Triton's own launcher up to the point where it would load the code, on a device that is only described.
LAUNCHER = """
import json, sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Described:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0
    def get_active_torch_device(self):
        return torch.device("cpu")

driver.set_active(Described())
from vqc.backends.triton.aot import compile_launch
from vqc.backends.triton.launch import function
from vqc.backends.triton.samples import samples
same = {}
for name in sys.argv[1:]:
    made = samples()[name]
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        ready = function(made.kernel).warmup(**made.args, **made.meta, **made.options, grid=made.grid)
    same[name] = ready.asm["cubin"] == compile_launch(made, "sm_90").code
json.dump(same, sys.stdout)
"""
INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": ("tcgen05.mma", "mma.sync"),
               "gfx942": "v_mfma_"}  # fmt: skip
DIVIDES = ("gate", "tanh, levels")  # a division that is rounded right takes fused steps on NVIDIA


def apart(script, *arguments):
    """What a script prints as JSON, in a process in which kernels are not interpreted."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=env,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_gpu_would_run_this_code():
    """The launcher sees other types than a signature written by hand might say: it compiles the same bytes."""
    names = ["conv 3x3, residual, PReLU, signs", "conv w4a8", "depthwise 5x5", "binary popcount masked", "resize"]
    assert apart(LAUNCHER, *names) == dict.fromkeys(names, True)


@pytest.mark.parametrize("arch", INSTRUCTION)
def test_machine_code(arch):
    found = apart(SCRIPT, arch)
    assert set(found) == set(samples())
    for name, fact in found.items():
        products = name.startswith(("conv", "binary dot", "product"))
        assert bool(fact["matrix"]) == products, (name, fact)
        assert all(i.startswith(INSTRUCTION[arch]) for i in fact["matrix"]), (name, fact)
        assert bool(fact["popcount"]) == name.startswith("binary popcount"), (name, fact)
        assert bool(fact["matrix_half"]) == name.startswith("w4a16"), (name, fact)
        assert all(i.startswith(INSTRUCTION[arch]) for i in fact["matrix_half"]), (name, fact)
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

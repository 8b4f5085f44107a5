"""Binary convolutions on Arm, under qemu: the same bits as the generic twin, and few instructions."""

from __future__ import annotations

import subprocess

import pytest
import torch
from c_exports import qemu, self_test
from c_helpers import aten, chain

import vqc.ops  # noqa: F401  registers vqc::
from benchmarks import neon_count
from benchmarks.neon_count import Case
from vqc.backends.c import CBackend
from vqc.backends.c.cross import build_export

vops = torch.ops.vqc


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    qemu("aarch64")
    return neon_count.build(tmp_path_factory.mktemp("neon"))


@pytest.mark.parametrize("seed", range(2))
def test_random_layers_equal_the_generic_twin(program, seed):
    done = subprocess.run([qemu("aarch64"), program, "compare", str(seed), "60"], capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert done.stdout == "0 differ\n" and done.returncode == 0, done.stdout + done.stderr


# Small stand-ins for the layers of benchmarks/neon_count.py: of a few tiles, so what a task does once weighs more.
@pytest.mark.parametrize(
    "case",
    [
        Case("decide", 64, 64, 16, 128, 3, 3.0),
        Case("decide", 32, 32, 80, 128, 3, 3.3),  # nine steps: one has no partner
        Case("decide", 128, 128, 16, 64, 3, 3.0),
        Case("decide", 256, 16, 16, 64, 3, 3.3),  # few outputs: what a band costs once weighs more
        Case("float", 64, 64, 8, 64, 3, 4.5, "bc_float"),
    ],
)
def test_instructions_stay_below_the_bar(program, case):
    assert 0 < neon_count.figure(program, case) <= case.bar


def test_instructions_are_counted_one_by_one(tmp_path):
    """A loop of known length, in assembly: the difference of two runs is the loop's instructions, exactly."""
    source = (
        "#include <stdlib.h>\n#include <string.h>\nint main(int c, char **v) {\n    long n = 100 * strlen(v[c - 1]);\n"
    )
    source += '    __asm__ volatile("1: nop\\n nop\\n nop\\n subs %0, %0, #1\\n b.ne 1b" : "+r"(n) : : "cc");\n'
    (tmp_path / "loop.c").write_text(source + "    return 0;\n}\n")
    command = [*neon_count.find_compiler("zig").command, *neon_count.FLAGS, str(tmp_path / "loop.c"), "-o"]
    subprocess.run([*command, str(tmp_path / "loop")], check=True)
    runs = [neon_count.instructions(tmp_path / "loop", "x" * n)["main"] for n in (1, 3, 5)]
    assert runs[1] - runs[0] == runs[2] - runs[1] == 2 * 100 * 5


def test_a_program_of_wide_layers_gives_the_reference_result(tmp_path):
    """Through the whole backend: a residual and PReLU, a threshold; with scratch enough for a task of its own."""
    torch.manual_seed(5)

    def signs(*shape):
        return (2 * torch.randint(0, 2, shape) - 1).to(torch.int8)

    def build(b, x):
        q = b.call(vops.binarize.default, x, torch.zeros(1))
        geometry = ([1, 1], [1, 1], [1, 1])
        y = b.call(vops.bconv2d.default, q, signs(64, 64, 3, 3), torch.rand(64), torch.randn(64), *geometry)
        y = b.call(aten.prelu.default, b.call(aten.add.Tensor, y, x), torch.rand(64))
        q = b.call(vops.binarize.default, y, torch.randn(64))
        limit = torch.randint(-20, 20, (96,), dtype=torch.int32)
        q = b.call(vops.bconv2d_threshold.default, q, signs(96, 64, 3, 3), limit, torch.rand(96) < 0.5, *geometry)
        return y, q

    bits = chain(build, torch.randn(1, 64, 12, 40), name="bits")
    folder = CBackend().export(bits, "aarch64-linux", tmp_path / "out", {})
    program = build_export(folder, "aarch64-linux")["bits_test"]
    done = self_test(program, folder, qemu("aarch64"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert neon_count.instructions(program, str(folder))["bc_float"] > 0  # only that task calls it

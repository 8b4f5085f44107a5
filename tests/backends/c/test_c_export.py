"""Exported folders: complete, self-testing, clean under sanitizers, and written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from c_exports import matting, run_in
from c_helpers import aten, chain
from c_programs import tiny, wide

from vqc.backends.c import CBackend
from vqc.backends.c.build import find_compiler
from vqc.backends.c.cross import build_export
from vqc.errors import ArtifactError, UnsupportedOp
from vqc.program import evaluate

ZIG = find_compiler("zig").command
GCC = "gcc" if shutil.which("gcc") else " ".join(ZIG)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The small matting network for two threads, built by its Makefile with every warning an error."""
    out = CBackend().export(matting(), "native", tmp_path_factory.mktemp("export") / "out", {"threads": 2})
    run_in(out, "make", f"CC={GCC}", "CFLAGS=-O1 -Werror -march=native -pedantic")
    return out


def test_the_makefile_builds_and_tests(exported):
    assert run_in(exported, "make", "test", f"CC={GCC}").endswith("matting, as compiled: ok\nmatting: ok\n")


def test_a_wrong_result_is_found(exported, tmp_path):
    for f in ("weights", "test"):
        shutil.copy(exported / f"matting.{f}.bin", tmp_path)
    vectors = bytearray((tmp_path / "matting.test.bin").read_bytes())
    vectors[64 + 1728 + 3] ^= 0x7F  # an expected output of the first step, after its input of 1680 bytes
    (tmp_path / "matting.test.bin").write_bytes(vectors)
    done = subprocess.run([exported / "build" / "matting_test", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "step 0, output 0: differs" in done.stdout
    (tmp_path / "matting.test.bin").write_bytes(vectors[:1000])
    done = subprocess.run([exported / "build" / "matting_test", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "truncated" in done.stderr


def test_the_camera_loop_carries_the_state(exported):
    """Raw frames in, the matte out: what evaluation gives, frame after frame, to the rounding of a byte."""
    program = matting()
    frames = torch.randint(0, 256, (3, 10, 14, 3), dtype=torch.uint8)
    command = [exported / "build" / "matting_camera", exported, "1"]
    done = subprocess.run(command, input=frames.numpy().tobytes() + b"half a frame", capture_output=True)
    assert done.returncode == 0 and done.stderr == b""
    shown = torch.frombuffer(bytearray(done.stdout), dtype=torch.uint8).view(3, 10, 14)
    state, seen = program.initial_state(), []
    for frame, got in zip(frames, shown, strict=True):
        out = evaluate(program, [frame.permute(2, 0, 1)[None] / 255], state)
        state = [out[s.output] for s in program.states]
        want = out[1][0, 0] * 255
        assert (want - got.float()).abs().max() <= 0.51
        seen.append(got)
    assert not torch.equal(seen[0], seen[1])
    for argument in ("2", "9"):
        done = subprocess.run([*command[:2], argument], input=b"", capture_output=True)
        assert done.returncode == 2 and b"is not a picture" in done.stderr
    done = subprocess.run([command[0], exported / "nowhere"], input=b"", capture_output=True)
    assert done.returncode == 2 and b"cannot read" in done.stderr


CALL = """#include "matting.h"
#include "vqc_pool_threads.h"
#include <cstdio>
int main() {
    matting_model model;
    vqc_pool *pool = vqc_pool_start(2);
    model.parallel = vqc_pool_for;
    vqc_pool_stop(pool);
    std::puts(matting_strerror(matting_init(&model, nullptr, 0, nullptr, 0)));
    return matting_init(nullptr, nullptr, 0, nullptr, 0) == VQC_E_NULL ? 0 : 1;
}
"""


@pytest.mark.parametrize("cpp", [[ZIG[0], "c++"], *([["g++"]] if shutil.which("g++") else [])], ids=lambda c: c[-1])
def test_it_is_called_from_cpp(exported, cpp, tmp_path):
    (tmp_path / "call.cpp").write_text(CALL)
    warnings = ["-std=c++11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]
    run_in(tmp_path, *cpp, *warnings, f"-I{exported}", "-c", "call.cpp")
    run_in(tmp_path, *ZIG, "call.o", str(exported / "build" / "libmatting.a"), "-pthread", "-lm", "-o", "call")
    assert run_in(tmp_path, "./call") == "a pointer is NULL\n"


def test_self_test_is_clean_under_sanitizers(tmp_path):
    out = CBackend().export(wide(), "native", tmp_path / "out", {})
    flags = "-O1 -g -march=native -Werror -fsanitize=address,undefined -fno-sanitize-recover=all"
    assert run_in(out, "make", "test", "-j2", "CC=gcc", f"CFLAGS={flags}").endswith("wide: ok\n")


@pytest.mark.parametrize("target", ["portable", "x86-64-v3"])
def test_export_builds_with_cmake(tmp_path, target):
    out = CBackend().export(matting(), target, tmp_path / "out", {"threads": 2})
    for command in (["cmake", "-B", "build"], ["cmake", "--build", "build"], ["ctest", "--test-dir", "build"]):
        said = run_in(out, *command)
    assert "100% tests passed" in said


def test_a_folder_without_threads_needs_none(tmp_path):
    out = CBackend().export(tiny(), "portable", tmp_path / "out", {})
    assert not list(out.glob("vqc_pool_threads*")) and "pthread" not in (out / "Makefile").read_text()
    assert not (out / "tiny_camera.c").exists() and "no camera loop" in (out / "README.txt").read_text()
    program = build_export(out, "portable")["tiny_test"]
    assert run_in(out, str(program)) == "tiny, portable: ok\ntiny: ok\n"


def test_the_readme_tells_sizes_instruction_sets_and_the_licence(tmp_path):
    out = CBackend().export(matting(), "aarch64-linux", tmp_path / "out", {"licence": "GPL-3.0"})
    text = (out / "README.txt").read_text()
    size = sum(p.stat().st_size for p in out.iterdir() if p.name.startswith(("vqc_", "matting.c", "matting.h"))
               or p.name in ("matting_step.c", "matting_rows.h"))  # fmt: skip
    for part in ("Licence of the weights: GPL-3.0", f"The sources are {size} bytes", "neon:", "dotprod:", "i8mm:",
                 f"weights  {(out / 'matting.weights.bin').stat().st_size} bytes"):  # fmt: skip
        assert part in text, part
    assert "Licence of the weights: GPL-3.0" in (out / "matting.h").read_text()
    CBackend().export(tiny(), "native", tmp_path / "other", {})
    assert "unknown: ask who gave you the weights" in (tmp_path / "other" / "README.txt").read_text()
    assert str(tmp_path) not in "".join(p.read_text() for p in out.iterdir() if p.suffix != ".bin")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_two_exports_are_equal_to_the_byte(tmp_path):
    """The second one in another process, where Python's hashes are others."""
    options = {"threads": 2}
    one = _bytes(CBackend().export(wide(), "x86-64-linux", tmp_path / "one", options))
    script = ("import sys; sys.path[:0] = sys.argv[2:]\nfrom pathlib import Path\nfrom c_programs import wide\n"
              "import torch; torch.set_num_threads(1)\nfrom vqc.backends.c import CBackend\n"
              f"CBackend().export(wide(), 'x86-64-linux', Path(sys.argv[1]), {options})\n")  # fmt: skip
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, str(tmp_path / "two"), str(here), str(here.parents[1])]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "12345"}, check=True)
    two = _bytes(tmp_path / "two")
    assert len(one) > 20 and one.keys() == two.keys() and [f for f in one if one[f] != two[f]] == []


def test_the_example_of_a_camera_runs(tmp_path):
    root = Path(__file__).resolve().parents[3]
    said = run_in(root, sys.executable, "examples/camera.py", str(tmp_path / "out"))
    assert float(re.search(r"largest difference to the reference over 8 frames: (\S+) of 255", said)[1]) <= 0.51


def test_export_replaces_only_its_own_folder(tmp_path):
    out = tmp_path / "out"
    CBackend().export(tiny(), "native", out, {})
    (out / "extra.txt").write_text("x")
    CBackend().export(tiny(), "native", out, {"self_test": False})
    assert not (out / "extra.txt").exists() and not (out / "tiny_test.c").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    with pytest.raises(ArtifactError, match="not an export"):
        CBackend().export(tiny(), "native", tmp_path / "mine", {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="failed"):
        CBackend().export(tiny(), "native", tmp_path / "file" / "below", {})


def test_export_of_an_unsupported_operator_writes_nothing(tmp_path):
    p = chain(lambda b, x: b.call(aten.linalg_det.default, x), torch.randn(3, 3))
    with pytest.raises(UnsupportedOp, match="cannot fall back"):
        CBackend().export(p, "native", tmp_path / "out", {})
    assert not list(tmp_path.iterdir())

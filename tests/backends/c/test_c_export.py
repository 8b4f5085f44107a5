"""Exported folders: complete, self-testing, clean under sanitizers, and written whole or not at all."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch
from c_helpers import aten, chain
from c_programs import tiny, wide

from vqc.backends.c import CBackend
from vqc.backends.c.build import find_compiler, flags_for
from vqc.errors import ArtifactError, UnsupportedOp


SAYS = "tiny, as compiled: ok\ntiny: ok\n"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_headers_work_in_cpp(tmp_path):
    CBackend().export(tiny(), "native", tmp_path / "out", {})
    (tmp_path / "a.cpp").write_text('#include "tiny.h"\nint main() { return tiny_arena_size() == 0; }\n')
    command = ["g++", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic", "-Iout", "-fsyntax-only", "a.cpp"]
    subprocess.run(command, cwd=tmp_path, check=True)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc with sanitizers")
def test_self_test_is_clean_under_sanitizers(tmp_path):
    out = CBackend().export(wide(), "native", tmp_path / "out", {})
    files = [f.name for f in out.glob("*.c")]
    flags = [f for f in flags_for("x.c", "native") if f != "-O3"]
    command = [
        "gcc",
        *flags,
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        *files,
        "-lm",
        "-o",
        "t",
    ]
    subprocess.run(command, cwd=out, check=True)
    done = subprocess.run(["./t"], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("wide: ok\n"), done.stdout + done.stderr


def test_export_builds_and_passes_its_self_test(tmp_path):
    out = CBackend().export(tiny(), "native", tmp_path / "out", {})
    assert (out / "README.txt").read_text().startswith("tiny: one step of a video network")
    assert str(tmp_path) not in "".join(p.read_text() for p in out.iterdir() if p.suffix != ".bin")
    command = find_compiler().command
    files = [f.name for f in out.glob("*.c")]
    subprocess.run([*command, *flags_for("x.c", "native"), *files, "-lm", "-o", "t"], cwd=out, check=True)
    assert subprocess.run(["./t"], cwd=out, capture_output=True, text=True).stdout == SAYS
    vectors = bytearray((out / "tiny.test.bin").read_bytes())
    vectors[64 + 64 + 3] ^= 0x7F  # an expected output of the first step
    (out / "tiny.test.bin").write_bytes(vectors)
    done = subprocess.run(["./t"], cwd=out, capture_output=True, text=True)
    assert done.returncode == 1 and "step 0, output 0" in done.stdout


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
def test_export_builds_with_cmake(tmp_path):
    out = CBackend().export(tiny(), "portable", tmp_path / "out", {})
    for command in (["cmake", "-B", "build"], ["cmake", "--build", "build"], ["ctest", "--test-dir", "build"]):
        done = subprocess.run(command, cwd=out, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


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

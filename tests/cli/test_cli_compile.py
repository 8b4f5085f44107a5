"""`vqc compile`: what it says, and the library that a C program calls."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from cli_helpers import make_place, vqc, vqc_json

import vqc as package

MAIN = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "matting.h"

static void *aligned(size_t size) {
  uintptr_t at = (uintptr_t)malloc(size + 64);
  return (void *)((at + 63) / 64 * 64);
}

int main(void) {
  void *weights = aligned(matting_weights_size()), *arena = aligned(matting_arena_size());
  void *state = aligned(matting_state_size() + 1);
  float *frame = aligned(3 * 16 * 24 * 4), *matte = aligned(16 * 24 * 4);
  const void *in[] = {frame};
  void *out[] = {matte};
  matting_model m;
  FILE *f = fopen("matting.weights.bin", "rb");
  if (fread(weights, 1, matting_weights_size(), f) != matting_weights_size()) return 1;
  if (matting_init(&m, weights, matting_weights_size(), arena, matting_arena_size())) return 2;
  if (matting_reset(&m, state)) return 3;
  for (int t = 0; t < 3; t++) {
    for (int i = 0; i < 3 * 16 * 24; i++) frame[i] = (float)(i * 7 % 64 + t) / 128.0f;
    if (matting_run(&m, state, in, out)) return 4;
    fwrite(matte, 4, 16 * 24, stdout);
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("compile"), clips=("b",))


def test_the_library_is_used_from_c_as_its_readme_says(place: Path, tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    common = [f"{place}/nets.py:matting", "--recipe", "int8-all", "--calibration", place / "b.mp4",
              "--calibration-frames", "4", "--target", "portable"]  # fmt: skip
    said = vqc("compile", *common, "-o", lib)
    files = {"libmatting.so", "matting.h", "vqc_common.h", "matting.weights.bin", "README.txt"}
    assert files == {p.name for p in lib.iterdir()} - {"vqc-export.txt"}
    assert all(f"wrote {lib}/{name}\n" in said for name in files)
    readme = (lib / "README.txt").read_text()
    command = readme.strip().splitlines()[-1].split()
    (lib / "main.c").write_text(MAIN)
    subprocess.run(command, cwd=lib, check=True)
    ran = subprocess.run([lib / "a.out"], cwd=lib, check=True, capture_output=True).stdout
    vqc("apply", *common[:-2], "-o", tmp_path / "b.vqc")
    stream = package.Stream(package.compile(package.load(tmp_path / "b.vqc"), "portable"))
    want = []
    for t in range(3):
        frame = ((torch.arange(3 * 16 * 24) * 7 % 64 + t).float() / 128).reshape(1, 3, 16, 24)
        want.append(stream(frame)[1].numpy().tobytes())
    assert ran == b"".join(want)
    vqc("compile", *common, "-o", lib)  # replaces what it made before
    assert not (lib / "a.out").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep")
    broken = f"{place}/nets.py:broken"  # it would fail when it is loaded
    for command in (["compile", *common], ["compile", broken], ["export", broken]):
        assert "is not an export" in vqc(*command, "--target", "portable", "-o", tmp_path / "other", code=1)


def test_kernels_fallbacks_and_their_reasons_are_told(place: Path, tmp_path: Path) -> None:
    tall = [f"{place}/nets.py:tall", "--size", "16x24", "--target", "portable"]
    said = vqc("compile", *tall)
    assert "1 fallback" in said.replace("fallbacks", "fallback") and "operators that run in PyTorch" in said
    found = vqc_json("compile", *tall)
    (fallback,) = found["compiled"]["fallbacks"]
    assert "svd" in fallback["node"] and fallback["reason"] and found["compiled"]["kernels"]
    assert found["compile_s"] > 0 and found["recipe_s"] > 0 and found["files"] == []
    refused = vqc("compile", *tall, "-o", tmp_path / "lib", code=1)
    assert "cannot be written as a library" in refused and "1 of its operators run in PyTorch" in refused
    assert not (tmp_path / "lib").exists()
    assert "the C backend cannot take 1 of" in vqc("compile", *tall, "--no-fallback", code=1)


def test_sizes_are_told(place: Path) -> None:
    found = vqc_json("compile", f"{place}/nets.py:matting", "--target", "portable", "--threads", "2")
    compiled = found["compiled"]
    assert compiled["weight_bytes"] > 0 and compiled["arena_bytes"] > 0 and compiled["state_bytes"] > 4 * 16 * 24 * 4
    assert "threads: 2" in compiled["notes"] and found["constant_bytes"] == 4 * (3 * 4 * 9 + 4 + 4 + 1)
    said = vqc("compile", f"{place}/nets.py:matting", "--target", "reference")
    assert "reference for reference" in said and "eager aten.conv2d" in said

"""Whole programs on 64-bit Arm: cross-compiled by zig, run under qemu, on every instruction set."""

from __future__ import annotations

import struct

import pytest
import torch
from c_exports import qemu, run_in, self_test
from c_programs import tiny, wide

import vqc
from vqc.backends.c import CBackend
from vqc.backends.c.build import find_compiler
from vqc.backends.c.cross import build_export
from vqc.backends.c.targets import ARM, TARGETS
from vqc.models import MODELS
from vqc.models.rvm import RVM
from vqc.program import dtype_of
from vqc.video import clip, read_clip

CPUS = {"neon": "cortex-a53", "dotprod": "cortex-a76", "i8mm": "max"}  # the least of qemu's that has each


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return CBackend().export(wide(), "aarch64-linux", tmp_path_factory.mktemp("arm") / "out", {})


@pytest.mark.parametrize("variant", [v.name for v in ARM])
def test_many_families_pass_their_self_test(exported, variant):
    program = build_export(exported, "aarch64-linux", variant)["wide_test"]
    done = self_test(program, exported, qemu("aarch64"), "-cpu", CPUS[variant])
    assert done.returncode == 0 and done.stdout == f"wide, {variant}: ok\nwide: ok\n", done.stdout + done.stderr
    if variant != "neon":
        refused = self_test(program, exported, qemu("aarch64"), "-cpu", "cortex-a53")
        assert refused.returncode == 2 and "this CPU lacks instructions" in refused.stderr


def test_a_difference_is_found(exported, tmp_path):
    """The self-test under the emulator can fail: one bit of an expected integer state is turned."""
    program = build_export(exported, "aarch64-linux")["wide_test"]
    for file in ("wide.weights.bin", "wide.test.bin"):
        (tmp_path / file).write_bytes((exported / file).read_bytes())
    vectors = bytearray((tmp_path / "wide.test.bin").read_bytes())
    vectors[-8] ^= 1  # the last state is an integer
    (tmp_path / "wide.test.bin").write_bytes(vectors)
    done = self_test(program, tmp_path, qemu("aarch64"))
    assert done.returncode == 1 and "step 1, state 1: 1 of 1 integers differ" in done.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return CBackend().export(tiny(), "aarch64-linux", tmp_path_factory.mktemp("small") / "out", {})


def test_the_makefile_cross_compiles(small):
    zig = find_compiler("zig").command[0]
    tools = [f"CC={zig} cc -target aarch64-linux-musl", f"AR={zig} ar", "CFLAGS=-O1 -Werror"]
    for variant in ("neon", "dotprod"):  # what was made for the first one does not stay for the second
        run_in(small, "make", *tools, f"VQC_VARIANT={variant}", "build/tiny_test")
        done = self_test(small / "build" / "tiny_test", small, qemu("aarch64"), "-cpu", CPUS["dotprod"])
        assert done.stdout == f"tiny, {variant}: ok\ntiny: ok\n", done.stderr
    again = run_in(small, "make", *tools, "VQC_VARIANT=dotprod", "build/tiny_test")
    assert " -c " not in again  # nothing is left to do


MAGICS = {"aarch64-linux-gnu": struct.pack("<4sBB", b"\x7fELF", 2, 1), "aarch64-macos": struct.pack("<I", 0xFEEDFACF)}


@pytest.mark.parametrize("target", MAGICS)
def test_programs_are_linked_for_other_systems(small, target):
    """Linked against what zig knows of the system's C library; there is no such system here to run them."""
    programs = build_export(small, target, TARGETS[target].variants[-1].name)
    assert set(programs) == {"tiny_test"} and programs["tiny_test"].read_bytes().startswith(MAGICS[target])


def test_objects_are_made_for_android(small):
    """zig has no C library for Android: the NDK links what compiles here."""
    assert build_export(small, "aarch64-android", "dotprod") == {}
    objects = list((small / "build" / "aarch64-android-dotprod").glob("*.o"))
    assert {"dotprod-tiny.o", "dotprod-vqc_cpu.o", "dotprod-tiny_step.o"} <= {o.name for o in objects}
    for o in objects:
        head = o.read_bytes()[:20]
        assert head[:4] == b"\x7fELF" and struct.unpack("<H", head[18:20]) == (183,)  # EM_AARCH64


def _passes(program: vqc.Program, variant: str, folder, **options) -> None:
    out = vqc.export(program, folder, "aarch64-linux", **options)
    sources = sum(p.stat().st_size for p in out.iterdir() if p.suffix in (".c", ".h"))
    assert sources < 2e6
    name = f"{program.name.lower()}_test"
    done = self_test(build_export(out, "aarch64-linux", variant)[name], out, qemu("aarch64"), "-cpu", CPUS[variant])
    assert done.returncode == 0 and f"{variant}: ok" in done.stdout, done.stdout + done.stderr


def test_every_integer_of_quantized_rvm_is_equal_on_arm(tmp_path):
    """All 8-bit tensors are outputs, which the self-test compares bit for bit, over two recurrent steps."""
    frame = torch.rand(1, 3, 32, 48)
    states = {f"r{i}": i + 1 for i in (1, 2, 3, 4)}
    program = vqc.capture(RVM(segmentation=False).eval(), (frame, None, None, None, None), states=states, name="rvm")
    quantized = vqc.apply(program, "int8", calibration=[[(frame,)]])
    integers = [n.name for n in quantized.calls if isinstance(n.meta["val"], torch.Tensor)
                and dtype_of(n) in (torch.uint8, torch.int8)]  # fmt: skip
    assert len(integers) > 40
    _passes(quantized.with_outputs(integers), "dotprod", tmp_path / "out")


@pytest.mark.network
def test_rvm_with_its_weights_runs_on_arm(tmp_path):
    entry = MODELS["rvm"]
    pictures = read_clip(clip("pexels"), frames=2, size=(64, 96))
    steps = [entry.step_inputs(pictures, t) for t in range(2)]
    args = (*steps[0], *(None for _ in entry.states))
    program = vqc.capture(entry.load(), args, states=entry.states, known_ranges=entry.known_ranges, name="rvm")
    _passes(vqc.apply(program, "int8", calibration=[steps]), "i8mm", tmp_path / "out", licence=entry.licence)
    assert "GPL-3.0" in (tmp_path / "out" / "README.txt").read_text()
    assert (tmp_path / "out" / "rvm_camera.c").exists()

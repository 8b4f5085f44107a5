"""Whole programs on 64-bit Arm: cross-compiled by zig, run under qemu, every instruction set, the small and the real."""

from __future__ import annotations

import struct

import pytest
from c_exports import qemu, self_test
from c_programs import tiny, wide

from vqc.backends.c import CBackend
from vqc.backends.c.cross import build_export
from vqc.backends.c.targets import ARM, TARGETS

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
    assert done.returncode == 1 and "step 1, state 1: integers differ" in done.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return CBackend().export(tiny(), "aarch64-linux", tmp_path_factory.mktemp("small") / "out", {})


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

"""Targets: the table, the names of kernels in several instruction sets, the choice at run time, and refusals."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest
import torch
from c_exports import matting, qemu, run_in, self_test
from c_helpers import compiled
from c_programs import tiny

import vqc.backends
from vqc.backends.c import CBackend
from vqc.backends.c.build import find_compiler
from vqc.backends.c.cross import build_export
from vqc.backends.c.emit import CONTRACTED, FAMILIES, KERNELS, isa_header, kernel_sources
from vqc.backends.c.targets import ISA_HEADER, SHARED, TARGETS, X86_LEVELS, is_kernel, target_called, units
from vqc.errors import ArtifactError, TargetError
from vqc.program import evaluate

ROOT = Path(__file__).resolve().parents[3]
X86 = platform.machine().lower() in ("x86_64", "amd64")


def test_the_registry_has_every_target():
    assert list(vqc.backends.C_TARGETS) == list(TARGETS)
    for name in TARGETS:
        assert isinstance(vqc.backends.backend_for(name), CBackend)


def test_an_unknown_target_is_an_error_that_lists_the_names(tmp_path):
    for name in ("aarch64-amiga", "x86-64"):
        with pytest.raises(TargetError) as e:
            vqc.backends.backend_for(name)
        assert all(t in str(e.value) for t in TARGETS)
        with pytest.raises(TargetError, match="aarch64-linux-gnu"):
            CBackend().export(tiny(), name, tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


def test_variants_are_checked():
    arm = target_called("aarch64-linux")
    assert arm.variant().name == "neon" and "-march=armv8.2-a+dotprod" in arm.variant("dotprod").flags
    with pytest.raises(TargetError, match="neon, dotprod, i8mm"):
        arm.variant("sve")
    with pytest.raises(TargetError, match="no variant to choose"):
        target_called("x86-64-linux").variant("x86-64-v3")


def test_other_machines_targets_are_for_export_only():
    for name in ("aarch64-linux", "aarch64-macos", *(() if X86 else ("x86-64-v3",))):
        with pytest.raises(TargetError, match="not compiled in this process"):
            CBackend().compile(tiny(), name, {})


def test_every_kernel_file_is_compiled_once_for_each_instruction_set():
    files = ["vqc_common.c", "vqc_conv_f32.c", "a.c", "a_step.c", ISA_HEADER]
    made = units(target_called("x86-64-linux"), files, CONTRACTED)
    assert len({u.object for u in made}) == len(made) == 2 + 2 * len(X86_LEVELS)
    for unit in made:
        assert (unit.variant != "") == is_kernel(unit.file) == any("mpopcnt" in f for f in unit.flags)
        assert ("-ffp-contract=fast" in unit.flags) == (unit.file in CONTRACTED)


def test_no_name_of_a_kernel_is_the_same_in_two_instruction_sets(tmp_path):
    """Every symbol that a kernel file gives away has the suffix, so that two variants can be linked together."""
    sources = kernel_sources(FAMILIES) | {ISA_HEADER: isa_header()}
    for file, text in sources.items():
        (tmp_path / file).write_text(text)
    kernels = [f for f in sources if f.endswith(".c") and f not in SHARED]
    zig = find_compiler("zig").command
    flags = ["-target", "x86_64-linux-musl", "-O0", "-w", "-msse4.2", "-fPIC", "-include", ISA_HEADER]
    for suffix in ("_one", "_two"):
        subprocess.run([*zig, *flags, f"-DVQC_ISA_SUFFIX={suffix}", "-c", *kernels], cwd=tmp_path, check=True)
        (tmp_path / suffix).mkdir()
        for f in tmp_path.glob("*.o"):
            f.rename(tmp_path / suffix / f.name)
    objects = [str(p) for s in ("_one", "_two") for p in (tmp_path / s).iterdir()]
    run_in(tmp_path, *zig, *flags[:2], "-shared", *objects, "-o", "both.so")


@pytest.fixture(scope="module")
def dispatched():
    return compiled(matting(), "x86-64-linux")


@pytest.mark.skipif(not X86, reason="runs x86-64 code in this process")
def test_every_variant_this_cpu_has_gives_the_reference_result(dispatched):
    program, model = dispatched.program, dispatched.model
    assert model.variants == [v.name for v in X86_LEVELS] and model.variant in str(dispatched.report)
    ran = []
    for name in model.variants:
        if ran == [] and name != model.variant:  # better than what init chose: this CPU lacks it
            with pytest.raises(TargetError, match="lacks instructions"):
                model.select(name)
            continue
        model.select(name)
        assert model.variant == name
        ran.append(name)
        state = program.initial_state()
        for _ in range(2):
            want, got = evaluate(program, program.example, state), dispatched.trace(program.example, state)
            for a, b in zip(want, got, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
            state = [want[s.output] for s in program.states]
    assert ran and ran[-1] == "x86-64-v2"


@pytest.mark.skipif(not X86, reason="x86-64 under its own emulator")
def test_a_cpu_gets_the_right_variant_or_a_clear_refusal(tmp_path):
    program = build_export(CBackend().export(tiny(), "x86-64-linux-musl", tmp_path / "out", {}), "x86-64-linux-musl")
    emulator = qemu("x86_64")

    def says(cpu):
        return self_test(program["tiny_test"], tmp_path / "out", emulator, "-cpu", cpu)

    for cpu, runs in (("Nehalem", ["v2"]), ("Haswell", ["v3", "v2"])):  # without AVX; with AVX2
        done = says(cpu)
        assert done.returncode == 0
        assert done.stdout.count("this CPU lacks it") == len(X86_LEVELS) - len(runs)
        assert done.stdout.endswith("".join(f"tiny, x86-64-{r}: ok\n" for r in runs) + "tiny: ok\n")
    done = says("qemu64")  # has not even SSE4.2
    assert done.returncode == 2 and done.stdout == ""
    assert "tiny: this CPU lacks instructions that the program was compiled for" in done.stderr


def test_the_page_about_targets_keeps_up():
    page = (ROOT / "docs" / "targets.md").read_text()

    def part(name):
        found = re.search(rf"<!-- {name}: begin.*?-->\n(.*?)\n<!-- {name}: end -->", page, re.S)[1]
        return found.splitlines()[2:]

    known = {v.name: v for t in TARGETS.values() for v in t.variants}
    assert part("targets") == [
        f"| `{t.name}` | {t.about} | {', '.join(v.name for v in t.variants) or '–'} | {t.triple or 'this machine'} |"
        for t in TARGETS.values()
    ]
    assert part("variants") == [
        f"| `{v.name}` | {v.about} | {' '.join(f.removeprefix('-m') for f in v.flags) or '–'} |" for v in known.values()
    ]
    codes = re.findall(r"VQC_E_\w+", (KERNELS / "vqc_common.h").read_text())
    assert set(codes) == set(re.findall(r"^\| `(VQC_E_\w+)`", page, re.M)) and len(codes) > 10


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not an export"):
        build_export(str(tmp_path), "aarch64-linux")

"""Compiling an exported folder for its target with zig, which brings the C libraries of other machines along."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vqc.backends.c.build import Compiler, find_compiler, run_compiler
from vqc.backends.c.emit import CONTRACTED
from vqc.backends.c.targets import THREAD_POOL, Target, Unit, target_called, units
from vqc.errors import ArtifactError, TargetError

ANDROID = "aarch64-linux-android"  # zig has no C library for it: what it compiles, the NDK has to link


def build_export(folder: Path, target: str, variant: str | None = None, compiler: Compiler | None = None
                 ) -> dict[str, Path]:  # fmt: skip
    """Compile an exported folder into `folder/build/TARGET[-VARIANT]`; returns its programs by name ("rvm_test").

    `variant`: the instruction set where the target leaves a choice (default: its first). Programs for musl are static.
    For Android only objects are made, and no program.
    Raises TargetError (unknown target or variant, a compiler that fails or is not zig), ArtifactError when the folder
    is not an export.
    """
    wanted = target_called(target)
    chosen = wanted.variant(variant)
    compiler = compiler or find_compiler("zig")
    if not compiler.is_zig:
        raise TargetError(f"{compiler} does not compile for other machines", way_out="pip install vqc[compiler]")
    if not (folder / "Makefile").exists():
        raise ArtifactError(f"{folder} is not an export", way_out="make it with vqc export")
    out = folder.absolute() / "build" / (f"{target}-{chosen.name}" if chosen else target)
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(p.name for p in folder.glob("*.c"))
    command = [*compiler.command, *_machine(wanted, compiler)]

    def compile_one(unit: Unit) -> Path:
        made = out / unit.object
        run_compiler([*command, *unit.flags, "-c", unit.file, "-o", str(made)], folder, unit.file)
        return made

    todo = units(wanted, [*files, *(p.name for p in folder.glob("*.h"))], CONTRACTED, variant)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        objects = {u: str(o) for u, o in zip(todo, pool.map(compile_one, todo), strict=True)}
    if wanted.triple == ANDROID:
        return {}
    mains = [f for f in files if f.endswith(("_test.c", "_camera.c"))]
    library = [o for u, o in objects.items() if u.file not in mains]
    libs = ["-lm", *(["-pthread"] if THREAD_POOL in files else [])]
    programs = {}
    for unit, made in objects.items():
        if unit.file in mains:
            program = out / unit.file.removesuffix(".c")
            run_compiler([*command, made, *library, *libs, "-o", str(program)], folder, program.name)
            programs[program.name] = program
    return programs


def _machine(target: Target, compiler: Compiler) -> list[str]:
    """How zig is told the machine; for Android with the headers of another C library for the same kind of CPU."""
    if target.triple != ANDROID:
        return ["-target", target.triple] if target.triple else []
    include = Path(compiler.command[0]).parent / "lib" / "libc" / "include"
    musl = ("aarch64-linux-musl", "generic-musl")
    return ["-target", ANDROID, *(flag for m in musl for flag in ("-isystem", str(include / m)))]

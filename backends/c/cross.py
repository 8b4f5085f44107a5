"""Compiling an exported folder for its target with zig, which brings the C libraries of other machines along."""

from __future__ import annotations

import shutil
from pathlib import Path

from vqc.backends.c.build import Compiler, compile_units, find_compiler, object_key, run_compiler
from vqc.backends.c.emit import CONTRACTED
from vqc.backends.c.targets import THREAD_POOL, Target, target_called, units
from vqc.errors import ArtifactError, TargetError

ANDROID = "aarch64-linux-android"  # zig has no C library for it: what it compiles, the NDK has to link


def build_export(folder: str | Path, target: str, variant: str | None = None, compiler: Compiler | None = None
                 ) -> dict[str, Path]:  # fmt: skip
    """Compile an exported folder into `folder/build/TARGET[-VARIANT]`; returns its programs by name ("rvm_test").

    `variant`: the instruction set where the target leaves a choice (default: its first). Programs for musl are static.
    For Android only objects are made, and no program.
    Raises TargetError (unknown target or variant, a compiler that fails or is not zig), ArtifactError when the folder
    is not an export.
    """
    folder, wanted = Path(folder), target_called(target)
    chosen = wanted.variant(variant)
    compiler = compiler or find_compiler("zig")
    if not compiler.is_zig:
        raise TargetError(f"{compiler} does not compile for other machines", way_out="pip install vqc[compiler]")
    if not (folder / "Makefile").exists():
        raise ArtifactError(f"{folder} is not an export", way_out="make it with vqc export")
    out = folder.absolute() / "build" / (f"{target}-{chosen.name}" if chosen else target)
    out.mkdir(parents=True, exist_ok=True)
    machine = _machine(wanted, compiler)
    command = [*compiler.command, *machine]
    sources = {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".c", ".h")}
    keys = {u: object_key(u, sources, machine, compiler) for u in units(wanted, sources, CONTRACTED, variant, zig=True)}
    objects = {u: str(out / u.object) for u in keys}
    for made, kept in zip(objects.values(), compile_units(keys, command, folder), strict=True):
        shutil.copyfile(kept, made)
    if wanted.triple == ANDROID:
        return {}
    mains = [f for f in sources if f.endswith(("_test.c", "_camera.c"))]
    library = [o for u, o in objects.items() if u.file not in mains]
    libs = ["-lm", *(["-pthread"] if THREAD_POOL in sources else [])]
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

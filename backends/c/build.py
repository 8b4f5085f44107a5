"""Compilers, and the cache of what they made.

Kernel files are the same for all models: each is compiled once for a set of flags and a compiler, and its object kept.
A model then costs one small file and a link. Everything in the cache is named by the hash of what it was made from.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vqc.backends.c.emit import CONTRACTED
from vqc.backends.c.targets import ISA_HEADER, THREAD_POOL, Unit, target_called, units
from vqc.errors import TargetError

TIMEOUT = 300  # seconds for one file


@dataclass(frozen=True)
class Compiler:
    """A C compiler: the command to run it, and what it says it is."""

    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        return self.version

    @property
    def is_zig(self) -> bool:
        """Whether it is zig's C compiler, which compiles for any machine."""
        return self.version.startswith("zig")

    def baseline(self) -> list[str]:
        """What makes it compile for any x86-64 and not for this machine: zig does the latter if nothing is said."""
        return ["-mcpu=x86_64"] if self.is_zig else ["-march=x86-64"]


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as e:
        raise TargetError(f"the C compiler {' '.join(command)!r} does not run", why=str(e),
                          way_out="set option cc or the variable CC to one that does") from e  # fmt: skip
    return done.stdout.strip().split("\n")[0]


def find_compiler(cc: str | None = None) -> Compiler:
    """The compiler to use: option `cc`, the variable CC, the ziglang package, gcc, clang, cc, in this order.

    Raises TargetError when none is there or the chosen one does not run.
    """
    given = cc or os.environ.get("CC")
    if given:
        command = _zig() if given == "zig" else tuple(shlex.split(given))
    elif importlib.util.find_spec("ziglang") is not None:
        command = _zig()
    else:
        found = next((p for p in map(shutil.which, ("gcc", "clang", "cc")) if p), None)
        if found is None:
            raise TargetError("there is no C compiler", why="neither ziglang nor gcc nor clang was found",
                              way_out="pip install vqc[compiler], or set option cc")  # fmt: skip
        command = (found,)
    version = _version(command)
    return Compiler(command, f"zig cc, {version}" if command[-1] == "cc" and len(command) > 1 else version)


def _zig() -> tuple[str, ...]:
    """zig's C compiler from the ziglang package: its program itself, which starts faster than `python -m ziglang`."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise TargetError("the ziglang package is not installed", way_out="pip install vqc[compiler], or set option cc")
    for name in ("zig", "zig.exe"):
        program = Path(spec.origin).parent / name
        if program.exists():
            return (str(program), "cc")
    return (sys.executable, "-m", "ziglang", "cc")


def cache_dir() -> Path:
    """VQC_CACHE, else ~/.cache/vqc; the C backend keeps its things in `c` below."""
    root = os.environ.get("VQC_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "vqc") / "c"


def flags_for(file: str, target: str) -> list[str]:
    """The flags of one file of a target that is compiled one way."""
    return list(units(target_called(target), [file], CONTRACTED)[0].flags)


def _host() -> str:
    """What `-march=native` stands for here: objects in a shared cache must not travel to another processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        import platform

        return platform.processor() + platform.machine()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")


def _hash(*parts: str) -> str:
    h = hashlib.sha256()
    for p in parts:
        h.update(f"{len(p)}:".encode())
        h.update(p.encode())
    return h.hexdigest()[:32]


def run_compiler(command: Sequence[str], cwd: Path, what: str) -> None:
    """Run a compiler in a folder; TargetError with its message, and where the sources are kept, when it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.SubprocessError) as e:
        raise _failed(what, cwd, command, str(e)) from e
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().split("\n")
        raise _failed(what, cwd, command, "\n".join(lines[:12]))


def _failed(what: str, cwd: Path, command: Sequence[str], why: str) -> TargetError:
    """The error of a compiler that failed; its sources are kept beside the cache, each failure's in one folder."""
    sources = sorted(p for p in cwd.iterdir() if p.suffix in (".c", ".h"))
    kept = cache_dir() / "failed" / _hash(*command, *(p.read_text() for p in sources))
    kept.mkdir(parents=True, exist_ok=True)
    for p in sources:
        shutil.copyfile(p, kept / p.name)
    return TargetError(f"compiling {what} failed", where=f"{shlex.join(command)}, in {kept}", why=why,
                       way_out="try another compiler (option cc), and report this with the sources: "
                       "generated C must compile")  # fmt: skip


def _publish(made: Path, final: Path) -> Path:
    """Move a finished file to its place in one step, so that nobody sees a half-written one."""
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(made, final)
    return final


def object_key(unit: Unit, sources: dict[str, str], flags: Sequence[str], compiler: Compiler, host: str = "") -> str:
    """What an object file is known by: its source with all headers, every flag, the compiler."""
    headers = {k: v for k, v in sources.items() if k.endswith(".h")}
    text = sources[unit.file]
    forced = [headers[ISA_HEADER]] if ISA_HEADER in unit.flags else []
    needed = [f"{h}:{headers[h]}" for h in _includes(text, headers)]
    return _hash(unit.file, text, *needed, *forced, *flags, *unit.flags, compiler.version, host)


def compile_units(keys: dict[Unit, str], command: Sequence[str], folder: Path) -> list[Path]:
    """The objects of units, in their order: from the cache, or compiled in the folder that has the sources.

    Raises TargetError when one does not compile.
    """
    cache = cache_dir() / "obj"
    cache.mkdir(parents=True, exist_ok=True)

    def compile_one(unit: Unit) -> Path:
        final = cache / f"{keys[unit]}.o"
        if final.exists():
            return final
        with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as own:
            made = Path(own) / unit.object
            run_compiler([*command, *unit.flags, "-fPIC", "-c", unit.file, "-o", str(made)], folder, unit.file)
            return _publish(made, final)

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(compile_one, keys))


def build_library(sources: dict[str, str], target: str, compiler: Compiler) -> Path:
    """Compile C sources (files by name, headers among them) to a shared library; returns its path in the cache.

    Raises TargetError with the compiler's message when a file does not compile; the sources are kept where it says.
    """
    cache = cache_dir()
    host = _host() if target == "native" else ""
    base = compiler.baseline() if target_called(target).dispatch else []
    todo = units(target_called(target), sources, CONTRACTED)
    keys = {unit: object_key(unit, sources, base, compiler, host) for unit in todo}
    library = cache / "lib" / f"{_hash(*sorted(keys.values()), compiler.version)}.so"
    if library.exists():
        return library
    try:
        cache.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=cache, prefix="build-")
    except OSError as e:
        raise TargetError(f"the cache folder {cache} cannot be written", why=str(e),
                          way_out="set VQC_CACHE to a folder that can") from e  # fmt: skip
    with work as folder:
        for file, text in sources.items():
            (Path(folder) / file).write_text(text)

        objects = compile_units(keys, [*compiler.command, *base], Path(folder))
        made = Path(folder) / "model.so"
        threads = ["-pthread"] if THREAD_POOL in sources else []
        run_compiler([*compiler.command, "-shared", "-fPIC", *threads, *map(str, objects), "-o", made.name, "-lm"],
             Path(folder), "the shared library")  # fmt: skip
        return _publish(made, library)


def _includes(text: str, headers: dict[str, str]) -> list[str]:
    """The headers a file includes, directly or through others, sorted."""
    found: set[str] = set()
    todo = [text]
    while todo:
        current = todo.pop()
        for name in headers:
            if name not in found and f'#include "{name}"' in current:
                found.add(name)
                todo.append(headers[name])
    return sorted(found)

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
from vqc.errors import TargetError

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
COMMON = ("-std=c99", "-O3", "-fno-math-errno", "-fno-trapping-math")  # these two change no value
TARGET_FLAGS: dict[str, tuple[str, ...]] = {
    "native": ("-march=native",),
    "portable": ("-DVQC_GENERIC",),  # no vectors beyond what the compiler finds by itself
}
THREAD_POOL = "vqc_pool_threads.c"  # not part of a model: what fills its parallel-for hook in this process
TIMEOUT = 300  # seconds for one file


@dataclass(frozen=True)
class Compiler:
    """A C compiler: the command to run it, and what it says it is."""

    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        return self.version


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
    """The flags of one file: products and sums may be fused only where the kernel's contract says so."""
    contract = "-ffp-contract=fast" if file in CONTRACTED else "-ffp-contract=off"
    threads = ("-pthread",) if file == THREAD_POOL else ()
    return [*COMMON, *TARGET_FLAGS[target], contract, *WARNINGS, *threads]


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


def _run(command: Sequence[str], cwd: Path, what: str) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.SubprocessError) as e:
        raise TargetError(f"compiling {what} failed", why=str(e), way_out="try another compiler (option cc)") from e
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().split("\n")
        raise TargetError(
            f"compiling {what} failed",
            where=" ".join(command),
            why="\n".join(lines[:12]),
            way_out="try another compiler (option cc), and report this: generated C must compile",
        )


def _publish(made: Path, final: Path) -> Path:
    """Move a finished file to its place in one step, so that nobody sees a half-written one."""
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(made, final)
    return final


def build_library(sources: dict[str, str], target: str, compiler: Compiler) -> Path:
    """Compile C sources (files by name, headers among them) to a shared library; returns its path in the cache.

    Raises TargetError with the compiler's message when a file does not compile.
    """
    cache = cache_dir()
    headers = {k: v for k, v in sources.items() if k.endswith(".h")}
    host = _host() if target == "native" else ""
    keys = {}
    for file, text in sources.items():
        if file.endswith(".c"):
            needed = [f"{h}:{headers[h]}" for h in _includes(text, headers)]
            keys[file] = _hash(file, text, *needed, *flags_for(file, target), compiler.version, host)
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

        def compile_one(file: str) -> Path:
            final = cache / "obj" / f"{keys[file]}.o"
            if final.exists():
                return final
            made = Path(folder) / (file + ".o")
            _run([*compiler.command, *flags_for(file, target), "-fPIC", "-c", file, "-o", made.name],
                 Path(folder), file)  # fmt: skip
            return _publish(made, final)

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_one, keys))
        made = Path(folder) / "model.so"
        threads = ["-pthread"] if THREAD_POOL in sources else []
        _run([*compiler.command, "-shared", "-fPIC", *threads, *map(str, objects), "-o", made.name, "-lm"],
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

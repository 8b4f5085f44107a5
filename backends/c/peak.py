"""What this machine can do at most: multiply-adds of every kind and copies, measured once and kept in the cache.

One thread, in the first-level cache, with the compiler and flags of a target. The part of the peak in a report is
against these figures. kernels/vqc_peak.c has the loops.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vqc.backends.c.build import Compiler, build_library, cache_dir, flags_for
from vqc.backends.c.build import _hash as digest
from vqc.backends.c.build import _host as host
from vqc.backends.c.cost import DEFAULT, Peaks
from vqc.backends.c.emit import KERNELS

FILE = "vqc_peak.c"
METHOD = "2"  # of measuring; figures of another one are measured again
STEPS = 256  # of the products' K: both sides stay in the first-level cache
COPIES = {"l1": 8 << 10, "l2": 192 << 10, "dram": 32 << 20}  # bytes copied, by the memory that holds both sides
RUN = 3e-3  # seconds of one measurement
ROUNDS = 24


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    return name_in(text) or platform.processor() or platform.machine()


def name_in(cpuinfo: str) -> str:
    """The name in Linux's list of processors; a virtual machine often hides its number, then with the numbers that tell
    kinds of processors apart. Empty where there is none."""
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    name = told.get("model name", "")
    if name and "cpu family" in told and not any(c.isdigit() for c in name):
        return f"{name} (family {told['cpu family']}, model {told.get('model', 'unknown')})"
    return name


def measured_peaks(target: str, compiler: Compiler) -> Peaks:
    """The peaks of this machine for a target's instructions: measured the first time (within 2 s), then read back.

    Raises TargetError when the loops do not compile.
    """
    path = _path(target, compiler)
    known = _read(path)
    if known is None:
        known = _measure(build_library({FILE: (KERNELS / FILE).read_text()}, target, compiler))
        write_json(path, {"cpu": cpu_name(), "target": target, "compiler": compiler.version} | known)
    return Peaks(known["macs"], known["copy"], measured=True)


def known_peaks(target: str, compiler: Compiler) -> Peaks:
    """The peaks as they were measured before, else a guess: nothing is run."""
    known = _read(_path(target, compiler))
    return DEFAULT if known is None else Peaks(known["macs"], known["copy"], measured=True)


def _path(target: str, compiler: Compiler) -> Path:
    source = (KERNELS / FILE).read_text()
    key = digest(METHOD, cpu_name(), host(), compiler.version, source, *flags_for(FILE, target))
    return cache_dir() / "peaks" / f"{key}.json"


def _read(path: Path) -> dict[str, dict[str, float]] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return {k: {n: float(v) for n, v in found[k].items()} for k in ("macs", "copy")}
    except (ValueError, KeyError, AttributeError, TypeError):
        return None  # damaged: measured again


def write_json(path: Path, content: object) -> None:
    """Write a small file into the cache in one step. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(beside, path)


def _measure(library: Path) -> dict[str, dict[str, float]]:
    lib = ctypes.CDLL(str(library))
    lib.vqc_peak_tile.restype = lib.vqc_peak_int8_macs.restype = ctypes.c_size_t
    tile = lib.vqc_peak_tile()
    lanes = {"f32": 1, "int8": lib.vqc_peak_int8_macs(), "binary": 32}  # multiply-adds in 32 bits
    jobs: list[tuple[str, str, float, Callable[[int], None]]] = []  # (table, name, work of one pass, passes -> run)
    left, right, sums = (_zeros(8 * n) for n in (STEPS * tile // 2, STEPS * tile // 2, tile))
    for name, macs in lanes.items():
        product = getattr(lib, f"vqc_peak_{name}")
        product.argtypes, product.restype = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] * 2, None
        memory = (left.ctypes.data, right.ctypes.data, sums.ctypes.data, STEPS)
        jobs.append(("macs", name, STEPS * tile * macs, functools.partial(product, *memory)))
    copy = lib.vqc_peak_copy
    copy.argtypes, copy.restype = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2, None
    buffers = {name: (_zeros(size), _zeros(size)) for name, size in COPIES.items()}
    for name, (source, goal) in buffers.items():
        jobs.append(("copy", name, 2 * goal.size, functools.partial(copy, source.ctypes.data, goal.ctypes.data,
                                                                    goal.size)))  # fmt: skip
    best: dict[str, dict[str, float]] = {"macs": {}, "copy": {}}
    passes = [_passes(run) for *_, run in jobs]
    for _ in range(ROUNDS):  # in turn, so that a disturbance of some milliseconds does not hit one of them alone
        for (table, name, work, run), count in zip(jobs, passes, strict=True):
            rate = work * count / _seconds(run, count) / 1e9
            best[table][name] = max(best[table].get(name, 0.0), round(rate, 2))
    return best


def _zeros(size: int) -> np.ndarray:
    """Bytes that begin with a cache line."""
    raw = np.zeros(size + 64, np.uint8)
    raw[:] = 0  # every page is there
    shift = -raw.ctypes.data % 64
    return raw[shift : shift + size]


def _seconds(run: Callable[[int], None], count: int) -> float:
    began = time.perf_counter()
    run(count)
    return max(time.perf_counter() - began, 1e-9)


def _passes(run: Callable[[int], None]) -> int:
    """How many passes last about RUN seconds."""
    count = 1
    while (spent := _seconds(run, count)) < RUN / 8 and count < 1 << 24:
        count *= 4
    return max(1, round(count * RUN / spent))

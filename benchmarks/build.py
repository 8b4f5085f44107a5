"""How long it takes to make a network's C and to compile it from an empty cache, and how large it gets."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import vqc
from benchmarks.machine import Record
from vqc import video
from vqc.backends.c.backend import generate_model
from vqc.report.network import network
from vqc.report.session import recipe_program


@contextmanager
def empty_caches() -> Iterator[Path]:
    """Neither vqc nor the compiler has made anything yet. Fetched weights stay where they are."""
    names = ("VQC_CACHE", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")
    before = {n: os.environ.get(n) for n in names}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {n: f"{folder}/{n}" for n in names}
        try:
            yield Path(folder)
        finally:
            for n, value in before.items():
                if value is None:
                    del os.environ[n]
                else:
                    os.environ[n] = value


def measure(model: str = "rvm", size: tuple[int, int] = (288, 512), clip: str = "pexels") -> list[Record]:
    """One record a recipe: seconds to generate and to compile; bytes of sources, weights, the arena and its bound."""
    net = network(model, size)
    frames = video.read_clip(video.clip(clip), 4 + net.reach, size)
    records = []
    for recipe in ("float", "int8"):
        program = recipe_program(net, recipe, None if recipe == "float" else frames)
        began = time.perf_counter()
        made = generate_model(program, "native")
        generated = time.perf_counter() - began
        with empty_caches() as folder:
            began = time.perf_counter()
            report = vqc.compile(program, "native").report
            compiled = time.perf_counter() - began - generated
            out = vqc.export(program, folder / "out", "portable")
            sources = sum(f.stat().st_size for f in out.rglob("*") if f.suffix in (".c", ".h", ".txt", ".md"))
        records.append({"model": model, "size": f"{size[0]}x{size[1]}", "recipe": recipe,
                        "generate_s": round(generated, 2), "compile_s": round(compiled, 2),
                        "source_bytes": sources, "weight_bytes": len(made.weights), "calls": len(made.lowered.calls),
                        "arena_bytes": report.arena_bytes, "live_bytes": report.live_bytes})  # fmt: skip
        print(", ".join(f"{k} {v}" for k, v in records[-1].items()), flush=True)
    return records

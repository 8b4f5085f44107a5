"""Writing a generated model out: sources, weights, a CMake file, a self-test with vectors, and a README.

The folder is written beside its place and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqc.backends.c.camera import camera_source, has_camera
from vqc.backends.c.emit import Model, c_type, kernel_files
from vqc.backends.c.ir import Value
from vqc.backends.c.makefiles import CHOICE, cmake_text, makefile_text, programs
from vqc.backends.c.selftest import STEPS, self_test_source, self_test_vectors
from vqc.backends.c.targets import THREAD_POOL, Target
from vqc.backends.c.wavering import MARGIN, Bound, bounds, step_results
from vqc.backends.folder import MARKER, write_folder
from vqc.program import Program

UNKNOWN_LICENCE = "unknown: ask who gave you the weights"


def _tensor_rows(kind: str, values: Sequence[Value], names: Sequence[str]) -> list[str]:
    return [f"  {kind}[{i}] {n}: {c_type(v)} [{', '.join(map(str, v.shape))}], {v.count * v.item} bytes"
            for i, (v, n) in enumerate(zip(values, names, strict=True))]  # fmt: skip


def _variants(target: Target) -> list[str]:
    if not target.variants:
        return [f"Instruction set: {target.about}."]
    how = "all in one program, the best one the CPU has is taken when a model is initialised"
    if not target.dispatch:
        how = f"chosen when it is compiled: cmake -D{CHOICE}=..., make {CHOICE}=...; default {target.variants[0].name}"
    return [f"Instruction sets ({how}):", *(f"  {v.name}: {v.about}" for v in target.variants)]


def _allowed(model: Model, bounds: Sequence[Bound]) -> list[str]:
    """What the self-test lets each output and state be off, in words."""
    outputs = len(model.lowered.outputs)
    names = [f"outputs[{i}]" if i < outputs else f"state[{i - outputs}]" for i in range(len(bounds))]
    return [f"{model.name}_test.c repeats stored steps on the machine it is meant for. At each step it allows:",
            *(f"  {n}: {b}" for n, b in zip(names, bounds, strict=True)),
            "Where roundings or choices hang on floats whose last bits engines do not share, that is what such bits do",
            f"in the reference, times {MARGIN:g}."]  # fmt: skip


def readme_text(program: Program, model: Model, target: Target, licence: str, made: Sequence[str],
                bounds: Sequence[Bound]) -> str:  # fmt: skip
    """README.txt: what the files are, what memory the caller gives, how to call it; `bounds` are the self-test's."""
    name, lowered = model.name, model.lowered
    states = {s.output for s in program.states}
    results = [n.name for i, n in enumerate(program.result_nodes) if i not in states]
    names = [program.outputs[i] if i < len(program.outputs) else n for i, n in enumerate(results)]
    rows = [*_tensor_rows("inputs", lowered.inputs, [i.name for i in program.inputs]),
            *_tensor_rows("outputs", lowered.outputs, names),
            *_tensor_rows("state", lowered.states, [s.name for s in program.states])]  # fmt: skip
    sources = sum(len(text.encode()) for text in model.sources.values())
    return "\n".join([
        f"{name}: one step of a video network as C99, for target {target.name}", "",
        f"Licence of the weights: {licence}",
        "Licence of the C sources: Apache-2.0", "",
        *_variants(target), "",
        "Memory the caller provides, each starting at a multiple of 64 bytes:",
        f"  weights  {len(model.weights)} bytes  ({name}.weights.bin, read-only, shared by any number of models)",
        f"  arena    {model.arena_size} bytes  (scratch of one step; one for each model)",
        f"  state    {model.state_size} bytes  (one for each running video)",
        f"The sources are {sources} bytes.", "",
        "Tensors (dense, row-major; they must not overlap each other, the arena or the state):", *rows, "",
        "Use:",
        f"  {name}_model m;",
        f"  {name}_init(&m, weights, weights_size, arena, {name}_arena_size());   /* checks CPU and weights */",
        f"  {name}_reset(&m, state);                                      /* at the start of a video */",
        f"  {name}_run(&m, state, inputs, outputs);                       /* for every frame */",
        f"Every function returns 0 or an error that {name}_strerror explains. Nothing is allocated, nothing is global,",
        "and only libc and libm are needed.",
        f"Threads: this program has scratch for {lowered.workers}; set m.parallel and m.pool to a loop of yours"
        + (", or to that of vqc_pool_threads.h." if lowered.workers > 1 else " (export with threads=N for more)."), "",
        "Build and test, either of:",
        "  cmake -B build && cmake --build build && ctest --test-dir build",
        "  make test" if f"{name}_test" in made else "  make",
        *(_allowed(model, bounds) if f"{name}_test" in made else []),
        f"{name}_camera.c runs the model on raw frames from standard input." if f"{name}_camera" in made else
        "There is no camera loop: the inputs are not frames alone, or no output is a picture.",
        "The kernel files (vqc_*) are the same for every exported model: link them once.", "",
        *(f"Note: {n}" for n in program.notes), "",
    ])  # fmt: skip


def files_of(program: Program, model: Model, target: Target, self_test: bool, licence: str) -> dict[str, bytes]:
    """Every file of an export, by name."""
    name, threads = model.name, model.lowered.workers > 1
    texts = dict(model.sources)
    files = {f"{name}.weights.bin": model.weights}
    if threads:
        texts |= kernel_files([THREAD_POOL])
    made = programs(model, self_test, has_camera(model))
    allowed: list[Bound] = []
    if self_test:
        want = step_results(program, STEPS)
        allowed = bounds(program, want)
        texts[f"{name}_test.c"] = self_test_source(model, allowed)
        files[f"{name}.test.bin"] = self_test_vectors(program, want)
    if has_camera(model):
        texts[f"{name}_camera.c"] = camera_source(model)
    texts["CMakeLists.txt"] = cmake_text(model, target, made, threads)
    texts["Makefile"] = makefile_text(model, target, made, threads)
    texts["README.txt"] = readme_text(program, model, target, licence, made, allowed)
    texts[MARKER] = f"exported by vqc: {name} for {target.name}\n"
    return files | {f: text.encode() for f, text in texts.items()}


def export_folder(program: Program, model: Model, target: Target, folder: Path, options: Mapping[str, Any]) -> Path:
    """Write the export and return the folder.

    Raises ArtifactError when the folder cannot be written, or holds files that are not an earlier export.
    """
    return write_folder(folder, files_of(program, model, target, bool(options["self_test"]), options["licence"]))

"""Writing a generated model out: sources, weights, a CMake file, a self-test with vectors, and a README.

The folder is written beside its place and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vqc.backends.c.build import COMMON, TARGET_FLAGS
from vqc.backends.c.emit import CONTRACTED, Model, c_type
from vqc.backends.c.ir import ALIGN, Value, align
from vqc.errors import ArtifactError
from vqc.pipeline import probe_steps
from vqc.program import DTYPE_NAMES, Program, evaluate

MARKER = "vqc-export.txt"  # names a folder as ours, so that a new export may replace it
STEPS = 2
VECTOR_MAGIC = b"VQCTEST\n"
TOLERANCE = 1e-4  # of floats, relative to the largest value of the tensor: another compiler may contract differently


def self_test_vectors(program: Program, steps: int = STEPS) -> bytes:
    """Inputs and expected results of some steps from the reset state, from the reference evaluation.

    File: magic, then for every step all inputs, all outputs and all next states, each at a multiple of 64 bytes.
    """
    states = {s.output for s in program.states}
    data = bytearray(VECTOR_MAGIC + struct.pack("<Q", steps))

    def put(x: torch.Tensor) -> None:
        data.extend(bytes(align(len(data)) - len(data)))
        data.extend(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    state = program.initial_state()
    for inputs in probe_steps(program, steps):
        out = evaluate(program, inputs, state)
        state = [out[s.output] for s in program.states]
        for x in (*inputs, *(o for i, o in enumerate(out) if i not in states), *state):
            put(x)
    return bytes(data)


def _line(prefix: str, values: Sequence[Value]) -> list[str]:
    return [f"    {{{v.count}, {1 if DTYPE_NAMES[v.dtype] == 'f32' else 0}, {v.count * v.item}}}, /* {prefix}[{i}] */"
            for i, v in enumerate(values)]  # fmt: skip


def self_test_source(model: Model) -> str:
    """The self-test program: runs the vectors and compares; needs libc's files and malloc, the model does not."""
    name, lowered = model.name, model.lowered
    offsets = [s.buffer.place or 0 for s in lowered.states]
    return f"""/* Self-test of {name}: runs stored steps and compares outputs and states with the reference.
 *
 *   {name}_test [folder of {name}.weights.bin and {name}.test.bin, default "."]
 *
 * Integers must be equal; floats within {TOLERANCE:g} of the tensor's largest value. Exit status 0 when all is well.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "{name}.h"

#define INPUTS {len(lowered.inputs)}
#define OUTPUTS {len(lowered.outputs)}
#define STATES {len(lowered.states)}
#define TENSORS (INPUTS + OUTPUTS + STATES)

typedef struct tensor {{
    size_t count;
    int is_float;
    size_t size;
}} tensor;

static const tensor tensors[] = {{
{chr(10).join([*_line("inputs", lowered.inputs), *_line("outputs", lowered.outputs), *_line("states", lowered.states)])}
}};
static const size_t state_at[] = {{{", ".join(str(o) for o in [*offsets, 0])}}};

/* Memory at a multiple of 64 bytes; the block itself in *block, for free. */
static unsigned char *aligned(size_t size, void **block) {{
    unsigned char *p;
    *block = malloc(size + 64);
    if (*block == NULL) {{
        fprintf(stderr, "out of memory\\n");
        exit(2);
    }}
    p = (unsigned char *)*block;
    return p + (64 - (uintptr_t)p % 64) % 64;
}}

static unsigned char *read_file(const char *folder, const char *file, size_t *size, void **block) {{
    char path[1024];
    unsigned char *data;
    long length;
    FILE *f;
    if (snprintf(path, sizeof path, "%s/%s", folder, file) >= (int)sizeof path) exit(2);
    f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0 || (length = ftell(f)) < 0 || fseek(f, 0, SEEK_SET) != 0) {{
        fprintf(stderr, "cannot read %s\\n", path);
        exit(2);
    }}
    *size = (size_t)length;
    data = aligned(*size, block);
    if (fread(data, 1, *size, f) != *size) {{
        fprintf(stderr, "cannot read %s\\n", path);
        exit(2);
    }}
    fclose(f);
    return data;
}}

/* Whether two tensors agree; says what differs when not. */
static int same(int which, const unsigned char *want, const unsigned char *got, const char *kind, int i, int step) {{
    const tensor *t = &tensors[which];
    double largest = 0.0, worst = 0.0;
    if (!t->is_float) {{
        if (memcmp(want, got, t->size) == 0) return 1;
        printf("step %d, %s %d: integers differ\\n", step, kind, i);
        return 0;
    }}
    for (size_t k = 0; k < t->count; k++) {{
        float a, b;
        memcpy(&a, want + 4 * k, 4);
        memcpy(&b, got + 4 * k, 4);
        if (fabs((double)a) > largest) largest = fabs((double)a);
        if (!(fabs((double)a - (double)b) <= worst)) worst = fabs((double)a - (double)b);
    }}
    if (worst <= {TOLERANCE:g} * largest + 1e-6) return 1;
    printf("step %d, %s %d: differs by %g, largest value %g\\n", step, kind, i, worst, largest);
    return 0;
}}

int main(int argc, char **argv) {{
    const char *folder = argc > 1 ? argv[1] : ".";
    void *blocks[4 + OUTPUTS + 1];
    size_t weights_size, test_size, at = 16;
    unsigned char *weights = read_file(folder, "{name}.weights.bin", &weights_size, &blocks[0]);
    unsigned char *test = read_file(folder, "{name}.test.bin", &test_size, &blocks[1]);
    unsigned char *arena = aligned({name}_arena_size() + 1, &blocks[2]);
    unsigned char *state = aligned({name}_state_size() + 1, &blocks[3]);
    const void *inputs[INPUTS + 1];
    void *outputs[OUTPUTS + 1];
    uint64_t steps;
    {name}_model model;
    int error = {name}_init(&model, weights, weights_size, arena, {name}_arena_size()), good = 1;
    if (error == VQC_OK) error = {name}_reset(&model, state);
    if (error != VQC_OK) {{
        fprintf(stderr, "{name}: %s\\n", {name}_strerror(error));
        return 2;
    }}
    if (test_size < 16 || memcmp(test, "VQCTEST\\n", 8) != 0) {{
        fprintf(stderr, "{name}.test.bin does not hold test vectors\\n");
        return 2;
    }}
    memcpy(&steps, test + 8, sizeof steps);
    for (int i = 0; i < OUTPUTS; i++) outputs[i] = aligned(tensors[INPUTS + i].size, &blocks[4 + i]);
    for (int step = 0; step < (int)steps; step++) {{
        const unsigned char *expected[TENSORS + 1];
        for (int i = 0; i < TENSORS; i++) {{
            at = (at + 63) / 64 * 64;
            expected[i] = test + at;
            at += tensors[i].size;
            if (at > test_size) {{
                fprintf(stderr, "{name}.test.bin is truncated\\n");
                return 2;
            }}
        }}
        for (int i = 0; i < INPUTS; i++) inputs[i] = expected[i];
        error = {name}_run(&model, state, inputs, outputs);
        if (error != VQC_OK) {{
            fprintf(stderr, "{name}: %s\\n", {name}_strerror(error));
            return 2;
        }}
        for (int i = 0; i < OUTPUTS; i++)
            good &= same(INPUTS + i, expected[INPUTS + i], (unsigned char *)outputs[i], "output", i, step);
        for (int i = 0; i < STATES; i++)
            good &= same(INPUTS + OUTPUTS + i, expected[INPUTS + OUTPUTS + i], state + state_at[i], "state", i, step);
    }}
    for (int i = 0; i < 4 + OUTPUTS; i++) free(blocks[i]);
    printf("{name}: %s\\n", good ? "ok" : "FAILED");
    return good ? 0 : 1;
}}
"""


def cmake_text(model: Model, target: str) -> str:
    """CMakeLists.txt: the model as a static library, and the self-test."""
    flags = [f for f in (*COMMON, *TARGET_FLAGS[target]) if not f.startswith("-std")]
    files = "\n".join(f"  {f}" for f in model.c_files)
    fast = " ".join(f for f in model.c_files if f in CONTRACTED)
    lines = [
        "cmake_minimum_required(VERSION 3.13)", f"project({model.name} C)", "",
        "# Products and sums must not be fused: the exact kernels' meaning depends on it.",
        f"add_library({model.name} STATIC", files + ")",
        f"target_include_directories({model.name} PUBLIC ${{CMAKE_CURRENT_SOURCE_DIR}})",
        f"set_target_properties({model.name} PROPERTIES C_STANDARD 99 C_EXTENSIONS OFF)",
        f"target_compile_options({model.name} PRIVATE {' '.join(flags)} -ffp-contract=off -Wall -Wextra -Wconversion)",
    ]  # fmt: skip
    if fast:
        lines.append(f"set_source_files_properties({fast} PROPERTIES COMPILE_OPTIONS -ffp-contract=fast)")
    lines += [
        f"target_link_libraries({model.name} PUBLIC m)", "",
        "enable_testing()",
        f"add_executable({model.name}_test {model.name}_test.c)",
        f"set_target_properties({model.name}_test PROPERTIES C_STANDARD 99)",
        f"target_link_libraries({model.name}_test PRIVATE {model.name})",
        f"add_test(NAME {model.name} COMMAND {model.name}_test ${{CMAKE_CURRENT_SOURCE_DIR}})", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _tensor_rows(kind: str, values: Sequence[Value], names: Sequence[str]) -> list[str]:
    return [f"  {kind}[{i}] {n}: {c_type(v)} [{', '.join(map(str, v.shape))}], {v.count * v.item} bytes"
            for i, (v, n) in enumerate(zip(values, names, strict=True))]  # fmt: skip


def readme_text(program: Program, model: Model, target: str) -> str:
    """README.txt: what the files are, what memory the caller gives, how to call it."""
    name, lowered = model.name, model.lowered
    states = {s.output for s in program.states}
    results = [n.name for i, n in enumerate(program.result_nodes) if i not in states]
    names = [program.outputs[i] if i < len(program.outputs) else n for i, n in enumerate(results)]
    rows = [*_tensor_rows("inputs", lowered.inputs, [i.name for i in program.inputs]),
            *_tensor_rows("outputs", lowered.outputs, names),
            *_tensor_rows("state", lowered.states, [s.name for s in program.states])]  # fmt: skip
    return "\n".join([
        f"{name}: one step of a video network as C99, for target {target}", "",
        "Memory the caller provides, each starting at a multiple of 64 bytes:",
        f"  weights  {len(model.weights)} bytes  ({name}.weights.bin, read-only, shared by any number of models)",
        f"  arena    {model.arena_size} bytes  (scratch of one step; one for each model)",
        f"  state    {model.state_size} bytes  (one for each running video)", "",
        "Tensors (dense, row-major; they must not overlap each other, the arena or the state):", *rows, "",
        "Use:",
        f"  {name}_model m;",
        f"  {name}_init(&m, weights, weights_size, arena, {name}_arena_size());   /* checks the weights' hash */",
        f"  {name}_reset(&m, state);                                      /* at the start of a video */",
        f"  {name}_run(&m, state, inputs, outputs);                       /* for every frame */",
        f"Every function returns 0 or an error that {name}_strerror explains. Nothing is allocated, nothing is global,",
        "and only libc and libm are needed. For several threads set m.parallel and m.pool (vqc_common.h).", "",
        "Build and test:  cmake -B build && cmake --build build && ctest --test-dir build",
        "The kernel files (vqc_*) are the same for every exported model: link them once.", "",
        *(f"Note: {n}" for n in program.notes), "",
    ])  # fmt: skip


def files_of(program: Program, model: Model, target: str, self_test: bool) -> dict[str, bytes]:
    """Every file of an export, by name."""
    name = model.name
    files = {f: text.encode() for f, text in model.sources.items()}
    files[f"{name}.weights.bin"] = model.weights
    cmake = cmake_text(model, target)
    if self_test:
        files[f"{name}_test.c"] = self_test_source(model).encode()
        files[f"{name}.test.bin"] = self_test_vectors(program)
    else:
        cmake = cmake[: cmake.index("enable_testing()")]
    files["CMakeLists.txt"] = cmake.encode()
    files["README.txt"] = readme_text(program, model, target).encode()
    files[MARKER] = f"exported by vqc: {name} for {target}\n".encode()
    return files


def export_folder(program: Program, model: Model, target: str, folder: Path, options: Mapping[str, Any]) -> Path:
    """Write the export and return the folder.

    Raises ArtifactError when the folder cannot be written, or holds files that are not an earlier export.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).exists())):
        raise ArtifactError(f"{folder} is already there and is not an export", why="it would be overwritten",
                            way_out="give a new or empty folder")  # fmt: skip
    files = files_of(program, model, target, bool(options["self_test"]))
    temp: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        temp.chmod(0o755)
        for file, data in files.items():
            (temp / file).write_bytes(data)
        if folder.exists():
            old = temp.with_name(temp.name + "-old")
            os.replace(folder, old)
            os.replace(temp, folder)
            shutil.rmtree(old)
        else:
            os.replace(temp, folder)
    except OSError as e:
        if temp is not None:
            shutil.rmtree(temp, ignore_errors=True)
        raise ArtifactError(f"the export to {folder} failed", why=str(e),
                            way_out="choose a folder on a disk with room that you may write to") from e  # fmt: skip
    return folder


assert ALIGN == 64, "the self-test's source writes 64 out"

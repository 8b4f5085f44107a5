"""The self-test of an exported model: a C program, and the inputs and results of some steps that it repeats."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch

from vqc.backends.c.emit import Model
from vqc.backends.c.interface import STATE_HEAD
from vqc.backends.c.ir import ALIGN, DTYPES, Value, align
from vqc.backends.c.wavering import Bound
from vqc.pipeline import probe_steps
from vqc.program import Program

STEPS = 2
VECTOR_MAGIC = b"VQCTEST\n"


def self_test_vectors(program: Program, want: Sequence[Sequence[torch.Tensor]]) -> bytes:
    """Inputs and expected results of some steps from the reset state; `want` is `wavering.step_results`.

    File: magic, then for every step all inputs, all outputs and all next states, each at a multiple of 64 bytes.
    """
    states = {s.output for s in program.states}
    data = bytearray(VECTOR_MAGIC + struct.pack("<Q", len(want)))

    def put(x: torch.Tensor) -> None:
        data.extend(bytes(align(len(data)) - len(data)))
        data.extend(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    for inputs, out in zip(probe_steps(program, len(want)), want, strict=True):
        for x in (
            *inputs,
            *(o for i, o in enumerate(out) if i not in states),
            *(out[s.output] for s in program.states),
        ):
            put(x)
    return bytes(data)


def _tensor(value: Value, bound: Bound, name: str) -> str:
    """A row of the table of tensors."""
    dtype, count = DTYPES[value.dtype][0], value.count
    if value.dtype.is_complex:  # pairs of floats
        dtype, count = DTYPES[torch.float32][0], 2 * count
    return (f"    {{{count}, {dtype}, {value.count * value.item}, {bound.share:.3g}, {bound.slack:.3g}, "
            f"{bound.distance:.3g}}}, /* {name} */")  # fmt: skip


def self_test_source(model: Model, bounds: Sequence[Bound]) -> str:
    """The self-test program: runs the vectors and compares; needs libc's files and malloc, the model does not.

    `bounds`: how far each output and then each state may be off (`wavering.bounds`).
    """
    name, lowered = model.name, model.lowered
    outputs, exact = len(lowered.outputs), Bound(0.0, 0.0, 0.0, 0.0)
    called = [*(f"output {i}" for i in range(outputs)), *(f"state {i}" for i in range(len(lowered.states)))]
    checked = list(zip([*lowered.outputs, *lowered.states], bounds, called, strict=True))
    rows = [*(_tensor(v, exact, f"input {i}") for i, v in enumerate(lowered.inputs)), *(_tensor(*c) for c in checked)]
    spared = [f'    puts("{name}, {what} is {bound}");' for _, bound, what in checked if not bound.judges]
    left_out = f", but {len(spared)} of {len(checked)} outputs and states are not judged" if spared else ""
    offsets = [STATE_HEAD + (s.buffer.place or 0) for s in lowered.states]
    return f"""/* Self-test of {name}: runs stored steps and compares outputs and states with the reference.
 *
 *   {name}_test [folder of {name}.weights.bin and {name}.test.bin, default "."]
 *
 * Every variant of the program that this CPU can run is tested. The table below says how far a tensor may be off: a
 * `share` of its elements by more than `slack`, none by more than `distance`. Exit status 0 when all is well.
 */
#include <float.h>
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
    int dtype;
    size_t size;
    double share, slack, distance;
}} tensor;

static const tensor tensors[] = {{
{chr(10).join(rows)}
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

/* Element k as a number. */
static double number(const tensor *t, const unsigned char *data, size_t k) {{
    float f;
    int16_t s16;
    int32_t s32;
    int64_t s64;
    switch (t->dtype) {{
    case VQC_F32: memcpy(&f, data + 4 * k, 4); return (double)f;
    case VQC_S8: return (double)(int8_t)data[k];
    case VQC_S16: memcpy(&s16, data + 2 * k, 2); return (double)s16;
    case VQC_S32: memcpy(&s32, data + 4 * k, 4); return (double)s32;
    case VQC_S64: memcpy(&s64, data + 8 * k, 8); return (double)s64;
    default: return (double)data[k];
    }}
}}

/* Whether two tensors agree; says what differs when not. */
static int same(int which, const unsigned char *want, const unsigned char *got, const char *kind, int i, int step) {{
    const tensor *t = &tensors[which];
    const int whole = t->dtype != VQC_F32;
    const size_t item = t->count > 0 ? t->size / t->count : 1;
    double worst = 0.0;
    size_t wrong = 0;
    for (size_t k = 0; k < t->count; k++) {{
        const double a = number(t, want, k), b = number(t, got, k), off = fabs(a - b);
        if (memcmp(want + item * k, got + item * k, item) == 0) continue;
        if (!whole && (a == b || (a != a && b != b))) continue; /* the same infinity, or no number in both */
        if (!(off <= DBL_MAX)) {{
            printf("step %d, %s %d: element %lu is %g, not %g\\n", step, kind, i, (unsigned long)k, b, a);
            return 0;
        }}
        wrong += whole || off > t->slack;
        if (off > worst) worst = off;
    }}
    if ((double)wrong <= t->share * (double)t->count && worst <= t->distance) return 1;
    if (whole)
        printf("step %d, %s %d: %lu of %lu integers differ, by up to %g\\n", step, kind, i, (unsigned long)wrong,
               (unsigned long)t->count, worst);
    else
        printf("step %d, %s %d: differs by up to %g; %lu of %lu values by more than %g\\n", step, kind, i, worst,
               (unsigned long)wrong, (unsigned long)t->count, t->slack);
    return 0;
}}

typedef struct memory {{
    unsigned char *test, *arena, *state;
    size_t test_size;
    void *outputs[OUTPUTS + 1];
}} memory;

/* All steps with one variant: 1 when everything agrees, 0 when not, or the negative of an error. */
static int steps_agree({name}_model *model, memory *mem) {{
    const void *inputs[INPUTS + 1];
    const unsigned char *expected[TENSORS + 1];
    size_t at = 16;
    uint64_t steps;
    int good = 1, error = {name}_reset(model, mem->state);
    if (error != VQC_OK) return -error;
    memcpy(&steps, mem->test + 8, sizeof steps);
    for (int step = 0; step < (int)steps; step++) {{
        for (int i = 0; i < TENSORS; i++) {{
            at = (at + 63) / 64 * 64;
            expected[i] = mem->test + at;
            at += tensors[i].size;
            if (at > mem->test_size) {{
                fprintf(stderr, "{name}.test.bin is truncated\\n");
                exit(2);
            }}
        }}
        for (int i = 0; i < INPUTS; i++) inputs[i] = expected[i];
        error = {name}_run(model, mem->state, inputs, mem->outputs);
        if (error != VQC_OK) return -error;
        for (int i = 0; i < OUTPUTS; i++)
            good &= same(INPUTS + i, expected[INPUTS + i], (unsigned char *)mem->outputs[i], "output", i, step);
        for (int i = 0; i < STATES; i++)
            good &= same(INPUTS + OUTPUTS + i, expected[INPUTS + OUTPUTS + i], mem->state + state_at[i], "state", i,
                         step);
    }}
    return good;
}}

int main(int argc, char **argv) {{
    const char *folder = argc > 1 ? argv[1] : ".";
    void *blocks[4 + OUTPUTS + 1];
    size_t weights_size;
    memory mem;
    {name}_model model;
    unsigned char *weights = read_file(folder, "{name}.weights.bin", &weights_size, &blocks[0]);
    int error, good = 1;
    mem.test = read_file(folder, "{name}.test.bin", &mem.test_size, &blocks[1]);
    mem.arena = aligned({name}_arena_size() + 1, &blocks[2]);
    mem.state = aligned({name}_state_size() + 1, &blocks[3]);
    for (int i = 0; i < OUTPUTS; i++) mem.outputs[i] = aligned(tensors[INPUTS + i].size, &blocks[4 + i]);
    if (mem.test_size < 16 || memcmp(mem.test, "VQCTEST\\n", 8) != 0) {{
        fprintf(stderr, "{name}.test.bin does not hold test vectors\\n");
        return 2;
    }}
{chr(10).join([*spared, ""])}    error = {name}_init(&model, weights, weights_size, mem.arena, {name}_arena_size());
    for (int v = 0; error == VQC_OK && v < {name}_variants(); v++) {{
        int agree;
        if ({name}_select(&model, v) == VQC_E_CPU) {{
            printf("{name}, %s: not run, this CPU lacks it\\n", {name}_variant_name(v));
            continue;
        }}
        agree = steps_agree(&model, &mem);
        if (agree < 0) error = -agree;
        else printf("{name}, %s: %s\\n", {name}_variant_name(v), agree ? "ok" : "FAILED");
        good &= agree;
    }}
    if (error != VQC_OK) {{
        fprintf(stderr, "{name}: %s\\n", {name}_strerror(error));
        return 2;
    }}
    for (int i = 0; i < 4 + OUTPUTS; i++) free(blocks[i]);
    printf("{name}: %s\\n", good ? "ok{left_out}" : "FAILED");
    return good ? 0 : 1;
}}
"""


assert ALIGN == 64, "the self-test's source writes 64 out"

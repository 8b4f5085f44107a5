"""The outside of a generated model: NAME.h, and NAME.c with everything but the calls of a step.

NAME.c checks what it is given, and hands a step to the variant of NAME_step that fits the CPU. It is compiled without
the flags of any instruction set, so that it runs everywhere and can refuse.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vqc.backends.c.ir import ALIGN, Lowered, Value
from vqc.backends.c.plan import MemoryPlan
from vqc.backends.c.targets import Variant
from vqc.backends.c.weights import HEADER, digest
from vqc.program import DTYPE_NAMES

STATE_HEAD = ALIGN  # bytes before the first state: the program's number, so that another's state is refused
SMALL = 2**31 - 1  # what every size_t of 32 bits and every int of them can count


@dataclass(frozen=True)
class Outside:
    """What the two texts are made from. `names`: of inputs and of outputs. `notes`: licence and provenance."""

    name: str
    lowered: Lowered
    plan: MemoryPlan
    weights_size: int
    program_id: str
    names: tuple[Sequence[str], Sequence[str]]
    notes: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()

    @property
    def state_size(self) -> int:
        """Bytes of the state block: 0 for a program without states."""
        return STATE_HEAD + self.lowered.state_size if self.lowered.states else 0


def safe(text: str) -> str:
    """Text that cannot end a comment or hide a line."""
    text = text.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/").replace("??", "? ?")
    return "".join(ch if 32 <= ord(ch) < 127 else "?" for ch in text)[:160]


def _tensor_lines(kind: str, values: Sequence[Value], names: Sequence[str]) -> list[str]:
    return [
        f" *   {kind}[{i}] {safe(n)}: {DTYPE_NAMES[v.dtype]} [{','.join(map(str, v.shape))}], {v.count * v.item} bytes"
        for i, (v, n) in enumerate(zip(values, names, strict=True))
    ]


STEP = ("(const vqc_model *m, const unsigned char *state, unsigned char *next,\n"
        "    const void *const *inputs, void *const *outputs)")  # fmt: skip


def step_arguments(name: str) -> str:
    """The head of the function that runs the calls of a step."""
    return f"void {name}_step{STEP}"


def header_text(o: Outside) -> str:
    """NAME.h: what the caller sees."""
    name, upper, lowered = o.name, o.name.upper(), o.lowered
    doc = [
        f"/* {name}: one step of a video network.",
        " *",
        *_tensor_lines("inputs", lowered.inputs, o.names[0]),
        *_tensor_lines("outputs", lowered.outputs, o.names[1]),
        *(f" *   state {safe(s.buffer.name)}: {DTYPE_NAMES[s.dtype]} [{','.join(map(str, s.shape))}]"
          for s in lowered.states),
        " *",
        " * Tensors are dense, row-major, and must not overlap. Arena, state and weights start at multiples of 64",
        " * bytes. One model with its arena serves one step at a time; models may share weights; every video has its",
        " * own state.",
        " * Nothing is allocated and nothing is global.",
        *(f" * {safe(n)}" for n in o.notes),
        " */",
    ]  # fmt: skip
    largest = max(o.plan.size, o.state_size, o.weights_size)
    guard = [] if largest <= SMALL else [
        f"#if SIZE_MAX < {largest}u", f'#error "{name} needs {largest} bytes in one piece: more than this machine has"',
        "#endif", ""]  # fmt: skip
    return "\n".join([
        *doc,
        f"#ifndef {upper}_H", f"#define {upper}_H", "", '#include "vqc_common.h"', "",
        *guard,
        "#ifdef __cplusplus", 'extern "C" {', "#endif", "",
        f"#define {upper}_INPUTS {len(lowered.inputs)}", f"#define {upper}_OUTPUTS {len(lowered.outputs)}",
        f"#define {upper}_MAX_WORKERS {lowered.workers} /* of a parallel-for hook set in the model */", "",
        f"typedef vqc_model {name}_model;", "",
        "/* Sizes in bytes of what the caller provides; the state may be 0 bytes. */",
        f"size_t {name}_arena_size(void);   /* {o.plan.size} */",
        f"size_t {name}_state_size(void);   /* {o.state_size} */",
        f"size_t {name}_weights_size(void); /* {o.weights_size} */", "",
        "/* Check the weights and set up the model for the best instruction set this CPU has. Returns VQC_OK or",
        " * another vqc_error: VQC_E_CPU when the CPU lacks what every variant needs. */",
        _init_head(name) + ";", "",
        "/* Set a state to the start of a video. */",
        f"int {name}_reset(const {name}_model *m, void *state);", "",
        "/* Run one step: reads and replaces the state, reads the inputs, writes the outputs. */",
        f"int {name}_run(const {name}_model *m, void *state, const void *const *inputs, void *const *outputs);", "",
        "/* The same, but the state stays as it is and the next one is written to a block of its own, which needs no",
        " * reset; both may be one block. */",
        _run_to_head(name) + ";", "",
        "/* Use another of this program's variants, 0 (the best) to variants() - 1; integers do not depend on it. */",
        f"int {name}_select({name}_model *m, int variant);",
        f"int {name}_variants(void);",
        f"const char *{name}_variant_name(int variant);", "",
        f"const char *{name}_strerror(int error);", "",
        "#ifdef __cplusplus", "}", "#endif", "#endif", "",
    ])  # fmt: skip


def _init_head(name: str) -> str:
    return f"int {name}_init({name}_model *m, const void *weights, size_t weights_size, void *arena, size_t arena_size)"


def _run_to_head(name: str) -> str:
    return (f"int {name}_run_to(const {name}_model *m, const void *state, void *next,\n"
            f"    const void *const *inputs, void *const *outputs)")  # fmt: skip


def _checks(kind: str, values: Iterable[Value]) -> list[str]:
    lines = []
    for i, v in enumerate(values):
        if v.count == 0:  # an empty tensor may be nowhere
            continue
        lines.append(f"    if ({kind}[{i}] == NULL) return VQC_E_NULL;")
        if v.item > 1:
            lines.append(f"    if ((uintptr_t){kind}[{i}] % {v.item} != 0) return VQC_E_ALIGN;")
    return lines


def _resets(o: Outside) -> list[str]:
    if not o.lowered.states:
        return []
    lines = ["    memset(state, 0, VQC_ALIGN);", "    memcpy(state, &m->program, sizeof m->program);"]
    for state, value in zip(o.lowered.states, o.lowered.resets, strict=True):
        at = f"(unsigned char *)state + {STATE_HEAD + (state.buffer.place or 0)}u"
        size = state.count * state.item
        if value is None:
            lines.append(f"    memset({at}, 0, {size}u);")
        else:
            lines.append(f"    memcpy({at}, m->weights + {value.buffer.place}u, {size}u);")
    return lines


def _variant_table(o: Outside) -> list[str]:
    """The steps this program holds, best first."""
    rows = [(v.cpu, f"{o.name}_step{v.suffix}") for v in o.variants] or [("VQC_CPU_BUILT_FOR", f"{o.name}_step")]
    return [
        f"typedef void step{STEP};",
        f"step {', '.join(f for _, f in rows)};", "",
        "static const struct {", "    int cpu;", "    step *run;",
        "} variants[] = {" + ", ".join(f"{{{cpu}, {f}}}" for cpu, f in rows) + "};",
        f"#define VARIANTS {len(rows)}", "",
        f"int {o.name}_variants(void) {{ return VARIANTS; }}",
        f"const char *{o.name}_variant_name(int variant) {{",
        '    return variant < 0 || variant >= VARIANTS ? "unknown" : vqc_cpu_name(variants[variant].cpu);', "}",
    ]  # fmt: skip


def _blocks(lowered: Lowered) -> str:
    """The states that a step reads and those it writes."""
    if not lowered.states:
        return "NULL, NULL"
    return f"(const unsigned char *)state + {STATE_HEAD}, (unsigned char *)next + {STATE_HEAD}"


def model_text(o: Outside) -> str:
    """NAME.c: checks, reset, and the choice of the variant."""
    name, lowered = o.name, o.lowered
    hash_line = "static const unsigned char weights_hash[32] = {" + ", ".join(map(hex, digest(lowered.weights))) + "};"
    return "\n".join([
        f"/* {name}: generated; what is checked before a step, and the choice of the instruction set. */",
        f'#include "{name}.h"', "", "#include <string.h>", "", '#include "vqc_cpu.h"', "",
        textwrap.fill(hash_line, 118, subsequent_indent="    "), "",
        *_variant_table(o), "",
        f"#define PROGRAM_ID 0x{o.program_id}u", "",
        f"size_t {name}_arena_size(void) {{ return {o.plan.size}u; }}",
        f"size_t {name}_state_size(void) {{ return {o.state_size}u; }}",
        f"size_t {name}_weights_size(void) {{ return {o.weights_size}u; }}",
        f"const char *{name}_strerror(int error) {{ return vqc_strerror(error); }}", "",
        _init_head(name) + " {",
        "    int error, variant = 0;",
        "    if (m == NULL || (arena == NULL && arena_size > 0)) return VQC_E_NULL;",
        "    memset(m, 0, sizeof *m);",
        "    while (variant < VARIANTS && !vqc_cpu_has(variants[variant].cpu)) variant++;",
        "    if (variant == VARIANTS) return VQC_E_CPU;",
        f"    error = vqc_check_weights(weights, weights_size, {name}_weights_size(), weights_hash);",
        "    if (error != VQC_OK) return error;",
        "    if ((uintptr_t)arena % VQC_ALIGN != 0) return VQC_E_ALIGN;",
        f"    if (arena_size < {name}_arena_size()) return VQC_E_ARENA;",
        f"    m->weights = (const unsigned char *)weights + {HEADER};",
        "    m->arena = (unsigned char *)arena;",
        "    m->program = PROGRAM_ID;",
        f"    m->workers = {lowered.workers};",
        "    m->variant = variant;",
        "    return VQC_OK;", "}", "",
        f"int {name}_select({name}_model *m, int variant) {{",
        "    if (m == NULL) return VQC_E_NULL;",
        "    if (m->program != PROGRAM_ID || variant < 0 || variant >= VARIANTS) return VQC_E_MODEL;",
        "    if (!vqc_cpu_has(variants[variant].cpu)) return VQC_E_CPU;",
        "    m->variant = variant;",
        "    return VQC_OK;", "}", "",
        f"static int check(const {name}_model *m, const void *state) {{",
        "    if (m == NULL) return VQC_E_NULL;",
        "    if (m->program != PROGRAM_ID || m->variant < 0 || m->variant >= VARIANTS) return VQC_E_MODEL;",
        f"    if (state == NULL) return {'VQC_E_NULL' if lowered.states else 'VQC_OK'};",
        "    return (uintptr_t)state % VQC_ALIGN != 0 ? VQC_E_ALIGN : VQC_OK;", "}", "",
        f"int {name}_reset(const {name}_model *m, void *state) {{",
        "    const int error = check(m, state);",
        "    if (error != VQC_OK) return error;", *_resets(o), "    return VQC_OK;", "}", "",
        _run_to_head(name) + " {",
        "    int error = check(m, state);",
        "    if (error == VQC_OK) error = check(m, next);",
        "    if (error != VQC_OK) return error;",
        *(["    if (memcmp(state, &m->program, sizeof m->program) != 0) return VQC_E_STATE;"] * bool(lowered.states)),
        *(["    if (inputs == NULL) return VQC_E_NULL;"] if lowered.inputs else []),
        *(["    if (outputs == NULL) return VQC_E_NULL;"] if lowered.outputs else []),
        *_checks("inputs", lowered.inputs), *_checks("outputs", lowered.outputs),
        *([f"    if (next != state) memcpy(next, state, {STATE_HEAD}u);"] if lowered.states else []),
        f"    variants[m->variant].run(m, {_blocks(lowered)}, inputs, outputs);",
        "    return VQC_OK;", "}", "",
        f"int {name}_run(const {name}_model *m, void *state, const void *const *inputs, void *const *outputs) {{",
        f"    return {name}_run_to(m, state, state, inputs, outputs);", "}", "",
    ])  # fmt: skip

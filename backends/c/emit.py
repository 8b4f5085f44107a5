"""The text of a generated model: NAME.h and NAME.c, and which kernel files it needs.

The model file holds a constant parameter table for every call and one function that runs the calls in order. It has no
state of its own. The text depends on nothing but the plan, so that the same program always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import keyword
import math
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from vqc.backends.c.ir import DTYPES, Arg, Array, Buffer, Call, Lowered, Ref, Scratch, Struct, Value
from vqc.backends.c.plan import MemoryPlan, make_plan
from vqc.backends.c.weights import HEADER, digest, weights_file
from vqc.ops import exact
from vqc.program import DTYPE_NAMES

KERNELS = resources.files("vqc.backends.c") / "kernels"

# family -> source files; headers follow from the includes
FAMILIES: dict[str, tuple[str, ...]] = {
    "common": ("vqc_common.c",),
    "conv_f32": ("vqc_conv_f32.c",),
    "conv_exact_f32": ("vqc_conv_exact_f32.c",),
    "qconv": ("vqc_qconv.c",),
    "pointwise_f32": ("vqc_pointwise_f32.c",),
    "pointwise_s64": ("vqc_pointwise_s64.c",),
    "move": ("vqc_move.c",),
    "resample": ("vqc_resample.c",),
    "pool": ("vqc_pool.c",),
    "reduce": ("vqc_reduce.c",),
    "matmul": ("vqc_matmul.c",),
    "qlinear": ("vqc_qlinear.c",),
    "bconv": ("vqc_bconv.c",),
}
HEADERS = {
    "conv_f32": "vqc_conv.h", "conv_exact_f32": "vqc_conv.h", "qconv": "vqc_conv.h", "pointwise_f32": "vqc_pointwise.h",
    "pointwise_s64": "vqc_pointwise.h", "move": "vqc_move.h", "resample": "vqc_resample.h", "pool": "vqc_pool.h",
    "reduce": "vqc_reduce.h", "matmul": "vqc_matmul.h", "qlinear": "vqc_qlinear.h", "bconv": "vqc_bconv.h",
}  # fmt: skip
CONTRACTED = ("vqc_conv_f32.c", "vqc_matmul.c")  # these may fuse products and sums; nothing else may

_C_WORDS = {
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float",
    "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof",
    "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "main",
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A generated model: its C name, all sources by file name, the weights file, sizes and the plan."""

    name: str
    sources: dict[str, str]
    weights: bytes
    arena_size: int
    state_size: int
    lowered: Lowered
    plan: MemoryPlan

    @property
    def c_files(self) -> list[str]:
        return [f for f in self.sources if f.endswith(".c")]


def c_name(name: str) -> str:
    """A C identifier from a program's name."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII).lower() or "model"
    if text[0].isdigit() or text.startswith("_") or text in _C_WORDS or keyword.iskeyword(text):
        text = "m_" + text
    return text


def exact_header() -> str:
    """vqc_exact.h: the constants of the exact float functions, from the one place that defines them."""
    values = {"EXP_LOW": exact.EXP_LOW, "EXP_HIGH": exact.EXP_HIGH, "LOG2E": exact.LOG2E, "LN2_HI": exact.LN2_HI,
              "LN2_LO": exact.LN2_LO}  # fmt: skip
    values |= {f"EXP_C{i}": c for i, c in enumerate(exact.EXP_COEFFICIENTS)}
    lines = [
        "/* Constants of vqc::exp, generated from its reference. */",
        "#ifndef VQC_EXACT_H",
        "#define VQC_EXACT_H",
        "",
    ]
    lines += [f"#define VQC_{k} {number(v)}" for k, v in values.items()]
    return "\n".join([*lines, "", "#endif", ""])


def kernel_sources(families: Iterable[str]) -> dict[str, str]:
    """The kernel files of some families with every header they include, by name, sorted."""
    todo = [f for family in families for f in FAMILIES[family]]
    found: dict[str, str] = {}
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found[file] = exact_header() if file == "vqc_exact.h" else (KERNELS / file).read_text()
        todo += re.findall(r'^#include "(\w+\.h)"', found[file], re.M)
    return dict(sorted(found.items()))


def number(value: float) -> str:
    """A float32 as a C constant that reads back as the same bits."""
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    single = np.float32(value)
    text = next(t for t in (f"{float(single):.{p}g}" for p in (6, 7, 8, 9)) if np.float32(float(t)) == single)
    return (text if "." in text or "e" in text else text + ".0") + "f"


def _double(value: float) -> str:
    return number(value).removesuffix("f") if not math.isfinite(value) else repr(float(value))


def _scalar(value: Any, ctype: str) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return _double(value) if ctype == "vqc_pw_op" else number(value)
    return str(value)


class _Emitter:
    def __init__(self, lowered: Lowered, plan: MemoryPlan, name: str):
        self.lowered, self.plan, self.name = lowered, plan, name
        self.tables: list[str] = []
        self.known: dict[str, str] = {}  # a table's text -> its name: equal tables are written once
        self.used: set[str] = set()

    # ---- parameter tables ------------------------------------------------------------------------------------------

    def fields(self, struct: Struct, hint: str) -> str:
        parts = []
        for key, value in struct.fields.items():
            if isinstance(value, Array):
                text = self.table(value.ctype + " %s[]", "{" + ", ".join(self.item(i, hint) for i in value.items) + "}",
                                  f"{hint}_{key}")  # fmt: skip
            elif isinstance(value, (list, tuple)):
                if not any(value):
                    continue
                text = "{" + ", ".join(_scalar(v, struct.ctype) for v in value) + "}"
            elif (
                not isinstance(value, str)
                and value == 0
                and not (isinstance(value, float) and math.copysign(1, value) < 0)
            ):
                continue
            else:
                text = _scalar(value, struct.ctype)
            parts.append(f".{key} = {text}")
        return "{" + ", ".join(parts) + "}"

    def item(self, value: Any, hint: str) -> str:
        return self.fields(value, hint) if isinstance(value, Struct) else str(value)

    def table(self, declaration: str, text: str, hint: str) -> str:
        key = declaration + text
        if key not in self.known:
            base = "p_" + re.sub(r"\W", "_", hint)
            name, i = base, 1
            while name in self.used:
                name, i = f"{base}_{i}", i + 1
            self.used.add(name)
            self.known[key] = name
            line = f"static const {declaration % name} = {text};"
            self.tables.append(self.wrap(line))
        return self.known[key]

    def params(self, call: Call) -> str:
        struct = call.params
        if call.scratch:
            struct = Struct(struct.ctype, {**struct.fields, "scratch": call.scratch})
        text = self.fields(struct, call.node)
        return self.table(struct.ctype + " %s", text, call.node)

    def wrap(self, line: str) -> str:
        """A table over several lines, broken between fields."""
        kept = line.replace(" = ", "\0=\0").replace("static const ", "static\0const\0")
        return textwrap.fill(kept, 118, subsequent_indent="    ", break_on_hyphens=False).replace("\0", " ")

    # ---- calls -----------------------------------------------------------------------------------------------------

    def memory(self, ref: Ref) -> str:
        root, offset = ref.buffer.root()
        offset += ref.offset
        if root.kind == "arena":
            return f"A({self.plan.offsets[ref.buffer] + ref.offset})"
        if root.kind in ("weight", "state"):
            assert root.place is not None
            return f"{'W' if root.kind == 'weight' else 'S'}({root.place + offset})"
        text = f"{'I' if root.kind == 'input' else 'O'}({root.place})"
        if offset:
            const = "const " if root.kind == "input" else ""
            text = f"({const}void *)(({const}char *){text} + {offset})"
        return text

    def argument(self, call: Call, arg: Arg) -> str:
        if arg is None:
            return "NULL"
        if isinstance(arg, Scratch):
            return f"A({self.plan.scratch[call]})"
        if isinstance(arg, Ref):
            return self.memory(arg)
        kind = "void *const[]" if arg[0].writes else "const void *const[]"
        return f"({kind}){{{', '.join(self.memory(r) for r in arg)}}}"

    def call(self, call: Call) -> list[str]:
        args = ", ".join(["m", "&" + self.params(call), *(self.argument(call, a) for a in call.args)])
        lines = [f"    /* {_safe(call.comment)} */"] if call.comment else []
        return [*lines, f"    {call.kernel}({args});"]


def _safe(text: str) -> str:
    """Text that cannot end a comment or hide a line."""
    text = text.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/").replace("??", "? ?")
    return "".join(ch if 32 <= ord(ch) < 127 else "?" for ch in text)[:160]


def _tensor_lines(kind: str, values: list[Value], names: list[str]) -> list[str]:
    return [
        f" *   {kind}[{i}] {_safe(n)}: {DTYPE_NAMES[v.dtype]} [{','.join(map(str, v.shape))}], {v.count * v.item} bytes"
        for i, (v, n) in enumerate(zip(values, names, strict=True))
    ]


def _header(name: str, lowered: Lowered, plan: MemoryPlan, weights_size: int, names: tuple[list[str], list[str]],
            notes: Iterable[str]) -> str:  # fmt: skip
    upper = name.upper()
    doc = [
        f"/* {name}: one step of a video network.",
        " *",
        *_tensor_lines("inputs", lowered.inputs, names[0]),
        *_tensor_lines("outputs", lowered.outputs, names[1]),
        *(
            f" *   state {_safe(s.buffer.name)}: {DTYPE_NAMES[s.dtype]} [{','.join(map(str, s.shape))}]"
            for s in lowered.states
        ),
        " *",
        " * Tensors are dense, row-major, and must not overlap. Arena, state and weights start at multiples of 64",
        " * bytes. One model with its arena serves one step at a time; models may share weights; every video has its",
        " * own state.",
        " * Nothing is allocated and nothing is global.",
        *(f" * {_safe(n)}" for n in notes),
        " */",
    ]
    return "\n".join([
        *doc,
        f"#ifndef {upper}_H", f"#define {upper}_H", "", '#include "vqc_common.h"', "",
        "#ifdef __cplusplus", 'extern "C" {', "#endif", "",
        f"#define {upper}_INPUTS {len(lowered.inputs)}", f"#define {upper}_OUTPUTS {len(lowered.outputs)}",
        f"#define {upper}_MAX_WORKERS {lowered.workers} /* of a parallel-for hook set in the model */", "",
        f"typedef vqc_model {name}_model;", "",
        "/* Sizes in bytes of what the caller provides; the state may be 0 bytes. */",
        f"size_t {name}_arena_size(void);   /* {plan.size} */",
        f"size_t {name}_state_size(void);   /* {lowered.state_size} */",
        f"size_t {name}_weights_size(void); /* {weights_size} */", "",
        "/* Check the weights and set up the model. Returns VQC_OK or another vqc_error. */",
        _init_signature(name) + ";", "",
        "/* Set a state to the start of a video. */",
        f"int {name}_reset(const {name}_model *m, void *state);", "",
        "/* Run one step: reads and replaces the state, reads the inputs, writes the outputs. */",
        f"int {name}_run(const {name}_model *m, void *state, const void *const *inputs, void *const *outputs);", "",
        f"const char *{name}_strerror(int error);", "",
        "#ifdef __cplusplus", "}", "#endif", "#endif", "",
    ])  # fmt: skip


def _checks(kind: str, values: list[Value]) -> list[str]:
    lines = []
    for i, v in enumerate(values):
        lines.append(f"    if ({kind}[{i}] == NULL) return VQC_E_NULL;")
        if v.item > 1:
            lines.append(f"    if ((uintptr_t){kind}[{i}] % {v.item} != 0) return VQC_E_ALIGN;")
    return lines


def _init_signature(name: str) -> str:
    return f"int {name}_init({name}_model *m, const void *weights, size_t weights_size, void *arena, size_t arena_size)"


def _body(name: str, lowered: Lowered, emitter: _Emitter, weights_size: int, plan: MemoryPlan) -> str:
    hash_bytes = digest(lowered.weights)
    calls = [line for i, c in enumerate(lowered.calls) for line in (*emitter.call(c), f"    MARK({i});")]
    families = sorted({HEADERS[c.family] for c in lowered.calls})
    resets = []
    for state, value in zip(lowered.states, lowered.resets, strict=True):
        size = state.count * state.item
        at = f"(unsigned char *)state + {state.buffer.place}"
        source = (
            "memset({}, 0, {});" if value is None else "memcpy({}, m->weights + " + str(value.buffer.place) + ", {});"
        )
        resets.append("    " + source.format(at, size))
    program_id = hashlib.sha256("\n".join([hash_bytes.hex(), *emitter.tables, *calls]).encode()).hexdigest()[:16]
    used = "\n".join(calls)
    macros = {
        "A": "#define A(offset) ((void *)(m->arena + (offset)))",
        "W": "#define W(offset) ((const void *)(m->weights + (offset)))",
        "S": "#define S(offset) ((void *)((unsigned char *)state + (offset)))",
        "I": "#define I(index) (inputs[index])",
        "O": "#define O(index) (outputs[index])",
        "MARK": "#define MARK(call) do { if (m->mark != NULL) m->mark(m->mark_arg, call); } while (0)",
    }
    return "\n".join([
        f"/* {name}: generated; the calls of one step and their parameters. */",
        f'#include "{name}.h"', "", "#include <math.h>", "#include <string.h>", "",
        *(f'#include "{h}"' for h in families), "",
        emitter.wrap("static const unsigned char weights_hash[32] = {" + ", ".join(map(hex, hash_bytes)) + "};"), "",
        *emitter.tables, "",
        f"#define PROGRAM_ID 0x{program_id}u", "",
        f"size_t {name}_arena_size(void) {{ return {plan.size}u; }}",
        f"size_t {name}_state_size(void) {{ return {lowered.state_size}u; }}",
        f"size_t {name}_weights_size(void) {{ return {weights_size}u; }}",
        f"const char *{name}_strerror(int error) {{ return vqc_strerror(error); }}", "",
        _init_signature(name) + " {",
        "    int error;",
        "    if (m == NULL || (arena == NULL && arena_size > 0)) return VQC_E_NULL;",
        "    memset(m, 0, sizeof *m);",
        f"    error = vqc_check_weights(weights, weights_size, {name}_weights_size(), weights_hash);",
        "    if (error != VQC_OK) return error;",
        "    if ((uintptr_t)arena % VQC_ALIGN != 0) return VQC_E_ALIGN;",
        f"    if (arena_size < {name}_arena_size()) return VQC_E_ARENA;",
        f"    m->weights = (const unsigned char *)weights + {HEADER};",
        "    m->arena = (unsigned char *)arena;",
        "    m->program = PROGRAM_ID;",
        f"    m->workers = {lowered.workers};",
        "    return VQC_OK;", "}", "",
        f"static int check(const {name}_model *m, const void *state) {{",
        "    if (m == NULL) return VQC_E_NULL;",
        "    if (m->program != PROGRAM_ID) return VQC_E_MODEL;",
        f"    if (state == NULL) return {'VQC_E_NULL' if lowered.states else 'VQC_OK'};",
        "    return (uintptr_t)state % VQC_ALIGN != 0 ? VQC_E_ALIGN : VQC_OK;", "}", "",
        f"int {name}_reset(const {name}_model *m, void *state) {{",
        "    const int error = check(m, state);",
        "    if (error != VQC_OK) return error;", *resets, "    return VQC_OK;", "}", "",
        *(text for key, text in macros.items() if re.search(rf"\b{key}\(", used)), "",
        f"int {name}_run(const {name}_model *m, void *state, const void *const *inputs, void *const *outputs) {{",
        "    const int error = check(m, state);",
        "    if (error != VQC_OK) return error;",
        *(["    if (inputs == NULL) return VQC_E_NULL;"] if lowered.inputs else ["    (void)inputs;"]),
        *(["    if (outputs == NULL) return VQC_E_NULL;"] if lowered.outputs else ["    (void)outputs;"]),
        *_checks("inputs", lowered.inputs), *_checks("outputs", lowered.outputs),
        *(["    MARK(-1);"] if calls else []), *calls, "    return VQC_OK;", "}", "",
    ])  # fmt: skip


def generate(lowered: Lowered, input_names: list[str], output_names: list[str], notes: Iterable[str] = ()) -> Model:
    """Plan the memory of a lowered program and write its C."""
    plan = make_plan(lowered)
    name = c_name(lowered.name)
    emitter = _Emitter(lowered, plan, name)
    weights = weights_file(lowered.weights)
    body = _body(name, lowered, emitter, len(weights), plan)
    sources = kernel_sources(["common", *sorted({c.family for c in lowered.calls})])
    sources[f"{name}.h"] = _header(name, lowered, plan, len(weights), (input_names, output_names), notes)
    sources[f"{name}.c"] = body
    return Model(name, dict(sorted(sources.items())), weights, plan.size, lowered.state_size, lowered, plan)


def c_type(value: Value) -> str:
    """The C type of a tensor's elements."""
    return DTYPES[value.dtype][1]


def buffers_of(lowered: Lowered) -> set[Buffer]:
    """Every buffer the calls touch."""
    return {b for c in lowered.calls for b in (*c.reads, *c.writes)}

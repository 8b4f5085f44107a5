"""The text of a generated model: NAME.h and NAME.c, and which kernel files it needs.

The model file holds a constant parameter table for every call and one function that runs the calls in order. It has no
state of its own. The text depends on nothing but the plan, so that the same program always gives the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from vqc.backends.c.interface import Outside, header_text, model_text, safe, step_arguments
from vqc.backends.c.ir import DTYPES, Arg, Array, Call, Lowered, Ref, Scratch, Struct, Value
from vqc.backends.c.plan import MemoryPlan, make_plan
from vqc.backends.c.targets import ISA_HEADER, SHARED, Variant
from vqc.backends.c.text import c_name, number
from vqc.backends.c.weights import digest, weights_file
from vqc.ops import exact

KERNELS = resources.files("vqc.backends.c") / "kernels"

# family -> source files; headers follow from the includes
FAMILIES: dict[str, tuple[str, ...]] = {
    "common": ("vqc_common.c", "vqc_cpu.c"),
    "conv_f32": ("vqc_conv_f32.c",),
    "conv_winograd": ("vqc_conv_winograd.c",),
    "conv_rows": ("vqc_conv_rows.c",),
    "conv_exact_f32": ("vqc_conv_exact_f32.c",),
    "qconv": ("vqc_qconv.c",),
    "pointwise_f32": ("vqc_pointwise_f32.c",),
    "pointwise_s64": ("vqc_pointwise_s64.c",),
    "move": ("vqc_move.c",),
    "resample": ("vqc_resample.c",),
    "pool": ("vqc_pool.c",),
    "reduce": ("vqc_reduce.c",),
    "matmul": ("vqc_matmul.c",),
    "order": ("vqc_order.c",),
    "volume": ("vqc_volume.c",),
    "sample": ("vqc_sample.c",),
    "qlinear": ("vqc_qlinear.c",),
    "masked_c4": ("vqc_masked_c4.c",),
    "bconv": ("vqc_bconv.c",),
    "signs": ("vqc_signs.c",),
    "c4": ("vqc_c4.c", "vqc_parts_c4.c"),
    "qconv_c4": ("vqc_qconv_c4.c", "vqc_qconv_dw_c4.c", "vqc_qconv_transpose_c4.c"),
}
HEADERS = {
    "conv_f32": "vqc_conv.h", "conv_exact_f32": "vqc_conv.h", "qconv": "vqc_conv.h", "pointwise_f32": "vqc_pointwise.h",
    "pointwise_s64": "vqc_pointwise.h", "move": "vqc_move.h", "resample": "vqc_resample.h", "pool": "vqc_pool.h",
    "reduce": "vqc_reduce.h", "order": "vqc_order.h", "volume": "vqc_volume.h", "sample": "vqc_sample.h",
    "matmul": "vqc_matmul.h", "qlinear": "vqc_qlinear.h", "bconv": "vqc_bconv.h", "signs": "vqc_signs.h",
    "conv_rows": "vqc_conv_rows.h", "conv_winograd": "vqc_conv_winograd.h",
    "masked_c4": "vqc_conv.h", "c4": "vqc_c4.h", "qconv_c4": "vqc_c4.h",
}  # fmt: skip
# these may fuse products and sums; nothing else may
CONTRACTED = ("vqc_conv_f32.c", "vqc_conv_winograd.c", "vqc_conv_rows.c", "vqc_matmul.c")


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


@functools.cache
def isa_header() -> str:
    """vqc_isa.h: every name of the kernels with the suffix of the instruction set, so that variants can live together.

    The same for all models, as the kernels are.
    """
    files = sorted(f.name for f in KERNELS.iterdir() if f.name.endswith((".c", ".h")))
    texts = {f: re.sub(r"(?s:/\*.*?\*/)|#include.*", " ", (KERNELS / f).read_text()) for f in files}
    shared = {f for f in files if f.replace(".h", ".c") in SHARED}
    names = {n for f in files if f not in shared for n in re.findall(r"\bvqc_[a-z0-9_]+\b", texts[f])}
    names -= {n for f in shared for n in re.findall(r"\bvqc_[a-z0-9_]+\b", texts[f])}
    for text in texts.values():  # macros keep their names, and types need no other
        names -= set(re.findall(r"#define (vqc_\w+)", text)) | set(re.findall(r"\b(?:struct|enum) (vqc_\w+)", text))
    lines = [
        "/* Kernels compiled for several instruction sets in one program: each set's have its suffix. Generated. */",
        "#ifndef VQC_ISA_H", "#define VQC_ISA_H", "",
        "#define VQC_ISA_PASTE(name, suffix) name##suffix",
        "#define VQC_ISA_EXPAND(name, suffix) VQC_ISA_PASTE(name, suffix)",
        "#define VQC_ISA(name) VQC_ISA_EXPAND(name, VQC_ISA_SUFFIX)", "",
        *(f"#define {n} VQC_ISA({n})" for n in sorted(names)), "", "#endif", "",
    ]  # fmt: skip
    return "\n".join(lines)


def kernel_sources(families: Iterable[str]) -> dict[str, str]:
    """The kernel files of some families with every header they include, by name, sorted."""
    return kernel_files([f for family in families for f in FAMILIES[family]])


def row_header(name: str, functions: Mapping[str, str]) -> str:
    """NAME_rows.h: the generated row programs, by their text; NAME_step.c alone includes it."""
    arguments = "(const float *constants, const void *const *in, void *const *out, ptrdiff_t n)"
    guard = f"{name.upper()}_ROWS_H"
    lines = [f"/* {name}: generated; pointwise operations over positions of one channel (vqc_row in vqc_c4.h).",
             " * Each operation is rounded once: compile with -ffp-contract=off. */",
             f"#ifndef {guard}", f"#define {guard}", "", '#include "vqc_row.h"', ""]  # fmt: skip
    for text, function in functions.items():
        lines += [f"static void {function}{arguments} {{", text, "}", ""]
    return "\n".join([*lines, "#endif", ""])


def kernel_files(files: Iterable[str]) -> dict[str, str]:
    """Kernel files with every header they include, by name, sorted."""
    todo = list(files)
    found: dict[str, str] = {}
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found[file] = exact_header() if file == "vqc_exact.h" else (KERNELS / file).read_text()
        todo += re.findall(r'^#include "(\w+\.h)"', found[file], re.M)
    return dict(sorted(found.items()))


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
            if isinstance(value, Struct):
                text = self.fields(value, hint)
            elif isinstance(value, Array):
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
            # A state itself is read for its old value; what lives in one is its next value (plan.remove_copies).
            ours = "W" if root.kind == "weight" else "N" if ref.writes or ref.buffer is not root else "S"
            return f"{ours}({root.place + offset})"
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
        lines = [f"    /* {safe(call.comment)} */"] if call.comment else []
        return [*lines, f"    {call.kernel}({args});"]


def _step(name: str, lowered: Lowered, emitter: _Emitter, calls: list[str]) -> str:
    """NAME_step.c: the parameter tables and the calls of a step, in order."""
    families = sorted({HEADERS[c.family] for c in lowered.calls})
    used = "\n".join(calls)
    macros = {
        "A": "#define A(offset) ((void *)(m->arena + (offset)))",
        "W": "#define W(offset) ((const void *)(m->weights + (offset)))",
        "S": "#define S(offset) ((const void *)(state + (offset)))",
        "N": "#define N(offset) ((void *)(next + (offset)))",
        "I": "#define I(index) (inputs[index])",
        "O": "#define O(index) (outputs[index])",
        "MARK": "#define MARK(call) do { if (m->mark != NULL) m->mark(m->mark_arg, call); } while (0)",
    }
    needs = {"m": "A|W|MARK", "state": "S", "next": "N", "inputs": "I", "outputs": "O"}
    unused = [f"    (void){v};" for v, k in needs.items() if not re.search(rf"\b({k})\(", used)]
    return "\n".join([
        f"/* {name}: generated; the calls of one step and their parameters. */",
        f'#include "{name}.h"', "", "#include <math.h>", "",
        *(f'#include "{h}"' for h in families), *([f'#include "{name}_rows.h"'] if lowered.row_functions else []), "",
        "#ifdef VQC_ISA_SUFFIX /* compiled once for each instruction set */",
        f"#define {name}_step VQC_ISA({name}_step)", "#endif",
        step_arguments(name) + ";", "",
        *emitter.tables, "",
        *(text for key, text in macros.items() if re.search(rf"\b{key}\(", used)), "",
        step_arguments(name) + " {",
        *unused, *(["    MARK(-1);"] if calls else []), *calls, "}", "",
    ])  # fmt: skip


def generate(lowered: Lowered, input_names: list[str], output_names: list[str], notes: Iterable[str] = (),
             variants: tuple[Variant, ...] = ()) -> Model:  # fmt: skip
    """Plan the memory of a lowered program and write its C, to be compiled for one or several `variants`."""
    plan = make_plan(lowered)
    name = c_name(lowered.name)
    emitter = _Emitter(lowered, plan, name)
    weights = weights_file(lowered.weights)
    calls = [line for i, c in enumerate(lowered.calls) for line in (*emitter.call(c), f"    MARK({i});")]
    content = "\n".join([digest(lowered.weights).hex(), *emitter.tables, *lowered.row_functions, *calls])
    outside = Outside(name, lowered, plan, len(weights), hashlib.sha256(content.encode()).hexdigest()[:16],
                      (input_names, output_names), tuple(notes), variants)  # fmt: skip
    sources = kernel_sources(["common", *sorted({c.family for c in lowered.calls})])
    sources[f"{name}.h"] = header_text(outside)
    sources[f"{name}.c"] = model_text(outside)
    sources[f"{name}_step.c"] = _step(name, lowered, emitter, calls)
    if lowered.row_functions:
        sources |= {f"{name}_rows.h": row_header(name, lowered.row_functions)} | kernel_files(["vqc_row.h"])
    if variants:
        sources[ISA_HEADER] = isa_header()
    return Model(name, dict(sorted(sources.items())), weights, plan.size, outside.state_size, lowered, plan)


def c_type(value: Value) -> str:
    """The C type of a tensor's elements."""
    return DTYPES[value.dtype][1]

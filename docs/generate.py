"""Writes the reference pages from the registries: `python docs/generate.py`, which `make docs` runs.

The pages are committed, so that they can be read without building anything; a test finds them outdated.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch._library.custom_ops import CustomOpDef

import vqc.ops
from vqc.backends.c import expand
from vqc.backends.c.registry import supported_ops
from vqc.backends.onnx import model as onnx_model
from vqc.backends.triton import chains, lowering
from vqc.cli.lists import target_rows
from vqc.pipeline import Close, Exact, Pass, passes
from vqc.recipes import RECIPES

FOLDER = Path(__file__).parent / "reference"
MADE = "<!-- made by python docs/generate.py: change what it is made from -->\n\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; "|" in a cell is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]) + "\n"


def text_of(doc: str | None) -> str:
    """A docstring as Markdown: its paragraphs as they are; what is indented deeper stays a block."""
    return re.sub(r"<(?=[A-Za-z/!])", r"\\<", inspect.cleandoc(doc or ""))


# ---- passes --------------------------------------------------------------------------------------------------------


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{w}`" for w in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"list of {_type(typing.get_args(hint)[0])}"
    if typing.get_args(hint):
        return " or ".join(_type(k) for k in typing.get_args(hint))
    return {type(None): "none", str: "text", int: "whole number", bool: "true or false", float: "number"}.get(
        hint, getattr(hint, "__name__", str(hint)))  # fmt: skip


def _promise(cls: type[Pass]) -> str:
    promise = cls.numerics
    if isinstance(promise, Exact):
        return "equal bits"
    if isinstance(promise, Close):
        return f"within {promise.rtol:g} of the largest value, and {promise.atol:g}"
    return f"lossy: {promise.floor:g} dB at least on a probe (an alarm, no bar of quality)"


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, tuple):
        return "`[" + ",".join(str(v) for v in value) + "]`"
    return f"`{str(value).lower() if value is None or isinstance(value, bool) else value}`"


def passes_page() -> str:
    """Every pass: what it does, its promise, its options."""
    parts = [MADE + "# Passes, one by one\n", "Which comes after which, in one table: [Passes](../passes.md). A pass "
             "with options is written `name{option=value}`; a pipeline is passes with commas between.\n"]  # fmt: skip
    for name, cls in sorted(passes().items()):
        doc = text_of(cls.__doc__).removeprefix(f"{name}:").strip()
        parts.append(f"## {name}\n\n{doc[:1].upper() + doc[1:]}\n")
        parts.append(f"Promise: {_promise(cls)}. Source: [passes/{name.replace('-', '_')}.py]"
                     f"(../../passes/{name.replace('-', '_')}.py).\n")  # fmt: skip
        hints = typing.get_type_hints(cls)
        rows = [(f"`{f.name}`", _type(hints[f.name]), _default(f)) for f in dataclasses.fields(cls)]
        if rows:
            parts.append(table(("option", "values", "default"), rows))
    return "\n".join(parts)


# ---- recipes -------------------------------------------------------------------------------------------------------


def recipes_page() -> str:
    """Every recipe with its pipeline."""
    rows = [(f"[`{r.name}`](#{r.name})", r.about, "yes" if r.needs_calibration else "") for r in RECIPES.values()]
    parts = [MADE + "# Recipes\n", "A recipe is a pipeline with a name. Which one to take: "
             "[Quantization](../quantization.md). What each pass does: [Passes](passes.md). A pipeline's text stands "
             "wherever a recipe's name does, so a recipe is changed by copying its text.\n",
             table(("recipe", "for", "needs clips"), rows)]  # fmt: skip
    for r in RECIPES.values():
        wrapped = re.sub(r",(?=[a-z0-9-]+(?:\{|,|$))(?![^{]*\})", ",\n", r.pipeline)
        parts.append(f"## {r.name}\n\n{r.about[:1].upper() + r.about[1:]}.\n\n```text\n{wrapped}\n```\n")
    return "\n".join(parts)


# ---- operators -----------------------------------------------------------------------------------------------------


def _vqc_ops() -> dict[str, CustomOpDef]:
    found = [v for v in vars(vqc.ops).values() if isinstance(v, CustomOpDef)]
    return {op._qualname: op for op in sorted(found, key=lambda op: op._qualname)}


def _triton_ops() -> set[str]:
    names = {*lowering.CONVOLUTIONS, *lowering.TRANSPOSED, *lowering.LINEAR, *lowering.BINARY, *lowering.FLOATS,
             *lowering.MOVES, "vqc.mean_hw", "vqc.binarize", *chains.ALONE, *chains.SYMMETRIC, *chains.ORDERED,
             *chains.CLAMPS, *chains.QUANTIZERS, "aten.prelu"}  # fmt: skip
    return {name.replace(".", "::", 1) for name in names} | {"getitem"}


def takers(op: str) -> dict[str, str]:
    """How each backend takes an operator (a name like "aten::add.Tensor"): "yes", "in parts", "opaque" or nothing."""
    in_parts = op in expand._EXPANSIONS
    return {"C": "yes" if op in supported_ops() else "in parts" if in_parts else "",
            "ONNX": "yes" if op in onnx_model.RULES else "",
            "Triton": "yes" if op in _triton_ops() else "",
            "Inductor": "opaque" if op.startswith("vqc::") else "yes", "reference": "yes"}  # fmt: skip


def operators_page() -> str:
    """Every `vqc::` operator: signature, exact meaning, dtypes, backends."""
    parts = [
        MADE + "# Operators\n",
        "`import vqc` registers these with PyTorch, as `torch.ops.vqc.NAME`. Each has one "
        "exact meaning. Integers are exact; every written float operation is rounded once to float32, ties to "
        "even, and nothing is contracted. The tests hold the kernels of C and Triton to that, bit for bit, and "
        "those of the target `onnx:exact`; plain `onnx` differs in last bits. Beside these a Program holds `aten` "
        "operators and PyTorch's `quantized_decomposed` ones: [which backend takes what](support.md).\n",
    ]
    for name, op in _vqc_ops().items():
        arguments = str(op._opoverload._schema).removeprefix(name).replace("SymInt", "int")
        kernels = [b for b, how in takers(name).items() if how == "yes" and b != "reference"]
        parts.append(f"## {name}\n\n```text\n{name.split('::')[1]}{arguments}\n```\n")
        parts.append(text_of(op._init_fn.__doc__) + "\n")
        parts.append(f"Kernels: {', '.join(kernels) or 'none (PyTorch computes it)'}. "
                     f"{'' if op._backward_fn is None else 'Has a gradient. '}Source: "
                     f"[{_source(op)}](../../{_source(op)}).\n")  # fmt: skip
    return "\n".join(parts)


def _source(op: CustomOpDef) -> str:
    return "vqc/ops/" + Path(inspect.getsourcefile(op._init_fn) or "").name


# ---- the support matrix --------------------------------------------------------------------------------------------


def support_page() -> str:
    """Every operator that some backend of ours knows, and all targets."""
    known = {*supported_ops(), *expand._EXPANSIONS, *onnx_model.RULES, *_triton_ops(), *_vqc_ops()} - {"getitem"}
    parts = [
        MADE + "# Which backend takes what\n",
        "From the backends' own tables of rules. A rule can still decline one case of an operator (a dtype, a mode, a "
        "weight that is computed at run time); `vqc inspect` and the report of `vqc.compile` then give the reason, and "
        "[PyTorch computes it](../howto/unsupported.md). *In parts*: it is replaced by other operators of this table. "
        "*Opaque*: Inductor calls the reference. In 8 bits a layer is a `vqc::q...` operator, in one bit a "
        "`vqc::bconv2d`; the rest of a quantized program are the same float operators.\n",
    ]  # fmt: skip
    for title, prefix in (("Operators of vqc", "vqc::"), ("Quantizers", "quantized_decomposed::"), ("ATen", "aten::"),
                          ("Others", "")):  # fmt: skip
        names = sorted(n for n in known if n.startswith(prefix))
        known -= set(names)
        if names:
            columns = ("C", "ONNX", "Triton", "Inductor")
            rows = [(f"`{n.removeprefix(prefix)}`", *(takers(n)[c] for c in columns)) for n in names]
            parts.append(f"## {title}\n\n" + table(("operator", *columns), rows))
    rows = [(f"`{r['target']}`", r["what"], r["instruction sets"]) for r in target_rows()]
    parts.append("## Targets\n\n" + table(("target", "what", "instruction sets"), rows))
    return "\n".join(parts)


PAGES = {"passes.md": passes_page, "recipes.md": recipes_page, "operators.md": operators_page,
         "support.md": support_page}  # fmt: skip


def outdated() -> list[str]:
    """The pages whose file does not hold what the registries say now."""
    return [n for n, page in PAGES.items() if not (FOLDER / n).is_file() or (FOLDER / n).read_text() != page()]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(f"outdated, run make docs: {', '.join(names)}" if (names := outdated()) else 0)
    FOLDER.mkdir(exist_ok=True)
    for name in outdated():
        (FOLDER / name).write_text(PAGES[name]())
        print(f"wrote {FOLDER / name}")

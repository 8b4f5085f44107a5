"""A Program as text: its operators, tensors and values as people read them, in printouts, histories and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from vqc.program import Program

DTYPE_NAMES = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.uint8: "u8",
    torch.int8: "s8", torch.int16: "s16", torch.int32: "s32", torch.int64: "s64", torch.bool: "bool",
    torch.complex64: "c64",
}  # fmt: skip


def tensor_text(value: Any) -> str:
    """`f32[1,3,8,8]` for a tensor, a parenthesised list for a tuple of them."""
    if isinstance(value, torch.Tensor):
        return f"{DTYPE_NAMES.get(value.dtype, str(value.dtype))}[{','.join(str(s) for s in value.shape)}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(tensor_text(v) for v in value) + ")"
    return type(value).__name__


def op_text(target: Any) -> str:
    """`aten.conv2d` for `torch.ops.aten.conv2d.default`; the overload is shown when it is not the default one."""
    if isinstance(target, torch._ops.OpOverload):
        name = target.name().replace("::", ".")
        return name.removesuffix(".default")
    return getattr(target, "__name__", str(target))


def short_name(target: Any) -> str:
    """`conv2d` for `aten.conv2d.default`: what a node of this operator is called, before it is numbered."""
    if isinstance(target, torch._ops.OpOverload):
        return target.name().split("::")[1].split(".")[0].lstrip("_")
    return getattr(target, "__name__", "call")


def program_text(program: Program) -> str:
    """A line for every input, state, call, result and assumption."""
    lines = [f"program {program.name}"]
    for i in program.inputs:
        known = f" in [{i.known_range[0]:g}, {i.known_range[1]:g}]" if i.known_range else ""
        frames = f" {i.frames}" if i.frames else ""
        lines.append(
            f"  input {i.name}: {DTYPE_NAMES.get(i.dtype, i.dtype)}{list(i.shape)}{known}{frames}".replace(", ", ",")
        )
    results = program.result_nodes
    for s in program.states:
        known = f" in [{s.known_range[0]:g},{s.known_range[1]:g}]" if s.known_range else ""
        lines.append(f"  state {s.input}: {tensor_text(s.reset)}{known} <- {results[s.output]}")
    for n in program.calls:
        lines.append(f"  {n.name}: {tensor_text(n.meta.get('val'))} = {op_text(n.target)}({_args_text(program, n)})")
    for name, n in zip(program.outputs, results, strict=False):
        lines.append(f"  return {name} = {n}")
    for a in program.assumptions:
        lines.append(f"  assume {results[a.output]} is {a.expected}  # {a.text}")
    return "\n".join(lines)


def _args_text(program: Program, node: fx.Node) -> str:
    defaults: list[Any] = []
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema.arguments
        defaults = [a.default_value if a.has_default_value() else ... for a in schema]
    args = list(node.args)
    while (
        args
        and len(args) <= len(defaults)
        and defaults[len(args) - 1] is not ...
        and args[-1] == defaults[len(args) - 1]
    ):
        args.pop()
    shown = [_value_text(program, a) for a in args]
    shown += [f"{k}={_value_text(program, v)}" for k, v in node.kwargs.items()]
    return ", ".join(shown)


def summary_text(program: Program) -> str:
    """One line: operators, weights, states, frames (what was captured)."""
    weights = sum(v.numel() for v in program.constants.values() if isinstance(v, torch.Tensor))
    size = sum(v.numel() * v.element_size() for v in program.constants.values() if isinstance(v, torch.Tensor))
    kinds = len({op_text(n.target) for n in program.calls})
    framed = sum(1 for i in program.inputs if i.frames is not None)
    return (
        f"{program.name}: {len(program.calls)} operators of {kinds} kinds, {weights:,} weights ({size / 1e6:.2f} MB), "
        f"{len(program.inputs)} inputs ({framed} with a time axis), {len(program.outputs)} results, "
        f"{len(program.states)} states"
    )


def _value_text(program: Program, value: Any) -> str:
    if isinstance(value, fx.Node):
        if value.op == "get_attr":
            const = program.constants.get(str(value.target))
            if isinstance(const, torch.Tensor):
                return f"{value.target}" if const.numel() != 1 else f"{const.item():g}"
        return value.name
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_value_text(program, v) for v in value) + "]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, torch.dtype):
        return DTYPE_NAMES.get(value, str(value))
    return str(value)

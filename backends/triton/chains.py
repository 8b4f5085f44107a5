"""Which pointwise calls of a graph follow a value into one kernel, and what is stored at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from vqc.backends.triton.epilogue import FLAGS, Epilogue, Levels, Step
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, op_text, shape_of

ALONE = {
    "aten.relu": "relu", "vqc.hardsigmoid": "hardsigmoid", "vqc.hardswish": "hardswish", "vqc.sigmoid": "sigmoid",
    "vqc.tanh": "tanh", "vqc.silu": "silu", "aten.abs": "abs",
}  # fmt: skip
SYMMETRIC = {"aten.add.Tensor": "add", "aten.mul.Tensor": "mul"}
ORDERED = {"aten.sub.Tensor": "sub", "aten.rsub.Scalar": "rsub", "aten.rsub.Tensor": "rsub",
           "aten.div.Tensor": "div"}  # fmt: skip
COMPARED = {f"aten.{kind}.{of}": kind for kind in ("gt", "ge", "lt", "le") for of in ("Scalar", "Tensor")}
TURNED = {"sub": "rsub", "rsub": "sub", "gt": "lt", "lt": "gt", "ge": "le", "le": "ge"}
CLAMPS = ("aten.clamp", "aten.clamp_min", "aten.clamp_max", "aten.hardtanh", "aten.relu6")
QUANTIZERS = ("quantized_decomposed.quantize_per_tensor", "quantized_decomposed.quantize_per_tensor.tensor",
              "quantized_decomposed.quantize_per_channel")  # fmt: skip


@dataclass(frozen=True)
class Operand:
    """One step with what it reads: a number, a node, or nothing."""

    kind: str
    place: str
    value: Any = None


@dataclass(frozen=True)
class Chain:
    """Calls that run in one kernel after a value: the steps, the calls they are, the quantizer and the signs fused.

    `stored`: how the end itself is stored where it is no float picture (levels of a requantizing layer, flags, signs).
    """

    steps: tuple[Operand, ...]
    nodes: tuple[fx.Node, ...]
    end: fx.Node
    levels: fx.Node | None
    signs: fx.Node | None
    value: bool  # whether the end's own value is read by anybody else
    stored: Levels | None = None


def is_picture(node: Any) -> bool:
    """Whether a node is a float32 tensor of four axes with something in it."""
    val = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(val, torch.Tensor) and val.dtype == torch.float32 and val.ndim == 4 and val.numel() > 0


def is_flags(node: Any) -> bool:
    """Whether a node is a bool tensor of four axes with something in it."""
    val = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(val, torch.Tensor) and val.dtype == torch.bool and val.ndim == 4 and val.numel() > 0


def place_of(shape: tuple[int, ...], of: tuple[int, ...]) -> str | None:
    """How an operand of one shape lies beside pictures of another ("full", "channel" ..), None when it does not fit."""
    n, c, h, w = of
    if shape == of:
        return "full"
    if all(s == 1 for s in shape) and len(shape) <= 4:
        return "one"
    padded = (1,) * (4 - len(shape)) + shape
    named = {(1, c, 1, 1): "channel", (n, c, 1, 1): "image", (n, 1, h, w): "plane"}
    return named.get(padded)


def _with(program: Program, node: fx.Node, kind: str, other: Any) -> list[Operand] | None:
    if isinstance(other, (int, float)) and not isinstance(other, bool):
        return [Operand(kind, "one", float(other))]
    if not isinstance(other, fx.Node) or not isinstance(other.meta.get("val"), torch.Tensor):
        return None
    if dtype_of(other) != torch.float32:
        return None
    place = place_of(shape_of(other), shape_of(node))
    return None if place is None else [Operand(kind, place, other)]


def steps_of(program: Program, node: fx.Node, value: fx.Node) -> list[Operand] | None:
    """What a call does to one of its operands, as steps; None when it is no step on it."""
    name = op_text(node.target)
    if name == "aten._to_copy" and is_flags(value) and is_picture(node) and shape_of(node) == shape_of(value):
        return []  # in a kernel, flags are 1.0 and 0.0
    compared = name in COMPARED
    if not (is_flags if compared else is_picture)(node) or not is_picture(value) or shape_of(node) != shape_of(value):
        return None
    if name in ALONE:
        return [Operand(ALONE[name], "")]
    if name in SYMMETRIC or name in ORDERED or compared:
        if argument(node, "alpha", 1) != 1:
            return None
        first, second = node.args[0], node.args[1]
        kind = SYMMETRIC.get(name) or ORDERED.get(name) or COMPARED[name]
        if first is value:
            return _with(program, node, kind, second)
        turned = None if kind == "div" else TURNED.get(kind, kind)
        return _with(program, node, turned, first) if second is value and turned else None
    if node.args[0] is not value:
        return None
    if name == "aten.prelu":
        slope = node.args[1]
        c, count = shape_of(node)[1], shape_of(slope)[0] if shape_of(slope) else 1
        return [Operand("prelu", "channel" if count == c and c > 1 else "one", slope)] if count in (1, c) else None
    if name in CLAMPS:
        return _clamp(node, name)
    return None


def _clamp(node: fx.Node, name: str) -> list[Operand] | None:
    low = {"aten.relu6": 0.0}.get(name, argument(node, "min", argument(node, "min_val")))
    high = {"aten.relu6": 6.0}.get(name, argument(node, "max", argument(node, "max_val")))
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    found = [Operand("least", "one", float(low))] if low is not None else []
    return found + ([Operand("most", "one", float(high))] if high is not None else [])


def quantizer(program: Program, node: fx.Node) -> Levels | None:
    """What a quantizer's call does, None when its scale is not constant or its levels are not 8 bits."""
    name = op_text(node.target)
    if name not in QUANTIZERS or not is_picture(node.args[0]):
        return None
    dtype = argument(node, "dtype")
    if dtype not in (torch.uint8, torch.int8):
        return None
    low, high = argument(node, "quant_min"), argument(node, "quant_max")
    if name == QUANTIZERS[2]:
        scales, zeros = (program.constant(argument(node, k)) for k in ("scales", "zero_points"))
        if scales is None or zeros is None or scales.dtype != torch.float32 or argument(node, "axis") != 1:
            return None
        return Levels(1.0 / scales, zeros.to(torch.float32), int(low), int(high), dtype)
    numbers = []
    for k in ("scale", "zero_point"):
        value = argument(node, k)
        tensor = program.constant(value)
        if isinstance(value, fx.Node) and tensor is None:
            return None
        numbers.append(value if tensor is None else tensor.reshape(-1)[0].item())
    # 1 / scale in double, rounded to float32 by its use: as the operator does.
    inv, zero = torch.tensor([1.0 / float(numbers[0])]), torch.tensor([float(numbers[1])])
    return Levels(inv, zero, int(low), int(high), dtype)


def grow(program: Program, head: fx.Node, first: list[Operand], packs: set[fx.Node], taken: set[fx.Node], *,
         signs: bool = True) -> Chain:  # fmt: skip
    """The longest chain that begins with a value: `head`, after its own steps `first`.

    packs: the `vqc::binarize` calls whose result only binary convolutions read; taken: calls that another chain has.
    """
    steps, nodes, end = list(first), [head], head
    results = set(program.result_nodes)
    while end not in results and len(end.users) == 1 and (is_picture(end) or is_flags(end)):
        user = next(iter(end.users))
        more = None if user in taken or user.op != "call_function" else steps_of(program, user, end)
        if more is None or any(o.value is end for o in more):
            break
        steps += more
        nodes.append(user)
        end = user
    free = [u for u in end.users if u not in taken]
    levels = next((u for u in free if quantizer(program, u) is not None), None) if is_picture(end) else None
    packed = next((u for u in free if u in packs), None) if signs else None
    others = [u for u in end.users if u not in (levels, packed)]
    stored = FLAGS if is_flags(end) else None
    return Chain(tuple(steps), tuple(nodes), end, levels, packed, bool(others) or end in results, stored)


def epilogue(program: Program, chain: Chain) -> tuple[Epilogue, list[fx.Node]]:
    """A chain as the kernels' epilogue, and the nodes of its run-time operands in order."""
    steps: list[Step] = []
    given: list[fx.Node] = []
    for o in chain.steps:
        held: torch.Tensor | int | None = None
        if isinstance(o.value, float):
            held = torch.tensor([o.value], dtype=torch.float32)
        elif isinstance(o.value, fx.Node):
            constant = program.constant(o.value)
            held = constant if constant is not None and o.place in ("channel", "one") else len(given)
            if isinstance(held, int):
                given.append(o.value)
            else:
                held = constant.reshape(-1).contiguous()
        steps.append(Step(o.kind, o.place, held))
    levels = chain.stored if chain.levels is None else quantizer(program, chain.levels)
    tau = None
    if chain.signs is not None:  # a test against a threshold gives 1 and -1
        tested = op_text(chain.signs.target) != "vqc.binarize"
        tau = torch.zeros(1) if tested else program.constant(argument(chain.signs, "tau"))
    return Epilogue(tuple(steps), chain.value and chain.stored is None, levels, tau), given


def results_of(chain: Chain) -> dict[str, fx.Node]:
    """Which node each result of a chain's kernel is, by its name in `Results`."""
    if chain.stored is not None:
        return {"levels": chain.end}
    gives = {"value": chain.end if chain.value else None, "levels": chain.levels, "signs": chain.signs}
    return {k: v for k, v in gives.items() if v is not None}

"""fold-constants: what depends on no input is computed once."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.arguments import is_random, op_name
from vqc.pipeline import Exact, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program

# Operators that only spread what they read over more elements: cheap to do again, dear to store.
SPREADING = {
    "aten.expand", "aten.expand_as", "aten.broadcast_to", "aten.repeat", "aten.tile", "aten.full", "aten.zeros",
    "aten.ones", "aten.full_like", "aten.zeros_like", "aten.ones_like", "aten.new_zeros", "aten.new_ones",
    "aten.new_full", "aten.scalar_tensor",
}  # fmt: skip
SMALL = 64 * 1024  # bytes a spread constant may have and still be stored: below this a kernel call costs more
STAYS_LOW_BIT = {"quantized_decomposed.dequantize_per_tensor", "quantized_decomposed.dequantize_per_channel"}


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """f(constants) -> constant.

    Preconditions
    1. Everything the operator reads is a constant or the result of such an operator (factories read nothing); a state
       or an input is neither, and nothing that depends on one is folded.
    2. It draws no random numbers and reads no unwritten memory.
    3. It is an operator with a schema whose results are tensors, and no dequantization: the constant behind one is
       kept in few bits on purpose.
    4. The new constants are at most `max_growth` bytes bigger, in total, than what they are made of. An operator
       that only spreads its input (expand, repeat, zeros) stays when it makes more than 64 KiB out of it; its input
       is folded all the same.

    Valid before: any Program. Valid after: no foldable operator is left but the declined ones. Counts "fold" for
    every new constant and "remove" for every operator that went away.
    """

    max_growth: int = 64 * 1024 * 1024

    name: ClassVar[str] = "fold-constants"
    numerics: ClassVar[Numerics] = Exact()

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        chosen = self._choose(result, _roots(program))
        before = len(program.calls)
        values: dict[fx.Node, Any] = {}
        # in graph order, so that a constant's name and place do not depend on how it was found
        for node in [n for n in program.calls if n in chosen]:
            # strides are kept: the bits of what reads a constant may depend on them
            value = _compute(program, node, values).clone(memory_format=torch.preserve_format)
            constant = program.add_constant(f"{node.name}_value", value)
            constant.meta.update({k: node.meta[k] for k in ("source", "module", "observed", "quant") if k in node.meta})
            values[constant] = value
            node.replace_all_uses_with(constant)
            result.count("fold")
        program.drop_dead()
        if before > len(program.calls):
            result.count("remove", before - len(program.calls))
        result.declined.reverse()  # found from the end; told in graph order
        return result

    def _choose(self, result: PassResult, roots: dict[fx.Node, frozenset[fx.Node]]) -> set[fx.Node]:
        """The calls to turn into constants: each as late in the graph as possible, all within the budget."""
        chosen: set[fx.Node] = set()
        left: set[fx.Node] = set()  # could be computed now but will not: what they read is needed as constants
        paid_for: set[fx.Node] = set()
        budget = self.max_growth
        for node in reversed(result.program.calls):
            if node not in roots or not any(u not in roots or u in left for u in node.users):
                continue
            value = node.meta["val"]
            if isinstance(value, (tuple, list)):  # its getitems are constants, or stay
                left.add(node)
                continue
            size = _bytes(value)
            spread = size - sum(_bytes(n.meta["val"]) for n in node.all_input_nodes)
            if op_name(node.target) in SPREADING and spread > SMALL:
                left.add(node)
                result.decline(node, f"it spreads {size - spread} bytes over {size}: done at every step, not stored")
                continue
            freed = {r for r in roots[node] - paid_for if all(u in roots for u in r.users)}
            growth = size - sum(_bytes(r.meta["val"]) for r in freed)
            if growth > budget:
                left.add(node)
                result.decline(node, f"it would add {growth} bytes of constants, max_growth leaves {budget}")
                continue
            budget -= max(growth, 0)
            paid_for |= freed
            chosen.add(node)
        return chosen


def _roots(program: Program) -> dict[fx.Node, frozenset[fx.Node]]:
    """The constants behind every node that depends on nothing else (none for what a factory makes)."""
    roots: dict[fx.Node, frozenset[fx.Node]] = {}
    for n in program.graph.nodes:
        if n.op == "get_attr" and program.constant(n) is not None:
            roots[n] = frozenset({n})
        elif n.op == "call_function" and _computable(n) and all(a in roots for a in n.all_input_nodes):
            roots[n] = frozenset().union(*(roots[a] for a in n.all_input_nodes))
    return roots


def _computable(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return isinstance(node.meta["val"], torch.Tensor)
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    value = node.meta["val"]
    tensors = value if isinstance(value, (tuple, list)) else (value,)
    plain = not is_random(node.target) and op_name(node.target) not in STAYS_LOW_BIT
    return plain and bool(tensors) and all(isinstance(v, torch.Tensor) for v in tensors)


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(v) for v in value)


def _compute(program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The value of a node that depends on constants only, and of everything before it, each computed once."""
    stack = [node]
    while stack:
        n = stack[-1]
        missing = [a for a in n.all_input_nodes if a not in values]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        if n.op == "get_attr":
            values[n] = program.constants[str(n.target)]
        elif n not in values:
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), values.__getitem__)
            with torch.no_grad():
                values[n] = n.target(*args, **kwargs)
    return values[node]

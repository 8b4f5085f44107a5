"""Which operator the C backend can take, and how: a table by (operator, target); the target's own rule wins.

A rule has `check`, which gives None or the reason it cannot take a node, and `lower`, which turns the node into kernel
calls. Rules live in `lowering/`, one topic a file, and register themselves when that package is imported.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from vqc.backends.c.ir import DTYPES
from vqc.program import DTYPE_NAMES, Program, op_text

if TYPE_CHECKING:
    from vqc.backends.c.lower import Lowering

Check = Callable[[Program, fx.Node], str | None]
Lower = Callable[["Lowering", fx.Node], None]


@dataclass(frozen=True)
class Rule:
    """How one operator is taken."""

    check: Check
    lower: Lower


_RULES: dict[tuple[str, str | None], Rule] = {}


def op_name(target: Any) -> str:
    """The key of an operator: "aten::add.Tensor", "aten::relu", "getitem"."""
    if isinstance(target, torch._ops.OpOverload):
        return target.name()
    return "getitem" if target is operator.getitem else getattr(target, "__name__", str(target))


def register_lowering(op: str, rule: Rule, target: str | None = None) -> None:
    """Make a rule known for an operator (by `op_name`), for all targets or for one."""
    _RULES[(op, target)] = rule


def lowering(*ops: str, check: Check, target: str | None = None) -> Callable[[Lower], Lower]:
    """Decorator: register a function as the lowering of these operators."""

    def wrap(f: Lower) -> Lower:
        for op in ops:
            register_lowering(op, Rule(check, f), target)
        return f

    return wrap


def rule_for(op: Any, target: str | None) -> Rule | None:
    """The rule of an operator on a target, the target's own before the common one."""
    import vqc.backends.c.lowering  # noqa: F401  registers the built-in rules

    name = op_name(op)
    return _RULES.get((name, target)) or _RULES.get((name, None))


def supported_ops() -> list[str]:
    """All operators with a rule, sorted."""
    import vqc.backends.c.lowering  # noqa: F401

    return sorted({op for op, _ in _RULES})


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in a node's "val", flat."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, (tuple, list)) else []


def why_not(program: Program, node: fx.Node, target: str) -> str | None:
    """None when a rule takes this call on this target, else the reason there is none."""
    from vqc.backends.c.expand import alone, expandable, is_empty, reads_nothing

    if is_empty(node) or reads_nothing(program, node):
        return None  # there is nothing to compute
    if expandable(node):
        small = alone(program, node)
        if node.name not in {n.name for n in small.calls}:
            inner = ((n, why_not(small, n, target)) for n in small.calls)
            return next((f"{op_text(n.target)} in it: {reason}" for n, reason in inner if reason is not None), None)
    rule = rule_for(node.target, target)
    if rule is None:
        return f"there is no C kernel for {op_text(node.target)}"
    for n in (node, *node.all_input_nodes):
        for t in tensors(n.meta.get("val")):
            if t.dtype not in DTYPES:
                way_out = " (capture the module in float32: module.float())" if t.dtype.is_floating_point else ""
                return f"{n.name} is {DTYPE_NAMES.get(t.dtype, str(t.dtype))}, which the C kernels do not know{way_out}"
            if t.numel() == 0 and op_name(node.target) not in ("aten::cat", "getitem"):
                return f"{n.name} is empty"
            if t.numel() >= 2**31:
                return f"{n.name} has 2^31 elements or more"
    return rule.check(program, node)


def only(*dtypes: torch.dtype) -> Check:
    """A check: every tensor the call reads or makes has one of these dtypes."""

    def check(program: Program, node: fx.Node) -> str | None:
        for n in (*node.all_input_nodes, node):
            for t in tensors(n.meta.get("val")):
                if t.dtype not in dtypes:
                    names = ", ".join(DTYPE_NAMES[d] for d in dtypes)
                    return f"{n.name} is {DTYPE_NAMES[t.dtype]}; this kernel takes {names}"
        return None

    return check


def all_of(*checks: Check) -> Check:
    """The first reason any of these checks gives."""

    def check(program: Program, node: fx.Node) -> str | None:
        return next((r for r in (c(program, node) for c in checks) if r is not None), None)

    return check


def anything(program: Program, node: fx.Node) -> str | None:
    """A check without a condition."""
    return None


FLOATS = only(torch.float32)

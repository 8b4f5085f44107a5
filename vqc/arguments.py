"""A call's arguments by the names of its operator's schema, whatever way they were written."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx


def op_name(target: Any) -> str:
    """`aten.conv2d` for every overload of conv2d, `getitem` for `operator.getitem`, the name of a higher-order op."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.replace("::", ".")
    if target is operator.getitem:
        return "getitem"
    return getattr(target, "__name__", str(target))


def bind(node: fx.Node) -> dict[str, Any]:
    """Every argument of an operator's call by name, defaults filled in.

    Raises TypeError when the node does not call an operator with a schema.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        raise TypeError(f"{node.name} calls {node.target}, which has no schema")
    bound: dict[str, Any] = {}
    for i, a in enumerate(node.target._schema.arguments):
        if i < len(node.args) and not a.kwarg_only:
            bound[a.name] = node.args[i]
        elif a.name in node.kwargs:
            bound[a.name] = node.kwargs[a.name]
        elif a.has_default_value():
            bound[a.name] = a.default_value
    return bound


def rebind(node: fx.Node, **changed: Any) -> None:
    """Change arguments of an operator's call in place, by name.

    The call keeps the shape it has: a positional argument stays positional, the gaps before it are filled with the
    schema's defaults.
    """
    bound = {**bind(node), **changed}
    schema = [a for a in node.target._schema.arguments if not a.kwarg_only]
    places = {a.name: i for i, a in enumerate(schema)}
    last = max([len(node.args) - 1, *(places[n] for n in changed if n in places and n not in node.kwargs)])
    node.args = tuple(bound[a.name] for a in schema[: last + 1])
    node.kwargs = {k: bound[k] for k in node.kwargs if places.get(k, last + 1) > last}


def is_random(target: Any) -> bool:
    """Whether an operator draws random numbers, or reads memory nobody wrote (`empty`)."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.nondeterministic_seeded in target.tags or "empty" in target._schema.name


# Elementwise in all their tensor arguments, though PyTorch does not tag them so.
_UNTAGGED = {
    "aten.hardswish", "aten.log_sigmoid", "aten.rsub", "aten.where", "aten.masked_fill", "aten.floor_divide",
    "aten.true_divide", "aten.divide", "aten.multiply", "aten.subtract", "aten.negative", "aten.absolute",
    "aten.greater", "aten.less", "vqc.sigmoid", "vqc.tanh", "vqc.exp", "vqc.hardsigmoid", "vqc.hardswish", "vqc.silu",
}  # fmt: skip


def is_elementwise(target: Any) -> bool:
    """Whether every element of an operator's result comes from the elements at its place, broadcasting aside."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or op_name(target) in _UNTAGGED

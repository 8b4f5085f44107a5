"""Operators put together from others: they are replaced in a copy of the Program before it is lowered.

An expansion is a function (expander, node) that makes the calls and gives what stands for the node's result: a node, a
tuple of nodes for an operator with several results, or None when the operator's own rule shall take this one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from vqc.backends.c.registry import op_name
from vqc.ops.exact import argument
from vqc.program import Program, dtype_of, shape_of

Expansion = Callable[["Expander", fx.Node], "fx.Node | tuple[Any, ...] | None"]
When = Callable[[fx.Node], bool]

_EXPANSIONS: dict[str, tuple[Expansion, When]] = {}


def expansion(*ops: str, when: When = lambda node: True) -> Callable[[Expansion], Expansion]:
    """Decorator: register a function as the expansion of these operators, for the calls of which `when` is true."""

    def wrap(f: Expansion) -> Expansion:
        _EXPANSIONS.update((op, (f, when)) for op in ops)
        return f

    return wrap


def _rule(node: fx.Node) -> Expansion | None:
    found = _EXPANSIONS.get(op_name(node.target))
    return found[0] if found is not None and found[1](node) else None


class Expander:
    """Makes calls before a node. Numbers may stand for tensors where the ATen operator takes them."""

    def __init__(self, program: Program, node: fx.Node):
        self.program, self.node = program, node
        self.made: list[fx.Node] = []

    def __call__(self, op: str, *args: Any, **kwargs: Any) -> fx.Node:
        """`e("add.Tensor", x, y)` is aten.add.Tensor; without an overload, the default one."""
        packet, _, overload = op.partition(".")
        target = getattr(getattr(torch.ops.aten, packet), overload or "default")
        made = self.program.call(target, args, kwargs, like=self.node)
        self.made.append(made)
        return made

    def both(self, op: str, a: Any, b: Any) -> fx.Node:
        """A binary operator of a tensor with a tensor or a number."""
        return self(f"{op}.{'Tensor' if isinstance(b, fx.Node) else 'Scalar'}", a, b)

    def const(self, value: torch.Tensor, name: str = "constant") -> fx.Node:
        return self.program.add_constant(f"{self.node.name}_{name}", value)

    def item(self, node: fx.Node, index: int) -> fx.Node:
        made = self.program.call(operator.getitem, (node, index), like=self.node)
        self.made.append(made)
        return made

    def cast(self, x: fx.Node, dtype: torch.dtype) -> fx.Node:
        """x in a dtype, itself if it has it."""
        return x if dtype_of(x) == dtype else self("_to_copy", x, dtype=dtype)

    def scaled(self, x: fx.Node, factor: float) -> fx.Node:
        return x if factor == 1 else self("mul.Scalar", x, factor)

    def shape(self, x: fx.Node) -> tuple[int, ...]:
        return shape_of(x)

    def arg(self, name: str) -> Any:
        """The expanded node's argument by its schema name."""
        return argument(self.node, name)


def _replace(program: Program, node: fx.Node, result: Any) -> None:
    if isinstance(result, tuple):
        for user in [u for u in node.users if u.target is operator.getitem]:
            user.replace_all_uses_with(result[int(user.args[1])])
            program.graph.erase_node(user)
    else:
        node.replace_all_uses_with(result)
    program.graph.erase_node(node)


def _expand(program: Program, node: fx.Node, origin: str) -> None:
    rule = _rule(node)
    if rule is None:
        return
    with program.graph.inserting_before(node):
        e = Expander(program, node)
        result = rule(e, node)
    if result is None:
        return
    _replace(program, node, result)
    for made in e.made:
        made.meta["origin"] = origin
        _expand(program, made, origin)


def expandable(node: fx.Node) -> bool:
    """Whether a call's operator has an expansion."""
    import vqc.backends.c.lowering  # noqa: F401  registers them

    return _rule(node) is not None


def is_empty(node: fx.Node) -> bool:
    """Whether a node's value is a tensor without elements."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.numel() == 0


def reads_nothing(program: Program, node: fx.Node) -> bool:
    """Whether what a call reads is known beforehand: empty tensors, one at least, and constants."""
    given = node.all_input_nodes
    return any(map(is_empty, given)) and all(is_empty(n) or program.constant(n) is not None for n in given)


def _fill_in_empty(program: Program) -> None:
    """Calls with an empty result, or made of empty tensors alone, become constants; a cat leaves empty parts out."""

    def known(n: fx.Node) -> torch.Tensor | None:
        return torch.empty(n.meta["val"].shape, dtype=n.meta["val"].dtype) if is_empty(n) else program.constant(n)

    for node in program.calls:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        if is_empty(node):
            tensor = torch.empty(value.shape, dtype=value.dtype)
        elif reads_nothing(program, node):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known)
            tensor = node.target(*args, **kwargs)
        else:
            if op_name(node.target) == "aten::cat":
                node.update_arg(0, [a for a in node.args[0] if not is_empty(a)])
            continue
        node.replace_all_uses_with(program.add_constant(f"{node.name}_constant", tensor))


def expanded(program: Program) -> Program:
    """The Program with all expansions carried out; `meta["origin"]` of a new call names the one it comes from."""
    nothing = any(is_empty(n) or reads_nothing(program, n) for n in program.calls)
    if not nothing and not any(map(expandable, program.calls)):
        return program
    copy = program.clone()
    if nothing:
        _fill_in_empty(copy)
        copy.drop_dead()
    for node in copy.calls:
        _expand(copy, node, node.name)
    copy.drop_dead()
    return copy


def alone(program: Program, node: fx.Node) -> Program:
    """A small Program of one call, expanded: what it reads are inputs, constants stay constants."""
    small = Program(program.name, fx.Graph(), {}, (), ())
    copies: dict[fx.Node, fx.Node] = {}
    for a in node.all_input_nodes:
        if a.op == "get_attr":
            small.constants[str(a.target)] = program.constants[str(a.target)]
            copies[a] = small.graph.create_node("get_attr", str(a.target), name=a.name)
        else:
            copies[a] = small.graph.placeholder(a.name)
        copies[a].meta = dict(a.meta)
    copy = small.graph.node_copy(node, copies.__getitem__)
    copy.meta = dict(node.meta)
    value = node.meta["val"]
    results: tuple[fx.Node, ...] = (copy,)
    if isinstance(value, (tuple, list)):
        results = tuple(small.call(operator.getitem, (copy, i)) for i in range(len(value)))
    small.graph.output(results)
    _expand(small, copy, node.name)
    return small

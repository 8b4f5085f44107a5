"""Copies of a Dynamo graph with some inputs bound: weights as attributes, sizes as plain numbers.

The original is never touched: a backend may take ownership of what it is given, and the next binding starts afresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

# Without gradients these only run their body; inlined, the weights inside of it can be bound like any others.
_PLAIN_CALLS = {"tag_activation_checkpoint", "wrap_activation_checkpoint", "wrap"}
_KEPT_META = ("stack_trace", "nn_module_stack")  # the rest holds fake tensors of a finished trace


def placeholders(gm: fx.GraphModule) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.op == "placeholder"]


def attribute(root: torch.nn.Module, path: str) -> Any:
    """The value behind a `get_attr` node's target."""
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def held_tensors(gm: fx.GraphModule) -> list[torch.Tensor]:
    """Tensors that the graph module itself holds: they, too, may change behind a compiled copy."""
    found = [attribute(gm, str(n.target)) for n in gm.graph.nodes if n.op == "get_attr"]
    tensors = [t for t in found if isinstance(t, torch.Tensor)] + list(gm.parameters()) + list(gm.buffers())
    return list({id(t): t for t in tensors}.values())


def bind(gm: fx.GraphModule, bound: Mapping[int, Any], names: Mapping[int, str] | None = None
         ) -> tuple[fx.GraphModule, list[int]]:  # fmt: skip
    """A copy of the graph with the inputs in `bound` fixed: tensors become attributes, numbers plain arguments.

    `names` gives the attributes' paths where there are good ones. Returns the copy and the indices of the inputs that
    are left, in order. Tensors are shared with the caller, not copied, so that a result that is a weight (or a view of
    one) is that weight's memory, as in the original.
    """
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}
    root: dict[str, Any] = {}
    left: list[int] = []
    index = -1
    for n in gm.graph.nodes:
        if n.op == "placeholder":
            index += 1
            if index not in bound:
                left.append(index)
            elif isinstance(bound[index], torch.Tensor):
                key = (names or {}).get(index) or f"bound_{index}"
                key = key if key not in root else f"bound_{index}"
                root[key] = bound[index]
                values[n] = graph.get_attr(key)
                continue
            else:
                values[n] = bound[index]
                continue
        elif n.op == "get_attr":
            found = attribute(gm, str(n.target))
            key = "held_" + str(n.target).replace(".", "_")
            root[key] = bind(found, {})[0] if isinstance(found, fx.GraphModule) else found
            values[n] = graph.get_attr(key)
            continue
        elif n.op == "call_module":
            root[str(n.target)] = attribute(gm, str(n.target))
        elif n.op == "call_function" and _is_plain_call(n):
            body, _ = bind(attribute(gm, str(n.args[0].target)), {})
            values[n] = _inlined(body, [values.get(a, a) for a in n.args[1:]], graph, root)
            continue
        if n.op == "output":  # node_copy keeps a bound number only inside of other arguments
            graph.output(fx.node.map_arg(n.args[0], values.__getitem__))
            continue
        copy = graph.node_copy(n, values.__getitem__)
        copy.meta = {k: n.meta[k] for k in _KEPT_META if k in n.meta}
        values[n] = copy
    for n in reversed(graph.nodes):
        if n.op == "get_attr" and not n.users:
            graph.erase_node(n)
    copied = fx.GraphModule(root, graph, class_name="Bound")
    copied.eval() if not gm.training else copied.train()
    return copied, left


def _is_plain_call(n: fx.Node) -> bool:
    if not isinstance(n.target, torch._ops.HigherOrderOperator) or n.target._name not in _PLAIN_CALLS:
        return False
    return isinstance(n.args[0], fx.Node) and n.args[0].op == "get_attr"


def _inlined(body: fx.GraphModule, operands: list[Any], graph: fx.Graph, root: dict[str, Any]) -> Any:
    """Copy a sub-graph's calls into `graph`; returns what stands for its result."""
    values: dict[fx.Node, Any] = {}
    given = iter(operands)
    for n in body.graph.nodes:
        if n.op == "placeholder":
            values[n] = next(given)
        elif n.op == "get_attr":
            key = f"inlined_{len(root)}"
            root[key] = attribute(body, str(n.target))
            values[n] = graph.get_attr(key)
        elif n.op == "output":
            return fx.node.map_arg(n.args[0], values.__getitem__)
        else:
            values[n] = graph.node_copy(n, values.__getitem__)
    raise AssertionError("a graph without an output")

"""Copies of a Dynamo graph with some inputs bound: weights as attributes, sizes as plain numbers.

The original is never touched: a backend may take ownership of what it is given, and the next binding starts afresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

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
        if n.op == "output":  # node_copy keeps a bound number only inside of other arguments
            graph.output(fx.node.map_arg(n.args[0], values.__getitem__))
            continue
        copy = graph.node_copy(n, values.__getitem__)
        copy.meta = {k: n.meta[k] for k in _KEPT_META if k in n.meta}
        values[n] = copy
    copied = fx.GraphModule(root, graph, class_name="Bound")
    copied.eval() if not gm.training else copied.train()
    return copied, left

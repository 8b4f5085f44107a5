"""Writing nodes of the recorded graph: every node gets its value's shape, the user's line and the submodule."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from vqc.program import meta_of

aten = torch.ops.aten


def on_meta(target: Any, args: Any, kwargs: Any) -> Any:
    """The value (on the meta device) of a call whose arguments are nodes with `meta["val"]`."""
    args, kwargs = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    with torch.no_grad():
        return meta_of(target(*args, **kwargs))


class Emitter:
    """Appends nodes to one graph. `tags()` gives the meta entries ("source", "module") of the node being written."""

    def __init__(self, tags: Callable[[], dict[str, Any]]):
        self.graph = fx.Graph()
        self.constants: dict[str, Any] = {}
        self._constant_nodes: dict[str, fx.Node] = {}
        self._tags = tags
        self.device = torch.device("cpu")  # of the inputs, and so of every tensor made in the graph

    def placeholder(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """A graph input; all of them have to be made before the first call."""
        node = self.graph.placeholder(name)
        node.name = name
        node.meta.update(val=meta_of(tensor), source="", module="")
        return node

    def constant(self, tensor: torch.Tensor, name: str) -> fx.Node:
        """A `get_attr` node for a tensor, under a name that is made unique when another tensor has it."""
        key, i = name, 1
        while key in self.constants and self.constants[key] is not tensor:
            key, i = f"{name}_{i}", i + 1
        if key not in self._constant_nodes:
            self.constants[key] = tensor
            node = self.graph.create_node("get_attr", key, name=key.replace(".", "_"))
            node.meta.update(val=meta_of(tensor), source="", module="")
            self._constant_nodes[key] = node
        return self._constant_nodes[key]

    def submodule(self, body: fx.GraphModule, name: str) -> fx.Node:
        """A `get_attr` node for the body of a higher-order operator."""
        key, i = name, 1
        while key in self.constants:
            key, i = f"{name}_{i}", i + 1
        self.constants[key] = body
        node = self.graph.create_node("get_attr", key, name=key)
        node.meta.update(self._tags())
        return node

    def lifted(self, tensor: torch.Tensor, name: str) -> fx.Node:
        """One more graph input, after the ones that are there."""
        last = list(self.graph.find_nodes(op="placeholder"))[-1]
        with self.graph.inserting_after(last):
            return self.placeholder(name, tensor)

    def call(self, target: Any, args: tuple, kwargs: dict | None = None, val: Any = None) -> fx.Node:
        """A `call_function` node; its value is inferred on the meta device when `val` is not given."""
        kwargs = kwargs or {}
        node = self.graph.call_function(target, args, kwargs)
        node.meta.update(self._tags())
        node.meta["val"] = on_meta(target, args, kwargs) if val is None else val
        return node

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """`node[index]` for a call with several results."""
        return self.call(operator.getitem, (node, index), val=node.meta["val"][index])

    def reshape(self, node: fx.Node, shape: Any) -> fx.Node:
        """The node's elements in row-major order under another shape (the node itself when it has it already)."""
        if tuple(node.meta["val"].shape) == tuple(shape):
            return node
        return self.call(aten.reshape.default, (node, [int(s) for s in shape]))

    def cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        return node if node.meta["val"].dtype == dtype else self.call(aten._to_copy.default, (node,), {"dtype": dtype})

    def fill(self, shape: Any, value: Any, dtype: torch.dtype) -> fx.Node:
        """A tensor of one value."""
        sizes = [int(s) for s in shape]
        return self.call(aten.full.default, (sizes, value), {"dtype": dtype, "device": self.device})

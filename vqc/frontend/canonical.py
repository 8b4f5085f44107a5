"""The last step of capture: what depends on no input becomes a constant, what is computed twice is computed once."""

from __future__ import annotations

import hashlib
import operator
from typing import Any

import torch
from torch import fx

from vqc.frontend import pointwise, recompose_shapes  # noqa: F401  (they register their rules)
from vqc.frontend.emit import aten
from vqc.frontend.recompose import positive_dims, recompose
from vqc.program import meta_of

_BIG = 1 << 16  # elements above which a tensor of one value is kept as an expand of one element


def canonicalize(graph: fx.Graph, constants: dict[str, Any], random: set[fx.Node], keep_clones: bool = False
                 ) -> tuple[fx.Graph, dict[str, Any]]:  # fmt: skip
    """The canonical form of a recorded functional graph, and the constants it reads.

    `random` holds the nodes that draw random numbers: they are never folded nor merged. `keep_clones` leaves clones
    in place (the results of a scan's body may not be its inputs).
    """
    weights = {k for k in constants if not k.rpartition(".")[2].startswith("constant")}
    drop_dead(graph)
    positive_dims(graph)
    recompose(graph, keep_clones)
    recompose(graph, keep_clones)  # what the first walk put together may be part of something larger
    merge(graph, constants, random, weights)
    fold(graph, constants, random)
    recompose(graph, keep_clones)
    merge(graph, constants, random, weights)
    drop_dead(graph)
    return rebuild(graph, constants)


def drop_dead(graph: fx.Graph) -> None:
    """Erase calls and constants nobody reads."""
    for node in reversed(graph.nodes):
        if not node.users and node.op in ("call_function", "get_attr"):
            graph.erase_node(node)


def is_dequantize(target: Any) -> bool:
    """Whether an operator makes floats of integers: of a weight it is left, or its integers would be lost."""
    return isinstance(target, torch._ops.OpOverload) and target.name().startswith("quantized_decomposed::dequantize")


class Constants:
    """The nodes that depend on no input, and their values, computed when asked for."""

    def __init__(self, graph: fx.Graph, constants: dict[str, Any], random: set[fx.Node]):
        self.attributes = constants
        self.nodes: set[fx.Node] = set()
        self._values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                fixed = isinstance(constants[str(node.target)], torch.Tensor)
            else:
                known = isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
                fixed = node.op == "call_function" and known and node not in random
                fixed = fixed and all(a in self.nodes for a in node.all_input_nodes)
                fixed = fixed and not is_dequantize(node.target)
            if fixed:
                self.nodes.add(node)

    def value(self, node: fx.Node) -> Any:
        """The value of one of `nodes`."""
        stack = [node]
        while stack:  # a loop, as chains of constants may be longer than Python's recursion limit
            n = stack[-1]
            if n in self._values:
                stack.pop()
            elif n.op == "get_attr":
                self._values[n] = self.attributes[str(n.target)]
            elif missing := [a for a in n.all_input_nodes if a not in self._values]:
                stack.extend(missing)
            else:
                args, kwargs = fx.node.map_arg((n.args, n.kwargs), self._values.__getitem__)
                with torch.no_grad():
                    self._values[n] = n.target(*args, **kwargs)
        return self._values[node]


def fold(graph: fx.Graph, constants: dict[str, Any], random: set[fx.Node]) -> None:
    """Evaluate what depends on no input."""
    fixed = Constants(graph, constants, random)
    made: dict[fx.Node, fx.Node] = {}
    order = list(graph.nodes)
    anchor = next((n for n in order if n.op not in ("placeholder", "get_attr")), None)

    def literal(node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            return node
        if node not in made:
            made[node] = _literal(graph, constants, node, fixed.value(node), anchor)
        return made[node]

    for node in order:
        if node not in fixed.nodes:
            for a in node.all_input_nodes:
                if a in fixed.nodes and isinstance(a.meta["val"], torch.Tensor):
                    node.replace_input_with(a, literal(a))
            _index_by_numbers(graph, constants, node)
    drop_dead(graph)


def _literal(graph: fx.Graph, constants: dict[str, Any], node: fx.Node, tensor: torch.Tensor, anchor: Any) -> fx.Node:
    """A constant for a folded node: a weight keeps its name, a big tensor of one value stays one element."""
    with graph.inserting_before(anchor):
        if tensor.numel() > _BIG and not tensor.is_complex() and bool((tensor == tensor.reshape(-1)[0]).all()):
            one = tensor.reshape(-1)[:1].reshape([1] * tensor.ndim).clone()
            source = _attribute(graph, constants, _folded_name(node), one)
            expanded = graph.call_function(aten.expand.default, (source, list(tensor.shape)))
            expanded.meta = {**node.meta, "val": meta_of(tensor)}
            return expanded
        return _attribute(
            graph, constants, _folded_name(node), tensor.detach().clone(memory_format=torch.contiguous_format)
        )


def _attribute(graph: fx.Graph, constants: dict[str, Any], name: str, tensor: torch.Tensor) -> fx.Node:
    key, i = name, 1
    while key in constants:
        key, i = f"{name}_{i}", i + 1
    constants[key] = tensor
    node = graph.create_node("get_attr", key, name=key.replace(".", "_"))
    node.meta.update(val=meta_of(tensor), place=None, module="")
    return node


def _folded_name(node: fx.Node) -> str:
    """`encoder.weight_sign` for what is made of one weight, `encoder.constant_arange` for the rest."""
    name = op_name(node)
    roots: set[fx.Node] = set()
    stack = [node]
    while stack and len(roots) < 3:
        n = stack.pop()
        if n.op == "get_attr":
            roots.add(n)
        stack += n.all_input_nodes
    named = [str(n.target) for n in roots if "constant" not in str(n.target)]
    if len(roots) == 1 and named:
        return f"{named[0]}_{name}"
    module = node.meta.get("module") or ""
    return f"{module}.constant_{name}".lstrip(".")


def _index_by_numbers(graph: fx.Graph, constants: dict[str, Any], node: fx.Node) -> None:
    """A constant mask in an index becomes the numbers of its elements, so that the result's shape is plain."""
    if node.op != "call_function" or node.target not in (aten.index.Tensor, aten.index_put.default):
        return
    indices: list[Any] = []
    for i in node.args[1]:
        if (
            isinstance(i, fx.Node)
            and i.op == "get_attr"
            and constants[str(i.target)].dtype in (torch.bool, torch.uint8)
        ):
            with graph.inserting_before(node):
                for k, numbers in enumerate(constants[str(i.target)].nonzero(as_tuple=True)):
                    indices.append(_attribute(graph, constants, f"{i.target}_at_{k}", numbers))
        else:
            indices.append(i)
    if len(indices) != len(node.args[1]) or indices != list(node.args[1]):
        node.update_arg(1, indices)


def merge(graph: fx.Graph, constants: dict[str, Any], random: set[fx.Node], weights: set[str]) -> None:
    """Equal constants are kept once (weights stay apart by name), equal calls are made once."""
    by_content: dict[Any, fx.Node] = {}
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            tensor = constants[str(node.target)]
            if not isinstance(tensor, torch.Tensor):
                continue
            key = ("id", id(tensor)) if str(node.target) in weights else content_key(tensor)
            first = by_content.setdefault(key, node)
        elif node.op == "call_function" and node not in random and node.target is not aten.clone.default:
            call = _call_key(node)
            if call is None:
                continue
            first = seen.setdefault(call, node)
        else:
            continue
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def content_key(tensor: torch.Tensor) -> Any:
    """Equal for tensors of equal dtype, shape and bytes."""
    flat = tensor.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(raw).digest()


def _call_key(node: fx.Node) -> Any:
    def freeze(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return ("seq", *(freeze(v) for v in x))
        if isinstance(x, dict):
            return ("map", *((k, freeze(v)) for k, v in x.items()))
        if isinstance(x, float):
            return ("float", x.hex() if x == x else "nan")
        if isinstance(x, (bool, int)):
            return (type(x).__name__, x)
        return x

    key = (node.target, freeze(node.args), freeze(node.kwargs))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def op_name(node: fx.Node) -> str:
    """`conv2d` for `aten.conv2d.default`."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1].strip("_")
    return getattr(node.target, "__name__", "call")


def rebuild(graph: fx.Graph, constants: dict[str, Any]) -> tuple[fx.Graph, dict[str, Any]]:
    """A fresh graph with short, stable names: placeholders, constants, calls, output."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    used: dict[str, Any] = {}
    nodes = list(graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            env[node] = new.placeholder(str(node.target))
            env[node].name = str(node.target)  # fx would call an argument named "input" input_1
    for node in nodes:
        if node.op == "get_attr":
            env[node] = new.create_node("get_attr", node.target, name=str(node.target).replace(".", "_"))
            used[str(node.target)] = constants[str(node.target)]
    for node in nodes:
        if node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = new.create_node("call_function", node.target, args, kwargs, name=op_name(node))
        elif node.op == "output":
            env[node] = new.output(fx.node.map_arg(node.args[0], env.__getitem__))
    for old, node in env.items():
        place = old.meta.get("place")
        node.meta["source"] = old.meta.get("source") or (str(place) if place is not None else "")
        node.meta["module"] = old.meta.get("module", "")
        if "val" in old.meta:
            node.meta["val"] = old.meta["val"]
    return new, used

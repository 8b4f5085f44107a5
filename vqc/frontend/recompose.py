"""From whatever form an operator was recorded in to its one canonical form.

A graph recorded from plain modules is nearly canonical; one that comes from a decomposed ExportedProgram, from an
autocast region or from compiled code is not: there a convolution is `aten.convolution`, a linear layer `addmm` of a
transposed weight, a normalisation an operator with three results. Every rule has the same value as what it replaces.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from vqc.frontend.emit import aten, on_meta
from vqc.frontend.operators import bind

Rule = Callable[["Rewriter", fx.Node], "fx.Node | None"]
RULES: dict[Any, list[Rule]] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operators: it returns the node that stands for the given one, or None to leave it."""

    def register(f: Rule) -> Rule:
        for t in targets:
            RULES.setdefault(t, []).append(f)
        return f

    return register


class Rewriter:
    """One walk over a graph that applies the rules in order."""

    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.constant: set[fx.Node] = set()  # nodes that depend on no input
        self.at: fx.Node | None = None

    def run(self, skip: set[Any]) -> None:
        for node in list(self.graph.nodes):
            if node.op == "get_attr":
                self.constant.add(node)
            if node.op != "call_function":
                continue
            self._mark(node)
            rules = RULES.get(node.target)
            if rules is None or node.target in skip:
                continue
            self.at = node
            with self.graph.inserting_before(node):
                new = next((n for f in rules if (n := f(self, node)) is not None), None)
            if new is not None and new is not node:
                node.replace_all_uses_with(new)
                self.graph.erase_node(node)

    def _mark(self, node: fx.Node) -> None:
        if all(a in self.constant for a in node.all_input_nodes):
            self.constant.add(node)

    def call(self, target: Any, args: tuple, kwargs: dict | None = None, val: Any = None) -> fx.Node:
        """Insert a call before the node being rewritten; it keeps that node's place in the user's code."""
        assert self.at is not None
        new = self.graph.call_function(target, args, kwargs or {})
        new.meta = {k: v for k, v in self.at.meta.items() if k != "val"}
        new.meta["val"] = on_meta(target, args, kwargs or {}) if val is None else val
        self._mark(new)
        return new

    def only_first(self, node: fx.Node) -> fx.Node | None:
        """The node of result 0 of a call with several results, when no other result is used."""
        users = list(node.users)
        if users and all(u.target is operator.getitem and u.args[1] == 0 for u in users):
            return users[0]
        return None


def recompose(graph: fx.Graph, keep_clones: bool = False) -> None:
    """Bring every operator of the graph to its canonical form, in place."""
    Rewriter(graph).run(skip={aten.clone.default} if keep_clones else set())
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))


def shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def arguments(node: fx.Node) -> dict[str, Any]:
    return bind(node.target, tuple(node.args), dict(node.kwargs))


# ---- several results, of which only the first is used ---------------------------------------------------------------


def _single(name: str, make: Callable[[dict[str, Any]], tuple[Any, tuple]]) -> Rule:
    """A rule on `getitem(call, 0)`: handled where the call stands, its users are redirected."""

    def apply(r: Rewriter, node: fx.Node) -> fx.Node | None:
        first = r.only_first(node)
        if first is None:
            return None
        made = make(arguments(node))
        new = r.call(made[0], made[1], val=node.meta["val"][0])
        for item in list(node.users):
            item.replace_all_uses_with(new)
            r.graph.erase_node(item)
        return None

    apply.__name__ = name
    return apply


def _batch_norm(a: dict[str, Any]) -> tuple[Any, tuple]:
    training = bool(a.get("training", a.get("train", False)))
    mean, var = a.get("running_mean"), a.get("running_var")
    if training:
        mean = var = None
    eps = a["epsilon"] if "epsilon" in a else a["eps"]
    momentum = a["momentum"] if "momentum" in a else a["exponential_average_factor"]
    x = a["input"]
    return aten.batch_norm.default, (x, a["weight"], a["bias"], mean, var, training, momentum, eps, False)


_SINGLES: dict[str, Callable[[dict[str, Any]], tuple[Any, tuple]]] = {
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "_native_batch_norm_legit.default": _batch_norm,
    "_native_batch_norm_legit.no_stats": _batch_norm,
    "_native_batch_norm_legit_functional.default": _batch_norm,
    "native_batch_norm.default": _batch_norm,
    "cudnn_batch_norm.default": _batch_norm,
    "native_layer_norm.default": lambda a: (
        aten.layer_norm.default, (a["input"], a["normalized_shape"], a["weight"], a["bias"], a["eps"])),
    "native_group_norm.default": lambda a: (
        aten.group_norm.default, (a["input"], a["group"], a["weight"], a["bias"], a["eps"])),
    "_fused_rms_norm.default": lambda a: (
        aten.rms_norm.default, (a["input"], a["normalized_shape"], a["weight"], a["eps"])),
    "native_dropout.default": lambda a: (aten.reshape.default, (a["input"], list(a["input"].meta["val"].shape))),
    "max.dim": lambda a: (aten.amax.default, (a["self"], [a["dim"]], a["keepdim"])),
    "min.dim": lambda a: (aten.amin.default, (a["self"], [a["dim"]], a["keepdim"])),
    "max_pool2d_with_indices.default": lambda a: (
        aten.max_pool2d.default,
        (a["self"], a["kernel_size"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])),
    "max_pool3d_with_indices.default": lambda a: (
        aten.max_pool3d.default,
        (a["self"], a["kernel_size"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])),
    "_scaled_dot_product_flash_attention_for_cpu.default": lambda a: (
        aten.scaled_dot_product_attention.default,
        (a["query"], a["key"], a["value"], a["attn_mask"], 0.0, a["is_causal"])),
}  # fmt: skip


def _find(name: str) -> Any:
    packet, _, overload = name.partition(".")
    found = getattr(aten, packet, None)
    return getattr(found, overload, None) if found is not None else None


for _name, _make in _SINGLES.items():
    if _find(_name) is not None:
        rule(_find(_name))(_single(_name, _make))


@rule(aten._scaled_dot_product_flash_attention_for_cpu.default)
def attention(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = arguments(node)
    if a["dropout_p"] or r.only_first(node) is None:
        return None
    kwargs = {} if a.get("scale") is None else {"scale": a["scale"]}
    args = (a["query"], a["key"], a["value"], a["attn_mask"], 0.0, a["is_causal"])
    new = r.call(aten.scaled_dot_product_attention.default, args, kwargs, val=node.meta["val"][0])
    for item in list(node.users):
        item.replace_all_uses_with(new)
        r.graph.erase_node(item)
    return None


# ---- convolution and matrix products --------------------------------------------------------------------------------

_CONVS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


@rule(aten.convolution.default)
def convolution(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = arguments(node)
    spatial = len(shape(a["weight"])) - 2
    if len(shape(a["input"])) != spatial + 2:
        return None

    def full(v: Any) -> list[int]:
        return list(v) if len(v) == spatial else list(v) * spatial

    stride, padding, dilation = full(a["stride"]), full(a["padding"]), full(a["dilation"])
    if a["transposed"]:
        more = (full(a["output_padding"]), a["groups"], dilation)
        args: tuple = (a["input"], a["weight"], a["bias"], stride, padding, *more)
        return r.call(_TRANSPOSED[spatial], args, val=node.meta["val"])
    args = (a["input"], a["weight"], a["bias"], stride, padding, dilation, a["groups"])
    return r.call(_CONVS[spatial], args, val=node.meta["val"])


def _transposed(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """The matrix whose transpose `node` is; a constant gets a transpose of its own (it is folded later)."""
    if node.op == "call_function" and node.target is aten.permute.default and list(node.args[1]) == [1, 0]:
        source = node.args[0]
        return source if isinstance(source, fx.Node) else None
    if node in r.constant and len(shape(node)) == 2:
        return r.call(aten.permute.default, (node, [1, 0]))
    return None


@rule(aten.addmm.default)
def addmm(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = arguments(node)
    bias, second = a["self"], a["mat2"]
    if a["beta"] != 1 or a["alpha"] != 1 or len(shape(bias)) != 1 or second not in r.constant:
        return None
    if shape(bias)[0] != shape(second)[1]:
        return None
    weight = _transposed(r, second)
    return None if weight is None else r.call(aten.linear.default, (a["mat1"], weight, bias), val=node.meta["val"])


@rule(aten.mm.default, aten.matmul.default)
def mm(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, second = node.args[0], node.args[1]
    assert isinstance(x, fx.Node) and isinstance(second, fx.Node)
    if second not in r.constant or x in r.constant or len(shape(second)) != 2 or len(shape(x)) < 2:
        return None
    weight = _transposed(r, second)
    return None if weight is None else r.call(aten.linear.default, (x, weight), val=node.meta["val"])


@rule(aten.bmm.default)
def bmm(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """A batch of products with one constant matrix, repeated by expand."""
    x, second = node.args[0], node.args[1]
    assert isinstance(x, fx.Node) and isinstance(second, fx.Node)
    if second.target is not aten.expand.default or second not in r.constant or x in r.constant:
        return None
    matrix: Any = second.args[0]
    if matrix.meta["val"].numel() != second.meta["val"][0].numel():
        return None
    while (
        matrix.target in (aten.reshape.default, aten.unsqueeze.default, aten.expand.default) and len(shape(matrix)) > 2
    ):
        matrix = matrix.args[0]
    if shape(matrix) != shape(second)[1:]:
        matrix = r.call(aten.reshape.default, (matrix, list(shape(second)[1:])))
    weight = _transposed(r, matrix)
    return None if weight is None else r.call(aten.linear.default, (x, weight), val=node.meta["val"])


@rule(aten.add.Tensor)
def add_bias(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """A constant vector added to a linear layer without a bias."""
    for product, bias in (node.args[:2], node.args[1::-1]):
        if not isinstance(product, fx.Node) or product.target is not aten.linear.default or bias not in r.constant:
            continue
        alone = len(product.users) == 1 and (len(product.args) < 3 or product.args[2] is None) and not node.kwargs
        if alone and shape(bias) == shape(product)[-1:] and bias.meta["val"].dtype == product.meta["val"].dtype:
            return r.call(aten.linear.default, (*product.args[:2], bias), val=node.meta["val"])
    return None


def positive_dims(graph: fx.Graph) -> None:
    """Dimensions counted from the front in every operator that has an argument `dim` or `dims`."""
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        first = node.args[0] if node.args else None
        if isinstance(first, (list, tuple)):
            first = first[0] if first else None
        if not isinstance(first, fx.Node) or not isinstance(first.meta["val"], torch.Tensor):
            continue
        rank = first.meta["val"].ndim + (node.target in (aten.unsqueeze.default, aten.stack.default))
        for i, arg in enumerate(node.target._schema.arguments):
            if arg.name in ("dim", "dims") and i < len(node.args) and rank:
                value = node.args[i]
                if isinstance(value, int):
                    node.update_arg(i, value % rank)
                elif isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
                    node.update_arg(i, [v % rank for v in value])

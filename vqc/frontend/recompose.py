"""From whatever form an operator was recorded in to its one canonical form.

A graph recorded from plain modules is nearly canonical; one that comes from a decomposed ExportedProgram, from an
autocast region or from compiled code is not: there a convolution is `aten.convolution`, a linear layer `addmm` of a
transposed weight, a normalisation an operator with three results. Every rule here has the same value as what it replaces.
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
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operators: it returns the node that stands for the given one, or None to leave it."""

    def register(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, f))
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
            f = RULES.get(node.target)
            if f is None or node.target in skip:
                continue
            self.at = node
            with self.graph.inserting_before(node):
                new = f(self, node)
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


def _args(node: fx.Node) -> dict[str, Any]:
    return bind(node.target, tuple(node.args), dict(node.kwargs))


# ---- several results, of which only the first is used ----------------------------------------------------------------


def _single(name: str, make: Callable[[dict[str, Any]], tuple[Any, tuple]]) -> Rule:
    """A rule on `getitem(call, 0)`: handled where the call stands, its users are redirected."""

    def apply(r: Rewriter, node: fx.Node) -> fx.Node | None:
        first = r.only_first(node)
        if first is None:
            return None
        made = make(_args(node))
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
    a = _args(node)
    if a["dropout_p"] or r.only_first(node) is None:
        return None
    kwargs = {} if a.get("scale") is None else {"scale": a["scale"]}
    args = (a["query"], a["key"], a["value"], a["attn_mask"], 0.0, a["is_causal"])
    new = r.call(aten.scaled_dot_product_attention.default, args, kwargs, val=node.meta["val"][0])
    for item in list(node.users):
        item.replace_all_uses_with(new)
        r.graph.erase_node(item)
    return None


# ---- convolution and matrix products -----------------------------------------------------------------------------------

_CONVS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


@rule(aten.convolution.default)
def convolution(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = _args(node)
    spatial = len(shape(a["weight"])) - 2
    if len(shape(a["input"])) != spatial + 2:
        return None

    def full(v: Any) -> list[int]:
        return list(v) if len(v) == spatial else list(v) * spatial

    stride, padding, dilation = full(a["stride"]), full(a["padding"]), full(a["dilation"])
    if a["transposed"]:
        args = (a["input"], a["weight"], a["bias"], stride, padding, full(a["output_padding"]), a["groups"], dilation)
        return r.call(_TRANSPOSED[spatial], args, val=node.meta["val"])
    args = (a["input"], a["weight"], a["bias"], stride, padding, dilation, a["groups"])
    return r.call(_CONVS[spatial], args, val=node.meta["val"])


def _transposed(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """The matrix whose transpose `node` is; a constant gets a transpose of its own (it is folded later)."""
    if node.op == "call_function" and node.target is aten.permute.default and list(node.args[1]) == [1, 0]:  # type: ignore[arg-type]
        source = node.args[0]
        return source if isinstance(source, fx.Node) else None
    if node in r.constant and len(shape(node)) == 2:
        return r.call(aten.permute.default, (node, [1, 0]))
    return None


@rule(aten.addmm.default)
def addmm(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = _args(node)
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


# ---- views ---------------------------------------------------------------------------------------------------------------


@rule(aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten._reshape_copy.default)
def reshape(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    out = shape(node)
    while x.op == "call_function" and x.target is aten.reshape.default:
        x = x.args[0]  # type: ignore[assignment]
    if shape(x) == out:
        return x
    lin = x
    if lin.op == "call_function" and lin.target is aten.linear.default and len(lin.users) == 1:
        inner = lin.args[0]
        if isinstance(inner, fx.Node) and inner.target is aten.reshape.default:
            y = inner.args[0]
            if isinstance(y, fx.Node) and shape(y)[:-1] == out[:-1] and shape(y)[-1] == shape(inner)[-1]:
                return r.call(aten.linear.default, (y, *lin.args[1:]), val=node.meta["val"])
    return r.call(aten.reshape.default, (x, list(out)), val=node.meta["val"])


@rule(aten.permute.default)
def permute(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, dims = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    assert isinstance(x, fx.Node)
    if x.op == "call_function" and x.target is aten.permute.default:
        inner = list(x.args[1])  # type: ignore[arg-type]
        x, dims = x.args[0], [inner[d] for d in dims]
    if dims == sorted(dims):
        return x  # type: ignore[return-value]
    return r.call(aten.permute.default, (x, dims), val=node.meta["val"])


@rule(aten.slice.Tensor, aten.expand.default, aten.repeat.default, aten.cat.default)
def nothing_done(r: Rewriter, node: fx.Node) -> fx.Node | None:
    """A slice of everything, an expand to the same size, a concatenation of one."""
    x = node.args[0]
    if isinstance(x, (list, tuple)):
        if len(x) != 1:
            kept = [p for p in x if shape(p) != (0,)]  # cat ignores tensors of shape [0]
            if len(kept) == len(x) or not kept:
                return None
            return r.call(node.target, (kept, *node.args[1:]), dict(node.kwargs), val=node.meta["val"])
        x = x[0]
    same = isinstance(x, fx.Node) and shape(x) == shape(node) and x.meta["val"].dtype == node.meta["val"].dtype
    return x if same else None  # type: ignore[return-value]


# ---- the rest --------------------------------------------------------------------------------------------------------------


@rule(aten._to_copy.default, aten.clone.default)
def to_copy(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    dtype = node.meta["val"].dtype
    if x.meta["val"].dtype == dtype:
        return x
    if dict(node.kwargs) == {"dtype": dtype}:
        return None
    return r.call(aten._to_copy.default, (x,), {"dtype": dtype}, val=node.meta["val"])


@rule(aten._softmax.default, aten._log_softmax.default)
def softmax(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, dim = node.args[0], node.args[1]
    target = aten.softmax.int if node.target is aten._softmax.default else aten.log_softmax.int
    return r.call(target, (x, dim), val=node.meta["val"])


@rule(aten.hardtanh.default)
def hardtanh(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = _args(node)
    return r.call(aten.clamp.default, (a["self"], a["min_val"], a["max_val"]), val=node.meta["val"])


@rule(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
      aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)  # fmt: skip
def adaptive_pool(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, size = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    rank = len(shape(x))
    if all(s == 1 for s in size):
        return r.call(aten.mean.dim, (x, list(range(rank - len(size), rank)), True), val=node.meta["val"])
    whole = {aten._adaptive_avg_pool2d.default: aten.adaptive_avg_pool2d.default,
             aten._adaptive_avg_pool3d.default: aten.adaptive_avg_pool3d.default}  # fmt: skip
    target = whole.get(node.target)
    return None if target is None else r.call(target, (x, size), val=node.meta["val"])


@rule(aten.instance_norm.default)
def instance_norm(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = _args(node)
    if a["use_input_stats"]:
        return None
    args = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"], False, a["momentum"], a["eps"])
    return r.call(aten.batch_norm.default, (*args, a["cudnn_enabled"]), val=node.meta["val"])


_RESIZES = ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
            "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa")  # fmt: skip


@rule(*(getattr(aten, n).vec for n in _RESIZES))
def resize(r: Rewriter, node: fx.Node) -> fx.Node | None:
    a = _args(node)
    size = list(shape(node)[2:])
    scales = list(a["scale_factors"]) if a["scale_factors"] is not None else [None] * len(size)
    corners = (a["align_corners"],) if "align_corners" in a else ()
    target = getattr(aten, node.target._schema.name.split("::")[1]).default  # type: ignore[union-attr]
    return r.call(target, (a["input"], size, *corners, *scales), val=node.meta["val"])


@rule(aten.channel_shuffle.default)
def channel_shuffle(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, groups = node.args
    assert isinstance(groups, int)
    n, c, *rest = shape(x)
    split = r.call(aten.reshape.default, (x, [n, groups, c // groups, *rest]))
    moved = r.call(aten.permute.default, (split, [0, 2, 1, *range(3, len(rest) + 3)]))
    return r.call(aten.reshape.default, (moved, list(shape(node))), val=node.meta["val"])


@rule(aten._unsafe_index.Tensor)
def unsafe_index(r: Rewriter, node: fx.Node) -> fx.Node | None:
    return r.call(aten.index.Tensor, tuple(node.args), val=node.meta["val"])


@rule(aten._prelu_kernel.default)
def prelu_kernel(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, weight = node.args
    assert isinstance(weight, fx.Node)
    count = weight.meta["val"].numel()
    if count != 1 and (len(shape(x)) < 2 or shape(weight)[1:2] != (count,)):
        return None
    return r.call(aten.prelu.default, (x, r.call(aten.reshape.default, (weight, [count]))), val=node.meta["val"])


@rule(aten.copy.default)
def copy(r: Rewriter, node: fx.Node) -> fx.Node | None:
    x, source = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(source, fx.Node)
    if source.meta["val"].dtype != x.meta["val"].dtype:
        source = r.call(aten._to_copy.default, (source,), {"dtype": x.meta["val"].dtype})
    return source if shape(source) == shape(x) else r.call(aten.expand.default, (source, list(shape(x))))


_WITH_NUMBER = {aten.add.Scalar: aten.add.Tensor, aten.sub.Scalar: aten.sub.Tensor, aten.mul.Scalar: aten.mul.Tensor,
                aten.div.Scalar: aten.div.Tensor}  # fmt: skip


@rule(*_WITH_NUMBER)
def with_number(r: Rewriter, node: fx.Node) -> fx.Node | None:
    extra = {"alpha": node.args[2]} if len(node.args) > 2 else dict(node.kwargs)
    return r.call(_WITH_NUMBER[node.target], tuple(node.args[:2]), extra, val=node.meta["val"])


def numbers_of(dims: Any, rank: int) -> Any:
    if isinstance(dims, torch.SymInt):
        return dims
    if isinstance(dims, int):
        return dims % rank
    return [d % rank for d in dims]


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
                if isinstance(value, int) or (isinstance(value, (list, tuple)) and value):
                    if not any(isinstance(v, fx.Node) for v in (value if not isinstance(value, int) else [])):
                        node.update_arg(i, numbers_of(value, rank))

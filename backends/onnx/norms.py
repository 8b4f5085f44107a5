"""Rules of normalizations, norms and attention."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import fx

from vqc.backends.onnx.graph import Graph, Results, axis_of, need, rule
from vqc.program import dtype_of, shape_of


@rule("aten::layer_norm", "aten::native_layer_norm")
def _layer_norm(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    need(node.target.name() == "aten::layer_norm", "its mean and deviation are results too")
    shape = list(bound["normalized_shape"])
    weight = g.value(bound["weight"]) if bound["weight"] is not None else g.constant(np.ones(shape, np.float32), "ones")
    bias = [] if bound["bias"] is None else [g.value(bound["bias"])]
    return g.emit("LayerNormalization", g.value(x), weight, *bias, axis=len(shape_of(x)) - len(shape),
                  epsilon=float(bound["eps"]))  # fmt: skip


@rule("aten::group_norm")
def _group_norm(g: Graph, node: fx.Node) -> Results:
    bound, channels = g.bound(node), shape_of(node)[1]
    weight = (
        g.value(bound["weight"]) if bound["weight"] is not None else g.constant(np.ones(channels, np.float32), "ones")
    )
    bias = g.value(bound["bias"]) if bound["bias"] is not None else g.constant(np.zeros(channels, np.float32), "zeros")
    return g.emit("GroupNormalization", g.value(node.args[0]), weight, bias, num_groups=bound["num_groups"],
                  epsilon=float(bound["eps"]))  # fmt: skip


@rule("aten::batch_norm")
def _batch_norm(g: Graph, node: fx.Node) -> Results:
    """Running statistics only."""
    need(not g.bound(node)["training"], "a batch norm in training")
    return _with_running_statistics(g, node)


def _with_running_statistics(g: Graph, node: fx.Node) -> Results:
    """A multiplication and an addition."""
    bound = g.bound(node)
    need(bound["running_mean"] is not None, "a norm without statistics")
    mean, var = (
        g.known(bound["running_mean"], "the mean").double(),
        g.known(bound["running_var"], "the variance").double(),
    )
    weight = 1.0 if bound["weight"] is None else g.known(bound["weight"], "the weight").double()
    bias = 0.0 if bound["bias"] is None else g.known(bound["bias"], "the bias").double()
    scale = weight / torch.sqrt(var + bound["eps"])
    shape = [1, -1] + [1] * (len(shape_of(node)) - 2)
    scaled = g.emit("Mul", g.value(node.args[0]), g.constant(scale.float().view(shape).numpy(), "scale"))
    return g.emit("Add", scaled, g.constant((bias - mean * scale).float().view(shape).numpy(), "shift"))


@rule("aten::instance_norm")
def _instance_norm(g: Graph, node: fx.Node) -> Results:
    """Statistics of the picture itself, or running ones: then it is a batch norm."""
    bound, channels = g.bound(node), shape_of(node)[1]
    if not bound["use_input_stats"]:
        return _with_running_statistics(g, node)
    given = (("weight", np.ones), ("bias", np.zeros))
    weight, bias = (g.constant(fill(channels, np.float32), name) if bound[name] is None else g.value(bound[name])
                    for name, fill in given)  # fmt: skip
    return g.emit("InstanceNormalization", g.value(node.args[0]), weight, bias, epsilon=float(bound["eps"]))


@rule("aten::rms_norm")
def _rms_norm(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), g.value(node.args[0])
    axes = list(range(-len(bound["normalized_shape"]), 0))
    eps = torch.finfo(dtype_of(node)).eps if bound["eps"] is None else bound["eps"]
    mean = g.emit("ReduceMean", g.emit("Mul", x, x), g.constant(axes, "axes"), keepdims=1)
    scaled = g.emit("Div", x, g.emit("Sqrt", g.emit("Add", mean, g.number(eps, dtype_of(node)))))
    return scaled if bound["weight"] is None else g.emit("Mul", scaled, g.value(bound["weight"]))


@rule("aten::linalg_vector_norm", "aten::norm.ScalarOpt_dim", "aten::norm.Scalar")
def _vector_norm(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    order = bound.get("ord", bound.get("p"))
    order = 2 if order is None else order
    need(order in (1, 2, math.inf), f"a norm of order {order}")
    dims = bound.get("dim") or list(range(len(shape_of(x))))
    axes = g.constant([axis_of(x, d) for d in (dims if isinstance(dims, (list, tuple)) else [dims])], "axes")
    value, keep = g.value(x, dtype_of(node)), int(bound.get("keepdim", False))
    if order == math.inf:
        return g.emit("ReduceMax", g.emit("Abs", value), axes, keepdims=keep)
    return g.emit(f"ReduceL{order:.0f}", value, axes, keepdims=keep)


@rule("aten::var.correction", "aten::std.correction")
def _variance(g: Graph, node: fx.Node) -> Results:
    bound, x = g.bound(node), node.args[0]
    dims = [axis_of(x, d) for d in bound["dim"] or range(len(shape_of(x)))]
    correction = 1 if bound["correction"] is None else bound["correction"]
    count = torch.Size([shape_of(x)[d] for d in dims]).numel()
    need(count > correction, "a variance of too few values")
    value, axes = g.value(x), g.constant(dims, "axes")
    away = g.emit("Sub", value, g.emit("ReduceMean", value, axes, keepdims=1))
    total = g.emit("ReduceSum", g.emit("Mul", away, away), axes, keepdims=int(bound["keepdim"]))
    found = g.emit("Div", total, g.number(count - correction, dtype_of(node)))
    return g.emit("Sqrt", found) if "std" in node.target.name() else found


@rule("aten::scaled_dot_product_attention")
def _attention(g: Graph, node: fx.Node) -> Results:
    bound, dtype = g.bound(node), dtype_of(node)
    q, k = bound["query"], bound["key"]
    need(not bound["dropout_p"] and not bound["is_causal"] and not bound["enable_gqa"],
         "attention with dropout, a causal mask or grouped queries")  # fmt: skip
    scale = bound["scale"] if bound["scale"] is not None else shape_of(q)[-1] ** -0.5
    order = [*range(len(shape_of(k)) - 2), len(shape_of(k)) - 1, len(shape_of(k)) - 2]
    scores = g.emit("MatMul", g.value(q), g.emit("Transpose", g.value(k), perm=order))
    scores = g.emit("Mul", scores, g.number(scale, dtype))
    mask = bound["attn_mask"]
    if mask is not None and dtype_of(mask) == torch.bool:
        scores = g.emit("Where", g.value(mask), scores, g.number(-math.inf, dtype))
    elif mask is not None:
        scores = g.emit("Add", scores, g.value(mask, dtype))
    return g.emit("MatMul", g.emit("Softmax", scores, axis=-1), g.value(bound["value"]))

"""Higher-order operators under the recorder: scan unrolled or kept whole, cond as a selection, others opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from vqc.errors import CaptureError
from vqc.frontend import compat
from vqc.frontend.canonical import canonicalize
from vqc.frontend.decisions import Plan
from vqc.frontend.emit import aten
from vqc.frontend.source import user_place
from vqc.program import meta_of

if TYPE_CHECKING:
    from vqc.frontend.recorder import Recorder

Rule = Callable[[Any, Any, tuple, dict], Any]


def rules(recorder: Recorder) -> tuple[dict[str, Rule], Rule]:
    """Rules by operator name, and the rule for all others: run them with the recorder listening."""

    def opened(op: Any, mode: Any, args: tuple, kwargs: dict) -> Any:
        with recorder.mode:
            return compat.run_higher_order(op, args, kwargs)

    def scan(op: Any, mode: Any, args: tuple, kwargs: dict) -> Any:
        bound = [*args, *(kwargs[k] for k in ("combine_fn", "init", "xs", "additional_inputs")[len(args) :])]
        if recorder.keep_scan:
            return _kept_scan(recorder, op, *bound)
        with recorder.mode:
            return _unrolled_scan(*bound)

    def cond(op: Any, mode: Any, args: tuple, kwargs: dict) -> Any:
        pred, true_fn, false_fn, operands = args
        with recorder.mode:
            if not isinstance(pred, torch.Tensor) or not recorder.is_data(pred):
                return (true_fn if bool(pred) else false_fn)(*operands)
            return _selected(pred, true_fn(*operands), false_fn(*operands))

    return {"scan": scan, "cond": cond}, opened


def _selected(pred: torch.Tensor, yes: Any, no: Any) -> Any:
    """Both branches are computed and one result is taken: the branches of torch.cond have no side effects."""
    a, spec = pytree.tree_flatten(yes)
    b, other = pytree.tree_flatten(no)
    if spec != other or any(isinstance(x, torch.Tensor) and x.shape != y.shape for x, y in zip(a, b, strict=True)):
        raise CaptureError("the branches of torch.cond give results of different shapes", where=str(user_place() or ""))
    chosen = [
        torch.where(pred.reshape(()), x, y) if isinstance(x, torch.Tensor) else x for x, y in zip(a, b, strict=True)
    ]
    return pytree.tree_unflatten(chosen, spec)


def _unrolled_scan(combine: Any, init: Any, xs: Any, additional: Any) -> tuple[Any, ...]:
    """The loop that scan stands for, step by step: no buffer that is written slice by slice."""
    carry: list[Any] = list(init)
    rows: list[list[Any]] = []
    for step in zip(*(x.unbind(0) for x in xs), strict=True):
        flat = pytree.tree_leaves(combine(*carry, *step, *additional))
        carry = flat[: len(carry)]
        rows.append(flat[len(carry) :])
    outs = [
        torch.stack(list(column)) if isinstance(column[0], torch.Tensor) else None for column in zip(*rows, strict=True)
    ]
    return (*carry, *outs)


def _kept_scan(recorder: Recorder, op: Any, combine: Any, init: Any, xs: Any, additional: Any) -> tuple[Any, ...]:
    """One scan node whose body is a graph of its own; what the step function closes over becomes an input of it."""
    body, lifted = _body(recorder, combine, [*init, *(x[0] for x in xs), *additional])
    with compat.plain(), recorder.paused():
        out = tuple(compat.run_higher_order(op, (body, list(init), list(xs), (*additional, *lifted)), {}))
    nodes = recorder.nodes(([*init], [*xs], (*additional, *lifted)))
    graph = recorder.em.submodule(body, "scan_body")
    node = recorder.em.call(op, (graph, *nodes), val=meta_of(out))
    data = any(recorder.is_data(t) for t in [*init, *xs, *additional, *lifted] if isinstance(t, torch.Tensor))
    for i, t in enumerate(out):
        if isinstance(t, torch.Tensor):
            recorder.new_root(t, recorder.em.item(node, i), data)
    return out


def _body(parent: Recorder, combine: Any, example: list[Any]) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """The step function as a GraphModule (flat in, flat out, no aliasing), and the tensors it closes over."""
    from vqc.frontend.recorder import Recorder
    from vqc.frontend.watch import Watch

    inner = Recorder(parent.names, parent.trail, Plan())
    inner.lifted = []
    feeds = [x.detach().clone() for x in example]
    for i, x in enumerate(feeds):
        inner.input(f"step_{i}", x)
    with Watch(inner), inner.mode:
        out = pytree.tree_leaves(combine(*feeds))
    if inner.plan.made:
        first = inner.plan.made[0]
        raise CaptureError(f"{first.operator} reads a value of the data inside scan", where=str(first.place or ""),
                           way_out="use torch.where there")  # fmt: skip
    results, used = [], set(inner.em.graph.find_nodes(op="placeholder"))
    for x in out:
        node = inner.node_of(x) if isinstance(x, torch.Tensor) else x
        if isinstance(node, fx.Node):
            if node in used:  # scan's results may not share memory with its inputs or with one another
                node = inner.em.call(aten.clone.default, (node,))
            used.add(node)
        results.append(node)
    inner.em.graph.output(tuple(results))
    graph, constants = canonicalize(inner.em.graph, dict(inner.em.constants), set(inner.random), keep_clones=True)
    return fx.GraphModule(constants, graph, class_name="ScanBody"), inner.lifted

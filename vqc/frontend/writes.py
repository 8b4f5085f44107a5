"""Recording operators that write to their arguments: in-place forms, `out=` forms and custom operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from vqc.errors import CaptureError
from vqc.frontend import compat
from vqc.frontend import operators as ops
from vqc.frontend.emit import aten
from vqc.frontend.functionalize import Value, current, write
from vqc.frontend.operators import tensors_in
from vqc.frontend.source import user_place
from vqc.program import meta_of

if TYPE_CHECKING:
    from vqc.frontend.recorder import Recorder

_OVERWRITE = {"aten::copy_", "aten::fill_", "aten::zero_"}
# These leave some elements as they are, which may be ones that nobody has written yet.
_PARTIAL = {
    "aten::" + n + "_"
    for n in ("index_put", "_index_put_impl", "scatter", "scatter_add", "index_copy", "index_fill", "index_add",
              "masked_fill", "masked_scatter", "put")
}  # fmt: skip


def record_write(rec: Recorder, func: Any, args: tuple, kwargs: dict) -> Any:
    """Run an operator that writes, and give the tensors it wrote their new nodes."""

    name = func._schema.name
    bound = ops.bind(func, args, kwargs)
    targets = [bound[n] for n in ops.written_names(func)]
    if not all(isinstance(t, torch.Tensor) for t in targets):
        raise CaptureError(f"{func} writes to a list of tensors", where=str(user_place() or ""),
                           way_out="write to the tensors one by one")  # fmt: skip
    values = [rec.value_of(t) for t in targets]
    data = any(rec.is_data(t) for t in tensors_in((args, kwargs)))
    random = ops.is_random(func, bound)
    if name in _OVERWRITE:
        data = any(rec.is_data(t) for t in tensors_in((args[1:], kwargs))) or (
            values[0].storage.data and values[0].parent is not None
        )
        new = [_overwritten(rec, name, args, kwargs, values[0])]
    elif any(r.alias_info is None for r in func._schema.returns):  # a new tensor beside what it writes
        return _custom(rec, func, args, kwargs, bound, values, data or random)
    elif random and len(targets) == 1:
        new = [rec.em.fill(values[0].shape, 0, values[0].where[3])]  # stands for numbers that may not reach a result
    elif ops.functional_form(func) is not None:
        if not any(t is targets[0] for t in tensors_in(args[:1])):
            kwargs_in = {k: v for k, v in kwargs.items() if k not in ops.written_names(func)}
        else:
            kwargs_in = kwargs
        new = [_computed(rec, func, name, args, kwargs_in, values[0], bound)]
    else:
        return _custom(rec, func, args, kwargs, bound, values, data)
    for v in values:
        before_write(rec, v)
    out = func(*args, **kwargs)
    for v, node in zip(values, new, strict=True):
        if random:
            rec.random[node], data = str(user_place() or name), True
        if v.parent is None and name in _OVERWRITE:
            v.storage.data = data
        else:
            v.storage.data = v.storage.data or data
        write(rec.em, v, node)
    return out


def before_write(rec: Recorder, value: Value) -> None:
    """Keep the bytes of memory that was there before the recorded code, to put them back afterwards."""
    storage = value.storage
    if storage.picked is not None:
        raise CaptureError("a part of a tensor that was picked by a number in a tensor is written in place",
                           where=str(user_place() or ""), why=f"it was picked at {storage.picked.place}",
                           way_out="compute a new value and assign it: ring[:, pos] = ring[:, pos] + x")  # fmt: skip
    if storage.external is not None:
        if len(storage.roots) > 1:
            raise CaptureError("two tensors share memory and one of them is written in forward",
                               where=str(user_place() or ""), way_out="clone one of them in __init__")  # fmt: skip
        if storage.saved is None:
            storage.saved = storage.external.untyped_storage().clone()
    if storage not in rec.written:
        rec.written.append(storage)


def _fit(rec: Recorder, node: fx.Node, value: Value) -> fx.Node:
    """A node in the shape and dtype of the tensor it is written to."""
    node = rec.em.cast(node, value.where[3])
    if tuple(node.meta["val"].shape) != value.shape:
        shape = node.meta["val"].shape
        if len(shape) > len(value.shape):  # copy_ accepts leading dimensions of one
            node = rec.em.reshape(node, shape[len(shape) - len(value.shape) :])
        if tuple(node.meta["val"].shape) != value.shape:
            node = rec.em.call(aten.expand.default, (node, list(value.shape)))
    return node


def _overwritten(rec: Recorder, name: str, args: tuple, kwargs: dict, value: Value) -> fx.Node:
    source = (*args[1:], *kwargs.values())[0] if name != "aten::zero_" else 0
    if isinstance(source, torch.Tensor):
        return _fit(rec, rec.node_of(source), value)
    return rec.em.fill(value.shape, source, value.where[3])


def _computed(rec: Recorder, func: Any, name: str, args: tuple, kwargs: dict, value: Value, bound: dict) -> fx.Node:
    form = ops.functional_form(func)
    if name in _PARTIAL:
        nodes = (current(rec.em, value), *rec.nodes(args[1:]))
    else:
        nodes = rec.nodes(args)
    if form is aten.index_put.default:
        masked = _masked_put(rec, nodes, bound, value)
        if masked is not None:
            return masked
    node = rec.em.call(form, tuple(nodes), rec.nodes(kwargs))
    if node.meta["val"].numel() != _count(value.shape):
        raise CaptureError(f"{name.replace('::', '.')} changes the size of its output tensor",
                           where=str(user_place() or ""), way_out="let it make a new tensor")  # fmt: skip
    return _fit(rec, node, value)


def _masked_put(rec: Recorder, nodes: Any, bound: dict, value: Value) -> fx.Node | None:
    """`x[mask] = number` as torch.where, which needs no count of the mask's elements.

    The mask may also be given as the results of nonzero (`x[torch.where(mask)] = number`).
    """
    indices, accumulate = nodes[1], bound.get("accumulate", False)
    given = [i for i in indices if i is not None]
    mask = None
    if len(given) == 1 and given[0].meta["val"].dtype in (torch.bool, torch.uint8):
        mask, dims = given[0], given[0].meta["val"].ndim
    elif given and all(i.op == "call_function" and i.args[0] in rec.dynamic for i in given):
        source = given[0].args[0]
        wanted = [(source, k) for k in range(source.args[0].meta["val"].ndim)]
        found = [i.args for i in given]
        empty = given[0].meta["val"].numel() == 0  # empty index tensors cannot be told apart by their memory
        if found == wanted or (empty and len(found) == len(wanted) and all(f[0] is source for f in found)):
            mask, dims = source.args[0], source.args[0].meta["val"].ndim
    if mask is None:
        return None
    number = nodes[2]
    if accumulate or number.meta["val"].numel() != 1:
        if any(rec.is_data(t) for t in bound["indices"] if t is not None):
            raise rec.refusal("writing several values under a mask from the data")
        return None
    if mask.meta["val"].dtype != torch.bool:
        mask = rec.em.cast(mask, torch.bool)
    elif given[0] is not mask:
        rec.dynamic.pop(given[0].args[0])
    first = list(indices).index(given[0])
    rest = len(value.shape) - first - dims
    shape = [*mask.meta["val"].shape, *([1] * rest)]
    number = rec.em.cast(rec.em.reshape(number, ()), value.where[3])
    return rec.em.call(aten.where.self, (rec.em.reshape(mask, shape), number, current(rec.em, value)))


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def _custom(rec: Recorder, func: Any, args: tuple, kwargs: dict, bound: dict, values: list[Value], data: bool) -> Any:
    """A custom operator without a functional form: torch's higher-order `auto_functionalized` returns what it wrote."""
    from torch._higher_order_ops.auto_functionalize import auto_functionalized

    names = ops.written_names(func)
    nodes = {
        k: current(rec.em, rec.value_of(v)) if k in names else rec.nodes(v) for k, v in bound.items()
    }  # fmt: skip
    for v in values:
        before_write(rec, v)
    out = func(*args, **kwargs)
    returns = out if isinstance(out, tuple) else (() if out is None else (out,))
    fresh = [t for t in returns if not any(t is w for w in (bound[n] for n in names))]
    val = tuple(meta_of(t) for t in returns) or (None,)
    val = (*val, *(meta_of(bound[n]) for n in names))
    node = rec.em.call(auto_functionalized, (func,), nodes, val=val)
    if ops.is_random(func, bound):
        rec.random[node] = str(user_place() or func._schema.name)
    for i, t in enumerate(returns):
        if isinstance(t, torch.Tensor) and any(t is f for f in fresh) and compat.storage_key(t) not in rec.storages:
            rec.new_root(t, rec.em.item(node, i), data)
    first = max(1, len(returns))
    for k, v in enumerate(values):
        v.storage.data = v.storage.data or data
        write(rec.em, v, rec.em.item(node, first + k))
    return out

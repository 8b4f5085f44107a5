"""Making writes functional while they are recorded.

Real tensors tell by their storage which of them share memory. Every storage has one root value; a view remembers how it
comes from its parent. A write to a view becomes a new value for it, a scatter into its parent, and so up to the root;
other views of the same storage are made anew from their parents when they are next read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from vqc.frontend.emit import Emitter, aten

Geometry = tuple[Any, ...]


def geometry(t: torch.Tensor) -> Geometry:
    """What tells two tensors on one storage apart."""
    return (tuple(t.size()), tuple(t.stride()), t.storage_offset(), t.dtype, t.is_conj(), t.is_neg())


@dataclass(frozen=True)
class Picked:
    """Memory that is a copy here and a view of `base` in PyTorch, made at `place` when that had been written `version`
    times: as good as the view while neither is written."""

    place: str
    base: Storage
    version: int


@dataclass(eq=False)
class Storage:
    """One piece of memory: its root value, how often it was written, and what is known about its contents.

    `data`: the contents depend on the network's inputs. `unwritten`: where it was made by `empty` and not yet
    written. `external`: a tensor that was there before the recorded code ran. `saved`: the bytes before the first write
    to an external one.
    """

    key: int
    weak: Any
    data: bool = False
    version: int = 0
    unwritten: str | None = None
    external: torch.Tensor | None = None
    saved: torch.UntypedStorage | None = None
    opaque: bool = False
    picked: Picked | None = None
    roots: list[Value] = field(default_factory=list)
    known: dict[Geometry, Value] = field(default_factory=dict)


@dataclass(eq=False)
class Value:
    """What one tensor holds: the node of its contents as of `version`, and its parent when it is a view."""

    storage: Storage
    node: fx.Node
    shape: tuple[int, ...]
    where: Geometry
    version: int = 0
    parent: Value | None = None
    view: View | GatherView | None = None


@dataclass(frozen=True)
class View:
    """`target(parent, *args, **kwargs)`, and its result number `index` when it has several."""

    target: Any
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    index: int | None = None

    def apply(self, em: Emitter, base: fx.Node) -> fx.Node:
        node = em.call(self.target, (base, *self.args), dict(self.kwargs))
        return node if self.index is None else em.item(node, self.index)

    def invert(self, em: Emitter, base: fx.Node, new: fx.Node) -> fx.Node:
        """The parent's contents after this view of it became `new`."""
        was, shape = base.meta["val"], tuple(base.meta["val"].shape)
        if new.meta["val"].numel() == was.numel() and self.target in _RESHAPING:
            return em.reshape(new, shape)
        if self.target is aten.permute.default:
            dims = [d % len(shape) for d in self.args[0]]
            return em.call(aten.permute.default, (new, [dims.index(d) for d in range(len(dims))]))
        if self.target is aten.slice.Tensor:
            dim, start, end, step = self.args
            return _put_slice(em, base, new, dim, start, end, step)
        if self.target is aten.select.int:
            return em.call(aten.select_scatter.default, (base, new, *self.args))
        if self.target is aten.unbind.int:
            return em.call(aten.select_scatter.default, (base, new, self.args[0] if self.args else 0, self.index))
        if self.target in (aten.split.Tensor, aten.split_with_sizes.default):
            dim = self.args[1] if len(self.args) > 1 else 0
            sizes = self.args[0]
            start = sum(sizes[: self.index]) if isinstance(sizes, (list, tuple)) else sizes * (self.index or 0)
            return _put_slice(em, base, new, dim, start, start + new.meta["val"].shape[dim], 1)
        if self.target is aten.diagonal.default:
            return em.call(aten.diagonal_scatter.default, (base, new, *self.args), dict(self.kwargs))
        if self.target is aten.view_as_real.default:
            return em.call(aten.view_as_complex.default, (new,))
        if self.target is aten.view_as_complex.default:
            return em.call(aten.view_as_real.default, (new,))
        if self.target is aten.view.dtype:
            return em.call(aten.view.dtype, (new, was.dtype))
        return self._as_gather(shape).invert(em, base, new)

    def _as_gather(self, shape: tuple[int, ...]) -> GatherView:
        numbers = torch.arange(max(1, _count(shape)))[: _count(shape)].reshape(shape)
        picked = self.target(numbers, *self.args, **dict(self.kwargs))
        picked = picked if self.index is None else picked[self.index]
        return GatherView(picked.reshape(-1).contiguous(), tuple(picked.shape))


@dataclass(frozen=True, eq=False)
class GatherView:
    """A view given by the row-major numbers of the parent's elements: works for any strides."""

    numbers: torch.Tensor
    shape: tuple[int, ...]

    def apply(self, em: Emitter, base: fx.Node) -> fx.Node:
        flat = em.reshape(base, (base.meta["val"].numel(),))
        return em.reshape(
            em.call(aten.index_select.default, (flat, 0, em.constant(self.numbers, "constant_gather"))), self.shape
        )

    def invert(self, em: Emitter, base: fx.Node, new: fx.Node) -> fx.Node:
        flat = em.reshape(base, (base.meta["val"].numel(),))
        values = em.reshape(new, (new.meta["val"].numel(),))
        put = em.call(aten.scatter.src, (flat, 0, em.constant(self.numbers, "constant_gather"), values))
        return em.reshape(put, base.meta["val"].shape)


_RESHAPING = {
    aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.expand.default,
}  # fmt: skip


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def _put_slice(em: Emitter, base: fx.Node, new: fx.Node, dim: int, start: int, end: int, step: int) -> fx.Node:
    if new.meta["val"].shape == base.meta["val"].shape:
        return new
    return em.call(aten.slice_scatter.default, (base, new, dim, start, end, step))


def view_of(func: Any, args: tuple, kwargs: dict, parent: torch.Tensor, out: torch.Tensor) -> View:
    """The canonical form of a view operator that turned the real tensor `parent` into `out`.

    reshape for all that keep the row-major order, permute for all that move dimensions, slice with explicit bounds.
    """
    name = func._schema.name
    ndim = parent.ndim
    if name in _AS_RESHAPE and func is not aten.view.dtype:
        return View(aten.reshape.default, (list(out.shape),))
    if name in _AS_PERMUTE:
        return View(aten.permute.default, (_permutation(name, args, kwargs, ndim),))
    if name == "aten::slice":
        dim, start, end, step = _bound(func, args, kwargs)
        size = parent.shape[dim % ndim]
        first = _clamp(0 if start is None else start, size)
        last = max(first, _clamp(size if end is None else end, size))
        return View(aten.slice.Tensor, (dim % ndim, first, last, step))
    if name == "aten::select":
        dim, index = _bound(func, args, kwargs)
        return View(aten.select.int, (dim % ndim, index % parent.shape[dim % ndim]))
    if name == "aten::unsqueeze":
        return View(aten.unsqueeze.default, (_bound(func, args, kwargs)[0] % (ndim + 1),))
    if name == "aten::expand":
        return View(aten.expand.default, (list(out.shape),))
    return View(func, tuple(args[1:]), tuple(kwargs.items()))


def split_view(func: Any, args: tuple, kwargs: dict, parent: torch.Tensor) -> View:
    """The canonical form of a view operator with several results; `index` is still to be set."""
    bound = _bound(func, args, kwargs)
    dim = bound[-1] % parent.ndim
    if func._schema.name == "aten::unbind":
        return View(aten.unbind.int, (dim,))
    if func in _SPLITS:
        return View(_SPLITS[func], (bound[0], dim))
    return View(func, tuple(args[1:]), tuple(kwargs.items()))


_SPLITS = {
    aten.split.Tensor: aten.split.Tensor, aten.unsafe_split.Tensor: aten.split.Tensor,
    aten.split_with_sizes.default: aten.split_with_sizes.default,
    aten.unsafe_split_with_sizes.default: aten.split_with_sizes.default,
}  # fmt: skip
_AS_RESHAPE = {"aten::" + n for n in ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten")}
_AS_PERMUTE = {"aten::" + n for n in ("permute", "transpose", "t", "numpy_T")}


def _bound(func: Any, args: tuple, kwargs: dict) -> list[Any]:
    """All arguments after the first, in the schema's order, defaults filled in."""
    rest = func._schema.arguments[1:]
    given = list(args[1:])
    return [given[i] if i < len(given) else kwargs.get(a.name, a.default_value) for i, a in enumerate(rest)]


def _clamp(i: int, size: int) -> int:
    return min(max(i + size if i < 0 else i, 0), size)


def _permutation(name: str, args: tuple, kwargs: dict, ndim: int) -> list[int]:
    if name == "aten::permute":
        return [d % ndim for d in (args[1] if len(args) > 1 else kwargs["dims"])]
    dims = list(range(ndim))
    if name == "aten::transpose":
        a, b = [d % ndim for d in (*args[1:], *kwargs.values())]
        dims[a], dims[b] = dims[b], dims[a]
        return dims
    return dims[::-1]


def current(em: Emitter, value: Value) -> fx.Node:
    """The node of what the tensor holds now, made anew from its parent when the memory was written since."""
    if value.version != value.storage.version and value.parent is not None and value.view is not None:
        value.node = value.view.apply(em, current(em, value.parent))
        value.version = value.storage.version
    return value.node


def write(em: Emitter, value: Value, new: fx.Node) -> None:
    """The tensor now holds `new`: give its parents their new contents and mark all other views as stale."""
    chain: list[tuple[Value, fx.Node]] = [(value, new)]
    at, node = value, new
    while at.parent is not None and at.view is not None:
        base = current(em, at.parent)
        node = at.view.invert(em, base, node)
        at = at.parent
        chain.append((at, node))
    storage = value.storage
    written = {id(v) for v, _ in chain}
    untouched = [
        v for v in storage.known.values()
        if v.version == storage.version and id(v) not in written and _disjoint(v, value)
    ]  # fmt: skip
    storage.version += 1
    storage.unwritten = None
    for v, n in chain:
        v.node, v.version = n, storage.version
    for v in untouched:
        v.version = storage.version


def _disjoint(a: Value, b: Value) -> bool:
    """Whether two views surely share no element: somewhere up they are different pieces of one parent."""
    above = {id(v): child for child, v in _ancestors(a)}
    for child, v in _ancestors(b):
        if id(v) in above:
            first, second = _piece(above[id(v)]), _piece(child)
            return (
                first is not None and second is not None and first[0] == second[0]
                and (first[2] <= second[1] or second[2] <= first[1])
            )  # fmt: skip
    return False


def _ancestors(value: Value) -> list[tuple[Value, Value]]:
    """(child, parent) pairs from a view up to its root."""
    found = []
    while value.parent is not None:
        found.append((value, value.parent))
        value = value.parent
    return found


def _piece(value: Value) -> tuple[int, int, int] | None:
    """(dimension, first, last + 1) of the part of its parent a view covers, when it is such a part."""
    view = value.view
    if not isinstance(view, View) or value.parent is None:
        return None
    if view.target is aten.slice.Tensor:
        return view.args[0], view.args[1], view.args[2]
    if view.target is aten.select.int:
        return view.args[0], view.args[1], view.args[1] + 1
    if view.target is aten.unbind.int and view.index is not None:
        return view.args[0], view.index, view.index + 1
    if view.target in (aten.split.Tensor, aten.split_with_sizes.default) and view.index is not None:
        sizes, dim = view.args
        if isinstance(sizes, int):
            return dim, sizes * view.index, sizes * (view.index + 1)
        return dim, sum(sizes[: view.index]), sum(sizes[: view.index + 1])
    return None


def gather_numbers(root: Geometry, view: Geometry) -> torch.Tensor | None:
    """Row-major numbers of a root's elements that a strided view on its storage covers; None when it covers others."""
    r_size, r_stride, r_offset = root[:3]
    size, stride, offset = view[:3]
    (r_first, r_last), (first, last) = _extent(r_size, r_stride, r_offset), _extent(size, stride, offset)
    if first < r_first or last > r_last:
        return None
    if r_stride == _dense(r_size):
        return _spots(size, stride, offset) - r_offset
    spots = _spots(r_size, r_stride, r_offset)
    wanted = _spots(size, stride, offset)
    order = torch.argsort(spots)
    ordered = spots[order]
    at = torch.searchsorted(ordered, wanted).clamp_max(max(0, ordered.numel() - 1))
    if ordered.numel() == 0 or not torch.equal(ordered[at], wanted):
        return None
    return order[at].contiguous()


def _extent(size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> tuple[int, int]:
    """First and last place in memory of a strided tensor (places are not skipped by a negative stride)."""
    return offset, offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))


def _dense(size: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(size):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _spots(size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> torch.Tensor:
    spots = torch.tensor(offset)
    for n, s in zip(size, stride, strict=True):
        spots = spots.unsqueeze(-1) + torch.arange(n) * s
    return spots.reshape(-1)

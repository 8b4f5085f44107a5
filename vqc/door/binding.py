"""Code compiled for certain weights, and the check at every call that the weights are still those.

Dynamo gives two instances of a class one graph, and passes weights as inputs without a guard. So whoever folds or
packs a weight must look at every call whether the tensor is the same and unchanged: same object, same memory, same
version (PyTorch counts every in-place write). The check runs in C loops: 300 tensors cost about 40 microseconds.

One hole is PyTorch's own: a write through `.data` counts no version. `vqc.refresh()` is for that.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

_pointer = torch.Tensor.data_ptr
_version = operator.attrgetter("_version")

Run = Callable[..., Any]


def picker(indices: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A fast function that takes these items of a sequence, as a tuple whatever their number."""
    if not indices:
        return lambda values: ()
    if len(indices) == 1:
        only = indices[0]
        return lambda values: (values[only],)
    return operator.itemgetter(*indices)


class Binding:
    """A callable compiled for the constants at `indices` of a call's arguments and for the tensors in `held`.

    `run` takes the full flat arguments. The memory of the constants is kept (so that an address is never used
    again), the tensor objects are not: when one dies, the binding is dead.
    """

    def __init__(self, run: Run, indices: Sequence[int], args: Sequence[Any], held: Sequence[torch.Tensor] = (),
                 shapes: tuple[Any, ...] | None = None):  # fmt: skip
        self.run = run
        self.indices = tuple(indices)
        self.shapes = shapes
        self.alive = True
        self._pick = picker(indices)
        tensors = self._pick(args)
        self.ids = list(map(id, tensors))
        self._pointers = list(map(_pointer, tensors))
        self._versions = list(map(_version, tensors))
        self._held = tuple(held)
        self._held_pointers = list(map(_pointer, held))
        self._held_versions = list(map(_version, held))
        self._storages = [t.untyped_storage() for t in (*tensors, *held)]
        self.storage_pointers = frozenset(s.data_ptr() for s in self._storages)
        me = weakref.ref(self)

        def died(_: Any) -> None:
            binding = me()
            if binding is not None:
                binding.kill()

        self._watch = [weakref.ref(t, died) for t in tensors]

    def kill(self) -> None:
        """Drop the compiled code and the memory it was made for."""
        self.alive = False
        self._storages = []
        self.run = _dead

    def matches(self, args: Sequence[Any]) -> bool:
        """Whether the constants among these arguments are the very ones this was compiled for, unchanged."""
        tensors = self._pick(args)
        return (
            self.alive
            and list(map(id, tensors)) == self.ids
            and list(map(_pointer, tensors)) == self._pointers
            and list(map(_version, tensors)) == self._versions
            and (not self._held or self._held_unchanged())
        )

    def _held_unchanged(self) -> bool:
        return (
            list(map(_pointer, self._held)) == self._held_pointers
            and list(map(_version, self._held)) == self._held_versions
        )

    def changed(self, args: Sequence[Any]) -> tuple[list[int], list[int]]:
        """Arguments that are another tensor than the bound one, and those that are the same with other contents."""
        replaced, written = [], []
        for k, (i, t) in enumerate(zip(self.indices, self._pick(args), strict=True)):
            if id(t) != self.ids[k]:
                replaced.append(i)
            elif t.data_ptr() != self._pointers[k] or t._version != self._versions[k]:
                written.append(i)
        return replaced, written


def _dead(*args: Any) -> Any:
    raise RuntimeError("a dead binding was called")  # matches() is false for a dead one: a defect of the caller

"""What a Dynamo graph does with its inputs: which it writes, which are constants, which it hands to sub-graphs.

A parameter reaches the backend as an input. It may be bound as a constant only if the graph does not write it and no
tensor the graph writes shares its memory. Found by running the graph once on fake tensors under a watcher of every
operator, so that a write through a view, a list or an in-place method is seen like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from vqc import compat
from vqc.program import op_text

_TRAINING_FLAGS = ("training", "use_input_stats")  # batch norm writes its statistics without saying so in its schema


@dataclass(frozen=True)
class Facts:
    """Indices into a graph's inputs. `unknown` says why nothing is known, "" when everything is."""

    written: frozenset[int] = frozenset()  # with every input that shares memory with a written one
    aliased: bool = False  # two inputs share memory that is written
    opaque: frozenset[int] = frozenset()  # handed to a higher-order operator, whose body was not watched
    differentiable: bool = False  # a result, or a written input, depends on something that requires gradients
    unknown: str = ""


class _Watch(TorchDispatchMode):
    """Notes the storages that operators write, and those that higher-order operators are given."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.written: set[int] = set()
        self.opaque: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            self.opaque |= set(_storages((args, kwargs)))
            return func(*args, **kwargs)
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for a in func._schema.arguments:
            if a.alias_info is not None and a.alias_info.is_write and a.name in named:
                self.written |= set(_storages(named[a.name]))
        if any(named.get(flag) is True for flag in _TRAINING_FLAGS):
            self.written |= set(_storages((named.get("running_mean"), named.get("running_var"))))
        return func(*args, **kwargs)


def _storages(values: Any) -> Iterator[int]:
    for x in pytree.tree_leaves(values):
        if isinstance(x, torch.Tensor):
            yield x.untyped_storage()._cdata


def plain(value: Any) -> bool:
    """Whether a value is an ordinary dense tensor with memory of its own to look at."""
    return (
        isinstance(value, torch.Tensor)
        and type(value) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and value.layout is torch.strided
        and not isinstance(value, FakeTensor)
        and value.device.type != "meta"
    )


def study(gm: fx.GraphModule, inputs: Sequence[Any]) -> Facts:
    """Run the graph once on fake copies of `inputs` (real tensors and numbers) and say what it does with them."""
    strange = [x for x in inputs if isinstance(x, torch.Tensor) and not plain(x)]
    if strange:
        kind = f"{type(strange[0]).__name__} on {strange[0].device} ({strange[0].layout})"
        return Facts(unknown=f"an input is a {kind}", differentiable=differentiates(inputs))
    mode, fakes = compat.fakes(inputs)
    watch = _Watch()
    try:
        with compat.outside_tracing(), torch.set_grad_enabled(torch.is_grad_enabled()), mode, watch:
            results = gm(*fakes)
    except compat.data_errors() as e:
        operator = getattr(e, "func", None)
        what = f"{op_text(operator)} reads the data" if operator else "a size or a branch depends on the data"
        return Facts(unknown=what, differentiable=differentiates(inputs))
    storage = {i: x.untyped_storage()._cdata for i, x in enumerate(fakes) if isinstance(x, torch.Tensor)}
    written = {i for i, s in storage.items() if s in watch.written}
    aliased = len({storage[i] for i in written}) < len(written)
    opaque = {i for i, s in storage.items() if s in watch.opaque}
    touched = [x for x in pytree.tree_leaves(results) if isinstance(x, torch.Tensor)] + [fakes[i] for i in written]
    return Facts(frozenset(written), aliased, frozenset(opaque), any(x.requires_grad for x in touched))


def is_constant(node: fx.Node, value: Any) -> bool:
    """Whether a graph input holds a weight: a registered parameter or buffer whose changes can be noticed.

    A plain attribute is none: `self.hidden = new` makes it a state. A tensor made under inference_mode counts no
    versions, so an in-place change of it could not be noticed.
    """
    return compat.is_static_input(value) and compat.is_registered(node) and plain(value) and not value.is_inference()


def differentiates(inputs: Sequence[Any]) -> bool:
    """Whether a call with these inputs records gradients."""
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)

"""A barrier against wrong folding: what keeps Inductor from changing a network's meaning when weights are frozen.

Frozen Inductor folds `conv(x) + c`, `- c`, `* c`, `/ c` with a constant c (batch norm becomes these) into the filter.
It takes the filter's first axis for the result's channels. Four cases come out wrong or fail (torch 2.13):

* a transposed convolution: its first axis are the channels that come in;
* a constant that runs along the width, or height, and is as long as there are channels;
* `torch.add(conv(x), c, alpha=a)`: the factor is lost;
* two Python numbers in one graph: the second is taken for both (they are kept under one name).

There a view that changes nothing is put between the two; it is dropped after freezing, and the filter is packed as
ever.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from vqc import compat

aten = torch.ops.aten
_FOLDED = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}


class FoldingBarrier(CustomGraphPass):
    """Runs on the ATen graph before freezing. `before`: a pass of the user's own, run first."""

    def __init__(self, before: Any = None):
        self.before = before

    def __call__(self, graph: fx.Graph) -> None:
        if self.before is not None:
            self.before(graph)
        for conv in graph.find_nodes(op="call_function", target=aten.convolution.default):
            _protect(graph, conv)

    def uuid(self) -> Any:
        own = get_hash_for_files((__file__, compat.__file__))  # code of Inductor's cache was made with both
        return own if self.before is None else (own, self.before.uuid())


def _protect(graph: fx.Graph, conv: fx.Node) -> None:
    """Follow the chain that would be folded, one after the other, up to the first link that would come out wrong."""
    link = conv
    while len(link.users) == 1:  # what has more users is never folded
        user = next(iter(link.users))
        if user.target not in _FOLDED:
            return
        other = user.args[1] if user.args[0] is link else user.args[0]
        if not _would_fold(conv, other):
            return
        if not _folds_right(conv, other) or user.kwargs:
            with graph.inserting_before(user):
                view = graph.call_function(aten.view.default, (link, list(link.meta["val"].shape)))
            view.meta["val"] = link.meta["val"]
            user.replace_input_with(link, view)
            return
        link = user


def _shapes(conv: fx.Node, other: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the filter and of the other operand."""
    return tuple(conv.args[1].meta["val"].shape), tuple(other.meta["val"].shape)


def _would_fold(conv: fx.Node, other: Any) -> bool:
    """Whether Inductor takes the other operand for one value a channel, by its shape, if it is a constant at all."""
    if not isinstance(other, fx.Node):
        return True
    if not isinstance(other.meta.get("val"), torch.Tensor):
        return False  # a size or number that is known at run time only
    weight, value = _shapes(conv, other)
    channel = 0 if len(weight) == len(value) + 1 else 1
    return len(weight) >= len(value) and all(
        size == 1 or (axis == channel and size == weight[0]) for axis, size in enumerate(value)
    )


def _folds_right(conv: fx.Node, other: Any) -> bool:
    """Whether the other operand really is a tensor of one value, or of one a channel of what comes out."""
    transposed = conv.args[6]
    if transposed or not isinstance(other, fx.Node):
        return False
    weight, value = _shapes(conv, other)
    channel = len(value) - len(weight) + 1  # where the result's channels stand in the operand
    return all(size == 1 or axis == channel for axis, size in enumerate(value))

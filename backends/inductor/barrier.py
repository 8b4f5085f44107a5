"""A barrier against wrong folding: what keeps Inductor from changing a network's meaning when weights are frozen.

Frozen Inductor folds `conv(x) + c`, `- c`, `* c`, `/ c` with a constant c (batch norm becomes these) into the filter. It
takes the filter's first axis for the result's channels. Three cases come out wrong or fail (torch 2.13):

* a transposed convolution: its first axis are the channels that come in;
* a constant that runs along the width, or height, and is as long as there are channels;
* `torch.add(conv(x), c, alpha=a)`: the factor is lost.

There a view that changes nothing is put between the two; it is dropped after freezing, and the filter is packed as ever.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

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
            if len(conv.users) != 1:
                continue  # never folded
            user = next(iter(conv.users))
            if user.target in _FOLDED and not _folds_right(conv, user):
                with graph.inserting_before(user):
                    view = graph.call_function(aten.view.default, (conv, list(conv.meta["val"].shape)))
                view.meta["val"] = conv.meta["val"]
                user.replace_input_with(conv, view)

    def uuid(self) -> Any:
        own = get_hash_for_files((__file__,))
        return own if self.before is None else (own, self.before.uuid())


def _folds_right(conv: fx.Node, user: fx.Node) -> bool:
    transposed = conv.args[6]
    if transposed or user.kwargs:
        return False
    other = user.args[1] if user.args[0] is conv else user.args[0]
    if not isinstance(other, fx.Node):
        return True  # a number
    value = other.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return False
    if value.numel() == 1:
        return value.ndim <= conv.meta["val"].ndim
    batch_axes = conv.meta["val"].ndim - conv.args[1].meta["val"].ndim + 1  # type: ignore[union-attr]
    channel = value.ndim - conv.meta["val"].ndim + batch_axes  # where the result's channels stand in the constant
    return channel >= 0 and all(size == 1 for axis, size in enumerate(value.shape) if axis != channel)

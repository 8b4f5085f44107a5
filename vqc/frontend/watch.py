"""What never reaches the dispatcher: reads of a tensor's memory by Python, tensors made from lists, printing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from vqc.errors import CaptureError
from vqc.frontend.decisions import WAYS_OUT
from vqc.frontend.operators import READS
from vqc.frontend.source import user_place

if TYPE_CHECKING:
    from vqc.frontend.recorder import Recorder

_PRINTS = {torch.Tensor.__repr__, torch.Tensor.__format__}
_INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
_PLAIN = (slice, int, type(None), type(...), torch.Tensor)
_FROM_LISTS = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}


class Watch(TorchFunctionMode):
    """Listens to torch functions on behalf of a recorder."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS and args and self.recorder.is_data(args[0]):
            raise CaptureError(
                f"{READS[func]} on a tensor that depends on the input cannot be captured",
                where=str(user_place() or ""), why="its values leave PyTorch, so what is done with them is not seen",
                way_out=WAYS_OUT,
            )  # fmt: skip
        if func in _PRINTS:
            with self.recorder.paused():
                return func(*args, **kwargs)
        if func is torch.Tensor.__deepcopy__ and self.recorder.is_data(args[0]):
            return args[0].clone()
        if func in _INDEXING and (found := _one_index(self.recorder, args[0], args[1])):
            index, behind = found
            if func is torch.Tensor.__setitem__:
                value = args[2]
                several = isinstance(value, torch.Tensor) and value.ndim > behind
                return func(args[0], index, value.unsqueeze(-1 - behind) if several else value)
            picked = func(args[0], index).squeeze(-1 - behind)
            self.recorder.pick(picked, args[0])
            return picked
        if func in _FROM_LISTS:
            values = args[1] if func is torch.Tensor.new_tensor else (args[0] if args else kwargs.get("data"))
            if isinstance(values, (list, tuple)) and any(
                isinstance(x, torch.Tensor) and self.recorder.is_data(x) for x in pytree.tree_leaves(values)
            ):
                return _stacked(values, kwargs.get("dtype"))
        return func(*args, **kwargs)


def _one_index(recorder: Recorder, tensor: torch.Tensor, index: Any) -> tuple[tuple[Any, ...], int] | None:
    """An index such as `[:, pos]`, where `pos` is a number in a tensor that depends on the data, without reading `pos`.

    PyTorch reads it, and takes a slice. Given as a tensor of one element it stays in the graph, and its dimension of
    one stays in the result: `behind` is how many dimensions come after that. None for any other index.
    """
    items = index if isinstance(index, tuple) else (index,)
    own = [i for i, x in enumerate(items) if isinstance(x, torch.Tensor)]
    if len(own) != 1 or any(isinstance(x, bool) or not isinstance(x, _PLAIN) for x in items):
        return None
    at, number = own[0], items[own[0]]
    if number.ndim or number.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8):
        return None
    if not recorder.is_data(number):
        return None
    after = sum(isinstance(x, slice) or x is None for x in items[at + 1 :])
    if ... not in items[:at]:
        after += tensor.ndim - sum(x is not None and x is not ... for x in items)
    return (*items[:at], number.reshape(1), *items[at + 1 :]), after


def _stacked(values: Any, dtype: torch.dtype | None) -> torch.Tensor:
    """What torch.tensor makes of nested lists of one-element tensors and numbers, by operators."""
    if isinstance(values, torch.Tensor):
        result = values.detach().reshape(()) if values.numel() == 1 else values.detach()
    elif isinstance(values, (list, tuple)):
        parts = [_stacked(v, dtype) for v in values]
        common = parts[0].dtype
        for p in parts[1:]:
            common = torch.promote_types(common, p.dtype)
        result = torch.stack([p.to(common) for p in parts])
    else:
        result = torch.full((), values)
    return result if dtype is None else result.to(dtype)

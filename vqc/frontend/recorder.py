"""The recorder: runs the user's code on real tensors and writes down every operator as a functional graph.

Nothing is traced symbolically. Python control flow, caches, loggers, hashed objects and checkpointing simply run; what
is written down is the straight line of operators that ran. Whether a value depends on the network's inputs is known for
every tensor, so a read of a constant's value is just a read, and a read of the data's value is a `Decision`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from vqc.errors import CaptureError
from vqc.frontend import compat
from vqc.frontend import operators as ops
from vqc.frontend.decisions import WAYS_OUT, Decision, Plan, TooLong
from vqc.frontend.emit import Emitter, aten
from vqc.frontend.functionalize import (
    GatherView,
    Geometry,
    Picked,
    Storage,
    Value,
    View,
    current,
    gather_numbers,
    geometry,
    split_view,
    view_of,
)
from vqc.frontend.operators import tensors_in
from vqc.frontend.source import ModuleTrail, user_place
from vqc.frontend.watch import Watch
from vqc.program import meta_of

Names = dict[tuple[int, Geometry], str]


class Recorder:
    """One recording. Use `with recorder.recording():` around the user's code, then `node_of(tensor)`.

    `names` gives parameters and buffers their names; `plan` says how reads of the data are answered.
    """

    def __init__(self, names: Names | None = None, trail: ModuleTrail | None = None, plan: Plan | None = None):
        self.names = names or {}
        self.trail = trail or ModuleTrail({})
        self.plan = plan or Plan()
        self.em = Emitter(self._tags)
        self.storages: dict[int, Storage] = {}
        self.mode = compat.PreDispatchMode(self._pre)
        self.count = 0
        self.random: dict[fx.Node, str] = {}
        self.dynamic: dict[fx.Node, str] = {}  # results of nonzero that wait for a use with a fixed shape
        self.written: list[Storage] = []
        self.override: dict[str, Any] | None = None  # tags taken from a graph that is interpreted
        self.keep_scan = False
        self.lifted: list[torch.Tensor] | None = None  # a scan body takes what it closes over as inputs
        self._paused = False

    # ---- the user's side ---------------------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything run inside is recorded."""
        from vqc.frontend.higher_order import rules

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(compat.eager_stance())
            stack.enter_context(compat.higher_order(compat.PreDispatchMode, *rules(self)))
            stack.enter_context(self.trail.watching())
            stack.enter_context(Watch(self))
            stack.enter_context(compat.listen())
            stack.enter_context(self.mode)
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operators run inside are not recorded (for printing a tensor)."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def input(self, name: str, tensor: torch.Tensor, keep: bool = False) -> fx.Node:
        """Make a tensor an input of the graph; all inputs come before the recording.

        `keep`: the tensor belongs to the model, so its bytes are saved before the first write.
        """
        self.em.device = tensor.device
        node = self.em.placeholder(name, tensor)
        value = self.new_root(tensor, node, data=True)
        if keep:
            value.storage.external = tensor
        return node

    def is_data(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's contents depend on the inputs."""
        storage = self.storages.get(compat.storage_key(tensor))
        return storage is not None and storage.data

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node of what a tensor holds now."""
        value = self.value_of(tensor)
        self._check_written(value)
        return current(self.em, value)

    # ---- values ------------------------------------------------------------------------------------------------------

    def _tags(self) -> dict[str, Any]:
        if self.override is not None:
            return dict(self.override)
        return {"place": user_place(), "module": self.trail.current}

    def _storage(self, tensor: torch.Tensor) -> Storage:
        key = compat.storage_key(tensor)
        if key == -1:
            raise CaptureError(f"a {tensor.layout} tensor cannot be captured", where=str(user_place() or ""),
                               way_out="convert it with to_dense() before the network")  # fmt: skip
        storage = self.storages.get(key)
        if storage is None:
            storage = self.storages[key] = Storage(key, compat.weak_storage(tensor))
        return storage

    def new_root(self, tensor: torch.Tensor, node: fx.Node, data: bool) -> Value:
        """A tensor on new memory, holding a node's value."""
        storage = self._storage(tensor)
        storage.data = storage.data or data
        where = geometry(tensor)
        value = Value(storage, node, tuple(tensor.shape), where, storage.version)
        storage.roots.append(value)
        storage.known[where] = value
        return value

    def value_of(self, tensor: torch.Tensor) -> Value:
        """What is known of a tensor; one that nobody saw being made is taken in."""
        storage = self._storage(tensor)
        where = geometry(tensor)
        value = storage.known.get(where)
        return value if value is not None else self._adopt(tensor, storage, where)

    def _adopt(self, tensor: torch.Tensor, storage: Storage, where: Geometry) -> Value:
        """A tensor nobody saw being made: another view of known memory (`.data`), or a constant from outside."""
        for root in storage.roots:
            if root.where[3] == tensor.dtype:
                numbers = gather_numbers(root.where, where)
                if numbers is not None:
                    return self._new_view(tensor, root, GatherView(numbers, tuple(tensor.shape)))
        if storage.data:
            raise CaptureError("memory that depends on the data is read in a way that cannot be followed",
                               where=str(user_place() or ""), why="a tensor was laid over it outside operators",
                               way_out="use PyTorch's view operators instead of set_ or storage tricks")  # fmt: skip
        if storage.roots and storage.version:
            raise CaptureError("two tensors share memory and one of them is written in forward",
                               where=str(user_place() or ""), way_out="clone one of them in __init__")  # fmt: skip
        name = self.names.get((storage.key, where))
        if name is None:
            name = f"{self.trail.current}.constant".lstrip(".")
        if self.lifted is not None:
            self.lifted.append(tensor)
            return self.new_root(tensor, self.em.lifted(tensor, f"closed_{len(self.lifted)}"), data=True)
        storage.external = tensor
        return self.new_root(tensor, self.em.constant(tensor.detach(), name), data=False)

    def _new_view(self, tensor: torch.Tensor, parent: Value, view: View | GatherView, node: fx.Node | None = None
                  ) -> Value:  # fmt: skip
        where = geometry(tensor)
        storage = parent.storage
        known = storage.known.get(where)
        if known is None:
            node = node if node is not None else view.apply(self.em, current(self.em, parent))
            known = Value(storage, node, tuple(tensor.shape), where, storage.version, parent, view)
            storage.known[where] = known
        return known

    def pick(self, tensor: torch.Tensor, base: torch.Tensor) -> None:
        """Remember that a tensor just made is a copy of what is a view of `base` in PyTorch."""
        storage = self.value_of(base).storage
        self.value_of(tensor).storage.picked = Picked(str(user_place() or ""), storage, storage.version)

    def _check_written(self, value: Value) -> None:
        picked = value.storage.picked
        if picked is not None and picked.base.version != picked.version:
            raise CaptureError(
                "a part of a tensor that was picked by a number in a tensor is read after the tensor was written",
                where=str(user_place() or ""),
                why=f"it was picked at {picked.place}, and PyTorch shows the new values in it",
                way_out="take a clone() of it where it is picked, or pick it again after the write",
            )
        made = value.storage.unwritten
        if made is not None and _numel(value.shape):
            raise CaptureError(
                "memory is read that no PyTorch operator has written",
                where=str(user_place() or ""),
                why=f"it was made by {made} and filled outside PyTorch's view (a raw-pointer extension?)",
                way_out="register the code that fills it with torch.library.custom_op, or use torch.compile",
            )

    def nodes(self, tree: Any) -> Any:
        """The same structure with every tensor replaced by the node of what it holds now."""

        def one(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            value = self.value_of(x)
            self._check_written(value)
            return current(self.em, value)

        return pytree.tree_map(one, tree)

    # ---- dispatch ----------------------------------------------------------------------------------------------------

    def _pre(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if self._paused:
            with compat.plain():
                return func(*args, **kwargs)
        tensors = tensors_in((args, kwargs))
        if torch.is_autocast_enabled(self.em.device.type) or any(compat.is_wrapped(t) for t in tensors):
            with compat.plain(), compat.LowMode(self._record):
                return func(*args, **kwargs)
        if func not in ops.WHOLE and compat.is_composite(func):
            return self._open(func, args, kwargs)
        with compat.plain():
            return self._record(func, args, kwargs)

    def _open(self, func: Any, args: tuple, kwargs: dict) -> Any:
        name = func._schema.name
        if name == "aten::repeat_interleave" and any(self.is_data(t) for t in tensors_in((args, kwargs))[1:]):
            raise self.refusal("repeat_interleave with counts from the data")
        if name == "aten::one_hot" and ops.bind(func, args, kwargs)["num_classes"] > 0:
            with self.mode:  # without its look at the largest index
                return (args[0].unsqueeze(-1) == torch.arange(ops.bind(func, args, kwargs)["num_classes"])).long()
        if name in ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"):
            with compat.without_mkldnn(), self.mode:
                return compat.open_composite(func, args, kwargs)
        with self.mode:
            return compat.open_composite(func, args, kwargs)

    def _record(self, func: Any, args: tuple, kwargs: dict) -> Any:
        func, args, kwargs = ops.without_noise(func, args, kwargs)
        name = func._schema.name
        self.count += 1
        if self.plan.limit and self.count > self.plan.limit:
            raise TooLong
        if name in ops.IGNORED:
            return func(*args, **kwargs)
        if name in ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"):
            return self._read(func, args, kwargs)
        if name in ops.FACTORIES:
            return self._factory(func, args, kwargs)
        if name in ops.REPLACES_MEMORY and any(self.is_data(t) for t in tensors_in((args, kwargs))):
            raise self.refusal(name.replace("::", "."), "it replaces a tensor's memory")
        if name in ops.CHANGES_METADATA:
            return self._change_metadata(func, args, kwargs)
        if ops.written_names(func):
            from vqc.frontend.writes import record_write

            return record_write(self, func, args, kwargs)
        return self._pure(func, args, kwargs)

    def refusal(self, what: str, why: str = "its result's shape depends on the values in the data") -> CaptureError:
        return CaptureError(f"{what} cannot be captured", where=str(user_place() or ""), why=why, way_out=WAYS_OUT)

    # ---- kinds of operators ------------------------------------------------------------------------------------------

    def _read(self, func: Any, args: tuple, kwargs: dict) -> Any:
        value = func(*args, **kwargs)
        if not any(self.is_data(t) for t in tensors_in((args, kwargs))):
            return value
        name = func._schema.name.removeprefix("aten::")
        if name == "equal":
            if args[0].shape != args[1].shape:
                return value
            same = self.em.call(aten.eq.Tensor, tuple(self.nodes(args[:2])))
            node = self.em.call(aten.all.default, (same,))
        else:
            node = self.em.reshape(self.node_of(args[0]), ())
            if isinstance(value, bool) and node.meta["val"].dtype != torch.bool:
                node = self.em.call(aten.ne.Scalar, (node, 0))
        shown = {"item": "item()", "_local_scalar_dense": "item()", "is_nonzero": "bool()", "equal": "torch.equal"}[
            name
        ]
        return self.plan.answer(Decision(shown, user_place(), node, value))

    def _factory(self, func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
        out: torch.Tensor = func(*args, **kwargs)
        name = func._schema.name
        number: Any = 0
        if name in ops.ONES:
            number = 1
        elif name in ops.FULLS:
            number = ops.bind(func, args, kwargs)["fill_value"]
            if isinstance(number, torch.Tensor):
                number = number.item()
        value = self.new_root(out, self.em.fill(out.shape, number, out.dtype), data=False)
        if name in ops.EMPTIES:
            value.storage.unwritten = f"{name.removeprefix('aten::')} at {user_place()}"
        return out

    def _change_metadata(self, func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
        tensor: torch.Tensor = args[0]
        parent = self.value_of(tensor)
        before = tensor.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        func(*args, **kwargs)
        packet = getattr(aten, func._schema.name.removeprefix("aten::")[:-1])
        form = getattr(packet, func._overloadname if func._overloadname in packet.overloads() else "int")
        if parent.storage.known.get(geometry(tensor)) is None:
            view = view_of(form, (before, *args[1:]), kwargs, before, tensor)
            self._new_view(tensor, parent, view)
        return tensor

    def _pure(self, func: Any, args: tuple, kwargs: dict) -> Any:
        name = func._schema.name
        bound = ops.bind(func, args, kwargs)
        func, args, kwargs = self._prepared(func, args, kwargs, bound)
        tensors = tensors_in((args, kwargs))
        data = any(self.is_data(t) for t in tensors)
        if data and name in ops.SHAPE_FROM_DATA and name != "aten::nonzero_numpy":
            raise self.refusal(name.replace("::", "."))
        if data and name in ("aten::index", "aten::_unsafe_index"):
            masks = [t for t in bound["indices"] if t is not None and t.dtype in (torch.bool, torch.uint8)]
            if any(self.is_data(t) for t in masks):
                raise self.refusal("indexing with a mask from the data")
        out = func(*args, **kwargs)
        by_key = {compat.storage_key(t): t for t in reversed(tensors)}
        outs = tensors_in(out)
        aliases = [compat.storage_key(t) in by_key for t in outs]
        if isinstance(out, torch.Tensor) and aliases[0]:
            self._alias(func, args, kwargs, by_key[compat.storage_key(out)], out)
            return out
        if outs and isinstance(out, (list, tuple)) and all(aliases):
            self._alias_many(func, args, kwargs, by_key[compat.storage_key(outs[0])], out)
            return out
        if not outs:
            return out
        if name in ("aten::clone", "aten::lift_fresh_copy") or (
            name == "aten::_to_copy" and out.dtype == tensors[0].dtype
        ):
            self.new_root(out, self.node_of(tensors[0]), data)
            return out
        node_args, node_kwargs = self.nodes((args, kwargs))
        node = self.em.call(func, node_args, node_kwargs, val=meta_of(out))
        if ops.is_random(func, bound):
            self.random[node], data = str(user_place() or name), True
        if data and name == "aten::nonzero_numpy":
            self.dynamic[node] = str(user_place() or "")
        if isinstance(out, torch.Tensor):
            self.new_root(out, node, data)
        else:
            for i, t in enumerate(out):
                if isinstance(t, torch.Tensor):
                    self.new_root(t, self.em.item(node, i), data)
        return out

    def _prepared(self, func: Any, args: tuple, kwargs: dict, bound: dict) -> tuple[Any, tuple, dict]:
        """Operators that write to their arguments without saying so are called in a form that does not."""
        name = func._schema.name
        if name == "aten::batch_norm" and bound["training"]:
            return func, (*args[:3], None, None, True, *args[6:]), kwargs
        if name == "aten::instance_norm" and bound["use_input_stats"]:
            return func, (*args[:3], None, None, True, *args[6:]), kwargs
        return func, args, kwargs

    def _alias(self, func: Any, args: tuple, kwargs: dict, base: torch.Tensor, out: torch.Tensor) -> None:
        parent = self.value_of(base)
        if parent.storage.known.get(geometry(out)) is not None:
            return
        if args and args[0] is base and func not in (aten.as_strided.default,):
            view = view_of(func, args, kwargs, base, out)
            self._new_view(out, parent, view, self._call_view(view, parent, out))
        else:
            self.value_of(out)  # laid over the memory by its strides

    def _call_view(self, view: View, parent: Value, out: Any) -> fx.Node:
        base = current(self.em, parent)
        return self.em.call(view.target, (base, *view.args), dict(view.kwargs), val=meta_of(out))

    def _alias_many(self, func: Any, args: tuple, kwargs: dict, base: torch.Tensor, outs: Any) -> None:
        parent = self.value_of(base)
        view = split_view(func, args, kwargs, base)
        node = self._call_view(view, parent, tuple(outs))
        for i, t in enumerate(outs):
            item = View(view.target, view.args, view.kwargs, i)
            self._new_view(t, parent, item, self.em.item(node, i))


def _numel(shape: tuple[int, ...]) -> int:
    return 0 if 0 in shape else 1

"""One capture in progress: runs the target again and again from the same Python state, recording each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from vqc.errors import CaptureError
from vqc.frontend import compat
from vqc.frontend.decisions import Plan
from vqc.frontend.functionalize import geometry
from vqc.frontend.recorder import Names, Recorder
from vqc.frontend.snapshot import Slot, Snapshot, slots
from vqc.frontend.source import ModuleTrail
from vqc.frontend.target import Target


@dataclass
class SlotState:
    """A recurrent tensor the model keeps in itself: where, and its value at the first frame."""

    slot: Slot
    reset: torch.Tensor
    name: str
    none_first: bool = False


@dataclass
class Recording:
    """The outcome of one run: the functional graph's parts, still in the recorder's graph."""

    recorder: Recorder
    results: list[Any]  # flat leaves of the user's result: nodes, or plain values
    out_spec: pytree.TreeSpec
    out_paths: list[str]
    next_slots: list[fx.Node]  # next value of every SlotState
    slots_after: dict[str, Any] = field(default_factory=dict)  # slots whose tensor depends on the data
    mutated_inputs: dict[str, fx.Node] = field(default_factory=dict)


class Session:
    """Holds the arguments and the model's state at the start; `record` and `eager` both begin from there."""

    def __init__(self, target: Target, args: tuple, kwargs: dict):
        self.target = target
        self.leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.names = target.leaf_names(args, kwargs)
        self.snapshot = Snapshot(target.roots)
        self.start = slots(target.roots)
        self.weights = self._weight_names()
        self.slot_states: list[SlotState] = []
        self.state_leaves: list[int] = []  # leaves that are states, in the order of the states
        self._bytes: dict[int, tuple[torch.Tensor, torch.UntypedStorage]] = {}

    def _weight_names(self) -> Names:
        names: Names = {}
        for path, slot in self.start.items():
            tensor = slot.get()
            if isinstance(tensor, torch.Tensor) and compat.storage_key(tensor) != -1:
                names.setdefault((compat.storage_key(tensor), geometry(tensor)), path)
        return names

    # ---- arguments -----------------------------------------------------------------------------------------------

    def fresh(self, leaves: Sequence[Any] | None = None) -> tuple[list[Any], tuple, dict]:
        """Copies of the leaves and the arguments built of them, so that nothing the user holds is written."""
        copies = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in (leaves or self.leaves)]
        args, kwargs = pytree.tree_unflatten(copies, self.spec)
        return copies, args, kwargs

    def input_leaves(self) -> list[int]:
        """Numbers of the leaves that are the program's inputs."""
        return [i for i, x in enumerate(self.leaves) if isinstance(x, torch.Tensor) and i not in self.state_leaves]

    # ---- running -------------------------------------------------------------------------------------------------

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The model's state as it was before capture, at the start and at the end."""
        self._restore()
        try:
            yield
        finally:
            self._restore()

    def _restore(self) -> None:
        self.snapshot.restore()
        with torch.no_grad():
            for tensor, saved in self._bytes.values():
                tensor.untyped_storage().copy_(saved)

    def keep_bytes(self) -> None:
        """Before plain eager runs: copy every tensor that a recording found written in place."""
        for tensor in [s.get() for s in self.start.values()]:
            if isinstance(tensor, torch.Tensor) and compat.storage_key(tensor) in self._written:
                self._bytes.setdefault(compat.storage_key(tensor), (tensor, tensor.untyped_storage().clone()))

    _written: frozenset[int] = frozenset()

    def record(self, plan: Plan | None = None) -> Recording:
        """Run the target once from the start and record it. Errors of the user's code come through as they are."""
        trail = ModuleTrail({id(m): n for n, m in self.target.modules.items()})
        recorder = Recorder(self.weights, trail, plan)
        try:
            self._restore()
            return self._record(recorder)
        finally:
            for storage in recorder.written:
                if storage.saved is not None and storage.external is not None:
                    self._bytes.setdefault(storage.key, (storage.external, storage.saved))
            self._written = self._written | {s.key for s in recorder.written if s.external is not None}
            self._restore()

    def _record(self, recorder: Recorder) -> Recording:
        copies, args, kwargs = self.fresh()
        for i in [*self.input_leaves(), *self.state_leaves]:
            recorder.input(self.names[i], copies[i])
        resets = [s.reset.clone() for s in self.slot_states]
        for s, tensor in zip(self.slot_states, resets, strict=True):
            recorder.input(s.name, tensor)
            s.slot.set(tensor)
        with recorder.recording():
            out = self.target.run(recorder, args, kwargs)
            with recorder.paused():
                pairs, spec = pytree.tree_flatten_with_path(out)
            results = [recorder.node_of(x) if isinstance(x, torch.Tensor) else _plain(x) for _, x in pairs]
            after = slots(self.target.roots)
            nexts = []
            for s in self.slot_states:
                now = after[s.slot.path].get() if s.slot.path in after else None
                if not isinstance(now, torch.Tensor):
                    now = resets[len(nexts)]
                nexts.append(recorder.node_of(now))
            changed = self._changed(recorder, after)
            mutated = {}
            for i in self.input_leaves():
                value = recorder._value(copies[i])
                if value.storage.version:
                    mutated[self.names[i]] = recorder.node_of(copies[i])
        paths = [_path_text(p) for p, _ in pairs]
        return Recording(recorder, results, spec, paths, nexts, changed, mutated)

    def _changed(self, recorder: Recorder, after: dict[str, Slot]) -> dict[str, tuple[Slot, torch.Tensor]]:
        """Slots whose tensor depends on the data after the run, and that are no states yet."""
        known = {s.slot.path for s in self.slot_states}
        found = {}
        for path, slot in after.items():
            tensor = slot.get()
            if isinstance(tensor, torch.Tensor) and path not in known and recorder.is_data(tensor):
                # the slot itself may be new (a rebuilt list): keep where it will be found from the start
                found[path] = (self.start.get(path, slot), tensor.detach().clone())
        return found

    def eager(self, leaves: Sequence[Any]) -> Any:
        """Run the target plainly from the state it is in now (use inside `restored()`)."""
        _, args, kwargs = self.fresh(leaves)
        with torch.no_grad(), compat.eager_stance():
            return self.target.run(None, args, kwargs)


def _plain(x: Any) -> Any:
    """A leaf of the result that is no tensor; CaptureError when tensors are hidden in it."""
    hidden = [v for v in getattr(x, "__dict__", {}).values() if isinstance(v, torch.Tensor)]
    if hidden:
        raise CaptureError(
            f"the result holds a {type(x).__name__} with tensors in it",
            why="its structure is unknown to torch's pytree",
            way_out="return tensors in tuples, lists, dictionaries or named tuples, or register the class with "
            "torch.utils._pytree.register_dataclass",
        )  # fmt: skip
    return x


def _path_text(path: Any) -> str:
    from vqc.frontend.target import _key_text

    return "_".join(_key_text(k) for k in path)

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
from vqc.frontend.snapshot import Slot, Snapshot, attribute_homes, slots
from vqc.frontend.source import ModuleTrail
from vqc.frontend.target import Target


@dataclass
class SlotState:
    """Recurrent tensors the model keeps in one attribute: the leaves `which` of its value.

    `resets` are their values at the first frame, `live` the model's own tensors (None: zeros are put there first).
    """

    slot: Slot
    spec: pytree.TreeSpec
    leaves: list[Any]
    which: list[int]
    names: list[str]
    resets: list[torch.Tensor]
    live: list[torch.Tensor | None]

    def value(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The attribute's value with these tensors for the states."""
        leaves = list(self.leaves)
        for i, t in zip(self.which, tensors, strict=True):
            leaves[i] = t
        return pytree.tree_unflatten(leaves, self.spec)

    def put_back(self) -> None:
        """Give the attribute its tensors of the first frame again; what else is in it stays."""
        leaves, spec = pytree.tree_flatten(self.slot.get())
        if spec != self.spec:
            return
        for i, live, reset in zip(self.which, self.live, self.resets, strict=True):
            leaves[i] = live if live is not None else reset.clone()
        self.slot.container[self.slot.key] = pytree.tree_unflatten(leaves, spec)

    def tensors_in(self, value: Any) -> list[torch.Tensor] | None:
        """The state tensors in a value of the attribute, None when its structure or their shapes are others."""
        leaves, spec = pytree.tree_flatten(value)
        if spec != self.spec:
            return None
        found = [leaves[i] for i in self.which]
        fits = all(
            isinstance(t, torch.Tensor) and t.shape == r.shape and t.dtype == r.dtype
            for t, r in zip(found, self.resets, strict=True)
        )
        return found if fits else None


@dataclass
class Change:
    """An attribute that a run leaves with other tensors: its leaves then, and which of them are recurrent."""

    slot: Slot
    leaves: list[Any]
    spec: pytree.TreeSpec
    which: list[int]


@dataclass
class Recording:
    """The outcome of one run: the functional graph's parts, still in the recorder's graph."""

    recorder: Recorder
    results: list[Any]  # flat leaves of the user's result: nodes, or plain values
    out_spec: pytree.TreeSpec
    out_paths: list[str]
    nexts: list[fx.Node]  # next value of every tensor of every SlotState
    changes: dict[str, Change] = field(default_factory=dict)
    mutated_inputs: dict[str, fx.Node] = field(default_factory=dict)


class Session:
    """Holds the arguments and the model's state at the start; `record` and `eager` both begin from there."""

    def __init__(self, target: Target, args: tuple, kwargs: dict):
        self.target = target
        self.leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.names = target.leaf_names(args, kwargs)
        self.snapshot = Snapshot(target.roots)
        self.start = slots(target.roots)
        self.before = {path: pytree.tree_leaves(slot.get()) for path, slot in self.start.items()}  # a slot reads live
        self.homes = set(attribute_homes(target.roots))
        self.weights = self._weight_names()
        self.slot_states: list[SlotState] = []
        self.keep_scan = False
        self.state_leaves: list[int] = []  # leaves that are states, in the order of the states
        self.python_changes = False  # a run left other Python values behind than it found
        self.moved_numbers: list[tuple[str, Any, Any]] = []  # attributes before and after the first call, if recorded
        self._bytes: dict[int, tuple[torch.Tensor, torch.UntypedStorage]] = {}

    def _weight_names(self) -> Names:
        names: Names = {}
        for prefix, m in self.target.modules.items():
            if isinstance(m, torch.jit.ScriptModule):
                for key, tensor in [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]:
                    names[compat.storage_key(tensor), geometry(tensor)] = f"{prefix}.{key}".strip(".")
        for path, slot in self.start.items():
            for where, tensor in compat.flatten_with_path(slot.get())[0]:
                if isinstance(tensor, torch.Tensor) and compat.storage_key(tensor) != -1:
                    name = ".".join([path, *(str(getattr(k, "idx", getattr(k, "key", k))) for k in where)])
                    names.setdefault((compat.storage_key(tensor), geometry(tensor)), name)
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
        self._restore_bytes()

    def _moved_numbers(self) -> list[tuple[str, Any, Any]]:
        found = []
        for path, old in self.before.items():
            now = pytree.tree_leaves(self.start[path].get())
            for a, b in zip(old, now, strict=False):
                if isinstance(a, (int, float, str)) and isinstance(b, (int, float, str)) and a != b:
                    found.append((path, a, b))
        return found

    def _restore_bytes(self) -> None:
        with torch.no_grad():
            for tensor, saved in self._bytes.values():
                tensor.untyped_storage().copy_(saved)

    def record(self, plan: Plan | None = None, second: bool = False) -> Recording:
        """Run the target once from the start and record it. Errors of the user's code come through as they are.

        `second`: what is recorded is the second call, with the tensors of the first: only what Python keeps has
        moved on.
        """
        trail = ModuleTrail({id(m): n for n, m in self.target.modules.items()})
        recorder = Recorder(self.weights, trail, plan)
        recorder.keep_scan = self.keep_scan
        try:
            self._restore()
            if second:
                self.eager(self.leaves)
                self.moved_numbers = self._moved_numbers()
                self._restore_bytes()
                for s in self.slot_states:
                    s.put_back()
            recording = self._record(recorder)
            self.python_changes = self.python_changes or self.snapshot.changed()
            return recording
        finally:
            for storage in recorder.written:
                if storage.saved is not None and storage.external is not None:
                    self._bytes.setdefault(storage.key, (storage.external, storage.saved))
            self._restore()

    def _record(self, recorder: Recorder) -> Recording:
        copies, args, kwargs = self.fresh()
        for i in [*self.input_leaves(), *self.state_leaves]:
            recorder.input(self.names[i], copies[i])
        for s in self.slot_states:
            self._install(recorder, s)
        with recorder.recording():
            out = self.target.run(recorder, args, kwargs)
            pairs, spec = compat.flatten_with_path(out)
            results = [recorder.node_of(x) if isinstance(x, torch.Tensor) else _plain(x) for _, x in pairs]
            nexts = [recorder.node_of(t) for s in self.slot_states for t in self._now(s)]
            with recorder.paused():
                changes = self._changes(recorder)
            mutated = {}
            for i in self.input_leaves():
                if recorder.storages[compat.storage_key(copies[i])].version:
                    mutated[self.names[i]] = recorder.node_of(copies[i])
        return Recording(recorder, results, spec, [_path_text(p) for p, _ in pairs], nexts, changes, mutated)

    def _install(self, recorder: Recorder, s: SlotState) -> None:
        tensors = []
        for name, reset, live in zip(s.names, s.resets, s.live, strict=True):
            tensor = live if live is not None else reset.clone()
            recorder.input(name, tensor, keep=live is not None)
            tensors.append(tensor)
        if any(t is None for t in s.live):
            s.slot.container[s.slot.key] = s.value(tensors)

    def _now(self, s: SlotState) -> list[torch.Tensor]:
        value = s.slot.get()
        tensors = s.tensors_in(value)
        if tensors is None:
            shown = [tuple(t.shape) for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]
            raise CaptureError(
                f"{s.slot.origin} does not keep its shape from one step to the next",
                why=f"its tensors are {[tuple(r.shape) for r in s.resets]} before a step and {shown} after it",
                way_out="capture the whole clip at once, or keep a memory of fixed size",
            )
        return tensors

    def _changes(self, recorder: Recorder) -> dict[str, Change]:
        """Attributes that hold data after the run in more places than are known as states.

        Only those whose homes (module or object) were there at the start.
        """
        known = {s.slot.path: set(s.which) for s in self.slot_states}
        live = {id(t) for s in self.slot_states for t in s.live if t is not None}
        found = {}
        for path, slot in slots(self.target.roots).items():
            if id(slot.container) not in self.homes:
                continue
            leaves, spec = pytree.tree_flatten(slot.get())
            before = self.before.get(path, [])
            old = before if len(before) == len(leaves) else [None] * len(leaves)
            which = set()
            for i, (t, was) in enumerate(zip(leaves, old, strict=True)):
                if not isinstance(t, torch.Tensor) or (t is was and id(t) in live):  # in a second attribute, as before
                    continue
                if recorder.is_data(t) or _counts(recorder, t, was):
                    which.add(i)
            if which - known.get(path, set()):
                found[path] = Change(slot, leaves, spec, sorted(which | known.get(path, set())))
        return found

    def eager(self, leaves: Sequence[Any]) -> Any:
        """Run the target plainly from the state it is in now (use inside `restored()`)."""
        _, args, kwargs = self.fresh(leaves)
        with torch.no_grad(), compat.eager_stance():
            return self.target.run(None, args, kwargs)


def _counts(recorder: Recorder, now: torch.Tensor, before: Any) -> bool:
    """Whether a run changed a tensor that was there before, by numbers that do not depend on the data (a counter)."""
    if not isinstance(before, torch.Tensor) or before.shape != now.shape or before.dtype != now.dtype:
        return False
    if now is not before:
        return not torch.equal(now, before)
    storage = recorder.storages.get(compat.storage_key(now))
    if storage is None or storage.saved is None:
        return False
    was = now.detach().new_empty(0).set_(storage.saved, now.storage_offset(), now.size(), now.stride())
    return not torch.equal(now, was)


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

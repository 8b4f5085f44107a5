"""The Python state a model lives in: taken before capture, put back after it, searched for recurrent tensors."""

from __future__ import annotations

import functools
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vqc.frontend import compat

_MODULE_PARTS = set(nn.Module().__dict__) - {"training"}
_LIMIT = 200_000  # containers; a model that reaches more holds a data set, not state
_FOREIGN = set(sys.stdlib_module_names) | {"torch", "numpy"}


MISSING = object()


@dataclass(frozen=True)
class Slot:
    """One attribute that may hold tensors, alone or in lists and dictionaries: `container[key]`, called `path`."""

    kind: str  # "buffer", "parameter" or "attribute"
    path: str
    container: dict[str, Any]
    key: str

    def get(self) -> Any:
        return self.container.get(self.key, MISSING)

    @property
    def origin(self) -> str:
        return f"{self.kind} {self.path}"


def roots_of(target: Any) -> dict[str, Any]:
    """The objects a callable keeps its state in, by name."""
    if isinstance(target, nn.Module):
        return {"": target}
    if isinstance(target, functools.partial):
        return {**roots_of(target.func), **{f"argument{i}": a for i, a in enumerate(target.args)}, **target.keywords}
    if isinstance(target, types.MethodType):
        return {"": target.__self__}
    if isinstance(target, types.FunctionType):
        found: dict[str, Any] = {}
        for name, cell in zip(target.__code__.co_freevars, target.__closure__ or (), strict=True):
            try:
                found[name] = cell.cell_contents
            except ValueError:  # a variable that is not yet set
                continue
        names = [n for n in target.__code__.co_names if isinstance(target.__globals__.get(n), nn.Module)]
        return {**found, **{n: target.__globals__[n] for n in names}}
    return {"": target}


def modules_of(target: Any) -> dict[str, nn.Module]:
    """Every submodule a callable reaches, by qualified name."""
    found: dict[str, nn.Module] = {}
    for name, root in roots_of(target).items():
        if isinstance(root, nn.Module):
            found.update({f"{name}.{n}".strip("."): m for n, m in root.named_modules()})
        elif hasattr(root, "__dict__") and not _is_foreign(root):
            for key, value in vars(root).items():
                if isinstance(value, nn.Module):
                    prefix = f"{name}.{key}".strip(".")
                    found.update({f"{prefix}.{n}".strip("."): m for n, m in value.named_modules()})
    return found


def _is_foreign(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] in _FOREIGN


def _walk(roots: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(path, kind, container) of every dictionary, list and set reachable from the roots, each once."""
    seen: set[int] = set()
    stack: list[tuple[str, str, Any]] = [(name, "attribute", x) for name, x in reversed(list(roots.items()))]
    while stack and len(seen) < _LIMIT:
        path, kind, x = stack.pop()
        if id(x) in seen or isinstance(x, (torch.Tensor, str, bytes, int, float, type, types.ModuleType)):
            continue
        seen.add(id(x))
        dot = f"{path}." if path else ""
        if isinstance(x, nn.Module):
            yield path, "attributes", x.__dict__
            parts, later = x.__dict__, []
            for key, value in parts.items():
                if key in ("_parameters", "_buffers", "_modules") and not isinstance(value, dict):
                    continue  # a scripted module keeps its parts in compiled code
                if key in ("_parameters", "_buffers"):
                    yield path, key[1:], value
                    seen.add(id(value))
                elif key == "_modules":
                    yield path, "module", value
                    later += [(f"{dot}{k}", "attribute", v) for k, v in value.items() if v is not None]
                else:
                    later.append((f"{dot}{key}", "attribute", value))
            stack += reversed(later)
        elif isinstance(x, (dict, list, deque, tuple, set)):
            if not isinstance(x, tuple):
                yield path, kind, x
            if isinstance(x, dict):
                stack += [(f"{path}[{k!r}]", "attribute", v) for k, v in x.items()]
            elif not isinstance(x, set):
                stack += [(f"{path}[{i}]", "attribute", v) for i, v in enumerate(x)]
        elif isinstance(x, (types.FunctionType, types.MethodType, functools.partial)):
            stack += [(f"{dot}{n}", "attribute", v) for n, v in roots_of(x).items()]
        elif hasattr(x, "__dict__") and (not _is_foreign(x) or isinstance(x, types.SimpleNamespace)):
            yield path, "attributes", x.__dict__
            stack += [(f"{dot}{k}", "attribute", v) for k, v in x.__dict__.items()]


def slots(roots: dict[str, Any]) -> dict[str, Slot]:
    """Every attribute of a module or object reachable from the roots, by its path ("encoder.gru.h")."""
    found: dict[str, Slot] = {}
    for path, kind, container in _walk(roots):
        if kind in ("attributes", "buffers", "parameters"):
            for key in container:
                if isinstance(key, str) and key not in _MODULE_PARTS:
                    name = f"{path}.{key}".strip(".")
                    found.setdefault(name, Slot(kind.removesuffix("s"), name, container, key))
    return found


def attribute_homes(roots: dict[str, Any]) -> dict[int, tuple[str, str]]:
    """Path and kind of every dictionary that holds attributes, by its id."""
    return {id(c): (path, kind) for path, kind, c in _walk(roots) if kind in ("attributes", "buffers", "parameters")}


class Snapshot:
    """A copy of everything reachable from some objects that a run of them may change. `restore()` puts it back.

    Tensors written in place are not in here: the recorder saves their bytes at the first write.
    """

    def __init__(self, roots: dict[str, Any]):
        self.roots = roots
        self.containers: list[tuple[Any, Any]] = []
        self.tensors: list[tuple[torch.Tensor, torch.Tensor, int, bool]] = []
        seen: set[int] = set()
        for _, _, c in _walk(roots):
            self.containers.append((c, dict(c) if isinstance(c, dict) else list(c)))
            for v in c.values() if isinstance(c, dict) else list(c):
                if isinstance(v, torch.Tensor) and id(v) not in seen:
                    seen.add(id(v))
                    self.tensors.append((v, v.detach(), compat.storage_key(v), v.requires_grad))
        self.random = _random_state()

    def changed(self) -> bool:
        """Whether any container holds something else now."""
        return any(not _same(container, saved) for container, saved in self.containers)

    def restore(self) -> None:
        for container, saved in self.containers:
            if _same(container, saved):
                continue
            kind = next(k for k in (OrderedDict, dict, list, deque, set) if isinstance(container, k))
            kind.clear(container)  # of the plain type: a subclass may watch its own methods
            (kind.extend if kind in (list, deque) else kind.update)(container, saved)
        for tensor, alias, key, grad in self.tensors:
            if compat.storage_key(tensor) != key or tensor.shape != alias.shape or tensor.stride() != alias.stride():
                tensor.data = alias
            if tensor.requires_grad != grad and tensor.is_leaf:
                tensor.requires_grad_(grad)
        _set_random_state(self.random)


def _same(container: Any, saved: Any) -> bool:
    """Whether two containers hold the very same objects in the same order."""
    if len(container) != len(saved):
        return False
    if isinstance(container, dict):
        return all(a is b and container[a] is saved[b] for a, b in zip(container, saved, strict=True))
    if isinstance(container, set):
        return container == set(saved)
    return all(a is b for a, b in zip(container, saved, strict=True))


def _random_state() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy is not None else None


def _set_random_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    if state[2] is not None:
        sys.modules["numpy"].random.set_state(state[2])

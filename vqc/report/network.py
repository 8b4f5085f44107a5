"""A network by its name, and how a clip becomes the inputs of its steps."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vqc.errors import CaptureError, InputError
from vqc.frames import Frames
from vqc.models import MODELS, ModelEntry
from vqc.program import Program


@dataclass(frozen=True)
class Network:
    """A network ready to run on clips.

    `example`: the tensors of one step without states, [1,3,H,W] for a frame, [1,T,3,H,W] for a window of T frames.
    `states`: argument of forward -> index of the leaf of its result that is the next value. `picture`: index of the
    leaf that is judged and shown; `foreground`: that of a matting network's colours. `entry`: set for a network of
    the registry, which knows best how a clip becomes its inputs. `program`: set for a network out of a file,
    whose `module` runs it.
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    states: Mapping[str, int] = field(default_factory=dict)
    picture: int = 0
    foreground: int | None = None
    licence: str = ""
    entry: ModelEntry | None = None
    program: Program | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames it takes."""
        height, width = self.example[0].shape[-2:]
        return int(height), int(width)

    @property
    def reach(self) -> int:
        """How many frames after its own a step looks at."""
        if self.entry is not None:
            return self.entry.reach
        return sum(x.shape[1] if x.ndim == 5 else 1 for x in self.example) - 1

    @property
    def known_ranges(self) -> dict[str, tuple[float, float]]:
        """Frames lie in [0, 1]: the range of every argument that takes them."""
        names = list(inspect.signature(self.module.forward).parameters)
        return dict.fromkeys(names[: len(self.example)], (0.0, 1.0))

    @property
    def frames(self) -> dict[str, Frames]:
        """Where time is in the arguments that take several frames: slots of a window, or an axis."""
        names = list(inspect.signature(self.module.forward).parameters)
        count = len(self.example)
        found = {}
        for i, (name, x) in enumerate(zip(names, self.example, strict=False)):
            if x.ndim == 5:
                found[name] = Frames("axis", axis=1, count=x.shape[1], slots=x.shape[1])
            elif count > 1:
                found[name] = Frames("slot", index=i, count=count)
        return found

    def steps(self, clip: Tensor) -> list[tuple[Tensor, ...]]:
        """The inputs of every step that a clip [T,3,H,W] in [0,1] has frames for. Raises InputError if it has none."""
        count = clip.shape[0] - self.reach
        if count < 1:
            raise InputError(f"a clip of {clip.shape[0]} frames is too short for {self.name}",
                             why=f"a step looks at {self.reach + 1} frames", way_out="read a longer clip")  # fmt: skip
        if self.entry is not None:
            return [self.entry.step_inputs(clip, t) for t in range(count)]
        return [self._inputs(clip, t) for t in range(count)]

    def _inputs(self, clip: Tensor, t: int) -> tuple[Tensor, ...]:
        found = []
        for like in self.example:
            if like.ndim == 5:
                found.append(clip[None, t : t + like.shape[1]])
                t += like.shape[1]
            else:
                found.append(clip[t : t + 1])
                t += 1
        return tuple(found)


def network(name: str, size: tuple[int, int] | None = None) -> Network:
    """The network called `name`, for frames of `size` (H, W).

    `name`: a key of `vqc.models.MODELS`, a `.vqc` file, a `.pt2` file (opening it may run its code),
    "package.module:factory" or "file.py:factory". A factory takes no arguments and returns an nn.Module, or a tuple
    (module, example, states, picture) of which the end may be left out: an example is a tensor or a tuple of tensors as
    `Network.example` (default: one frame), states and picture are as in `Network`.
    Raises InputError for a name or an example that is not understood, CaptureError when the factory fails,
    ArtifactError when weights cannot be had.
    """
    if name in MODELS:
        return _of_registry(MODELS[name], size)
    if name.endswith((".vqc", ".pt2")):
        from vqc.report.stored import exported_network, stored_network  # which need this module's Network

        return (stored_network if name.endswith(".vqc") else exported_network)(name, size)
    source, colon, factory = name.rpartition(":")
    if not colon or not source or not factory:
        raise InputError(f"there is no model called {name!r}", way_out="use " + ", ".join(sorted(MODELS))
                         + ", FILE.vqc, FILE.pt2, package.module:factory or file.py:factory")  # fmt: skip
    return _of_factory(name, _find(source, factory), size)


def _of_registry(entry: ModelEntry, size: tuple[int, int] | None) -> Network:
    height, width = size or (288, 512)
    if height % entry.multiple or width % entry.multiple:
        fitting = [max(entry.multiple, round(n / entry.multiple) * entry.multiple) for n in (height, width)]
        raise InputError(f"{entry.name} cannot take frames of {height}x{width}",
                         why=f"its sides are multiples of {entry.multiple}",
                         way_out=f"use --size {fitting[0]}x{fitting[1]}")  # fmt: skip
    foreground = entry.outputs.index("fgr") if "fgr" in entry.outputs else None
    return Network(entry.name, entry.load(), entry.example(height, width), dict(entry.states), entry.picture,
                   foreground, entry.licence, entry)  # fmt: skip


def _find(source: str, factory: str) -> Callable[[], Any]:
    """The factory in a module or file; whatever the user's code raises while it loads becomes a CaptureError.

    A file finds the modules beside it, and a module is looked for from here: as by `python FILE` and `python -m`.
    """
    place = str(Path(source).resolve().parent if source.endswith(".py") else Path.cwd())
    if place not in sys.path:
        sys.path.insert(0, place)
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as e:  # the user's own code runs here and may raise anything; the cause is kept
        raise CaptureError(f"the model file {source} cannot be loaded", where=source, why=f"{type(e).__name__}: {e}",
                           way_out="make it importable by itself: python -c 'import ...'") from e  # fmt: skip
    found = getattr(module, factory, None)
    if not callable(found):
        raise InputError(f"{source} has no factory called {factory!r}", where=source,
                         way_out=f"define `def {factory}(): return module`")  # fmt: skip
    return found


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _of_factory(name: str, factory: Callable[[], Any], size: tuple[int, int] | None) -> Network:
    try:
        made = factory()
    except Exception as e:  # as in _find
        raise CaptureError(f"the factory {name} failed", where=name, why=f"{type(e).__name__}: {e}",
                           way_out="it must work without arguments") from e  # fmt: skip
    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= 4 or not isinstance(parts[0], nn.Module):
        raise InputError(f"the factory {name} gave {type(made).__name__}", where=name,
                         way_out="return a module or (module, example, states, picture)")  # fmt: skip
    example = parts[1] if len(parts) > 1 else torch.zeros(1, 3, *(size or (288, 512)))
    tensors = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    names = list(inspect.signature(parts[0].forward).parameters)[: len(tensors)]
    declared = sorted(set(names) & set(parts[2] if len(parts) > 2 else ()))
    if declared:
        raise InputError(f"the example of {name} holds states: {', '.join(declared)}", where=name,
                         why="what is not a frame cannot come from a clip",
                         way_out="give frames alone, and let forward make a state where it is None")  # fmt: skip
    wrong = no_frames(tensors)
    if wrong:
        raise InputError(f"the example of {name} is not made of frames", where=name, why=wrong,
                         way_out="give frames alone, and let forward make what else it needs")  # fmt: skip
    if size is not None:
        tensors = tuple(torch.rand(*x.shape[:-2], *size, generator=torch.Generator().manual_seed(0)) for x in tensors)
    states = dict(parts[2]) if len(parts) > 2 else {}
    return Network(name.rpartition(":")[2], parts[0].eval(), tensors, states, int(parts[3]) if len(parts) > 3 else 0)


def no_frames(example: Sequence[Any]) -> str:
    """Why frames of a clip cannot stand for these tensors, with those that are none; "" where they can."""
    others = [f"tensor {i} is {_described(x)}" for i, x in enumerate(example) if not is_frame(x, example[0])]
    form = "a step's tensors are [1,3,H,W] or [1,T,3,H,W], of one size"
    return "; ".join([*others, form]) if others or not example else ""


def is_frame(x: Any, first: Any) -> bool:
    """Whether frames of a clip can stand for this tensor of an example: three channels, and the first one's size."""
    if not isinstance(x, Tensor) or not isinstance(first, Tensor):
        return False
    return x.ndim in (4, 5) and x.shape[0] == 1 and x.shape[-3] == 3 and x.shape[-2:] == first.shape[-2:]


def _described(x: Any) -> str:
    return str(list(x.shape)).replace(" ", "") if isinstance(x, Tensor) else f"a {type(x).__name__}"

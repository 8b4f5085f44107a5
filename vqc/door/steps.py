"""Calibration at the door: the arguments of the user's calls, brought to the inputs of one Dynamo graph.

The door sees a graph whose inputs come in the order of their first use, under names like `L['src']`. Dynamo also says
which Python function it is compiling, so a step (the arguments of one call) is bound to that function's signature and
each graph input is looked up in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from vqc import compat
from vqc.calibration import Clips
from vqc.errors import BackendError
from vqc.program import tensor_text

_PATH = re.compile(r"^L\['(\w+)'\]((?:\['[^']*'\]|\[\d+\]|\.\w+)*)$")
_ITEM = re.compile(r"\['([^']*)'\]|\[(\d+)\]|\.(\w+)")


class StepReader:
    """Finds the inputs of a graph in the arguments of the user's calls.

    Make it while Dynamo is compiling the graph: afterwards nobody knows the function any more.
    """

    def __init__(self, gm: fx.GraphModule, example: Sequence[Any]):
        self.sources = [compat.source_name(n) for n in gm.graph.nodes if n.op == "placeholder"]
        self.shapes = [(x.shape, x.dtype) if isinstance(x, torch.Tensor) else None for x in example]
        self.frame = compat.frame_signature()
        self.function = compat.frame_name()

    def read(self, calibration: Any, wanted: Sequence[int]) -> Clips:
        """The clips with every step as a tuple of this graph's inputs at the indices `wanted`.

        Steps that lack an input (a state that is None at the first frame) or have it in another shape are left out:
        they run through another graph. Raises BackendError when no step is left.
        """
        if isinstance(calibration, Clips):
            return calibration
        if callable(calibration):
            calibration = calibration()
        clips, reasons = [], []
        for clip in self._clips(calibration, wanted):
            steps = []
            for step in clip:
                found = self._step(step, wanted)
                if isinstance(found, str):
                    reasons.append(found)
                else:
                    steps.append(found)
            if steps:
                clips.append(tuple(steps))
        if not clips:
            raise self._nothing_fits(reasons, wanted)
        return Clips(tuple(clips))

    def _nothing_fits(self, reasons: Sequence[str], wanted: Sequence[int]) -> BackendError:
        inputs = ", ".join(f"{self.sources[i]} {self._shape_text(i)}" for i in wanted)
        kept = [self.sources[i] for i in wanted if not self._is_given(self.sources[i])]
        if kept:
            why = f"no call brings {', '.join(kept)}: the network keeps it itself"
            way_out = "use vqc.capture, vqc.apply and vqc.compile: capture finds what a network keeps from call to call"
        else:
            why = "; ".join(dict.fromkeys(reasons)) or "there is no step"
            way_out = ("give the arguments of whole calls, states included: a tuple (positional) or a dict (by name); "
                       "if that is what they are, Dynamo has broken the network into several graphs "
                       "(TORCH_LOGS=graph_breaks tells where): vqc.capture takes it whole")  # fmt: skip
        where = f"the graph of {self.function or 'no function'} with the inputs {inputs}"
        return BackendError("no calibration step fits this graph", where=where, why=why, way_out=way_out)

    def _is_given(self, source: str) -> bool:
        """Whether a graph input is (part of) an argument of a call, and nothing of the module's or a global."""
        signature, owner = self.frame or (None, "")
        match = _PATH.match(source)
        return signature is None or (match is not None and match.group(1) in signature.parameters.keys() - {owner})

    def _shape_text(self, index: int) -> str:
        shape, dtype = self.shapes[index] or ((), None)
        return f"{str(dtype).removeprefix('torch.')}{list(shape)}"

    def _clips(self, source: Any, wanted: Sequence[int]) -> Iterable[Iterable[Any]]:
        first = next((self.shapes[i] for i in wanted if self.shapes[i] is not None), None)
        frame = tuple(first[0]) if first is not None else ()
        if isinstance(source, torch.Tensor):
            return [_frames(source, frame)]
        items = list(source)
        if items and all(isinstance(i, (list, Clips)) for i in items):
            return items
        if items and all(isinstance(i, torch.Tensor) and _is_clip(i, frame) for i in items):
            return [_frames(i, frame) for i in items]
        return [items]

    def _step(self, step: Any, wanted: Sequence[int]) -> tuple[torch.Tensor, ...] | str:
        values = self._arguments(step)
        if isinstance(values, str):
            return values
        flat = []
        for i in wanted:
            value = _look_up(self.sources[i], values)
            if not isinstance(value, torch.Tensor):
                return f"{self.sources[i]} is {type(value).__name__} in a step"
            if (value.shape, value.dtype) != self.shapes[i]:
                return f"{self.sources[i]} is {tensor_text(value)} in a step"
            flat.append(value)
        return tuple(flat)

    def _arguments(self, step: Any) -> dict[str, Any] | str:
        """The step's arguments by the names of the compiled function's locals."""
        if self.frame is None:
            return "the graph does not come from a compiled function"
        signature, owner = self.frame
        positional: tuple[Any, ...] = ()
        named: Mapping[str, Any] = {}
        if isinstance(step, Mapping):
            named = step
        else:
            positional = tuple(step) if isinstance(step, (tuple, list)) else (step,)
        try:
            bound = signature.bind_partial(*(([None] if owner else []) + list(positional)), **named)
        except TypeError as e:
            return str(e)
        return dict(bound.arguments)


def _is_clip(x: torch.Tensor, frame: tuple[int, ...]) -> bool:
    """Whether a tensor is frames along its first axis, for a graph that takes one frame."""
    return x.ndim == len(frame) and frame[:1] == (1,) and tuple(x.shape) != frame


def _frames(clip: torch.Tensor, frame: tuple[int, ...]) -> list[torch.Tensor]:
    if clip.dtype == torch.uint8:
        clip = clip.float() / 255
    return [f[None] for f in clip] if _is_clip(clip, frame) else [clip]


def _look_up(source: str, values: Mapping[str, Any]) -> Any:
    """The value at a source path, None when there is none."""
    match = _PATH.match(source)
    if match is None:
        return None
    value = values.get(match.group(1))
    for name, index, attribute in _ITEM.findall(match.group(2)):
        try:
            value = getattr(value, attribute) if attribute else value[int(index)] if index else value[name]
        except (AttributeError, IndexError, KeyError, TypeError):
            return None  # the step is of another form than the traced call
    return value

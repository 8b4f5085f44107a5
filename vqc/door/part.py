"""One Dynamo graph behind the door: compiled for its weights, compiled again when they change, right in between.

    constants = registered parameters and buffers - what the graph writes - what shares memory with that

The decisions, each said in the report:

* the weights of another instance: compiled again, up to INSTANCES at a time;
* changed weights: compiled again, CHANGES times, after that weights are ordinary inputs of the code (training);
* a buffer that changed while every parameter stayed: a state that lives outside of this graph, an input from then on;
* dynamic sizes: code for the first SIZES sizes met, then one code for all.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.door import facts as study
from vqc.door.binding import Binding, Run
from vqc.door.report import PartReport
from vqc.door.rewrite import bind, held_tensors, placeholders

CHANGES = 3
INSTANCES = 8


class Engine(ABC):
    """What compiles a part: a graph whose weights are attributes, or one whose weights are inputs."""

    name: ClassVar[str]
    sizes: ClassVar[int]  # how many sizes of a dynamic graph get code of their own

    @abstractmethod
    def bound(self, gm: fx.GraphModule, inputs: Sequence[Any], written: Sequence[int], report: PartReport) -> Run:
        """Code for these inputs' sizes, the graph's attributes being constants; `written` inputs change in place."""

    @abstractmethod
    def generic(self, gm: fx.GraphModule, inputs: Sequence[Any], dynamic: bool, why: str, report: PartReport) -> Run:
        """Code that takes weights as inputs; for every size when `dynamic`, else for these inputs' sizes."""


class Part:
    """The callable the door gives to Dynamo for one graph."""

    def __init__(self, gm: fx.GraphModule, example: Sequence[Any], engine: Engine, report: PartReport):
        self.gm, self.engine, self.report = gm, engine, report
        nodes = placeholders(gm)
        self.numbers = [i for i, x in enumerate(example) if not isinstance(x, torch.Tensor)]
        self.dynamic = bool(self.numbers)
        self.weights = {i for i, x in enumerate(example) if study.is_constant(nodes[i], x)}
        self.parameters = {i for i in self.weights if isinstance(example[i], torch.nn.Parameter)}
        self.free = [i for i in range(len(example)) if i not in self.weights]
        self.bindings: list[Binding] = []
        self.anything: dict[Any, Run] = {}  # code with weights as inputs, by sizes
        self.sizes: list[Any] = []
        self.changes = 0
        self.lock = threading.RLock()
        self.current: Binding | None = None

    # ---- a call ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any) -> Any:
        current = self.current
        if current is not None and self._fits(current, args):
            return current.run(*args)
        return self._find(args)(*args)

    def _fits(self, binding: Binding, args: Sequence[Any]) -> bool:
        return (binding.shapes is None or binding.shapes == self._shapes(args)) and binding.matches(args)

    def _shapes(self, args: Sequence[Any]) -> Any:
        if not self.dynamic:
            return None
        return tuple(a.shape if isinstance(a, torch.Tensor) else a for a in (args[i] for i in self.free))

    def _find(self, args: Sequence[Any]) -> Run:
        with self.lock:
            self.bindings = [b for b in self.bindings if b.alive]
            for b in self.bindings:
                if self._fits(b, args):
                    self.current = b
                    return b.run
            return self._decide(args)

    # ---- a miss ------------------------------------------------------------------------------------------------------

    def _decide(self, args: Sequence[Any]) -> Run:
        shapes = self._shapes(args)
        if shapes not in self.sizes:
            if len(self.sizes) >= self.engine.sizes:
                return self._weights_as_inputs(args, f"more than {self.engine.sizes} sizes")
            self.sizes.append(shapes)
        same_size = [b for b in self.bindings if b.shapes == shapes]
        if same_size:
            why = self._what_changed(same_size[-1], args)
            if why:
                return self._weights_as_inputs(args, why)
        return self._specialise(args, shapes)

    def _what_changed(self, last: Binding, args: Sequence[Any]) -> str:
        """Learn from a miss; a reason when this part must stop binding weights, "" when it may go on."""
        replaced, written = last.changed(args)
        moved = set(replaced) | set(written)
        if moved and not moved & self.parameters and self.parameters:
            self.weights -= moved
            self.free = sorted({*self.free, *moved})
            self.bindings, self.current = [], None
            names = ", ".join(placeholders(self.gm)[i].name for i in sorted(moved))
            self.report.note(f"changes from call to call, so it is a state and no constant: {names}")
            return ""
        stale = [b for b in self.bindings if set(last.changed(args)[0]) != set(b.indices) and self._same_model(b, args)]
        if stale:
            self.changes += 1
            for b in stale:
                b.kill()
            self.bindings = [b for b in self.bindings if b.alive]
            if self.changes > CHANGES:
                return f"its weights changed more than {CHANGES} times"
            self.report.note(f"weights changed, compiled again ({self.changes} of {CHANGES})")
        elif len(self.bindings) >= INSTANCES:
            return f"more than {INSTANCES} instances run through this graph"
        else:
            self.report.note("weights of another instance: compiled for them, too")
        return ""

"""One Dynamo graph behind the door: compiled for its weights, compiled again when they change, right in between.

    constants = registered parameters and buffers - what the graph writes - what shares memory with that

The decisions, each said in the report:

* the weights of another instance, or a replaced weight: compiled again, up to INSTANCES in all;
* weights written in place: compiled again, CHANGES times, after that weights are ordinary inputs (training);
* a buffer that changed while every parameter stayed: a state that lives outside of this graph, an input from then on;
* dynamic sizes: code for the first SIZES sizes met, then one code for all.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from vqc import compat
from vqc.door.binding import Binding, Run
from vqc.door.facts import Facts, is_constant, study
from vqc.door.report import PartReport
from vqc.door.rewrite import bind, held_tensors, placeholders

CHANGES = 3
INSTANCES = 8


@dataclass(frozen=True)
class Request:
    """What an engine compiles: a graph, the inputs of one call, and what is known about them.

    `constants`: indices of the weights to bind; `numbers`: of the sizes and numbers, fixed as well; `written`: of the
    tensors that the graph changes in place; `paths`: a qualified name for each weight, "" where there is none.
    """

    gm: fx.GraphModule
    args: Sequence[Any]
    constants: Sequence[int]
    numbers: Sequence[int]
    written: Sequence[int]
    paths: Sequence[str]

    def bind(self) -> tuple[fx.GraphModule, list[int]]:
        """A copy of the graph with weights and numbers bound, and the indices of the inputs that are left."""
        fixed = {i: self.args[i] for i in (*self.constants, *self.numbers)}
        return bind(self.gm, fixed, {i: self.paths[i] for i in self.constants})


class Engine(ABC):
    """What compiles a part. All code takes the graph's full flat inputs and gives its flat outputs."""

    name: ClassVar[str]
    sizes: ClassVar[int]  # how many sizes of a dynamic graph get code of their own

    def takes(self, weight: torch.Tensor) -> bool:
        """Whether code can be made for a weight of this kind."""
        return True

    @abstractmethod
    def bound(self, request: Request, report: PartReport) -> Run:
        """Code for the request's weights and sizes."""

    @abstractmethod
    def generic(self, gm: fx.GraphModule, args: Sequence[Any], dynamic: bool, why: str, report: PartReport) -> Run:
        """Code that takes weights as inputs; for every size when `dynamic`, else for these arguments' sizes."""


class Part:
    """The callable the door gives to Dynamo for one graph."""

    def __init__(self, gm: fx.GraphModule, example: Sequence[Any], engine: Engine, report: PartReport):
        nodes = placeholders(gm)
        self.gm = bind(gm, {})[0]  # clean: Dynamo's own keeps fake tensors and may change
        self.engine, self.report = engine, report
        self.paths = compat.weight_paths(nodes)
        self.names = [path or n.name for path, n in zip(self.paths, nodes, strict=True)]
        self.numbers = [i for i, x in enumerate(example) if not isinstance(x, torch.Tensor)]
        self.weights = {i for i, x in enumerate(example) if is_constant(nodes[i], x)}
        self.parameters = {i for i in self.weights if isinstance(example[i], torch.nn.Parameter)}
        self.free = [i for i in range(len(example)) if i not in self.weights]
        self.held = held_tensors(gm)
        self.bindings: list[Binding] = []
        self.current: Binding | None = None
        self.anything: Run | None = None  # code that takes weights as inputs
        self.closed = False  # no more code for certain weights
        self.sizes: list[Any] = []
        self.changes = 0
        self.instances = 1  # all there were, those that are gone included
        self.lock = threading.RLock()
        # With dynamic sizes, what the graph does is found out at the first call, where the sizes are known.
        self.facts = study(self.gm, example) if not self.numbers else None
        report.calls = sum(n.op in ("call_function", "call_method", "call_module") for n in gm.graph.nodes)

    # ---- a call ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any) -> Any:
        current = self.current
        if current is not None:
            run = current.run  # taken before the check: another thread may end the binding in between
            if self._fits(current, args):
                return run(*args)
        return self.prepare(args)(*args)

    def _fits(self, binding: Binding, args: Sequence[Any]) -> bool:
        return (binding.shapes is None or binding.shapes == self._shapes(args)) and binding.matches(args)

    def _shapes(self, args: Sequence[Any]) -> Any:
        """The sizes and numbers of a call, None when Dynamo guards them all."""
        if not self.numbers:
            return None
        return tuple(a.shape if isinstance(a, torch.Tensor) else a for a in (args[i] for i in self.free))

    def prepare(self, args: Sequence[Any]) -> Run:
        """The code for these arguments, compiled if there is none yet."""
        with self.lock:
            self.bindings = [b for b in self.bindings if b.alive]
            for b in self.bindings:
                if self._fits(b, args):
                    self.current = b
                    return b.run
            shapes = self._shapes(args)
            if self.anything is not None and (self.closed or shapes not in self.sizes):
                return self.anything
            new_size = shapes not in self.sizes
            if new_size and len(self.sizes) >= self.engine.sizes:
                return self._weights_as_inputs(args, f"more than {self.engine.sizes} sizes run through this graph")
            if why := self._learn(args, new_size):
                self.closed = True
                return self._weights_as_inputs(args, why)
            if new_size:
                self.sizes.append(shapes)
            return self._specialise(args, shapes)

    def refresh(self) -> None:
        """Forget all code made for certain weights; the next call compiles anew."""
        with self.lock:
            self._drop()
            self.sizes = []

    def _drop(self) -> None:
        for b in self.bindings:
            b.kill()
        self.bindings, self.current = [], None

    # ---- a miss ------------------------------------------------------------------------------------------------------

    def _learn(self, args: Sequence[Any], new_size: bool) -> str:
        """What the miss says about the weights; a reason when no more code may be made for certain ones, else ""."""
        last = self.current if self.current is not None and self.current.alive else next(iter(self.bindings), None)
        moved = {i for kind in last.changed(args) for i in kind} if last is not None else set()
        if moved and not moved & self.parameters:
            self.weights -= moved
            self.free = sorted({*self.free, *moved})
            self._drop()
            self.report.note("a buffer that changes between calls is no constant: "
                             + ", ".join(self.names[i] for i in sorted(moved)))  # fmt: skip
            return ""
        stale = [b for b in self.bindings if b.changed(args)[1]]
        for b in stale:
            b.kill()
        if stale:
            self.changes += 1
            self.report.note(f"weights changed, compiled again ({self.changes} of {CHANGES})")
            return f"its weights changed more than {CHANGES} times" if self.changes > CHANGES else ""
        if new_size or any(b.matches(args) for b in self.bindings):
            return ""  # the first code for a size, or known weights at another one
        self.instances += 1
        self.report.note("weights of another instance: compiled for them, too")
        return f"more than {INSTANCES} instances ran through this graph" if self.instances > INSTANCES else ""

    def _specialise(self, args: Sequence[Any], shapes: Any) -> Run:
        facts, self.facts = self.facts or study(self.gm, args), None  # later inputs may share memory: studied again
        if facts.unknown:
            self.closed = True
            return self._weights_as_inputs(args, facts.unknown)
        if facts.aliased:
            self.report.note("two inputs share memory that the graph writes: such a call runs eagerly")
            return self.gm
        constants = [i for i in sorted(self.weights - facts.written - facts.opaque) if self.engine.takes(args[i])]
        start = time.perf_counter()
        request = Request(self.gm, args, constants, self.numbers, sorted(facts.written), self.paths)
        binding = Binding(self.engine.bound(request, self.report), constants, args, self.held, shapes)
        if facts.written:
            left = sorted(set(range(len(args))) - set(constants))
            binding.run = self._watching(binding.run, facts, left, binding.storage_pointers)
        self.bindings.append(binding)
        self.current = binding
        self.report.constants, self.report.states = len(constants), len(facts.written)
        self._done(start)
        return binding.run

    def _weights_as_inputs(self, args: Sequence[Any], why: str) -> Run:
        if self.anything is None:
            start = time.perf_counter()
            dynamic = bool(self.numbers)
            code = self.engine.generic(bind(self.gm, {})[0], list(args), dynamic, why, self.report)
            facts = study(self.gm, args)
            free = list(range(len(args)))
            self.anything = self._watching(code, facts, free, frozenset()) if facts.written else code
            scope = "for further sizes" if dynamic and not self.closed else "from now on"
            self.report.note(f"weights are inputs of the code {scope}: {why}")
            self._done(start)
        return self.anything

    def _watching(self, run: Run, facts: Facts, free: list[int], bound: frozenset[int]) -> Run:
        """`run` for calls in which no written input shares its memory with another one, as it was when compiled."""
        written = sorted(facts.written)
        others = [i for i in free if i not in facts.written]

        def checked(*args: Any) -> Any:
            mine = [_memory(args[i]) for i in written]
            theirs = [_memory(args[i]) for i in others]
            if len(set(mine)) == len(mine) and bound.isdisjoint(mine) and set(mine).isdisjoint(theirs):
                return run(*args)
            self.report.note("two inputs share memory that the graph writes: such a call runs eagerly")
            return self.gm(*args)

        return checked

    def _done(self, start: float) -> None:
        self.report.compilations += 1
        self.report.seconds += time.perf_counter() - start
        self.report.publish()


def _memory(value: Any) -> int:
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) and value.numel() else id(value)

"""capture_graph: the graph Dynamo hands to a backend becomes a Program."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx

from vqc import spec
from vqc.errors import CaptureError
from vqc.frontend.build import check_live
from vqc.frontend.canonical import canonicalize
from vqc.frontend.decisions import Plan
from vqc.frontend.recorder import Recorder
from vqc.frontend.target import GraphRunner, identifier
from vqc.program import Input, PassRecord, Program, State


def capture_graph(gm: fx.GraphModule, example_inputs: Sequence[Any], static: Collection[int] = (), *,
                  names: Sequence[str] | None = None, name: str = "graph") -> Program:  # fmt: skip
    """Capture a graph whose weights are inputs.

    Parameters
        gm: a GraphModule of torch or ATen calls with flat inputs and outputs (Dynamo's, or AOTAutograd's).
        example_inputs: its real inputs. Every tensor that is not static is an input of the Program.
        static: indices of the inputs that are weights: they become constants, shared with the given tensors.
        names: a name for each input (qualified names for weights); default: those of the graph's placeholders.
    A tensor the graph writes in place becomes a State: "buffer NAME" when it is static, "argument NAME" otherwise.
    The caller writes the next values back. Results are flat; those that are no tensors are left out
    (`Program.signature.out_leaves` says where they were).
    Raises CaptureError.
    """
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    if len(placeholders) != len(example_inputs):
        raise CaptureError(f"the graph has {len(placeholders)} inputs, {len(example_inputs)} were given")
    given = list(names) if names is not None else [str(n.target) for n in placeholders]
    first, written = _record(gm, example_inputs, static, given, frozenset())
    states = frozenset(written)
    if states:
        first, written = _record(gm, example_inputs, static, given, states)
    return _program(first, example_inputs, static, given, sorted(states), name)


class _Run:
    """One recording of the graph: the recorder, the flat results, the next values of what it writes."""

    def __init__(self, recorder: Recorder, results: list[Any], nexts: dict[int, fx.Node], labels: dict[int, str]):
        self.recorder, self.results, self.nexts, self.labels = recorder, results, nexts, labels


def _record(gm: fx.GraphModule, example: Sequence[Any], static: Collection[int], names: Sequence[str],
            states: frozenset[int]) -> tuple[_Run, list[int]]:  # fmt: skip
    from vqc.frontend import compat
    from vqc.frontend.functionalize import geometry

    # an input that may be written runs on a copy; weights stay the caller's own tensors
    feeds = [
        x.detach().clone() if isinstance(x, torch.Tensor) and (i not in static or i in states) else x
        for i, x in enumerate(example)
    ]  # fmt: skip
    weights = {
        (compat.storage_key(x), geometry(x)): names[i]
        for i, x in enumerate(feeds)
        if isinstance(x, torch.Tensor) and i in static and i not in states
    }
    plan = Plan()
    recorder = Recorder(weights, plan=plan)
    labels: dict[int, str] = {}
    order = [i for i in range(len(feeds)) if i not in static and i not in states] + sorted(states)
    for i in order:
        if isinstance(feeds[i], torch.Tensor):
            labels[i] = _free(identifier(names[i]), list(labels.values()))
            recorder.input(labels[i], feeds[i])
    try:
        with recorder.recording():
            out = GraphRunner(gm, recorder).run(*feeds, enable_io_processing=False)
            flat = list(out) if isinstance(out, (tuple, list)) else [out]
            results = [recorder.node_of(x) if isinstance(x, torch.Tensor) else x for x in flat]
            nexts = {i: recorder.node_of(feeds[i]) for i in sorted(states)}
            written = [
                i for i, x in enumerate(feeds)
                if isinstance(x, torch.Tensor) and (s := recorder.storages.get(compat.storage_key(x))) and s.version
            ]  # fmt: skip
    finally:
        for storage in recorder.written:
            if storage.saved is not None and storage.external is not None:
                storage.external.untyped_storage().copy_(storage.saved)
    for d in plan.made:
        raise CaptureError(f"{d.operator} reads a value that depends on the input", where=str(d.place or ""),
                           way_out="let Dynamo break the graph there")  # fmt: skip
    return _Run(recorder, results, nexts, labels), written


def _program(run: _Run, example: Sequence[Any], static: Collection[int], names: Sequence[str], states: list[int],
             name: str) -> Program:  # fmt: skip
    from vqc.program import Leaf, Signature

    results = [x for x in run.results if isinstance(x, fx.Node)]
    recorder = run.recorder
    recorder.em.graph.output((*results, *(run.nexts[i] for i in states)))
    check_live(recorder)
    graph, constants = canonicalize(recorder.em.graph, dict(recorder.em.constants), set(recorder.random))
    inputs = [i for i in run.labels if i not in states]
    leaves, k = [], 0
    for x in run.results:
        leaves.append(Leaf("output", k) if isinstance(x, fx.Node) else Leaf("constant", value=x))
        k += isinstance(x, fx.Node)
    program = Program(
        name, graph, constants,
        [Input(run.labels[i], tuple(example[i].shape), example[i].dtype) for i in inputs],
        [f"out_{i}" for i in range(len(results))],
        [State(run.labels[i], run.labels[i], len(results) + j, example[i].detach().clone(),
               origin=f"{'buffer' if i in static else 'argument'} {names[i]}") for j, i in enumerate(states)],
        signature=Signature(out_leaves=tuple(leaves)), example=[example[i].detach().clone() for i in inputs],
    )  # fmt: skip
    spec.check(program, "capture")
    program.notes = (program.summary(),)
    return program.recorded(PassRecord("capture", {"operators": len(program.calls)}, notes=program.notes))


def _free(name: str, taken: list[str]) -> str:
    unique, i = name, 1
    while unique in taken:
        unique, i = f"{name}_{i}", i + 1
    return unique

"""The door `torch.compile(model, backend="vqc", options={...})`.

    fast = torch.compile(model, backend="vqc")
    fast = torch.compile(model, backend="vqc", options={"recipe": "int8", "calibration": clips, "target": "native"})

Found by name through an entry point: no import of vqc is needed. What became of each graph is in `reports()` and in
the log "vqc" (level INFO).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from vqc import compat
from vqc.backends.inductor.engine import has_subgraphs
from vqc.door import report as _report
from vqc.door.engines import engine_for, leave_as_it_is
from vqc.door.facts import Facts, differentiates
from vqc.door.options import keep_clips, parse
from vqc.door.part import Part
from vqc.door.report import PartReport, reports
from vqc.errors import BackendError

__all__ = ["last_report", "refresh", "reports", "vqc_backend"]

_parts: weakref.WeakSet[Part] = weakref.WeakSet()


def vqc_backend(gm: fx.GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None,
                options: Mapping[str, Any] | None = None) -> Callable[..., Any]:  # fmt: skip
    """Compile one Dynamo graph.

    Parameters: the graph; its example inputs (real tensors, weights among them; numbers where sizes are dynamic);
    `mode` and `options` as the user gave them to `torch.compile` (`vqc.door.options.DoorOptions`).
    Returns a callable of the graph's flat inputs.
    Raises BackendError on an option or a configuration it refuses, and what a recipe's passes or a target raise.
    """
    compat.require_supported_torch()
    keep_clips(options)
    chosen = parse(mode, options)
    if compat.prepares_freezing():
        raise BackendError(
            "torch._dynamo.config.prepare_freezing is on",
            why="weights become constants without a guard: a second instance would run with the first one's",
            way_out="switch it off; vqc binds weights itself and checks them at every call",
        )
    report = _report.new_report(chosen.target, chosen.report)
    report.calls = sum(n.op in ("call_function", "call_method", "call_module") for n in gm.graph.nodes)
    if not report.calls:
        report.route = "nothing to compute"
        report.publish()
        return gm.forward
    part = Part(gm, example_inputs, engine_for(chosen, gm, example_inputs), report)
    facts = part.facts
    training = differentiates(example_inputs) if facts is None else facts.differentiable
    why = _as_it_is(part.gm, training and chosen.is_float, facts)
    if why:
        return leave_as_it_is(gm, example_inputs, chosen, why, report)
    if training:
        report.note("gradients are not computed: what a recipe gives is detached (call it under torch.no_grad())")
    _parts.add(part)
    if facts is not None:  # with dynamic sizes, code is made for the sizes that are really met
        part.prepare(example_inputs)
    return part


def _as_it_is(gm: fx.GraphModule, training: bool, facts: Facts | None) -> str:
    """Why a graph is taken exactly as Dynamo made it, weights as inputs; "" when its weights can be bound."""
    if training:
        return "training: an input or a weight requires gradients (call it under torch.no_grad() for speed)"
    if any(n.op == "call_module" for n in gm.graph.nodes):
        return "the graph calls modules"
    if facts is None:
        return "dynamic sizes around a sub-graph (scan, cond, checkpoint)" if has_subgraphs(gm) else ""
    return "two inputs share memory that the graph writes" if facts.aliased else facts.unknown


def refresh() -> None:
    """Tell vqc that weights were changed through `.data`, which PyTorch does not count: compiled code is made anew.

    Every other change (load_state_dict, in-place updates, replaced parameters, another instance) is noticed by itself.
    """
    for part in list(_parts):
        part.refresh()


def last_report() -> PartReport | None:
    """The report of the graph compiled last, None when there was none."""
    kept = reports()
    return kept[-1] if kept else None


def _reset() -> None:
    """What `torch._dynamo.reset()` calls: drop all compiled code and reports."""
    for part in list(_parts):
        part.refresh()
    _parts.clear()
    _report.forget()


vqc_backend.reset = _reset  # type: ignore[attr-defined]

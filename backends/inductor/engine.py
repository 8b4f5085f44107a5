"""Inductor as an engine: one graph in, one callable out, with all settings patched only while it works.

Weights that are attributes of the graph are frozen: folded, packed for oneDNN, their layout chosen. Inductor's own
freezing switch is also read by Dynamo, before any backend is called; here it is on only inside the compilation, so
the user's configuration and guards stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from vqc import compat

# Random operators run as in eager mode, so that a seed gives the same picture. Parameters stay with their module.
_ALWAYS: dict[str, Any] = {"fallback_random": True, "freezing_discard_parameters": False}

Compiled = Callable[..., Sequence[Any]]


def can_freeze(weight: torch.Tensor) -> bool:
    """Whether Inductor may take this tensor as a constant: it tries to pack float64 filters, which oneDNN refuses."""
    return weight.dtype != torch.float64 or weight.ndim < 3


def compile_frozen(gm: fx.GraphModule, inputs: Sequence[Any], settings: Mapping[str, Any] | None = None) -> Compiled:
    """Compile a graph for inference at the inputs' sizes, its attributes taken as constants.

    `inputs` are real tensors; Inductor takes ownership of `gm`. The callable takes tensors of the same shapes and
    gives the graph's flat outputs.
    """
    from vqc.backends.inductor.barrier import FoldingBarrier

    own = {"freezing": True, "joint_custom_post_pass": FoldingBarrier((settings or {}).get("joint_custom_post_pass"))}
    return _compile(gm, inputs, {**(settings or {}), **_ALWAYS, **own})


def compile_plain(gm: fx.GraphModule, inputs: Sequence[Any], settings: Mapping[str, Any] | None = None) -> Compiled:
    """As `compile_frozen`, but nothing is taken as a constant."""
    return _compile(gm, inputs, {**(settings or {}), **_ALWAYS, "freezing": False})


def _compile(gm: fx.GraphModule, inputs: Sequence[Any], settings: dict[str, Any]) -> Compiled:
    from torch._inductor.compile_fx import compile_fx

    with compat.outside_tracing(), compat.own_random_state(), compat.sums_out_of_place(), torch.no_grad():
        return compile_fx(gm, compat.fakes(inputs)[1], config_patches=settings)  # type: ignore[return-value]


def compile_traced(gm: fx.GraphModule, inputs: Sequence[Any], settings: Mapping[str, Any] | None = None) -> Compiled:
    """Hand a graph to Inductor exactly as Dynamo made it, within Dynamo's trace: gradients, dynamic sizes, guards."""
    from torch._inductor.compile_fx import compile_fx

    # Elsewhere a number that is read from the data has to end the graph: Dynamo catches that error and splits it there.
    with compat.scalars_in_scan() if has_subgraphs(gm) else nullcontext():
        return compile_fx(gm, list(inputs), config_patches={**(settings or {}), **_ALWAYS})  # type: ignore[return-value]


def has_subgraphs(gm: fx.GraphModule) -> bool:
    """Whether the graph has higher-order operators (scan, cond, checkpoint ...)."""
    return any(isinstance(n.target, torch._ops.HigherOrderOperator) for n in gm.graph.nodes)


def compile_any_size(gm: fx.GraphModule, settings: Mapping[str, Any] | None = None) -> Compiled:
    """Compile a graph for every size its inputs may have; the compilation happens at the first call.

    For calls outside of a trace: Dynamo runs once more, on the graph alone, and keeps guards of its own.
    """
    return torch.compile(gm, backend="inductor", dynamic=True, options={**(settings or {}), **_ALWAYS})

"""What has no kernel, in pieces: which of them PyTorch's compiler takes, which its operators run one by one, and why.

Calls that wait for nothing but each other are gathered: kernels that do not read them run first. A piece of two calls
or more goes to Inductor, which joins them; what it could only call, or must not reorder, stays with PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from vqc import compat
from vqc.backends.triton.lowering import VIEWS, Action, Lowered, Values
from vqc.errors import TargetError
from vqc.program import Declined, Program, op_text

Compiled = Callable[..., Sequence[Any]]
Engine = Callable[[fx.GraphModule, Sequence[Tensor]], Compiled]
# One rounding an operation, true divisions: what Inductor joins has the bits that its parts have one by one.
EXACT_SETTINGS = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}
_WAITS = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
ALONE = "alone, there is nothing to join it with"


@dataclass(frozen=True)
class Region:
    """Calls that are compiled together, in order; the values they read from elsewhere, and those read elsewhere."""

    calls: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def why_not_compiled(node: fx.Node) -> str | None:
    """Why PyTorch runs a call by itself although its compiler is asked for, or None."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return "it holds a graph of its own"
    if target.namespace in ("vqc", "quantized_decomposed"):
        return "its compiler would only call it"
    if any(tag in target.tags for tag in _WAITS):
        return "the size of its result, or a value, comes to the host"
    if torch.Tag.nondeterministic_seeded in target.tags:
        return "it draws random numbers"
    return None


def gather(program: Program, actions: Sequence[Action]) -> list[Action | Region]:
    """The actions with what may be compiled in regions, in an order in which every operand is there."""
    out: list[Action | Region] = []
    pending: list[Action] = []
    made: set[fx.Node] = set()

    def flush() -> None:
        calls = [n for a in pending for n in a.gives]
        if sum(a.eager is not None for a in pending) > 1:
            out.append(_region(program, calls))
        else:
            out.extend(pending)
        pending.clear()
        made.clear()

    for action in actions:
        picks = action.layer is None and action.eager is None and action.reads[0] in made  # getitem of a call in it
        if picks or (action.eager is not None and why_not_compiled(action.eager) is None):
            pending.append(action)
            made |= set(action.gives)
            continue
        if any(n in made for n in action.reads):
            flush()
        out.append(action)
    flush()
    return out


def _region(program: Program, calls: Sequence[fx.Node]) -> Region:
    inside, results = set(calls), set(program.result_nodes)
    inputs = [a for n in calls for a in n.all_input_nodes if a not in inside and a.op != "get_attr"]
    read = [n for n in calls if n in results or any(u not in inside for u in n.users)]
    outputs = [n for n in read if isinstance(n.meta.get("val"), Tensor)]
    return Region(tuple(calls), tuple(dict.fromkeys(inputs)), tuple(outputs))


def module_of(program: Program, region: Region, device: torch.device) -> fx.GraphModule:
    """A region as a module of its inputs, constants on a device; it gives a tuple."""
    graph = fx.Graph()
    held: dict[str, Any] = {}
    known = {n: graph.placeholder(n.name) for n in region.inputs}

    def value(n: fx.Node) -> fx.Node:
        if n not in known:  # a constant
            constant = program.constants[str(n.target)]
            held[str(n.target)] = constant.to(device) if isinstance(constant, Tensor) else constant
            known[n] = graph.get_attr(str(n.target))
        return known[n]

    for n in region.calls:
        known[n] = graph.node_copy(n, value)
    graph.output(tuple(known[n] for n in region.outputs))
    return fx.GraphModule(held, graph, class_name="Region")


def inductor(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """PyTorch's compiler as an engine, weights frozen, with EXACT_SETTINGS as far as this PyTorch has them."""
    from vqc.backends.inductor.engine import compile_frozen

    unknown = compat.unknown_inductor_settings(list(EXACT_SETTINGS))
    return compile_frozen(gm, inputs, {k: v for k, v in EXACT_SETTINGS.items() if k not in unknown})


def notes() -> list[str]:
    """What a report says where this PyTorch's compiler lacks some of EXACT_SETTINGS."""
    unknown = compat.unknown_inductor_settings(list(EXACT_SETTINGS))
    said = f"this PyTorch's compiler has no setting {', '.join(unknown)}: what it joins may be rounded otherwise"
    return [said] if unknown else []


def compiled(program: Program, lowered: Lowered, device: torch.device, engine: Engine = inductor) -> Lowered:
    """The same step with its regions compiled; the report's reasons say which engine runs what is left, and why.

    Raises TargetError when the engine fails.
    """
    pieces = gather(program, lowered.actions)
    left = {d.node for d in lowered.fallbacks}
    joined: dict[str, int] = {}
    kernels = dict(lowered.kernels)
    actions: list[Action] = []
    for piece in pieces:
        if isinstance(piece, Action):
            actions.append(piece)
            continue
        actions.append(_compiled(program, piece, device, engine))
        calls = [n.name for n in piece.calls if n.name in left]
        joined |= dict.fromkeys(calls, len(calls) - 1)
        kernels |= {n.name: f"inductor {op_text(n.target)}" for n in piece.calls}
    fallbacks = []
    for d in lowered.fallbacks:
        if d.node in joined:
            who = f"PyTorch's compiler runs it with {joined[d.node]} more"
        else:
            who = f"PyTorch runs it: {why_not_compiled(program.node(d.node)) or ALONE}"
        fallbacks.append(Declined(d.node, f"{d.reason}; {who}"))
    return replace(lowered, actions=actions, kernels=kernels, fallbacks=fallbacks)


def _compiled(program: Program, region: Region, device: torch.device, engine: Engine) -> Action:
    viewed = any(op_text(n.target) in VIEWS for n in region.calls)
    example = [_laid(torch.zeros(n.meta["val"].shape, dtype=n.meta["val"].dtype, device=device), viewed)
               for n in region.inputs]  # fmt: skip
    try:
        run = engine(module_of(program, region, device), example)
    except Exception as e:
        names = ", ".join(n.name for n in region.calls[:5])
        raise TargetError(f"PyTorch's compiler fails at {len(region.calls)} operators of {program.name} ({names})",
                          why=str(e)[:500], way_out="use option fallback=eager") from e  # fmt: skip
    return Action(partial(_run, run, region, viewed), region.inputs, region.outputs)


def _laid(x: Tensor, viewed: bool) -> Tensor:
    """Inputs in one order of memory, which the compiled code relies on: as kernels leave pictures, or as views want."""
    plain = viewed or x.ndim != 4
    return x.contiguous(memory_format=torch.contiguous_format if plain else torch.channels_last)


def _run(run: Compiled, region: Region, viewed: bool, values: Values) -> None:
    made = run(*(_laid(values[n], viewed) for n in region.inputs))
    values.update(zip(region.outputs, made, strict=True))

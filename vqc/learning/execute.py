"""Running a part of a Program's graph, with gradients, and with some nodes' values computed otherwise."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import fx

from vqc.program import Program

# node -> function of (its arguments, its keyword arguments) with them replaced by their values
Overrides = Mapping[fx.Node, Callable[..., Any]]


def execute(program: Program, nodes: Sequence[fx.Node], feeds: Mapping[fx.Node, Any], wanted: Collection[fx.Node],
            overrides: Overrides | None = None) -> dict[fx.Node, Any]:  # fmt: skip
    """The values of `wanted` after running `nodes` (calls in graph order), whose other inputs are in `feeds`.

    Constants are looked up. Whatever has a gradient keeps it: wrap the call in torch.no_grad() to have none. Values are
    dropped after their last use within `nodes`. Raises KeyError naming a node that is neither fed nor run before it is
    used.
    """
    overrides = overrides or {}
    env: dict[fx.Node, Any] = dict(feeds)
    last: dict[fx.Node, fx.Node] = {}
    for n in nodes:
        for a in n.all_input_nodes:
            last[a] = n
    dying: dict[fx.Node, list[fx.Node]] = {}
    for a, n in last.items():
        if a not in wanted:
            dying.setdefault(n, []).append(a)

    def load(a: fx.Node) -> Any:
        if a.op == "get_attr":
            return program.constants[str(a.target)]
        return env[a]

    for n in nodes:
        if n not in feeds:
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), load)
            run = overrides.get(n)
            env[n] = run(*args, **kwargs) if run is not None else n.target(*args, **kwargs)
        for dead in dying.get(n, ()):
            env.pop(dead, None)
    return {n: env[n] for n in wanted}


def whole(program: Program, inputs: Sequence[Any], state: Sequence[Any]) -> dict[fx.Node, Any]:
    """The feeds of a whole step: placeholders with their values."""
    places = [n for n in program.graph.nodes if n.op == "placeholder"]
    return dict(zip(places, [*inputs, *state], strict=True))

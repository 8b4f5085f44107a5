"""What the recorded code asked the data: every read of a value in Python, and what the code was told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from vqc.frontend.source import Place

Site = tuple[str, int]

WAYS_OUT = (
    "keep the choice inside the graph (torch.where, topk with a fixed k, fixed sizes), move it out of forward, "
    "register the code as an operator (torch.library.custom_op), or use torch.compile(model, backend='vqc'), which "
    "breaks the graph there"
)

INDEX_WAY_OUT = "if it is an index, use the tensor itself (ring[:, pos] = x, index_select); else "


@dataclass(frozen=True)
class Decision:
    """Python code read a value that depends on the data. `node` holds it; `value` is what it really was."""

    operator: str
    place: Place | None
    node: fx.Node
    value: Any

    @property
    def site(self) -> Site:
        return self.place.key() if self.place is not None else ("", 0)

    @property
    def is_bool(self) -> bool:
        return isinstance(self.value, bool)


# A number that is read may be compared with anything: more, nothing, and far on the other side are tried.
OTHER_NUMBERS: tuple[Callable[[Any], Any], ...] = (lambda v: v * 1.5 + 1, lambda v: v * 0, lambda v: -v - 1)


@dataclass
class Plan:
    """How one recording answers: reads at the sites in `flipped` get another value than the real one."""

    flipped: frozenset[Site] = frozenset()
    variant: int = 0  # which other number to give (see `OTHER_NUMBERS`)
    limit: int = 0  # operators after which an exploring run gives up; 0: none
    made: list[Decision] = field(default_factory=list)

    def answer(self, decision: Decision) -> Any:
        self.made.append(decision)
        if decision.site not in self.flipped:
            return decision.value
        if decision.is_bool:
            return not decision.value
        value = OTHER_NUMBERS[self.variant](decision.value)
        return int(value) if isinstance(decision.value, int) else value


class TooLong(Exception):
    """An exploring run went far beyond the length of the real one."""


_THROUGH = {
    "all", "any", "logical_not", "bitwise_not", "reshape", "view", "select", "_to_copy", "squeeze", "unsqueeze",
    "logical_and", "logical_or", "bitwise_and", "bitwise_or", "getitem",
}  # fmt: skip


def tests_exact_equality(node: fx.Node) -> bool:
    """Whether a boolean comes from comparing floats for exact equality (`norm(a - b) == 0`)."""
    name = node.target._schema.name.split("::")[1] if isinstance(node.target, torch._ops.OpOverload) else "getitem"
    if node.op != "call_function":
        return False
    if name in ("eq", "ne"):
        return any(a.meta["val"].is_floating_point() for a in node.all_input_nodes)
    return name in _THROUGH and any(tests_exact_equality(a) for a in node.all_input_nodes)

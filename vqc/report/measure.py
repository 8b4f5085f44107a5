"""One step of a program beside the same step of its float twin: sums of squares, no tensor kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from vqc.program import Program
from vqc.report.twins import Links, layer_kind, walk

Step = Sequence[Tensor]
State = Sequence[Tensor]
EQUAL, BROKEN = 200.0, -99.0  # dB: no difference at all (float32 cannot reach it), and not finite or all noise


class Sums(NamedTuple):
    """The power of what should be there, and of what is there instead."""

    signal: float
    noise: float

    @property
    def db(self) -> float:
        """SQNR in dB, held in BROKEN .. EQUAL; a multiple of 0.01, so that tables stay small."""
        if self.noise == 0:
            return EQUAL
        if not math.isfinite(self.noise) or self.signal <= 0:
            return BROKEN
        return round(min(max(10 * math.log10(self.signal / self.noise), BROKEN), EQUAL), 2)


def sums(value: Tensor, truth: Tensor) -> Sums:
    """Both powers of one tensor, in float64; a noise that is not finite is infinite."""
    noise = _power(_number(value) - _number(truth))
    return Sums(_power(_number(truth)), noise if noise < math.inf else math.inf)


def _power(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))


def _number(x: Tensor) -> Tensor:
    x = torch.view_as_real(x) if x.is_complex() else x
    return x if x.is_floating_point() else x.double()


def layers_of(program: Program) -> list[fx.Node]:
    """The layers of a float program (convolutions, products), in order."""
    found = [n for n in program.calls if layer_kind(n)]
    return [n for n in found if isinstance(n.meta.get("val"), Tensor) and n.meta["val"].is_floating_point()]


def truths(
    twin: Program, inputs: Step, state: State, names: Iterable[str]
) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """The twin's flat outputs of a step, and the values of the nodes `names`, held while a frame is compared."""
    wanted = set(names)
    found: dict[str, Tensor] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node.name in wanted:
            found[node.name] = value

    return walk(twin, inputs, state, keep), found


def compare(program: Program, links: Links, inputs: Step, state: State, truth: Mapping[str, Tensor], *,
            force: bool = False, look: Callable[[fx.Node, Any], None] | None = None,
            each: Callable[[str, Tensor], None] | None = None) -> tuple[tuple[Any, ...], dict[str, Sums]]:  # fmt: skip
    """Run a step; the flat outputs, and the sums at every node that stands for one in `truth`, by the twin's names.

    `force`: each such value is then replaced by the twin's, so that the noise is what arose since the layers before
    it: its own. `look(node, value)` sees all values, `each(twin's node, value)` the compared ones as floats.
    """
    found: dict[str, Sums] = {}

    def visit(node: fx.Node, value: Any) -> Any:
        if look is not None:
            look(node, value)
        link = links.get(node.name)
        if link is None or link.twin not in truth or node.op == "placeholder":
            return None
        true, real = link.truth(truth[link.twin]), link.real(value)
        found[link.twin] = sums(real, true)
        if each is not None:
            each(link.twin, real)
        return link.stored(true, value) if force else None

    return walk(program, inputs, state, visit), found


def forward(program: Program, inputs: Step, state: State) -> tuple[tuple[Any, ...], list[Tensor]]:
    """The flat outputs of a step, and the next state."""
    outputs = walk(program, inputs, state, lambda _node, _value: None)
    return outputs, next_state(program, outputs)


def next_state(program: Program, outputs: Sequence[Any]) -> list[Tensor]:
    """The state after a step, from its flat outputs."""
    return [outputs[s.output] for s in program.states]


def output_keys(program: Program) -> dict[str, int]:
    """`result NAME` and `state NAME` with their index among the flat outputs."""
    found = {f"result {name}": i for i, name in enumerate(program.outputs)}
    return found | {f"state {s.name}": s.output for s in program.states}


def output_sums(program: Program, outputs: Sequence[Any], reference: Program, true: Sequence[Any]) -> dict[str, Sums]:
    """The sums of every result and next state, beside those of the reference program."""
    there = output_keys(reference)
    return {key: sums(outputs[i], true[there[key]]) for key, i in output_keys(program).items()}


def alone(program: Program, links: Links, twin: Program, inputs: Step, state: State, truth: Mapping[str, Tensor],
          index: int, report: Callable[[int, int], None] | None = None) -> dict[str, float]:  # fmt: skip
    """What each layer does to flat output `index` all by itself: that output's SQNR in dB when only this layer's own
    error is put into the float twin. The twin runs once for every layer.
    """
    found: dict[str, float] = {}
    clean = forward(twin, inputs, state)[0][index]

    def each(name: str, value: Tensor) -> None:
        def swap(node: fx.Node, _: Any) -> Tensor | None:
            return value.to(truth[name].dtype) if node.name == name else None

        found[name] = sums(walk(twin, inputs, state, swap)[index], clean).db
        if report is not None:
            report(len(found), len(truth))

    compare(program, links, inputs, state, truth, force=True, each=each)
    return found

"""What layers of a program see on calibration clips, and what their float twins gave, at positions drawn once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from vqc.calibration import Clips
from vqc.learning.augment import Augmented
from vqc.learning.execute import execute
from vqc.learning.signs import patches
from vqc.program import Program, evaluate, shape_of

FRAMES = 40  # of all clips together
LENGTH = 4  # of one


class Samples:
    """Rollouts of a program that is being changed layer by layer, beside its twin's, on a part of the frames.

    Short clips are run, the state carried: as many drawn from the calibration clips as they are, and, with `augment`,
    moved, recoloured and put over other backgrounds (`vqc.learning.augment`). `count` positions of a layer are drawn
    from all frames together. What no changed layer reaches is run once, and kept where it is read later or one of
    `also`; the twin is run once.
    """

    def __init__(self, program: Program, twin: Program, clips: Clips, layers: Sequence[fx.Node], count: int, seed: int,
                 augment: bool, also: Sequence[fx.Node] = ()):  # fmt: skip
        self.program, self.twin, self.seed = program, twin, seed
        plain = Augmented(twin, clips.clips, LENGTH, seed, False, 0.0)
        changed = Augmented(twin, clips.clips, LENGTH, seed, augment, 0.5)
        half = FRAMES // LENGTH // 2
        self.clips = [plain.steps(i) for i in range(half)] + [changed.steps(i) for i in range(half, 2 * half)]
        self.frames = sum(len(c) for c in self.clips)
        self.count = max(64, count // self.frames)
        self._targets = self._twins([n.name for n in layers])
        places = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        self._next = {places[s.input]: program.result_nodes[s.output] for s in program.states}
        self._resets = {places[s.input]: s.reset for s in program.states}
        self._places = [places[i.name] for i in program.inputs]
        steps = [step for clip in self.clips for step in clip]
        self._kept: list[dict[fx.Node, Any]] = [dict(zip(self._places, step, strict=True)) for step in steps]
        self.settle(layers, also)

    def _drawn(self, positions: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return [torch.randperm(positions, generator=generator)[: self.count] for _ in range(self.frames)]

    @torch.no_grad()
    def _twins(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What the twin's layers give at the drawn positions: [n,O] by name."""
        wanted = {n: self._drawn(_positions(n)) for n in self.twin.calls if n.name in set(names)}
        found: dict[str, list[Tensor]] = {n.name: [] for n in wanted}
        frame = 0
        self._mattes: list[list[Tensor]] = []

        def see(n: fx.Node, value: Any) -> None:
            if n in wanted:
                found[n.name].append(value[0].flatten(1)[:, wanted[n][frame]].T)

        for clip in self.clips:
            state = self.twin.initial_state()
            for step in clip:
                out = evaluate(self.twin, step, state, see)
                state = [out[s.output] for s in self.twin.states]
                self._mattes.append(list(out[: len(self.twin.outputs)]))
                frame += 1
        return {k: torch.cat(parts) for k, parts in found.items()}

    @torch.no_grad()
    def settle(self, layers: Collection[fx.Node], also: Collection[fx.Node] = ()) -> None:
        """Keep what is read of nodes that none of `layers` reaches any more, in a step or over a state, and `also`."""
        program = self.program
        live = set(layers)
        while True:
            for n in program.calls:
                if any(a in live for a in n.all_input_nodes):
                    live.add(n)
            states = {p for p, n in self._next.items() if n in live}
            if states <= live:
                break
            live |= states
        read = {a for n in live for a in n.all_input_nodes if a.op != "get_attr" and a not in live} | set(also)
        kept: list[dict[fx.Node, Any]] = [{} for _ in range(self.frames)]
        self.run(read, lambda n, value, frame: kept[frame].update({n: value}))
        for frame, old in enumerate(self._kept):
            self._kept[frame] = {n: old[n] for n in self._places} | kept[frame]

    @torch.no_grad()
    def run(self, wanted: Collection[fx.Node], see: Callable[[fx.Node, Any, int], None]) -> None:
        """Values of nodes in every frame in order, the state carried from its reset in each clip; `see(node, value,
        frame)`."""
        program = self.program
        fixed = set(self._kept[0])
        needed: set[fx.Node] = set()
        todo = list(wanted)
        while todo:
            n = todo.pop()
            if n not in needed and n not in fixed and n.op != "get_attr":
                needed.add(n)
                todo += [self._next[n]] if n in self._next else n.all_input_nodes
        nodes = [n for n in program.calls if n in needed]
        carried = [p for p in self._next if p in needed]
        outputs = {self._next[p] for p in carried}
        frame = 0
        for clip in self.clips:
            state = {p: self._resets[p] for p in carried}
            for _ in clip:
                found = execute(program, nodes, self._kept[frame] | state, set(wanted) | outputs)
                state = {p: found[self._next[p]] for p in carried}
                for n in wanted:
                    see(n, found[n], frame)
                frame += 1

    def coarse(self, top: fx.Node, matte: str) -> tuple[Tensor, Tensor]:
        """(the program's values of `top` [F,C,h,w], the twin's matte brought to their size [F,1,h,w])."""
        features: list[Tensor] = []
        self.run([top], lambda n, value, _: features.append(value))
        size = shape_of(top)[2:]
        index = self.twin.outputs.index(matte)
        return torch.cat(features), torch.cat([F.adaptive_avg_pool2d(m[index], size) for m in self._mattes])

    def at(self, conv: fx.Node, mask: fx.Node | None, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
        """At drawn positions: the convolution's input patches [n,K], its twin's result [n,O], the mask's value [n]."""
        drawn = self._drawn(_positions(conv))
        found: dict[str, list[Tensor]] = {"x": [], "share": []}
        source = conv.args[0]
        assert isinstance(source, fx.Node)

        def see(n: fx.Node, value: Any, frame: int) -> None:
            if n is source:
                found["x"].append(patches(value, drawn[frame], kernel))
            if n is mask:
                found["share"].append(value[0].flatten(1)[0, drawn[frame]])

        self.run([source] if mask is None else [source, mask], see)
        x = torch.cat(found["x"])
        return x, self._targets[conv.name], torch.cat(found["share"]) if mask is not None else torch.ones(len(x))


def _positions(n: fx.Node) -> int:
    return int(shape_of(n)[-1] * shape_of(n)[-2])

"""The twin and the student side by side, block after block, over all calibration frames, each with its own state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from vqc.calibration import Clips
from vqc.learning.execute import Overrides, execute
from vqc.learning.layers import DEQUANTIZES, QUANTIZES
from vqc.learning.regions import Block
from vqc.learning.store import Store
from vqc.learning.student import Student
from vqc.program import Program, evaluate

Place = tuple[int, int]  # (clip, steps since its reset)


class Frontier:
    """What flows between blocks, for every frame: of the twin ("float") and of the student ("low").

    A block is run for all frames of a clip in order, its own state carried from the reset value. A state whose update
    is spread over several blocks comes from one rollout of the whole student, made at the start.
    """

    def __init__(self, student: Student, clips: Clips, blocks: Sequence[Block], store: Store):
        self.student, self.clips, self.store = student, clips, store
        self.readers: dict[fx.Node, int] = {}
        for block in blocks:
            for n in block.inputs:
                self.readers[n] = self.readers.get(n, 0) + 1
        self.resets = {s.input: s.reset for s in student.program.states}
        self._feed()
        closed = {place for b in blocks for place in b.states}
        self.loose = [n for n in self.readers if n.name in self.resets and n not in closed]
        if self.loose:
            for kind, program in (("float", student.twin), ("low", student.program)):
                self._record_states(kind, program)

    # ---- where things lie ----------------------------------------------------------------------------------------

    @property
    def places(self) -> Iterator[Place]:
        """Every step of every clip, in order."""
        return ((c, t) for c, clip in enumerate(self.clips) for t in range(len(clip)))

    def get(self, kind: str, node: fx.Node, place: Place) -> Any:
        return self.store.get((kind, node.name, place))

    def inputs(self, kind: str, block: Block, place: Place) -> dict[fx.Node, Any]:
        """What a block reads at a step, states that it carries itself left out."""
        return {n: self.get(kind, n, place) for n in block.inputs if n not in block.states}

    def reset_state(self, block: Block) -> dict[fx.Node, Any]:
        """The block's own states at the first step."""
        return {place: self.resets[place.name] for place in block.states}

    def twin_node(self, n: fx.Node) -> fx.Node:
        """The twin's node for the same value; what dequantizes a value stands for the value."""
        while n.target in DEQUANTIZES or n.target in QUANTIZES:
            n = n.args[0]  # type: ignore[assignment]
        return self.student.twins[n.name]

    # ---- moving on -----------------------------------------------------------------------------------------------

    def advance(self, kind: str, block: Block, overrides: Overrides | None = None, tag: str = "") -> None:
        """Run a block for all frames and keep its outputs, and its own states as they enter each step.

        `kind`: "float" runs the twin's nodes, "low" the student's with `overrides`. `tag`: appended to the kind under
        which results are kept, to hold two versions of them.
        """
        with torch.no_grad():
            for c, clip in enumerate(self.clips):
                state = self.reset_state(block)
                for t in range(len(clip)):
                    out, after = self.step(kind, block, self.inputs(kind, block, (c, t)), state, overrides)
                    for place, value in state.items():
                        self.store.put((kind + tag, place.name, (c, t)), value)
                    for n, value in out.items():
                        self.store.put((kind + tag, n.name, (c, t)), value)
                    state = after

    def step(self, kind: str, block: Block, inputs: dict[fx.Node, Any], state: dict[fx.Node, Any],
             overrides: Overrides | None = None) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:  # fmt: skip
        """(outputs by the block's output nodes, its next states by placeholder) of one step."""
        feeds = inputs | state
        wanted = dict.fromkeys([*block.outputs, *block.states.values()])
        if kind == "low":
            found = execute(self.student.program, block.nodes, feeds, wanted, overrides)
        else:
            found = self._float_step(block, feeds, wanted)
        return {n: found[n] for n in block.outputs}, {place: found[n] for place, n in block.states.items()}

    def _float_step(self, block: Block, feeds: dict[fx.Node, Any], wanted: dict[fx.Node, None]) -> dict[fx.Node, Any]:
        given = {self.twin_node(n): v for n, v in feeds.items()}
        nodes = [self.student.twins[n.name] for n in block.nodes if n.name in self.student.twins]
        nodes = [n for n in nodes if n.op == "call_function"]
        found = execute(self.student.twin, nodes, given, {self.twin_node(n) for n in wanted})
        return {n: found[self.twin_node(n)] for n in wanted}

    def settle(self, block: Block, tag: str) -> None:
        """Make the outputs kept under a tag the student's own."""
        for place in self.places:
            for n in dict.fromkeys([*block.outputs, *block.states]):
                value = self.store.get(("low" + tag, n.name, place))
                self.store.drop(("low" + tag, n.name, place))
                self.store.put(("low", n.name, place), value)

    def forget(self, block: Block, tag: str) -> None:
        """Drop what was kept under a tag."""
        for place in self.places:
            for n in dict.fromkeys([*block.outputs, *block.states]):
                self.store.drop(("low" + tag, n.name, place))

    def done(self, block: Block) -> None:
        """Drop what no later block reads."""
        for n in block.inputs:
            self.readers[n] -= 1
        dead = [n for n in block.inputs if self.readers[n] == 0]
        dead += [n for n in block.outputs if not self.readers.get(n)]
        for place in self.places:
            for n in dead:
                for kind in ("float", "low"):
                    self.store.drop((kind, n.name, place))

    # ---- the start -----------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        inputs = [self.student.program.node(i.name) for i in self.student.program.inputs]
        for c, t in self.places:
            for n, value in zip(inputs, self.clips.clips[c][t], strict=True):
                for kind in ("float", "low"):
                    self.store.put((kind, n.name, (c, t)), value)

    def _record_states(self, kind: str, program: Program) -> None:
        for c, clip in enumerate(self.clips):
            state = program.initial_state()
            for t, step in enumerate(clip):
                for spec, value in zip(program.states, state, strict=True):
                    self.store.put((kind, spec.input, (c, t)), value)
                out = evaluate(program, step, state)
                state = [out[s.output] for s in program.states]

"""Several running videos in one step: a Program of one clip a step made one of many, and their states."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

import vqc
from vqc.arguments import is_elementwise, is_random, op_name
from vqc.errors import InputError, UnsupportedOp
from vqc.executable import Executable, Stream
from vqc.program import Program, infer, meta_of

_SIZED = {"aten.view": 1, "aten.reshape": 1, "aten._unsafe_view": 1, "aten.expand": 1}  # where the sizes stand
# Beside pointwise operators, `vqc::` and `quantized_decomposed::`, which all keep clips apart.
_APART = (
    "aten.conv2d", "aten.conv_transpose2d", "aten.cat", "aten.split", "aten.split_with_sizes", "aten.chunk",
    "aten.slice", "aten.flip", "aten.roll", "aten.prelu", "aten._to_copy", "aten.clone", "aten.mean", "aten.amax",
    "aten.amin", "aten.sum", "aten.avg_pool2d", "aten.max_pool2d", "aten.adaptive_avg_pool2d", "aten.pixel_shuffle",
    "aten.pixel_unshuffle", "aten.squeeze", "aten.unsqueeze", "aten.permute", "aten.constant_pad_nd",
    "aten.reflection_pad2d", "aten.replication_pad2d", "aten.upsample_bilinear2d", "aten.upsample_nearest2d",
    "aten.select", "aten.softmax",
)  # fmt: skip
_AXES = ("dim", "dims", "dim0", "dim1")


def batched(program: Program, clips: int) -> Program:
    """The Program for a number of clips at once: every input and state has `clips` in place of 1 on its first axis.

    Clip i's results are those it has alone. Raises InputError where an input or a state does not begin with 1 or the
    step depends on an assumption about the data, UnsupportedOp for operators that do not keep clips apart, or of which
    that is not known.
    """
    if clips < 1:
        raise InputError(f"{clips} clips a step", way_out="use 1 or more")
    if program.assumptions:
        raise InputError(f"program {program.name} checks an assumption about its data in every step",
                         why="it may hold for one clip and not for another",
                         way_out="run a stream for each clip")  # fmt: skip
    given = [(i.name, i.shape) for i in program.inputs] + [(s.name, s.shape) for s in program.states]
    for name, shape in given:
        if not shape or shape[0] != 1:
            raise InputError(f"{name} of program {program.name} is {list(shape)}",
                             why="its first axis is not one clip", way_out="run a stream for each clip")  # fmt: skip
    many = program.clone()
    many.inputs = tuple(replace(i, shape=(clips, *i.shape[1:])) for i in many.inputs)
    many.states = tuple(replace(s, reset=_repeated(s.reset, clips)) for s in many.states)
    many.example = tuple(_repeated(x, clips) for x in many.example)
    shapes = {i.name: i.shape for i in many.inputs} | {s.input: s.shape for s in many.states}
    moving: set[fx.Node] = set()  # what differs from clip to clip
    for n in many.nodes:
        if n.op == "placeholder":
            n.meta["val"] = meta_of(torch.empty(shapes[n.name], dtype=n.meta["val"].dtype, device="meta"))
            moving.add(n)
        elif n.op == "call_function" and any(a in moving for a in n.all_input_nodes):
            _widen(many, n, moving, clips)
            moving.add(n)
    return many


def _repeated(x: Tensor, clips: int) -> Tensor:
    return x.repeat(clips, *([1] * (x.ndim - 1)))


def _widen(program: Program, n: fx.Node, moving: set[fx.Node], clips: int) -> None:
    """Infer a call anew; UnsupportedOp unless its result is the old one with more clips."""
    was = _shapes(n)
    reason = _mixes(n, moving)
    if reason is None:
        name = op_name(n.target)
        if name in _SIZED:
            sizes = list(n.args[_SIZED[name]])
            n.args = (*n.args[: _SIZED[name]], [clips if sizes[0] == 1 else sizes[0], *sizes[1:]],
                      *n.args[_SIZED[name] + 1 :])  # fmt: skip
        try:
            infer(program, n)
        except Exception as e:
            reason = f"it cannot run with {clips} clips: {e!s:.200}"
        else:
            if [(clips, *s[1:]) for s in was] != _shapes(n) or any(not s or s[0] != 1 for s in was):
                reason = f"its result would be {_shapes(n)} in place of {was}"
    if reason is not None:
        raise UnsupportedOp(f"{n.name} ({op_name(n.target)}) of program {program.name} does not keep clips apart",
                            why=reason, way_out="run a stream for each clip")  # fmt: skip


def _shapes(n: fx.Node) -> list[tuple[int, ...]]:
    val = n.meta["val"]
    return [tuple(t.shape) for t in (val if isinstance(val, (tuple, list)) else [val]) if isinstance(t, Tensor)]


def _mixes(n: fx.Node, moving: set[fx.Node]) -> str | None:
    """Why a call may read one clip for another's result, or None."""
    name = op_name(n.target)
    if n.target is operator.getitem:
        return None
    if is_random(n.target):
        return "it draws random numbers"
    rank = len(_shapes(n.all_input_nodes[0])[0])
    if is_elementwise(n.target):
        ranks = {len(_shapes(a)[0]) for a in n.all_input_nodes if a in moving}
        return None if len(ranks) == 1 else "it joins values of other ranks"
    if not name.startswith(("vqc.", "quantized_decomposed.")) and name not in (*_APART, *_SIZED):
        return "it is not known to keep them apart"
    schema = n.target._schema.arguments
    given = {a.name: n.args[i] if i < len(n.args) else n.kwargs.get(a.name, a.default_value if a.has_default_value()
             else None) for i, a in enumerate(schema)}  # fmt: skip
    if name == "aten.expand" and len(given["size"]) != rank:
        return "it puts axes before theirs"
    axes: list[Any] = [given[k] for k in _AXES if given.get(k) is not None]
    flat = [d for a in axes for d in (a if isinstance(a, (list, tuple)) else [a])]
    if name == "aten.roll" and not flat:
        return "it works along all axes at once"
    if name == "aten.permute":
        return None if flat[0] % rank == 0 else "it moves their axis"
    along = any(d % rank == 0 for d in flat) and name != "aten.unsqueeze"  # which its result's shape tells
    return "it works along their axis" if along else None


class Streams(Stream):
    """Several running videos on one executable of a `batched` Program; each may begin anew by itself.

    `frame`: steps since all were reset; `frames`: of each stream.
    """

    def __init__(self, executable: Executable):
        super().__init__(executable)
        self.count = executable.program.inputs[0].shape[0]
        self.frames = [0] * self.count

    def reset(self, stream: int | None = None) -> None:
        """Start a new video in one stream, or (None) in all. Raises InputError for a stream there is not."""
        if stream is None:
            super().reset()
            self.frames = [0] * self.count
            return
        if not 0 <= stream < self.count:
            raise InputError(f"there is no stream {stream}", way_out=f"use 0 to {self.count - 1}")
        fresh = []
        for s, spec in zip(self.state, self.executable.program.states, strict=True):
            new = s.clone()
            new[stream] = spec.reset[stream].to(s.device)
            fresh.append(new)
        self.state = fresh
        self.frames[stream] = 0

    def step(self, inputs: Any) -> list[Tensor]:
        """One step of all streams on flat inputs [streams,...]; flat results."""
        results = super().step(inputs)
        self.frames = [f + 1 for f in self.frames]
        return results


def streams(program: Program, target: str, clips: int, **options: Any) -> Streams:
    """A program of one clip a step, compiled for several: `batched`, then `vqc.compile`."""
    return Streams(vqc.compile(batched(program, clips), target, **options))

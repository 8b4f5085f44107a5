"""conv3d-to-conv2d: 3-d convolutions that slide along time or along the picture, not along both, in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.arguments import bind, is_elementwise, is_random, op_name
from vqc.passes.canonical_rules import PERMUTES, permutation
from vqc.pipeline import Close, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, shape_of

aten = torch.ops.aten

TIME_SECOND = [0, 2, 1, 3, 4]  # [N,C,T,H,W] <-> [N,T,C,H,W]
FRAMES, ROWS = "frames", "rows"


def pictures(layout: str, shape: tuple[int, ...]) -> list[int]:
    """The shape in which a value [N,C,T,H,W] lies as pictures.

    frames: [N*T,C,H,W], each frame a picture of its own. rows: [N,C,T,H*W], each frame a row of one tall picture.
    """
    n, c, t, h, w = shape
    return [n * t, c, h, w] if layout == FRAMES else [n, c, t, h * w]


def is_view(layout: str, shape: tuple[int, ...]) -> bool:
    """Whether nothing moves in memory between [N,C,T,H,W] and its pictures."""
    return layout == ROWS or 1 in shape[1:3]


@register
@dataclass(frozen=True)
class Conv3dToConv2d(Pass):
    """conv3d-to-conv2d: conv3d(x, w) -> conv2d(x', w'), where the kernel slides along time or the picture alone.

    Rewrites of x [N,C,T,H,W] and w [O,C/groups,kt,kh,kw], each counted:
      each-frame:    kt = 1, time not padded            x' = [N*T',C,H,W], every frame a picture
      whole-window:  one frame comes out                x' = [N,C*T,H,W], frames as channels
      windows:       stride kt along time, not padded   x' = [N*T',C*kt,H,W], windows that share no frame
      time-as-rows:  kh = kw = 1, stride 1, not padded  x' = [N,C,T,H*W], w' [O,C/groups,kt,1]: views alone
    A whole window leaves out taps that see only the zeros of padding. Frames as channels lie [C,T], a view of x, or
    [T,C] where that is a view of what x is made from (then w' has its channels in this order; groups need the first).
      moved:  what works element by element, on channels, or puts channels together goes to where the pictures are, so
              that nothing turns them back in between: where no more values are turned by it, or a later layer asks.

    Preconditions, each a reason when it fails: (1) the input has a batch; (2) the weight is a constant; (3) padding
    "same" is as wide on both sides; (4) one of the four forms fits. A layer that slides along both stays.
    Valid before: a float program, batch norms folded (`fold-bn`; one that is left moves along and can be folded after).
    Valid after: the same values in the same dimensions, under the same names; `canonicalize` merges the moves.
    """

    name: ClassVar[str] = "conv3d-to-conv2d"
    numerics: ClassVar[Numerics] = Close(rtol=1e-4, atol=1e-5)  # sums are in another order

    def apply(self, program: Program, context: PassContext) -> PassResult:
        work = _Work(PassResult(program))
        for n in program.calls:
            if op_name(n.target) == "aten.conv3d":
                reason = work.convert(n)
                if reason is not None:
                    work.result.decline(n, reason)
            elif _movable(program, n):
                work.consider(n)
        return work.result


@dataclass(frozen=True)
class _Conv:
    """A conv3d with its options for each of time, height and width."""

    x: fx.Node
    weight: torch.Tensor
    name: str
    bias: Any
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    @staticmethod
    def of(program: Program, n: fx.Node) -> _Conv | str:
        a = bind(n)
        weight, x = program.constant(a["weight"]), a["input"]
        if weight is None:
            return "its weight is computed at every step (fold-constants first, if it depends on no input)"
        if len(shape_of(x)) != 5:
            return "its input has no batch"
        dilation = _three(a["dilation"])
        padding = a["padding"]
        if padding == "same":
            borders = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if any(b % 2 for b in borders):
                return "its padding 'same' has one zero more behind than before"
            padding = [b // 2 for b in borders]
        padding = [0, 0, 0] if padding == "valid" else _three(padding)
        return _Conv(x, weight, str(a["weight"].target), a["bias"], _three(a["stride"]), padding, dilation, a["groups"])


def _three(value: Any) -> list[int]:
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * 3 if len(value) == 1 else value


class _Work:
    """The rewrites, with what is known of every value so far.

    `twins[layout][x]`: the pictures of a value [N,C,T,H,W]. `backs`: values that are made from their pictures and from
    nothing else. `near[layout]`: values that would have pictures, were the call that makes them moved.
    """

    def __init__(self, result: PassResult):
        self.result, self.program = result, result.program
        self.twins: dict[str, dict[fx.Node, fx.Node]] = {FRAMES: {}, ROWS: {}}
        self.near: dict[str, set[fx.Node]] = {FRAMES: set(), ROWS: set()}
        self.backs: set[fx.Node] = set()
        self.weights: dict[Hashable, fx.Node] = {}

    # ---- convolutions ------------------------------------------------------------------------------------------------

    def convert(self, n: fx.Node) -> str | None:
        """Put a conv2d in a conv3d's place; the reason when none gives the same."""
        c = _Conv.of(self.program, n)
        if isinstance(c, str):
            return c
        kt, kh, kw = c.weight.shape[2:]
        pt, dt, st = c.padding[0], c.dilation[0], c.stride[0]
        frames, out = shape_of(c.x)[2], shape_of(n)[2]
        flat = (kh, kw) == (1, 1) and c.stride[1:] == [1, 1] and c.padding[1:] == [0, 0]
        if out == 1:
            taps = [i for i in range(kt) if 0 <= i * dt - pt < frames]
            if not taps:
                return "no frame reaches its result"
            self._windows(n, c, taps, [i * dt - pt for i in taps])
        elif pt == 0 and kt == 1 and not (flat and (st > 1 or not self._is_near(c.x, FRAMES))):
            x = c.x if st == 1 else self._before(n, aten.slice.Tensor, c.x, 2, 0, frames, st)
            self._in_frames(n, c, self.pictures_of(x, FRAMES), c.weight[:, :, 0], "each-frame", 0)
        elif flat:
            weight = self._weight(c, c.weight.squeeze(-1), "time-as-rows")
            y = self._before(n, aten.conv2d.default, self.pictures_of(c.x, ROWS), weight, c.bias, [st, 1], [pt, 0],
                             [dt, 1], c.groups)  # fmt: skip
            self._stand_for(n, y, ROWS)
            self.result.count("time-as-rows")
        elif pt == 0 and kt == st and dt == 1:
            self._windows(n, c, list(range(kt)), list(range(out * kt)))
        elif kt == 1:
            return "its kernel is one frame long, but it pads time with zeros, which gives more frames than there are"
        else:
            return f"its kernel of {kt}x{kh}x{kw} slides along time and along the picture, and its windows share frames"
        return None

    def _windows(self, n: fx.Node, c: _Conv, taps: list[int], at: list[int]) -> None:
        """Windows of as many frames as `taps`, at the frames `at`, one window after the other: frames as channels."""
        batch, channels, frames, h, w = shape_of(c.x)
        count, out = len(taps), len(at) // len(taps)
        whole = out == 1 and at == list(range(frames))
        weight, what = c.weight[:, :, taps[0] : taps[-1] + 1], "windows" if out > 1 else "whole-window"
        if frames == 1:
            self._in_frames(n, c, self.pictures_of(c.x, FRAMES), weight[:, :, 0], "each-frame", taps[0])
        elif whole and c.groups == 1 and (self._is_near(c.x, FRAMES) or _turned(c.x)):
            flat = self.pictures_of(c.x, FRAMES)  # [N*T,C,H,W] is a view of [N,T*C,H,W]
            x = self._before(n, aten.reshape.default, flat, [batch, frames * channels, h, w])
            self._in_frames(n, c, x, weight.transpose(1, 2).flatten(1, 2), what, taps[0], count, "time first")
        else:
            x = c.x
            if at != list(range(frames)):
                x = self._before(n, aten.slice.Tensor, x, 2, at[0], at[-1] + 1, c.dilation[0] if count > 1 else 1)
            if out > 1:
                x = self._before(n, aten.reshape.default, x, [batch, channels, out, count, h, w])
                x = self._before(n, aten.permute.default, x, [0, 2, 1, 3, 4, 5])
            x = self._before(n, aten.reshape.default, x, [batch * out, channels * count, h, w])
            self._in_frames(n, c, x, weight.flatten(1, 2), what, taps[0], count)

    def _in_frames(self, n: fx.Node, c: _Conv, x: fx.Node, weight: torch.Tensor, what: str, *how: Hashable) -> None:
        made = self._weight(c, weight, what, *how)
        options = (c.stride[1:], c.padding[1:], c.dilation[1:], c.groups)
        self._stand_for(n, self._before(n, aten.conv2d.default, x, made, c.bias, *options), FRAMES)
        self.result.count(what)

    def _weight(self, c: _Conv, value: torch.Tensor, *how: Hashable) -> fx.Node:
        """A constant for a weight that was changed as `how` says; layers that share a weight go on sharing it."""
        key = (c.name, *how)
        if key not in self.weights:
            self.weights[key] = self.program.add_constant(f"{c.name}_2d", value.contiguous())
        return self.weights[key]

    # ---- pictures ----------------------------------------------------------------------------------------------------

    def pictures_of(self, x: fx.Node, layout: str) -> fx.Node:
        """A value as pictures, made where the value itself is made, so that every later reader can have them."""
        twins = self.twins[layout]
        if x in twins:
            return twins[x]
        if x in self.near[layout]:
            return twins[self._move(x, layout)]
        first = next(a for a in self.program.graph.nodes if a.op == "call_function")
        place = x.next if x.op == "call_function" else first
        shape, y = shape_of(x), x
        if not is_view(layout, shape):
            y = self._before(place, aten.permute.default, x, TIME_SECOND, like=x)
        twins[x] = self._before(place, aten.reshape.default, y, pictures(layout, shape), like=x)
        return twins[x]

    def _stand_for(self, n: fx.Node, y: fx.Node, layout: str) -> fx.Node:
        """Let pictures, turned back, stand for the value of a call and take its name."""
        shape = shape_of(n)
        if is_view(layout, shape):
            back = self._before(n, aten.reshape.default, y, list(shape))
        else:
            batch, channels, *rest = shape
            back = self._before(n, aten.reshape.default, y, [batch, rest[0], channels, *rest[1:]])
            back = self._before(n, aten.permute.default, back, TIME_SECOND)
        back.meta.update({k: n.meta[k] for k in ("observed", "quant") if k in n.meta})
        name = n.name
        n.replace_all_uses_with(back)
        self.program.graph.erase_node(n)
        back.name = name
        self.twins[layout][back] = y
        self.backs.add(back)
        return back

    def _is_near(self, x: fx.Node, layout: str) -> bool:
        return x in self.twins[layout] or x in self.near[layout]

    def _before(self, place: fx.Node, target: Any, *args: Any, like: fx.Node | None = None) -> fx.Node:
        with self.program.graph.inserting_before(place):
            return self.program.call(target, args, like=like or place)

    # ---- what stands between -----------------------------------------------------------------------------------------

    def consider(self, n: fx.Node) -> None:
        """Move a call to the pictures where it costs nothing; else note that a later convolution may ask for it."""
        values = _values(n)
        for layout, twins in self.twins.items():
            backs = [a for a in values if a in twins and a in self.backs]
            free = bool(backs) and all(is_view(layout, shape_of(a)) for a in (*values, n))
            ends = any(set(a.users) == {n} for a in backs) and all(a in twins for a in values)
            if free or ends:
                self._move(n, layout)
                return
            far = [a for a in values if not self._is_near(a, layout)]
            if len(far) < len(values) and len(far) <= 1:
                self.near[layout].add(n)

    def _move(self, n: fx.Node, layout: str) -> fx.Node:
        """Do on the pictures what a call does on [N,C,T,H,W]; gives the node that now stands for its value."""
        moved = {a: self.pictures_of(a, layout) for a in _values(n)}
        # one that was moved just now has another node, which stands in the arguments already
        moved |= {a: self.twins[layout][a] for a in _values(n)}
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: moved[a] if a in moved else self._constant(n, a))
        if op_name(n.target) in CATS:
            args, kwargs = (args[0], 1), {}
        with self.program.graph.inserting_before(n):
            y = self.program.call(n.target, args, kwargs, like=n)
        self.near[layout].discard(n)
        self.result.count("moved")
        return self._stand_for(n, y, layout)

    def _constant(self, n: fx.Node, a: fx.Node) -> fx.Node:
        """A constant for each channel, or of one element, as it stands beside pictures."""
        value = self.program.constant(a)
        if value is None or value.dim() < 4:
            return a
        key = (str(a.target), "channels")
        if key not in self.weights:
            made = value.reshape(-1, 1, 1) if value.numel() > 1 else value.reshape(1)
            self.weights[key] = self.program.add_constant(f"{a.target}_2d", made)
        return self.weights[key]


# ---- which calls can be moved ----------------------------------------------------------------------------------------

CATS = {"aten.cat", "aten.concat"}
CHANNELS = {"aten.batch_norm", "aten.prelu", "aten._prelu_kernel"}  # every channel, dimension 1, by its own numbers


def _values(n: fx.Node) -> list[fx.Node]:
    """The arguments of a call that lie [N,C,T,H,W]."""
    found = [a for a in n.all_input_nodes if a.op != "get_attr" and isinstance(a.meta.get("val"), torch.Tensor)]
    return [a for a in found if len(shape_of(a)) == 5]


def _movable(program: Program, n: fx.Node) -> bool:
    """Whether a call does the same to pictures as to [N,C,T,H,W]."""
    op, value = op_name(n.target), n.meta["val"]
    if not isinstance(value, torch.Tensor) or value.dim() != 5 or 0 in value.shape or is_random(n.target):
        return False
    values = _values(n)
    if n.kwargs.get("memory_format") is not None:  # of five axes
        return False
    if not values or (op not in CHANNELS and op not in CATS and not is_elementwise(n.target)):
        return False
    others = [a for a in n.all_input_nodes if a not in values]
    if op in CATS:
        a = bind(n)
        return not others and a["dim"] % 5 == 1 and all(v.meta["val"].dtype == value.dtype for v in values)
    if op in CHANNELS:
        parameters = all(a.op == "get_attr" and len(shape_of(a)) <= 1 for a in others)
        return len(values) == 1 and parameters and not (op == "aten.batch_norm" and bind(n)["training"])
    frames = {(shape_of(v)[0], *shape_of(v)[2:]) for v in (*values, n)}  # one channel beside many is broadcast
    return len(frames) == 1 and all(_beside(program, a, value.shape[1]) for a in others)


def _beside(program: Program, a: fx.Node, channels: int) -> bool:
    """Whether an argument is a constant of one element or of one for each channel (a scalar's tensor included)."""
    value = program.constant(a)
    if value is None:
        return False
    shape = (1,) * (5 - value.dim()) + tuple(value.shape)
    return value.numel() == 1 or math.prod(shape) == shape[1] == channels


def _turned(x: fx.Node) -> bool:
    """Whether a value is [N,T,C,H,W] with time and channels exchanged, which its pictures exchange back."""
    return x.op == "call_function" and op_name(x.target) in PERMUTES and permutation(x) == TIME_SECOND

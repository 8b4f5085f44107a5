"""The small rules of canonicalize: what each operator's call can be replaced by.

A rule looks at one call and what it reads, never at what reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from vqc.arguments import bind, op_name
from vqc.program import Program, dtype_of, shape_of

aten = torch.ops.aten

VIEWS = {"aten.view", "aten._unsafe_view", "aten._reshape_copy", "aten.flatten", "aten.unflatten", "aten.view_as"}
RESHAPES = VIEWS | {"aten.reshape", "aten.reshape_as", "aten.squeeze", "aten.unsqueeze"}
PERMUTES = {
    "aten.permute", "aten.transpose", "aten.t", "aten.swapaxes", "aten.swapdims", "aten.movedim", "aten.numpy_T",
    "aten.mT",
}  # fmt: skip
COPIES = {"aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.lift_fresh", "aten.lift_fresh_copy"}
CASTS = {"aten.to", "aten._to_copy", "aten.type_as"}
SPLITS = {"aten.split", "aten.split_with_sizes", "aten.chunk"}
NEVER_MINUS_ZERO = {"aten.abs", "aten.sigmoid", "aten.exp", "aten.softmax", "aten._softmax", "vqc.exp", "vqc.sigmoid"}


class View:
    """What a rule sees: one call with its arguments, and the Program around it."""

    def __init__(self, program: Program, node: fx.Node, device: torch.device | None):
        self.program, self.node, self.device = program, node, device
        self.op = op_name(node.target)
        self.args = bind(node) if isinstance(node.target, torch._ops.OpOverload) else {}
        self.source: Any = node.args[0] if node.args else None
        self.inserted: fx.Node | None = None

    def same_as_source(self) -> bool:
        """Whether the result has the shape and dtype of the first argument."""
        return self.unchanged(self.source)

    def unchanged(self, source: Any) -> bool:
        if not isinstance(source, fx.Node) or not isinstance(self.node.meta["val"], torch.Tensor):
            return False
        value = source.meta["val"]
        return isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (
            shape_of(self.node),
            dtype_of(self.node),
        )

    def producer(self, ops: set[str]) -> fx.Node | None:
        """The call of one of these operators that the first argument comes from."""
        s = self.source
        return s if isinstance(s, fx.Node) and s.op == "call_function" and op_name(s.target) in ops else None

    def everywhere(self, value: Any, number: float) -> bool:
        """Whether a scalar or a constant tensor is this number in every element (+0.0 and -0.0 are told apart)."""
        sign = math.copysign(1.0, number)
        if isinstance(value, (int, float)):
            return value == number and math.copysign(1.0, value) == sign
        c = self.program.constant(value)
        if c is None or c.is_complex() or c.numel() == 0:
            return False
        return bool((c == number).all()) and bool((torch.signbit(c) == (sign < 0)).all())

    def insert(self, target: Any, *args: Any) -> fx.Node:
        with self.program.graph.inserting_before(self.node):
            self.inserted = self.program.call(target, args, like=self.node, name=op_name(target).split(".")[-1])
        return self.inserted


Rule = Callable[[View], fx.Node | None]
RULES: dict[str, list[tuple[str, Rule]]] = {}  # by operator


def rule(name: str, ops: Iterable[str]) -> Callable[[Rule], Rule]:
    """Register a rule for these operators: it returns the node that replaces the call, None to leave it."""

    def add(f: Rule) -> Rule:
        for op in ops:
            RULES.setdefault(op, []).append((name, f))
        return f

    return add


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@rule("drop-copy", COPIES)
def drop_copy(v: View) -> fx.Node | None:
    return v.source


@rule("drop-dropout", {"aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout"})
def drop_dropout(v: View) -> fx.Node | None:
    return v.source if not v.args["train"] or v.args["p"] == 0 else None


@rule("drop-cast", CASTS)
def drop_cast(v: View) -> fx.Node | None:
    stays = v.args.get("device") is None or torch.device(v.args["device"]) == v.device
    if v.node.target is aten.to.other or v.op == "aten.type_as":
        stays = v.device is not None
    return v.source if stays and v.same_as_source() else None


@rule("drop-reshape", RESHAPES)
def drop_reshape(v: View) -> fx.Node | None:
    return v.source if v.same_as_source() else None


@rule("merge-reshapes", RESHAPES)
def merge_reshapes(v: View) -> fx.Node | None:
    before = v.producer(RESHAPES)
    if before is None or aten.view.dtype in (v.node.target, before.target):
        return None
    return v.insert(aten.reshape.default, before.args[0], list(shape_of(v.node)))


def permutation(node: fx.Node) -> list[int]:
    """The order of dimensions a permuting call gives, read off a tensor whose sizes are its dimensions' numbers."""
    rank = len(shape_of(node))
    probe = torch.empty([i + 1 for i in range(rank)], device="meta")
    return [s - 1 for s in node.target(probe, *node.args[1:], **node.kwargs).shape]


@rule("drop-permute", PERMUTES)
def drop_permute(v: View) -> fx.Node | None:
    return v.source if permutation(v.node) == list(range(len(shape_of(v.node)))) else None


@rule("merge-permutes", PERMUTES)
def merge_permutes(v: View) -> fx.Node | None:
    before = v.producer(PERMUTES)
    if before is None:
        return None
    first = permutation(before)
    order = [first[d] for d in permutation(v.node)]
    if order == list(range(len(order))):
        return before.args[0]  # type: ignore[return-value]
    return v.insert(aten.permute.default, before.args[0], order)


@rule("drop-expand", {"aten.expand", "aten.expand_as", "aten.broadcast_to", "aten.repeat", "aten.tile"})
def drop_expand(v: View) -> fx.Node | None:
    return v.source if v.same_as_source() else None


@rule("drop-slice", {"aten.slice", "aten.narrow"})
def drop_slice(v: View) -> fx.Node | None:
    return v.source if v.same_as_source() else None


@rule("drop-pad", {"aten.constant_pad_nd", "aten.pad"})
def drop_pad(v: View) -> fx.Node | None:
    return v.source if not any(v.args["pad"]) else None


@rule("drop-cat", {"aten.cat", "aten.concat"})
def drop_cat(v: View) -> fx.Node | None:
    return v.source[0] if len(v.source) == 1 and v.unchanged(v.source[0]) else None


@rule("stack-of-one", {"aten.stack"})
def stack_of_one(v: View) -> fx.Node | None:
    return v.insert(aten.unsqueeze.default, v.source[0], v.args["dim"]) if len(v.source) == 1 else None


@rule("mul-by-one", {"aten.mul"})
def mul_by_one(v: View) -> fx.Node | None:
    a, b = v.args["self"], v.args["other"]
    for kept, other in ((a, b), (b, a)):
        if v.unchanged(kept) and v.everywhere(other, 1.0):
            return kept
    return None


@rule("div-by-one", {"aten.div"})
def div_by_one(v: View) -> fx.Node | None:
    plain = v.args.get("rounding_mode") is None
    return v.source if plain and v.same_as_source() and v.everywhere(v.args["other"], 1.0) else None


@rule("add-zero", {"aten.add", "aten.sub"})
def add_zero(v: View) -> fx.Node | None:
    """x + 0 -> x for integers; for floats only where -0.0 stays -0.0: x - 0.0, x + -0.0, or x never -0.0."""
    alpha = v.args.get("alpha", 1)
    a, b = v.args["self"], v.args["other"]
    for kept, other in ((a, b), (b, a)) if v.op == "aten.add" and alpha == 1 else ((a, b),):
        if not v.unchanged(kept):
            continue
        if dtype_of(v.node).is_floating_point:
            minus, plus = v.everywhere(other, -0.0), v.everywhere(other, 0.0)
            if v.op == "aten.sub" or alpha < 0:
                minus, plus = plus, minus
            safe = kept.op == "call_function" and op_name(kept.target) in NEVER_MINUS_ZERO
            if minus or (plus and safe):
                return kept
        elif v.everywhere(other, 0.0):
            return kept
    return None


@rule("drop-split", {"getitem"})
def drop_split(v: View) -> fx.Node | None:
    """The only piece of a split is the tensor itself."""
    if v.producer(SPLITS) is None or len(v.source.meta["val"]) != 1:
        return None
    return v.source.args[0]

"""canonicalize: the same values with fewer nodes."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.arguments import bind, is_random, op_name
from vqc.pipeline import Exact, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, dtype_of, infer, meta_of, shape_of

aten = torch.ops.aten

RESHAPES = {
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten._reshape_copy", "aten.flatten", "aten.unflatten",
    "aten.squeeze", "aten.unsqueeze", "aten.view_as", "aten.reshape_as",
}  # fmt: skip
PERMUTES = {
    "aten.permute", "aten.transpose", "aten.t", "aten.swapaxes", "aten.swapdims", "aten.movedim", "aten.numpy_T",
    "aten.mT",
}  # fmt: skip
COPIES = {"aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.lift_fresh", "aten.lift_fresh_copy"}
CASTS = {"aten.to", "aten._to_copy", "aten.type_as"}
NEVER_MINUS_ZERO = {"aten.abs", "aten.sigmoid", "aten.exp", "aten.softmax", "aten._softmax", "vqc.exp", "vqc.sigmoid"}


class View:
    """What a rule sees: one call of an operator with a schema, and the Program around it."""

    def __init__(self, program: Program, node: fx.Node, device: torch.device | None):
        self.program, self.node, self.device = program, node, device
        self.op = op_name(node.target)
        self.args = bind(node)
        self.source: Any = node.args[0] if node.args else None

    def same_as_source(self) -> bool:
        """Whether the result has the shape and dtype of the first argument."""
        return self.unchanged(self.source)

    def unchanged(self, source: Any) -> bool:
        if not isinstance(source, fx.Node) or not isinstance(self.node.meta["val"], torch.Tensor):
            return False
        value = source.meta["val"]
        return isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (shape_of(self.node), dtype_of(self.node))

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
            return self.program.call(target, args, like=self.node)


Rule = Callable[[View], fx.Node | None]
RULES: list[tuple[str, frozenset[str], Rule]] = []


def rule(name: str, ops: Iterable[str]) -> Callable[[Rule], Rule]:
    """Register a rule for these operators: it returns the node that replaces the call, None to leave it."""

    def add(f: Rule) -> Rule:
        RULES.append((name, frozenset(ops), f))
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


@rule("view-as-reshape", {"aten.view", "aten._unsafe_view", "aten._reshape_copy"})
def view_as_reshape(v: View) -> fx.Node | None:
    """A view promises strides that hold only as long as every copy before it stays; a reshape does not."""
    if v.node.target is aten.view.dtype:
        return None
    return v.insert(aten.reshape.default, v.source, list(shape_of(v.node)))


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
    return [s - 1 for s in node.target(probe, *node.args[1:], **node.kwargs).shape]  # type: ignore[operator]


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


@dataclass(frozen=True)
class Canonicalize(Pass):
    """f(x), f(x) -> f(x); no-op(x) -> x; view ∘ view -> view; transpose ∘ transpose -> transpose.

    Preconditions
    1. An operator is merged with an earlier one only when all its arguments are the same values, scalars of the same
       type and bits, and it draws no random numbers.
    2. A call is dropped only when its result has the shape, the dtype and the bits of its argument.
    3. Constants are merged only when dtype, shape and every byte agree; two constants of equal numbers but different
       dtype or sign of zero stay two.
    4. Inner graphs (`scan` bodies) are left as they are: their results must not alias.

    Valid before: any Program. Valid after: `aten.view` has become `aten.reshape`, which needs no particular strides;
    there are no copies, no casts to the same dtype, no unused nodes. Counts every rule by its name.
    """

    name: ClassVar[str] = "canonicalize"
    numerics: ClassVar[Numerics] = Exact()

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        _merge_constants(result)
        device = _only_device(program)
        rules = _by_operator()
        restrided: set[fx.Node] = set()
        seen: dict[Hashable, fx.Node] = {}
        for node in program.calls:
            # rules look only at producers, which are in their final form already: one sweep reaches the fixpoint
            done = _simplify(result, node, rules, device, restrided)
            if done.op == "call_function" and done not in restrided:
                _refresh(program, done, restrided)
            _merge(result, done, seen)
        dropped = program.drop_dead()
        if dropped:
            result.count("drop-dead", dropped)
        return result


def _by_operator() -> dict[str, list[tuple[str, Rule]]]:
    table: dict[str, list[tuple[str, Rule]]] = {}
    for name, ops, f in RULES:
        for op in ops:
            table.setdefault(op, []).append((name, f))
    return table


def _only_device(program: Program) -> torch.device | None:
    """The device all tensors of the program are on, None when there are several or none."""
    tensors = [*program.constants.values(), *program.example, *(s.reset for s in program.states)]
    devices = {t.device for t in tensors if isinstance(t, torch.Tensor)}
    return devices.pop() if len(devices) == 1 else None


def _simplify(result: PassResult, node: fx.Node, rules: dict[str, list[tuple[str, Rule]]],
              device: torch.device | None, restrided: set[fx.Node]) -> fx.Node:  # fmt: skip
    """Apply rules to a call until none fires; returns the node that stands for its value now."""
    while node.op == "call_function":
        replacement = _getitem_of_one_piece(node)
        name = "drop-split"
        if replacement is None and op_name(node.target) in rules and isinstance(node.target, torch._ops.OpOverload):
            view = View(result.program, node, device)
            for name, f in rules[view.op]:  # noqa: B007 - the name of the rule that fired is counted
                replacement = f(view)
                if replacement is not None:
                    break
        if replacement is None:
            return node
        before, after = node.meta["val"], replacement.meta["val"]
        if isinstance(after, torch.Tensor) and before.stride() != after.stride():
            restrided.add(replacement)
        _replace(result.program, node, replacement)
        result.count(name)
        node = replacement
        if len(node.users) and node.op == "call_function" and not _is_new(node):
            return node
    return node


def _is_new(node: fx.Node) -> bool:
    return op_name(node.target) in RESHAPES | PERMUTES


def _getitem_of_one_piece(node: fx.Node) -> fx.Node | None:
    """The tensor itself for the only piece of a split."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    split = node.args[0]
    one = isinstance(split.meta["val"], (tuple, list)) and len(split.meta["val"]) == 1
    if not one or op_name(split.target) not in ("aten.split", "aten.split_with_sizes", "aten.chunk"):
        return None
    return split.args[0]  # type: ignore[return-value]

"""canonicalize: the same values with fewer nodes."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from vqc.arguments import bind, is_elementwise, is_random, op_name
from vqc.passes.canonical_rules import CASTS, COPIES, PERMUTES, RESHAPES, RULES, SPLITS, VIEWS, View
from vqc.pipeline import Exact, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, meta_of, shape_of

aten = torch.ops.aten

MOVES = {
    "aten.cat", "aten.stack", "aten.slice", "aten.select", "aten.unbind", "aten.expand", "aten.constant_pad_nd",
    "aten.pixel_shuffle", "aten.pixel_unshuffle", "aten.flip",
}  # fmt: skip
STRIDES_DO_NOT_MATTER = RESHAPES | PERMUTES | COPIES | CASTS | SPLITS | MOVES


@register
@dataclass(frozen=True)
class Canonicalize(Pass):
    """f(x), f(x) -> f(x); no-op(x) -> x; view ∘ view -> view; transpose ∘ transpose -> transpose.

    Preconditions
    1. An operator is merged with an earlier one only when all its arguments are the same values, scalars of the same
       type and bits, and it draws no random numbers.
    2. A call is dropped only when its result has the shape, the dtype and the bits of its argument.
    3. Constants are merged only when dtype, shape and every byte agree; two constants of equal numbers but different
       dtype or sign of zero stay two.
    4. A copy that changes the order in memory goes only when no operator after it adds in that order: PyTorch's own
       convolutions and sums give other last bits on transposed memory.
    5. Inner graphs (`scan` bodies) are left as they are: their results must not alias.

    Valid before: any Program. Valid after: `aten.view` has become `aten.reshape`, which needs no particular strides;
    no call is a no-op, none is there twice, none is unused. Counts every rule by its name.
    """

    name: ClassVar[str] = "canonicalize"
    numerics: ClassVar[Numerics] = Exact()

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        _views_to_reshapes(result)
        _merge_constants(result)
        device = _only_device(program)
        seen: dict[Hashable, fx.Node] = {}
        for node in program.calls:
            # rules look only at producers, which are in their final form already: one sweep reaches the fixpoint
            _merge(result, _simplify(result, node, device), seen)
        dropped = program.drop_dead()
        if dropped:
            result.count("drop-dead", dropped)
        return result


def _views_to_reshapes(result: PassResult) -> None:
    """A view promises strides that hold only as long as every copy before it stays; a reshape does not."""
    for node in result.program.calls:
        if node.target is not aten.view.dtype and op_name(node.target) in VIEWS:
            node.args, node.kwargs = (node.args[0], list(shape_of(node))), {}
            node.target = aten.reshape.default
            result.count("view-as-reshape")


def _only_device(program: Program) -> torch.device | None:
    """The device all tensors of the program are on, None when there are several or none."""
    tensors = [*program.constants.values(), *program.example, *(s.reset for s in program.states)]
    devices = {t.device for t in tensors if isinstance(t, torch.Tensor)}
    return devices.pop() if len(devices) == 1 else None


def _simplify(result: PassResult, node: fx.Node, device: torch.device | None) -> fx.Node:
    """Apply rules to a call until none fires; returns the node that now stands for its value."""
    while isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem:
        for name, f in RULES.get(op_name(node.target), ()):
            view = View(result.program, node, device)
            replacement = f(view)
            if replacement is not None and _layout_allows(result, node, replacement):
                _replace(node, replacement)
                if view.inserted is not None:
                    replacement.name = node.name  # names do not depend on how many rewrites it took
                result.count(name)
                break
            if view.inserted is not None:
                result.program.graph.erase_node(view.inserted)
        else:
            return node
        node = replacement
        if view.inserted is None:  # a node that stood there before: it has been through this
            return node
    return node


def _replace(node: fx.Node, replacement: fx.Node) -> None:
    """Put an equal value in a node's place; what was observed of it still holds."""
    for key in ("observed", "quant"):
        if key in node.meta:
            replacement.meta.setdefault(key, node.meta[key])
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def _strides(value: Any) -> Any:
    """Strides of the dimensions that have more than one element."""
    if isinstance(value, torch.Tensor):
        return [s for s, n in zip(value.stride(), value.shape, strict=True) if n > 1]
    return [_strides(v) for v in value]


def _layout_allows(result: PassResult, node: fx.Node, replacement: fx.Node) -> bool:
    """Whether a replacement of other strides leaves the bits of everything after it as they are.

    Walks forward as far as strides differ. True also updates the shapes' strides of the nodes passed.
    """
    value = replacement.meta["val"]
    if _strides(value) == _strides(node.meta["val"]):
        return True
    changed: dict[fx.Node, Any] = {node: value}
    waiting = set(node.users)
    at = node.next
    while waiting:
        if at in waiting:
            waiting.remove(at)
            if at.op == "call_function":
                if not _moves_only(at.target):
                    result.decline(node, f"{at.name} adds in the order of memory, which this copy sets")
                    return False
                new = _infer_with(result.program, at, changed)
                if _strides(new) != _strides(at.meta["val"]):
                    changed[at] = new
                    waiting.update(at.users)
        at = at.next
    for n, new in changed.items():
        n.meta["val"] = new
    return True


def _moves_only(target: Any) -> bool:
    """Whether an operator's bits do not depend on strides: it works element by element or only moves data."""
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target is aten.view.dtype:
        return False
    return is_elementwise(target) or op_name(target) in STRIDES_DO_NOT_MATTER


def _infer_with(program: Program, node: fx.Node, changed: dict[fx.Node, Any]) -> Any:
    def load(n: fx.Node) -> Any:
        return changed[n] if n in changed else n.meta["val"]

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), load)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "meta"}
    return meta_of(node.target(*args, **kwargs))


def _merge(result: PassResult, node: fx.Node, seen: dict[Hashable, fx.Node]) -> None:
    """Replace a call by an equal one made before."""
    target = node.target
    if node.op != "call_function" or is_random(target):
        return
    if isinstance(target, torch._ops.OpOverload):
        key: Hashable = (target, *((k, _frozen(a)) for k, a in bind(node).items()))
    elif target is operator.getitem:
        key = (target, _frozen(node.args))
    else:
        return
    first = seen.setdefault(key, node)
    if first is not node:
        _replace(node, first)
        result.count("merge-equal")


def _frozen(value: Any) -> Hashable:
    """A key that is equal only for the same values: 1, 1.0 and True, or 0.0 and -0.0, are different ones."""
    if isinstance(value, fx.Node):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return (type(value).__name__, repr(value))


def _merge_constants(result: PassResult) -> None:
    """Give every constant one `get_attr` node, and constants of the same bytes one constant."""
    program = result.program
    alike: dict[Hashable, list[fx.Node]] = {}
    for node in [n for n in program.graph.nodes if n.op == "get_attr"]:
        value = program.constants[str(node.target)]
        key: Hashable = str(node.target)
        if isinstance(value, torch.Tensor):
            key = (value.dtype, tuple(value.shape), value.device)
        alike.setdefault(key, []).append(node)
    for key, nodes in alike.items():
        first: dict[Hashable, fx.Node] = {}
        for node in nodes if len(nodes) > 1 else ():
            kept = first.setdefault(key if isinstance(key, str) else _digest(program.constants[str(node.target)]), node)
            if kept is not node:
                _replace(node, kept)
                result.count("merge-constant")


def _digest(value: torch.Tensor) -> bytes:
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).digest()

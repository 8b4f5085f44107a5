"""fold-bn-sign: a norm and a sign behind a binary convolution become a threshold of its integer sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

import vqc.ops  # noqa: F401  (registers the vqc:: operators)
from vqc.ops.exact import is_exact
from vqc.passes.lower_binary import POINTWISE
from vqc.pipeline import Exact, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, op_text, shape_of

aten = torch.ops.aten
v = torch.ops.vqc

# Twins of exact-float among the functions of one value.
EXACT_POINTWISE = {v.sigmoid.default, v.tanh.default, v.hardsigmoid.default, v.hardswish.default, v.silu.default,
                   v.exp.default}  # fmt: skip


@register
@dataclass(frozen=True)
class FoldBNSign(Pass):
    """fold-bn-sign: binarize(f(bconv2d(x))) -> bconv2d_threshold(x): no float in between.

    f is a chain of functions of single values with constants of channels: activations, factors, shifts, norms, or
    nothing. For every channel the whole float expression, with its roundings, is evaluated at every sum the layer can
    reach; where the decisions change once, that is the threshold, upwards or (`flip`) downwards. A gain of 0 gives a
    constant.

    Preconditions, each a reason when it fails: (1) the layer's value and those of f have one reader, which is one
    sign: a shortcut needs the float; (2) the sign's threshold is a constant; (3) f has the same bits on every engine
    (`exact-float` first); (4) in each channel decisions change at one sum at most.
    Valid before: binary layers lowered (`lower-binary`). Valid after: the same. Counts "threshold".
    Source: Umuroglu et al., "FINN" (FPGA 2017), section 4.2, which derives the threshold; here it is searched, so that
    roundings count.
    """

    name: ClassVar[str] = "fold-bn-sign"
    numerics: ClassVar[Numerics] = Exact()

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        for n in program.calls:
            if n.target is v.bconv2d.default:
                reason = _fold(program, n, result)
                if reason is not None:
                    result.decline(n, reason)
        return result


def _chain(program: Program, n: fx.Node) -> tuple[list[fx.Node], fx.Node] | str:
    """(f, the sign) behind a layer, or why there is no such chain."""
    chain: list[fx.Node] = []
    last = n
    while True:
        if len(last.users) != 1:
            return f"{len(last.users)} calls read {last}, which needs it as a float"
        user = next(iter(last.users))
        if user.target is v.binarize.default:
            fixed = program.constant(user.args[1]) is not None and user.args[0] is last
            return (chain, user) if fixed else f"the threshold of {user} is computed at run time"
        if user.target not in POINTWISE | EXACT_POINTWISE:
            return f"{user} reads {last}, and is no function of single values"
        if not is_exact(user):
            return f"{op_text(user.target)} has not the same bits on every engine: run exact-float before"
        for other in user.all_input_nodes:
            value = program.constant(other)
            if other is not last and (value is None or not _of_channels(user, value, shape_of(last))):
                return f"{user} joins it with {other}, no constant of channels"
        if shape_of(user) != shape_of(last):
            return f"{user} changes its shape"
        chain.append(user)
        last = user


def _of_channels(user: fx.Node, value: torch.Tensor, shape: tuple[int, ...]) -> bool:
    if user.target in (aten.prelu.default, aten._prelu_kernel.default, aten.batch_norm.default):
        return True  # their constants are one or one for each channel by definition
    size = (1,) * (len(shape) - value.ndim) + tuple(value.shape)
    return len(size) == len(shape) and all(s == 1 for axis, s in enumerate(size) if axis != 1)


def _fold(program: Program, n: fx.Node, result: PassResult) -> str | None:
    found = _chain(program, n)
    if isinstance(found, str):
        return found
    chain, sign = found
    weight, scale = program.constant(n.args[1]), program.constant(n.args[2])
    bias = None if n.args[3] is None else program.constant(n.args[3])
    if weight is None or scale is None or (n.args[3] is not None and bias is None):
        return "its constants are computed at run time"
    reach = weight[0].numel()
    thresholds = find_thresholds(_decisions(program, n, reach, scale, bias, [*chain, sign]))
    if thresholds is None:
        return "in some channel the sign changes at more than one sum"
    name = str(n.args[1].target)
    with program.graph.inserting_before(sign):
        at = program.add_constant(f"{name}_threshold", thresholds[0])
        flip = program.add_constant(f"{name}_flip", thresholds[1])
        new = program.call(v.bconv2d_threshold.default, (n.args[0], n.args[1], at, flip, *n.args[4:]), like=n,
                           name="bconv2d_threshold")  # fmt: skip
    sign.replace_all_uses_with(new)
    for dead in (sign, *reversed(chain), n):
        program.graph.erase_node(dead)
    result.count("threshold")
    return None


def _decisions(program: Program, n: fx.Node, reach: int, scale: torch.Tensor, bias: torch.Tensor | None,
               calls: list[fx.Node]) -> torch.Tensor:  # fmt: skip
    """For every channel of layer n and every sum from -reach to reach, whether the sign is +1: bool [O, 2 reach + 1].

    The sums lie along the last axis of a picture, and the program's own operators (`calls`, the sign last) run on it.
    """
    sums = torch.arange(-reach, reach + 1, dtype=torch.float32).view(1, 1, 1, -1)
    y = sums * scale.view(1, -1, 1, 1)
    values = {n: y if bias is None else y + bias.view(1, -1, 1, 1)}
    for call in calls:
        for constant in call.all_input_nodes:
            values.setdefault(constant, program.constants.get(str(constant.target)))
        args, kwargs = fx.node.map_arg((call.args, call.kwargs), values.__getitem__)
        values[call] = call.target(*args, **kwargs)
    return values[calls[-1]][0, :, 0] > 0


def find_thresholds(up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(threshold s32 [O], flip bool [O]) of decisions [O, 2 reach + 1] over the sums -reach to reach.

    up[o, i] == ((i - reach >= threshold[o]) != flip[o]); None when some channel changes more than once.
    """
    reach = up.shape[1] // 2
    changes = up[:, 1:] != up[:, :-1]
    count = changes.sum(1)
    if bool((count > 1).any()):
        return None
    at = torch.where(count > 0, changes.int().argmax(1) + 1 - reach, -reach)  # -reach: every sum is that large
    return at.to(torch.int32), up[:, 0] == (count > 0)

"""exact-float: give the float values that become integers the same bits on every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

import vqc.ops  # noqa: F401  (registers the twins)
from vqc.ops.exact import argument, is_exact
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, dtype_of, op_text, shape_of

aten = torch.ops.aten
vqc_ops = torch.ops.vqc

MASKED = vqc_ops.masked_conv2d.default
NO_TWIN = "integers behind it may differ between backends by one step"


class Declines(Exception):
    """Raised inside a rewrite that cannot keep the operator's meaning; its text is the reason."""


@register
@dataclass(frozen=True)
class ExactFloat(Pass):
    """exact-float: aten.sigmoid -> vqc.sigmoid and so on, where an integer depends on the value.

    Engines differ in the last bits of a sigmoid, a mean, a resize. Behind a quantizer such a bit is sometimes a whole
    step, and in a recurrent network the step stays. In the integer cone (`integer_cone`) every float operator that is
    not exact as it stands (`vqc.ops.EXACT`) becomes its `vqc::` twin, or is written out in operators that are exact;
    outside of it floats stay as they are, for each backend's fastest kernels. What has no twin is declined by name.

    Preconditions of a rewrite, each a reason when it fails: (1) all its floats are float32; (2) its arguments are among
    those the twin has (a mean over height and width, bilinear sampling with border or zero padding, ...).
    Valid before: a program whose integer layers are lowered already (a convolution between dequantize and quantize
    would become an ordered float one). Valid after: the same program; running the pass again changes nothing.

    Numerics: a float moves by rounding only; an integer behind it by one step, rarely. No closeness of results holds
    for all inputs then, so the promise is a ratio.
    """

    name: ClassVar[str] = "exact-float"
    numerics: ClassVar[Numerics] = Lossy(30.0)

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        cone = integer_cone(program)
        for node in program.calls:
            if node not in cone or is_exact(node):
                continue
            text = op_text(node.target)
            rewrite = REWRITES.get(node.target)
            if rewrite is None:
                result.decline(node, f"{text} has no exact twin: {NO_TWIN}")
                continue
            try:
                _replace(program, node, rewrite)
            except Declines as e:
                result.decline(node, f"{text} {e}: {NO_TWIN}")
            else:
                result.count(text)
        return result


def integer_cone(program: Program) -> set[fx.Node]:
    """All nodes on which an integer depends: those from which a quantizer, a sign (in training form too) or a `vqc::`
    integer operator is reached. Of a masked float convolution that is the mask.

    States carry it on: the next value of a state belongs to the cone when the state itself does, however many steps
    later the integer comes.
    """
    cone: set[fx.Node] = set()
    todo = [argument(n, "mask") if n.target is MASKED else n for n in program.calls if makes_integers(n)]
    results = program.result_nodes
    next_values = {s.input: results[s.output] for s in program.states}
    while todo:
        node = todo.pop()
        if node in cone:
            continue
        cone.add(node)
        todo += node.all_input_nodes
        if node.op == "placeholder" and node.name in next_values:
            todo.append(next_values[node.name])
    return cone


def makes_integers(node: fx.Node) -> bool:
    """Whether a call turns floats into integers or signs, or computes with integers: a quantizer, a `vqc::` layer."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target.namespace == "quantized_decomposed":
        return target._opname.startswith("quantize")
    if target is vqc_ops.fake_binarize.default:
        return True
    values = [n.meta.get("val") for n in node.all_input_nodes]
    return target.namespace == "vqc" and any(isinstance(v, torch.Tensor) and not v.is_floating_point() for v in values)


# ---- writing a replacement -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """The call being replaced, and a pen that writes calls in its place."""

    program: Program
    node: fx.Node

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        return self.program.call(target, args, like=self.node)

    def get(self, name: str) -> Any:
        """An argument of the call by its schema name."""
        return argument(self.node, name)

    def constant(self, suffix: str, value: torch.Tensor) -> fx.Node:
        return self.program.add_constant(f"{self.node.name}_{suffix}", value)


Rewrite = Callable[[Site], fx.Node]
REWRITES: dict[Any, Rewrite] = {}


def rewrites(*targets: Any) -> Callable[[Rewrite], Rewrite]:
    """Decorator: this function writes the exact form of these operators."""

    def add(f: Rewrite) -> Rewrite:
        REWRITES.update(dict.fromkeys(targets, f))
        return f

    return add


def _replace(program: Program, node: fx.Node, rewrite: Rewrite) -> None:
    floats = {dtype_of(n) for n in (node, *node.all_input_nodes) if dtype_of(n).is_floating_point}
    if floats != {torch.float32}:
        raise Declines("has an exact twin for float32 only")
    with program.graph.inserting_before(node):
        new = rewrite(Site(program, node))
    new.meta.update({k: v for k, v in node.meta.items() if k != "val"})
    node.replace_all_uses_with(new)
    name = node.name
    program.graph.erase_node(node)
    new.name = name  # whoever looked this value up by name still finds it


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return [int(v) for v in (values * 2 if len(values) == 1 else values)]


def _need(ok: bool, reason: str) -> None:
    if not ok:
        raise Declines(reason)


# ---- twins -----------------------------------------------------------------------------------------------------------

_SAME_NAME = ("exp", "sigmoid", "tanh", "hardsigmoid", "hardswish", "silu")


@rewrites(*(getattr(aten, name).default for name in _SAME_NAME))
def _same_name(s: Site) -> fx.Node:
    return s(getattr(vqc_ops, s.node.target._opname).default, s.node.args[0])


@rewrites(aten.mean.dim)
def _mean(s: Site) -> fx.Node:
    x, shape = s.get("self"), shape_of(s.get("self"))
    dims = {d % len(shape) for d in s.get("dim") or range(len(shape))}
    _need(len(shape) == 4 and dims == {2, 3}, "is exact over height and width of a picture only")
    y = s(vqc_ops.mean_hw.default, x)
    return y if s.get("keepdim") else s(aten.view.default, y, list(shape[:2]))


@rewrites(aten.adaptive_avg_pool2d.default)
def _adaptive(s: Site) -> fx.Node:
    x, out = s.get("self"), _pair(s.get("output_size"))
    size = shape_of(x)[-2:]
    _need(len(shape_of(x)) == 4, "is exact on four axes only")
    _need(size[0] % out[0] == 0 and size[1] % out[1] == 0, f"is exact when {list(size)} is a multiple of {out} only")
    if out == [1, 1]:
        return s(vqc_ops.mean_hw.default, x)
    kernel = [size[0] // out[0], size[1] // out[1]]
    return s(vqc_ops.avg_pool2d.default, x, kernel, kernel, [0, 0], False, True)


@rewrites(aten.avg_pool2d.default)
def _avg_pool(s: Site) -> fx.Node:
    x, kernel = s.get("self"), _pair(s.get("kernel_size"))
    _need(len(shape_of(x)) == 4, "is exact on four axes only")
    _need(s.get("divisor_override") is None, "with a divisor of its own has no exact twin")
    stride = _pair(s.get("stride") or kernel)
    flags = bool(s.get("ceil_mode")), bool(s.get("count_include_pad"))
    return s(vqc_ops.avg_pool2d.default, x, kernel, stride, _pair(s.get("padding")), *flags)


@rewrites(aten.upsample_bilinear2d.default)
def _resize(s: Site) -> fx.Node:
    tail = bool(s.get("align_corners")), s.get("scales_h"), s.get("scales_w")
    return s(vqc_ops.resize_bilinear.default, s.get("self"), *shape_of(s.node)[2:], *tail)


@rewrites(aten.grid_sampler_2d.default)
def _grid(s: Site) -> fx.Node:
    mode = {0: "zeros", 1: "border"}.get(s.get("padding_mode"))
    _need(s.get("interpolation_mode") == 0, "is exact in bilinear mode only")
    if mode is None:
        raise Declines("is exact with zero or border padding only")
    return s(vqc_ops.grid_sample.default, s.get("input"), s.get("grid"), mode, bool(s.get("align_corners")))


@rewrites(aten.conv2d.default)
def _conv(s: Site) -> fx.Node:
    _need(len(shape_of(s.get("input"))) == 4, "is exact on four axes only")
    head = s.get("input"), s.get("weight"), s.get("bias")
    return s(vqc_ops.conv2d.default, *head, *(_pair(s.get(k)) for k in ("stride", "padding", "dilation")),
             s.get("groups"))  # fmt: skip


@rewrites(aten.conv_transpose2d.input)
def _conv_transpose(s: Site) -> fx.Node:
    _need(len(shape_of(s.get("input"))) == 4, "is exact on four axes only")
    head = s.get("input"), s.get("weight"), s.get("bias")
    sizes = [_pair(s.get(k)) for k in ("stride", "padding", "output_padding")]
    return s(vqc_ops.conv_transpose2d.default, *head, *sizes, s.get("groups"), _pair(s.get("dilation")))


# ---- written out in operators that are exact as they stand -----------------------------------------------------------


def _times(s: Site, x: Any, factor: Any) -> Any:
    if factor == 1:
        return x
    return s(aten.mul.Tensor, x, factor) if isinstance(x, fx.Node) else x * factor


@rewrites(aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar)
def _scaled_sum(s: Site) -> fx.Node:
    return s(s.node.target, s.get("self"), _times(s, s.get("other"), s.get("alpha")))


@rewrites(aten.rsub.Tensor, aten.rsub.Scalar)
def _scaled_difference(s: Site) -> fx.Node:
    return s(s.node.target, _times(s, s.get("self"), s.get("alpha")), s.get("other"))


@rewrites(aten.addcmul.default)
def _addcmul(s: Site) -> fx.Node:
    product = _times(s, s(aten.mul.Tensor, s.get("tensor1"), s.get("tensor2")), s.get("value"))
    return s(aten.add.Tensor, s.get("self"), product)


@rewrites(aten.addcdiv.default)
def _addcdiv(s: Site) -> fx.Node:
    quotient = _times(s, s(aten.div.Tensor, s.get("tensor1"), s.get("tensor2")), s.get("value"))
    return s(aten.add.Tensor, s.get("self"), quotient)


@rewrites(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(s: Site) -> fx.Node:
    start = s.get("self")
    way = s(aten.mul.Tensor, s(aten.sub.Tensor, s.get("end"), start), s.get("weight"))
    return s(aten.add.Tensor, start, way)


@rewrites(aten.pow.Tensor_Scalar)
def _pow(s: Site) -> fx.Node:
    x, exponent = s.get("self"), s.get("exponent")
    if exponent == 2:
        return s(aten.mul.Tensor, x, x)
    _need(exponent == 3, "is exact for the exponents 2 and 3 only")
    return s(aten.mul.Tensor, s(aten.mul.Tensor, x, x), x)


@rewrites(aten.batch_norm.default)
def _batch_norm(s: Site) -> fx.Node:
    """x * scale + shift with constants computed in double and rounded once."""
    names = ("weight", "bias", "running_mean", "running_var")
    given = [s.get(n) for n in names]
    values = [s.program.constant(n) for n in given]
    known = all(v is not None or n is None for v, n in zip(values, given, strict=True))
    _need(known and not s.get("training") and values[3] is not None, "is exact with constant statistics only")
    shape = shape_of(s.get("input"))
    weight, bias, mean, var = (v.double() if v is not None else torch.tensor(d, dtype=torch.float64)
                               for v, d in zip(values, (1.0, 0.0, 0.0, 1.0), strict=True))  # fmt: skip
    scale = weight / torch.sqrt(var + s.get("eps"))
    view = [1, shape[1], *[1] * (len(shape) - 2)]
    shift = s.constant("shift", (bias - mean * scale).float().view(view))
    y = s(aten.mul.Tensor, s.get("input"), s.constant("scale", scale.float().view(view)))
    return s(aten.add.Tensor, y, shift)

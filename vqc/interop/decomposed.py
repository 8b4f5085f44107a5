"""Programs as graphs that other tools read: `quantized_decomposed` operators around plain ATen layers.

vqc's integer layer is acc * scale[o] + bias[o], acc the exact sum of (x - x_zero) * w. Here the picture is
dequantized to (x - x_zero) * sx, the weight to w * (scale[o] / sx), and the layer is the float one. sx is the scale the
picture was quantized by; where it has one for each channel, those are in the integer weight already, and sx is 1. The
integers in the graph are the same; float sums round where integer ones do not, so a result may be one step of 8 bits
away. Functions with exact bits (`vqc::sigmoid` ..) become ATen's, which differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor, fx

import vqc.ops  # noqa: F401
from vqc import spec
from vqc.arguments import bind
from vqc.interop.signed import MOVES
from vqc.ops.exact import argument
from vqc.program import PassRecord, Program, dtype_of, op_text, shape_of

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed
v = torch.ops.vqc

REQUANTIZED = {v.qconv2d_requantize.default, v.qconv_transpose2d_requantize.default, v.qlinear_requantize.default,
               v.masked_qconv2d_requantize.default}  # fmt: skip


def picture_scale(node: Any) -> float:
    """The one scale a picture was quantized by, seen through what only moves it; 1 where there is none."""
    seen = node
    while isinstance(seen, fx.Node):
        if seen.target is qd.quantize_per_tensor.default:
            return float(seen.args[1])
        if seen.target in REQUANTIZED:
            inverse = torch.tensor(float(argument(seen, "inv_scale")), dtype=torch.float32)
            return float(1 / inverse)
        if not isinstance(seen.target, torch._ops.OpOverload) or seen.target.name() not in MOVES:
            return 1.0
        first = seen.args[0]
        seen = first[0] if isinstance(first, (list, tuple)) else first
    return 1.0


def why_whole(node: fx.Node) -> str | None:
    """None when a call has a form in plain operators (or is one), else the reason it stays."""
    name = op_text(node.target)
    if not name.startswith("vqc.") or node.target in _RULES:
        return None
    return "it is a form for training; apply lower-binary first" if "fake" in name else "it has no plain form"


def decompose(program: Program) -> Program:
    """A copy in which every `vqc::` operator is written with ATen and `quantized_decomposed` ones.

    What has no such form stays, and the history says why. States, names and assumptions are as before.
    """
    made = program.clone()
    counts: dict[str, int] = {}
    notes: list[str] = []
    for n in made.calls:
        rule = _RULES.get(n.target)
        if rule is None:
            continue
        try:
            with made.graph.inserting_before(n):
                new = rule(_Writer(made, n), bind(n))
        except _Computed as e:  # what was written so far is read by nobody, and goes
            notes.append(f"kept {op_text(n.target)}: {e}")
            continue
        new.meta.update({k: m for k, m in n.meta.items() if k in ("source", "module")})
        n.replace_all_uses_with(new)
        made.graph.erase_node(n)
        counts[op_text(n.target)] = counts.get(op_text(n.target), 0) + 1
    made.drop_dead()
    notes += {f"kept {op_text(n.target)}: {why}" for n in made.calls if (why := why_whole(n))}
    made.recorded(PassRecord("decompose", counts, notes=tuple(sorted(notes))))
    spec.check(made, "decompose")
    return made


class _Computed(Exception):
    """A rule wants a constant, and the argument is computed at every step."""


class _Writer:
    """Inserts the calls that stand for one node."""

    def __init__(self, program: Program, node: fx.Node):
        self.program, self.node = program, node

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.program.call(target, args, kwargs, like=self.node)

    def constant(self, name: str, value: Tensor) -> fx.Node:
        return self.program.add_constant(f"{self.node.name}_{name}", value)

    def known(self, argument: Any) -> Tensor:
        found = self.program.constant(argument)
        if found is None:
            raise _Computed(f"{argument} of {self.node.name} is computed at every step")
        return found


_Rule = Callable[[_Writer, dict[str, Any]], fx.Node]
_RULES: dict[Any, _Rule] = {}


def _rule(*targets: Any) -> Callable[[_Rule], _Rule]:
    def wrap(f: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(targets, f))
        return f

    return wrap


# ---- integer layers --------------------------------------------------------------------------------------------------


def _picture(w: _Writer, x: fx.Node, x_zero: Any, axis: int) -> tuple[fx.Node, float]:
    """The dequantized picture, and its scale."""
    zero, info = w.known(x_zero).to(torch.int64), torch.iinfo(dtype_of(x))
    if zero.numel() > 1 and bool((zero == zero[0]).all()):
        zero = zero[:1]
    if zero.numel() == 1:
        scale = picture_scale(x)
        args = (x, scale, int(zero), info.min, info.max, dtype_of(x))
        return w(qd.dequantize_per_tensor.default, *args), scale
    scales, zeros = w.constant("x_scale", torch.ones(zero.shape)), w.constant("x_zero", zero)
    return w(qd.dequantize_per_channel.default, x, scales, zeros, axis, info.min, info.max, dtype_of(x)), 1.0


def _weight(w: _Writer, weight: Any, scale: Tensor, axis: int) -> fx.Node:
    top = torch.iinfo(dtype_of(weight)).max
    scales = w.constant("w_scale", scale.float())
    zeros = w.constant("w_zero", torch.zeros(len(scale), dtype=torch.int64))
    return w(qd.dequantize_per_channel.default, weight, scales, zeros, axis, -top, top, dtype_of(weight))


def _finished(w: _Writer, b: dict[str, Any], y: fx.Node) -> fx.Node:
    """A mask, an activation and the quantization of the result, where the layer has them."""
    if "mask" in b:
        y = w(aten.where.ScalarOther, b["mask"], y, 0.0)
    if "inv_scale" not in b:
        return y
    if b["activation"] == "relu":
        y = w(aten.relu.default, y)
    inverse = float(torch.tensor(float(b["inv_scale"]), dtype=torch.float32))
    return w(qd.quantize_per_tensor.default, y, 1.0 / inverse, int(b["zero_point"]), 0, 255, torch.uint8)


@_rule(v.qconv2d.default, v.qconv2d_requantize.default, v.masked_qconv2d.default, v.masked_qconv2d_requantize.default)
def _qconv(w: _Writer, b: dict[str, Any]) -> fx.Node:
    x, scale = _picture(w, b["x"], b["x_zero"], 1)
    weight = _weight(w, b["weight"], w.known(b["scale"]).double() / scale, 0)
    geometry = (list(b["stride"]), list(b["padding"]), list(b["dilation"]), b["groups"])
    return _finished(w, b, w(aten.conv2d.default, x, weight, b["bias"], *geometry))


@_rule(v.qconv_transpose2d.default, v.qconv_transpose2d_requantize.default)
def _qconv_transpose(w: _Writer, b: dict[str, Any]) -> fx.Node:
    """The weight is [C, O/groups, kh, kw]: its output channels are axis 1, and groups have to share its scales; where
    they do not, the scales stand behind the layer."""
    x, scale = _picture(w, b["x"], b["x_zero"], 1)
    scales, each = w.known(b["scale"]).double() / scale, shape_of(b["weight"])[1]
    shared = scales.reshape(-1, each)
    same = bool((shared == shared[0]).all())
    geometry = (list(b["stride"]), list(b["padding"]), list(b["output_padding"]), b["groups"], list(b["dilation"]))
    weight = _weight(w, b["weight"], shared[0] if same else torch.ones(each), 1)
    y = w(aten.conv_transpose2d.input, x, weight, b["bias"] if same else None, *geometry)
    if not same:
        y = _shifted(w, b["bias"], w(aten.mul.Tensor, y, w.constant("scale", scales.float().view(1, -1, 1, 1))))
    return _finished(w, b, y)


@_rule(v.qlinear.default, v.qlinear_requantize.default)
def _qlinear(w: _Writer, b: dict[str, Any]) -> fx.Node:
    x, scale = _picture(w, b["x"], b["x_zero"], len(shape_of(b["x"])) - 1)
    weight = _weight(w, b["weight"], w.known(b["scale"]).double() / scale, 0)
    return _finished(w, b, w(aten.linear.default, x, weight, b["bias"]))


@_rule(v.lut.default)
def _lut(w: _Writer, b: dict[str, Any]) -> fx.Node:
    index = w(aten._to_copy.default, b["x"], dtype=torch.int64)
    return w(aten.index.Tensor, b["table"], [index])


# ---- layers of one bit, layers under a mask --------------------------------------------------------------------------


def _column(w: _Writer, name: str, argument: Any, dtype: torch.dtype | None = None) -> fx.Node:
    value = w.known(argument)
    return w.constant(name, value.to(dtype or value.dtype).view(1, -1, 1, 1))


def _shifted(w: _Writer, bias: Any, y: fx.Node) -> fx.Node:
    return y if bias is None else w(aten.add.Tensor, y, _column(w, "shift", bias))


def _signs(w: _Writer, where: fx.Node, there: int) -> fx.Node:
    """`there` where true, else -`there`, as int8."""
    one, other = (w.constant(n, torch.tensor(i, dtype=torch.int8)) for n, i in (("one", there), ("other", -there)))
    return w(aten.where.self, where, one, other)


@_rule(v.binarize.default)
def _binarize(w: _Writer, b: dict[str, Any]) -> fx.Node:
    return _signs(w, w(aten.lt.Tensor, b["x"], _column(w, "tau", b["tau"])), -1)


def _sums(w: _Writer, b: dict[str, Any]) -> fx.Node:
    x = w(aten._to_copy.default, b["x"], dtype=torch.float32)
    weight = w.constant("signs", w.known(b["weight"]).float())
    return w(aten.conv2d.default, x, weight, None, list(b["stride"]), list(b["padding"]), list(b["dilation"]), 1)


@_rule(v.bconv2d.default, v.masked_bconv2d.default)
def _bconv(w: _Writer, b: dict[str, Any]) -> fx.Node:
    y = _shifted(w, b["bias"], w(aten.mul.Tensor, _sums(w, b), _column(w, "scale", b["scale"])))
    return _finished(w, b, y)


@_rule(v.bconv2d_threshold.default)
def _threshold(w: _Writer, b: dict[str, Any]) -> fx.Node:
    above = w(aten.ge.Tensor, _sums(w, b), _column(w, "threshold", b["threshold"], torch.float32))
    return _signs(w, w(aten.logical_xor.default, above, _column(w, "flip", b["flip"])), 1)


@_rule(v.masked_conv2d.default)
def _masked_conv(w: _Writer, b: dict[str, Any]) -> fx.Node:
    geometry = (list(b["stride"]), list(b["padding"]), list(b["dilation"]), b["groups"])
    return _finished(w, b, w(aten.conv2d.default, b["x"], b["weight"], b["bias"], *geometry))


# ---- floats ----------------------------------------------------------------------------------------------------------


def _plain(target: Any) -> _Rule:
    def apply(w: _Writer, b: dict[str, Any]) -> fx.Node:
        return w(target, b["x"])

    return apply


for _name in ("exp", "sigmoid", "tanh", "hardsigmoid", "hardswish", "silu"):
    _rule(getattr(v, _name).default)(_plain(getattr(aten, _name).default))


@_rule(v.mean_hw.default)
def _mean_hw(w: _Writer, b: dict[str, Any]) -> fx.Node:
    return w(aten.mean.dim, b["x"], [2, 3], True)


@_rule(v.avg_pool2d.default)
def _avg_pool(w: _Writer, b: dict[str, Any]) -> fx.Node:
    sizes = (list(b["kernel"]), list(b["stride"]), list(b["padding"]))
    return w(aten.avg_pool2d.default, b["x"], *sizes, b["ceil_mode"], b["count_include_pad"])


@_rule(v.resize_bilinear.default)
def _resize(w: _Writer, b: dict[str, Any]) -> fx.Node:
    size = [b["out_h"], b["out_w"]]
    return w(aten.upsample_bilinear2d.default, b["x"], size, b["align_corners"], b["scale_h"], b["scale_w"])


@_rule(v.grid_sample.default)
def _grid_sample(w: _Writer, b: dict[str, Any]) -> fx.Node:
    padding = ("zeros", "border", "reflection").index(b["padding_mode"])
    return w(aten.grid_sampler_2d.default, b["x"], b["grid"], 0, padding, b["align_corners"])


@_rule(v.conv2d.default)
def _conv(w: _Writer, b: dict[str, Any]) -> fx.Node:
    geometry = (list(b["stride"]), list(b["padding"]), list(b["dilation"]), b["groups"])
    return w(aten.conv2d.default, b["x"], b["weight"], b["bias"], *geometry)


@_rule(v.conv_transpose2d.default)
def _conv_transpose(w: _Writer, b: dict[str, Any]) -> fx.Node:
    geometry = (list(b["stride"]), list(b["padding"]), list(b["output_padding"]), b["groups"], list(b["dilation"]))
    return w(aten.conv_transpose2d.input, b["x"], b["weight"], b["bias"], *geometry)

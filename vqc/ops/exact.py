"""Float functions with one exact meaning: the written operations, each rounded once to float32, never contracted.

A library's sigmoid differs from another's in the last bits. Where such a value is quantized, that is sometimes a whole
integer step, and in a recurrent network it stays. These twins (within 2e-7 of the mathematical value for sigmoid and
tanh) can be equalled bit for bit by any engine with IEEE single arithmetic, subnormal numbers included.

    exp(x):  x = min(max(x, -87), 88);  k = rint(x * LOG2E);  r = (x - k * LN2_HI) - k * LN2_LO
             p = C[0]; p = p * r + C[i] for i = 1 .. 6;  p * 2^k       (k * LN2_HI is exact: 14 bits times 7)
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.library import custom_op

from vqc.ops._common import check_float
from vqc.ops._dtypes import F32, I32

EXP_LOW, EXP_HIGH = -87.0, 88.0  # e^-87 is above the smallest normal number, e^88 below the largest
LOG2E = float.fromhex("0x1.715476p+0")
LN2_HI = float.fromhex("0x1.62e4p-1")  # ln 2 to 14 bits
LN2_LO = float.fromhex("0x1.7f7d1cp-20")  # the rest of it
# Highest power first. 1 + r + c2 r^2 + .. + c6 r^6 with the least largest relative error on |r| <= 1.0005 * ln(2) / 2,
# found as a linear programme in double (3.1e-9), then rounded to float32 (3.6e-9). Its two last terms are held at 1 so
# that exp(0) = 1, sigmoid(0) = 1/2 and tanh(0) = 0.
EXP_COEFFICIENTS = (
    float.fromhex("0x1.6a23d0p-10"),
    float.fromhex("0x1.123a20p-7"),
    float.fromhex("0x1.5558f2p-5"),
    float.fromhex("0x1.555492p-3"),
    float.fromhex("0x1.fffffcp-2"),
    1.0,
    1.0,
)
SIXTH = float.fromhex("0x1.555556p-3")  # 1/6


def _exp(x: Tensor) -> Tensor:
    x = x.clamp(EXP_LOW, EXP_HIGH)
    k = torch.round(x * LOG2E)
    r = (x - k * LN2_HI) - k * LN2_LO
    p = r * EXP_COEFFICIENTS[0]
    for c in EXP_COEFFICIENTS[1:-1]:
        p = (p + c) * r
    p = p + EXP_COEFFICIENTS[-1]
    return p * ((k.to(I32) + 127) << 23).view(F32)  # 2^k by its exponent bits


def _quotient(value: float, x: Tensor) -> Tensor:
    return torch.div(torch.full_like(x, value), x)  # a true division: value * (1 / x) would round twice


def _hardsigmoid(x: Tensor) -> Tensor:
    return (x + 3.0).clamp_min(0.0).clamp_max(6.0) * SIXTH


def _sigmoid(x: Tensor) -> Tensor:
    return _quotient(1.0, _exp(-x) + 1.0)


def _dense(x: Tensor, op: str) -> Tensor:
    check_float(x, op)
    return x.contiguous()


@custom_op("vqc::exp", mutates_args=())
def exp(x: Tensor) -> Tensor:
    """e^x for f32 of any shape, relative error below 1.2e-7; x is held in [-87, 88]. The module has the steps."""
    return _exp(_dense(x, "exp"))


@custom_op("vqc::sigmoid", mutates_args=())
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) for f32 of any shape."""
    return _sigmoid(_dense(x, "sigmoid"))


@custom_op("vqc::tanh", mutates_args=())
def tanh(x: Tensor) -> Tensor:
    """1 - 2 / (exp(2 * x) + 1) for f32 of any shape."""
    return 1.0 - _quotient(2.0, _exp(_dense(x, "tanh") * 2.0) + 1.0)


@custom_op("vqc::hardsigmoid", mutates_args=())
def hardsigmoid(x: Tensor) -> Tensor:
    """min(max(x + 3, 0), 6) * (float)(1/6) for f32 of any shape."""
    return _hardsigmoid(_dense(x, "hardsigmoid"))


@custom_op("vqc::hardswish", mutates_args=())
def hardswish(x: Tensor) -> Tensor:
    """x * hardsigmoid(x) for f32 of any shape."""
    x = _dense(x, "hardswish")
    return x * _hardsigmoid(x)


@custom_op("vqc::silu", mutates_args=())
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x) for f32 of any shape."""
    x = _dense(x, "silu")
    return x * _sigmoid(x)


def _register_fake(op: Any, name: str) -> None:
    @op.register_fake
    def _(x):
        check_float(x, name)
        return x.new_empty(x.shape)


for _op, _name in ((exp, "exp"), (sigmoid, "sigmoid"), (tanh, "tanh"), (hardsigmoid, "hardsigmoid"),
                   (hardswish, "hardswish"), (silu, "silu")):  # fmt: skip
    _register_fake(_op, _name)


# ---- which ATen operators are exact as they stand -----------------------------------------------------------------

# sqrt is missing: PyTorch's vectorised one on CPUs is not always the correctly rounded result, which C's is.
_ARITHMETIC = "add sub rsub mul div neg abs reciprocal square floor ceil round trunc sign"
_CHOICE = (
    "gt ge lt le eq ne relu relu6 hardtanh threshold maximum minimum clamp clamp_min clamp_max prelu _prelu_kernel "
    "leaky_relu where amax amin max min masked_fill max_pool1d max_pool2d max_pool3d max_pool2d_with_indices "
    "adaptive_max_pool2d"
)
_MOVES = (
    "cat stack concat view reshape _unsafe_view flatten unflatten permute transpose t movedim squeeze unsqueeze expand "
    "expand_as repeat repeat_interleave slice select narrow unbind split split_with_sizes chunk diagonal unfold im2col "
    "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d pad pixel_shuffle pixel_unshuffle channel_shuffle upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d flip roll rot90 gather index_select index embedding tril triu select_scatter slice_scatter "
    "clone contiguous detach alias lift_fresh_copy to _to_copy zeros_like ones_like full_like "
    "new_zeros new_ones new_full zeros ones full"
)


_APPROXIMATE = ("decimals", "Tensor_mode", "Scalar_mode")  # round to decimals; div with a rounding mode


def _overloads(names: str) -> frozenset[torch._ops.OpOverload]:
    found = []
    for name in names.split():
        packet = getattr(torch.ops.aten, name)
        found += [o for o in (getattr(packet, k) for k in packet.overloads()) if not o._schema.is_mutable]
    return frozenset(o for o in found if o._overloadname not in _APPROXIMATE)


# Float operators whose every result is one rounded IEEE operation, a choice among operands, or a moved value: all
# engines agree on their bits. With conditions on arguments: see `is_exact`.
EXACT: frozenset[torch._ops.OpOverload] = _overloads(f"{_ARITHMETIC} {_CHOICE} {_MOVES}")

_SCALED = frozenset(o for n in ("add", "sub", "rsub") for o in _overloads(n))


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """The argument of a call by its schema name, wherever it stands; its schema default, then `default`, if absent."""
    if name in node.kwargs:
        return node.kwargs[name]
    for i, a in enumerate(node.target._schema.arguments):
        if a.name == name:
            if i < len(node.args):
                return node.args[i]
            return a.default_value if a.has_default_value() else default
    return default


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (tuple, list)) else []


def is_exact(node: fx.Node) -> bool:
    """Whether every engine gives this call the same bits for the same inputs.

    True for the operators of EXACT (add, sub and rsub with alpha 1 only), for `quantized_decomposed::` operators and
    `vqc::` ones (but masked_conv2d), for picking from a tuple, and for calls that touch no float.
    """
    target = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target.namespace in ("vqc", "quantized_decomposed"):
        return target.name() != "vqc::masked_conv2d"  # the one whose sums have no order
    values = [node.meta.get("val"), *(n.meta.get("val") for n in node.all_input_nodes)]
    if not any(t.is_floating_point() or t.is_complex() for v in values for t in _tensors(v)):
        return True
    if target in _SCALED:
        return argument(node, "alpha", 1) == 1
    return target in EXACT

"""Complex numbers as pairs of floats: views cost nothing, arithmetic is done on the two parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from vqc.backends.c.expand import Expander, expansion
from vqc.backends.c.ir import Value
from vqc.backends.c.lower import Lowering
from vqc.backends.c.registry import lowering, only, op_name
from vqc.program import dtype_of

Parts = tuple[Any, Any]  # nodes or numbers; an imaginary part may be None


@lowering("aten::view_as_complex", check=only(torch.float32, torch.complex64))
def lower_view_as_complex(ctx: Lowering, node: fx.Node) -> None:
    v = ctx.value(node.args[0])
    fits = v.strides[-1] == 1 and v.offset % 2 == 0 and all(s % 2 == 0 for s in v.strides[:-1])
    v = v if fits else ctx.dense(v)
    ctx.bind(node, Value(v.buffer, torch.complex64, v.shape[:-1], tuple(s // 2 for s in v.strides[:-1]), v.offset // 2))


@lowering("aten::view_as_real", check=only(torch.float32, torch.complex64))
def lower_view_as_real(ctx: Lowering, node: fx.Node) -> None:
    v = ctx.value(node.args[0])
    ctx.bind(node, Value(v.buffer, torch.float32, (*v.shape, 2), (*(2 * s for s in v.strides), 1), 2 * v.offset))


def _is_complex(node: fx.Node) -> bool:
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    return any(isinstance(v, torch.Tensor) and v.is_complex() for v in values)


def _parts(e: Expander, x: Any) -> Parts:
    if not isinstance(x, fx.Node):
        return (x.real, x.imag) if isinstance(x, complex) else (x, None)
    if dtype_of(x) != torch.complex64:
        return x, None
    constant = e.program.constant(x)
    if constant is not None and constant.numel() == 1 and constant.ndim == 0:
        return float(constant.real), float(constant.imag)
    pair = e("view_as_real", x)
    return e("select.int", pair, -1, 0), e("select.int", pair, -1, 1)


def _joined(e: Expander, real: fx.Node, imag: fx.Node) -> fx.Node:
    return e("view_as_complex", e("stack", [real, imag], -1))


def _times(e: Expander, a: Any, b: Any) -> Any:
    """The product of two parts, None being nothing."""
    if a is None or b is None:
        return None
    if isinstance(a, fx.Node):
        return e.both("mul", a, b)
    return e.both("mul", b, a) if isinstance(b, fx.Node) else a * b


def _plus(e: Expander, a: Any, b: Any, sign: int = 1) -> Any:
    if b is None:
        return a
    if a is None:
        return e("neg", b) if sign < 0 and isinstance(b, fx.Node) else sign * b if not isinstance(b, fx.Node) else b
    if isinstance(a, fx.Node):
        return e.both("add" if sign > 0 else "sub", a, b)
    if isinstance(b, fx.Node):
        return e("add.Scalar", b if sign > 0 else e("neg", b), a)
    return a + sign * b


def _product(e: Expander, a: Parts, b: Parts) -> Parts:
    real = _plus(e, _times(e, a[0], b[0]), _times(e, a[1], b[1]), -1)
    return real, _plus(e, _times(e, a[0], b[1]), _times(e, a[1], b[0]))


@expansion("aten::mul.Tensor", "aten::mul.Scalar", when=_is_complex)
def expand_mul(e: Expander, node: fx.Node) -> fx.Node:
    return _joined(e, *_product(e, _parts(e, node.args[0]), _parts(e, node.args[1])))


@expansion("aten::div.Tensor", "aten::div.Scalar", when=_is_complex)
def expand_div(e: Expander, node: fx.Node) -> fx.Node:
    """a conj(b) / |b|^2."""
    a, b = _parts(e, node.args[0]), _parts(e, node.args[1])
    if b[1] is None:
        size = b[0]
        real, imag = a
    else:
        size = _plus(e, _times(e, b[0], b[0]), _times(e, b[1], b[1]))
        real, imag = _product(e, a, (b[0], e("neg", b[1]) if isinstance(b[1], fx.Node) else -b[1]))
    return _joined(e, e.both("div", real, size), e.both("div", imag, size))


@expansion("aten::add.Tensor", "aten::add.Scalar", "aten::sub.Tensor", "aten::sub.Scalar", when=_is_complex)
def expand_add(e: Expander, node: fx.Node) -> fx.Node | None:
    a, b = _parts(e, node.args[0]), _parts(e, node.args[1])
    sign = -1 if "sub" in op_name(node.target) else 1
    alpha = e.arg("alpha")
    if alpha != 1:
        b = (_times(e, b[0], alpha), _times(e, b[1], alpha))
    real, imag = (_plus(e, x, y, sign) for x, y in zip(a, b, strict=True))
    return _joined(e, real, imag)


@expansion("aten::neg", when=_is_complex)
def expand_neg(e: Expander, node: fx.Node) -> fx.Node:
    return e("view_as_complex", e("neg", e("view_as_real", node.args[0])))


@expansion("aten::_conj", "aten::conj_physical", "aten::_conj_physical", when=_is_complex)
def expand_conj(e: Expander, node: fx.Node) -> fx.Node:
    real, imag = _parts(e, node.args[0])
    return _joined(e, real, e("neg", imag))


@expansion("aten::abs", when=_is_complex)
def expand_abs(e: Expander, node: fx.Node) -> fx.Node:
    return e("hypot", *_parts(e, node.args[0]))


@expansion("aten::angle", when=_is_complex)
def expand_angle(e: Expander, node: fx.Node) -> fx.Node:
    real, imag = _parts(e, node.args[0])
    return e("atan2", imag, real)


@expansion("aten::real", "aten::imag", when=_is_complex)
def expand_part(e: Expander, node: fx.Node) -> fx.Node:
    return _parts(e, node.args[0])["imag" in op_name(node.target)]


@expansion("aten::complex")
def expand_complex(e: Expander, node: fx.Node) -> fx.Node:
    return _joined(e, *node.args)


@expansion("aten::polar")
def expand_polar(e: Expander, node: fx.Node) -> fx.Node:
    size, angle = node.args
    return _joined(e, e("mul.Tensor", size, e("cos", angle)), e("mul.Tensor", size, e("sin", angle)))


@expansion("aten::exp", when=_is_complex)
def expand_exp(e: Expander, node: fx.Node) -> fx.Node:
    real, imag = _parts(e, node.args[0])
    size = e("exp", real)
    return _joined(e, e("mul.Tensor", size, e("cos", imag)), e("mul.Tensor", size, e("sin", imag)))

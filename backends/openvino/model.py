"""The ONNX form of a Program as an OpenVINO model, its functions of signs as BinaryConvolution.

BinaryConvolution takes a picture of zeros and ones, which only a FakeQuantize with two levels directly before it may
make, and weights of one bit; it gives the sum of products of +1 and -1. `pad_value` 0 leaves taps outside the picture
out, as vqc does. What is left of channels beyond a multiple of 8 is a float convolution beside it, for the binary
kernels of OpenVINO 2026.4 give wrong sums there. FakeQuantize gives its upper value above its bound, `x > edge`, and
vqc's sign is +1 from tau on, `x >= tau`: the edge is the float32 below tau. Between 0 and the smallest normal number
there is no telling: subnormal numbers may count as 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.inliner
import openvino as ov
from openvino import opset13 as op
from openvino.frontend.onnx import ConversionExtension

from vqc.backends.onnx.graph import DOMAIN
from vqc.backends.onnx.model import model_of
from vqc.errors import UnsupportedOp
from vqc.program import Program

BINARY = ("Binarize", "BConv2d", "BConv2dThreshold", "MaskedBConv2d")
CHANNELS = 8  # OpenVINO 2026.4's binary kernels give wrong sums where the channels are no multiple of 8
SMALLEST = np.finfo(np.float32).tiny  # of normal numbers: OpenVINO may take smaller ones for 0


def openvino_model(program: Program, licence: str = "", binary: bool = True) -> ov.Model:
    """The model, its inputs and outputs called as those of the ONNX one.

    `binary`: one-bit layers on BinaryConvolution; else as the float convolutions that ONNX's functions are made of.
    Raises UnsupportedOp for what has no form in ONNX, and for what OpenVINO cannot read.
    """
    model = model_of(program, licence)
    kept = [(f.domain, f.name) for f in model.functions if binary and f.name in BINARY]
    others = [(f.domain, f.name) for f in model.functions if (f.domain, f.name) not in kept]
    if others:
        model = onnx.inliner.inline_selected_functions(model, others)
    del model.functions[:]
    core = ov.Core()
    converters = Converters()
    for _, name in kept:
        core.add_extension(ConversionExtension(name, DOMAIN, converters.by_name[name]))
    try:
        made = core.read_model(model.SerializeToString())
    except RuntimeError as e:
        raise UnsupportedOp(f"OpenVINO cannot read {program.name}", why=_refused(str(e)),
                            way_out="rewrite these operators, or use a C target or onnx") from e  # fmt: skip
    made.validate_nodes_and_infer_types()
    return made


def _refused(message: str) -> str:
    """The operators that OpenVINO names, with its reasons, without the places in its own sources."""
    said = [line.strip() for line in message.splitlines()]
    kept = [line for line in said if line and not line.startswith(("Exception from", "Check ", "Summary:", "FrontEnd"))]
    return " ".join(kept or said)


def below(tau: np.ndarray) -> np.ndarray:
    """The float32 just below each value; below 0 the normal number nearest to it, and 0 where 0 itself is below."""
    edge = np.nextafter(tau.astype(np.float32), np.float32(-np.inf), dtype=np.float32)
    return np.where(np.abs(edge) < SMALLEST, np.where(tau > 0, 0.0, -SMALLEST), edge).astype(np.float32)


class Signs:
    """A picture of signs: as zeros and ones for the channels that binary kernels take, as floats for the others.

    `whole` is all of it as +1 and -1 in int8, for who else reads it. It is made of the picture again: zeros and ones
    have one bit each in OpenVINO, and come out wrong where anything but a BinaryConvolution reads them.
    """

    def __init__(self, ones: Any, rest: Any, whole: Any):
        self.ones, self.rest, self.whole = ones, rest, whole


class Converters:
    """What stands for each function, while one model is read; it remembers the pictures of signs that it made."""

    def __init__(self) -> None:
        self.made: dict[str, Signs] = {}
        self.by_name = dict(zip(BINARY, (self.binarize, self.bconv, self.threshold, self.masked), strict=True))

    def binarize(self, node: Any) -> list[Any]:
        tau = _known(node, 1).reshape(1, -1, 1, 1)
        x = node.get_input(0)
        return self._keep(_split(x, below(np.broadcast_to(tau, (1, _channels(x), 1, 1)))))

    def threshold(self, node: Any) -> list[Any]:
        """Sums are whole numbers: half a step below the threshold is an edge no sum lies on."""
        edge = _known(node, 2).astype(np.float32).reshape(1, -1, 1, 1) - np.float32(0.5)
        return self._keep(_split(self._sums(node), edge, _known(node, 3).astype(bool).reshape(1, -1, 1, 1)))

    def bconv(self, node: Any) -> list[Any]:
        return self._scaled(node).outputs()

    def masked(self, node: Any) -> list[Any]:
        return op.select(node.get_input(4), self._scaled(node), _number(0)).outputs()

    def _keep(self, signs: Signs) -> list[Any]:
        self.made[signs.whole.get_name()] = signs
        return signs.whole.outputs()

    def _scaled(self, node: Any) -> Any:
        return op.add(op.multiply(self._sums(node), node.get_input(2)), node.get_input(3))

    def _sums(self, node: Any) -> Any:
        """The convolution of signs, its sums in float32."""
        x = node.get_input(0)
        signs = self.made.get(x.get_node().get_name())
        if signs is None:  # moved or put together from several: made of its int8
            signs = _split(op.convert(x, "f32"), np.zeros((1, _channels(x), 1, 1), np.float32))
        weight = _known(node, 1)
        first = weight.shape[1] - weight.shape[1] % CHANNELS
        pads = [int(v) for v in node.get_attribute("pads")]
        strides, dilations = ([int(v) for v in node.get_attribute(k)] for k in ("strides", "dilations"))
        geometry = (strides, pads[:2], pads[2:], dilations)
        sums = []
        if signs.ones is not None:
            sums.append(op.binary_convolution(signs.ones, _bits(weight[:, :first]), *geometry, "xnor-popcount", 0.0))
        if signs.rest is not None:
            sums.append(op.convolution(signs.rest, op.constant(weight[:, first:].astype(np.float32)), *geometry))
        return sums[0] if len(sums) == 1 else op.add(*sums)


def _split(x: Any, edge: np.ndarray, flip: np.ndarray | None = None) -> Signs:
    """The signs of `x > edge`, turned round where `flip`; edge and flip are [1,C,1,1]."""
    channels = edge.shape[1]
    first = channels - channels % CHANNELS
    above = np.ones(edge.shape, np.float32) if flip is None else 1 - flip.astype(np.float32)
    ones = rest = None
    if first:
        bound, high, low = (op.constant(_least(v[:, :first])) for v in (edge, above, 1 - above))
        ones = op.fake_quantize(_channels_of(x, 0, first), bound, bound, low, high, 2)
    if first < channels:
        rest = _plus_minus(_channels_of(x, first, channels), edge[:, first:], above[:, first:])
    return Signs(ones, rest, op.convert(_plus_minus(x, edge, above), "i8"))


def _plus_minus(x: Any, edge: np.ndarray, above: np.ndarray) -> Any:
    """+1 and -1 in float32."""
    return op.select(op.greater(x, op.constant(edge)), op.constant(2 * above - 1), op.constant(1 - 2 * above))


def _least(values: np.ndarray) -> np.ndarray:
    """One value in place of equal ones, which kernels like better."""
    values = np.ascontiguousarray(values, np.float32)
    return values[:, :1] if (values == values[:, :1]).all() else values


def _channels(x: Any) -> int:
    return int(x.get_partial_shape()[1].get_length())


def _channels_of(x: Any, start: int, stop: int) -> Any:
    if start == 0 and stop == _channels(x if not isinstance(x, ov.Node) else x.output(0)):
        return x
    place = [op.constant(np.array([v], np.int64)) for v in (start, stop, 1, 1)]
    return op.slice(x, *place)


def _number(value: float) -> Any:
    return op.constant(np.float32(value))


def _bits(weight: np.ndarray) -> Any:
    bits = ov.Tensor(ov.Type.u1, ov.Shape(list(weight.shape)))  # of its own memory: one over an array would not hold it
    bits.data[:] = np.packbits((weight > 0).reshape(-1), bitorder="little").reshape(bits.data.shape)
    return op.constant(bits)


def _known(node: Any, index: int) -> np.ndarray:
    found = node.get_input(index).get_node()
    while found.get_type_name() == "Convert":
        found = found.input_value(0).get_node()
    return np.array(found.get_data())

"""quantize: put quantize/dequantize pairs around the inputs and weights of convolutions and linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import fx

from vqc.calibration import Observed, Statistics, find_range
from vqc.calibration.slots import Slots, slots_of, whole_of
from vqc.calibration.weights import WeightMethod, weight_scales
from vqc.frames import frame_layout
from vqc.known_ranges import PixelGrid, Range, known_ranges, pixel_grid
from vqc.passes.channel_balance import ActivationQuant, balance, channel_view, expected_noise
from vqc.passes.channel_reach import reaches
from vqc.passes.displacements import Displacements, displacements
from vqc.passes.observe import QUANTIZABLE, quantizable
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, dtype_of, op_text, shape_of

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed


# Layers that are left in float32 whatever the options say.
FLOAT_ONLY = {aten.conv1d.default, aten.conv3d.default, aten.conv_transpose1d.default, aten.conv_transpose3d.input,
              aten.matmul.default, aten.bmm.default, aten.scaled_dot_product_attention.default}  # fmt: skip


_NO_SCALE = 1e-12  # of a tensor of zeros
EDGE_HEADROOM = 0.1  # of tensors of 8 bits amid fewer, which `headroom` is not meant for
GUESS_HEADROOM = 2.0  # of layers before the first guess of a displacement, if others have any


@register
@dataclass(frozen=True)
class Quantize(Pass):
    """quantize: x -> dequantize(quantize(x)) and w -> dequantize(w_int) at every convolution and linear layer.

    Only what an integer kernel multiplies is quantized: sums, gates, warps and states stay float, so errors do not
    pile up from frame to frame. A picture that is normalised per channel is quantized on its own 8-bit grid, without
    loss. Weights: symmetric, per output channel. Activations: asymmetric uint8, per tensor or per channel; channel
    scales go into the weights and cost nothing at run time.

    Preconditions of a rewrite, each a reason when it fails: (1) the weight is a constant; (2) the layer is not kept by
    `keep`, `tail` or `displacements`; (3) its input was observed, or has a known range; (4) the sum fits 31 bits.
    Valid before: a float program with observers (`observe`). Valid after: quantized_decomposed operators in the graph;
    a layer on a picture's own grid carries `meta["offset"]`: float64 [C], what dequantization adds to its input and its
    bias takes away again.

    Options: `weight_bits`, `activation_bits` 2..8; `method` of `vqc.calibration.ranges`; `weight_method` of
    `vqc.calibration.weights`: "minmax", or a smaller step by the search "mse" or "omse"; `granularity` "tensor",
    "channel", or "auto": per channel where the noise expected in the layer's result falls to less than half; `tail`
    "float" keeps the layers that make the results directly; `displacements` "float" those that make where a warp looks,
    or read it (`vqc.passes.displacements`); `keep`: names of nodes or modules (shell patterns) kept
    float; `pixels`: levels of an input declared in [0, 1], 0 to calibrate it like any other; `headroom`: what
    ranges are wider than calibration saw, as a share of them, for clips that go further; `edge_bits`: bits of
    weights and activations of the layers that a picture reaches first, that make the results, or the first guess of a
    displacement, or that stand next to those that make or read one (0: as everywhere); tensors of 8 bits amid fewer
    have their smallest and largest value with a tenth of headroom, whatever `method` says;
    a layer's `meta["bits"]` (`allocate-bits`) come before all of these; `frames`: one scale and zero point for each
    frame slot (PMQ-VE), where `observe{policy=frame}` kept them apart. Along the channels of a conv2d they go into
    the weight, unless channel scales promise less noise; elsewhere they stay in the graph, which integer kernels do
    not take.
    """

    name: ClassVar[str] = "quantize"
    numerics: ClassVar[Numerics] = Lossy(5.0)
    weight_bits: int = 8
    activation_bits: int = 8
    method: str = "minmax"
    weight_method: WeightMethod = "minmax"
    granularity: Literal["auto", "tensor", "channel"] = "auto"
    tail: Literal["float", "quantized"] = "float"
    displacements: Literal["float", "quantized"] = "float"
    keep: tuple[str, ...] = ()
    pixels: int = 256
    headroom: float = 0.1
    edge_bits: int = 0
    frames: bool = False

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        known = known_ranges(program)
        ends = tail_layers(program)
        tail = ends if self.tail == "float" else set()
        moved = displacements(program, quantizable(program))
        edges = ends | first_layers(program) | moved.guesses | moved.neighbours if self.edge_bits else set()
        layout = frame_layout(program)
        others = _never_quantized(program)
        slots = {n: slots_of(n, layout) for n in program.nodes if _kept_apart(n)}
        reach = reaches(program, [n.args[0] for n in quantizable(program)])  # before weights become integers
        made: dict[tuple[Any, ...], fx.Node] = {}
        for n in quantizable(program):
            x = n.args[0]
            assert isinstance(x, fx.Node)
            reason = self._kept(n, tail, moved)
            quant: ActivationQuant | None = None
            weight_bits, bits = self._bits(n, edges)
            if reason is None:
                quant, reason = self._activation(program, n, x, known, slots.get(x), bits, weight_bits, reach[x],
                                                  self._headroom(n, bits, moved))  # fmt: skip
            if reason is None and quant is not None:
                reason = _overflow(program, n, quant, weight_bits)
            if reason is not None or quant is None:
                result.decline(n, reason or "its input has no range")
                continue
            key = (x, quant.axis, quant.levels, tuple(quant.scale.tolist()), tuple(quant.zero.tolist()))
            if key not in made:
                made[key] = _quantize_activation(program, n, x, quant)
                result.count("activation")
                if quant.slots:
                    result.count("activation by frame slot")
            if quant.offset is not None:
                n.meta["offset"] = quant.offset  # the bias takes it off again; who changes the weight has to redo that
            weight, bias = _quantize_weight(program, n, quant, weight_bits, self.weight_method)
            n.args = (made[key], weight, bias, *n.args[3:])
            result.count("weight")
        for n in program.graph.nodes:
            n.meta.pop("observed", None)
            if n in others:
                result.decline(n, others[n])
        return result

    def _bits(self, n: fx.Node, edges: set[fx.Node]) -> tuple[int, int]:
        """Of the layer's weight and of its input."""
        if "bits" in n.meta:
            return n.meta["bits"]
        return (self.edge_bits, self.edge_bits) if n in edges else (self.weight_bits, self.activation_bits)

    def _headroom(self, n: fx.Node, bits: int, moved: Displacements) -> float:
        """What 8 bits of a first guess lose by wide ranges a later guess corrects; what is cut off, it does not."""
        headroom = EDGE_HEADROOM if self._wide(bits) else self.headroom
        return max(headroom, GUESS_HEADROOM) if n in moved.guesses and headroom > 0 and bits >= 8 else headroom

    def _wide(self, bits: int) -> bool:
        """Whether a tensor has 8 bits amid fewer: rules that suit few bits would cut off what it can hold."""
        return bits >= 8 > self.activation_bits

    def _range(self, seen: Statistics, bits: int, headroom: float) -> tuple[float, float]:
        low, high = find_range(seen, "minmax" if self._wide(bits) else self.method, bits)
        return low * (1 + headroom), high * (1 + headroom)

    def _kept(self, n: fx.Node, tail: set[fx.Node], moved: Displacements) -> str | None:
        for pattern in self.keep:
            if fnmatchcase(n.name, pattern) or fnmatchcase(n.meta.get("module", ""), pattern):
                return f"kept in float by {pattern!r}"
        if self.displacements == "float" and n in moved.makers | moved.readers:
            return f"it {'makes' if n in moved.makers else 'reads'} where a warp looks (displacements=float)"
        return "it makes a result directly (tail=float)" if n in tail else None

    def _activation(self, program: Program, n: fx.Node, x: fx.Node, known: dict[fx.Node, Range], slots: Slots | None,
                    bits: int, weight_bits: int, reach: torch.Tensor, headroom: float
                    ) -> tuple[ActivationQuant | None, str | None]:  # fmt: skip
        levels = 2**bits
        conv2d = n.target is aten.conv2d.default
        grid = pixel_grid(program, x, self.pixels) if self.pixels and conv2d and self.pixels <= levels else None
        if grid is not None:
            return _on_grid(grid, levels), None
        observed: Observed | None = x.meta.get("observed")
        if x in known:
            return _from_range(*known[x], levels), None
        if observed is None:
            return None, "its input was not observed; run observe before quantize"
        total = whole_of(observed, slots)
        balanced = slotted = None
        if conv2d and self.granularity != "tensor":
            balanced = balance(program, n, total, levels, weight_bits, always=self.granularity == "channel",
                               headroom=headroom, reach=reach)  # fmt: skip
        if self.frames and slots is not None:
            slotted = self._by_slot(n, observed, slots, bits, headroom)
        if balanced is not None and slotted is not None and slotted.per_channel:
            return min(slotted, balanced, key=lambda q: expected_noise(program, n, total, q, weight_bits)), None
        if slotted is not None or balanced is not None:
            return slotted or balanced, None
        return _from_range(*self._range(total, bits, headroom), levels), None

    def _by_slot(self, n: fx.Node, observed: Observed, slots: Slots, bits: int,
                 headroom: float) -> ActivationQuant | None:  # fmt: skip
        """Bounds of each frame slot by the range rule; None where they run along what the layer sums over."""
        along_channels = slots.axis == 1 and n.target is aten.conv2d.default
        last = len(shape_of(n.args[0])) - 1
        if not along_channels and (slots.axis == last if n.target is aten.linear.default else slots.axis != 0):
            return None
        found = [_from_range(*self._range(observed.groups[key], bits, headroom), 2**bits) for key in slots.keys]
        scale, zero = torch.cat([q.scale for q in found]), torch.cat([q.zero for q in found])
        dead = scale <= _NO_SCALE  # slots that hold nothing but zeros: any scale does, but none that strains the weight
        if bool(dead.all()):
            return None
        scale[dead] = scale[~dead].min()
        return ActivationQuant(slots.spread(scale), slots.spread(zero), 2**bits,
                               axis=None if along_channels else slots.axis, slots=len(found))  # fmt: skip


def _never_quantized(program: Program) -> dict[fx.Node, str]:
    """Layers that multiply and are none of `quantizable`, each with the reason; those with integers already are not."""
    layers, found = set(quantizable(program)), {}
    data: set[fx.Node] = set()  # what depends on an input or a state
    for n in program.nodes:
        if n.op == "placeholder" or any(a in data for a in n.all_input_nodes):
            data.add(n)
        if n.target in FLOAT_ONLY:
            found[n] = f"there is no integer kernel for {op_text(n.target)}"
        elif n.target in QUANTIZABLE and n not in layers:
            if dtype_of(n) != torch.float32:
                found[n] = f"it computes in {dtype_of(n)}: only layers in float32 get integers (module.float())"
            elif n.args[1] in data:
                found[n] = "its weight is computed at every step"
    return found


def _kept_apart(n: fx.Node) -> bool:
    """Whether an observer kept frame slots of this node apart."""
    observed = n.meta.get("observed")
    return isinstance(observed, Observed) and observed.policy == "frame"


def tail_layers(program: Program) -> set[fx.Node]:
    """The layers from which a result (not a state) is reached without passing another layer."""
    layers = set(quantizable(program))
    found: set[fx.Node] = set()
    todo = list(program.result_nodes[: len(program.outputs)])
    seen: set[fx.Node] = set()
    while todo:
        n = todo.pop()
        if n in seen:
            continue
        seen.add(n)
        if n in layers:
            found.add(n)
        else:
            todo.extend(n.all_input_nodes)
    return found


def first_layers(program: Program) -> set[fx.Node]:
    """The layers that an input (not a state) reaches without passing another layer."""
    layers = set(quantizable(program))
    inputs = {i.name for i in program.inputs}
    reached: set[fx.Node] = set()
    found: set[fx.Node] = set()
    for n in program.nodes:
        if n.name in inputs or any(a in reached for a in n.all_input_nodes):
            (found if n in layers else reached).add(n)
    return found


def _on_grid(grid: PixelGrid, levels: int) -> ActivationQuant:
    zero = torch.round(grid.zero).clamp(-(2**15), 2**15)
    return ActivationQuant(grid.scale, zero.to(torch.int64), levels, offset=(grid.zero - zero) * grid.scale)


def _from_range(low: float, high: float, levels: int) -> ActivationQuant:
    scale = max((high - low) / (levels - 1), _NO_SCALE)
    zero = min(max(round(-low / scale), 0), levels - 1)
    return ActivationQuant(torch.tensor([scale], dtype=torch.float64), torch.tensor([zero]), levels)


def _overflow(program: Program, n: fx.Node, quant: ActivationQuant, weight_bits: int) -> str | None:
    weight = program.constant(n.args[1])
    assert weight is not None
    taps = weight[:, 0].numel() if n.target is aten.conv_transpose2d.input else weight[0].numel()
    reach = max(int(quant.zero.max()), quant.levels - 1 - int(quant.zero.min()))
    bound = taps * reach * (2 ** (weight_bits - 1) - 1)
    return f"a sum of {taps} products may reach {bound}, more than 31 bits hold" if bound >= 2**31 else None


def _quantize_activation(program: Program, n: fx.Node, x: fx.Node, quant: ActivationQuant) -> fx.Node:
    users = [u for u in x.users if u.op == "call_function"]
    first = min(users, key=_position(program))
    top, dtype = quant.levels - 1, torch.uint8
    with program.graph.inserting_before(first):
        if quant.scale.numel() > 1:
            scale = program.add_constant(f"{x.name}_scale", quant.scale.float())
            zero = program.add_constant(f"{x.name}_zero_point", quant.zero)
            args: tuple[Any, ...] = (scale, zero, 1 if quant.axis is None else quant.axis, 0, top, dtype)
            q = program.call(qd.quantize_per_channel.default, (x, *args), like=n, name="quantize")
            return program.call(qd.dequantize_per_channel.default, (q, *args), like=n, name="dequantize")
        args = (float(quant.scale), int(quant.zero), 0, top, dtype)
        q = program.call(qd.quantize_per_tensor.default, (x, *args), like=n, name="quantize")
        return program.call(qd.dequantize_per_tensor.default, (q, *args), like=n, name="dequantize")


def _position(program: Program) -> Any:
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    return order.__getitem__


def weight_axis(n: fx.Node) -> int:
    """The output-channel axis of a layer's weight: 1 for transposed convolutions, else 0."""
    return 1 if n.target is aten.conv_transpose2d.input else 0


def _quantize_weight(program: Program, n: fx.Node, quant: ActivationQuant, bits: int,
                     method: WeightMethod) -> tuple[fx.Node, Any]:  # fmt: skip
    """(weight, bias) arguments for layer `n`; channel scales of the activation are folded into the integers."""
    weight = program.constant(n.args[1])
    assert weight is not None
    base = str(n.args[1].target)
    axis, top = weight_axis(n), 2 ** (bits - 1) - 1
    folded = _fold(weight.double(), quant, n)
    dims = [d for d in range(weight.ndim) if d != axis]
    scale = weight_scales(folded.transpose(0, axis).flatten(1), top, method)
    shape = [-1 if d == axis else 1 for d in range(weight.ndim)]
    scale32 = scale.float()
    integers = torch.round(folded / scale32.double().view(shape)).clamp(-top, top).to(torch.int8)
    bias = n.args[2] if len(n.args) > 2 else None
    with program.graph.inserting_before(n):
        q = program.add_constant(f"{base}_int{bits}", integers)
        s = program.add_constant(f"{base}_scale", scale32)
        z = program.add_constant(f"{base}_zero_point", torch.zeros(len(scale32), dtype=torch.int64))
        w = program.call(
            qd.dequantize_per_channel.default, (q, s, z, axis, -top, top, torch.int8), like=n, name="weight"
        )
        if quant.per_channel:
            unfold = program.add_constant(f"{base}_unfold", channel_view(1 / quant.scale, n, weight).float())
            w = program.call(aten.mul.Tensor, (w, unfold), like=n, name="weight")
        if quant.offset is not None and bool((quant.offset != 0).any()):
            # Dequantization shifts channel c by -offset; a constant shift of the input is a constant of the result.
            real = integers.double() * scale32.double().view(shape) * channel_view(1 / quant.scale, n, weight)
            shift = -(real * channel_view(quant.offset, n, weight)).sum(dims)
            old = program.constant(bias)
            bias = program.add_constant(f"{base}_bias", (shift + (0 if old is None else old.double())).float())
    return w, bias


def _fold(weight: torch.Tensor, quant: ActivationQuant, n: fx.Node) -> torch.Tensor:
    return weight * channel_view(quant.scale, n, weight) if quant.per_channel else weight

"""A Program as actions: kernels with their epilogues, and PyTorch's operators for what has no kernel."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from vqc.backends.triton import floats, masks
from vqc.backends.triton.binary import BinaryConvolution
from vqc.backends.triton.chains import Chain, Operand, epilogue, grow, is_picture, place_of, quantizer, steps_of
from vqc.backends.triton.convolution import Convolution, Geometry, why_not_integers
from vqc.backends.triton.epilogue import Epilogue, Levels, Results
from vqc.backends.triton.pointwise import Pointwise
from vqc.ops.exact import argument
from vqc.program import DTYPE_NAMES, Declined, Program, dtype_of, op_text, shape_of

CONVOLUTIONS = ("vqc.qconv2d", "vqc.qconv2d_requantize", "vqc.masked_qconv2d", "vqc.masked_qconv2d_requantize")
TRANSPOSED = ("vqc.qconv_transpose2d", "vqc.qconv_transpose2d_requantize")
LINEAR = ("vqc.qlinear", "vqc.qlinear_requantize")
BINARY = ("vqc.bconv2d", "vqc.masked_bconv2d")
FLOATS = ("vqc.resize_bilinear", "vqc.grid_sample", "vqc.avg_pool2d", "vqc.conv2d")
MOVES = ("aten.cat", "aten.split.Tensor", "aten.split_with_sizes", "aten.chunk", "aten.slice.Tensor")
LARGEST = 2**31
_MOVED = (torch.float32, torch.uint8, torch.int8)
_VIEWS = ("aten.view", "aten._unsafe_view", "aten.as_strided")  # what needs the order of memory it was captured with

Values = dict[Any, Any]


@dataclass
class Action:
    """One thing to do in a step: `run` reads and writes values by node.

    `reads`: the nodes it needs; `gives`: those it makes; `layer`: the call behind it, None for PyTorch.
    """

    run: Callable[[Values], None]
    reads: tuple[fx.Node, ...]
    gives: tuple[fx.Node, ...]
    layer: Any = None


@dataclass
class Lowered:
    """The actions of a step in order, the kernel of every call, and what PyTorch does and why."""

    actions: list[Action] = field(default_factory=list)
    kernels: dict[str, str] = field(default_factory=dict)
    fallbacks: list[Declined] = field(default_factory=list)


def binary_packs(program: Program) -> set[fx.Node]:
    """The `vqc::binarize` calls whose signs may lie packed: only binary convolutions read them."""
    results = set(program.result_nodes)
    return {n for n in program.calls if op_text(n.target) == "vqc.binarize" and n.users and n not in results
            and is_picture(n.args[0]) and program.constant(argument(n, "tau")) is not None
            and all(op_text(u.target) in BINARY and _constants(program, u) is None for u in n.users)}  # fmt: skip


def _constants(program: Program, node: fx.Node) -> str | None:
    names = ["weight", "scale", "bias"] + ([] if op_text(node.target) in BINARY else ["x_zero"])
    for name in names:
        value = argument(node, name)
        if value is not None and program.constant(value) is None:
            return f"its {name} is computed at run time"
    return None


def _why_not_float(program: Program, node: fx.Node, name: str) -> str | None:
    """The same for float layers and moves."""
    if name == "vqc.mean_hw" or name in FLOATS[:3]:
        return None
    if name in ("vqc.conv2d", "aten.conv2d"):
        values = [argument(node, "weight"), argument(node, "bias")]
        held = all(v is None or program.constant(v) is not None for v in values)
        return None if held and is_picture(node) else "its weights are computed at run time"
    return None if channel_parts(node) is not None else "it does not only move channels of 8-bit or float pictures"


def channel_parts(node: fx.Node) -> tuple[list[fx.Node], list[tuple[int, int, int, int, int]], list[int]] | None:
    """A move of channels: its inputs, the parts and the outputs' channels as `floats.Channels` takes them; or None."""
    name = op_text(node.target)
    inputs: list[Any] = list(node.args[0]) if name == "aten.cat" else [node.args[0]]
    vals = [n.meta.get("val") if isinstance(n, fx.Node) else None for n in inputs]
    if any(not isinstance(v, Tensor) or v.ndim != 4 or v.dtype not in _MOVED or not v.numel() for v in vals):
        return None
    if len({v.dtype for v in vals}) != 1 or int(argument(node, "dim", 0)) not in (1, -3):
        return None
    counts = [v.shape[1] for v in vals]
    if name == "aten.cat":
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return inputs, [(i, 0, c, 0, s) for i, (c, s) in enumerate(zip(counts, starts, strict=True))], [sum(counts)]
    outputs = [v.shape[1] for v in tensors_of(node)]
    at = 0
    if name == "aten.slice.Tensor":
        if int(argument(node, "step", 1)) != 1:
            return None
        at = int(argument(node, "start") or 0)
        at = min(at + counts[0] if at < 0 else at, counts[0])
    parts = [(0, at + sum(outputs[:i]), c, i, 0) for i, c in enumerate(outputs)]
    return inputs, parts, outputs


def tensors_of(node: fx.Node) -> list[Tensor]:
    """What a call gives, as a list."""
    val = node.meta["val"]
    return list(val) if isinstance(val, (tuple, list)) else [val]


def why_not(program: Program, node: fx.Node, packs: set[fx.Node] | None = None, whole: bool = False) -> str | None:
    """None when a kernel takes this call (alone or in a chain), else the reason.

    packs: `binary_packs(program)`, if it is known already. whole: take what PyTorch does faster, too (`vqc.export`).
    """
    name = op_text(node.target)
    if node.target is operator.getitem:
        return None
    for n in (node, *node.all_input_nodes):
        val = n.meta.get("val")
        if isinstance(val, Tensor) and val.numel() >= LARGEST:
            return f"{n.name} has 2^31 elements or more"
        if isinstance(val, Tensor) and val.numel() == 0:
            return f"{n.name} is empty"
    if name in (*CONVOLUTIONS, *TRANSPOSED, *LINEAR):
        reason = _constants(program, node)
        if reason is not None:
            return reason
        weight, zero = (program.constant(argument(node, k)) for k in ("weight", "x_zero"))
        groups = 1 if name in LINEAR else int(argument(node, "groups"))
        return why_not_integers(weight, zero, dtype_of(node.args[0]) == torch.uint8, groups, name in TRANSPOSED)
    packs = binary_packs(program) if packs is None else packs
    if name in BINARY:
        return None if node.args[0] in packs else "its signs are read by other operators too, or are not constant"
    if name == "vqc.binarize":
        return None if node in packs else "its signs are not read by binary convolutions alone"
    if name.startswith("quantized_decomposed.quantize"):
        return (
            None if quantizer(program, node) is not None else "no quantizer of a float picture to 8 bits with constants"
        )
    if name in (*FLOATS, *MOVES, "vqc.mean_hw") or (whole and name == "aten.conv2d"):
        return _why_not_float(program, node, name)
    if any(steps_of(program, node, a) is not None for a in node.all_input_nodes):
        return None
    if name == "aten.conv2d":
        return "a float convolution whose sums have no order: PyTorch's own is faster"
    return f"there is no Triton kernel for {name}"


def geometry(node: fx.Node) -> Geometry:
    """The numbers of a convolution's call."""
    pair = lambda k: (int(argument(node, k)[0]), int(argument(node, k)[1]))  # noqa: E731
    n, c, h, w = shape_of(node.args[0])
    out = shape_of(node)[2:]
    name = op_text(node.target)
    groups = 1 if name in BINARY else int(argument(node, "groups"))
    return Geometry((n, c, h, w), (out[0], out[1]), pair("stride"), pair("padding"), pair("dilation"), groups,
                    name in TRANSPOSED)  # fmt: skip


def requantizer(node: fx.Node) -> tuple[list[Operand], Levels]:
    """The activation and the levels of a requantizing operator."""
    steps = [Operand("relu", "")] if argument(node, "activation") == "relu" else []
    inv, zero = torch.tensor([float(argument(node, "inv_scale"))]), torch.tensor([float(argument(node, "zero_point"))])
    return steps, Levels(inv, zero, 0, 255, torch.uint8)


class Lowerer:
    """Turns a Program into actions on a device.

    binary: the way of binary convolutions, None for the cheaper one. whole: as `why_not`.
    """

    def __init__(self, program: Program, device: torch.device, binary: str | None = None, whole: bool = False):
        self.program, self.device, self.binary, self.whole = program, device, binary, whole
        self.packs = binary_packs(program)
        self.taken: set[fx.Node] = set()
        self.masks: dict[fx.Node, Any] = {}
        self.placed: dict[fx.Node, list[Action]] = {}  # actions by the call at whose place they run
        self.out = Lowered()

    def lower(self) -> Lowered:
        """All calls, in an order in which every operand is there."""
        for n in self.program.calls:
            if n in self.taken:
                continue
            reason = why_not(self.program, n, self.packs, self.whole)
            if reason is None:
                self._kernel(n)
            else:
                self._eager(n, reason)
        for n in self.program.calls:
            self.out.actions += self.placed.get(n, [])
        return self.out

    def _place(self, at: fx.Node, action: Action) -> None:
        self.placed.setdefault(at, []).append(action)

    def _eager(self, n: fx.Node, reason: str) -> None:
        self.taken.add(n)
        self._place(n, Action(partial(_run_eagerly, n), tuple(a for a in n.all_input_nodes), (n,)))
        self.out.kernels[n.name] = f"eager {op_text(n.target)}"
        self.out.fallbacks.append(Declined(n.name, reason))

    def _kernel(self, n: fx.Node) -> None:
        name = op_text(n.target)
        if name in (*CONVOLUTIONS, *TRANSPOSED):
            self._convolution(n)
        elif name in BINARY:
            chain = self._grow(n, [], signs=True)
            e, given = epilogue(self.program, chain)
            weight, scale, bias = (self.program.constant(argument(n, k)) for k in ("weight", "scale", "bias"))
            masked = "masked" in name
            layer = BinaryConvolution(geometry(n), weight, scale, bias, e, self.device, masked=masked, way=self.binary)
            self._call(n, layer, chain, given, argument(n, "mask") if masked else None)
        elif name in LINEAR:
            self._linear(n)
        elif n.target is operator.getitem:
            self.taken.add(n)
            self._place(n, Action(partial(_run_eagerly, n), (n.args[0],), (n,)))
            self.out.kernels[n.name] = self.out.kernels[n.args[0].name]
        elif name == "vqc.mean_hw":
            self._call(n, floats.Mean(), Chain((), (n,), n, None, None, True), (), None)
            self.taken.add(n)
        elif name in FLOATS or name == "aten.conv2d":
            self._float(n, name)
        elif name in MOVES:
            self._moves(n)
        else:
            self._pointwise(n)

    def _grow(self, head: fx.Node, first: list[Operand], *, signs: bool) -> Chain:
        chain = grow(self.program, head, first, self.packs, self.taken, signs=signs)
        self.taken |= {*chain.nodes, *(x for x in (chain.levels, chain.signs) if x is not None)}
        return chain

    def _convolution(self, n: fx.Node) -> None:
        weight, scale, bias, zero = (
            self.program.constant(argument(n, k)) for k in ("weight", "scale", "bias", "x_zero")
        )
        where = geometry(n)
        masked = "masked" in op_text(n.target)
        if dtype_of(n) == torch.uint8:
            steps, levels = requantizer(n)
            chain = Chain(tuple(steps), (n,), n, None, None, False)
            self.taken.add(n)
            e, given = epilogue(self.program, chain)
            e = Epilogue(e.steps, False, levels)
        else:
            chain = self._grow(n, [], signs=where.groups == 1 and not where.transposed)
            e, given = epilogue(self.program, chain)
        layer = Convolution(where, weight, scale, bias, zero, dtype_of(n.args[0]) == torch.uint8, e, self.device,
                            masked=masked)  # fmt: skip
        self._call(n, layer, chain, given, argument(n, "mask") if masked else None)

    def _call(self, n: fx.Node, layer: Any, chain: Chain, given: Sequence[fx.Node], mask: fx.Node | None) -> None:
        """Run a layer where the last call of its chain stands: every operand is there by then."""
        gives = _gives(n, chain)
        reads = (n.args[0], *given, *(() if mask is None else (mask,)))
        self._place(chain.nodes[-1], Action(partial(_run_layer, layer, n.args[0], tuple(given), mask, gives),
                                            reads, tuple(gives.values()), layer))  # fmt: skip
        for node in (*chain.nodes, *(x for x in (chain.levels, chain.signs) if x is not None)):
            self.out.kernels[node.name] = layer.kernel

    def _float(self, n: fx.Node, name: str) -> None:
        """A float layer with its chain. The grid of a warp is read at run time, after the chain's operands."""
        chain = self._grow(n, [], signs=int(argument(n, "groups", 1)) == 1)
        e, given = epilogue(self.program, chain)
        shape, out = shape_of(n.args[0]), (shape_of(n)[2], shape_of(n)[3])
        get = partial(argument, n)
        if name == "vqc.resize_bilinear":
            scales = (get("scale_h"), get("scale_w"))
            layer = floats.resize(shape, out, bool(get("align_corners")), scales, e, self.device)
        elif name == "vqc.grid_sample":
            border, align = get("padding_mode") == "border", bool(get("align_corners"))
            layer = floats.grid_sample(shape, out, border, align, e, self.device)
            grid: Any = n.args[1]
            given = [*given, grid]
        elif name == "vqc.avg_pool2d":
            layer = floats.average(shape, out, get("kernel"), get("stride"), get("padding"), bool(get("ceil_mode")),
                                   bool(get("count_include_pad")), e, self.device)  # fmt: skip
        else:
            weight, bias = self.program.constant(get("weight")), self.program.constant(get("bias"))
            layer = floats.conv(shape, out, weight, bias, get("stride"), get("padding"), get("dilation"),
                                int(get("groups")), e, self.device)  # fmt: skip
        self._call(n, layer, chain, given, None)

    def _moves(self, n: fx.Node) -> None:
        found = channel_parts(n)
        assert found is not None
        inputs, parts, outputs = found
        layer = floats.Channels(parts, outputs)
        self.taken.add(n)
        self._place(n, Action(partial(_run_moves, layer, n, tuple(inputs)), tuple(inputs), (n,), layer))
        self.out.kernels[n.name] = layer.kernel

    def _linear(self, n: fx.Node) -> None:
        weight, scale, bias, zero = (
            self.program.constant(argument(n, k)) for k in ("weight", "scale", "bias", "x_zero")
        )
        x = n.args[0]
        k, rows = shape_of(x)[-1], dtype_of(x)
        count = int(torch.Size(shape_of(x)[:-1]).numel())
        e = Epilogue()
        if dtype_of(n) == torch.uint8:
            steps, levels = requantizer(n)
            e, _ = epilogue(self.program, Chain(tuple(steps), (n,), n, None, None, False))
            e = Epilogue(e.steps, False, levels)
        where = Geometry((1, k, 1, count), (1, count), (1, 1), (0, 0), (1, 1), 1)
        layer = Convolution(where, weight[:, :, None, None], scale, bias, zero, rows == torch.uint8, e, self.device)
        self.taken.add(n)
        self._place(n, Action(partial(_run_linear, layer, x, n), (x,), (n,), layer))
        self.out.kernels[n.name] = layer.kernel

    def _pointwise(self, n: fx.Node) -> None:
        """A chain that follows no sums: it begins at a call's first picture that fits."""
        name = op_text(n.target)
        if name == "vqc.binarize" or name.startswith("quantized_decomposed."):
            x = n.args[0]
            is_signs = name == "vqc.binarize"
            chain = Chain((), (n,), x, None if is_signs else n, n if is_signs else None, False)
            self.taken.add(n)
        else:
            x, first = next((a, s) for a in n.all_input_nodes if (s := steps_of(self.program, n, a)) is not None)
            chain = self._grow(n, first, signs=True)
        e, given = epilogue(self.program, chain)
        shape = shape_of(x)
        layer = Pointwise((shape[0], shape[1], shape[2], shape[3]), e, self.device)
        self._call_pointwise(x, layer, chain, given)

    def _call_pointwise(self, x: fx.Node, layer: Pointwise, chain: Chain, given: Sequence[fx.Node]) -> None:
        gives = {"value": chain.end, "levels": chain.levels, "signs": chain.signs}
        made = {k: v for k, v in gives.items() if v is not None and (k != "value" or chain.value)}
        self._place(chain.nodes[-1], Action(partial(_run_layer, layer, x, tuple(given), None, made), (x, *given),
                                            tuple(made.values()), layer))  # fmt: skip
        for node in (*chain.nodes, *(v for k, v in made.items() if k != "value")):
            self.out.kernels[node.name] = layer.kernel


def _gives(n: fx.Node, chain: Chain) -> dict[str, fx.Node]:
    """Which node each result of a layer is."""
    if dtype_of(n) == torch.uint8:
        return {"levels": n}
    gives = {"value": chain.end if chain.value else None, "levels": chain.levels, "signs": chain.signs}
    return {k: v for k, v in gives.items() if v is not None}


def _keep(values: Values, gives: dict[str, fx.Node], made: Results) -> None:
    for name, node in gives.items():
        values[node] = getattr(made, name)


def _run_layer(layer: Any, x: fx.Node, given: tuple[fx.Node, ...], mask: fx.Node | None, gives: dict[str, fx.Node],
               values: Values) -> None:  # fmt: skip
    more: tuple[Any, ...] = ()
    if mask is not None:
        if ("tiles", mask) not in values:
            values["tiles", mask] = masks.find(values[mask])
        more = values["tiles", mask]
    _keep(values, gives, layer(values[x], [values[g] for g in given], *more))


def _run_moves(layer: floats.Channels, n: fx.Node, inputs: tuple[fx.Node, ...], values: Values) -> None:
    made = layer([values[i] for i in inputs])
    values[n] = made if isinstance(n.meta["val"], (tuple, list)) else made[0]


def _run_linear(layer: Convolution, x: fx.Node, n: fx.Node, values: Values) -> None:
    given = values[x]
    made = layer(given.reshape(1, 1, -1, given.shape[-1]).permute(0, 3, 1, 2))
    y = made.levels if made.value is None else made.value
    assert y is not None
    values[n] = y.permute(0, 2, 3, 1).reshape(*given.shape[:-1], y.shape[1])


def _run_eagerly(n: fx.Node, values: Values) -> None:
    dense = op_text(n.target) in _VIEWS

    def load(a: fx.Node) -> Any:
        x = values[a]
        return x.contiguous() if dense and isinstance(x, Tensor) else x

    args, kwargs = fx.node.map_arg((n.args, n.kwargs), load)
    values[n] = n.target(*args, **kwargs)


def describe(n: fx.Node) -> str:
    """A node with its dtype and shape, for messages."""
    return f"{n.name} {DTYPE_NAMES.get(dtype_of(n), dtype_of(n))}{list(shape_of(n))}"


__all__ = ["Action", "Lowered", "Lowerer", "binary_packs", "describe", "place_of", "why_not"]

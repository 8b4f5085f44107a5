"""A Program as actions: kernels with their epilogues, and PyTorch's operators for what has no kernel."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from vqc.backends.triton import floats, masks
from vqc.backends.triton.binary import BinaryConvolution
from vqc.backends.triton.chains import Chain, Operand, epilogue, grow, results_of, steps_of
from vqc.backends.triton.convolution import Convolution, Geometry
from vqc.backends.triton.epilogue import SIGNS, Epilogue, Levels, Results
from vqc.backends.triton.halves import half_nodes
from vqc.backends.triton.pointwise import Pointwise
from vqc.backends.triton.rules import (
    BINARY,
    CONVOLUTIONS,
    FLOATS,
    LINEAR,
    MOVES,
    TRANSPOSED,
    binary_packs,
    channel_parts,
    crop_of,
    why_not,
)
from vqc.backends.triton.spots import Spot, is_view, spots
from vqc.backends.triton.tuner import Tuner
from vqc.ops.exact import argument
from vqc.program import Declined, Program, dtype_of, op_text, shape_of

VIEWS = ("aten.view", "aten._unsafe_view", "aten.as_strided")  # what needs the order of memory it was captured with

Values = dict[Any, Any]


@dataclass
class Action:
    """One thing to do in a step: `run` reads and writes values by node.

    `reads`: the nodes it needs; `gives`: those it makes; `layer`: the call behind it; `eager`: the
    call that PyTorch runs.
    """

    run: Callable[[Values], None]
    reads: tuple[fx.Node, ...]
    gives: tuple[fx.Node, ...]
    layer: Any = None
    eager: fx.Node | None = None


@dataclass
class Lowered:
    """The actions of a step in order, the kernel of every call, and what PyTorch does and why."""

    actions: list[Action] = field(default_factory=list)
    kernels: dict[str, str] = field(default_factory=dict)
    fallbacks: list[Declined] = field(default_factory=list)


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

    binary: the way of binary convolutions, None for the cheaper one. whole: as `why_not`. stored: the dtype of float
    pictures between kernels (`halves`). tuner: what chooses tiles, None for the defaults.
    """

    def __init__(self, program: Program, device: torch.device, binary: str | None = None, whole: bool = False,
                 stored: torch.dtype = torch.float32, tuner: Tuner | None = None):  # fmt: skip
        self.program, self.device, self.binary, self.whole = program, device, binary, whole
        self.stored, self.tuner = stored, tuner
        self.packs = binary_packs(program)
        self.half: set[fx.Node] = set()
        if stored != torch.float32:
            self.half = half_nodes(program, lambda n: why_not(program, n, self.packs, whole))
        self.spots = spots(program, lambda n: why_not(program, n, self.packs, whole) is None, self._stored)
        self.taken: set[fx.Node] = set()
        self.placed: dict[fx.Node, list[Action]] = {}  # actions by the call at whose place they run
        self.out = Lowered()

    def _stored(self, n: fx.Node) -> torch.dtype:
        return self.stored if n in self.half else dtype_of(n)

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
        self._place(n, Action(partial(_run_eagerly, n), tuple(n.all_input_nodes), (n,), None, n))
        self.out.kernels[n.name] = f"eager {op_text(n.target)}"
        self.out.fallbacks.append(Declined(n.name, reason))

    def _kernel(self, n: fx.Node) -> None:
        name = op_text(n.target)
        if name in (*CONVOLUTIONS, *TRANSPOSED):
            self._convolution(n)
        elif name in BINARY:
            self._binary(n, name)
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

    def _epilogue(self, chain: Chain) -> tuple[Epilogue, list[fx.Node]]:
        e, given = epilogue(self.program, chain)
        return (replace(e, dtype=self.stored) if chain.end in self.half else e), given

    def _grow(self, head: fx.Node, first: list[Operand], *, signs: bool) -> Chain:
        chain = grow(self.program, head, first, self.packs, self.taken, signs=signs)
        self.taken |= {*chain.nodes, *(x for x in (chain.levels, chain.signs) if x is not None)}
        return chain

    def _binary(self, n: fx.Node, name: str) -> None:
        tested, masked = name == "vqc.bconv2d_threshold", "masked" in name
        if tested:
            packed = n in self.packs
            chain = Chain((), (n,), n, None, n if packed else None, False, None if packed else SIGNS)
            self.taken.add(n)
        else:
            chain = self._grow(n, [], signs=True)
        e, given = self._epilogue(chain)
        names = ("weight", "threshold", "flip") if tested else ("weight", "scale", "bias")
        weight, scale, bias = (self.program.constant(argument(n, k)) for k in names)
        where = geometry(n)
        layer = BinaryConvolution(where, weight, scale, bias, e, self.device, masked=masked, way=self.binary,
                                  threshold=tested)  # fmt: skip
        pack = None  # signs that others read, too, lie as s8: they are packed here
        if n.args[0] not in self.packs:
            pack = Pointwise(where.shape, Epilogue(value=False, signs=torch.zeros(1)), self.device)
        self._call(n, layer, chain, given, argument(n, "mask") if masked else None, pack)

    def _convolution(self, n: fx.Node) -> None:
        weight, scale, bias, zero = (
            self.program.constant(argument(n, k)) for k in ("weight", "scale", "bias", "x_zero")
        )
        where = geometry(n)
        masked = "masked" in op_text(n.target)
        if dtype_of(n) == torch.uint8:
            steps, levels = requantizer(n)
            chain = Chain(tuple(steps), (n,), n, None, None, False, levels)
            self.taken.add(n)
        else:
            chain = self._grow(n, [], signs=where.groups == 1 and not where.transposed)
        e, given = self._epilogue(chain)
        layer = Convolution(where, weight, scale, bias, zero, dtype_of(n.args[0]) == torch.uint8, e, self.device,
                            masked=masked)  # fmt: skip
        self._call(n, layer, chain, given, argument(n, "mask") if masked else None)

    def _call(self, n: fx.Node, layer: Any, chain: Chain, given: Sequence[fx.Node], mask: fx.Node | None,
              pack: Pointwise | None = None, x: fx.Node | None = None) -> None:  # fmt: skip
        """Run a layer on x (n's first argument) where the last call of its chain stands: every operand is there."""
        x = n.all_input_nodes[0] if x is None else x
        gives = results_of(chain)
        layer = layer if self.tuner is None else self.tuner.best(layer)
        reads = (x, *given, *(() if mask is None else (mask,)))
        spots = {name: (self.spots[node], self._stored(node)) for name, node in gives.items() if node in self.spots}
        run = partial(_run_layer, layer, x, tuple(given), mask, pack, gives, spots)
        self._place(chain.nodes[-1], Action(run, reads, tuple(gives.values()), layer))
        for node in (*chain.nodes, *gives.values()):
            self.out.kernels[node.name] = layer.kernel

    def _float(self, n: fx.Node, name: str) -> None:
        """A float layer with its chain. The grid of a warp is read at run time, after the chain's operands."""
        chain = self._grow(n, [], signs=int(argument(n, "groups", 1)) == 1)
        e, given = self._epilogue(chain)
        shape, out = shape_of(n.args[0]), (shape_of(n)[2], shape_of(n)[3])
        get, masked = partial(argument, n), name == "vqc.masked_conv2d"
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
                                int(get("groups")), e, self.device, masked=masked)  # fmt: skip
        self._call(n, layer, chain, given, get("mask") if masked else None)

    def _moves(self, n: fx.Node) -> None:
        found = channel_parts(n)
        assert found is not None
        inputs, parts, outputs = found
        several = isinstance(n.meta["val"], (tuple, list))
        self.taken.add(n)
        if crop_of(n) is None and is_view(self.program, n, self._stored):
            self._place(n, Action(partial(_run_views, parts, n, inputs[0]), tuple(inputs), (n,)))
            self.out.kernels[n.name] = "view"
            return
        made = {u.args[1]: u for u in n.users} if several else {0: n}
        dtypes = [self._stored(made[i]) if i in made else dtype_of(inputs[0]) for i in range(len(outputs))]
        if op_text(n.target) == "aten.cat":  # what is written there already need not be moved
            parts = [p for p in parts if (spot := self.spots.get(inputs[p[0]])) is None or (spot.cat, spot.first)
                     != (n, p[4])]  # fmt: skip
        layer = floats.Channels(parts, outputs, dtypes, crop_of(n))
        run = partial(_run_moves, layer, n, tuple(inputs), dtypes[0])
        self._place(n, Action(run, tuple(inputs), (n,), layer if parts else None))
        self.out.kernels[n.name] = layer.kernel if parts else "written in place"

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
            e, _ = epilogue(self.program, Chain(tuple(steps), (n,), n, None, None, False, levels))
        where = Geometry((1, k, 1, count), (1, count), (1, 1), (0, 0), (1, 1), 1)
        layer = Convolution(where, weight[:, :, None, None], scale, bias, zero, rows == torch.uint8, e, self.device)
        layer = layer if self.tuner is None else self.tuner.best(layer)
        self.taken.add(n)
        self._place(n, Action(partial(_run_linear, layer, x, n), (x,), (n,), layer))
        self.out.kernels[n.name] = layer.kernel

    def _pointwise(self, n: fx.Node) -> None:
        """A chain that follows no sums: it begins at a call's first picture that fits."""
        name = op_text(n.target)
        if name == "vqc.binarize":
            x, packed = n.args[0], n in self.packs
            tau = () if packed else (Operand("sign", self._tau_place(n), n.args[1]),)
            chain = Chain(tau, (n,), x if packed else n, None, n if packed else None, False, None if packed else SIGNS)
            self.taken.add(n)
        elif name.startswith("quantized_decomposed."):
            x = n.args[0]
            chain = Chain((), (n,), x, n, None, False)
            self.taken.add(n)
        else:
            x, first = next((a, s) for a in n.all_input_nodes if (s := steps_of(self.program, n, a)) is not None)
            chain = self._grow(n, first, signs=True)
        e, given = self._epilogue(chain)
        shape = shape_of(x)
        layer = Pointwise((shape[0], shape[1], shape[2], shape[3]), e, self.device)
        self._call(n, layer, chain, given, None, x=x)

    def _tau_place(self, n: fx.Node) -> str:
        return "one" if self.program.constant(argument(n, "tau")).numel() == 1 else "channel"


def _keep(values: Values, gives: dict[str, fx.Node], made: Results) -> None:
    for name, node in gives.items():
        values[node] = getattr(made, name)


def _run_layer(layer: Any, x: fx.Node, given: tuple[fx.Node, ...], mask: fx.Node | None,
               pack: Pointwise | None, gives: dict[str, fx.Node], spots: dict[str, tuple[Spot, torch.dtype]],
               values: Values) -> None:  # fmt: skip
    more: tuple[Any, ...] = ()
    if mask is not None:
        if ("tiles", mask) not in values:
            values["tiles", mask] = masks.find(values[mask])
        more = values["tiles", mask]
    picture = values[x]
    if pack is not None:
        if ("words", x) not in values:
            values["words", x] = pack(picture).signs
        picture = values["words", x]
    into = {name: _memory_of(values, spot.cat, dtype, picture.device)[..., spot.first : spot.first + spot.count]
            for name, (spot, dtype) in spots.items()}  # fmt: skip
    _keep(values, gives, layer(picture, [values[g] for g in given], *more, **({"into": into} if into else {})))


def _memory_of(values: Values, cat: fx.Node, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The memory [N,H,W,C] of a concatenation, new for who comes first."""
    if ("memory", cat) not in values:
        n, c, h, w = shape_of(cat)
        values["memory", cat] = torch.empty((n, h, w, c), dtype=dtype, device=device)
    return values["memory", cat]


def _run_moves(layer: floats.Channels, n: fx.Node, inputs: tuple[fx.Node, ...], dtype: torch.dtype,
               values: Values) -> None:  # fmt: skip
    given = [values[i] for i in inputs]
    into = None
    if op_text(n.target) == "aten.cat":
        into = [_memory_of(values, n, dtype, given[0].device)]
        del values["memory", n]
    made = layer(given, into)
    values[n] = made if isinstance(n.meta["val"], (tuple, list)) else made[0]


def _run_views(parts: list[tuple[int, int, int, int, int]], n: fx.Node, x: fx.Node, values: Values) -> None:
    made = [values[x][:, at : at + count] for _, at, count, _, _ in parts]
    values[n] = made if isinstance(n.meta["val"], (tuple, list)) else made[0]


def _run_linear(layer: Convolution, x: fx.Node, n: fx.Node, values: Values) -> None:
    given = values[x]
    made = layer(given.reshape(1, 1, -1, given.shape[-1]).permute(0, 3, 1, 2))
    y = made.levels if made.value is None else made.value
    assert y is not None
    values[n] = y.permute(0, 2, 3, 1).reshape(*given.shape[:-1], y.shape[1])


def _run_eagerly(n: fx.Node, values: Values) -> None:
    dense = op_text(n.target) in VIEWS

    def load(a: fx.Node) -> Any:
        x = values[a]
        return x.contiguous() if dense and isinstance(x, Tensor) else x

    args, kwargs = fx.node.map_arg((n.args, n.kwargs), load)
    values[n] = n.target(*args, **kwargs)


__all__ = ["Action", "Lowered", "Lowerer", "binary_packs", "why_not"]

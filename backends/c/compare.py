"""Integer layers that are slower here than the same layer in float, found by timing both.

Which layers are integer is part of a program's meaning, so a compiler must not turn them round. It can say which ones
do not pay, with both times, and how to keep them in float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from vqc.backends.c.build import Compiler
from vqc.backends.c.registry import op_name
from vqc.layers import Layer
from vqc.ops.exact import argument
from vqc.program import Input, Program, infer, meta_of, shape_of

INTEGER = {
    "vqc::qconv2d": "conv2d", "vqc::qconv2d_requantize": "conv2d",
    "vqc::qconv_transpose2d": "conv_transpose2d", "vqc::qconv_transpose2d_requantize": "conv_transpose2d",
}  # fmt: skip
NOISE = 1.05  # an integer layer must take this many times as long as the float one to be named


@dataclass(frozen=True)
class Slower:
    """An integer layer that does not pay: ms of a step with its own quantizer, and those of the float kernel alone.

    `keep`: what to give to `quantize` as `keep`, to have the layer in float.
    """

    node: str
    integer_ms: float
    float_ms: float
    keep: str

    def __str__(self) -> str:
        return (f"{self.node} takes {self.integer_ms:.3f} ms in integers, {self.float_ms:.3f} ms in float: keep it in "
                f"float with quantize{{keep=[{self.keep}]}}")  # fmt: skip


def slower_than_float(program: Program, layers: Sequence[Layer], target: str, compiler: Compiler, threads: int = 1
                      ) -> list[Slower]:  # fmt: skip
    """The integer convolutions of a program that its float kernels would do faster.

    `layers`: those of the program's report after a profile (`Executable.profile`), with the same target, compiler and
    threads. What runs in the same call as a convolution (the activation, the next quantizer) counts for the integers.
    """
    nodes = [n for n in program.calls if op_name(n.target) in INTEGER]
    if not nodes:
        return []
    floats = _float_ms(nodes, target, compiler, threads)
    spent: dict[str, float] = {}
    for layer in layers:
        spent[layer.node] = spent.get(layer.node, 0.0) + (layer.measured_ms or 0.0)
    found = []
    for n in nodes:
        source = n.args[0]
        own = 0.0
        if isinstance(source, fx.Node) and "quantize_per" in op_name(source.target):
            own = spent.get(source.name, 0.0) / max(1, len(source.users))
        integer = spent.get(n.name, 0.0) + own
        if integer > NOISE * floats[_key(n)]:
            found.append(Slower(n.name, integer, floats[_key(n)], str(n.meta.get("module") or n.name)))
    return sorted(found, key=lambda s: s.float_ms - s.integer_ms)


def _key(node: fx.Node) -> tuple[Any, ...]:
    """What a float convolution's time depends on."""
    options = [_plain(argument(node, name, 1)) for name in ("stride", "padding", "dilation", "groups")]
    weight: Any = argument(node, "weight")
    return (INTEGER[op_name(node.target)], shape_of(node.args[0]), shape_of(weight), shape_of(node), *options)


def _plain(value: Any) -> Any:
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else int(value)


def _float_ms(nodes: Sequence[fx.Node], target: str, compiler: Compiler, threads: int) -> dict[tuple[Any, ...], float]:
    """Milliseconds of the float kernel of every different convolution among the nodes, all in one program."""
    from vqc.backends.c.backend import compile_whole

    keys = list(dict.fromkeys(_key(n) for n in nodes))
    g = torch.Generator().manual_seed(0)
    graph = fx.Graph()
    inputs = [torch.rand(k[1], generator=g) for k in keys]
    given = [graph.placeholder(f"x{i}") for i in range(len(keys))]
    for holder, tensor in zip(given, inputs, strict=True):
        holder.meta["val"] = meta_of(tensor)
    part = Program("layers", graph, {}, [Input(f"x{i}", tuple(x.shape), x.dtype) for i, x in enumerate(inputs)], [])
    made = []
    for i, (key, x) in enumerate(zip(keys, given, strict=True)):
        kind, _, shape, out, stride, padding, dilation, groups = key
        part.constants[f"w{i}"] = torch.randn(shape, generator=g) / math.sqrt(math.prod(shape[1:]))
        weight = graph.create_node("get_attr", f"w{i}")
        weight.meta["val"] = meta_of(part.constants[f"w{i}"])
        pairs = [list(p) if isinstance(p, tuple) else [p, p] for p in (stride, padding, dilation)]
        args: tuple[Any, ...]
        if kind == "conv2d":
            args = (x, weight, None, *pairs, groups)
        else:
            part_size = [(s - 1) * t - 2 * p + d * (k - 1) + 1 for s, t, p, d, k in
                         zip(key[1][2:], pairs[0], pairs[1], pairs[2], shape[2:], strict=True)]  # fmt: skip
            missing = [o - s for o, s in zip(out[2:], part_size, strict=True)]
            args = (x, weight, None, pairs[0], pairs[1], missing, groups, pairs[2])
        op = torch.ops.aten.conv2d.default if kind == "conv2d" else torch.ops.aten.conv_transpose2d.input
        node = graph.call_function(op, args)
        infer(part, node)
        made.append(node)
    graph.output(tuple(made))
    part.outputs = tuple(f"y{i}" for i in range(len(made)))
    spent: dict[str, float] = {}
    for layer in compile_whole(part, target, compiler, threads).profile([inputs], rounds=4).layers:
        spent[layer.node] = spent.get(layer.node, 0.0) + (layer.measured_ms or 0.0)
    return {key: spent[node.name] for key, node in zip(keys, made, strict=True)}

"""What a mask saves: time of a masked convolution against the dense one, by how much of the picture is active.

    python -m benchmarks.masked_layers [--quick] [--kinds float32 int8 binary unit] [--repeats 30]

One thread. Masks are blobs: smooth noise of 8 cells over the width, above the quantile that gives the density; "points"
are as many positions scattered at random, the worst a mask can be. A layer and its masks run in one process in turn,
and the least of the repeats counts.

"binary unit" is the masked branch of BiVM's decoder unit, y = U * f3(conv3x3) + f1(conv1x1): the 3x3 convolution and
all that follows it, on top of the other branch's result. Dense: the faster of the same under a mask that keeps
everything, and of what a program without a mask becomes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

import vqc.ops  # noqa: F401  registers vqc::
from vqc.backends.c import CBackend
from vqc.program import Input, Program, infer, meta_of
from vqc.report.tables import markdown

LAYERS = ((128, 36, 64), (64, 72, 128), (32, 144, 256), (16, 288, 512))  # channels in and out, height, width
DENSITIES = (0.0, 0.1, 0.24, 0.5, 0.75, 1.0)
CELLS = 8  # over the width, in the grid that blobs are made on
KINDS = ("float32", "int8", "binary")
UNIT = "unit"  # what the command line calls the binary unit
REPEATS = 30


def blobs(density: float, h: int, w: int, seed: int = 0) -> Tensor:
    """A bool mask [1,1,h,w] of smooth blobs, close to `density` of it true."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 1, max(2, CELLS * h // w), CELLS, generator=g)
    field = F.interpolate(noise, size=(h, w), mode="bicubic", align_corners=False)
    order = field.flatten().argsort(descending=True)[: round(density * h * w)]
    return torch.zeros(h * w, dtype=torch.bool).index_fill_(0, order, True).view(1, 1, h, w)


def program(op: Any, inputs: Sequence[Tensor], *args: Any) -> Program:
    """A Program of one call `op(inputs..., args...)`; `args` may put a place number where an input goes."""
    graph = fx.Graph()
    p = Program("layer", graph, {}, [], [], example=list(inputs))
    nodes = []
    for i, x in enumerate(inputs):
        node = graph.placeholder(f"x{i}")
        node.meta["val"] = meta_of(x)
        nodes.append(node)
    p.inputs = [Input(f"x{i}", tuple(x.shape), x.dtype) for i, x in enumerate(inputs)]
    call_args = []
    for i, a in enumerate(args):
        if isinstance(a, Tensor):
            p.constants[f"w{i}"] = a
            node = graph.create_node("get_attr", f"w{i}")
            node.meta["val"] = meta_of(a)
            call_args.append(node)
        else:
            call_args.append(nodes[int(a[1:])] if isinstance(a, str) and a.startswith("$") else a)
    node = graph.call_function(op, tuple(call_args))
    infer(p, node)
    graph.output((node,))
    p.outputs = ("y",)
    return p


def stepper(p: Program) -> Callable[[Sequence[Tensor]], float]:
    """Compile a Program without states for this machine; a step gives the seconds of its convolution alone.

    What brings a test's input into the kernel's layout is left out: in a network the layer before writes that layout.
    """
    made = CBackend().compile(p, "native", {"fallback": "none"}).model
    state = made.new_state()
    chosen = [i for i, c in enumerate(made.model.lowered.calls) if "conv" in c.kernel]

    def step(inputs: Sequence[Tensor]) -> float:
        with made.profiled() as seconds:
            made.step(state, inputs)
        return sum(seconds[i] for i in chosen)

    return step


def _least(step: Callable[[Sequence[Tensor]], float], cases: Sequence[Sequence[Tensor]], best: list[float]) -> None:
    for i, inputs in enumerate(cases):
        step(inputs)
        best[i] = min(best[i], step(inputs))


def layer(kind: str, channels: int, h: int, w: int) -> tuple[Program, Program, Tensor]:
    """The dense and the masked Program of one 3x3 layer, and its input."""
    g = torch.Generator().manual_seed(1)
    mask, tail = torch.ones(1, 1, h, w, dtype=torch.bool), ([1, 1], [1, 1], [1, 1], 1)
    if kind == "float32":
        x = torch.randn(1, channels, h, w, generator=g)
        weight, bias = torch.randn(channels, channels, 3, 3, generator=g), torch.randn(channels, generator=g)
        dense = program(torch.ops.aten.conv2d.default, [x], "$0", weight, bias, *tail)
        return dense, program(torch.ops.vqc.masked_conv2d.default, [x, mask], "$0", weight, bias, "$1", *tail), x
    if kind == "binary":
        x = (torch.randint(0, 2, (1, channels, h, w), generator=g) * 2 - 1).to(torch.int8)
        weight = (torch.randint(0, 2, (channels, channels, 3, 3), generator=g) * 2 - 1).to(torch.int8)
        scaled = (weight, torch.rand(channels, generator=g), torch.randn(channels, generator=g))
        dense = program(torch.ops.vqc.bconv2d.default, [x], "$0", *scaled, *tail[:3])
        return dense, program(torch.ops.vqc.masked_bconv2d.default, [x, mask], "$0", *scaled, "$1", *tail[:3]), x
    x = torch.randint(0, 256, (1, channels, h, w), generator=g).to(torch.uint8)
    weight = torch.randint(-127, 128, (channels, channels, 3, 3), generator=g).to(torch.int8)
    fixed = (weight, torch.rand(channels, generator=g), torch.randn(channels, generator=g),
             torch.tensor([128], dtype=torch.int32))  # fmt: skip
    last = ("relu", 0.01, 3)
    dense = program(torch.ops.vqc.qconv2d_requantize.default, [x], "$0", *fixed, *tail, *last)
    masked = torch.ops.vqc.masked_qconv2d_requantize.default
    return dense, program(masked, [x, mask], "$0", *fixed, "$1", *tail, *last), x


def unit(channels: int, h: int, w: int, *, masked: bool) -> tuple[Program, Tensor]:
    """The unit of BiVM's decoder, from a picture [1,C,H,W] and U [1,1,H,W] to signs; and the picture."""
    ops, aten, graph = torch.ops.vqc, torch.ops.aten, fx.Graph()
    g = torch.Generator().manual_seed(1)
    x, u = torch.randn(1, channels, h, w, generator=g), torch.rand(1, 1, h, w, generator=g)
    p = Program("unit", graph, {}, [], ["y"], example=(x, u))

    def call(op: Any, *args: Any) -> fx.Node:
        made = []
        for a in args:
            if isinstance(a, Tensor):
                p.constants[f"c{len(p.constants)}"] = a
                a, value = graph.create_node("get_attr", f"c{len(p.constants) - 1}"), a
                a.meta["val"] = meta_of(value)
            made.append(a)
        node = graph.call_function(op, tuple(made))
        infer(p, node)
        return node

    def branch(size: int, mask: fx.Node | None) -> fx.Node:
        weight = (torch.randint(0, 2, (channels, channels, size, size), generator=g) * 2 - 1).to(torch.int8)
        scaled = (weight, torch.rand(channels, generator=g), torch.randn(channels, generator=g))
        geometry = ([1, 1], [size // 2] * 2, [1, 1])
        bits = call(ops.binarize.default, nodes[0], torch.full((1,), 0.1 * size))
        y = (call(ops.bconv2d.default, bits, *scaled, *geometry) if mask is None
             else call(ops.masked_bconv2d.default, bits, *scaled, mask, *geometry))  # fmt: skip
        y = call(aten.prelu.default, y, torch.rand(channels, generator=g))
        return call(aten.add.Tensor, y, torch.randn(channels, 1, 1, generator=g))

    nodes = []
    for i, t in enumerate((x, u)):
        nodes.append(graph.placeholder(f"x{i}"))
        nodes[-1].meta["val"] = meta_of(t)
    p.inputs = [Input(n.name, tuple(t.shape), t.dtype) for n, t in zip(nodes, (x, u), strict=True)]
    sparse = branch(3, call(aten.ne.Scalar, nodes[1], 0.0) if masked else None)
    y = call(aten.add.Tensor, call(aten.mul.Tensor, sparse, nodes[1]), branch(1, None))
    graph.output((call(ops.binarize.default, y, torch.zeros(1)),))
    return p, x


def unit_stepper(p: Program) -> Callable[[Sequence[Tensor]], float]:
    """Compile a unit; a step gives the seconds of its 3x3 branch alone."""
    made = CBackend().compile(p, "native", {"fallback": "none"}).model
    state, calls = made.new_state(), made.model.lowered.calls
    chosen = [i for i, c in enumerate(calls) if c.kernel == "vqc_masked_bconv2d_rows"]
    if not chosen:  # without a mask: the convolution that comes first, and the pointwise call
        chosen = [next(i for i, c in enumerate(calls) if c.kernel == "vqc_bconv2d"),
                  *(i for i, c in enumerate(calls) if c.kernel == "vqc_rows_c4")]  # fmt: skip

    def step(inputs: Sequence[Tensor]) -> float:
        with made.profiled() as seconds:
            made.step(state, inputs)
        return sum(seconds[i] for i in chosen)

    return step


def measure_units(layers: Sequence[tuple[int, int, int]] = LAYERS, densities: Sequence[float] = DENSITIES,
                  repeats: int = REPEATS) -> list[dict[str, Any]]:  # fmt: skip
    """The records of `measure` for the binary unit, under blobs and under points."""
    records = []
    for channels, h, w in layers:
        (dense, x), (masked, _) = unit(channels, h, w, masked=False), unit(channels, h, w, masked=True)
        whole, part = unit_stepper(dense), unit_stepper(masked)
        g = torch.Generator().manual_seed(2)
        fraction = 0.1 + 0.9 * torch.rand(1, 1, h, w, generator=g)
        points = torch.rand(1, 1, h, w, generator=g)
        masks = [("binary unit", blobs(d, h, w)) for d in densities]
        masks += [("binary unit, points", points < d) for d in densities if 0 < d < 1]
        cases = [(x, fraction), *((x, fraction * m) for _, m in masks)]
        base, times = [float("inf")], [float("inf")] * len(cases)
        for _ in range(repeats):
            _least(whole, cases[:1], base)
            _least(part, cases, times)
        dense_s = min(base[0], times[0])
        records += [
            {"kind": kind, "layer": f"{channels}->{channels}@{h}x{w}", "density": float(m.float().mean()),
             "dense_ms": dense_s * 1e3, "masked_ms": t * 1e3, "ratio": t / dense_s}
            for (kind, m), t in zip(masks, times[1:], strict=True)
        ]  # fmt: skip
    return records


def measure(kinds: Sequence[str] = (*KINDS, UNIT), layers: Sequence[tuple[int, int, int]] = LAYERS,
            densities: Sequence[float] = DENSITIES, repeats: int = REPEATS) -> list[dict[str, Any]]:  # fmt: skip
    """One record for each kind, layer and density: milliseconds dense and masked, and their ratio; the unit's last."""
    records = []
    for kind in (k for k in kinds if k != UNIT):
        for channels, h, w in layers:
            dense, masked, x = layer(kind, channels, h, w)
            whole, part = stepper(dense), stepper(masked)
            cases = [(x, blobs(d, h, w)) for d in densities]
            base, times = [float("inf")], [float("inf")] * len(cases)
            for _ in range(repeats):
                _least(whole, [(x,)], base)
                _least(part, cases, times)
            records += [
                {"kind": kind, "layer": f"{channels}->{channels}@{h}x{w}", "density": float(mask.float().mean()),
                 "dense_ms": base[0] * 1e3, "masked_ms": t * 1e3, "ratio": t / base[0]}
                for (_, mask), t in zip(cases, times, strict=True)
            ]  # fmt: skip
    return records + (measure_units(layers, densities, repeats) if UNIT in kinds else [])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, UNIT], default=[*KINDS, UNIT],
                        help="numbers of the single layers; unit: the binary unit")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of every layer under every mask")
    parser.add_argument("--quick", action="store_true", help="one layer, a few repeats")
    given = parser.parse_args(argv)
    if given.repeats < 1:
        parser.error("--repeats is 1 at least")
    layers, repeats = (LAYERS[:1], 3) if given.quick else (LAYERS, given.repeats)
    rows = []
    for r in measure(given.kinds, layers, repeats=repeats):
        rows.append({"type": r["kind"], "layer": r["layer"], "density": f"{r['density']:.2f}",
                     "dense ms": f"{r['dense_ms']:.3f}", "masked ms": f"{r['masked_ms']:.3f}",
                     "ratio": f"{r['ratio']:.3f}", "above density": f"{r['ratio'] - r['density']:+.3f}"})  # fmt: skip
    print(markdown(rows))


if __name__ == "__main__":
    main()

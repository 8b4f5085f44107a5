"""Binary convolutions beside OpenVINO's: the marginal time of one more layer, in chains and in residual bodies.

    python -m benchmarks.binary_layers [--quick] [--isa full avx2]

Two bodies of n layers, each 3x3 with true zero padding on one map:
  chain      binary picture in, binary picture out: convolution, scale and bias, sign
  residual   sign, convolution, scale and bias, + the float picture, PReLU: a float picture in and out
The time of a layer is (long body - short body) / (difference in layers). Engines take turns in one process; the least
time counts. `isa`: "full" is all the machine has; "avx2" limits OpenVINO by ONEDNN_MAX_CPU_ISA, in a process of its own
in which the kernel of a float convolution shows that it obeys (binary ones are always called "jit_avx512_u1", and only
their time shows it), and compiles vqc for x86-64-v3. `share` is the part of the machine's limit that a body reaches:
a loop of xor, popcount and add over operands in the first-level cache, timed in between; `pair_share` of one that
counts two steps at once, as vqc's kernel does.
Every body's output is compared with the reference before it is timed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

import vqc.ops  # noqa: F401  (registers the operators)
from vqc.backends.c import CBackend
from vqc.backends.c.build import find_compiler
from vqc.program import Input, Program, evaluate, infer, meta_of

Record = dict[str, Any]
SHORT, LONG = 2, 6  # layers of the two bodies
KINDS = ("chain", "residual")
TARGETS = {"full": "native", "avx2": "x86-64-v3"}
ROUNDS = 200


@dataclass(frozen=True)
class Shape:
    """A map [1, channels, h, w] and 3x3 convolutions that keep its channels."""

    channels: int
    h: int
    w: int

    @property
    def name(self) -> str:
        return f"{self.channels}->{self.channels} @{self.h}x{self.w}"

    @property
    def macs(self) -> int:
        return 9 * self.channels**2 * self.h * self.w


SHAPES = (Shape(64, 72, 128), Shape(128, 36, 64), Shape(256, 18, 32), Shape(128, 18, 32), Shape(32, 144, 256))


@dataclass(frozen=True)
class Layer:
    """The numbers of one layer; chain: a binary result is +1 where acc * scale + bias > 0."""

    weight: Tensor  # s8 [C,C,3,3]
    scale: Tensor
    bias: Tensor
    slope: Tensor


def layers(shape: Shape, count: int) -> list[Layer]:
    """Layers with fixed random numbers."""
    g = torch.Generator().manual_seed(3)
    c = shape.channels
    return [
        Layer((2 * torch.randint(0, 2, (c, c, 3, 3), generator=g) - 1).to(torch.int8),
              torch.rand(c, generator=g) * 0.02 + 0.01, torch.randn(c, generator=g) * 0.1,
              torch.rand(c, generator=g) * 0.5)
        for _ in range(count)
    ]  # fmt: skip


# ---- vqc -----------------------------------------------------------------------------------------------------------


def body(shape: Shape, kind: str, found: Sequence[Layer]) -> Program:
    """The body as a Program with a float picture in and a float picture out (of the last convolution)."""
    ops, graph = torch.ops.vqc, fx.Graph()
    g = torch.Generator().manual_seed(4)
    example = torch.randn(1, shape.channels, shape.h, shape.w, generator=g)
    x = graph.placeholder("x")
    x.meta["val"] = meta_of(example)
    program = Program(f"{kind}_{len(found)}", graph, {}, [Input("x", tuple(example.shape), example.dtype)], ["y"],
                      example=(example,))  # fmt: skip

    def const(value: Tensor) -> fx.Node:
        name = f"c{len(program.constants)}"
        program.constants[name] = value
        node = graph.create_node("get_attr", name)
        node.meta["val"] = meta_of(value)
        return node

    def call(op: Any, *args: Any) -> fx.Node:
        node = graph.call_function(op, tuple(const(a) if isinstance(a, Tensor) else a for a in args))
        infer(program, node)
        return node

    geometry = ([1, 1], [1, 1], [1, 1])
    zero = torch.zeros(1)
    bits = call(ops.binarize.default, x, zero)
    for i, layer in enumerate(found):
        last = i == len(found) - 1
        if kind == "chain" and not last:  # acc * scale + bias > 0, as an integer test (scale > 0)
            limit = torch.floor(-layer.bias.double() / layer.scale.double()).to(torch.int32) + 1
            flip = torch.zeros(shape.channels, dtype=torch.bool)
            bits = call(ops.bconv2d_threshold.default, bits, layer.weight, limit, flip, *geometry)
            continue
        y = call(ops.bconv2d.default, bits, layer.weight, layer.scale, layer.bias, *geometry)
        if kind == "residual":
            x = call(torch.ops.aten.prelu.default, call(torch.ops.aten.add.Tensor, y, x), layer.slope)
            y = x
            bits = y if last else call(ops.binarize.default, x, zero)
    graph.output((y,))
    return program


def vqc_runs(program: Program, target: str) -> tuple[Callable[[], None], Tensor]:
    """The compiled body as a call without any conversion around, and its output."""
    exe: Any = CBackend().compile(program, target, {"fallback": "none"})
    out = exe.trace(program.example, [])[0]

    def run() -> None:
        exe.trace(program.example, [])

    return run, out


# ---- OpenVINO ------------------------------------------------------------------------------------------------------


def openvino_runs(shape: Shape, kind: str, found: Sequence[Layer], example: Tensor
                  ) -> tuple[Callable[[], None], Tensor]:  # fmt: skip
    """The same body for OpenVINO: a call, and its output.

    The range of FakeQuantize must be 0 and 1: with -1 and 1 every activation silently becomes -1.
    """
    import openvino as ov
    from openvino import opset13 as op

    held: list[np.ndarray] = []  # an ov.Tensor does not keep its numpy array alive

    def per_channel(v: Tensor) -> Any:
        return op.constant(v.numpy().reshape(1, -1, 1, 1))

    def sign(node: Any) -> Any:
        edge = op.constant(np.zeros((1, 1, 1, 1), np.float32))
        low, high = (op.constant(np.full((1, 1, 1, 1), v, np.float32)) for v in (0, 1))
        return op.fake_quantize(node, edge, edge, low, high, 2)

    x = op.parameter(list(example.shape), ov.Type.f32, name="x")
    node = x
    for layer in found:
        packed = np.packbits((layer.weight.numpy() > 0).reshape(-1), bitorder="little")
        held.append(packed)
        weight = op.constant(ov.Tensor(packed, list(layer.weight.shape), ov.Type.u1))
        y = op.binary_convolution(sign(node), weight, [1, 1], [1, 1], [1, 1], [1, 1], "xnor-popcount", 0.0)
        y = op.add(op.multiply(y, per_channel(layer.scale)), per_channel(layer.bias))
        node = op.prelu(op.add(y, node), op.constant(layer.slope.numpy())) if kind == "residual" else y
    compiled = _openvino(ov.Model([node], [x]))
    request = compiled.create_infer_request()
    given = np.ascontiguousarray(example.numpy())
    request.set_input_tensor(ov.Tensor(given))
    request.infer()
    out = torch.from_numpy(request.get_output_tensor().data.copy())

    def run(keep: Sequence[object] = (held, given, compiled)) -> None:
        request.infer()

    return run, out


def _openvino(model: Any) -> Any:
    import openvino as ov

    return ov.Core().compile_model(model, "CPU", {
        "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
    })  # fmt: skip


def openvino_kernel() -> str:
    """The kernel OpenVINO takes in this process for a float convolution, whose name tells the instructions it uses."""
    import openvino as ov
    from openvino import opset13 as op

    x = op.parameter([1, 64, 16, 16], ov.Type.f32, name="x")
    weight = op.constant(np.ones((64, 64, 3, 3), np.float32))
    compiled = _openvino(ov.Model([op.convolution(x, weight, [1, 1], [1, 1], [1, 1], [1, 1])], [x]))
    info = [n.get_rt_info() for n in compiled.get_runtime_model().get_ops()]
    return next(i["primitiveType"].astype(str) for i in info if i["layerType"].astype(str) == "Convolution")


# ---- the limit -----------------------------------------------------------------------------------------------------

LIMIT = r"""
#include <stdint.h>
#include <immintrin.h>
#define COUNT(x, y) count[j][y] = _mm512_add_epi64(count[j][y], _mm512_popcnt_epi64(x))
#define SELECT(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0xca)
void limit(const uint64_t *x, const uint64_t *w, uint64_t *out, int steps) {
    __m512i count[8][2];
    for (int j = 0; j < 8; j++) count[j][0] = count[j][1] = _mm512_setzero_si512();
    for (int k = 0; k < steps; k += 2, x += 32, w += 16) {
        const __m512i a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(x + 8);
        const __m512i c = _mm512_loadu_si512(x + 16), d = _mm512_loadu_si512(x + 24);
#ifdef PAIRS
        const __m512i ac = _mm512_xor_si512(a, c), bd = _mm512_xor_si512(b, d);
#endif
        for (int j = 0; j < 8; j++) {
            const __m512i v = _mm512_set1_epi64((long long)w[j]), u = _mm512_set1_epi64((long long)w[j + 8]);
#ifdef PAIRS
            COUNT(SELECT(_mm512_xor_si512(c, v), u, ac), 0);
            COUNT(SELECT(_mm512_xor_si512(d, v), u, bd), 1);
#else
            COUNT(_mm512_xor_si512(a, v), 0);
            COUNT(_mm512_xor_si512(b, v), 1);
            COUNT(_mm512_xor_si512(c, u), 0);
            COUNT(_mm512_xor_si512(d, u), 1);
#endif
        }
    }
    for (int j = 0; j < 8; j++) {
        _mm512_storeu_si512(out + 16 * j, count[j][0]);
        _mm512_storeu_si512(out + 16 * j + 8, count[j][1]);
    }
}
void limit_many(const uint64_t *x, const uint64_t *w, uint64_t *out, int steps, int times) {
    for (int i = 0; i < times; i++) limit(x, w, out, steps);
}
"""
LIMIT_STEPS, LIMIT_TIMES = 36, 2000
LIMITS = {"limit": [], "limit of pairs": ["-DPAIRS"]}


def popcount_limits() -> dict[str, Callable[[], None]]:
    """Loops on operands in the first-level cache, none on a CPU without VPOPCNTDQ.

    "limit": an xor, a popcount and an add a step. "limit of pairs": an xor, a select, a popcount and an add for two.
    """
    try:
        if "avx512_vpopcntdq" not in Path("/proc/cpuinfo").read_text():
            return {}
    except OSError:
        return {}
    folder = Path(tempfile.mkdtemp(prefix="vqc-limit-"))
    (folder / "limit.c").write_text(LIMIT)
    data = [np.random.default_rng(0).integers(0, 2**63, 16 * LIMIT_STEPS + 16, dtype=np.uint64) for _ in range(3)]
    given = [ctypes.c_void_p(d.ctypes.data) for d in data]

    def loop(name: str, flags: Sequence[str]) -> Callable[[], None]:
        library = name.replace(" ", "_") + ".so"
        subprocess.run([*find_compiler().command, "-O3", "-march=native", *flags, "-shared", "-fPIC", "limit.c", "-o",
                        library], cwd=folder, check=True)  # fmt: skip
        function = ctypes.CDLL(str(folder / library)).limit_many

        def run(keep: object = data) -> None:
            function(*given, LIMIT_STEPS, LIMIT_TIMES)

        return run

    return {name: loop(name, flags) for name, flags in LIMITS.items()}


# ---- measuring -----------------------------------------------------------------------------------------------------


def _least(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The least time of each run, in ms; they take turns."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - begin))
    return best


def _settled(runs: dict[str, Callable[[], None]], rounds: int, attempts: int = 10) -> dict[str, float]:
    """`_least`, again and again until no time falls by 1 % or more, and no long body is faster than its share of the
    short one would allow: a layer's time is a difference of two least times, both have to be the least.

    Raises RuntimeError when the machine is too busy for that.
    """
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(attempts):
        before, found = best, _least(runs, rounds)
        best = {name: min(before[name], found[name]) for name in runs}
        if any(best[name] < 0.99 * before[name] for name in runs):
            continue
        engines = {name.split()[0] for name in runs if name not in LIMITS}
        pairs = [(best[f"{e} {LONG}"], best[f"{e} {SHORT}"]) for e in engines]
        if all(short < long < short * LONG / SHORT * 1.3 for long, short in pairs):
            return best
    raise RuntimeError(f"the machine is too busy to tell the time of a layer: {best}")


def _close(got: Tensor, want: Tensor, what: str) -> None:
    if not torch.allclose(got, want, rtol=1e-4, atol=1e-3):
        raise RuntimeError(f"{what}: {int((got - want).abs().gt(1e-3).sum())} of {want.numel()} values are wrong")


def _here(isa: str, shapes: Sequence[Shape], rounds: int) -> list[Record]:
    """Measure in this process; for "avx2" its environment must hold OpenVINO back already."""
    peer = find_spec("openvino") is not None
    limits = popcount_limits() if isa == "full" else {}
    kernel = openvino_kernel() if peer else ""
    if isa == "avx2" and "512" in kernel:
        raise RuntimeError(f"OpenVINO takes {kernel} although held to AVX2")
    records = []
    for shape in shapes:
        for kind in KINDS:
            runs: dict[str, Callable[[], None]] = dict(limits)
            for count in (SHORT, LONG):
                found = layers(shape, count)
                program = body(shape, kind, found)
                want = evaluate(program, program.example)[0]
                runs[f"vqc {count}"], got = vqc_runs(program, TARGETS[isa])
                if not torch.equal(got, want):
                    raise RuntimeError(f"vqc, {shape.name} {kind}: not the reference's bits")
                if peer:
                    runs[f"openvino {count}"], got = openvino_runs(shape, kind, found, program.example[0])
                    _close(got, want, f"OpenVINO, {shape.name} {kind}")
            best = _settled(runs, rounds)
            record: Record = {"layer": shape.name, "kind": kind, "isa": isa}
            for engine in ("vqc", "openvino") if peer else ("vqc",):
                ms = (best[f"{engine} {LONG}"] - best[f"{engine} {SHORT}"]) / (LONG - SHORT)
                record[f"{engine}_ms"] = round(ms, 4)
                record[f"{engine}_gmacs"] = round(shape.macs / ms / 1e6)
            if peer:
                record["openvino_float_kernel"] = kernel
                record["ratio"] = round(record["openvino_ms"] / record["vqc_ms"], 2)
            for name, share in zip(limits, ("share", "pair_share"), strict=False):
                gmacs = 8 * 16 * 64 * LIMIT_STEPS * LIMIT_TIMES / best[name] / 1e6
                record[f"{share}_gmacs"], record[share] = round(gmacs), round(record["vqc_gmacs"] / gmacs, 3)
            records.append(record)
    return records


def measure(isas: Sequence[str] = ("full", "avx2"), shapes: Sequence[Shape] = SHAPES, rounds: int = ROUNDS
            ) -> list[Record]:  # fmt: skip
    """One record for every instruction set, shape and kind; each instruction set in a process of its own.

    Raises RuntimeError when an engine gives wrong values or does not keep to its instruction set.
    """
    records: list[Record] = []
    for isa in isas:
        command = [sys.executable, "-m", "benchmarks.binary_layers", "--worker", isa, "--rounds", str(rounds),
                   "--shapes", *(str(SHAPES.index(s)) for s in shapes)]  # fmt: skip
        limited = {"ONEDNN_MAX_CPU_ISA": "AVX2"} if isa == "avx2" else {}
        done = subprocess.run(command, env=os.environ | limited, cwd=Path(__file__).resolve().parent.parent,
                              capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"measuring binary layers ({isa}) failed: {done.stderr[-2000:]}")
        found: list[Record] = json.loads(done.stdout.splitlines()[-1])
        records += found
    return records


def text(records: Sequence[Record]) -> str:
    """The records as a Markdown table."""
    columns = {"layer": "layer", "kind": "body", "isa": "instructions", "vqc_ms": "vqc ms",
               "openvino_ms": "OpenVINO ms", "ratio": "ratio", "vqc_gmacs": "vqc GMAC/s",
               "share": "of the limit", "pair_share": "of that of pairs"}  # fmt: skip
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(r.get(c, "-")) for c in columns) + " |" for r in records]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--isa", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--quick", action="store_true", help="one shape, a few rounds")
    parser.add_argument("--worker", choices=list(TARGETS), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--shapes", nargs="+", type=int, default=list(range(len(SHAPES))))
    given = parser.parse_args()
    shapes = [SHAPES[i] for i in given.shapes]
    if given.worker:
        torch.set_num_threads(1)
        print(json.dumps(_here(given.worker, shapes, given.rounds)))
        return
    shapes, rounds = (shapes[3:4] or shapes, 5) if given.quick else (shapes, given.rounds)
    print(text(measure(given.isa, shapes, rounds)))


if __name__ == "__main__":
    main()

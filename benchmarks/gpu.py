"""vqc's Triton kernels on a GPU beside what a user would pick instead. Needs a GPU; nothing here was measured yet.

    python -m benchmarks.gpu [--only ceilings layers networks streams] [--rounds 50] [-o FOLDER]
    python -m benchmarks.gpu --paper          what a GPU of known peaks could do: arithmetic on paper, needs no GPU
    python -m benchmarks.gpu --paper rvm      the same for every launch of RVM's int8 step at 288x512 and 1080p

Layers: integer, 4-bit, binary (both ways) and masked convolutions beside cuDNN's float16, each first compared bit for
bit with the reference. Networks: vqc's few bits, compared likewise (benchmarks/gpu_reference.py), beside eager PyTorch
and Inductor (default and max-autotune) in float16 and bfloat16. Streams: 1 to 64 clips in one step, frames a second.
Times are medians of CUDA events; every call reads another copy of its inputs, more than the cache holds together.
Without a GPU it says "not measured" and why, and ends with status 3. A row of wrong results is told, not written, and
the status is 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import vqc
from benchmarks.gpu_reference import agreement, same_binary, same_convolution, told_apart
from benchmarks.machine import Record, folder, machine, write
from vqc.backends.triton import masks, packing
from vqc.backends.triton.environment import place_for
from vqc.backends.triton.epilogue import Epilogue
from vqc.backends.triton.launch import Launch, recording
from vqc.backends.triton.lowering import Lowerer
from vqc.backends.triton.roofline import H200, Peak, cost_of
from vqc.backends.triton.samples import Layer, binary, convolution, levels
from vqc.backends.triton.spread import spread
from vqc.backends.triton.streams import batched
from vqc.errors import TargetError
from vqc.layers import text
from vqc.program import Program

NOT_MEASURED, WRONG = 3, 1
TOPICS = ("ceilings", "layers", "networks", "streams")
STREAMS = (1, 2, 4, 8, 16, 32, 64)
CACHE = 64 * 2**20  # bytes: the L2 of an H200 is 50 MB
DENSITY = 0.24  # active positions of BiVM's masks


# 3x3 convolutions of RVM's decoder on its blocks' own scales, and what they are at 288x512, 1080p and 4K.
SIZES = {"288x512": (288, 512), "1080p": (1080, 1920), "4K": (2160, 3840)}
CHANNELS = ((171, 80, 8), (107, 40, 4), (59, 32, 2), (35, 16, 1))  # in, out, scale


def layers_at(size: str) -> list[Layer]:
    """The decoder's layers for frames of this size."""
    h, w = SIZES[size]
    return [Layer(c, o, (h // s, w // s)) for c, o, s in CHANNELS]


def name_of(layer: Layer) -> str:
    """A layer in a table: 171>80 3x3 @36x64."""
    return f"{layer.c}>{layer.o} {layer.kernel}x{layer.kernel} @{layer.size[0]}x{layer.size[1]}"


def on_paper(layer: Layer, peak: Peak = H200) -> Record:
    """The least time of a layer in s8 and in float16: the larger of arithmetic and bytes, each tensor moved once."""
    positions = layer.size[0] * layer.size[1]
    macs = positions * layer.c * layer.o * layer.kernel**2
    values = positions * (layer.c + layer.o) + layer.c * layer.o * layer.kernel**2
    s8 = max(macs / peak.s8, values / peak.bytes) * 1e6
    f16 = max(macs / peak.f16, 2 * values / peak.bytes) * 1e6
    bound = "bytes" if values / peak.bytes > macs / peak.s8 else "arithmetic"
    if s8 < peak.launch_us:
        bound = "launch"
    return {"layer": name_of(layer), "GMAC": macs / 1e9, "MB s8": values / 1e6, "s8 us": s8, "f16 us": f16,
            "bound": bound, "measured us": None}  # fmt: skip


def paper() -> list[Record]:
    """All layers at all sizes."""
    return [{"frames": size, **on_paper(layer)} for size in SIZES for layer in layers_at(size)]


def launches_of(program: Program) -> list[tuple[str, Launch]]:
    """Every launch of a step with the call behind it, recorded on the CPU; PyTorch's own operators run."""
    program, _ = spread(program)
    lowered = Lowerer(program, torch.device("cpu")).lower()
    found: list[tuple[str, Launch]] = []
    holders = [n for n in program.nodes if n.op == "placeholder"]
    given = [torch.zeros(i.shape, dtype=i.dtype) for i in program.inputs] + program.initial_state()
    values: dict[Any, Any] = {n: program.constants[str(n.target)] for n in program.nodes if n.op == "get_attr"}
    values |= dict(zip(holders, given, strict=True))
    for action in lowered.actions:
        name = action.gives[0].name
        with recording(lambda made, name=name: found.append((name, made))):  # type: ignore[misc]
            action.run(values)
    return found


def paper_of(program: Program, peak: Peak = H200) -> list[Record]:
    """The least time of every launch of a step, and what bounds it; measured by nobody."""
    rows: list[Record] = []
    for name, made in launches_of(program):
        cost = cost_of(made)
        us, moving = cost.least(peak) * 1e6, cost.moved / peak.bytes * 1e6
        bound = "launch" if us < peak.launch_us else "bytes" if moving >= us else "arithmetic"
        rows.append({"layer": name, "kernel": made.kernel.partition(".")[2], "GMAC": cost.needed / 1e9,
                     "MB": cost.moved / 1e6, "least us": us, "bound": bound, "measured us": None})  # fmt: skip
    return rows


def summed(rows: Sequence[Record], peak: Peak = H200) -> list[Record]:
    """Rows of `paper_of` by kernel, and all of them; with launches one by one, and in a graph that hides them."""
    kinds: dict[str, list[Record]] = {}
    for r in rows:
        kinds.setdefault(str(r["kernel"]), []).append(r)
    table = []
    for kernel, of in [*sorted(kinds.items(), key=lambda k: -sum(r["least us"] for r in k[1])), ("all", list(rows))]:
        total = {k: sum(r[k] for r in of) for k in ("GMAC", "MB", "least us")}
        apart = sum(max(r["least us"], peak.launch_us) for r in of)
        table.append({"kernel": kernel, "launches": len(of), **total, "us with launches": apart, "measured us": None})
    return table


def paper_network(name: str, size: str) -> list[Record]:
    """`paper_of` for a network's int8 step at a size; ranges are those of noise, which changes no time."""
    from vqc.report.network import network
    from vqc.report.session import recipe_program

    net = network(name, SIZES[size])
    recipe = "xnor" if name == "bivm" else "int8"
    noise = torch.rand(2, 3, *SIZES[size], generator=torch.Generator().manual_seed(0))
    return paper_of(recipe_program(net, recipe, None if name == "bivm" else noise))


def shown(records: Sequence[Record]) -> str:
    """Records as a table; what is None was not measured."""

    def cell(v: Any) -> str:
        return "not measured" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v)

    return text([{k: cell(v) for k, v in r.items()} for r in records])


def clock(call: Callable[[int], Any], device: torch.device, rounds: int) -> float:
    """Median microseconds of `call(i)`; i counts on, so that a call can read another copy each time."""
    for i in range(3):
        call(i)
    times = []
    for i in range(3, 3 + rounds):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call(i)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3)
        else:
            began = time.perf_counter()
            call(i)
            times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(times)


def copies(make: Callable[[], Tensor], cache: int = CACHE) -> list[Tensor]:
    """As many tensors as are larger than the cache together, two at least."""
    first = make()
    more = max(1, -(-cache // max(1, first.numel() * first.element_size())))
    return [first, *(make() for _ in range(more))]


def layer_records(layer: Layer, device: torch.device, rounds: int, cache: int = CACHE) -> list[Record]:
    """A layer in every form, each compared with the reference first; `equal` says whether all of it was the same."""
    g = torch.Generator().manual_seed(1)
    shape = (1, layer.c, *layer.size)
    half = torch.float16 if device.type == "cuda" else torch.float32
    found: list[Record] = []

    def add(form: str, run: Callable[[Tensor], Any], inputs: list[Tensor], equal: bool | None, **more: Any) -> None:
        us = clock(lambda i: run(inputs[i % len(inputs)]), device, rounds)
        found.append({"layer": name_of(layer), "form": form, "us": us, "equal": equal, **more})

    pictures = copies(lambda: torch.randint(0, 256, shape, generator=g).to(torch.uint8).to(device)
                      .contiguous(memory_format=torch.channels_last), cache)  # fmt: skip
    floats = [p.to(half) for p in pictures]
    weight = torch.randn(layer.o, layer.c, layer.kernel, layer.kernel, generator=g).to(device, half)
    weight = weight.contiguous(memory_format=torch.channels_last)
    pad = layer.kernel // 2
    peer = "PyTorch, float16" if device.type == "cuda" else "PyTorch, float32"
    add(peer, lambda x: F.conv2d(x, weight, None, 1, pad),
        floats, None)  # fmt: skip
    for form, four in (("s8", False), ("w4a8", True)):
        epilogue = Epilogue(value=False, levels=levels(layer.o))
        ours = convolution(layer, epilogue, four_bits=four, device=device)
        judge = convolution(layer, Epilogue(), four_bits=four, device=device)
        add(form, ours, pictures, same_convolution(layer, four, judge, pictures[0]))
    mask = (torch.rand(1, 1, *(-(-s // 16) for s in layer.size), generator=g) < DENSITY).float()
    blobs = F.interpolate(mask, size=layer.size).bool().to(device)
    masked = convolution(layer, Epilogue(), masked=True, device=device)
    plain, listed = masks.find(blobs)
    dense = convolution(layer, Epilogue(), device=device)
    kept = torch.where(blobs, dense(pictures[0]).value, torch.zeros((), device=device))
    add("s8, float result", dense, pictures, None)
    add("s8, float result, masked", lambda x: masked(x, (), *masks.find(blobs)), pictures,
        torch.equal(masked(pictures[0], (), plain, listed).value, kept),
        density=float(blobs.float().mean()))  # fmt: skip
    words = copies(lambda: torch.randint(-(2**31), 2**31, (1, *layer.size, -(-layer.c // 32)), generator=g)
                   .to(torch.int32).to(device), cache)  # fmt: skip
    words = [w & _existing(layer.c, device) for w in words]
    for way in ("dot", "popcount"):
        bits = binary(layer, Epilogue(value=False, signs=torch.zeros(1)), way, device=device)
        judge_bits = binary(layer, Epilogue(), way, device=device)
        add(f"binary, {way}", bits, words, same_binary(layer, judge_bits, words[0]))
    return found


def _existing(channels: int, device: torch.device) -> Tensor:
    """Words with a bit for every channel that exists."""
    return packing.words(torch.ones(channels, dtype=torch.bool)).to(device)


def ceilings(device: torch.device, rounds: int, n: int = 8192) -> list[Record]:
    """What this GPU reaches: bytes copied a second, multiply-adds a second in s8 and float16."""
    big = torch.empty(n * n, dtype=torch.float32, device=device)
    us = clock(lambda i: big.clone(), device, rounds)
    found = [{"ceiling": "bytes", "per second": 2 * big.numel() * 4 / us * 1e6}]
    a8 = torch.randint(-128, 128, (n, n), dtype=torch.int8, device=device)
    us = clock(lambda i: torch._int_mm(a8, a8.t()), device, rounds)
    found.append({"ceiling": "s8 multiply-adds", "per second": n**3 / us * 1e6})
    a16 = torch.randn(n, n, device=device).to(torch.float16)
    us = clock(lambda i: a16 @ a16, device, rounds)
    return [*found, {"ceiling": "float16 multiply-adds", "per second": n**3 / us * 1e6}]


# Each with a clip to calibrate on, and its recipe.
NETWORKS = {"rvm": ("pexels", "int8"), "rife": ("bigbuckbunny", "int8"), "srvgg": ("bigbuckbunny", "int8"),
            "bivm": ("pexels", "xnor")}  # fmt: skip


def network_program(name: str, size: str) -> tuple[Any, Program]:
    """A network and its program of few bits."""
    from vqc.report.network import network
    from vqc.report.session import recipe_program

    clip, recipe = NETWORKS[name]
    net = network(name, SIZES[size])
    seen = vqc.video.read_clip(vqc.video.clip(clip), frames=8, size=SIZES[size])
    return net, recipe_program(net, recipe, None if recipe == "xnor" else seen)


def graphed(program: Program) -> tuple[Any, str]:
    """The program on the GPU, a step as one graph where it can be, and whether and why not."""
    try:
        return vqc.compile(program, "cuda", graph=True, tune=True), "yes"
    except TargetError as e:
        return vqc.compile(program, "cuda", tune=True), f"no: {e}"


def networks(device: torch.device, rounds: int, sizes: Sequence[str] = ("288x512", "1080p", "4K")) -> list[Record]:
    """RVM, RIFE, SRVGG and BiVM: vqc's few bits beside PyTorch's engines in half floats, ms a step. A row whose results
    are not the reference's has `wrong`, and no times."""
    found = []
    for name in NETWORKS:
        for size in sizes:
            net, program = network_program(name, size)
            exe, graph = graphed(program)
            row: Record = {"network": name, "size": size, "one graph": graph, **agreement(exe, program, device)}
            if row["wrong"]:
                found.append(row)
                continue
            inputs = [x.to(device) for x in program.example]
            stream = vqc.Stream(exe)
            row["vqc ms"] = clock(lambda i: stream.step(inputs), device, rounds) / 1e3  # noqa: B023
            row["left to PyTorch"] = len(exe.report.fallbacks)
            for half in (torch.float16, torch.bfloat16):
                short = str(half).removeprefix("torch.")
                module = net.module.to(device).to(half).eval()
                args = [x.to(device).to(half) for x in net.example]
                with torch.no_grad():
                    row[f"eager {short} ms"] = clock(lambda i: module(*args), device, rounds) / 1e3  # noqa: B023
                    for mode in ("default", "max-autotune"):
                        torch._dynamo.reset()
                        fast = torch.compile(module, mode=mode)
                        ms = clock(lambda i: fast(*args), device, rounds) / 1e3  # noqa: B023
                        row[f"Inductor {mode} {short} ms"] = ms
            found.append(row)
    return found


def scaling(make: Callable[[int], tuple[Any, str]], seconds: Callable[[Any], float],
            counts: Sequence[int] = STREAMS) -> list[Record]:  # fmt: skip
    """Frames a second of 1 to 64 clips in one step; `make` compiles for a number of clips, `seconds` times its step.

    `scaling`: frames a second beside those of the first row, by as many clips: 1 is perfect.
    """
    found: list[Record] = []
    for n in counts:
        try:
            exe, graph = make(n)
        except TargetError as e:  # too little memory for so many
            found.append({"streams": n, "ms": None, "frames/s": None, "scaling": None, "one graph": f"{e}"})
            break
        took = seconds(exe)
        first = found[0] if found else {"streams": n, "frames/s": n / took}
        part = n / took / first["frames/s"] / (n / first["streams"])
        found.append({"streams": n, "ms": took * 1e3, "frames/s": n / took, "scaling": part, "one graph": graph})
    return found


def streams(device: torch.device, rounds: int, size: str = "288x512") -> list[Record]:
    """RVM and BiVM, many clips in one step."""
    rows = []
    for name in ("rvm", "bivm"):
        program = network_program(name, size)[1]

        def seconds(exe: Any) -> float:
            inputs = [x.to(device) for x in exe.program.example]
            stream = vqc.Stream(exe)
            return clock(lambda i: stream.step(inputs), device, rounds) * 1e-6

        made = scaling(lambda n: graphed(batched(program, n)), seconds)  # noqa: B023
        rows += [{"network": name, "size": size, **r} for r in made]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=list(TOPICS))
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--paper", nargs="?", const="layers", choices=["layers", *NETWORKS],
                        help="what a GPU of known peaks could do, of layers or a network")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, default=None)
    given = parser.parse_args(arguments)
    if given.paper == "layers":
        print(shown(paper()))
        return 0
    if given.paper:
        for size in ("288x512", "1080p"):
            rows = paper_network(given.paper, size)
            print(f"{given.paper} at {size} on a {H200.name}, on paper", shown(rows), shown(summed(rows)), sep="\n\n")
        return 0
    try:
        place = place_for("cuda")
    except TargetError as e:
        print(f"not measured: {e}", file=sys.stderr)
        return NOT_MEASURED
    if place.interpreted:
        print("not measured: TRITON_INTERPRET is set, and kernels would run in the interpreter", file=sys.stderr)
        return NOT_MEASURED
    jobs: dict[str, Callable[[], list[Record]]] = {
        "ceilings": lambda: ceilings(place.device, given.rounds),
        "layers": lambda: [
            r for s in SIZES for x in layers_at(s) for r in layer_records(x, place.device, given.rounds)],
        "networks": lambda: networks(place.device, given.rounds),
        "streams": lambda: streams(place.device, given.rounds),
    }  # fmt: skip
    status = 0
    for topic in given.only:
        began = machine() | {"gpu": torch.cuda.get_device_name(place.device)}
        records, wrong = told_apart(jobs[topic]())
        for row in wrong:
            print(f"{topic}: wrong results, not written: {row}", file=sys.stderr)
            status = WRONG
        if records:
            print(shown(records))
            print(f"wrote {write('gpu-' + topic, records, began, given.output or folder())}")
    return status


if __name__ == "__main__":
    sys.exit(main())

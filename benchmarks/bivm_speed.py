"""BiVM in one bit beside its float twin: every engine in one run, where a frame's time goes, what the mask saves, Arm.

`python -m benchmarks.bivm speed` runs it. One bit: the shipped weights, or those of --weights, or fresh ones where
there are none; the float twin has fresh ones, because no engine's time depends on them. Engines take turns on a real
clip, a few frames each, the state carried.

Two times are told. `ms`: the least time of a frame on the clock. `cpu_ms`: the least processor time of the process for
a frame, which work of others on the same cores changes much less; with one thread it is what counts here. Parts of a
frame, and decoders, are told in processor time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import vqc
from benchmarks import bivm_arm, peers
from benchmarks.machine import Record
from benchmarks.masked_layers import blobs
from vqc import video
from vqc.accounting import account
from vqc.backends.c import CBackend
from vqc.models import _shb
from vqc.models._bivm_weights import BIVM_FILE, build_packed
from vqc.models.bivm import BiVM
from vqc.program import Program
from vqc.report.network import Network
from vqc.report.session import Engine, eager_engine, program_engine, recipe_program, use_threads

SIZE = (288, 512)
STATES = {"r1": 2, "r2": 3, "r3": 4, "r4": 5}
DENSITIES = (0.24, 0.5, 1.0)
REPEATS = 6  # of every step, where calls are timed one by one
TURN = 3  # frames of an engine's turn; the first is not timed
PARTS = (("binary convolutions", ("vqc_bconv", "vqc_masked_bconv")),
         ("float convolutions", ("vqc_conv", "vqc_masked_conv")),
         ("signs, with concatenations and resizes", ("vqc_signs", "vqc_binarize", "vqc_bits", "vqc_resize")),
         ("pointwise", ("vqc_rows", "vqc_pointwise")))  # fmt: skip


def one_bit(weights: Path | None) -> tuple[BiVM, str]:
    """The network in one bit and what its weights are."""
    if weights is not None:
        return build_packed(weights)[0].eval(), weights.name
    if BIVM_FILE.exists():
        return build_packed(BIVM_FILE)[0].eval(), "shipped"
    return fresh(1), "random"


def fresh(bits: int) -> BiVM:
    """A network with random weights and norms that are not trivial."""
    torch.manual_seed(0)
    model = BiVM(bits).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.running_mean, 0.0, 0.1)
    return model


def as_network(model: nn.Module, size: tuple[int, int] = SIZE) -> Network:
    return Network("bivm", model, (torch.rand(1, 3, *size),), STATES, 1, 0)


def frames_of(name: str, count: int, size: tuple[int, int] = SIZE) -> Tensor:
    """A stretch of a clip, [T,3,H,W] in [0,1]."""
    return video.read_clip(video.clip(name), count, size)


# ---- engines -------------------------------------------------------------------------------------------------------


def _peers(net: Network, folder: Path, threads: int) -> list[Engine]:
    """The float engines that are installed."""
    made = [peers.inductor_engine(net)]
    if not peers.installed("onnxruntime", "onnx", "onnxscript"):
        return made
    import onnxruntime as ort

    path = folder / "twin.onnx"
    if not path.exists():
        peers.export_onnx(peers.Flat(net), (*net.example, *peers.zero_states(net)), path)
    made.append(peers.array_engine(net, f"onnxruntime {ort.__version__}, float32", peers.ort_call(path, threads), 0))
    if peers.installed("openvino"):
        import openvino as ov

        name = f"OpenVINO {ov.__version__.split('-')[0]}, float32"
        call = peers.ov_call(ov.Core().read_model(str(path)), threads, "f32")
        made.append(peers.array_engine(net, name, call, 0))
    return made


def engines(one: Network, twin: Network, programs: dict[str, Program], threads: Sequence[int], clip: Tensor
            ) -> list[Record]:  # fmt: skip
    """One record for every engine and number of threads; vqc's one-bit ones with how many times as fast they are."""
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in threads:
            options = use_threads(number, "native")
            made = [("one bit", eager_engine(one)), ("float twin", eager_engine(twin))]
            made += [("float twin", e) for e in _peers(twin, Path(folder), number)]
            made += [(what, program_engine(p, f"vqc C, {'binary' if what == 'one bit' else 'float32'}", "native",
                                           **options)) for what, p in programs.items()]  # fmt: skip
            if peers.installed("openvino", "onnx"):  # 1x1 and 3x3 layers of signs on its BinaryConvolution
                made.append(("one bit", program_engine(programs["one bit"], f"OpenVINO {version('openvino')}, binary",
                                                       "openvino", threads=number)))  # fmt: skip
            found = _race(made, clip)
            for (what, engine), (wall, spent) in zip(made, found, strict=True):
                records.append({
                    "what": "engine", "network": what, "engine": engine.name, "threads": number,
                    "ms": round(1e3 * min(wall), 2), "median_ms": round(1e3 * statistics.median(wall), 2),
                    "cpu_ms": round(1e3 * min(spent), 2), "weight_bytes": engine.weight_bytes,
                })  # fmt: skip
                print(", ".join(f"{k} {v}" for k, v in records[-1].items()), flush=True)
            records[-len(made) :] = _against(records[-len(made) :])
    return records


def _race(made: Sequence[tuple[str, Engine]], clip: Tensor) -> list[tuple[list[float], list[float]]]:
    """(seconds of every timed frame, processor seconds) of each engine."""
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in made]
    for _, engine in made:
        engine.reset()
    for start in range(0, len(clip), TURN):
        for (_, engine), (wall, spent) in zip(made, found, strict=True):
            for i, frame in enumerate(clip[start : start + TURN]):
                begin, busy = time.perf_counter(), time.process_time()
                engine.step((frame[None],))
                if i or len(clip) <= TURN:
                    wall.append(time.perf_counter() - begin)
                    spent.append(time.process_time() - busy)
    return found


def _against(records: list[Record]) -> list[Record]:
    """The records of one number of threads; ours in one bit with the float engines it is set beside."""
    clock = "cpu_ms" if records[0]["threads"] == 1 else "ms"
    twins = [r for r in records if r["network"] == "float twin"]
    best = min(twins, key=lambda r: r[clock])
    eager = next(r for r in twins if r["engine"].startswith("PyTorch"))
    same = next((r for r in records if r["engine"].endswith(", binary") and r["engine"].startswith("OpenVINO")), None)
    for r in records:
        if r["network"] == "one bit" and r["engine"].startswith("vqc"):
            r |= {"clock": clock, "baseline": best["engine"], "ratio": round(best[clock] / r[clock], 2),
                  "eager_ratio": round(eager[clock] / r[clock], 2)}  # fmt: skip
            if same is not None:
                r["same_ratio"] = round(same[clock] / r[clock], 2)
    return records


# ---- where the time goes -------------------------------------------------------------------------------------------


def call_times(program: Program, steps: list[Any]) -> tuple[list[Any], list[float]]:
    """The calls of a compiled program, and the least processor seconds of each over steps, on one thread."""
    made: Any = CBackend().compile(program, "native", {"fallback": "none"})
    state, best = made.model.new_state(), [float("inf")] * len(made.model.model.lowered.calls)
    for inputs in [steps[0], *steps * REPEATS]:
        with mock.patch.object(time, "perf_counter", time.thread_time), made.model.profiled() as seconds:
            made.model.step(state, inputs)
        best = [min(a, b) for a, b in zip(best, seconds, strict=True)]
    return made.model.model.lowered.calls, best


def part_of(kernel: str) -> str:
    """The part of a frame's time that a kernel belongs to."""
    return next((name for name, starts in PARTS if kernel.startswith(starts)), "everything else")


def parts(network: str, program: Program, clip: Tensor) -> list[Record]:
    """One record for every part of a frame's time."""
    calls, seconds = call_times(program, [(f[None],) for f in clip])
    total = sum(seconds)
    names = [*(name for name, _ in PARTS), "everything else"]
    records = []
    for name in names:
        mine = [s for c, s in zip(calls, seconds, strict=True) if part_of(c.kernel) == name]
        records.append({"what": "part", "network": network, "part": name, "calls": len(mine),
                        "ms": round(1e3 * sum(mine), 3), "share": round(sum(mine) / total, 3)})  # fmt: skip
    return records


# ---- what the mask saves -------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """The network with the mask at 1/16 as an input; `known`: by a comparison, which vqc sees as a mask, or not."""

    def __init__(self, model: BiVM, known: bool):
        super().__init__()
        self.model, self.known = model, known

    def forward(self, src: Tensor, cells: Tensor, r1: Tensor | None = None, r2: Tensor | None = None,
                r3: Tensor | None = None, r4: Tensor | None = None) -> tuple[Tensor, ...]:  # fmt: skip
        def given(matte: Tensor, threshold: Tensor | float = 0.0) -> Tensor:
            return (cells > 0.5).to(cells.dtype) if self.known else cells

        with mock.patch.object(_shb, "uncertain", given):
            found: tuple[Tensor, ...] = self.model(src, r1, r2, r3, r4)
        return found


def masked_program(model: BiVM, frame: Tensor, known: bool, name: str = "bivm") -> Program:
    """The one-bit program with its mask as a second input."""
    cells = torch.ones(1, 1, -(-frame.shape[-2] // 16), -(-frame.shape[-1] // 16))
    program = vqc.capture(Masked(model, known).eval(), (frame, cells), states=STATES,
                          known_ranges={"src": (0, 1), "cells": (0, 1)}, name=name)  # fmt: skip
    return vqc.apply(program, "xnor")


def _decoder(program: Program) -> set[str]:
    """The nodes from the decoder's first one on."""
    calls = list(program.calls)
    first = next(i for i, n in enumerate(calls) if "_shb.py" in str(n.meta.get("source", "")))
    return {n.name for n in calls[first:]}


def masks(model: BiVM, clip: Tensor) -> list[Record]:
    """The decoder under masks of known density, beside the same decoder computed everywhere."""
    frame = clip[:1]
    rows, columns = -(-frame.shape[-2] // 16), -(-frame.shape[-1] // 16)
    sparse, dense = masked_program(model, frame, True), masked_program(model, frame, False)
    full = torch.ones(1, 1, rows, columns)
    steps = [f[None] for f in clip]

    def cost(program: Program, cells: Tensor) -> tuple[float, float]:
        calls, seconds = call_times(program, [(f, cells) for f in steps])
        inside = _decoder(program)
        return sum(s for c, s in zip(calls, seconds, strict=True) if c.node in inside), sum(seconds)

    def operations(program: Program, cells: Tensor) -> float:
        found = account(program, 1.0).layers
        inside = _decoder(program)
        shares = {w.mask: _share(program, w.mask, cells) for w in found if w.mask}
        return sum(w.operations for w in account(program, shares).layers if w.node in inside)

    whole, frame_s = cost(dense, full)
    records = []
    for density in DENSITIES:
        cells = blobs(density, rows, columns).float()
        part, total = cost(sparse, cells)
        kept = float((_shb.spread(cells, 16, frame) > 0).float().mean())
        ops, all_ops = operations(sparse, cells), operations(dense, full)
        records.append({
            "what": "mask", "density": round(float(cells.mean()), 3), "kept": round(kept, 3),
            "dense_ms": round(1e3 * whole, 2), "masked_ms": round(1e3 * part, 2), "ratio": round(whole / part, 2),
            "dense_frame_ms": round(1e3 * frame_s, 2), "frame_ms": round(1e3 * total, 2),
            "operations": round(ops / all_ops, 3),
        })  # fmt: skip
        print(", ".join(f"{k} {v}" for k, v in records[-1].items()), flush=True)
    return records


def _share(program: Program, name: str, cells: Tensor) -> float:
    """How much a mask of the program keeps, from the cells it is made of."""
    node = next(n for n in program.calls if n.name == name)
    height, width = node.meta["val"].shape[-2:]
    times = round(height / cells.shape[-2])
    return float((_shb.spread(cells, times, torch.empty(1, 1, height, width)) > 0).float().mean())


# ---- Arm -----------------------------------------------------------------------------------------------------------


def arm(one: BiVM, twin: BiVM, clip: Tensor) -> list[Record]:
    """What the clip's second frame executes on 64-bit Arm, and the time of a model of Cortex-A76."""
    records = []
    for what, model, recipe in (("one bit", one, "xnor"), ("float twin", twin, "float")):
        program = recipe_program(as_network(model), recipe)
        with tempfile.TemporaryDirectory() as folder:
            counts = bivm_arm.a_frame(bivm_arm.player(program, clip[:2], Path(folder) / "out"))
        kinds = {k: sum(n for (_, kind), n in counts.items() if kind == k) for k in bivm_arm.KINDS}
        record: Record = {
            "what": "arm", "network": what, "counted_at": f"{SIZE[0]}x{SIZE[1]}",
            "instructions": counts.total(), **kinds, "model_ms": round(bivm_arm.model_ms(counts), 1),
        }  # fmt: skip
        if records:
            first = records[0]
            first["ratio"] = round(counts.total() / first["instructions"], 2)
            first["model_ratio"] = round(record["model_ms"] / first["model_ms"], 2)
        records.append(record)
    for record in records:
        print(", ".join(f"{k} {v}" for k, v in record.items()), flush=True)
    return records


# ---- all of it -----------------------------------------------------------------------------------------------------


def measure(threads: Sequence[int], frames: int, weights: Path | None, jobs: Sequence[str]) -> tuple[list[Record], str]:
    """All records, and a note of what was measured. `jobs`: "engines", "masks", "arm"."""
    torch.set_num_threads(1)
    model, about = one_bit(weights)
    twin_model = fresh(32)
    one, twin = as_network(model), as_network(twin_model)
    clip = frames_of("single_face", frames)
    records: list[Record] = []
    if "engines" in jobs:
        programs = {"float twin": recipe_program(twin, "float"), "one bit": recipe_program(one, "xnor")}
        records += engines(one, twin, programs, threads, clip)
        torch.set_num_threads(1)
        for name, program in programs.items():
            records += parts(name, program, clip[:8])
    if "masks" in jobs:
        records += masks(model, clip[:6])
    if "arm" in jobs:
        records += arm(model, twin_model, clip)
    for r in records:
        if r["what"] == "part":
            print(", ".join(f"{k} {v}" for k, v in r.items()))
    return records, f"One bit: {about} weights; {len(clip)} frames of `single_face`."

"""Whole networks: vqc and its peers on real weights and clips, taking turns, with speed and fidelity of each.

All engines are made first; then each plays the same few steps of the clip in turn, its state carried, until the clip
ends. What disturbs the machine for a while so falls on all of them. The first step of a turn, which finds cold caches,
is not timed.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.machine import Record
from benchmarks.peers import FLOAT, REDUCED, Peers
from vqc import metrics, video
from vqc.backends.c.build import find_compiler
from vqc.backends.c.compare import slower_than_float
from vqc.layers import by_kernel
from vqc.program import Program
from vqc.report.network import Network, network
from vqc.report.session import Engine, Playback, eager_engine, judge, play, program_engine, recipe_program, use_threads


@dataclass(frozen=True)
class Case:
    """A network on a clip, calibrated on other clips. `most`: no more frames than this, of each."""

    model: str
    clip: str
    calibration: tuple[str, ...]
    size: tuple[int, int]
    most: int


CASES = (
    Case("rvm", "single_face", ("pexels",), (288, 512), 48),
    Case("rife", "bikes", ("bigbuckbunny", "pexels"), (288, 640), 24),
    Case("srvgg", "bikes", ("bigbuckbunny", "pexels"), (180, 320), 12),
)
TURN = 4  # steps of one engine's turn


@dataclass
class Runner:
    """An engine in a race: its kind, and what it has played so far."""

    kind: str
    engine: Engine
    played: Playback


def race(runners: Sequence[Runner], net: Network, clip: Tensor, turn: int = TURN) -> None:
    """Let every runner play the whole clip, `turn` steps at a time, one runner after the other."""
    steps = net.steps(clip)
    for r in runners:
        r.engine.reset()
    for start in range(0, len(steps), turn):
        for r in runners:
            play(r.engine, net, clip[start : min(start + turn, len(steps)) + net.reach], onto=r.played)
    for r in runners:
        warm = [t for i, t in enumerate(r.played.times) if i % turn]
        r.played.times = warm or r.played.times


def truth(net: Network, clip: Tensor, played: Playback) -> dict[str, float]:
    """PSNR against the true pictures, where the clip holds them."""
    found = [net.entry.target(clip, t) if net.entry else None for t in range(len(played.pictures))]
    pictures = [x for x in found if x is not None]
    if len(pictures) < len(found):
        return {}
    true = torch.cat(pictures)
    return {"PSNR dB to the real frame": metrics.psnr(played.clip.clamp(0, 1), true)}


def measure(case: Case, threads: Sequence[int], frames: int, *, peers: bool = True) -> list[Record]:
    """One record an engine and number of threads: ms a frame, distances to PyTorch's float result, bytes of weights."""
    net = network(case.model, case.size)
    count = min(frames, case.most)
    clip = video.read_clip(video.clip(case.clip), count + net.reach, case.size)
    calibration = [video.read_clip(video.clip(n), count + net.reach, case.size) for n in case.calibration]
    began = time.perf_counter()
    torch.set_num_threads(max(threads))
    others = Peers(net, calibration) if peers else None
    print(f"{case.model}: peers made in {time.perf_counter() - began:.0f} s", flush=True)
    programs = {"float32": recipe_program(net, "float"), "int8": recipe_program(net, "int8", calibration)}
    records: list[Record] = []
    for number in threads:
        records += _with_threads(case, net, clip, programs, others, number)
    if others is not None:
        others.close()
    return records


def _with_threads(case: Case, net: Network, clip: Tensor, programs: dict[str, Program], peers: Peers | None,
                  threads: int) -> list[Record]:  # fmt: skip
    options = use_threads(threads, "native")
    made = [(FLOAT, eager_engine(net))]
    for kind, (name, program) in zip((FLOAT, REDUCED), programs.items(), strict=True):
        made.append((kind, program_engine(program, f"vqc C, {name}", "native", **options)))
        if kind == FLOAT:
            more = {**options, "winograd": True}
            made.append((kind, program_engine(program, f"vqc C, {name} winograd", "native", **more)))
    made += list(peers.engines(threads)) if peers is not None else []
    runners = [Runner(kind, e, Playback(e.name, e.weight_bytes)) for kind, e in made]
    race(runners, net, clip)
    records = []
    for r in runners:
        found = truth(net, clip, r.played)
        if r is not runners[0]:
            found = judge(r.played, runners[0].played) | found
        ms = statistics.median(r.played.times)
        report = r.engine.report
        record = {"model": case.model, "size": f"{case.size[0]}x{case.size[1]}", "clip": case.clip, "threads": threads,
                  "calibration": ", ".join(case.calibration), "steps": len(r.played.pictures), "engine": r.engine.name,
                  "kind": r.kind, "ms": round(ms, 2), "weight_bytes": r.played.weight_bytes,
                  "fallbacks": len(report.fallbacks) if report else 0,
                  "metrics": {k: round(v, 6) if math.isfinite(v) else None for k, v in found.items()}}  # fmt: skip
        if report is not None:
            record |= {"arena_bytes": report.arena_bytes, "live_bytes": report.live_bytes}
            record |= _profiled(r.engine, net, clip) if threads == 1 else {}
        records.append(record)
        print(f"{case.model} threads {threads} {r.engine.name}: {ms:.1f} ms "
              + " ".join(f"{k} {v:.4g}" for k, v in found.items()), flush=True)  # fmt: skip
    return against_best(records)


def _profiled(engine: Engine, net: Network, clip: Tensor) -> Record:
    """Where the time of a compiled engine goes, and its integer layers that float would do faster."""
    assert engine.executable is not None and engine.program is not None
    report = engine.executable.profile(net.steps(clip[: 2 + net.reach]), rounds=4)
    slower = slower_than_float(engine.program, report.layers, report.target, find_compiler())
    return {"peaks": report.peaks, "kernels": by_kernel(report.layers), "slower_than_float": [str(s) for s in slower]}


def against_best(records: list[Record]) -> list[Record]:
    """The records; vqc's with `ratio`, its time over that of `baseline`, the fastest peer of the same kind."""
    found = []
    for r in records:
        rivals = [p for p in records if p["kind"] == r["kind"] and not p["engine"].startswith("vqc")]
        if r["engine"].startswith("vqc") and rivals:
            best = min(rivals, key=lambda p: p["ms"])
            r = r | {"baseline": best["engine"], "ratio": round(r["ms"] / best["ms"], 3)}
        found.append(r)
    return found

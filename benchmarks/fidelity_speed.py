"""Speed and fidelity of vqc beside PyTorch and the installed peers, on real weights and clips, in one run.

    python -m benchmarks.fidelity_speed [--models rvm rife srvgg] [--frames 48] [--threads 1 2]

Writes benchmarks/results/<processor>.json; `python -m benchmarks.tables` puts the figures into the README.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import peer_engines
from vqc import metrics, video
from vqc.report.network import Network, network
from vqc.report.session import Engine, Playback, compiled_engine, eager_engine, judge, play, use_threads
from vqc.report.tables import write_text

RESULTS = Path(__file__).parent / "results"


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


def engines(net: Network, calibration: list[Tensor], threads: int) -> Iterator[Engine]:
    """Every engine, made when it is its turn; the first is the reference."""
    options = use_threads(threads, "native")
    yield eager_engine(net)
    yield compiled_engine(net, "float", "native", "vqc C, float32", **options)
    yield compiled_engine(net, "int8", "native", "vqc C, int8", calibration, **options)
    yield from peer_engines(net, calibration, threads)


def truth(net: Network, clip: Tensor, played: Playback) -> dict[str, float]:
    """PSNR against the true pictures, where the clip holds them."""
    if net.entry is None or net.entry.target_offset is None:
        return {}
    true = torch.cat([net.entry.target(clip, t) for t in range(len(played.pictures))])
    return {"PSNR dB to the real frame": metrics.psnr(played.clip.clamp(0, 1), true)}


def measure(case: Case, threads: int, frames: int) -> list[dict[str, Any]]:
    """One record an engine: median ms a frame, distances to PyTorch's float result, bytes of weights."""
    net = network(case.model, case.size)
    count = min(frames, case.most)
    clip = video.read_clip(video.clip(case.clip), count, case.size)
    calibration = [video.read_clip(video.clip(name), count, case.size) for name in case.calibration]
    records: list[dict[str, Any]] = []
    reference: Playback | None = None
    for engine in engines(net, calibration, threads):
        played = play(engine, net, clip)
        found = truth(net, clip, played)
        if reference is not None:
            found = judge(played, reference) | found
        reference = reference or played
        fallbacks = len(engine.report.fallbacks) if engine.report else 0
        record = {"model": case.model, "size": f"{case.size[0]}x{case.size[1]}", "clip": case.clip, "threads": threads,
                  "calibration": ", ".join(case.calibration), "steps": len(played.times), "engine": played.engine,
                  "ms": round(played.ms, 2), "weight_bytes": played.weight_bytes, "fallbacks": fallbacks,
                  "metrics": {k: round(v, 6) if math.isfinite(v) else None for k, v in found.items()}}  # fmt: skip
        records.append(record)
        print(f"{case.model} threads {threads} {played.engine}: {played.ms:.1f} ms "
              + " ".join(f"{k} {v:.4g}" for k, v in found.items()), flush=True)  # fmt: skip
    return records


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what was measured and of what it ran on."""
    found = {"python": platform.python_version()}
    for name in ("vqc", "torch", "numpy", "ziglang", "onnx", "onnxruntime", "openvino", "nncf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Measure, and write the results of this processor (all of them anew)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[c.model for c in CASES], choices=[c.model for c in CASES])
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, os.cpu_count() or 1}))
    given = parser.parse_args()
    records = []
    for case in CASES:
        if case.model in given.models:
            for threads in given.threads:
                records += measure(case, threads, given.frames)
    name = processor()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine = {"processor": name, "cores": os.cpu_count(), "system": platform.system(), "load": load}
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine, "versions": versions(), "results": records}
    print("wrote", write_text(RESULTS / f"{slug}.json", json.dumps(content, indent=1) + "\n"))


if __name__ == "__main__":
    main()

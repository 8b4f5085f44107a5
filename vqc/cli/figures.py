"""What tables show, as numbers for a JSON document."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vqc import metrics
from vqc.executable import CompileReport
from vqc.report.session import Playback, is_matte, judge

# The name of each distance in a table -> in JSON.
NAMES = {"MAD x1e3": "mad_x1e3", "MSE x1e3": "mse_x1e3", "dtSSD x1e2": "dtssd_x1e2", "PSNR dB": "psnr_db",
         "SSIM": "ssim", "drift dB/frame": "drift_db_per_frame"}  # fmt: skip


def distances(played: Playback, reference: Playback) -> dict[str, float]:
    """How far a playback is from another, over the clip (`vqc.report.session.judge`)."""
    return {NAMES[name]: value for name, value in judge(played, reference).items()}


def engines(played: Sequence[Playback], *, times: bool = True) -> list[dict[str, Any]]:
    """An entry an engine: bytes of its weights, ms a frame, and the distance to the first one."""
    found = []
    for p in played:
        entry: dict[str, Any] = {"engine": p.engine, "weight_bytes": p.weight_bytes}
        if times:
            entry["ms_a_frame"] = p.ms
        found.append(entry if p is played[0] else entry | distances(p, played[0]))
    return found


def frames(played: Playback, reference: Playback) -> list[dict[str, Any]]:
    """An entry a frame: its distances, and the time of both engines."""
    found = []
    for t, (a, b) in enumerate(zip(played.pictures, reference.pictures, strict=True)):
        a, b = a.clamp(0, 1), b.clamp(0, 1)
        entry: dict[str, Any] = {"frame": t, "sqnr_db": metrics.sqnr_db(a, b)}
        if is_matte(played):
            entry |= {"mad_x1e3": metrics.mad(a[0], b[0]), "mse_x1e3": metrics.mse(a[0], b[0])}
        else:
            entry["psnr_db"] = metrics.psnr(a, b)
        found.append(entry | {"ms": played.times[t], "reference_ms": reference.times[t]})
    return found


def compiled(report: CompileReport, *, layers: bool = False) -> dict[str, Any]:
    """What a backend did; with `layers`, each kernel call."""
    found: dict[str, Any] = {"backend": report.backend, "target": report.target, "kernels": report.kernels}
    for name in ("fallbacks", "unfused"):
        found[name] = [{"node": d.node, "reason": d.reason} for d in getattr(report, name)]
    found["notes"] = report.notes
    for name in ("weight_bytes", "arena_bytes", "live_bytes", "state_bytes"):
        found[name] = getattr(report, name)
    if layers:
        found["layers"] = [dataclasses.asdict(x) for x in report.layers]
    return found

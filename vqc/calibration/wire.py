"""Observations as bytes and back, without loss and without pickle: what processes send each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from vqc.calibration.observe import Observed
from vqc.calibration.statistics import Statistics


def to_bytes(observed: Mapping[str, Observed]) -> bytes:
    """Observations by node name as JSON. Equal observations give equal bytes, whatever order they were merged in."""
    content = {
        name: {"policy": o.policy, "groups": {str(key): _record(o.groups[key]) for key in sorted(o.groups)}}
        for name, o in sorted(observed.items())
    }
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def from_bytes(data: bytes) -> dict[str, Observed]:
    """What `to_bytes` was given; ValueError or KeyError for bytes it did not make."""
    return {
        name: Observed(o["policy"], {int(key): _statistics(r) for key, r in o["groups"].items()})
        for name, o in json.loads(data).items()
    }


def _record(s: Statistics) -> dict[str, Any]:
    # Python writes a float64 with the digits that give the same bits back, and integers of any size.
    return {
        "low": None if s.low is None else s.low.tolist(), "high": None if s.high is None else s.high.tolist(),
        "sum_low": str(s.sum_low), "sum_high": str(s.sum_high), "power": None if s.power is None else s.power.tolist(),
        "frames": s.frames, "values": s.values, "exponent": s.exponent, "first": s.first, "counts": s.counts.tolist(),
    }  # fmt: skip


def _statistics(r: Mapping[str, Any]) -> Statistics:
    return Statistics(
        low=None if r["low"] is None else np.array(r["low"], np.float64),
        high=None if r["high"] is None else np.array(r["high"], np.float64),
        sum_low=Fraction(r["sum_low"]), sum_high=Fraction(r["sum_high"]),
        power=None if r["power"] is None else np.array(r["power"], dtype=object),
        frames=r["frames"], values=r["values"], exponent=r["exponent"], first=r["first"],
        counts=np.array(r["counts"], np.int64),
    )  # fmt: skip

"""The least time of a launch on a GPU of known peaks: arithmetic, bytes and the launch itself, on paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vqc.backends.triton.launch import Launch


@dataclass(frozen=True)
class Peak:
    """A GPU on paper.

    `bytes`, `l2`: bytes a second from memory and from the second-level cache; `s8`, `f16`: multiply-adds a second on
    tensor cores; `f32`: on ordinary cores; `popcount`: multiply-adds of signs a second by counting bits; `launch_us`:
    of one launch by the host; `processors`: multiprocessors.
    """

    name: str
    bytes: float
    s8: float
    f16: float
    launch_us: float
    f32: float = 33e12
    popcount: float = 124e12
    l2: float = 1.1e13
    processors: int = 132


# From the makers' data sheets, dense; the second-level caches' are estimates. Nothing of it is measured here.
A100 = Peak("A100", 2.0e12, 312e12, 156e12, 2.0, 9.7e12, 78e12, 5e12, 108)
H200 = Peak("H200", 4.8e12, 989e12, 494.5e12, 2.0)
B200 = Peak("B200", 8.0e12, 2250e12, 1125e12, 2.0, 37e12, 140e12, 2e13, 148)


def peak_of(capability: int, name: str = "", processors: int = 0) -> Peak:
    """The peaks of the family a compute capability (80, 90, 100) belongs to, with a device's own name and size."""
    known = A100 if capability < 90 else H200 if capability < 100 else B200
    return Peak(**{**known.__dict__, "name": name or known.name, "processors": processors or known.processors})


@dataclass(frozen=True)
class Cost:
    """Of one launch: its programs' multiply-adds with padding, the unit they run on, bytes they ask the cache for,
    bytes of all tensors moved once, and the multiply-adds without padding."""

    programs: int
    macs: int
    unit: str
    asked: int
    moved: int
    needed: int

    def least(self, peak: Peak) -> float:
        """Seconds that no tile can go below: the larger of arithmetic without padding and each tensor moved once."""
        return max(self.needed / getattr(peak, self.unit), self.moved / peak.bytes)

    def seconds(self, peak: Peak) -> float:
        """The larger of arithmetic (whole rounds of all multiprocessors) and bytes, after the launch itself."""
        rounds = -(-self.programs // peak.processors) * peak.processors
        arithmetic = rounds / self.programs * self.macs / getattr(peak, self.unit)
        return max(arithmetic, self.asked / peak.l2, self.moved / peak.bytes) + peak.launch_us * 1e-6


def cost_of(launch: Launch) -> Cost:
    """What a launch costs, from its arguments alone."""
    args, meta = launch.args, launch.meta
    programs = 1
    for g in launch.grid:
        programs *= g
    bm, bn = meta.get("BM", 1), meta.get("BN", 1)
    name = launch.kernel.partition(".")[2]
    sums, unit, weights, picture = 0, "f32", 4.0, 4.0  # taps a result, and bytes of a weight and of a picture's value
    if name == "conv_i8":
        sums, unit, weights, picture = args["KPAD"], "s8", 0.5 if meta["W4"] else 1.0, 1.0
    elif name == "bconv_dot":
        sums = meta["KH"] * meta["KW"] * -(-args["WC"] // meta["BW"]) * meta["BW"] * 32
        unit, weights, picture = "s8", 1.0, 1 / 8
    elif name == "bconv_popcount":
        sums, unit, weights, picture = meta["KH"] * meta["KW"] * args["WC"] * 32, "popcount", 1 / 8, 1 / 8
    elif name == "conv_f32":
        sums = meta["C"] * meta["KH"] * meta["KW"]
    elif name in ("depthwise_i8", "avg_pool2d"):
        taps = meta["KH"] * meta["KW"]
        moved = _moved(launch)
        return Cost(programs, programs * bm * bn * taps, "f32", moved + programs * bm * bn * taps, moved,
                    _results(launch) * taps)  # fmt: skip
    elif name == "move_channels":  # of larger pictures, maybe: some channels alone
        values = args["P"] * args["count"]
        moved = values * (args["x_ptr"].element_size() + args["y_ptr"].element_size())
        return Cost(programs, values, "f32", moved, moved, values)
    asked = int(programs * sums * (bm * picture + bn * weights))
    moved = _moved(launch)
    taps = meta["C"] * meta["KH"] * meta["KW"] if name == "conv_i8" else max(1, sums)
    return Cost(programs, programs * bm * bn * max(1, sums), unit, asked + moved, moved, _results(launch) * taps)


def _results(launch: Launch) -> int:
    """How many values a launch makes."""
    a = launch.args
    if "P" in a:
        return int(a["P"] * a.get("O", a.get("count", 1)))
    rows, columns = a.get("HP", a.get("HO", 1)), a.get("WP", a.get("WO", 1))
    return int(a.get("N", 1) * rows * columns * a.get("O", 1))


def _moved(launch: Launch) -> int:
    """Bytes of all tensors of a launch, each once."""
    found: dict[int, int] = {}

    def see(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[value.data_ptr()] = max(found.get(value.data_ptr(), 0), value.numel() * value.element_size())
        elif isinstance(value, tuple):
            for v in value:
                see(v)

    for value in launch.args.values():
        see(value)
    return sum(found.values())

"""Which tile a layer's kernel takes: candidates, their order on paper, the clock of a device, and what it once said.

Without a device the first candidate on paper is taken, and the report says so. A candidate that spills registers or
needs more shared memory than there is, is not taken where code can be compiled (`objections`); where all are so, the
default is, it is not kept, and the report says so.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqc.backends.triton import masks
from vqc.backends.triton.binary import BinaryConvolution
from vqc.backends.triton.convolution import Convolution
from vqc.backends.triton.environment import ARCHITECTURES, SHARED_LIMIT, Place, need_triton
from vqc.backends.triton.launch import Launch, run
from vqc.backends.triton.roofline import H200, Peak, cost_of, peak_of
from vqc.backends.triton.tiles import TILE, Tile, power_above

Clock = Callable[[Callable[[], None]], float]  # seconds of a call
Objections = Callable[[Launch], str | None]
TRIED = 8  # candidates that are measured: the best on paper
VERSION = 1


def candidates(layer: Any) -> list[Tile]:
    """Tiles for a layer with sums, the default first. BK stays: weights are packed for it."""
    default = tile_of(layer)
    rows: tuple[int, ...]
    if isinstance(layer, Convolution) and not layer.depthwise or isinstance(layer, BinaryConvolution):
        bits = layer.epilogue.signs is not None
        groups = layer.geometry.groups
        wide = power_above(layer.outputs // groups, 32 if bits else 16, 128)
        rows = (TILE[0] * TILE[1],) if layer.masked else (32, 64, 128, 256)
        columns = [n for n in (16, 32, 64, 128, 256) if (32 if bits else 16) <= n <= wide]
        found = [Tile(m, n, default.bk, w, s) for m in rows for n in columns for w in (4, 8) for s in (2, 3, 4)
                 if m * n <= 128 * 256 and m * n >= 32 * 32 * w // 8]  # fmt: skip
    else:
        masked = getattr(layer, "masked", False)
        rows = (default.bm,) if masked else (default.bm // 2, default.bm, 2 * default.bm)
        found = [replace(default, bm=m, warps=w) for m in rows for w in (2, 4, 8) if m >= 8]
    return [default, *(t for t in found if t != default)]


def tile_of(layer: Any) -> Tile:
    """The tile of a layer; of a transposed convolution, of its first part."""
    return layer.parts[0].tile if isinstance(layer, Convolution) else layer.tile


def with_tile(layer: Any, tile: Tile) -> Any:
    """The same layer with another tile; its BK stays."""
    made = copy.copy(layer)
    if isinstance(layer, Convolution):
        made.parts = [replace(p, tile=replace(tile, bk=p.tile.bk)) for p in layer.parts]
    else:
        made.tile = replace(tile, bk=layer.tile.bk)
    return made


def example_of(layer: Any) -> tuple[Any, ...]:
    """Arguments of `layer.launches`: a picture, the epilogue's operands, and a mask that is true everywhere."""
    g = torch.Generator().manual_seed(0)
    device = layer.device
    if isinstance(layer, (Convolution, BinaryConvolution)):
        (n, c, h, w), out, o = layer.geometry.shape, layer.geometry.out, layer.outputs
    else:
        n, c, h, w = layer.shape
        _, o, *out = getattr(layer, "out", layer.shape)
    if isinstance(layer, Convolution):
        x = torch.randint(0, 127, (n, h, w, c), generator=g).to(torch.uint8 if layer.unsigned else torch.int8)
    elif isinstance(layer, BinaryConvolution):
        x = torch.randint(0, 2**31 - 1, (n, h, w, layer.words), generator=g).to(torch.int32)
    else:
        x = torch.rand((n, h, w, c), generator=g)
    places = {"full": (n, o, *out), "plane": (n, 1, *out), "image": (n, o, 1, 1), "channel": (o,), "one": (1,)}
    given = [s for s in layer.epilogue.steps if isinstance(s.operand, int)]
    operands = [torch.rand(places[s.place], generator=g).to(device) for s in given]
    operands += [torch.rand((n, *out, 2), generator=g).to(device) for _ in getattr(layer, "more", ())]
    x = x.to(device) if isinstance(layer, BinaryConvolution) else x.to(device).permute(0, 3, 1, 2)
    if not getattr(layer, "masked", False):
        return x, operands
    _, plain, listed = masks.launch_of(torch.ones((n, 1, *out), dtype=torch.bool, device=device))
    listed[0].copy_(torch.arange(listed[0].numel()))
    listed[1].fill_(listed[0].numel())
    return x, operands, plain, listed


@cache
def kernels_hash() -> str:
    """A hash of all kernels' source and of Triton's version: what was measured before a change counts no more."""
    digest = hashlib.sha256(need_triton().__version__.encode())
    for path in sorted((Path(__file__).parent / "kernels").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(launches: Sequence[Launch], gpu: str) -> str:
    """What a choice is kept under: the GPU's name, the kernels' hash, and everything a launch says but its tile."""

    def shape(value: Any) -> Any:
        if isinstance(value, Tensor):
            return [str(value.dtype), list(value.shape)]
        return [shape(v) for v in value] if isinstance(value, tuple) else value

    said = [[made.kernel, {k: shape(v) for k, v in made.args.items()},
             {k: shape(v) for k, v in made.meta.items() if k not in ("BM", "BN")}] for made in launches]  # fmt: skip
    return hashlib.sha256(json.dumps([VERSION, gpu, kernels_hash(), said], sort_keys=True).encode()).hexdigest()


class Choices:
    """Choices kept in a folder, a file each, written beside and renamed; a file that cannot be read is passed over with
    a warning, and so is a folder that cannot be written."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, key: str, among: Sequence[Tile]) -> dict[str, Any] | None:
        """The entry of a key, or None; one whose tile is not `among` the layer's candidates is passed over as well."""
        path = self.folder / f"{key}.json"
        try:
            entry = json.loads(path.read_text())
            tile = Tile(**entry["tile"])
            if entry["key"] != key or not isinstance(entry["measured"], bool):
                raise ValueError("it is of another layer")
            if tile not in among or any(type(n) is not int for n in astuple(tile)):
                raise ValueError(f"{tile} is no candidate")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as e:
            warnings.warn(f"{path} is no choice of a tile ({e}); it is made anew", stacklevel=2)
            return None
        return entry

    def write(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an entry."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "w") as part:
                json.dump({"key": key, **entry}, part)
            os.replace(name, self.folder / f"{key}.json")
        except OSError as e:
            warnings.warn(f"the choice of a tile is not kept: {e}", stacklevel=2)


def choices_folder() -> Path:
    """`triton` in $VQC_CACHE, or in ~/.cache/vqc."""
    return Path(os.environ.get("VQC_CACHE") or Path.home() / ".cache" / "vqc") / "triton"


@dataclass
class Tuner:
    """Chooses tiles. clock: None without a device; objections: None where no code can be compiled; kept: None: nowhere.

    `found`: how many layers were chosen by what ("measured", "predicted", "kept", "by default .."); `refused`:
    candidates with an objection, and it.
    """

    peak: Peak
    clock: Clock | None = None
    objections: Objections | None = None
    kept: Choices | None = None
    found: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def best(self, layer: Any) -> Any:
        """The layer with its best tile; a layer without tiles as it is."""
        if not isinstance(layer, (Convolution, BinaryConvolution)) and not hasattr(layer, "tile"):
            return layer
        given = example_of(layer)
        key = key_of(layer.launches(*given)[0], self.peak.name)
        among = candidates(layer)
        entry = None if self.kept is None else self.kept.read(key, among)
        if entry is not None and (entry["measured"] or self.clock is None):
            return self._take(layer, Tile(**entry["tile"]), "kept")
        order = sorted(among, key=lambda t: self._on_paper(with_tile(layer, t), given))
        allowed = (t for t in order if not self._refuse(with_tile(layer, t), given))
        if self.clock is None:
            tile = next(allowed, None)
        else:
            times = {t: s for t, _ in zip(allowed, range(TRIED), strict=False)
                     if (s := self._seconds(with_tile(layer, t), given)) is not None}  # fmt: skip
            tile = min(times, key=lambda t: times[t]) if times else None
        if tile is None:
            return self._take(layer, tile_of(layer), "by default, for every candidate was refused")
        if self.kept is not None:
            self.kept.write(key, {"tile": asdict(tile), "measured": self.clock is not None, "gpu": self.peak.name})
        return self._take(layer, tile, "predicted" if self.clock is None else "measured")

    def _take(self, layer: Any, tile: Tile, how: str) -> Any:
        self.found[how] = self.found.get(how, 0) + 1
        return with_tile(layer, tile)

    def _on_paper(self, layer: Any, given: tuple[Any, ...]) -> float:
        return sum(cost_of(made).seconds(self.peak) for made in layer.launches(*given)[0])

    def _refuse(self, layer: Any, given: tuple[Any, ...]) -> bool:
        if self.objections is None:
            return False
        for made in layer.launches(*given)[0]:
            reason = self.objections(made)
            if reason is not None:
                self.refused.append(f"{made.kernel} {tile_of(layer)}: {reason}")
                return True
        return False

    def _seconds(self, layer: Any, given: tuple[Any, ...]) -> float | None:
        assert self.clock is not None
        made = layer.launches(*given)[0]
        try:
            return self.clock(lambda: _run_all(made))
        except _too_large() as e:
            self.refused.append(f"{made[0].kernel} {tile_of(layer)}: {e}")
            return None

    def said(self) -> list[str]:
        """Lines for a report."""
        counts = ", ".join(f"{n} {how}" for how, n in sorted(self.found.items()))
        lines = [f"tiles on {self.peak.name}: {counts or 'none'}"]
        if self.clock is None:
            lines.append("tiles are the best on paper: there is no GPU to measure them")
        if self.objections is None:
            lines.append("spills and shared memory of tiles are not checked: kernels are interpreted, not compiled")
        return lines + [f"tile refused: {r}" for r in self.refused]


def _run_all(launches: Sequence[Launch]) -> None:
    for made in launches:
        run(made)


def _too_large() -> type[Exception]:
    need_triton()
    from triton.runtime.errors import OutOfResources

    return OutOfResources


def compiled_objections(arch: str) -> Objections:
    """Objections from machine code for an architecture of `environment.ARCHITECTURES`."""
    from vqc.backends.triton.aot import compile_launch

    def why(made: Launch) -> str | None:
        code = compile_launch(made, arch)
        if code.shared > SHARED_LIMIT[arch]:
            return f"{code.shared} bytes of shared memory of {SHARED_LIMIT[arch]}"
        return f"{code.spills} bytes of registers are spilled" if code.spills else None

    return why


def known_arch(capability: int) -> str:
    """The latest tested architecture that is not newer than a device: whose code is looked at for it."""
    known = [int(a.removeprefix("sm_")) for a, v in ARCHITECTURES.items() if v[0] == "cuda"]
    return f"sm_{max(k for k in known if k <= max(capability, min(known)))}"


def device_clock(device: torch.device, rounds: int = 20) -> Clock:
    """Median seconds of a call by CUDA's events, after three calls that warm up."""

    def seconds(call: Callable[[], None]) -> float:
        for _ in range(3):
            call()
        times = []
        for _ in range(rounds):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record(torch.cuda.current_stream(device))
            call()
            end.record(torch.cuda.current_stream(device))
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3)
        return statistics.median(times)

    return seconds


def tuner_for(place: Place) -> Tuner:
    """The tuner of this machine: with a GPU by its clock and its compiled code, in the interpreter on paper alone."""
    if place.interpreted:
        return Tuner(H200)
    major, minor = torch.cuda.get_device_capability(place.device)
    number = 10 * major + minor
    known = torch.cuda.get_device_properties(place.device)
    peak = peak_of(number, known.name, known.multi_processor_count)
    return Tuner(peak, device_clock(place.device), compiled_objections(known_arch(number)), Choices(choices_folder()))

"""One row of the fidelity tables: a network quantized in one way, played on several clips, beside its float self.

`python -m benchmarks.fidelity` runs this module once a row, in a process of its own, so that a row that crashes or is
killed is lost alone, and its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.machine import Record
from benchmarks.networks import CASES, Case, truth
from vqc import metrics, video
from vqc.calibration import at_speeds
from vqc.errors import TargetError, UnsupportedOp
from vqc.learning.scenes import matting_scenes
from vqc.program import Program
from vqc.recipes import RECIPES
from vqc.report.network import Network, network
from vqc.report.session import (
    Clips,
    Engine,
    Playback,
    eager_engine,
    judge,
    play,
    program_engine,
    recipe_program,
    strip_rows,
)
from vqc.report.tables import write_text
from vqc.video.composites import drawn, lifted, placed


@dataclass(frozen=True)
class Row:
    """One way to quantize. `kind`: "recipe", "nearest" (rounding to nearest after a range rule) or "peer".

    `recipe`: a recipe's name or a pipeline's text; `packages` that a peer needs.
    """

    name: str
    kind: str
    recipe: str = ""
    packages: tuple[str, ...] = ()


METHODS = ("minmax", "percentile", "mse")
BITS = ((8, 8), (4, 8), (4, 4))  # of weights and activations


def nearest(method: str, weights: int, activations: int) -> str:
    """The pipeline of rounding to nearest: the layers and pictures of recipe `int8`, one range a tensor by `method`, no
    wider than the rule says."""
    options = {"weight_bits": weights, "activation_bits": activations, "method": method, "granularity": "tensor",
               "headroom": 0.0}  # fmt: skip
    given = [f"{k}={v}" for k, v in options.items() if v not in (8, "minmax")]
    return RECIPES["int8"].pipeline.replace("observe,quantize", f"observe,quantize{{{','.join(given)}}}")


_NNCF = ("onnx", "onnxscript", "openvino", "nncf")


def rows() -> dict[str, Row]:
    """All rows by name: every calibrated recipe, rounding to nearest, the peers."""
    found = [Row(n, "recipe", n) for n, r in RECIPES.items() if r.needs_calibration and not n.endswith("-full")]
    found += [Row(f"nearest-{m}-w{w}a{a}", "nearest", nearest(m, w, a)) for w, a in BITS for m in METHODS]
    found.append(Row("onnxruntime-static", "peer", packages=("onnx", "onnxscript", "onnxruntime")))
    found += [
        Row(f"nncf-{kind}", "peer", packages=_NNCF) for kind in ("performance", "mixed", "accurate-bias", "no-bias")
    ]
    found.append(Row("torchao-pt2e", "peer", packages=("torchao",)))
    return {r.name: r for r in found}


# ---- what is played ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A clip [T,3,H,W] to be played. `part`: "calibration", "held-out", "drawn" or "lifted"; `alpha` [T,1,H,W] of
    composites: the true matte.
    """

    clip: str
    part: str
    frames: Tensor
    alpha: Tensor | None = None


COMPOSITES = 24  # frames of a composite at most
STRETCHES = 4  # of a calibration clip: scenes and poses differ along it
SPEEDS = (1, 2, 4, 8)


def trials(case: Case, net: Network, count: int, quick: bool) -> Iterator[Trial]:
    """The held-out clip; unless `quick` also the first calibration clip, and composites for a matting network.

    One after the other, so that none is in memory while a row is made.
    """
    held = _read(case.clip, count + net.reach, case.size)
    yield Trial(case.clip, "held-out", held)
    if quick:
        return
    first = case.calibration[0]
    yield Trial(first, "calibration", _read(first, count + net.reach, case.size))
    if net.entry is None or net.entry.kind != "matting":
        return
    frames = min(count, COMPOSITES)
    for seed in (1, 2):
        made = drawn(frames, case.size, seed)
        yield Trial(f"drawn {seed}", "drawn", made.frames, made.alpha)
    made = placed(_person(net, held[:12]), frames, case.size, 5, _still(case.size))
    yield Trial(f"{case.clip} on a still", "lifted", made.frames, made.alpha)


def _read(name: str, count: int, size: tuple[int, int]) -> Tensor:
    return video.read_clip(video.clip(name), count, size)


def _stretches(name: str, count: int, reach: int, size: tuple[int, int]) -> list[Tensor]:
    """Stretches of a known clip with inputs for `count` steps together, spread over its length."""
    each = max(2, count // STRETCHES) + reach
    last = video.CLIPS[name].frames - each
    starts = [last * i // (STRETCHES - 1) for i in range(STRETCHES)]
    return [video.read_clip(video.clip(name), each, size, start=start) for start in starts]


def _at_speeds(names: Sequence[str], count: int, reach: int, size: tuple[int, int]) -> list[Tensor]:
    """Stretches of known clips, two of each at each of the speeds, all calm ones first."""
    clips = [_read(n, video.CLIPS[n].frames, size) for n in names]
    return at_speeds(clips, SPEEDS, frames=max(2, count // 6) + reach, stretches=2)


def _scenes(net: Network, clips: Sequence[Tensor]) -> list[Tensor]:
    """Stretches, people elsewhere and drawn figures, of half as many frames each as the stretches have."""
    program = recipe_program(net, "float")
    larger = (net.size[0] + net.size[0] // 5, net.size[1] + net.size[1] // 5)
    places = [("bikes", 10), ("bigbuckbunny", 0), ("bikes", 150), ("bigbuckbunny", 120)]  # none is played
    stills = [video.read_clip(video.clip(name), 1, larger, start=start)[0] for name, start in places]
    made = matting_scenes(program, clips, backgrounds=stills, frames=max(2, clips[0].shape[0] // 2))
    return [torch.cat(clip) for clip in made.clips]


def _person(net: Network, clip: Tensor) -> Tensor:
    """Who is seen in a clip's last frame, cut out by the float network itself."""
    engine = eager_engine(net)
    engine.reset()
    assert net.foreground is not None
    colours, alpha = net.foreground, net.picture

    def matte(frame: Tensor) -> tuple[Tensor, Tensor]:
        leaves = engine.step((frame,))
        return leaves[colours], leaves[alpha]

    return lifted(matte, clip)


def _still(size: tuple[int, int]) -> Tensor:
    """A picture without people, a fifth larger than a frame."""
    larger = (size[0] + size[0] // 5, size[1] + size[1] // 5)
    return video.read_clip(video.clip("bigbuckbunny"), 1, larger, start=60)[0]


# ---- how it is made ------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """An engine, what computes it, and what should be known of it."""

    engine: Engine
    by: str
    notes: list[str]


def make(row: Row, net: Network, calibration: Sequence[Tensor], folder: Path, target: str = "native") -> Made:
    """The network quantized as the row says, and its engine; a peer's files go into `folder`, as long as it is used.

    Raises what the recipe, or the peer, raises.
    """
    if row.kind != "peer":
        return compiled(recipe_program(net, row.recipe, calibration), row.name, target)
    given = peers.feeds(net, calibration)
    if row.name == "torchao-pt2e":
        engine = peers.array_engine(net, row.name, peers.pt2e_call(net, given), 0)
        return Made(engine, f"torchao {version('torchao')} in PyTorch", [])
    path = peers.export_onnx(peers.Flat(net), (*net.example, *peers.zero_states(net)), folder / "float.onnx")
    if row.name == "onnxruntime-static":
        kinds = None if net.states else peers.LAYERS
        file = peers.ort_quantized(path, given, kinds)
        engine = peers.array_engine(net, row.name, peers.ort_call(file, 1), file.stat().st_size)
        return Made(engine, f"onnxruntime {version('onnxruntime')}", [])
    preset = "mixed" if row.name == "nncf-mixed" else "performance"
    bias = {"nncf-accurate-bias": "accurate", "nncf-no-bias": "none"}.get(row.name, "fast")
    model = peers.ov_quantized(path, given, preset, bias)
    engine = peers.array_engine(net, row.name, peers.ov_call(model, 1), peers.ov_bytes(model, folder))
    return Made(engine, f"OpenVINO {version('openvino')}, NNCF {version('nncf')}", [])


def compiled(program: Program, name: str, target: str = "native") -> Made:
    """An engine of a Program in C, whose integers are the reference's; on the reference itself where C declines."""
    try:
        engine = program_engine(program, name, target)
    except (TargetError, UnsupportedOp) as error:
        return Made(program_engine(program, name, "reference"), "reference", [f"{target} declined: {error.what}"])
    report = engine.report
    eager = [] if report is None else [str(f) for f in report.fallbacks]
    return Made(engine, f"C, {target}" if target != "reference" else target, eager)


# ---- the row -------------------------------------------------------------------------------------------------------


def peak_mb() -> float:
    """The largest resident size of this process so far, in MB (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(row: Row, net: Network, calibration: Clips, given: Iterable[Trial], reference: Callable[[Trial], Playback],
            strips: Path | None = None, target: str = "native") -> Record:  # fmt: skip
    """Make the row and play every clip: distances to the float network, and of both to the truth where it is known.

    `seconds` by the clock, `cpu_seconds` of this process, and `peak_mb` are those of making it: capture, calibration,
    recipe, loading or compiling; not of playing. The compiler is another process: its work is in `seconds` alone.
    """
    began, busy = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        clips = [calibration] if isinstance(calibration, Tensor) else calibration
        made = make(row, net, clips, Path(folder), target)
        seconds, busy, peak = time.perf_counter() - began, time.process_time() - busy, peak_mb()
        found = [_played(made, net, row, trial, reference(trial), strips) for trial in given]
    return {"model": net.name, "size": f"{net.size[0]}x{net.size[1]}", "row": row.name, "kind": row.kind,
            "status": "ok", "seconds": round(seconds, 1), "cpu_seconds": round(busy, 1), "peak_mb": round(peak),
            "computed_by": made.by, "weight_bytes": made.engine.weight_bytes, "notes": made.notes,
            "calibration_steps": sum(len(clip) - net.reach for clip in clips), "trials": found}  # fmt: skip


def _played(made: Made, net: Network, row: Row, trial: Trial, plain: Playback, strips: Path | None) -> Record:
    """One trial's part of a record; its pictures go into `strips`. `plain`: how the float network plays it."""
    played = play(made.engine, net, trial.frames)
    if strips is not None:
        pictures = strip_rows(trial.frames, plain, played, offset=net.reach // 2)
        strips.mkdir(parents=True, exist_ok=True)
        video.write_png(strips / f"{net.name}-{row.name}-{trial.clip.replace(' ', '-')}.png", video.strip(pictures))
    return {"clip": trial.clip, "part": trial.part, "steps": len(played.pictures),
            "metrics": _rounded(judge(played, plain)), "truth": _rounded(_truth(net, trial, played)),
            "float_truth": _rounded(_truth(net, trial, plain))}  # fmt: skip


def _truth(net: Network, trial: Trial, played: Playback) -> dict[str, float]:
    if trial.alpha is None:
        return truth(net, trial.frames, played)
    a = played.clip.clamp(0, 1)
    return {"MAD x1e3": metrics.mad(a, trial.alpha), "MSE x1e3": metrics.mse(a, trial.alpha),
            "dtSSD x1e2": metrics.dtssd(a, trial.alpha)}  # fmt: skip


def _rounded(values: dict[str, float]) -> dict[str, float | None]:
    return {k: round(v, 6) if math.isfinite(v) else None for k, v in values.items()}


def float_playback(net: Network, trial: Trial, cache: Path) -> Playback:
    """How the float network plays a trial; kept in `cache` for the rows to come."""
    file = cache / f"{net.name}-{trial.clip.replace(' ', '-')}-{trial.frames.shape[0]}.pt"
    if file.exists():
        return Playback("float", 0, list(torch.load(file, weights_only=True)))
    played = play(eager_engine(net), net, trial.frames)
    beside = file.with_suffix(".part")
    torch.save(played.clip, beside)
    beside.rename(file)
    return played


def main(argv: list[str] | None = None) -> None:
    """Measure one row and write its record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=[c.model for c in CASES])
    parser.add_argument("row")
    parser.add_argument("--pipeline", default="", help="the row is this pipeline")
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scenes", action="store_true")
    parser.add_argument("--speeds", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    parser.add_argument("--strips", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    case = next(c for c in CASES if c.model == given.model)
    row = Row(given.row, "recipe", given.pipeline) if given.pipeline else rows()[given.row]
    net = network(case.model, case.size)
    count = min(given.frames, case.most)
    if given.speeds:
        calibration = _at_speeds(case.calibration, count, net.reach, case.size)
    else:
        calibration = [c for n in case.calibration for c in _stretches(n, count, net.reach, case.size)]
    if given.scenes:
        calibration = _scenes(net, calibration)
    record = measure(row, net, calibration, trials(case, net, count, given.quick),
                     lambda trial: float_playback(net, trial, given.cache), given.strips)  # fmt: skip
    how = "scenes of " if given.scenes else f"speeds {', '.join(map(str, SPEEDS))} of " if given.speeds else ""
    record["calibration"] = how + ", ".join(case.calibration)
    write_text(given.answer, json.dumps(record))


if __name__ == "__main__":
    main()

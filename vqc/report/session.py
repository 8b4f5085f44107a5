"""Clips played by engines: eager PyTorch and compiled programs, the state carried, every step timed and judged."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import vqc
from vqc import metrics
from vqc.backends import C_TARGETS
from vqc.distributed import Shard
from vqc.errors import CaptureError, VqcError
from vqc.executable import CompileReport, Executable
from vqc.program import Program
from vqc.report.network import Network

Progress = Callable[[str, int, int], None]
Step = tuple[Tensor, ...]
Clips = Tensor | Sequence[Tensor]


@dataclass
class Engine:
    """One way to run a network. `reset()` begins a video; `step(inputs)` gives the leaves of the user's result."""

    name: str
    step: Callable[[Step], Sequence[Any]]
    reset: Callable[[], None]
    weight_bytes: int
    program: Program | None = None
    report: CompileReport | None = None
    executable: Executable | None = None


@dataclass
class Playback:
    """A clip as one engine played it: the judged picture of every step [C,H,W], the other kept leaves, times in ms."""

    engine: str
    weight_bytes: int
    pictures: list[Tensor] = field(default_factory=list)
    foregrounds: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """Median time of a step in ms; the first two, which warm caches, are left out when there are enough."""
        return statistics.median(self.times[2:] if len(self.times) > 4 else self.times)

    @property
    def clip(self) -> Tensor:
        """All pictures, [T,C,H,W]."""
        return torch.stack(self.pictures)


def eager_engine(net: Network, name: str | None = None) -> Engine:
    """The network as it is, in PyTorch. Its module is copied for every video, so that buffers start as they were.

    A network out of a file is what the file holds: its program, operator for operator.
    """
    running: dict[str, Any] = {}

    def reset() -> None:
        running["module"] = copy.deepcopy(net.module)
        running["state"] = {}

    def step(inputs: Step) -> Sequence[Any]:
        with torch.no_grad(), _told(net):
            leaves = pytree.tree_leaves(running["module"](*inputs, **running["state"]))
        running["state"] = {argument: leaves[index] for argument, index in net.states.items()}
        return leaves

    tensors = [*net.module.parameters(), *net.module.buffers()]
    size = sum(x.numel() * x.element_size() for x in tensors)
    if net.program is not None:
        return Engine(name or "PyTorch, the file's program", step, reset, constant_bytes(net.program))
    return Engine(name or "PyTorch eager, float32", step, reset, size)


def compiled_engine(net: Network, recipe: str, target: str, name: str | None = None, calibration: Clips | None = None,
                    progress: Progress | None = None, **options: Any) -> Engine:  # fmt: skip
    """The network captured, put through a recipe and compiled for a target. `calibration`: one clip [T,3,H,W]
    in [0,1], or several.

    Raises whatever `vqc.capture`, `vqc.apply` and `vqc.compile` raise.
    """
    program = recipe_program(net, recipe, calibration, progress)
    return program_engine(program, name or f"vqc {target}, {recipe}", target, **options)


def captured(net: Network) -> Program:
    """The network's program, with all that the network says of its states, ranges and frames; a file's own."""
    if net.program is not None:
        return net.program.clone()
    try:
        return vqc.capture(net.module, net.example, states=dict(net.states), known_ranges=net.known_ranges,
                           frames=net.frames)  # fmt: skip
    except VqcError:
        raise
    except Exception:  # the user's own code ran in there: if it fails by itself as well, that is what is told
        with torch.no_grad(), _told(net):
            copy.deepcopy(net.module)(*net.example)
        raise


@contextmanager
def _told(net: Network) -> Iterator[None]:
    """Whatever the network's own code raises becomes a CaptureError."""
    try:
        yield
    except VqcError:
        raise
    except Exception as e:
        raise CaptureError(f"the network {net.name} fails on frames", why=f"{type(e).__name__}: {e}",
                           way_out="run it by itself on its example, as in module(*example); "
                                   "`vqc --debug` shows where it fails") from e  # fmt: skip


def recipe_program(net: Network, recipe: str, calibration: Clips | None = None, progress: Progress | None = None,
                   shard: Shard | None = None, workdir: Path | None = None, seed: int = 0) -> Program:  # fmt: skip
    """The network captured and put through a recipe, with arguments as those of `compiled_engine` and `vqc.apply`."""
    program = captured(net)
    clips = None if calibration is None else [net.steps(clip) for clip in as_list(calibration)]
    return vqc.apply(program, recipe, calibration=clips, progress=progress, shard=shard, workdir=workdir, seed=seed)


def program_engine(program: Program, name: str, target: str, **options: Any) -> Engine:
    """An engine of a Program, compiled for a target."""
    executable = vqc.compile(program, target, **options)
    stream = vqc.Stream(executable)

    def step(inputs: Step) -> Sequence[Any]:
        return pytree.tree_leaves(stream(*inputs))

    size = executable.report.weight_bytes or constant_bytes(program)
    return Engine(name, step, stream.reset, size, program, executable.report, executable)


def as_list(clips: Clips) -> list[Tensor]:
    """One clip or several, as a list."""
    return [clips] if isinstance(clips, Tensor) else list(clips)


def use_threads(threads: int, target: str) -> dict[str, int]:
    """Let PyTorch compute with this many threads; the options that make a target do the same."""
    torch.set_num_threads(threads)
    return {"threads": threads} if target in C_TARGETS or target.split(":")[0] in ("onnx", "openvino") else {}


def constant_bytes(program: Program) -> int:
    """Bytes of all constants of a Program."""
    return sum(x.numel() * x.element_size() for x in program.constants.values() if isinstance(x, Tensor))


def play(engine: Engine, net: Network, clip: Tensor, progress: Progress | None = None, *, onto: Playback | None = None
         ) -> Playback:  # fmt: skip
    """Play a clip [T,3,H,W] in [0,1] from a reset; one step after the other, each timed by the wall clock.

    `onto`: a playback that this clip goes on from: the engine is not reset.
    """
    played = onto or Playback(engine.name, engine.weight_bytes)
    steps = net.steps(clip)
    if onto is None:
        engine.reset()
    for t, inputs in enumerate(steps):
        start = time.perf_counter()
        leaves = engine.step(inputs)
        played.times.append((time.perf_counter() - start) * 1e3)
        played.pictures.append(_picture(leaves, net.picture, net.name))
        if net.foreground is not None:
            played.foregrounds.append(_picture(leaves, net.foreground, net.name))
        if progress is not None:
            progress(f"run {engine.name}", t + 1, len(steps))
    return played


def _picture(leaves: Sequence[Any], index: int, name: str) -> Tensor:
    found = leaves[index] if index < len(leaves) else None
    if isinstance(found, Tensor) and found.ndim == 5:
        found = found[:, -1]  # of a window of frames, the newest
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[1] not in (1, 3):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise vqc.errors.InputError(f"result {index} of {name} is no picture", why=f"it is {shape}",
                                    way_out="let the network return [1,1,H,W] or [1,3,H,W] there")  # fmt: skip
    return found[0].detach().float()


def is_matte(played: Playback) -> bool:
    """A picture of one channel is judged as a matte, one of three as a picture."""
    return played.pictures[0].shape[0] == 1


def judge(played: Playback, reference: Playback) -> dict[str, float]:
    """How far a playback is from another: MAD x1e3, MSE x1e3, dtSSD x1e2 of mattes; PSNR, SSIM of pictures; drift."""
    a, b = played.clip.clamp(0, 1), reference.clip.clamp(0, 1)
    found: dict[str, float] = {}
    if is_matte(played):
        found |= {"MAD x1e3": metrics.mad(a, b), "MSE x1e3": metrics.mse(a, b), "dtSSD x1e2": metrics.dtssd(a, b)}
    else:
        found["PSNR dB"] = metrics.psnr(a, b)
        if min(a.shape[-2:]) >= 11:
            found["SSIM"] = metrics.ssim(a, b, on="rgb")
    found["drift dB/frame"] = metrics.drift(played.clip, reference.clip).slope
    return found


def rows(played: Sequence[Playback], reference: Playback) -> list[dict[str, str]]:
    """One table row a playback: engine, ms a frame, distance to the reference, size of the weights."""
    result = []
    for p in played:
        row = {"engine": p.engine, "ms a frame": f"{p.ms:.1f}"}
        row |= {k: _number(v) for k, v in judge(p, reference).items()} if p is not reference else {}
        result.append(row | {"weights MB": f"{p.weight_bytes / 1e6:.2f}"})
    return result


def frame_rows(played: Playback, reference: Playback) -> list[dict[str, str]]:
    """One table row a frame: MAD and MSE of a matte or PSNR of a picture, SQNR, and both times."""
    result = []
    for t, (a, b) in enumerate(zip(played.pictures, reference.pictures, strict=True)):
        a, b = a.clamp(0, 1), b.clamp(0, 1)
        row = {"frame": str(t)}
        if is_matte(played):
            row |= {"MAD x1e3": _number(metrics.mad(a[0], b[0])), "MSE x1e3": _number(metrics.mse(a[0], b[0]))}
        else:
            row["PSNR dB"] = _number(metrics.psnr(a, b))
        row["SQNR dB"] = _number(metrics.sqnr_db(a, b))
        result.append(row | {"ms": f"{played.times[t]:.1f}", "reference ms": f"{reference.times[t]:.1f}"})
    return result


def strip_rows(clip: Tensor, reference: Playback, played: Playback, count: int = 4, offset: int = 0
               ) -> list[list[Tensor]]:  # fmt: skip
    """Rows of pictures for `vqc.video.strip`: the frame, the reference's picture, the other's, |difference| x10."""
    total = len(played.pictures)
    chosen = sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(min(count, total))})
    result = []
    for t in chosen:
        a, b = reference.pictures[t], played.pictures[t]
        result.append([clip[t + offset], a, b, ((a - b).abs() * 10).clamp(0, 1)])
    return result


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) and abs(value) < 1 else f"{value:.2f}"

"""Whether Triton kernels can run here: the package, the interpreter, the device; typed errors that name the way out."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

import torch

from vqc.errors import InputError, TargetError

OLDEST = 80  # mma.sync of s8 with m16n8k32, and asynchronous copies into shared memory, begin with sm_80
FIRST_TRITON = (3, 7)  # as in pyproject.toml
INSTALL = "pip install 'vqc[triton]' (Linux); on a machine with an NVIDIA GPU, PyTorch's own build brings it"
# What compilation ahead of time is tested for. (backend, architecture, threads in a warp).
ARCHITECTURES: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# Bytes of shared memory one program may use.
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}


@dataclass(frozen=True)
class Place:
    """Where a program runs: a torch device, and whether Triton interprets its kernels there."""

    device: torch.device
    interpreted: bool


def need_triton() -> Any:
    """The triton module; TargetError when it is not installed, or older than these kernels need."""
    if importlib.util.find_spec("triton") is None:
        raise TargetError("the package triton is not installed", why="the target's kernels are written in it",
                          way_out=INSTALL)  # fmt: skip
    import triton

    release = tuple(int(n) for n in re.findall(r"\d+", triton.__version__)[:2])
    if release < FIRST_TRITON:
        raise TargetError(f"triton {triton.__version__} is too old for the target's kernels",
                          why="before 3.7 it compiles not all of them, fuses products and sums on sm_100, which gives "
                          "other roundings than the reference, and its interpreter fails with NumPy 2.4",
                          way_out="use PyTorch 2.12 or newer, whose builds bring 3.7 (2.11 asks for 3.6), or target "
                          "inductor")  # fmt: skip
    return triton


def interpreting() -> bool:
    """Whether TRITON_INTERPRET=1 was set when the kernels were imported: they are then Python functions."""
    need_triton()
    from vqc.backends.triton.kernels.pointwise import pointwise

    return type(pointwise).__name__ == "InterpretedFunction"


def architecture(target: str) -> str | None:
    """The architecture in a target's name: "sm_90" of "cuda:sm_90", None of "cuda" and "triton"; TargetError."""
    kind, _, arch = target.partition(":")
    if not arch:
        return None
    if arch not in ARCHITECTURES or (ARCHITECTURES[arch][0] == "hip") != (kind == "hip"):
        old = re.fullmatch(r"sm_(\d+)", arch)
        known = [a for a, v in ARCHITECTURES.items() if (v[0] == "hip") == (kind == "hip")]
        raise TargetError(f"target {target} is not known",
                          why=f"{arch} is older than sm_{OLDEST}, the first one these kernels are for"
                          if old and int(old[1]) < OLDEST else "",
                          way_out="use " + ", ".join(f"{kind}:{a}" for a in known))  # fmt: skip
    return arch


def place_for(target: str) -> Place:
    """Where a compiled program of this target runs; TargetError when nothing here can run it."""
    arch = architecture(target)
    if interpreting():
        return Place(torch.device("cpu"), True)
    if target.partition(":")[0] == "hip":
        raise TargetError(f"target {target} is not run here", why="AMD's code is compiled, and never was run",
                          way_out="use vqc.export")  # fmt: skip
    if not torch.cuda.is_available():
        raise TargetError(f"target {target} needs a GPU and PyTorch sees none",
                          why="this build of PyTorch has no CUDA" if torch.version.cuda is None
                          else "no device was found",
                          way_out="run it on a machine with a GPU; or set TRITON_INTERPRET=1 before Python starts to "
                          "try a small program on the CPU (slow); or use target native")  # fmt: skip
    check_capability(target, arch, torch.cuda.get_device_capability(), torch.cuda.get_device_name())
    return Place(torch.device("cuda", torch.cuda.current_device()), False)


def check_capability(target: str, arch: str | None, capability: tuple[int, int], name: str) -> None:
    """TargetError when a device is too old for the kernels, or another one than the target's name says."""
    number = capability[0] * 10 + capability[1]
    if number < OLDEST:
        raise TargetError(f"target {target} cannot use {name} (sm_{number})",
                          why=f"its kernels need tensor cores for s8 as from sm_{OLDEST} on (A100 and later)",
                          way_out="use target inductor, which knows older GPUs, or a newer GPU")  # fmt: skip
    if arch is not None and arch != f"sm_{number}":
        raise TargetError(f"target {target} does not run on this machine", why=f"{name} is sm_{number}",
                          way_out="use target cuda, which takes the GPU that is here, or vqc.export")  # fmt: skip


def check_memory(needed: int, free: int, name: str) -> None:
    """TargetError when a program's tensors do not fit into what a device has free, both in bytes."""
    if needed > free:
        raise TargetError(
            f"program {name} needs {needed / 1e9:.2f} GB on the GPU, {free / 1e9:.2f} GB are free",
            way_out="use smaller frames or fewer streams, or free memory (torch.cuda.empty_cache())",
        )


def check_device(tensors: Any, place: Place, name: str) -> None:
    """InputError unless every tensor lies on the program's device."""
    for i, x in enumerate(tensors):
        if x.device != place.device:
            raise InputError(f"input {i} of program {name} lies on {x.device}", why=f"it runs on {place.device}",
                             way_out=f"move it: x.to({str(place.device)!r})")  # fmt: skip

"""The backends, and the registry through which the doors find them.

A backend says operator by operator what it can take (`supports`), compiles a Program to run here (`compile`; `ready`
says before there is one whether this machine can), and writes it out to run elsewhere (`export`).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from torch import fx

from vqc.errors import TargetError
from vqc.executable import Executable
from vqc.layers import Layer
from vqc.program import Program

# Those of the C backend; backends/c/targets.py says what each is.
C_TARGETS = (
    "native", "portable", "x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4-vnni", "x86-64-linux", "x86-64-linux-musl",
    "aarch64-linux", "aarch64-linux-musl", "aarch64-linux-gnu", "aarch64-android", "aarch64-macos",
)  # fmt: skip
# A target's name before ":" -> (module, class); modules load on first use so that the core stays light.
TARGETS: dict[str, tuple[str, str]] = {
    "reference": ("vqc.backends.reference", "ReferenceBackend"),
    "inductor": ("vqc.backends.inductor", "InductorBackend"),
    **dict.fromkeys(("triton", "cuda", "hip"), ("vqc.backends.triton", "TritonBackend")),
    "onnx": ("vqc.backends.onnx", "OnnxBackend"),
    "openvino": ("vqc.backends.openvino", "OpenVinoBackend"),
    "pt2": ("vqc.backends.pt2", "Pt2Backend"),
    "tensorrt": ("vqc.backends.tensorrt", "TensorRTBackend"),
    **dict.fromkeys(C_TARGETS, ("vqc.backends.c", "CBackend")),
}


class Backend(ABC):
    """One way to run a Program."""

    name: ClassVar[str]

    def supports(self, program: Program, node: fx.Node, target: str) -> str | None:
        """None when the backend has a kernel for this node on this target, else the reason it has none."""
        raise TargetError(f"backend {self.name} does not say what it supports")

    def ready(self, target: str) -> None:  # noqa: B027 - most have nothing to check
        """Raise the TargetError that `compile` would raise on this machine whatever the program: no compiler, no GPU.

        Cheap, for doors to ask before they calibrate.
        """

    def compile(self, program: Program, target: str, options: Mapping[str, Any]) -> Executable:
        """An Executable that runs on this machine."""
        raise TargetError(f"backend {self.name} cannot run programs here", way_out="use vqc.export")

    def export(self, program: Program, target: str, folder: Path, options: Mapping[str, Any]) -> Path:
        """Write the program for another machine into `folder`; returns the folder."""
        raise TargetError(f"backend {self.name} cannot export", way_out="use vqc.compile")

    def layers(self, program: Program, target: str, measured: bool, threads: int) -> Sequence[Layer]:
        """The kernel calls of a program, with the time each should take, or takes on this machine (`measured`)."""
        raise TargetError(f"backend {self.name} does not say what its calls cost", way_out="use a C target")


def backend_for(target: str) -> Backend:
    """The backend that serves a target; TargetError naming the known ones otherwise."""
    key = target.split(":")[0]
    if key not in TARGETS:
        raise TargetError(f"there is no target called {target!r}", way_out="use one of " + ", ".join(sorted(TARGETS)))
    module, cls = TARGETS[key]
    return getattr(import_module(module), cls)()


def layers_of(program: Program, target: str, measured: bool, threads: int) -> Sequence[Layer]:
    """What the calls of a program cost on a target (`Backend.layers`): what passes get as `PassContext.costs`."""
    return backend_for(target).layers(program, target, measured, threads)

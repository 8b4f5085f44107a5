"""One launch of a kernel, as data: running, compiling ahead of time and exporting read the same description."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.int16: "*i16", torch.int8: "*i8",
            torch.uint8: "*u8", torch.int32: "*i32"}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid, and its arguments.

    `kernel`: "file.function" in `kernels/`. `args`: the run-time arguments by name - tensors, tuples of tensors and
    None, integers, floats, None for a pointer that is not read. `meta`: what is known when it is compiled. `warps`,
    `stages`: Triton's num_warps and num_stages.
    """

    kernel: str
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    meta: Mapping[str, Any]
    warps: int = 4
    stages: int = 3

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told. Products and sums stay apart: each is rounded once."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}


@cache
def function(kernel: str) -> Any:
    """The kernel of a name: Triton's JITFunction, or its interpreted form."""
    module, _, name = kernel.partition(".")
    return getattr(import_module(f"vqc.backends.triton.kernels.{module}"), name)


_recorders: list[Callable[[Launch], None]] = []


@contextmanager
def recording(take: Callable[[Launch], None]) -> Iterator[None]:
    """Within it, launches are handed to `take` and not run."""
    _recorders.append(take)
    try:
        yield
    finally:
        _recorders.pop()


def run(launch: Launch) -> None:
    """Run a launch on the device of its tensors."""
    if _recorders:
        _recorders[-1](launch)
        return
    function(launch.kernel)[launch.grid](**launch.args, **launch.meta, **launch.options)

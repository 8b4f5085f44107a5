"""What pages take for granted: clips, a network in `net.py`, `program`. Large networks have small stand-ins.

A stand-in has the arguments and results of the network it stands for, so that the text on the page runs as it is, in
seconds and without a download.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqc
from vqc import models
from vqc.backends.c import emit
from vqc.models import MODELS
from vqc.models.binary import BinaryConv2d
from vqc.video.composites import drawn

Names = dict[str, Any]
NET = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.gates = nn.Conv2d(16, 8, 3, padding=1)
        self.news = nn.Conv2d(16, 8, 3, padding=1)
        self.show = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, frame, h=None):
        x = self.look(frame).relu()
        h = torch.zeros_like(x) if h is None else h
        z = self.gates(torch.cat((x, h), 1)).sigmoid()
        h = z * h + (1 - z) * self.news(torch.cat((x, h), 1)).tanh()
        return nn.functional.interpolate(self.show(h), scale_factor=2.0, mode="bilinear").sigmoid(), h


def make():
    torch.manual_seed(0)
    return Net().eval(), torch.rand(1, 3, 32, 48), {"h": 1}
"""


class Matting(nn.Module):
    """Stands for RVM, or with `binary` for BiVM: src, r1 to r4 -> fgr, pha, r1 to r4."""

    def __init__(self, binary: bool = False):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, stride=16, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.cells = nn.ModuleList(
            BinaryConv2d(16, 8, 3) if binary else nn.Conv2d(16, 8, 3, padding=1) for _ in range(4)
        )
        self.up = nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, src: Tensor, r1: Tensor | None = None, r2: Tensor | None = None, r3: Tensor | None = None,
                r4: Tensor | None = None) -> tuple[Tensor, ...]:  # fmt: skip
        x, states = self.down(src), []
        for cell, r in zip(self.cells, (r1, r2, r3, r4), strict=True):
            r = torch.zeros_like(x) if r is None else r
            z = torch.sigmoid(cell(torch.cat((x, r), 1)))
            states.append(z * r + (1 - z) * torch.tanh(x))
            x = x + states[-1]
        x = self.out(self.up(F.interpolate(x, scale_factor=2.0, mode="bilinear")).relu())
        seen = F.interpolate(x, size=src.shape[-2:], mode="bilinear").sigmoid()
        return seen[:, :3], seen[:, 3:], *states


def stand_in(binary: bool = False) -> nn.Module:
    """The stand-in with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Matting(binary).eval()


@functools.cache
def _clip(seed: int) -> Tensor:
    return drawn(48, (64, 96), seed=seed).frames


def everywhere(folder: Path, patch: pytest.MonkeyPatch, names: Names) -> None:
    """For every page: clips by the names pages use, `net.py`, and small networks by the names of large ones."""
    for seed, name in enumerate(("talk", "other", "a", "b", "c", "single_face", "pexels")):
        written = vqc.video.write_video(folder / f"{name}.mp4", _clip(seed % 3), 12)
        if name in vqc.video.CLIPS:
            written.rename(folder / name)  # a file comes before a clip that would be fetched
    (folder / "net.py").write_text(NET)
    patch.setattr(models, "load_rvm", stand_in)
    patch.setitem(MODELS, "rvm", dataclasses.replace(MODELS["rvm"], load=stand_in))


def _given(folder: Path, patch: pytest.MonkeyPatch, names: Names) -> None:
    """The names that snippets go on from: a program in 8 bits, its float form's network, clips."""
    clip = _clip(0)[:4]
    program = vqc.capture(
        stand_in(), clip[:1], states={"r1": 2, "r2": 3, "r3": 4, "r4": 5}, known_ranges={"src": (0, 1)}
    )
    names |= {"torch": torch, "vqc": vqc, "clips": clip, "clip": clip, "frame": clip[:1], "model": stand_in(),
              "program": vqc.apply(program, "int8", calibration=clip)}  # fmt: skip


def _stored(folder: Path, patch: pytest.MonkeyPatch, names: Names) -> None:
    _given(folder, patch, names)
    vqc.save(names["program"], folder / "rvm.vqc", recipe="int8")


def _float(folder: Path, patch: pytest.MonkeyPatch, names: Names) -> None:
    _given(folder, patch, names)
    names["program"] = vqc.capture(stand_in(), names["frame"], states={"r1": 2, "r2": 3, "r3": 4, "r4": 5})


def _compiled(names: Names) -> None:
    """torch.compile does nothing until the network is called."""
    model = stand_in()
    with torch.no_grad():
        found, exact = names["fast"](names["clips"][:1]), model(names["clips"][:1])
    assert all((a - b).abs().max() < 0.2 for a, b in zip(found, exact, strict=True))


def _binary(folder: Path, patch: pytest.MonkeyPatch, names: Names) -> None:
    _given(folder, patch, names)
    names |= {"model": stand_in(binary=True), "load_rvm": stand_in, "talk": _clip(1), "walk": _clip(2)}


def _training(folder: Path, patch: pytest.MonkeyPatch, names: Names) -> None:
    _given(folder, patch, names)
    (folder / "runs" / "mine").mkdir(parents=True)
    weights = next(p for p in (resources.files("vqc.models") / "weights").iterdir() if p.name.startswith("bivm"))
    (folder / "runs" / "mine" / "packed.safetensors").write_bytes(weights.read_bytes())


def _kernel(folder: Path, patch: pytest.MonkeyPatch, names: Names) -> None:
    """The page writes into a checkout's kernels: it gets a copy of them, and tables of its own."""
    kernels = folder / "backends" / "c" / "kernels"
    shutil.copytree(str(emit.KERNELS), kernels)
    patch.setattr(emit, "KERNELS", kernels)
    patch.setattr(emit, "FAMILIES", dict(emit.FAMILIES))
    patch.setattr(emit, "HEADERS", dict(emit.HEADERS))


BEFORE: dict[str, Callable[[Path, pytest.MonkeyPatch, Names], None]] = {
    "README.md": lambda folder, patch, names: names.update(torch=torch, clips=_clip(1)[:4]),
    "docs/files.md": _given, "docs/onnx.md": _stored, "docs/distributed.md": _float, "docs/binary.md": _binary,
    "docs/training.md": _training, "docs/interop.md": _given, "docs/howto/kernel.md": _kernel,
}  # fmt: skip
AFTER: dict[str, Callable[[Names], None]] = {"README.md": _compiled}

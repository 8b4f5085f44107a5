"""For tests of the command line: a small network of two outputs and a state, as the text of a file; clips; calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from vqc import video
from vqc.cli import app

NETS = '''
import torch
from torch import nn

class Matting(nn.Module):
    """A 4-channel recurrent network: (colours, matte, state)."""
    def __init__(self, gain=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.gain = gain
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, src, r=None):
        y = torch.relu(self.conv(src))
        r = 0.5 * y if r is None else 0.5 * r + 0.5 * y
        return src if self.gain == 1 else self.gain * src, torch.sigmoid(self.head(r)), r

def matting():
    return Matting(), torch.rand(1, 3, 16, 24), {"r": 2}, 1

def bright():
    return Matting(1.5), torch.rand(1, 3, 16, 24), {"r": 2}, 1

def picture():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.Sigmoid())

class Tall(nn.Module):
    """Has an operator that C does not take."""
    def forward(self, src):
        return torch.relu(src * torch.linalg.svdvals(src[0, 0]).sum())

def tall():
    return Tall()

def narrow():
    return nn.Conv2d(4, 3, 1)

def broken():
    raise RuntimeError("no weights today")

def number():
    return 7
'''


def make_place(folder: Path, clips: tuple[str, ...] = ("a", "b"), frames: int = 6) -> Path:
    """Write nets.py and clips of 16x24 into a folder, each clip a picture of its own that grows brighter."""
    (folder / "nets.py").write_text(NETS)
    g = torch.Generator().manual_seed(0)
    for name in clips:
        write_clip(folder / f"{name}.mp4", frames, g)
    return folder


def write_clip(path: Path, frames: int, generator: torch.Generator) -> Path:
    """Write a clip of 16x24, 12 frames a second."""
    base = torch.rand(3, 16, 24, generator=generator)
    return video.write_video(path, [(base * (0.5 + t / 12)).clamp(0, 1) for t in range(frames)], 12)


def vqc(*args: str | Path, code: int = 0) -> str:
    """Run a command in this process; its output and errors together. Fails unless the exit code is `code`."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output + (result.stderr if result.stderr not in result.output else "")


def vqc_json(*args: str | Path, code: int = 0) -> dict[str, Any]:
    """Run a command with --json; the document, which has to be all there is on stdout."""
    result = CliRunner().invoke(app, [*(str(a) for a in args), "--json"])
    assert result.exit_code == code, (result.output, result.exception)
    found = json.loads(result.stdout, parse_constant=lambda text: 1 / 0)
    assert isinstance(found, dict)
    return found

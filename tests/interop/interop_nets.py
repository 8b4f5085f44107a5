"""Small networks for tests of other tools' forms."""

from __future__ import annotations

import torch
from torch import nn

import vqc
from vqc.program import Program, replace


class Matte(nn.Module):
    """Convolutions, a batch norm, a gated state, a transposed convolution, a pooled gain through two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mix, self.gates = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(16, 16, 3, padding=1)
        self.gain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.up, self.out = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2), nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        y = torch.relu(self.mix(torch.relu(self.norm(self.inp(x)))))
        y = y * torch.sigmoid(self.gain(y.mean((2, 3))))[..., None, None]
        h = torch.zeros_like(y) if h is None else h
        z, n = torch.sigmoid(self.gates(torch.cat([y, h], 1))).chunk(2, 1)
        h = (1 - z) * h + z * torch.tanh(n)
        return {"alpha": self.out(self.up(h))[..., ::2, ::2], "h": h}


def frames(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def matte(recipe: str = "") -> Program:
    """The network captured, its state reset to something that is not zero, put through a recipe."""
    torch.manual_seed(0)
    program = vqc.capture(Matte().eval(), frames(1), states={"h": 1}, known_ranges={"x": (0, 1)}, name="matte")
    program.states = (replace(program.states[0], reset=torch.full((1, 8, 8, 12), 0.25)),)
    return vqc.apply(program, recipe, calibration=frames()) if recipe else program


def play(program: Program, count: int = 3) -> list[torch.Tensor]:
    """The results of a stream through the reference, in the user's own structure's order."""
    stream = vqc.Stream(vqc.compile(program, "reference"))
    return [x for f in frames(count) for x in torch.utils._pytree.tree_leaves(stream(f[None]))]

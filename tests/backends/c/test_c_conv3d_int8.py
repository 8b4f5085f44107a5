"""Layers of frames, of time and of windows, 3-d in the network: recipe int8 in C beside the reference and float."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from handmade import Hand, aten
from torch import nn

import vqc
from vqc import testing
from vqc.program import Program


class Window(nn.Module):
    """A window of frames kept as a state, layers of frames and of time, and one over the whole window."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(8)
        self.grouped = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1), groups=2)
        self.time, self.point = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0)), nn.Conv3d(8, 8, 1)
        self.whole, self.last = nn.Conv3d(8, 8, 3, padding=(0, 1, 1)), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, frame: torch.Tensor, window: torch.Tensor, mean: torch.Tensor) -> Any:
        window = torch.cat((window[:, :, 1:], frame.unsqueeze(2)), 2)
        x = F.relu(self.norm(self.first(window)))
        x = x + F.relu(self.grouped(x))
        x = F.relu(self.point(F.relu(self.time(x)))) + x
        mean = 0.5 * mean + 0.5 * F.relu(self.whole(x)).squeeze(2)
        return frame + self.last(mean), window, mean


def clip(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 13, 18, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def captured() -> Program:
    torch.manual_seed(0)
    net = Window()
    with torch.no_grad():
        net.train()(clip(1), torch.rand(1, 3, 3, 13, 18), torch.zeros(1, 8, 13, 18))  # statistics that shift
    states = (torch.zeros(1, 3, 3, 13, 18), torch.zeros(1, 8, 13, 18))
    return vqc.capture(net.eval(), (clip(1), *states), states={"window": 1, "mean": 2},
                       known_ranges={"frame": (0, 1)})  # fmt: skip


@pytest.mark.parametrize("recipe", ["int8", "int8-all"])
def test_int8_runs_in_integers_in_c(captured: Program, recipe: str):
    program = vqc.apply(captured, recipe, calibration=clip(8))
    testing.assert_ops(program, {"aten.conv3d": 0, "vqc.qconv2d*": 5 if recipe == "int8" else 6})
    steps = [(f[None],) for f in clip(5)]
    assert len(testing.assert_integers_equal(program, "reference", "native", steps=steps)) >= 8
    exe = vqc.compile(program, target="native", fallback="none")
    assert not exe.report.fallbacks
    played = [torch.cat([y for y, *_ in vqc.Stream(e).run(s[0] for s in steps)]) - clip(5)  # what the layers add
              for e in (vqc.compile(captured, target="reference"), exe)]  # fmt: skip
    assert float((played[0] - played[1]).abs().max()) < 0.02 * float(played[0].abs().max())


def test_without_the_pass_the_layers_stay_float(captured: Program):
    text = "canonicalize,fold-constants,fold-bn,canonicalize,observe,quantize,lower-integer,exact-float,canonicalize"
    program = vqc.apply(captured, text, calibration=clip(8))
    testing.assert_ops(program, {"aten.conv3d": 5, "vqc.qconv2d*": 0})


def test_every_form_in_integers_in_c():
    """Layers beside each other over one clip: strides, dilation, groups, windows apart, part of a clip, padded time."""
    h = Hand()
    x = h.input("x", 2, 4, 6, 7, 10)
    forms: list[tuple[tuple[int, int, int], list[int], list[int], list[int], int]] = [
        ((1, 3, 3), [2, 1, 2], [0, 1, 0], [1, 1, 2], 2), ((1, 1, 1), [1, 2, 2], [0, 0, 0], [1, 1, 1], 1),
        ((3, 1, 1), [2, 1, 1], [2, 0, 0], [2, 1, 1], 2), ((2, 1, 1), [2, 1, 1], [0, 0, 0], [1, 1, 1], 4),
        ((3, 2, 2), [3, 2, 2], [0, 0, 0], [1, 1, 1], 2), ((6, 3, 3), [1, 1, 1], [0, 1, 1], [1, 1, 1], 4),
        ((3, 3, 3), [4, 1, 1], [1, 1, 1], [3, 1, 1], 1),
    ]  # fmt: skip
    results = []
    for i, (kernel, *options, groups) in enumerate(forms):
        w, b = h.const(f"w{i}", h.rand(8, 4 // groups, *kernel)), h.const(f"b{i}", h.rand(8))
        results.append(h(aten.relu, h(aten.conv3d, x, w, b, *options, groups)))
    program = vqc.apply(h.done(*results), "int8-all", calibration=[[(h.rand(2, 4, 6, 7, 10),) for _ in range(3)]])
    made = next(r for r in program.history if r.name == "conv3d-to-conv2d")
    assert made.rewrites == {"each-frame": 2, "time-as-rows": 2, "windows": 1, "whole-window": 2, "moved": 7}
    testing.assert_ops(program, {"aten.conv*": 0, "vqc.qconv2d*": 7})
    testing.assert_integers_equal(program, "reference", "native")
    exe, reference = vqc.compile(program, target="native", fallback="none"), vqc.compile(program, target="reference")
    step = testing.random_steps(program, 1)[0]
    assert all(torch.equal(a, b) for a, b in zip(exe.step(step)[0], reference.step(step)[0], strict=True))

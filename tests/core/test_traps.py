"""Networks that other toolchains fold wrongly or refuse, from nn.Module to folded Program.

D5  one convolution shared by time steps, a batch norm for each step
D6  a convolution and batch norm on their own result, unrolled
D7  transposed convolution of several groups with a batch norm
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vqc import testing
from vqc.frames import Frames, frame_layout
from vqc.frontend import capture
from vqc.pipeline import PassContext, parse
from vqc.program import Program, evaluate

FOLD = parse("canonicalize,fold-constants,fold-bn,canonicalize")


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with parameters and statistics far from their initial values."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.normal_(generator=g)
                m.running_var.uniform_(0.2, 3.0, generator=g)
                m.weight.normal_(1.0, 0.5, generator=g)
                m.bias.normal_(generator=g)
            elif hasattr(m, "weight"):
                m.weight.normal_(std=0.3, generator=g)
    return model.eval()


def folded(model: nn.Module, *example: torch.Tensor, norms: int) -> Program:
    """Capture and fold, with every pass's promise checked; `norms` batch norms must go, and results stay."""
    before = capture(model, example)
    after = FOLD.run(before, PassContext(debug=True))
    testing.assert_ops(before, {"aten.batch_norm": norms})
    testing.assert_ops(after, {"aten.batch_norm": 0})
    with torch.no_grad():
        want = model(*example)
    got = evaluate(after, example)[0]
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    return after


class PerStep(nn.Module):
    def __init__(self, steps: int, shared_norm: bool):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(1 if shared_norm else steps)])

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        frames = clip.unbind(1)
        return torch.stack([self.norms[t % len(self.norms)](self.conv(x)) for t, x in enumerate(frames)], 1)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_d5_a_norm_for_each_step(steps: int):
    after = folded(shaken(PerStep(steps, shared_norm=False)), torch.randn(1, steps, 3, 8, 8), norms=steps)
    weights = [v for k, v in after.constants.items() if "weight" in k]
    assert len(weights) == steps
    assert len({w.numpy().tobytes() for w in weights}) == steps


@pytest.mark.parametrize("steps", [2, 5])
def test_d5_one_norm_for_all_steps(steps: int):
    after = folded(shaken(PerStep(steps, shared_norm=True)), torch.randn(1, steps, 3, 8, 8), norms=steps)
    assert sum("weight" in k for k in after.constants) == 1


class Recurrence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        h = torch.zeros_like(clip[:, 0])
        for t in range(clip.shape[1]):
            h = torch.relu(self.norm(self.conv(h + clip[:, t])))
        return h


def test_d6_unrolled_recurrence():
    after = folded(shaken(Recurrence()), torch.randn(1, 3, 4, 8, 8), norms=3)
    assert sum("weight" in k for k in after.constants) == 1


TRANSPOSED: list[Callable[..., nn.Module]] = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
NORM = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 2}], ids=str)
def test_d7_transposed_with_groups(dim: int, groups: int, options: dict[str, Any]):
    up = TRANSPOSED[dim - 1](4, 8, 3, groups=groups, **options)
    folded(shaken(nn.Sequential(up, NORM[dim - 1](8))), torch.randn(2, 4, *[5] * dim), norms=1)


def test_frames_of_a_captured_network():
    """The clip's axis, in the batch through the layers, and back."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Hardswish(), nn.MaxPool2d(2))

        def forward(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.body(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
            return y, y[:, -1] - y[:, 0]

    clip = torch.randn(2, 3, 3, 8, 8)
    before = capture(shaken(Folded()), (clip,), frames={"clip": Frames("axis", axis=1, count=3)})
    after = FOLD.run(before, PassContext(debug=True))
    layout = {n.name: str(frame_layout(after)[n.name]) for n in after.calls}
    convolution = testing.match(after, ("aten.conv2d", ...))[0].node
    y, difference = after.result_nodes
    assert layout[convolution.name] == "T=3 in batch"
    assert layout[y.name] == "T=3@1"
    assert [layout[a.name] for a in difference.all_input_nodes] == ["t=2", "t=0"]
    assert layout[difference.name] == "mixed"

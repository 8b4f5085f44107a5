"""Random small networks of layers, reshapes, in-place operators, shared weights and skips: captured with parity."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from frontend_help import run, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vqc import spec
from vqc.frontend import capture
from vqc.pipeline import parse
from vqc.program import evaluate

C = 4
LAYERS: dict[str, Any] = {
    "conv": lambda: nn.Conv2d(C, C, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False),
    "dilated": lambda: nn.Conv2d(C, C, 3, padding="same", dilation=2),
    "up_down": lambda: nn.Sequential(nn.ConvTranspose2d(C, C, 2, 2), nn.Conv2d(C, C, 2, 2)),
    "bn": lambda: nn.BatchNorm2d(C),
    "gn": lambda: nn.GroupNorm(2, C),
    "in": lambda: nn.InstanceNorm2d(C, affine=True),
    "relu_": lambda: nn.ReLU(inplace=True),
    "hardswish_": lambda: nn.Hardswish(inplace=True),
    "prelu": lambda: nn.PReLU(C),
    "gru": lambda: nn.Conv2d(2 * C, 2 * C, 3, padding=1),
}
STEPS = {
    "tokens": lambda x: x.flatten(2).transpose(1, 2).softmax(-1).transpose(1, 2).reshape(x.shape),
    "halves": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "resize": lambda x: F.interpolate(F.interpolate(x, scale_factor=2, mode="bilinear"), scale_factor=0.5),
    "shift": lambda x: torch.cat([x[:, :1].roll(1, -1), x[:, 1:]], 1),
    "pool": lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
    "warp": lambda x: F.grid_sample(x, x[:, :2].tanh().permute(0, 2, 3, 1), align_corners=False),
}


def zero_first(x: torch.Tensor) -> torch.Tensor:
    x = x * 1
    x[:, 0] = 0
    x[..., 1:, :].add_(x.mean())
    return x


class Net(nn.Module):
    def __init__(self, plan: list[tuple[str, int]]):
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleDict()
        for name, which in plan:
            if name in LAYERS and f"{name}{which}" not in self.layers:
                self.layers[f"{name}{which}"] = LAYERS[name]()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        kept = [x]
        for name, which in self.plan:
            if name == "gru":
                r, z = self.layers[f"gru{which}"](torch.cat([x, kept[0]], 1)).sigmoid_().split(C, 1)
                x = (1 - z) * x + z * torch.tanh(r * kept[0])
            elif name in LAYERS:
                x = self.layers[f"{name}{which}"](x * 1 if name.endswith("_") else x)
            elif name == "skip":
                x = x + kept[which % len(kept)]
            elif name == "write":
                x = zero_first(x)
            else:
                x = STEPS[name](x)
            kept.append(x)
        return x, kept[1::3]


names = st.sampled_from([*LAYERS, *STEPS, "skip", "write"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(names, st.integers(0, 1)), min_size=1, max_size=7), st.integers(0, 3))
def test_random_networks(plan: list[tuple[str, int]], seed: int):
    torch.manual_seed(seed)
    model, x, other = Net(plan).eval(), torch.rand(1, C, 6, 8), torch.rand(1, C, 6, 8)
    program = capture(model, x)
    assert not spec.violations(program)
    with torch.no_grad():
        want = model(other)
    same(run(program, (other,)), [want[0], *want[1]], rtol=1e-4)
    folded = parse("canonicalize,fold-bn").run(program)  # what comes out is what passes take
    for a, b in zip(evaluate(folded, [other]), evaluate(program, [other]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

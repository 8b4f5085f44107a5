"""scan and cond under capture, and ranges known by the form of a recurrence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from frontend_help import captured, operators, run, same, seeded
from torch import nn
from torch._higher_order_ops.scan import scan

from vqc.frontend import capture
from vqc.frontend.ranges import convex_update_range
from vqc.program import Program


class Scanned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.new = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, clip: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        level = clip.mean()

        def step(h: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            both = torch.cat([x, h], 1)
            z = torch.sigmoid(self.gate(both) + level)
            h = (1 - z) * h + z * torch.tanh(self.new(both))
            return h, h.clone()

        last, states = scan(step, h, clip.transpose(0, 1))
        return states.transpose(0, 1), last


EXAMPLE = (torch.rand(1, 3, 2, 6, 6), torch.zeros(1, 2, 6, 6))


@pytest.mark.parametrize("keep", [False, True])
def test_scan(keep: bool):
    program = capture(seeded(Scanned), EXAMPLE, states={"h": 1}, keep_scan=keep)
    assert ("scan" in operators(program)) == keep
    clip = torch.rand(1, 3, 2, 6, 6)
    with torch.no_grad():
        y, h = seeded(Scanned)(clip, EXAMPLE[1])
    same(run(program, (clip,)), [y, h])


def test_a_kept_scan_has_one_body_with_every_weight_as_its_input():
    program = capture(seeded(Scanned), EXAMPLE, states={"h": 1}, keep_scan=True)
    body = program.constants["scan_body"]
    assert isinstance(body, torch.fx.GraphModule)
    node = next(n for n in program.calls if n.target.__name__ == "scan")
    assert {str(n.target) for n in node.args[3] if n.op == "get_attr"} == {
        "gate.weight", "gate.bias", "new.weight", "new.bias"
    }  # fmt: skip
    assert program.clone().to_module() is not None


def test_an_unrolled_scan_shares_its_weights_and_knows_its_range():
    program = capture(seeded(Scanned), EXAMPLE, states={"h": 1})
    assert operators(program).count("conv2d") == 6
    assert sum("weight" in k for k in program.constants) == 2
    assert program.states[0].known_range == (-1.0, 1.0)


def test_an_exported_scan():
    ep = torch.export.export(seeded(Scanned), EXAMPLE)
    program = capture(ep, EXAMPLE, states={"h": 1})
    with torch.no_grad():
        same(run(program, EXAMPLE), list(seeded(Scanned)(*EXAMPLE)))


def test_cond_is_a_selection():
    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 3, lambda a: a + 1, lambda a: a * 2, (x,))

    program = captured(lambda: network, torch.rand(4))
    assert operators(program)[-1] == "where"
    for x in (torch.zeros(4), torch.ones(4)):
        same(run(program, (x,)), [network(x)])


Update = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CONVEX: dict[str, Update] = {
    "(1-z)h + zn": lambda h, n, z: (1 - z) * h + z * n,
    "zn + h(1-z)": lambda h, n, z: z * n + h * (1 - z),
    "zh + (1-z)n": lambda h, n, z: z * h + (1 - z) * n,
    "n + z(h-n)": lambda h, n, z: n + z * (h - n),
    "(n-h)z + h": lambda h, n, z: (n - h) * z + h,
    "lerp": lambda h, n, z: torch.lerp(h, n, z),
    "twice": lambda h, n, z: (1 - z) * ((1 - z) * h + z * n) + z * n,
}
OTHERS: dict[str, Update] = {
    "sum": lambda h, n, z: h + z * n,
    "other gate": lambda h, n, z: (1 - z) * h + torch.sigmoid(n) * n,
    "not a gate": lambda h, n, z: (1 - n) * h + n * n,
    "not a tanh": lambda h, n, z: (1 - z) * h + z * torch.exp(n),
    "twice minus": lambda h, n, z: (2 - z) * h + z * n,
}


def recurrent(update: Update, reset: float = 0.0) -> Program:
    def network(x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z, n = torch.sigmoid(x + h).chunk(2, 0)[0], torch.tanh(x * h)
        h = update(h, n, z.expand(2, 3))
        return h * 2, h

    return capture(network, (torch.rand(2, 3), torch.full((2, 3), reset)), states={"h": 1})


@pytest.mark.parametrize("name", CONVEX)
def test_range_of_a_mean(name: str):
    assert recurrent(CONVEX[name]).states[0].known_range == (-1.0, 1.0)


@pytest.mark.parametrize("name", OTHERS)
def test_no_range_for_others(name: str):
    assert recurrent(OTHERS[name]).states[0].known_range is None


def test_no_range_when_it_starts_outside():
    program = recurrent(CONVEX["lerp"], reset=1.5)
    assert program.states[0].known_range is None
    assert convex_update_range(program, program.states[0]) is program.states[0]

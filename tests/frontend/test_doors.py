"""ExportedProgram, decomposed ExportedProgram, Dynamo graph: the same canonical form as the module itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frontend_help import operators, same, seeded
from torch import fx, nn

from vqc.errors import CaptureError
from vqc.frontend import capture, capture_graph
from vqc.program import evaluate


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish(), nn.ReLU6())
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.norm, self.act, self.pool = nn.GroupNorm(2, 8), nn.PReLU(8), nn.MaxPool2d(2)
        self.mix, self.layer_norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.pool(self.act(self.norm(self.up(self.stem(x)))))
        y = F.interpolate(y, scale_factor=2, mode="bilinear") * F.hardsigmoid(F.adaptive_avg_pool2d(y, 1))
        t = self.layer_norm(self.mix(y.flatten(2).transpose(1, 2)))
        a, b = t.split(4, 2)
        y = F.grid_sample(y, (1 - a[..., :2]).reshape(1, 8, 8, 2), align_corners=True)
        return F.softmax(y, 1), torch.cat([b.contiguous().view(1, -1), a.reshape(1, -1)], 1)


X = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exported(decomposed: bool) -> Any:
    ep = torch.export.export(seeded(Mixed), (X,))
    return ep.run_decompositions() if decomposed else ep


@pytest.mark.parametrize("decomposed", [False, True])
def test_exported_program(decomposed: bool):
    module, program = capture(seeded(Mixed), X), capture(exported(decomposed), X)
    assert Counter(operators(program)) == Counter(operators(module))
    assert sorted(k for k in program.constants if "constant" not in k) == sorted(
        k for k in module.constants if "constant" not in k
    )
    same(evaluate(program, [X.flip(3)])[:2], evaluate(module, [X.flip(3)])[:2])


def test_places_survive_export():
    program = capture(exported(False), X)
    conv = next(n for n in program.calls if n.target is torch.ops.aten.conv2d.default)
    assert conv.meta["module"] == "stem.0"
    assert conv.meta["source"].startswith("test_doors.py:") and "self.stem(x)" in conv.meta["source"]
    assert [i.name for i in program.inputs] == ["x"]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)
        self.register_buffer("h", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.h.copy_(torch.tanh(self.mix(x + self.h)))
        return self.h * 2


def test_an_exported_buffer_is_a_state():
    program = capture(torch.export.export(seeded(Counting), (torch.rand(3),)), torch.rand(3))
    assert [(s.name, s.origin) for s in program.states] == [("h", "buffer h")]


def dynamo(model: nn.Module, *args: torch.Tensor) -> tuple[fx.GraphModule, list[torch.Tensor], list[int]]:
    seen: list[Any] = []

    def keep(gm: fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        seen.append((gm, list(inputs)))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=keep)(*args)
    gm, inputs = seen[0]
    owned = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    return gm, inputs, [i for i, x in enumerate(inputs) if x.data_ptr() in owned]


def test_a_dynamo_graph():
    model = seeded(Mixed)
    gm, inputs, static = dynamo(model, X)
    program = capture_graph(gm, inputs, static)
    assert Counter(operators(program)) == Counter(operators(capture(model, X)))
    assert len(program.inputs) == 1 and not program.states
    with torch.no_grad():
        same(evaluate(program, [X * 0.5]), list(model(X * 0.5)))


def test_a_dynamo_graph_that_writes():
    model = seeded(Counting)
    before = model.h.clone()
    gm, inputs, static = dynamo(model, torch.rand(3))
    model.h.copy_(before)
    names = [f"p{i}" for i in range(len(inputs))]
    program = capture_graph(gm, inputs, static, names=names)
    assert torch.equal(model.h, before)
    (state,) = program.states
    assert state.origin.startswith("buffer p")
    x = torch.rand(3)
    y, h = evaluate(program, [x], [before])
    with torch.no_grad():
        same([y, h], [model(x), model.h])


def test_weights_of_a_graph_are_shared_and_folded_weights_are_not():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.a(x), self.b.weight * 2)

    model = seeded(Scaled)
    gm, inputs, static = dynamo(model, torch.rand(2, 3))
    program = capture_graph(gm, inputs, static)
    shared = [k for k, v in program.constants.items() if v.data_ptr() == model.a.weight.data_ptr()]
    assert len(shared) == 1
    assert operators(program) == ["linear", "linear"]


def test_a_wrong_number_of_inputs():
    gm = fx.symbolic_trace(nn.Linear(2, 2))
    with pytest.raises(CaptureError, match="1 inputs, 2 were given"):
        capture_graph(gm, [torch.rand(2), torch.rand(2)])


def test_plain_functions_methods_and_closures():
    layer = seeded(lambda: nn.Linear(4, 4))

    class Service:
        def __init__(self) -> None:
            self.layer, self.calls = layer, 0

        def run(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + 1

    def closure(x: torch.Tensor) -> torch.Tensor:
        return layer(x) + 1

    for f in (Service().run, closure, lambda x: layer(x) + 1):
        program = capture(f, torch.rand(2, 4))
        assert operators(program) == ["linear", "add"]
        assert "layer.weight" in program.constants and [i.name for i in program.inputs] == ["x"]


def test_something_that_cannot_be_called():
    with pytest.raises(CaptureError, match="a dict cannot be captured"):
        capture({}, torch.rand(1))

"""The Program that comes out: names, structure, places, canonical forms, known ranges, and what is left untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from frontend_help import captured, copied, eager, operators, portrait, run, same, seeded
from torch import nn

from vqc import spec
from vqc.errors import CaptureError
from vqc.frames import Frames
from vqc.frontend import capture
from vqc.program import evaluate, op_text


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 2)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(image * 2 - 1)
        return {"map": y[:, :2], "score": torch.sigmoid(self.head(y.mean((2, 3))))}


def test_text():
    program = capture(seeded(Small), torch.rand(1, 3, 4, 4), known_ranges={"image": (0, 1)})
    assert_expected_inline(
        str(program),
        """\
program Small
  input image: f32[1,3,4,4] in [0,1]
  mul: f32[1,3,4,4] = aten.mul.Tensor(image, 2)
  sub: f32[1,3,4,4] = aten.sub.Tensor(mul, 1)
  conv2d: f32[1,4,4,4] = aten.conv2d(sub, body.0.weight, body.0.bias, [1,1], [1,1])
  batch_norm: f32[1,4,4,4] = aten.batch_norm(conv2d, body.1.weight, body.1.bias, body.1.running_mean, body.1.running_var, False, 0.1, 1e-05, True)
  relu: f32[1,4,4,4] = aten.relu(batch_norm)
  slice_1: f32[1,2,4,4] = aten.slice.Tensor(relu, 1, 0, 2)
  mean: f32[1,4] = aten.mean.dim(relu, [2,3])
  linear: f32[1,2] = aten.linear(mean, head.weight, head.bias)
  sigmoid: f32[1,2] = aten.sigmoid(linear)
  return map = slice_1
  return score = sigmoid""",  # noqa: E501
    )


def test_every_node_has_its_value_place_and_module():
    program = capture(seeded(Small), torch.rand(1, 3, 4, 4))
    assert not spec.violations(program)
    for n in program.calls:
        assert n.meta["val"].device.type == "meta"
        assert n.meta["source"].startswith("test_capture_program.py:") and " in forward: " in n.meta["source"]
    modules = {n.name: n.meta["module"] for n in program.calls}
    assert modules["conv2d"] == "body.0" and modules["linear"] == "head" and modules["mean"] == ""


def test_notes_and_history():
    program = capture(seeded(Small), torch.rand(1, 3, 4, 4))
    assert program.notes[0] == program.summary()
    assert program.history[0].name == "capture" and program.history[0].rewrites == {"operators": 9}


def test_ranges_and_frames_by_name():
    layout = Frames("axis", 1, 3)
    program = capture(
        lambda clip: clip * 2, torch.rand(1, 3, 2), known_ranges={"clip": (0, 1)}, frames={"clip": layout}
    )
    assert program.inputs[0].known_range == (0, 1) and program.inputs[0].frames is layout
    with pytest.raises(CaptureError, match="no input or state called 'video'"):
        capture(lambda clip: clip * 2, torch.rand(1), known_ranges={"video": (0, 1)})


def odd_results(x: torch.Tensor, y: torch.Tensor) -> Any:
    z = x + y
    return [z, x, (z, None, 3, "text"), {"fixed": torch.arange(3), "again": z * 1.0}]


def test_results_that_are_inputs_constants_or_twice_the_same():
    example = (torch.rand(3), torch.rand(3))
    program = captured(lambda: odd_results, *example)
    assert [leaf.kind for leaf in program.signature.out_leaves] == (
        ["output", "input", "output", "constant", "constant", "constant", "output", "output"]
    )
    out = evaluate(program, example)
    result = program.unflatten_outputs(out, [], list(example))
    assert result[1] is example[0] and result[2][1:] == (None, 3, "text")


def test_the_same_tensor_twice():
    x = torch.rand(3)
    program = capture(lambda a, b: a * 2 + b, (x, x))
    same(run(program, (x, x + 1)), [x * 2 + x + 1])


def test_numbers_and_keywords_in_the_example():
    def network(x: torch.Tensor, scale: float = 1.0, *, shift: torch.Tensor | None = None) -> torch.Tensor:
        return x * scale + (0 if shift is None else shift)

    program = capture(network, (torch.rand(3), 2.5), kwargs={"shift": torch.ones(3)})
    assert [i.name for i in program.inputs] == ["x", "shift"]
    flat = program.flatten_inputs((torch.zeros(3), 2.5), {"shift": torch.full((3,), 7.0)})
    assert float(evaluate(program, flat)[0][0]) == 7


def test_unknown_result_classes():
    class Result:
        def __init__(self, y: torch.Tensor):
            self.y = y

    with pytest.raises(CaptureError, match="Result with tensors in it"):
        capture(lambda x: Result(x), torch.rand(3))


# ---- canonical forms -------------------------------------------------------------------------------------------------


def constants_of(x: torch.Tensor) -> torch.Tensor:
    ys, xs = torch.meshgrid(torch.linspace(0, 1, 4), torch.linspace(0, 1, 4), indexing="ij")
    grid = torch.stack([xs, ys]) * 2 - 1
    again = torch.stack([xs, ys]) * 2 - 1
    return x + grid + again


def test_what_depends_on_no_input_is_computed_once():
    program = captured(lambda: constants_of, torch.rand(2, 4, 4))
    assert operators(program) == ["add", "add"]
    assert len(program.constants) == 1


def test_equal_calls_are_made_once():
    program = captured(lambda: lambda x: torch.exp(x).sum(1) + torch.exp(x).mean(1), torch.rand(2, 4))
    assert operators(program).count("exp") == 1


def test_equal_weights_of_two_layers_stay_two():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).eval()
    model[1].load_state_dict(model[0].state_dict())
    assert set(capture(model, torch.rand(1, 3)).constants) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_a_tied_weight_is_one_constant():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    assert list(captured(Tied, torch.rand(1, 3)).constants) == ["a.weight"]


def test_a_large_tensor_of_one_value_stays_small():
    program = captured(lambda: lambda x: torch.cat([x, torch.zeros(1, 8, 128, 128)], 1), torch.rand(1, 2, 128, 128))
    assert max(v.numel() for v in program.constants.values()) == 1


W = torch.rand(4, 5)
FORMS: list[tuple[Any, tuple[int, ...], list[str]]] = [
    (lambda x: x @ W, (2, 3, 4), ["aten.linear"]),
    (lambda x: torch.addmm(torch.ones(5), x, W), (3, 4), ["aten.linear"]),
    (lambda x: F.relu6(x), (3, 4), ["aten.clamp"]),
    (lambda x: F.adaptive_avg_pool2d(x, 1), (1, 2, 4, 4), ["aten.mean.dim"]),
    (lambda x: x.transpose(1, 2).contiguous().view(2, -1), (2, 3, 4), ["aten.permute", "aten.reshape"]),
    (lambda x: x.permute(1, 0).permute(1, 0), (3, 4), []),
    (lambda x: x.view(2, 6).flatten().unflatten(0, (3, 4)), (3, 4), []),
    (lambda x: x[:, :].detach().clone().to(torch.float32).contiguous(), (3, 4), []),
    (lambda x: x.max(1)[0], (3, 4), ["aten.amax"]),
    (lambda x: F.max_pool2d(x, 2), (1, 2, 4, 4), ["aten.max_pool2d"]),
    (lambda x: 1 - x, (3, 4), ["aten.rsub.Scalar"]),
    (lambda x: F.conv2d(x, W.view(5, 4, 1, 1), padding="same"), (1, 4, 3, 3), ["aten.conv2d"]),
    (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (1, 2, 4, 4), ["aten.upsample_bilinear2d"]),
    (lambda x: F.channel_shuffle(x, 2), (1, 4, 2, 2), ["aten.reshape", "aten.permute", "aten.reshape"]),
    (lambda x: torch.softmax(x, -1), (3, 4), ["aten.softmax.int"]),
    (lambda x: F.scaled_dot_product_attention(x, x, x), (1, 1, 3, 4), ["aten.scaled_dot_product_attention"]),
]


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_forms(number: int):
    f, shape, want = FORMS[number]
    program = captured(lambda: lambda x: f(x * 2), torch.rand(shape))
    assert [op_text(n.target) for n in program.calls][1:] == want


def test_dimensions_count_from_the_front():
    program = captured(
        lambda: lambda x: torch.cat([x, x], -1).softmax(-2).unsqueeze(-1).mean((-1, -2)), torch.rand(2, 3)
    )
    dims = [n.args[1] for n in program.calls if len(n.args) > 1]
    assert dims == [1, 0, 2, [2, 1]]


# ---- left as it was --------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Writes everywhere a network can write."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.notes: list[int] = []
        self.table: dict[str, int] = {}

    def forward(self, x: torch.Tensor, fail: bool = False) -> torch.Tensor:
        self.notes.append(len(self.notes))
        self.table["x"] = 1
        self.extra = torch.ones(2)
        self.register_buffer("late", torch.ones(2))
        self.layer.weight.data.mul_(1.0).add_(0)
        self.layer.bias.requires_grad_(False)
        self.layer.weight.data = self.layer.weight.data.clone()
        self.mean += 0
        torch.rand(3)
        if fail:
            raise RuntimeError("on purpose")
        return self.layer(x)


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(fail: bool):
    model = seeded(Restless)
    before, state = portrait(model), torch.get_rng_state()
    if fail:
        with pytest.raises(RuntimeError, match="on purpose"):
            capture(model, (torch.rand(2, 3, generator=torch.Generator()), True))
    else:
        capture(model, (torch.rand(2, 3, generator=torch.Generator()),))
    assert portrait(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_example_is_left_as_it_was():
    x = torch.rand(3)
    before = x.clone()
    program = capture(lambda x: x.mul_(2) + 1, x)
    assert torch.equal(x, before)
    assert any("writes into its arguments x" in n for n in program.notes)


def test_the_program_owns_its_constants():
    model = seeded(lambda: nn.Linear(3, 3))
    program, x = capture(model, torch.rand(1, 3)), torch.rand(1, 3)
    want = eager(model, copied((x,)))
    with torch.no_grad():
        model.weight.zero_()
    same(run(program, (x,)), want)


def test_a_deep_network_is_quick():
    blocks = [nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.PReLU()) for _ in range(300)]
    program = capture(nn.Sequential(*blocks).eval(), torch.rand(1, 2, 4, 4))
    assert len(program.calls) == 900

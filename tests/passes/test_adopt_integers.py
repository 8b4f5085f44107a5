"""adopt-integers: other tools' quantized graphs keep their bits and become integer layers."""

from __future__ import annotations

import pytest
import torch
from handmade import reasons
from torch import nn

import vqc
from vqc.program import Program, evaluate, op_text

qd = torch.ops.quantized_decomposed
LOWER = "lower-integer,exact-float,canonicalize"
X = torch.rand(1, 4, 6, 7, generator=torch.Generator().manual_seed(3)) * 2 - 1


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(4), dtype=torch.int64).to(torch.int8)


class Converted(nn.Module):
    """What PT2E leaves: int8 buffers, dequantized where they are used; int8 activations; a relu before a quantize."""

    def __init__(self, per_channel: bool) -> None:
        super().__init__()
        self.per_channel = per_channel
        for name, shape, axis in (("conv", (6, 4, 3, 3), 0), ("up", (6, 4, 2, 2), 1), ("line", (5, 7), 0)):
            self.register_buffer(f"{name}_w", integers(*shape))
            count = shape[axis]
            self.register_buffer(f"{name}_s", torch.linspace(0.001, 0.002, count) if per_channel else torch.ones(()))
            self.register_buffer(f"{name}_z", torch.zeros(count, dtype=torch.int64))
        self.bias = nn.Parameter(torch.linspace(-0.2, 0.2, 6), requires_grad=False)

    def weight(self, name: str, axis: int) -> torch.Tensor:
        w, s, z = (getattr(self, f"{name}_{k}") for k in "wsz")
        if self.per_channel:
            return qd.dequantize_per_channel(w, s, z, axis, -127, 127, torch.int8)
        return qd.dequantize_per_tensor(w, 0.0015, 0, -127, 127, torch.int8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pair(x, 1 / 127, 3)
        y = torch.relu(torch.conv2d(x, self.weight("conv", 0), self.bias, padding=1))
        y = self.pair(y, 0.02, -128)
        y = torch.conv_transpose2d(y, self.weight("up", 1), None, 2)
        y = torch.sigmoid(self.pair(y, 0.03, 5))
        return torch.nn.functional.linear(self.pair(y[..., ::2], 1 / 255, -128), self.weight("line", 0))

    def pair(self, x: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
        q = qd.quantize_per_tensor(x, scale, zero, -128, 127, torch.int8)
        return qd.dequantize_per_tensor(q, scale, zero, -128, 127, torch.int8)


def captured(per_channel: bool = True) -> Program:
    return vqc.capture(torch.export.export(Converted(per_channel).eval(), (X,)))


def operators(program: Program) -> list[str]:
    return [op_text(n.target).split(".")[-1] for n in program.calls]


def steps_apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("per_channel", [True, False])
def test_every_layer_becomes_an_integer_one(per_channel: bool):
    before = captured(per_channel)
    assert "dequantize_per_channel" in operators(before) or not per_channel  # no weight is folded into floats
    adopted = vqc.apply(before, "adopt-integers")
    record = adopted.history[-1]
    assert record.rewrites == ({"unsigned": 4} if per_channel else {"channels": 3, "unsigned": 4})
    inputs = [X * 1.3]  # beyond what int8 holds as well
    assert torch.equal(evaluate(adopted, inputs)[0], evaluate(before, inputs)[0])
    lowered = vqc.apply(adopted, LOWER)
    integer = [name for name in operators(lowered) if name not in ("slice", "Tensor")]
    assert integer == ["quantize_per_tensor", "qconv2d_requantize", "qconv_transpose2d_requantize", "lut", "qlinear"]
    weights = {v.abs().sum().item() for v in lowered.constants.values() if v.dtype == torch.int8}
    assert {integers(*s).abs().sum().item() for s in ((6, 4, 3, 3), (6, 4, 2, 2), (5, 7))} <= weights
    one_step = 5 * 127 * 0.002 / 255  # of the last picture, through the last layer
    assert steps_apart(evaluate(lowered, inputs)[0], evaluate(before, inputs)[0]) <= one_step


def test_the_generated_c_has_the_reference_s_bits():
    lowered = vqc.apply(captured(), "adopt-integers," + LOWER)
    exe = vqc.compile(lowered, "portable", fallback="none")
    assert torch.equal(exe.step([X], [])[0][0], evaluate(lowered, [X])[0])


def test_what_is_left_alone_says_why():
    class Other(Converted):
        def pair(self, x: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
            if zero == 3:
                s, z = qd.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8)
                q = qd.quantize_per_tensor.tensor(x, s, z, -128, 127, torch.int8)
                return qd.dequantize_per_tensor.tensor(q, s, z, -128, 127, torch.int8)
            q = qd.quantize_per_tensor(x, scale, zero, -128, 127, torch.int8)
            return qd.dequantize_per_tensor(q, scale, zero + (zero == 5), -128, 127, torch.int8)

    before = vqc.capture(torch.export.export(Other(True).eval(), (X,)))
    adopted = vqc.apply(before, "adopt-integers")
    assert adopted.history[-1].rewrites == {"unsigned": 2}
    said = sorted(set(reasons(adopted).values()))
    assert any("computed at every step" in r for r in said) and any("otherwise than q's own" in r for r in said)
    assert torch.equal(evaluate(adopted, [X])[0], evaluate(before, [X])[0])


def test_a_weight_with_a_zero_point_is_left():
    class Shifted(Converted):
        def weight(self, name: str, axis: int) -> torch.Tensor:
            return qd.dequantize_per_tensor(getattr(self, f"{name}_w"), 0.0015, 1, -127, 127, torch.int8)

    adopted = vqc.apply(vqc.capture(torch.export.export(Shifted(True).eval(), (X,))), "adopt-integers")
    assert "channels" not in adopted.history[-1].rewrites
    assert "zero point 0" in " ".join(reasons(adopted).values())

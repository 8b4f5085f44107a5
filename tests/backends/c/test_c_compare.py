"""Integer layers beside their float kernels: those that do not pay are named, with a way out."""

from __future__ import annotations

from dataclasses import replace

import torch
from c_helpers import compiled
from torch import nn

import vqc
from vqc.backends.c.build import find_compiler
from vqc.backends.c.compare import Slower, slower_than_float


class Net(nn.Module):
    """A strided, a depthwise, a plain and a transposed convolution; the last two layers are alike."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1)
        self.one = nn.Conv2d(8, 8, 1)
        self.two = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.two(torch.relu(self.one(self.up(torch.relu(self.deep(torch.relu(self.first(x))))))))


def test_only_layers_that_are_slower_are_named_with_the_module_to_keep():
    clip = [[(torch.rand(1, 3, 20, 24),) for _ in range(2)]]
    program = vqc.apply(vqc.capture(Net().eval(), (clip[0][0][0],)), "int8-all", calibration=clip)
    exe = compiled(program)
    layers = exe.profile([clip[0][0]]).layers
    convolutions = [n.name for n in program.calls if "qconv" in n.name]
    assert len(convolutions) == 5
    slow = [replace(x, measured_ms=1e6 if x.node in convolutions[1:3] else 0.0) for x in layers]
    found = slower_than_float(program, slow, "native", find_compiler())
    assert {s.node for s in found} == set(convolutions[1:3]) and {s.keep for s in found} == {"deep", "up"}
    assert all(0 < s.float_ms < s.integer_ms for s in found)
    none = [replace(x, measured_ms=0.0) for x in layers]
    assert slower_than_float(program, none, "native", find_compiler()) == []
    kept = vqc.apply(vqc.capture(Net().eval(), (clip[0][0][0],)),
                     f"observe,quantize{{keep=[{found[0].keep}],tail=quantized}},lower-integer",
                     calibration=clip)  # fmt: skip
    assert sum("qconv" in n.name for n in kept.calls) == 4  # the way out works


def test_a_float_program_has_nothing_to_compare():
    program = vqc.capture(Net().eval(), (torch.rand(1, 3, 20, 24),))
    exe = compiled(program)
    assert slower_than_float(program, exe.report.layers, "native", find_compiler()) == []
    assert "quantize{keep=[a.b]}" in str(Slower("n", 2.0, 1.0, "a.b"))

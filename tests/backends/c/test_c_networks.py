"""Whole networks in C: floats within rounding, and every integer of the quantized form equal, frame after frame."""

from __future__ import annotations

import pytest
import torch
from c_helpers import compiled

import vqc
from vqc.models.rife import RIFE
from vqc.models.rvm import RVM
from vqc.models.srvgg import SRVGG
from vqc.program import Program, dtype_of, evaluate


def _networks():
    small = torch.rand(1, 3, 48, 80)
    states = {f"r{i}": i + 1 for i in (1, 2, 3, 4)}
    return {
        "rvm": lambda: (RVM(segmentation=False), (small, None, None, None, None), states),
        "rvm_refined": lambda: (RVM(), (torch.rand(1, 3, 96, 160), None, None, None, None, 0.5), states),
        "rife": lambda: (RIFE(), (torch.rand(1, 3, 64, 96), torch.rand(1, 3, 64, 96)), None),
        "srvgg": lambda: (SRVGG(), (torch.rand(1, 3, 24, 40),), None),
    }


def _frames(program: Program, count: int) -> list[list[torch.Tensor]]:
    return [[torch.rand(i.shape) for i in program.inputs] for _ in range(count)]


def _capture(name: str) -> Program:
    model, args, states = _networks()[name]()
    return vqc.capture(model.eval(), args, states=states, name=name)


@pytest.mark.parametrize("name", ["rvm", "rvm_refined", "rife", "srvgg"])
def test_float_network_equals_pytorch(name):
    program = vqc.apply(_capture(name), "float")
    exe = compiled(program)
    assert not exe.report.fallbacks
    state = theirs = program.initial_state()
    for frame in _frames(program, 3):
        want = evaluate(program, frame, theirs)
        got = exe.trace(frame, state)
        for a, b in zip(want, got, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
        theirs, state = [want[s.output] for s in program.states], [got[s.output] for s in program.states]


def test_every_integer_of_quantized_rvm_is_equal_over_frames():
    program = _capture("rvm")
    clip = [tuple(f) for f in _frames(program, 2)]
    quantized = vqc.apply(program, "int8", calibration=[clip])
    integers = [n.name for n in quantized.calls if isinstance(n.meta["val"], torch.Tensor)
                and dtype_of(n) in (torch.uint8, torch.int8)]  # fmt: skip
    assert len(integers) > 40
    watched = quantized.with_outputs(integers)
    exe = compiled(watched)
    assert {"qconv_c4"} <= {c.family for c in exe.model.model.lowered.calls}
    extra = len(watched.result_nodes) - len(integers)
    state = theirs = quantized.initial_state()
    for frame in _frames(program, 3):
        want, got = evaluate(watched, frame, theirs), exe.trace(frame, state)
        for name, a, b in zip(integers, want[extra:], got[extra:], strict=True):
            assert torch.equal(a, b), f"{name}: {int((a != b).sum())} of {a.numel()} integers differ"
        theirs, state = [want[s.output] for s in watched.states], [got[s.output] for s in watched.states]
        assert all(torch.equal(a, b) for a, b in zip(theirs, state, strict=True))

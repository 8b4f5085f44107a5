"""Programs that resist capture elsewhere: captured with parity, or refused with the user's line and a way out."""

from __future__ import annotations

import pytest
import torch
from frontend_help import copied, eager, portrait, run, same, seeded
from frontend_programs import BASE_GRIDS, CASES, Case, MirroredClip, WindowMask

from vqc.backends import backend_for
from vqc.errors import AssumptionError, CaptureError
from vqc.frontend import capture


@pytest.mark.parametrize("case", [c for c in CASES if c.outcome in ("captured", "assumed")], ids=lambda c: c.name)
def test_captured(case: Case):
    example = case.example()
    model, given = seeded(case.make), copied(example)
    before = portrait(model)
    program = capture(model, given)
    assert portrait(model) == before
    assert bool(program.assumptions) == (case.outcome == "assumed")
    if program.assumptions:
        assert case.line in program.assumptions[0].where
    same(run(program, example), eager(seeded(case.make), example))
    same(eager(model, example), eager(seeded(case.make), example), rtol=0)  # eager is as it was, bit for bit


@pytest.mark.parametrize("case", [c for c in CASES if c.outcome not in ("captured", "assumed")], ids=lambda c: c.name)
def test_refused(case: Case):
    model, example = seeded(case.make), case.example()
    before = portrait(model)
    with pytest.raises(CaptureError) as caught:
        capture(model, copied(example))
    assert case.outcome in caught.value.what
    assert case.line in caught.value.where
    assert "frontend_programs.py:" in caught.value.where
    assert "torch.library.custom_op" in caught.value.way_out
    assert portrait(model) == before
    same(eager(model, example), eager(seeded(case.make), example), rtol=0)


def test_the_assumption_is_checked_at_every_step():
    clip = torch.rand(1, 4, 2, 8, 8)
    program = capture(seeded(MirroredClip), clip)
    exe = backend_for("reference").compile(program, "reference", {})
    exe.step([clip * 0.5])
    mirrored = torch.cat([clip[:, :2], clip[:, :2].flip(1)], 1)
    with pytest.raises(AssumptionError, match="mirror|norm|bool"):
        exe.step([mirrored])


def test_a_mirrored_example_captures_the_other_network():
    half = torch.rand(1, 2, 2, 8, 8)
    mirrored = torch.cat([half, half.flip(1)], 1)
    program = capture(seeded(MirroredClip), mirrored)
    assert program.assumptions[0].expected is True
    same(run(program, (mirrored,)), eager(seeded(MirroredClip), (mirrored,)))


def test_a_buffer_that_is_there_already_is_read_as_a_constant():
    model = seeded(WindowMask)
    model(torch.rand(1, 6, 4))
    program = capture(model, torch.rand(1, 6, 4))
    assert not program.states and not program.assumptions


def test_a_module_level_cache_holds_real_tensors():
    case = next(c for c in CASES if c.name == "cached_grid")
    model = seeded(case.make)
    capture(model, case.example())
    assert BASE_GRIDS and all(type(v) is torch.Tensor and v.device.type == "cpu" for v in BASE_GRIDS.values())
    model(torch.rand(1, 3, 8, 8))


def test_the_caller_s_list_keeps_its_entries():
    case = next(c for c in CASES if c.name == "two_rates")
    example = case.example()
    tensors = list(example[0])
    capture(seeded(case.make), example)
    assert all(a is b for a, b in zip(example[0], tensors, strict=True))


def test_weights_of_a_loop_are_kept_once():
    case = next(c for c in CASES if c.name == "clip_gru")
    program = capture(seeded(case.make), case.example())
    assert sum(k.endswith("new.weight") for k in program.constants) == 1
    assert sum(n.target is torch.ops.aten.conv2d.default for n in program.calls) == 6

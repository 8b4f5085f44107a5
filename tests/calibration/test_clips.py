"""Calibration clips in every form a user may have, and refusals that say where."""

import pytest
import torch
from handmade import Hand, aten

from vqc.calibration import Clips, as_clips, phase_of, rollout
from vqc.errors import CalibrationError


def counter():
    """A program whose state counts its frames, so that a state left over from another clip shows."""
    h = Hand()
    x = h.input("x", 1, 3, 4, 4)
    s = h.state("n", torch.zeros(1))
    n = h(aten.add.Scalar, s, 1)
    return h.done(h(aten.mul.Tensor, x, n), states=[n])


@pytest.mark.parametrize("source, clips, frames", [
    (torch.rand(5, 3, 4, 4), 1, 5),
    (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 1, 2),
    ([torch.rand(1, 3, 4, 4)] * 3, 1, 3),
    ([(torch.rand(1, 3, 4, 4),)] * 3, 1, 3),
    ([torch.rand(2, 3, 4, 4), torch.rand(4, 3, 4, 4)], 2, 6),
    ([[torch.rand(1, 3, 4, 4)] * 2, [torch.rand(1, 3, 4, 4)]], 2, 3),
])  # fmt: skip
def test_forms(source, clips, frames):
    result = as_clips(source, counter())
    assert (len(result.clips), result.frames) == (clips, frames)
    assert as_clips(result, counter()) == result
    assert all(x.shape == (1, 3, 4, 4) and x.dtype == torch.float32 for c in result for step in c for x in step)


@pytest.mark.parametrize("source, text", [
    (None, "no calibration clip"),
    ([], "hold no frame"),
    (torch.rand(0, 3, 4, 4), "hold no frame"),
    (torch.rand(2, 3, 8, 8), r"clip 0, step 0[\s\S]*captured as f32\[1, 3, 4, 4\]"),
    ([torch.rand(1, 3, 4, 4), torch.full((1, 3, 4, 4), float("nan"))], r"input x holds NaN[\s\S]*clip 0, step 1"),
])  # fmt: skip
def test_refusals(source, text):
    with pytest.raises(CalibrationError, match=text):
        as_clips(source, counter())


def test_state_is_carried_and_reset():
    program, seen = counter(), []
    clips = Clips((tuple((torch.ones(1, 3, 4, 4),) for _ in range(3)), ((torch.ones(1, 3, 4, 4),),)))
    rollout(program, clips, lambda n, v, t: seen.append((t, float(v.max()))) if n.name.startswith("mul") else None)
    assert seen == [(0, 1.0), (1, 2.0), (2, 3.0), (0, 1.0)]


def test_phases():
    assert [phase_of(t) for t in (0, 1, 2, 3, 4, 7, 8, 15, 16, 1000)] == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]

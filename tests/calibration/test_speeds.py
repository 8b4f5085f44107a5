"""A calibration clip at several speeds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqc.calibration import at_speeds
from vqc.errors import CalibrationError


def numbers(clips):
    return [c[:, 0].int().tolist() for c in clips]


def clip(length):
    return torch.arange(length).float()[:, None].expand(length, 3)


def test_frames_are_left_out_and_starts_spread():
    assert numbers(at_speeds(clip(13), (1, 2, 4), frames=3)) == [[0, 1, 2], [4, 6, 8], [4, 8, 12]]
    assert numbers(at_speeds(clip(9), (1, 2))) == [[0, 1, 2, 3, 4], [0, 2, 4, 6, 8]]
    assert numbers(at_speeds(clip(10), (3,), frames=2, stretches=3)) == [[0, 3], [3, 6], [6, 9]]


@given(st.integers(2, 60), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3))
def test_every_stretch_is_of_the_clip_at_its_speed(length, speeds, stretches):
    if length <= max(speeds):
        with pytest.raises(CalibrationError, match="longer clip"):
            at_speeds(clip(length), speeds, stretches=stretches)
        return
    found = numbers(at_speeds(clip(length), speeds, stretches=stretches))
    assert len(found) == len(speeds) * stretches and len({len(f) for f in found}) == 1
    for i, f in enumerate(found):
        assert len(f) >= 2 and f[0] >= 0 and f[-1] < length
        assert {b - a for a, b in zip(f, f[1:], strict=False)} == {speeds[i // stretches]}
    # the fastest has no room for one frame more
    assert len(found[0]) * max(speeds) + 1 > length - max(speeds) + 1


@pytest.mark.parametrize(("speeds", "frames"), [((0,), None), ((), None), ((1, 4), 4), ((1,), 1)])
def test_what_cannot_be_is_said(speeds, frames):
    with pytest.raises(CalibrationError):
        at_speeds(clip(12), speeds, frames=frames)

"""Calibration clips at several speeds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqc.calibration import at_speeds
from vqc.errors import CalibrationError


def numbers(clips):
    return [c[:, 0].int().tolist() for c in clips]


def clip(length, first=0):
    return torch.arange(first, first + length).float()[:, None].expand(length, 3)


def test_frames_are_left_out_and_starts_spread():
    assert numbers(at_speeds(clip(13), (1, 2, 4), frames=3)) == [[5, 6, 7], [4, 6, 8], [2, 6, 10]]
    assert numbers(at_speeds(clip(9), (1, 2))) == [[2, 3, 4, 5, 6], [0, 2, 4, 6, 8]]
    assert numbers(at_speeds(clip(10), (3,), frames=2, stretches=3)) == [[1, 4], [3, 6], [5, 8]]


def test_of_several_clips_the_calm_stretches_come_first():
    found = numbers(at_speeds([clip(5), clip(7, 100)], (1, 2), frames=2))
    assert found == [[1, 2], [102, 103], [1, 3], [102, 104]]


@given(st.lists(st.integers(2, 60), min_size=1, max_size=3), st.lists(st.integers(1, 6), min_size=1, max_size=4),
       st.integers(1, 3))  # fmt: skip
def test_every_stretch_is_of_its_clip_at_its_speed(lengths, speeds, stretches):
    clips = [clip(n, 1000 * i) for i, n in enumerate(lengths)]
    if min(lengths) <= max(speeds):
        with pytest.raises(CalibrationError, match="longer clip"):
            at_speeds(clips, speeds, stretches=stretches)
        return
    found = iter(numbers(at_speeds(clips, speeds, stretches=stretches)))
    for speed in speeds:
        for i, length in enumerate(lengths):
            for _ in range(stretches):
                f = next(found)
                assert len(f) >= 2 and 1000 * i <= f[0] and f[-1] < 1000 * i + length
                assert {b - a for a, b in zip(f, f[1:], strict=False)} == {speed}
                # the fastest has no room for one frame more
                assert len(f) * max(speeds) + 1 > length
    assert next(found, None) is None


@pytest.mark.parametrize(("speeds", "frames"), [((0,), None), ((), None), ((1, 4), 4), ((1,), 1)])
def test_what_cannot_be_is_said(speeds, frames):
    with pytest.raises(CalibrationError):
        at_speeds(clip(12), speeds, frames=frames)

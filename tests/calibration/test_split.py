"""split: whole clips are held out, the end of each where there are few; a clip stays one sequence."""

import pytest
import torch

from vqc.calibration import Clips, split
from vqc.errors import CalibrationError


def clips(*lengths):
    return Clips(tuple(tuple((torch.zeros(1),) for _ in range(n)) for n in lengths))


def consistent(parts, lengths):
    assert parts.learned + parts.held == sum(lengths) and parts.learned > 0 and parts.held > 0
    for c, n in enumerate(lengths):
        assert [parts.learns(c, t) for t in range(n)] == [t < parts.starts[c] for t in range(n)]


@pytest.mark.parametrize(("lengths", "starts"), [((24,), (18,)), ((8, 4), (6, 3)), ((3, 2), (2, 1)), ((1, 5), (1, 4))])
def test_of_one_or_two_clips_the_last_quarter_of_each_is_held_out(lengths, starts):
    parts = split(clips(*lengths))
    assert parts.starts == starts
    consistent(parts, lengths)


@pytest.mark.parametrize(("count", "share", "held"), [
    (3, 0.25, {2}), (4, 0.25, {3}), (7, 0.25, {6}), (8, 0.25, {3, 7}), (9, 0.25, {3, 8}), (12, 0.25, {3, 7, 11}),
    (4, 0.5, {1, 3}), (5, 0.01, {4}), (3, 0.99, {0, 2}), (4, 0.99, {0, 1, 3}),
])  # fmt: skip
def test_of_more_clips_whole_ones_are_held_out_evenly_the_last_among_them(count, share, held):
    lengths = [3 + c for c in range(count)]
    parts = split(clips(*lengths), share)
    assert parts.starts == tuple(0 if c in held else n for c, n in enumerate(lengths))
    consistent(parts, lengths)


def test_clips_of_one_step():
    assert split(clips(1, 1)).starts == (1, 0)
    assert split(clips(1, 1, 1, 1, 1)).starts == (1, 1, 1, 1, 0)


def test_a_large_share_leaves_a_step_to_learn_from():
    assert split(clips(4), share=0.99).starts == (1,)
    assert split(clips(4), share=0.5).starts == (2,)


def test_what_cannot_be_split():
    with pytest.raises(CalibrationError, match="1 frame, too few"):
        split(clips(1))
    with pytest.raises(CalibrationError, match="share of 1"):
        split(clips(4), share=1.0)

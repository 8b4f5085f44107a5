"""split: the end of every clip is held out, and a clip stays one sequence."""

import pytest
import torch

from vqc.calibration import Clips, split
from vqc.errors import CalibrationError


def clips(*lengths):
    return Clips(tuple(tuple((torch.zeros(1),) for _ in range(n)) for n in lengths))


@pytest.mark.parametrize(("lengths", "starts"), [
    ((24,), (18,)), ((8, 4), (6, 3)), ((3, 2), (2, 1)), ((1, 5), (1, 4)), ((1, 1, 1, 1, 1), (1, 1, 1, 1, 0)),
])  # fmt: skip
def test_the_last_quarter_of_every_clip_is_held_out(lengths, starts):
    parts = split(clips(*lengths))
    assert parts.starts == starts
    assert parts.learned + parts.held == sum(lengths) and parts.learned > 0 and parts.held > 0
    for c, n in enumerate(lengths):
        assert [parts.learns(c, t) for t in range(n)] == [t < starts[c] for t in range(n)]


def test_a_large_share_leaves_a_step_to_learn_from():
    assert split(clips(4), share=0.99).starts == (1,)
    assert split(clips(4), share=0.5).starts == (2,)


def test_what_cannot_be_split():
    with pytest.raises(CalibrationError, match="1 frame, too few"):
        split(clips(1))
    with pytest.raises(CalibrationError, match="share of 1"):
        split(clips(4), share=1.0)

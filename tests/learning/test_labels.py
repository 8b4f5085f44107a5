"""Labels: forms that are understood, and what is refused with its clip and step."""

import pytest
import torch
from handmade import Hand, aten

from vqc.calibration import as_clips
from vqc.errors import CalibrationError
from vqc.learning.labels import Labels, as_labels, of_composites
from vqc.video.composites import drawn


def program():
    """A picture [1,3,4,4] and a matte [1,1,4,4]."""
    h = Hand()
    x = h.input("x", 1, 3, 4, 4)
    return h.done(h(aten.relu, x), h(aten.sigmoid, h(aten.conv2d, x, h.const("w", h.rand(1, 3, 1, 1)), None)))


def clips(p):
    return as_clips([[torch.rand(1, 3, 4, 4) for _ in range(n)] for n in (3, 2)], p)


def flows(n: int, dtype=torch.bool):
    return [(torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4, dtype=dtype))] * n


def test_forms():
    p = program()
    assert as_labels(None, p, clips(p)) == Labels()
    one = torch.rand(3, 1, 4, 4)
    labels = as_labels([one, [None, one[:1]]], p, clips(p))
    assert labels.result == "y1"
    assert torch.equal(labels.value(0, 2), one[2:]) and labels.value(1, 0) is None
    assert labels.moved(0, 0) is None
    named = as_labels(Labels([[torch.rand(1, 3, 4, 4)] * 3, [None] * 2], result="y0"), p, clips(p))
    assert named.result == "y0" and named.value(1, 1) is None
    moved = as_labels(Labels(motion=[flows(2), [None]]), p, clips(p))
    assert moved.moved(0, 1)[1].all() and moved.moved(1, 0) is None and moved.value(0, 0) is None


def test_composites():
    p = program()
    made = [drawn(n, (4, 4), seed=n) for n in (3, 2)]
    labels = as_labels(of_composites(made), p, as_clips([[f[None] for f in c.frames] for c in made], p))
    assert torch.equal(labels.value(0, 1), made[0].alpha[1:2])
    assert torch.equal(labels.moved(1, 0)[0], made[1].flow_forward)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([torch.rand(3, 1, 4, 4)], r"truth for \[3\] steps[\s\S]*ask for \[3, 2\]"),
        (Labels(motion=[flows(3), flows(2)]), r"motion for \[3, 2\] steps[\s\S]*\[2, 1\]"),
        ([torch.rand(3, 2, 4, 4), [None] * 2], "do not say which result[\\s\\S]*y0 "),
        (Labels([torch.rand(3, 1, 4, 4), [None] * 2], result="alpha"), "'alpha'[\\s\\S]*y0, y1"),
        ([torch.rand(3, 1, 4, 4), [None, torch.rand(1, 1, 2, 2)]], r"\(1, 1, 2, 2\)[\s\S]*clip 1, step 1"),
        ([torch.rand(3, 1, 4, 4), [None, torch.ones(1, 1, 4, 4).long()]], r"torch.int64[\s\S]*floats"),
        ([torch.rand(3, 1, 4, 4), [None, torch.full((1, 1, 4, 4), torch.nan)]], r"NaN[\s\S]*clip 1, step 1"),
        (Labels(motion=[flows(2), [(torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4).bool())]]), "a flow is"),
        (Labels(motion=[flows(2), [(torch.zeros(2, 4, 4), torch.ones(1, 1, 4, 4).bool())]]), "a flow is"),
        (Labels(motion=[flows(2), flows(1, torch.float32)]), r"where a flow holds[\s\S]*torch.bool"),
    ],
)
def test_refusals(labels, message):
    p = program()
    with pytest.raises(CalibrationError, match=message):
        as_labels(labels, p, clips(p))

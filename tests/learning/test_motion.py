"""Flicker along a known motion, and where motion is taken from."""

import pytest
import torch
from handmade import Hand, aten

from vqc.calibration import as_clips
from vqc.errors import PipelineError
from vqc.learning.labels import Labels
from vqc.learning.motion import Motions, flicker, flow_named
from vqc.learning.store import Store


def shift(dx: float, size: int = 8):
    """A flow of dx pixels to the right, valid where it stays inside."""
    flow = torch.tensor([dx, 0.0]).view(1, 2, 1, 1).expand(1, 2, size, size).contiguous()
    valid = (torch.arange(size) + dx < size).view(1, 1, 1, size).expand(1, 1, size, size)
    return flow, valid


def test_what_moves_along_does_not_flicker_and_what_changes_does():
    wide = torch.rand(1, 2, 8, 9)
    now, then = wide[..., 1:], wide[..., :-1]
    assert float(flicker(now, then, shift(1.0))) < 1e-6
    assert float(flicker(now, then + 0.25, shift(1.0))) == pytest.approx(0.25, abs=1e-5)
    assert float(flicker(now, then, shift(0.0))) > 0.1
    hidden = (shift(1.0)[0], torch.zeros(1, 1, 8, 8, dtype=torch.bool))
    assert float(flicker(now, then + 0.25, hidden)) == 0


def test_a_motion_of_another_size_is_scaled():
    wide = torch.rand(1, 1, 16, 18)
    now, then = wide[..., 2:], wide[..., :-2]
    flow, valid = shift(1.0)
    assert float(flicker(now, then, (flow, valid))) < 1e-6


def test_gradients_go_to_both():
    now, then = (torch.rand(1, 1, 8, 8, requires_grad=True) for _ in range(2))
    flicker(now, then, shift(1.0)).backward()
    assert bool((now.grad[..., :-1] != 0).all()) and float(now.grad[..., -1].abs().max()) == 0
    assert float(then.grad.abs().sum()) == pytest.approx(float(now.grad.abs().sum()), rel=1e-4)


def matting(channels: int = 3):
    h = Hand()
    x = h.input("x", 1, channels, 32, 32)
    return h.done(h(aten.relu, x))


def test_labels_come_before_a_flow_and_a_flow_is_taken_once(tmp_path):
    p = matting()
    picture = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 38, 38), 5, 1)
    clips = as_clips(
        [[picture[..., 2:, 2:].contiguous(), picture[..., 2:, 1:-1].contiguous(), picture[..., 2:, :-2]]], p
    )
    clips = as_clips([[torch.nn.functional.interpolate(x[0], (32, 32)) for x in clips.clips[0]]], p)
    calls = []

    def dense(a, b):
        calls.append(1)
        return flow_named("dense")(a, b)

    known = shift(5.0, 32)
    with Store(1 << 20, tmp_path) as store:
        motions = Motions(p, clips, Labels(motion=[[known, None]]), dense, store)
        assert motions.known and motions.at(0, 0)[0] is known[0] and not calls
        flow, valid = motions.at(0, 1)
        assert len(calls) == 2 and float((flow[:, 0] - 1).abs()[..., 8:-8, 8:-8].mean()) < 0.2
        assert valid.dtype == torch.bool and torch.equal(motions.at(0, 1)[0], flow) and len(calls) == 2
        assert motions.at(0, 2) is None
        assert not Motions(p, clips, Labels(), None, store).known


def test_no_picture_no_flow(tmp_path):
    p = matting(channels=4)
    clips = as_clips([[torch.rand(1, 4, 32, 32)] * 2], p)
    with Store(0, tmp_path) as store:
        with pytest.raises(PipelineError, match="no picture to take the flow of"):
            Motions(p, clips, Labels(), flow_named("dense"), store)
        assert Motions(p, clips, Labels(), flow_named("none"), store).at(0, 0) is None

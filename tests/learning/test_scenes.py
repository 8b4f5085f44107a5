"""Scenes for a matting network: what they are made of, that their motion is known, and what cannot give any."""

import pytest
import torch
from handmade import Hand, aten

from vqc.calibration import as_clips, split
from vqc.errors import CalibrationError, InputError
from vqc.learning.labels import as_labels
from vqc.learning.scenes import matting_scenes
from vqc.video.composites import drawn
from vqc.video.flow import warp

SIZE = (32, 48)


def matting(size=SIZE):
    """Colours as they are; the matte: where red outweighs blue, steadied by a state."""
    h = Hand()
    x, s = h.input("x", 1, 3, *size), h.state("s", torch.zeros(1, 1, *size))
    w = h.const("w", torch.tensor([20.0, 0.0, -20.0]).view(1, 3, 1, 1))
    now = h(aten.sigmoid, h(aten.conv2d, x, w, None))
    state = h(aten.add.Tensor, h(aten.mul.Tensor, s, h.const("half", torch.tensor(0.5))), now)
    return h.done(h(aten.clamp, x, 0.0, 1.0), h(aten.clamp, state, 0.0, 1.0), states=[state])


def person(frames: int, shift: int = 0, size=(40, 60)) -> torch.Tensor:
    """A red block before blue, of another size than the program's; it moves by a pixel a frame."""
    clip = torch.zeros(frames, 3, *size)
    clip[:, 2] = 0.8
    for t in range(frames):
        clip[t, 0, 10:, 15 + shift + t : 35 + shift + t], clip[t, 2, 10:, 15 + shift + t : 35 + shift + t] = 0.9, 0.0
    return clip


def test_stretches_people_elsewhere_and_drawn_figures():
    p, clips = matting(), [person(12), person(9, 5)]
    green = torch.tensor([0.1, 0.9, 0.1]).view(3, 1, 1).expand(3, 20, 30)
    made = matting_scenes(p, clips, backgrounds=[green], frames=4)
    assert [len(c) for c in made.clips] == [4] * 9 and all(x.shape == (1, 3, *SIZE) for c in made.clips for x in c)
    assert [a.split()[-1] for a in made.about] == ["drawn", "drawn", "elsewhere", "elsewhere", "elsewhere",
                                                   "0", "1", "0", "1"]  # fmt: skip
    as_labels(made.labels, p, as_clips(made.clips, p))  # fits the clips
    assert split(as_clips(made.clips, p)).starts == (4, 4, 4, 0, 4, 4, 4, 4, 0)
    stretches = torch.nn.functional.interpolate(clips[0][[0, 8]], SIZE, mode="bilinear", antialias=True)
    torch.testing.assert_close(torch.cat([made.clips[5][0], made.clips[7][0]]), stretches)  # from its start to its end
    for clip in made.clips[2:5]:  # the block is red still, what was blue around it is green
        red, green_share, blue = clip[0][0, 0] > 0.7, clip[0][0, 1] > 0.7, clip[0][0, 2] > 0.3
        assert red.float().mean() > 0.1 and green_share.float().mean() > 0.3 and blue.float().mean() < 0.05  # edges


def test_the_motion_of_what_is_made_is_known_and_that_of_stretches_is_not():
    made = matting_scenes(matting(), [person(8)], frames=4, stretches=3, lift=1, draw=1, truth=True)
    assert made.labels.motion[2:] == [[None] * 3] * 3 and made.labels.truth[2:] == [[None] * 4] * 3
    assert made.labels.result == "y1"
    for c in (0, 1):
        for t in range(3):
            flow, valid = made.labels.moved(c, t)
            a, b = made.labels.value(c, t), made.labels.value(c, t + 1)
            assert ((a - warp(b, flow)).abs() * valid).mean() < 0.02 and valid.float().mean() > 0.6
    assert not matting_scenes(matting(), [person(8)], frames=4).labels.truth


def test_the_seed_repeats_them_and_another_gives_others():
    found = [matting_scenes(matting(), [person(8)], frames=2, stretches=1, lift=1, draw=1, seed=s) for s in (0, 0, 1)]
    same = [[torch.equal(a[t], b[t]) for a, b in zip(found[0].clips, f.clips, strict=True) for t in (0, 1)]
            for f in found]  # fmt: skip
    assert all(same[1]) and same[2] == [False, False, False, False, True, True]
    assert not torch.equal(found[0].clips[0][0], drawn(2, SIZE, 0).frames[:1])  # not a figure that seeds 0.. draw


def test_what_cannot_give_scenes():
    with pytest.raises(CalibrationError, match="stretches of 8 frames"):
        matting_scenes(matting(), [person(7)])
    with pytest.raises(CalibrationError, match="stretches of 1 frames"):
        matting_scenes(matting(), [person(7)], frames=1)
    with pytest.raises(CalibrationError, match="cannot give"):
        matting_scenes(matting(), [])
    h = Hand()
    x = h.input("x", 1, 3, *SIZE)
    with pytest.raises(CalibrationError, match="no matting network"):
        matting_scenes(h.done(h(aten.relu, x)), [person(8)])
    with pytest.raises(InputError, match="nobody is found"):
        matting_scenes(matting(), [torch.zeros(8, 3, 40, 60) + torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)])
    with pytest.raises(InputError, match="background of shape"):
        matting_scenes(matting(), [person(8)], backgrounds=[torch.zeros(1, 3, 20, 20)])
